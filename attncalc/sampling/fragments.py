"""Fragments that molecules are built from, as SMILES, by family.

Families have quotas (`QUOTAS`), so that rare groups are as frequent as common ones: a model trained
on frequent chemistry fails first on azides, cumulenes, sulfonyl halides and phosphates.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl")

# molecules of each family among 25 successive ones
QUOTAS = {
    "tiny": 2,
    "hydrocarbon": 1,
    "oxygen": 2,
    "nitrogen": 2,
    "carbonyl": 3,
    "sulfur": 2,
    "phosphorus": 2,
    "halogen": 2,
    "unusual": 1,
    "biaryl": 1,
    "enol": 1,
    "peptide": 2,
    "nucleobase": 1,
    "sugar": 1,
    "cation": 1,
    "anion": 1,
}

# in addition to all graphs of at most three heavy atoms of usual valence, see `tiny_molecules`
TINY = _words(
    """
    [H][H] O=S=O O=S(=O)=O OS(O)(=O)=O OS(=O)O FS(F)(F)(F)(F)F FS(F)(F)F CS(C)=O CS(C)(=O)=O
    CS(=O)(=O)O CS(=O)(=O)Cl CS(=O)(=O)F NS(N)(=O)=O OP(O)(O)=O OP(O)O PP FP(F)F ClP(Cl)Cl
    FP(F)(F)(F)F O=P(F)(F)F O=P(Cl)(Cl)Cl CP(C)C CP(C)(C)=O COP(=O)(O)O CP(=O)(O)O O=[PH]([OH])[OH]
    CP C#P CP(=S)(C)C C[N+](=O)[O-] O[N+](=O)[O-] ON=O O=[N+]([O-])F CON=O [N-]=[N+]=O [O-][O+]=O
    CN=[N+]=[N-] N=[N+]=[N-] C=[N+]=[N-] C[N+]#[C-] [C-]#[O+] [C-]#[N+]C=C C=[N+]([O-])C C#[N+][O-]
    C[N+](C)(C)[O-] FC(F)F FC(F)(F)F ClC(Cl)Cl ClC(Cl)(Cl)Cl FC(F)Cl FN(F)F ClN(Cl)Cl FC(F)=O
    ClC(Cl)=O ClC=CCl C=CC=C CC(C)C CC(C)(C)C CCCC C1CCC1 C1=CC=C1 C=C=C=C C#CC#C C=CC#C C=C=C=O
    O=C=C=C=O N#CC#N C=CC#N C=CC=O O=CC=O CC(C)=O CC(=O)O CC(N)=O CC(=O)F CC(=O)Cl COC=O NC(N)=O
    NC(N)=S NC(N)=N OC(=O)O OC(=O)C(=O)O OC=CO CC(=S)N c1ccccc1 c1ccncc1 c1cc[nH]c1 c1ccoc1 c1ccsc1
    c1c[nH]cn1 c1cn[nH]c1 c1nnn[nH]1 c1nc[nH]n1 c1ccpcc1 c1cc[pH]c1 N1=NN=NN1 CSSC COOC CNNC CN=NC
    CC=NO CON CSC#N CN=C=O CN=C=S O=C=S S=C=S C=S CC=S SC#N OC#N OO SS NN NO NS NCl OCl OF ClCl FF
    FCl SCl ClSCl ClSSCl
    """
)

CORES = _words(
    """
    C CC CCC CC(C)C CC(C)(C)C CCCC CCCCC CCCCCC C=C C#C C=CC=C C=CC C=C(C)C CC#C CC#CC C1CC1 C1CCC1
    C1CCCC1 C1CCCCC1 C1CCCCCC1 C1=CC1 C1=CCC1 C1=CCCC1 C1=CCCCC1 C1=CCC=C1 C1=CCC=CC1 C1CC2CCC1C2
    C1C2CC3CC1CC(C2)C3 C12CC1C2 C1CC11CC1 c1ccccc1 c1ccccc1 c1ccccc1 c1ccc2ccccc2c1 c1ccc2CCCc2c1
    """
)
HETERO_CORES = _words(
    """
    c1ccncc1 c1ncncc1 c1cnccn1 c1ccnnc1 c1ncncn1 c1nnncc1 c1cc[nH]c1 c1c[nH]cn1 c1cn[nH]c1
    c1nc[nH]n1 c1nnn[nH]1 c1ccoc1 c1ccsc1 c1cocn1 c1cscn1 c1cnoc1 c1cnsc1 c1nocn1 c1nncs1 c1nnco1
    c1ccc2[nH]ccc2c1 c1ccc2ncccc2c1 c1ccc2occc2c1 c1ccc2sccc2c1 c1ccc2[nH]cnc2c1 c1ccc2scnc2c1
    c1ncc2[nH]cnc2n1 C1COC1 C1CO1 C1CN1 C1CS1 C1CNC1 C1CSC1 C1CCOC1 C1CCOCC1 C1COCCN1 C1COCCO1
    C1CCNC1 C1CCNCC1 C1CNCCN1 C1CCSC1 C1CCSCC1 C1CSCCN1 C1COCO1 C1CSCS1 C1CCPC1 C1CCPCC1 C1COPO1
    C1CC1=O O=C1CN1 O=C1CCN1 O=C1CO1 O=C1CCCN1 O=C1CCCO1 O=C1CCC1 O=C1CCCC1 O=C1CCCCC1
    O=C1NC(=O)C=CN1 O=c1cc[nH]cc1 O=C1C=CC(=O)C=C1 O=C1CCC(=O)N1 O=C1C=CC(=O)N1 O=C1OC(=O)C=C1
    c1ccc2OCOc2c1 O=c1ccc2ccccc2o1 C1C=CNC=C1 C1=NCCO1
    """
)

# groups of each family; a molecule has at least one of them, joined to a core
_GROUPS = {
    "hydrocarbon": """
        C CC C(C)C C(C)(C)C C=C C=CC C#C CC#C C=C=C C=C=C=C C=CC=C C#CC#C C1CC1 C1CCC1 C1CCCC1
        C1CCCCC1 C1=CCCCC1 c1ccccc1 Cc1ccccc1 C1=CC1 C1CC2CC12 C=C1CC1
        """,
    "oxygen": """
        O O OC OCC CO CCO COC COCC CC(C)O CC(C)(C)O OC=C OO COOC OCOC OCO C1CO1 C1COC1 C1CCOC1
        C1CCOCC1 C1COCO1 C1COCCO1 c1ccoc1 Oc1ccccc1 COc1ccccc1 Oc1ccccc1O OC=CO
        """,
    "nitrogen": """
        N N NC N(C)C CN CCN CNC CN(C)C C#N CC#N C=N CC=NC NN CNN N=NC N=Nc1ccccc1 NO CON C=NO CC=NO
        C[N+](=O)[O-] [NH+](=O)[O-] ON=O O[N+](=O)[O-] NC(N)=N CC(N)=N NC=C NC#N C1CN1 C1CNC1
        C1CCNC1 C1CCNCC1 C1CNCCN1 c1ccncc1 c1cc[nH]c1 c1c[nH]cn1 c1cn[nH]c1 c1nnn[nH]1 c1ncncc1
        Nc1ccccc1 C[N+](C)(C)[O-] c1cc[n+]([O-])cc1
        """,
    "carbonyl": """
        C=O CC=O CC(C)=O C(C)=O OC=O C(=O)O CC(=O)O C(=O)OC CC(=O)OC OC(C)=O C(N)=O CC(N)=O NC=O
        NC(C)=O C(=O)NC C(=O)N(C)C CC(=O)NC NC(=O)CC CN(C)C=O NC(N)=O NC(=O)NC OC(N)=O NC(=O)OC
        OC(=O)OC C(=O)C=O C(=O)C(=O)O C(=O)C=C C=CC(=O)O C=CC(N)=O CC(=O)C=O C(=O)NO C(=O)NN
        C(=O)OC(C)=O C(=O)NC(C)=O C(=O)OO CC(N)C(=O)O C(=O)F C(=O)Cl c1ccccc1C=O c1ccccc1C(=O)O
        c1ccccc1C(N)=O C=C=O N=C=O
        """,
    "sulfur": """
        S S SC CS CSC SCC C=S C(C)=S C(N)=S NC(=S)C NC(N)=S C(=S)NC C(=O)S C(=O)SC C(=S)OC C(=S)S
        C(=S)SC SS SSC CSSC S(C)=O CS(C)=O S(C)(=O)=O CS(C)(=O)=O S(N)(=O)=O S(=O)(=O)NC NS(C)(=O)=O
        S(=O)(=O)O S(=O)O OS(C)(=O)=O OS(O)(=O)=O S(=O)(=O)OC S(=O)(=O)Cl S(=O)(=O)F SC#N N=C=S
        S(=N)(C)=O C1CS1 C1CSC1 C1CCSC1 C1CSCCN1 C1CSCS1 c1ccsc1 c1cscn1 c1nncs1 Sc1ccccc1 SC=C SCl
        SN N=S=O
        """,
    "phosphorus": """
        P CP PC P(C)C CP(C)C P(C)(C)=O CP(C)(C)=O P(=O)(O)O CP(=O)(O)O P(=O)(OC)OC P(C)(=O)O
        P(C)(=O)OC OP(=O)(O)O OP(=O)(O)OC OP(=O)(OC)OC NP(=O)(O)O NP(=O)(OC)OC P(=O)(N)N P(=S)(OC)OC
        OP(=S)(O)O OP(=O)(O)S SP(=O)(OC)OC P(C)(C)=S OP(C)C OP(OC)OC P(OC)OC P(=O)(F)OC P(C)(=O)F
        P(=O)(Cl)Cl PCl P(F)F P(Cl)Cl OP(=O)(O)OP(=O)(O)O C=P C#P P=C C1CCPC1 C1COPO1 c1ccpcc1
        c1cc[pH]c1 Pc1ccccc1 N=P(C)(C)C C=P(C)(C)C
        """,
    "halogen": """
        F F Cl Cl CF CCl C(F)F C(F)(F)F CC(F)(F)F C(Cl)Cl C(Cl)(Cl)Cl C(F)Cl C(F)(F)Cl C=CF C=CCl
        C(F)=C C(Cl)=C C(F)=CF C(Cl)=C(Cl)Cl C(F)=C(F)F C#CF C#CCl OC(F)F OC(F)(F)F SC(F)(F)F
        C(=O)C(F)(F)F C(=O)F C(=O)Cl C(F)C=O C(Cl)C(=O)O NC(=O)CCl c1ccccc1F c1ccccc1Cl c1cc(F)ccc1F
        c1cc(Cl)ccc1Cl c1cc(F)ncc1 c1cc(Cl)ncc1 NCl OCl C(F)(F)C(F)F C(Cl)CCl C1(F)CC1 C1(Cl)CC1
        """,
    "unusual": """
        C=C=C C=C=C=C C=C=C=C=C C=C=O C=C=C=O N=C=N N=C=NC C=C=N N=C=O CN=C=O N=C=S N=[N+]=[N-]
        CN=[N+]=[N-] C=[N+]=[N-] C(=O)C=[N+]=[N-] [NH+]#[C-] C[N+]#[C-] C#CC#C C#CC#N C=[N+](C)[O-]
        C#[N+][O-] N=NC N=N N(C)N=O N=O CC=C=O OOC C(=O)OO C1=CC1 C1=NC1 C1N=N1 C1=CCC1 C1=CC=C1
        C1NO1 C1OO1 C1NN1 C1=CO1 C1CC1=C O=C1C=C1 C12CC1C2 C1=CC2CC12 C1CS1 C1CP1 N=S=O N=S=N S=C=C
        ON=O N(O)C NOC N=NN C=NN=C C=NN C1=CC=CC1=C C1=CC=CC=CC1 C(C#N)C#N C(C#N)=C(C#N)C#N
        c1nnn[nH]1 c1nonc1 c1nnnn1C
        """,
}
GROUPS = {family: _words(text) for family, text in _GROUPS.items()}

ARYLS = _words(
    """
    c1ccccc1 c1ccncc1 c1ncccc1 c1cnccn1 c1ncncc1 c1ccoc1 c1ccsc1 c1cc[nH]c1 c1c[nH]cn1 c1cscn1
    c1cocn1 c1cn[nH]c1 c1ccc(F)cc1 c1ccc(C)cc1 c1ccc(O)cc1 c1ccc(N)cc1 c1ccc(Cl)cc1 c1ccccc1C
    c1ccccc1F c1ccccc1O c1ccccc1Cl
    """
)
# between two aryls
LINKS = (
    "",
    "",
    "",
    "",
    "C=C",
    "C#C",
    "O",
    "S",
    "N",
    "C",
    "C(=O)",
    "N=N",
    "C=N",
    "C(=O)N",
    "S(=O)(=O)",
)

# keto-enols and their kin with an internal hydrogen bond; {} take substituents
ENOLS = _words(
    """
    O=C({a})/C({b})=C({c})\\O O=C({a})/C({b})=C({c})\\N S=C({a})/C({b})=C({c})\\O
    O=C({a})/C({b})=C({c})\\S O=C(O)/C({b})=C({c})\\O O=C(N)/C({b})=C({c})\\O
    N=C({a})/C({b})=C({c})\\N O=C({a})C({b})=C({c})O O=Cc1c({b})cccc1O O=C({a})c1ccc({b})cc1O
    O=C(O)c1c({b})cccc1O O=C(N)c1ccc({b})cc1O N=Cc1ccc({b})cc1O CN=Cc1ccc({b})cc1O OC({a})=C({b})
    OC({a})=NC({b}) OC({a})=N OC1=CC(=O)CC({b})C1 OC1=C(C({a})=O)CCC1 O=C({a})C({b})({c})C=O
    O=C1C=C({a})C=CC1=N Oc1ccc({b})cn1 O=c1ccc({b})c[nH]1 OC1=NC=CC({b})=C1 O=C({a})C(=O){c}
    OC({a})=C({b})O O=[N+]([O-])c1ccc({b})cc1O O=C({a})CC(=O)N{c} ON=C({a})C({b})=O
    """
)
ENOL_SUBSTITUENTS = _words("[H] [H] [H] C C CC C(C)C F Cl OC C(F)(F)F c1ccccc1 C#N C=C SC N(C)C")

SIDE_CHAINS = _words(
    """
    - C C(C)C CC(C)C C(C)CC Cc1ccccc1 CO C(C)O CS CCSC CC(N)=O CCC(N)=O CC(=O)O CCC(=O)O CCCCN
    CCCNC(N)=N Cc1c[nH]cn1 Cc1cnc[nH]1 Cc1ccc(O)cc1 Cc1c[nH]c2ccccc12 CSC COC CCCC[NH3+]
    CCCNC(N)=[NH2+] Cc1c[nH]c[nH+]1 CC(=O)[O-] CCC(=O)[O-] C[S-] Cc1ccc([O-])cc1 COP(=O)(O)O
    """
)

NUCLEOBASES = _words(
    """
    Nc1ncnc2[nH]cnc12 Nc1nc2[nH]cnc2c(=O)[nH]1 Nc1ccnc(=O)[nH]1 O=c1cc[nH]c(=O)[nH]1
    Cc1c[nH]c(=O)[nH]c1=O O=c1[nH]cnc2[nH]cnc12 O=c1[nH]c(=O)c2[nH]cnc2[nH]1 c1ncc2[nH]cnc2n1
    Nc1nc2nc[nH]c2c(O)n1 Nc1nc(O)ccn1 Oc1ccnc(O)n1 Oc1cc[nH]c(=O)n1 N=c1cc[nH]c(=O)[nH]1
    N=c1[nH]cnc2[nH]cnc12 Nc1nc(N)c2[nH]cnc2n1 Nc1nc2[nH]cnc2c(=S)[nH]1 O=c1cc[nH]c(=S)[nH]1
    Fc1c[nH]c(=O)[nH]c1=O Clc1c[nH]c(=O)[nH]c1=O Nc1nc(=O)[nH]cc1C Nc1nc(=O)[nH]cc1CO
    CNc1ncnc2[nH]cnc12
    """
)
NUCLEOBASE_SUBSTITUENTS = _words(
    "C CC C1CCCO1 C1CCC(O)O1 C1CCC(CO)O1 C1OC(CO)CC1O C1OC(CO)C(O)C1O N O F Cl C=O SC"
)

SUGARS = _words(
    """
    OCC1OC(O)C(O)C(O)C1O OCC1OC(O)C(O)C1O OC1COC(O)C(O)C1O OCC1OC(O)CC1O CC1OC(O)C(O)C(O)C1O
    NC1C(O)OC(CO)C(O)C1O OCC(O)C(O)C=O OCC(O)C=O OCC(=O)CO OCC(O)CO OCC(O)C(O)CO O=CC(O)C(O)C(O)CO
    OC1CCCCO1 OC1CCCO1 OCC1CCCO1 OC1COCC1O OC1CCOC1O OC1COC(O)CC1O OCC1OCCC1O
    OC1OC(C(=O)O)C(O)C(O)C1O
    """
)
SUGAR_SUBSTITUENTS = _words("C C(C)=O P(=O)(O)O S(=O)(=O)O CC C1CCCCO1 C1OC(CO)CC1O N F")

# groups that a proton is removed from or added to
ACIDS = _words(
    """
    C(=O)O CC(=O)O c1ccccc1C(=O)O S(=O)(=O)O OS(=O)(=O)O P(=O)(O)O OP(=O)(O)OC CP(=O)(O)OC S CS O CO
    c1ccc(O)cc1 c1ccc(S)cc1 S(=O)O C(=S)S C(=O)NC(C)=O c1nnn[nH]1 c1c[nH]cn1 C=NO C(=O)NO
    S(=O)(=O)NC C(C#N)C#N CC(=O)CC(C)=O C(=O)S
    """
)
BASES = _words(
    """
    N CN NC CNC CN(C)C N(C)C CCN c1ccncc1 c1c[nH]cn1 c1ncncc1 C1CCNC1 C1CCNCC1 C1COCCN1 C1CNCCN1
    C1CN1 NC(N)=N C(N)=N C=NC NN NO SC CSC P(C)C CP c1ccsc1 C(N)=O C=O O CO OC
    """
)
CATIONS = _words(
    """
    [NH4+] [OH3+] C[NH3+] C[NH2+]C C[NH+](C)C C[N+](C)(C)C CC[NH3+] [NH2+]=C(N)N C[NH2+]C=N C[OH2+]
    C=[OH+] CC(C)=[OH+] C=[NH2+] C[S+](C)C [SH3+] C[P+](C)(C)C C[PH3+] [PH4+] c1cc[nH+]cc1
    c1c[nH]c[nH+]1 C[n+]1ccccc1 C[n+]1cc[nH]c1 OC[NH3+] NCC[NH3+] OC(=O)C[NH3+] C[N+](C)(C)CCO
    O=[N+]=O N[NH3+] O[NH3+] C[C+](C)C [CH2+]c1ccccc1 C=C[CH2+] O=C=[OH+] N#[NH+] C#[NH+] CC#[NH+]
    [O]=[NH2+] C[CH2+]
    """
)
ANIONS = _words(
    """
    [F-] [Cl-] [OH-] [SH-] [NH2-] C[O-] CC[O-] C[S-] C(=O)[O-] CC(=O)[O-] O=C([O-])O C#[C-] [C-]#N
    [N-]=C=O [S-]C#N [N-]=[N+]=[N-] O=N[O-] O=[N+]([O-])[O-] O=S(=O)([O-])O CS(=O)(=O)[O-]
    COS(=O)(=O)[O-] O=P([O-])(O)O CP(=O)(O)[O-] COP(=O)([O-])OC COP(=O)(O)[O-] [O-]c1ccccc1
    [S-]c1ccccc1 O=[Cl](=O)(=O)[O-] O=S([O-])O C[NH-] [CH2-]C=O [CH2-][N+](=O)[O-] [CH2-]C#N
    O=C[CH-]C=O CC(=O)[CH-]C(C)=O [O-]Cl F[P-](F)(F)(F)(F)F FC(F)(F)C(=O)[O-] FC(F)(F)S(=O)(=O)[O-]
    O=C[NH-] c1cn[n-]c1 c1nn[n-]n1 O[O-] O=C([O-])C(=O)O O=C([O-])CO CC(O)C(=O)[O-] [PH2-] C=C[O-]
    [O-]C=O
    """
)

# partners in clusters, besides the molecules drawn; water is made separately
SOLVENTS = _words(
    """
    CO CCO N C CC C=C C#C c1ccccc1 C=O CC(C)=O O=CO CC(=O)O NC=O CNC(C)=O CC#N CS(C)=O S P F Cl C#N
    O=C=O CCl ClC(Cl)Cl CF FC(F)F CSC CS COC CN CN(C)C c1ccncc1 c1c[nH]cn1 c1cc[nH]c1 Oc1ccccc1 CCC
    CCCC OP(O)(O)=O COP(=O)(OC)OC CP(C)C OS(O)(=O)=O N#N [H][H] NC(N)=O CC(N)=O c1ccoc1 c1ccsc1 OO
    """
)
