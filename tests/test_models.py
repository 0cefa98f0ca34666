"""The shipped models: card, header and numbers agree, and the numbers are measured again."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.mixing import LinearCombinationCalculator
from ase.filters import FrechetCellFilter
from ase.neighborlist import build_neighbor_list
from ase.optimize import FIRE, LBFGS

from attncalc import AttnCalculator, Committee, Potential, data, load
from attncalc.data.errors import Prediction, errors, predict
from attncalc.fast import lower
from attncalc.model_file import header, shipped_models
from attncalc.potential import evaluate
from attncalc.structures import fresh_graphs
from attncalc.system import System

SHIPPED = sorted(shipped_models())
VERIFIED: set[bytes] = set()
# by the weights of a network and the molecule
PREDICTED: dict[tuple[bytes, str], Prediction] = {}
TETRAHEDRON = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
TEST_SET = Path(__file__).parent / "data" / "xtb_small_molecules_test.extxyz"


def on_card(name: str, quantity: str) -> float:
    """MAE in meV or meV/Å, as the card says it."""
    card = shipped_models()[name].with_suffix(".md").read_text()
    (mae,) = re.findall(rf"^\| {quantity} \| ([\d.]+) \|", card, flags=re.MULTILINE)
    return float(mae)


def test_all_are_shipped():
    assert SHIPPED == [
        "aspirin-committee",
        "equiformer-aspirin",
        "equiformer-aspirin-correction",
        "equiformer-aspirin-distilled",
        "equiformer-ethanol",
        "equiformer-ethanol-correction",
        "equiformer-ethanol-distilled",
        "ethanol-committee",
        "so3krates-aspirin",
        "so3krates-aspirin-committee",
        "so3krates-aspirin-distilled",
        "so3krates-ethanol",
        "so3krates-ethanol-committee",
        "so3krates-ethanol-distilled",
        "so3krates-organic",
        "so3krates-silicon",
        "so3krates-xtb-small-molecules",
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_card_and_header_agree(name):
    info = header(name)["training"]
    for quantity in ("energy", "force"):
        measured = 1e3 * info["test_errors"][f"{quantity}_mae"]
        assert on_card(name, quantity) == pytest.approx(measured, abs=0.005)
    card = shipped_models()[name].with_suffix(".md").read_text()
    for told in (info["data"], info["level_of_theory"], info["command"]):
        assert told in card
    assert re.search(rf"seeds? {info['seed']}\b", card)


def weights_of(potential: Potential) -> bytes:
    return b"".join(one.numpy().tobytes() for one in potential.state_dict().values())


@pytest.mark.parametrize("name", SHIPPED)
def test_physics_of_every_model(name):
    """Each network once, those of committees one by one."""
    for member in load(name).members:
        weights = weights_of(member)
        if weights not in VERIFIED:
            VERIFIED.add(weights)
            AttnCalculator(member, delta=bool(member.baseline)).verify()


def test_physics_of_a_committee():
    AttnCalculator("so3krates-ethanol-committee").verify()


def test_accuracy_on_the_committed_test_set():
    """The card's numbers, measured from this repository alone; float32 rounding is 1e-5 of them."""
    name = "so3krates-xtb-small-molecules"
    dataset = data.read(TEST_SET)
    found = errors(predict(lower(load(name)), dataset), dataset)
    assert found.n_structures == 120
    assert 1e3 * found.force_mae == pytest.approx(on_card(name, "force"), abs=0.02)
    assert 1e3 * found.energy_mae == pytest.approx(on_card(name, "energy"), abs=0.02)


@functools.cache
def structures_of_tests(folder: Path, molecule_name: str) -> data.Dataset:
    dataset = data.read(folder / f"rmd17_{molecule_name}.npz", labels="md17")
    return data.official_split(dataset, "train_01", test="test_01")[2]


def mean_prediction(potential: Potential, molecule_name: str, test: data.Dataset) -> Prediction:
    """Predict with each network once, those of committees one by one."""
    each = []
    for member in potential.members:
        key = weights_of(member), molecule_name
        if key not in PREDICTED:
            PREDICTED[key] = predict(lower(member), test)
        each.append(PREDICTED[key])
    return Prediction(
        energies=np.mean([one.energies for one in each], axis=0),
        forces=tuple(
            np.mean(forces, axis=0) for forces in zip(*(one.forces for one in each), strict=True)
        ),
        stress=None,
    )


