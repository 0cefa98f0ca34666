"""Physics self-checks that a user can run on any model and structure.

Every check measures one number that must be zero in physics, and compares it with a tolerance for
rounding. Most rows test the network in float64, whatever its own dtype. For a float32 model, rows
"as run" test the potential that calculators and dynamics run, and others compare the two.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from attncalc.graph import ALL_PAIRS, Graphs
from attncalc.neighbors import VerletList
from attncalc.potential import Potential, evaluate
from attncalc.result import ROUNDING, Result, deviation
from attncalc.sample_structures import random_cluster
from attncalc.structures import check_system, fresh_graphs
from attncalc.system import System

# central differences of fourth order: offsets in steps, weights; the plain two-point formula is off
# by 1e-5 eV/Å on random clusters, where energies are far from harmonic
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
STEP = 2e-4  # Å or strain: rounding of the energy over the step is near 1e-8
N_DIFFERENCES = 12  # coordinates that are displaced
# Å inside the cutoff, where a force that falls to zero only linearly is 1e-6 already
JUST_INSIDE = 1e-6
MOST_SPECIES = 12  # elements whose pairs are moved through the cutoff


class Differences(NamedTuple):
    """Settings of the comparison of derivatives with finite differences.

    Attributes:
        step: Å.
        strain: step of the strain. It moves all pairs at once, and distant ones the most.
        forces, stress, virial: tolerances in eV/Å, eV/Å³, eV/atom.
        relative: whether forces beyond 1 eV/Å are compared relative to the largest, and strain
            gradients beyond 1 eV per atom likewise.
        remark: added to the name of the check.
        most_atoms: number of atoms that are evaluated at once; 0: one structure after the other.
    """

    step: float
    strain: float
    forces: float
    stress: float
    virial: float
    relative: bool
    remark: str
    most_atoms: int


EXACT = Differences(STEP, STEP, 1e-6, 1e-7, 1e-6, False, "", 500)
# the path that users run: float32 rounds energies to about 1e-7 of an atom's, hence wider steps
AS_RUN = Differences(3e-3, 1e-3, 3e-3, 1e-4, 2e-3, True, ", as run", 0)


@dataclass(frozen=True)
class Check:
    """Row of the table: a quantity that should be zero, its deviation, and the tolerance."""

    name: str
    deviation: float
    tolerance: float
    unit: str

    @property
    def passed(self) -> bool:
        return bool(self.deviation <= self.tolerance)


@dataclass(frozen=True)
class Report:
    """Results of all checks of one model on one structure."""

    structure: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """Raise RuntimeError that names the checks which failed, if any."""
        failed = [check.name for check in self.checks if not check.passed]
        if failed:
            raise RuntimeError(f"the model fails {len(failed)} checks: {'; '.join(failed)}")

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"physics checks on {self.structure}"]
        for check in self.checks:
            verdict = "ok" if check.passed else "FAILED"
            lines.append(
                f"  {check.name:{width}}  {check.deviation:9.1e} <= {check.tolerance:.0e} "
                f"{check.unit:7} {verdict}"
            )
        return "\n".join(lines)


def verify(
    potential: Potential, atoms: Atoms | None = None, *, fast: Potential | None = None
) -> Report:
    """Run all physics checks of a potential on a structure.

    Args:
        potential: not modified.
        atoms: the structure; None takes a random cluster of the model's elements.
        fast: potential that runs in place of `potential` and is compared with it; None: `potential`
            itself runs.

    Raises:
        ValueError: the structure is impossible or not known to the model.
    """
    structure = _known_cluster(potential) if atoms is None else atoms.copy()
    structure.set_constraint()  # some change a cell that is strained
    check_system(potential, System.from_ase(structure))
    exact = copy.deepcopy(potential)
    exact.set_dtype(torch.float64)
    bare = copy.deepcopy(exact)
    for member in bare.members:  # differences of large numbers would lose digits
        member.reference_energies.zero_()
    rng = np.random.default_rng(0)
    running = potential if fast is None else fast
    rows = [
        _forces_are_differences(bare, structure, rng),
        _strain_gradient_is_difference(bare, structure),
        *_symmetries(bare, structure, rng),
        _batch_is_single(bare, structure, rng),
        _skin_changes_nothing(bare, structure, rng),
        _smooth_at_cutoff(bare),
        _smooth_at_symmetric_site(bare),
    ]
    if potential.dtype == torch.float32:
        rows += [
            _forces_are_differences(running, structure, rng, AS_RUN),
            _strain_gradient_is_difference(running, structure, AS_RUN),
            _single_precision(potential, exact, structure),
        ]
    if running is not potential:
        rows.append(_fast_is_plain(running, potential, structure))
    periodic = "periodic " if structure.pbc.any() else ""
    name = f"{periodic}{structure.get_chemical_formula()}, {len(structure)} atoms"
    return Report(name, tuple(rows))


def _evaluate(potential: Potential, system: System) -> Result:
    return evaluate(potential, fresh_graphs(potential, system))


def _system(potential: Potential, atoms: Atoms | list[Atoms]) -> System:
    return System.from_ase(atoms).to(potential.device)


def _largest(*differences: Tensor) -> float:
    """Return the largest absolute value; NaN if any is, which Python's max would overlook."""
    return float(np.max([float(one.abs().max()) for one in differences]))


