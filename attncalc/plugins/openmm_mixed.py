"""OpenMM: some molecules by a model, the others by a classical force field (ML/MM).

The embedding is mechanical: the model evaluates its molecules alone. Charges and Lennard-Jones
terms of the force field act between them and the rest, as in `openmm-ml` by default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from attncalc.model_file import load
from attncalc.plugins.openmm import PARTICLES, add_force, integers, openmm

# tags of the lists of bonded terms in the XML of a system -> tag of one term
TERMS = {"Bonds": "Bond", "Angles": "Angle", "Torsions": "Torsion", "Constraints": "Constraint"}
# classes of forces without energies between particles, and of forces with a list of terms
UNTOUCHED = (
    *("CMMotionRemover", "AndersenThermostat", "CustomExternalForce", "PythonForce"),
    *("MonteCarloBarostat", "MonteCarloAnisotropicBarostat", "MonteCarloFlexibleBarostat"),
    "MonteCarloMembraneBarostat",
)
LISTED = (
    *("HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "RBTorsionForce"),
    *("CMAPTorsionForce", "CustomBondForce", "CustomAngleForce", "CustomTorsionForce"),
)
PAIRWISE = ("NonbondedForce", "CustomNonbondedForce")
# methods of a NonbondedForce that sum over all images
ALL_IMAGES = tuple(getattr(openmm.NonbondedForce, name) for name in ("Ewald", "PME", "LJPME"))


def replace_molecules(
    system: openmm.System,
    model: str | Path,
    numbers: Sequence[int],
    particles: Sequence[int],
    *,
    charge: int = 0,
    spin: int | None = None,
    device: str = "auto",
) -> openmm.System:
    """Return a system in which a model gives the energy of some whole molecules.

    All terms of the force field among these particles and their constraints are removed, so the
    time step must suit unconstrained bonds. They are replaced by bonds without energy, so that
    OpenMM still recognises the molecules. The model includes periodic images if the system is
    periodic.

    Args:
        system: system with a classical force field; it is not changed.
        model: name of a shipped model, or path of a model file.
        numbers: [n_atoms], atomic numbers of the particles, in their order.
        particles: indices of whole molecules.
        charge: total charge of these molecules, e.
        spin: multiplicity 2S+1; None is the lowest.
        device: device, see `attncalc.load`.

    Raises:
        FileNotFoundError, ValueError: there is no such model or device, or the model does not know
            the molecules, see `attncalc.plugins.openmm.add_force`; or a bond connects them to
            others, there is no such particle, one is a virtual site or carries one, the system has
            a force whose terms among them cannot be removed, or model and force field both sum
            electrostatics over all images.
    """
    mine = set(integers(particles, PARTICLES))
    if len(mine) != len(particles) or not mine <= set(range(system.getNumParticles())):
        last = system.getNumParticles() - 1
        raise ValueError(f"particles must be different numbers from 0 to {last}")
    _require_known(system, mine)
    _refuse_two_sums(system, model)
    root = ElementTree.fromstring(openmm.XmlSerializer.serialize(system))
    bonds = openmm.HarmonicBondForce()
    bonds.setName("bonds of a model's molecules")
    for terms, term in list(_terms(root)):
        of_term = {int(value) for key, value in term.items() if _is_particle(term, key)}
        if of_term <= mine:
            terms.remove(term)
            if term.tag in ("Bond", "Constraint"):
                # without energy: OpenMM finds molecules by their bonds, for wrapping and scaling
                bonds.addBond(*of_term, 0.0, 0.0)
        elif of_term & mine and term.tag in ("Bond", "Constraint"):
            inside, outside = min(of_term & mine), min(of_term - mine)
            raise ValueError(
                f"particles {inside} and {outside} are bonded and only {inside} is the model's: "
                "name whole molecules, there are no link atoms"
            )
    mixed = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    for force in mixed.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for pair in itertools.combinations(sorted(mine), 2):
                force.addException(*pair, 0.0, 1.0, 0.0, True)
            # after wrapping, the molecules may be in different images of the box
            force.setExceptionsUsePeriodicBoundaryConditions(force.usesPeriodicBoundaryConditions())
        elif isinstance(force, openmm.CustomNonbondedForce):
            known = {frozenset(force.getExclusionParticles(k)) for k in _exclusions(force)}
            for pair in itertools.combinations(sorted(mine), 2):
                if frozenset(pair) not in known:
                    force.addExclusion(*pair)
    if bonds.getNumBonds():
        mixed.addForce(bonds)
    add_force(
        mixed,
        model,
        numbers,
        particles=particles,
        periodic=system.usesPeriodicBoundaryConditions(),
        charge=charge,
        spin=spin,
        device=device,
    )
    return mixed


def _require_known(system: openmm.System, mine: set[int]) -> None:
    """Refuse forces and virtual sites whose terms among the particles cannot be removed."""
    for force in system.getForces():
        kind = type(force).__name__
        shifted = kind == "NonbondedForce" and force.getNumExceptionParameterOffsets()
        if kind == "PythonForce" and mine & (set(force.getParticles()) or mine):
            raise ValueError("a PythonForce acts on these particles already, such as a model")
        if shifted or kind not in (*UNTOUCHED, *LISTED, *PAIRWISE):
            what = f"{kind} with offsets of exceptions" if shifted else kind
            raise ValueError(f"the part of {what} among the molecules cannot be taken out")
    for k in filter(system.isVirtualSite, range(system.getNumParticles())):
        site = system.getVirtualSite(k)
        if mine & {k, *map(site.getParticle, range(site.getNumParticles()))}:
            raise ValueError(f"particle {k} is a virtual site of the molecules: a model has none")


def _refuse_two_sums(system: openmm.System, model: str | Path) -> None:
    """Refuse model and force field if both sum electrostatics over images of the molecules."""
    pairs = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    if (
        any(force.getNonbondedMethod() in ALL_IMAGES for force in pairs)
        and load(model, device="cpu").reads_system
    ):
        raise ValueError(
            "model and force field both sum electrostatics over all images, and images of the "
            "molecules would count twice: createMixedSystem of OpenMM-ML takes out those of the "
            "force field"
        )


def _terms(
    root: ElementTree.Element,
) -> Iterator[tuple[ElementTree.Element, ElementTree.Element]]:
    """Yield all bonded terms and constraints, each with the list that holds it."""
    for name, tag in TERMS.items():
        for terms in root.iter(name):
            yield from ((terms, term) for term in terms.findall(tag))


def _is_particle(term: ElementTree.Element, key: str) -> bool:
    """Return True if an attribute of a term names a particle: p1, p2 ..., or a1 to b4 for CMAP."""
    return key in ("p1", "p2", "p3", "p4") if term.get("a1") is None else key[0] in "ab"


def _exclusions(force: openmm.CustomNonbondedForce) -> range:
    return range(force.getNumExclusions())