@pytest.mark.parametrize(
    ("name", "molecule_name"),
    [
        ("so3krates-ethanol", "ethanol"),
        ("so3krates-ethanol-committee", "ethanol"),
        ("so3krates-aspirin", "aspirin"),
        ("so3krates-aspirin-committee", "aspirin"),
        ("equiformer-ethanol", "ethanol"),
        ("equiformer-ethanol-distilled", "ethanol"),
        ("equiformer-aspirin", "aspirin"),
        ("equiformer-aspirin-distilled", "aspirin"),
        ("so3krates-ethanol-distilled", "ethanol"),
        ("so3krates-aspirin-distilled", "aspirin"),
        ("aspirin-committee", "aspirin"),
        ("ethanol-committee", "ethanol"),
    ],
)
def test_accuracy_on_md17(shared, name, molecule_name):
    test = structures_of_tests(shared / "data", molecule_name)
    found = errors(mean_prediction(load(name), molecule_name, test), test)
    assert 1e3 * found.force_mae == pytest.approx(on_card(name, "force"), abs=0.02)
    assert 1e3 * found.energy_mae == pytest.approx(on_card(name, "energy"), abs=0.02)


@pytest.mark.parametrize("molecule_name", ["aspirin", "ethanol"])
def test_accuracy_of_the_correction_beside_tight_binding(shared, molecule_name):
    """As docs/few_frames.md shows it, by ASE's calculators alone: every tenth structure.

    Their mean error is within four standard errors of the card's, which is of all.
    """
    tblite = pytest.importorskip("tblite.ase")
    name = f"equiformer-{molecule_name}-correction"
    dataset = data.read(shared / "data" / f"rmd17_{molecule_name}.npz", labels="md17")
    test = dataset[dataset.splits["test_01"][::10]]
    tight_binding = [
        tblite.TBLite(method=method, accuracy=0.1, verbosity=0)
        for method in ("GFN1-xTB", "GFN2-xTB")
    ]
    calculator = LinearCombinationCalculator(
        [*tight_binding, AttnCalculator(name, delta=True)], [0.5, 0.5, 1.0]
    )
    energies, forces = [], []
    for atoms in test.structures:
        atoms = atoms.copy()
        atoms.calc = calculator
        forces.append(atoms.get_forces())
        energies.append(atoms.get_potential_energy())
    per_structure = {
        "force": np.abs(np.array(forces) - np.array(test.forces)).mean(axis=(1, 2)),
        "energy": np.abs(np.array(energies) - test.energies),
    }
    for quantity, found in per_structure.items():
        standard_error = 1e3 * found.std(ddof=1) / np.sqrt(len(found))
        assert abs(1e3 * found.mean() - on_card(name, quantity)) < 4 * standard_error
        assert standard_error < 0.1 * on_card(name, quantity), "too few to say anything"


def test_accuracy_of_silicon(shared):
    """Energies and forces of the file as it is; its stresses are those that had to be mended."""
    dataset = data.read(shared / "data" / "mlearn_Si.extxyz")
    test = dataset[dataset.splits["test"]]
    found = errors(predict(lower(load("so3krates-silicon")), test), test)
    assert 1e3 * found.force_mae == pytest.approx(on_card("so3krates-silicon", "force"), abs=0.02)
    assert 1e3 * found.energy_mae == pytest.approx(on_card("so3krates-silicon", "energy"), abs=0.1)


@pytest.mark.parametrize("name", ["so3krates-ethanol", "so3krates-aspirin"])
def test_the_committee_holds_the_single_model(name):
    """Its first member is the model that is shipped alone."""
    alone, committee = load(name), load(f"{name}-committee")
    assert isinstance(committee, Committee)
    assert len(committee.members) == 3
    for name, tensor in alone.state_dict().items():
        assert torch.equal(committee.members[0].state_dict()[name], tensor), name


def test_the_committee_of_aspirin_holds_the_shipped_models():
    members = load("aspirin-committee").members
    names = ("equiformer-aspirin", "equiformer-aspirin-distilled", "so3krates-aspirin-distilled")
    for member, alone in zip(members, map(load, names), strict=True):
        for name, tensor in alone.state_dict().items():
            assert torch.equal(member.state_dict()[name], tensor), name