def _with_slopes(
    potential: Potential, atoms: Atoms, displaced: list[Atoms], step: float, how: Differences
) -> tuple[Result, NDArray[np.float64]]:
    """Return the result of a structure, and slopes of the energy from displaced ones.

    Several are evaluated at once if `how` allows it, the structure itself as the first of them.

    Args:
        displaced: structures displaced by the steps of `STENCIL`, one direction after the other.
        step: its unit, Å or strain.
    """
    structures = [atoms, *displaced]
    n_at_once = max(1, how.most_atoms // len(atoms))
    first, energies = None, []
    for start in range(0, len(structures), n_at_once):
        result = _evaluate(potential, _system(potential, structures[start : start + n_at_once]))
        first = result if first is None else first
        energies.append(result.energy.cpu())  # keep no graph of it
    assert first is not None
    weights = [weight for _, weight in STENCIL]
    by_direction = torch.cat(energies)[1:].numpy().reshape(-1, len(STENCIL))
    return first, by_direction @ weights / step


def _known_cluster(potential: Potential) -> Atoms:
    """Return a random cluster of the model's elements, with a charge and multiplicity it knows."""
    least, largest = potential.known_charges or (0, 0)
    nearest = min(max(0, least), largest)
    charges = [k for k in (nearest, nearest + 1, nearest - 1) if least <= k <= largest]
    lowest, highest = potential.known_multiplicities or (1, 2)
    has_odd = any(z % 2 for z in potential.species)
    for charge, spin in itertools.product(charges, range(lowest, min(lowest + 1, highest) + 1)):
        odd_protons = (charge + spin) % 2 == 0
        if has_odd or not odd_protons:
            atoms = random_cluster(potential.species, odd_protons=odd_protons)
            atoms.info |= {"charge": charge, "spin": spin}
            return atoms
    return random_cluster(potential.species)


def _forces_are_differences(
    potential: Potential, atoms: Atoms, rng: np.random.Generator, how: Differences = EXACT
) -> Check:
    chosen = rng.permutation(3 * len(atoms))[:N_DIFFERENCES]
    displaced = []
    for k, (offset, _) in itertools.product(chosen, STENCIL):
        displaced.append(atoms.copy())
        displaced[-1].positions[divmod(int(k), 3)] += offset * how.step
    result, slopes = _with_slopes(potential, atoms, displaced, how.step, how)
    forces = result.forces[: len(atoms)].cpu().numpy()
    deviation = np.abs(slopes + forces.reshape(-1)[chosen]).max()
    name = f"forces = -dE/dr (central differences{how.remark})"
    scale = max(1.0, np.abs(forces).max()) if how.relative else 1.0
    return Check(name, float(deviation / scale), how.forces, "eV/Å")


def _strain_gradient_is_difference(
    potential: Potential, atoms: Atoms, how: Differences = EXACT
) -> Check:
    components = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    # in a cell of 6 Å, images are exactly at a cutoff of 12 Å, where slopes may have a kink
    atoms = _stretched(atoms, np.eye(3) * (1 + 10 * EXACT.step))
    strained = []
    for (a, b), (offset, _) in itertools.product(components, STENCIL):
        strain = np.eye(3)
        strain[a, b] += offset * how.strain / 2
        strain[b, a] += offset * how.strain / 2
        strained.append(_stretched(atoms, strain))
    result, slopes = _with_slopes(potential, atoms, strained, how.strain, how)
    gradient = result.strain_gradient[0].cpu().numpy()
    expected = gradient[tuple(zip(*components, strict=True))]
    scale = max(1.0, np.abs(expected).max() / len(atoms)) if how.relative else 1.0
    worst = float(np.abs(slopes - expected).max() / scale)
    if atoms.cell.rank == 3:
        deviation = worst / atoms.get_volume()
        name = f"stress = dE/dstrain / V (finite strain{how.remark})"
        return Check(name, deviation, how.stress, "eV/Å³")
    name = f"virial = dE/dstrain (finite strain{how.remark})"
    return Check(name, worst / len(atoms), how.virial, "eV/atom")


def _stretched(atoms: Atoms, matrix: NDArray[np.float64]) -> Atoms:
    """Return a copy with cell and positions, as rows, times a matrix."""
    copied = atoms.copy()
    copied.set_cell(atoms.cell.array @ matrix)
    copied.positions = atoms.positions @ matrix
    return copied


def _symmetries(potential: Potential, atoms: Atoms, rng: np.random.Generator) -> Iterator[Check]:
    base = _evaluate(potential, _system(potential, atoms))
    turn = torch.from_numpy(Rotation.random(random_state=1).as_matrix()).to(potential.device)
    for name, matrix in (("rotation", turn), ("reflection", -turn)):
        system = _system(potential, atoms)
        turned = replace(system, positions=system.positions @ matrix, cell=system.cell @ matrix)
        result = _evaluate(potential, turned)
        yield Check(f"{name}: energy unchanged", _largest(result.energy - base.energy), 1e-9, "eV")
        deviation = _largest(result.forces - base.forces @ matrix)
        yield Check(f"{name}: forces turn along", deviation, 1e-9, "eV/Å")
    system = _system(potential, atoms)
    moved = replace(system, positions=system.positions + 7.0)
    result = _evaluate(potential, moved)
    energy = (result.energy - base.energy) / len(atoms)
    deviation = _largest(result.forces - base.forces, energy)
    yield Check("translation: forces and energy unchanged", deviation, 1e-9, "eV/Å, eV")
    order = rng.permutation(len(atoms))
    result = _evaluate(potential, _system(potential, atoms[order]))
    rows = torch.from_numpy(order).to(base.forces.device)
    deviation = _largest(
        *(result.forces - base.forces[rows], result.energies - base.energies[rows]),
        (result.energy - base.energy) / len(atoms),
    )
    yield Check("permutation: forces and energies follow", deviation, 1e-9, "eV/Å, eV")


def _batch_is_single(potential: Potential, atoms: Atoms, rng: np.random.Generator) -> Check:
    rattled = atoms.copy()
    rattled.positions += rng.normal(scale=0.02, size=rattled.positions.shape)
    together = _evaluate(potential, _system(potential, [rattled, atoms]))
    alone = [_evaluate(potential, _system(potential, a)) for a in (rattled, atoms)]
    energy, forces, strain_gradient = (
        torch.cat([getattr(one, name) for one in alone])
        for name in ("energy", "forces", "strain_gradient")
    )
    deviation = _largest(
        *(together.forces - forces, together.strain_gradient - strain_gradient),
        (together.energy - energy) / len(atoms),
    )
    return Check("batch = single", deviation, 1e-9, "eV/Å, eV")


def _skin_changes_nothing(potential: Potential, atoms: Atoms, rng: np.random.Generator) -> Check:
    """Compare a padded list that was built before a small move with a fresh one."""
    system = _system(potential, atoms)
    reach = potential.long_range_for(system)
    ranges = [potential.cutoff, *([] if reach is None else [reach])]
    lists = [
        VerletList.create(cutoff=cutoff, skin=0.6, species=potential.species, capacity=64)
        for cutoff in ranges
    ]
    lists = [verlet.update(system)[0] for verlet in lists]
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, atoms.positions.shape)).to(system.device)
    moved = replace(system, positions=system.positions + shift)
    updated = [verlet.update(moved)[1] for verlet in lists]
    long = None if reach is None else updated[1]
    graphs = Graphs(updated[0], long, all_pairs=reach == ALL_PAIRS, system=moved)
    reused, fresh = evaluate(potential, graphs), _evaluate(potential, moved)
    energy = (reused.energy - fresh.energy) / len(atoms)
    deviation = _largest(reused.forces - fresh.forces, energy)
    return Check("reused, padded neighbour list = fresh list", deviation, 1e-9, "eV/Å, eV")