def test_the_mixed_committee_holds_the_shipped_models():
    members = load("ethanol-committee").members
    names = ("equiformer-ethanol", "equiformer-ethanol-distilled", "so3krates-ethanol")
    for ours, theirs in zip(members, map(load, names), strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name


def test_the_spread_grows_where_the_data_end():
    """Spread is a warning: beyond 500 K MD geometries it must be larger than within them."""
    calculator = AttnCalculator("so3krates-ethanol-committee")
    spreads = []
    for stretch in (1.0, 1.5):
        atoms = molecule("CH3CH2OH")
        atoms.set_distance(2, 3, stretch * atoms.get_distance(2, 3), fix=0)  # O-H
        calculator.calculate(atoms, ["forces"], [])
        spreads.append(np.linalg.norm(calculator.spread["forces"], axis=1).max())
    assert spreads[1] > 5 * spreads[0]


def test_silicon_is_diamond_with_its_lattice_constant():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.03, seed=0)
    atoms.calc = AttnCalculator("so3krates-silicon")
    assert LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=300)
    assert atoms.cell.lengths() == pytest.approx([5.469] * 3, abs=0.01)  # PBE, of its data
    assert atoms.get_stress() == pytest.approx([0.0] * 6, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*outside the training data")
def test_silicon_holds_its_atoms():
    """An atom that leaves the surface of a crystal costs about the cohesive energy, 4.63 eV."""
    calculator = AttnCalculator("so3krates-silicon")
    slab = bulk("Si", a=5.469, cubic=True).repeat(2)
    slab.pbc = (True, True, False)
    slab.center(vacuum=12, axis=2)
    top = slab.positions[:, 2].argmax()
    lifted = [slab.copy() for _ in range(21)]
    for atoms, height in zip(lifted, np.linspace(0, 6, 21), strict=True):
        atoms.positions[top, 2] += height
    energies = np.array([one["energy"] for one in calculator.calculate_many(lifted)])
    assert energies.min() > energies[0] - 0.1  # the surface is not relaxed
    assert 3.5 < energies[-1] - energies[0] < 5.5
    assert energies.max() < energies[-1] + 0.5
    alone, crystal = calculator.calculate_many([Atoms("Si"), bulk("Si", a=5.469)])
    assert alone["energy"] - crystal["energy"] / 2 == pytest.approx(4.63, abs=0.02)


@pytest.mark.filterwarnings("ignore:.*outside the training data")
def test_silicon_resists_pressure():
    pressed = [bulk("Si", a=a) for a in np.arange(5.45, 4.65, -0.05)]
    calculator = AttnCalculator("so3krates-silicon")
    energies = [one["energy"] for one in calculator.calculate_many(pressed)]
    assert np.all(np.diff(energies) > 0)


def test_ethanol_relaxes_to_its_minimum():
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("so3krates-ethanol")
    atoms.rattle(0.05, seed=1)
    LBFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 0.01
    # experiment (microwave, gas phase): C-C 1.51, C-O 1.43, O-H 0.97 Å
    bonds = [atoms.get_distance(*pair) for pair in ((0, 1), (1, 2), (2, 3))]
    assert sorted(round(b, 1) for b in bonds) == sorted([1.5, 1.4, 1.0])


# r_e of experiment (Kuchitsu, Structure of Free Polyatomic Molecules, Springer 1998), Å
LENGTHS = {
    "C6H6": {"CC": 1.391, "CH": 1.080},
    "H2O": {"HO": 0.958},
    "CH4": {"CH": 1.086},
    "NH3": {"HN": 1.012},
    "H2CO": {"CO": 1.203, "CH": 1.101},
    "HCN": {"CN": 1.153, "CH": 1.065},
    "CH3Cl": {"CCl": 1.776, "CH": 1.085},
    "CH3SH": {"CS": 1.814, "HS": 1.335},
}


@pytest.mark.parametrize("formula", LENGTHS)
def test_the_default_model_knows_small_molecules(formula):
    atoms = molecule(formula)
    atoms.calc = AttnCalculator()
    FIRE(atoms, logfile=None).run(fmax=0.01, steps=300)
    assert atoms.get_forces() == pytest.approx(0, abs=0.01)
    assert atoms.calc.novelty.max() < 1
    bonded = build_neighbor_list(atoms, self_interaction=False, bothways=False)
    found = {name: [] for name in LENGTHS[formula]}
    for i in range(len(atoms)):
        for j in bonded.get_neighbors(i)[0]:
            if (name := "".join(sorted(atoms.symbols[[i, j]]))) in found:
                found[name].append(atoms.get_distance(i, j))
    for name, length in LENGTHS[formula].items():
        assert found[name] == pytest.approx([length] * len(found[name]), abs=0.02), name
        assert found[name]


@pytest.mark.parametrize(("formula", "length", "charge"), [("NH4", 1.02, 1), ("OH", 0.96, -1)])
def test_the_default_model_knows_ions(formula, length, charge):
    n_hydrogen = len(Atoms(formula)) - 1
    directions = length / 3**0.5 * np.array(TETRAHEDRON)[:n_hydrogen]
    ion = Atoms(formula, [(0, 0, 0), *directions], info={"charge": charge})
    ion.calc = AttnCalculator()
    FIRE(ion, logfile=None).run(fmax=0.01, steps=300)
    assert ion.get_distances(0, range(1, len(ion))) == pytest.approx(length, abs=0.03)
    assert ion.get_charges().sum() == pytest.approx(charge, abs=1e-5)
    assert ion.calc.novelty.max() < 1


def test_an_ion_in_an_empty_box() -> None:
    """It keeps its energy with the charge that neutralizes it at 12 Å: README says how much."""
    ion = molecule("CH3OH")
    del ion[3]  # the hydrogen of the hydroxyl group
    ion.info["charge"] = -1
    calc = AttnCalculator()
    alone, forces = calc.get_potential_energy(ion), calc.get_forces(ion)
    ion.cell, ion.pbc = [30, 30, 30], True
    lower = -0.5 * units.Hartree * units.Bohr / 12
    assert calc.get_potential_energy(ion) - alone == pytest.approx(lower, abs=2e-4)
    assert lower == pytest.approx(-0.60, abs=0.005)
    assert calc.get_forces(ion) == pytest.approx(forces, abs=1e-3)


def test_the_default_model_refuses_metals():
    with pytest.raises(ValueError, match="this model was not trained on Si; its elements are: H C"):
        AttnCalculator().calculate(molecule("SiH4"))


def test_the_default_model_refuses_radicals():
    methyl = molecule("CH3")
    with pytest.raises(ValueError, match="number of electrons is odd, 9: this model was"):
        AttnCalculator().calculate(methyl)
    methyl.info["charge"] = 1
    AttnCalculator().calculate(methyl)
    methyl.cell, methyl.pbc = [8, 8, 8], True
    AttnCalculator().calculate(methyl)
    with pytest.raises(ValueError, match="A repeated cell has the charge of all copies"):
        AttnCalculator().calculate(methyl.repeat((2, 1, 1)))  # of one


def test_the_default_model_refuses_multiple_charges():
    """Of molecules: a cell holds as many ions as it is large."""
    ethanol = molecule("CH3CH2OH")
    ethanol.info["charge"] = 2
    with pytest.raises(ValueError, match=r"\+2 e: this model was trained on .* -1 to \+1 e only"):
        AttnCalculator().calculate(ethanol)
    ethanol.center(vacuum=4.0)
    ethanol.pbc = True
    AttnCalculator().calculate(ethanol)


@pytest.mark.parametrize("name", SHIPPED)
def test_models_know_their_limits(name):
    """Also that of a committee, whose members do."""
    assert all(member.environments is not None for member in load(name).members)


@pytest.mark.parametrize(
    ("name", "carbon", "hydrogen"),
    [
        ("so3krates-ethanol", 2, 2),
        ("equiformer-ethanol", 2, 1),
        ("ethanol-committee", 2, 1),
        ("equiformer-ethanol-distilled", 2, 1),
    ],
)
def test_ethanol_is_inside_and_benzene_outside(name, carbon, hydrogen):
    potential = load(name, device="cpu")
    of_kinds = {
        formula: evaluate(potential, fresh_graphs(potential, System.from_ase(molecule(formula))))
        for formula in ("CH3CH2OH", "C6H6")
    }
    assert of_kinds["CH3CH2OH"].novelty.max() < 1
    novelty = of_kinds["C6H6"].novelty  # carbons first
    assert novelty[:6].min() > carbon
    assert novelty[6:].min() > hydrogen