def _smooth_at_cutoff(potential: Potential) -> Check:
    """Compare pairs just inside and just outside of every distance where the network changes.

    At the end of its range the outer pair is far outside, and must equal two isolated atoms.
    """
    # unless pair terms reach further: then the outer pair still interacts
    ends = {(potential.cutoff, 1.0 if potential.long_range is None else JUST_INSIDE)}
    for network in potential.networks:
        if network.config.cutoff < potential.cutoff:
            ends.add((network.config.cutoff, JUST_INSIDE))
    cases = list(itertools.product(_pairs(potential), sorted(ends)))
    inside = [_pair(elements, end - JUST_INSIDE) for elements, (end, _) in cases]
    outside = [_pair(elements, end + beyond) for elements, (end, beyond) in cases]
    near, far = (_evaluate(potential, _system(potential, pairs)) for pairs in (inside, outside))
    worst = _largest(near.energy - far.energy, near.forces - far.forces)
    return Check("pair vanishes at the cutoff (E and F)", worst, 1e-5, "eV, eV/Å")


def _smooth_at_symmetric_site(potential: Potential) -> Check:
    """Move the central atom of a tetrahedron by 1e-6 Å; only stiffness may change its forces.

    There a symmetry forbids features of degree 1 and 2: nothing may be divided by their size.
    """
    end, centre = potential.species[0], potential.species[-1]
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    length = covalent_radii[centre] + covalent_radii[end]
    exactly = Atoms([centre] + 4 * [end], [[0, 0, 0], *(length * corners)])
    moved = exactly.copy()
    moved.positions[0] += [1e-6, 0, 0]
    there, beside = _evaluate(potential, _system(potential, [exactly, moved])).forces.chunk(2)
    return Check("forces continuous at a symmetric site", _largest(there - beside), 1e-2, "eV/Å")


def _pair(elements: tuple[int, int], distance: float) -> Atoms:
    return Atoms(numbers=elements, positions=[[0, 0, 0], [0, 0, distance]])


def _pairs(potential: Potential) -> list[tuple[int, int]]:
    """Return the elements of pairs with an even number of electrons."""
    some = potential.species[:MOST_SPECIES]
    return [(a, b) for a in some for b in some if (a + b) % 2 == 0]


def _fast_is_plain(fast: Potential, plain: Potential, atoms: Atoms) -> Check:
    system = _system(plain, atoms)
    found = deviation(_evaluate(fast, system), _evaluate(plain, system), system.system_idx)
    return Check("fast path = plain path (E, F, strain)", found, ROUNDING[plain.dtype], "")


def _single_precision(potential: Potential, exact: Potential, atoms: Atoms) -> Check:
    single = _evaluate(potential, _system(potential, atoms)).forces
    double = _evaluate(exact, _system(exact, atoms)).forces
    scale = max(1.0, _largest(double))
    return Check(
        "float32 = float64 (forces, relative)", _largest(single - double) / scale, 1e-4, ""
    )
