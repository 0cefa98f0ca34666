"""`evaluate_many`: evaluation of structures in batches, and checks that a model supports them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ase import Atoms
from torch import Tensor

from attncalc.graph import ALL_PAIRS, Graphs, species_of
from attncalc.neighbors import ImpossiblePositions, fresh_graph
from attncalc.ops import segment_sum
from attncalc.potential import Potential, evaluate, require_potential
from attncalc.result import Result
from attncalc.system import System, require_list

# atoms of a batch: bounds its memory
ATOMS_PER_BATCH = 2000


def evaluate_many(
    potential: Potential,
    structures: Sequence[Atoms],
    *,
    batch_atoms: int = ATOMS_PER_BATCH,
    first_number: int = 0,
) -> Iterator[tuple[System, Result]]:
    """Evaluate structures of any kind in batches, in order.

    Args:
        potential: the model.
        structures: may differ in size, elements, cell, charge.
        batch_atoms: largest number of atoms of a batch; a larger structure is a batch by itself.
        first_number: number of the first structure in messages.

    Raises:
        TypeError: `potential` is no `Potential`, or one of the structures no `ase.Atoms`.
        ValueError: a structure is impossible or not known to the model; the message names it.
    """
    require_potential(potential)
    require_list(structures, "evaluate_many takes a list of structures")
    if not hasattr(structures, "__getitem__"):  # an iterator is read twice
        structures = list(structures)
    for first, last in batches(structures, batch_atoms, apart=potential.counts_all_pairs):
        try:
            yield _evaluate_fresh(potential, structures[first:last])
        except ValueError:
            for k, atoms in enumerate(structures[first:last], start=first):
                try:
                    _evaluate_fresh(potential, [atoms])
                except ValueError as error:
                    raise ValueError(f"structure {first_number + k}: {error}") from None
            raise


def batches(
    structures: Sequence[Atoms], batch_atoms: int, *, apart: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield the first structure of each batch and the one after its last, in order.

    Args:
        structures: all of them.
        batch_atoms: largest number of atoms of a batch; a larger structure is a batch by itself.
        apart: True: molecules and periodic structures are never in one batch.

    Raises:
        TypeError: one of the structures is no `ase.Atoms`.
    """
    first, n_atoms = 0, 0
    for k, atoms in enumerate(structures):
        if not isinstance(atoms, Atoms):
            raise TypeError(f"structure {k}: expected ase.Atoms, got {type(atoms).__name__}")
        differs = apart and k > first and atoms.pbc.any() != structures[k - 1].pbc.any()
        if k > first and (differs or n_atoms + len(atoms) > batch_atoms):
            yield first, k
            first, n_atoms = k, 0
        n_atoms += len(atoms)
    if len(structures):
        yield first, len(structures)


def _evaluate_fresh(potential: Potential, structures: Sequence[Atoms]) -> tuple[System, Result]:
    system = System.from_ase(structures)
    check_system(potential, system)
    system = system.to(potential.device)
    result = evaluate(potential, fresh_graphs(potential, system))
    require_finite(result)
    return system, result


def require_finite(result: Result) -> None:
    """Refuse results that are not finite.

    Raises:
        ImpossiblePositions: an energy or a force is not finite, because atoms are too close to each
            other for the network's numbers.
    """
    if not (result.energy.isfinite().all() and result.forces.isfinite().all()):
        raise ImpossiblePositions(
            "energy or forces are not finite: atoms are too close to each other"
        )


def fresh_graphs(potential: Potential, system: System) -> Graphs:
    """Return the graphs of a system for a potential, from new neighbour lists.

    Raises:
        ValueError: an element is unknown, a position is not finite, two atoms lie on top of each
            other, or molecules and periodic structures need different ranges.
    """
    species, long_range = potential.species, potential.long_range_for(system)
    short = fresh_graph(system, cutoff=potential.cutoff, species=species)
    if long_range is None:
        return Graphs(short, system=system)
    far = fresh_graph(system, cutoff=long_range, species=species, by_pairs=True)
    return Graphs(short, far, all_pairs=long_range == ALL_PAIRS, system=system)


def check_system(potential: Potential, system: System) -> None:
    """Refuse elements that the model does not know, and input that its network would ignore.

    Raises:
        ValueError: an element is unknown; a structure is periodic, and the model sums over all
            pairs of atoms; a structure is periodic in one or two directions, and the model has an
            Ewald sum; or as for `check_electrons` and `Potential.long_range_for`.
    """
    species_of(system.atomic_numbers, potential.species)
    longest = max(potential.cutoff, potential.long_range_for(system) or 0)
    if longest >= ALL_PAIRS and system.pbc.any():
        remedy = (
            "use a model of finite range" if potential.long_range is None else "long_range_cutoff"
        )
        raise ValueError(
            "this model sums over all pairs of atoms, and a periodic structure has infinitely "
            f"many: set atoms.pbc = False or {remedy}"
        )
    if potential.reads_system and (system.pbc.any(1) & ~system.pbc.all(1)).any():
        raise ValueError(
            "the Ewald sum of this model is for three periodic directions or none: set "
            "atoms.pbc = True with vacuum in the cell, or atoms.pbc = False"
        )
    protons = segment_sum(system.atomic_numbers, system.system_idx, system.n_systems)
    check_electrons(potential, system.charge, system.spin, protons, system.pbc)


def check_electrons(
    potential: Potential, charge: Tensor, spin: Tensor, protons: Tensor, pbc: Tensor
) -> None:
    """Refuse charges, multiplicities and radicals that the model does not support.

    Args:
        potential: the model.
        charge: [n_systems] e, total charges.
        spin: [n_systems], multiplicities.
        protons: [n_systems], sums of atomic numbers.
        pbc: [n_systems, 3], bool.

    Raises:
        ValueError: a structure is charged, or not in its lowest spin state, and the network has no
            input for that; its charge or multiplicity is outside the range of the training; or it
            is a radical, and the model was trained on closed shells only.
    """
    if not potential.reads_charge and (charged := charge[charge != 0]).numel():
        raise ValueError(
            f"total charge {int(charged[0]):+d} e: this model supports neutral structures only; "
            'remove atoms.info["charge"] or use a model with charge input'
        )
    if not potential.reads_spin and (spin > 2).any():
        raise ValueError(
            f"multiplicity {int(spin.max())}: this model supports only the lowest spin "
            'state; remove atoms.info["spin"] or use a model with spin input'
        )
    if potential.reads_charge and (known := potential.known_charges) is not None:
        _refuse_others("total charge", " e", charge, pbc, *known)
    if potential.reads_spin and (known := potential.known_multiplicities) is not None:
        _refuse_others("multiplicity", "", spin, pbc, *known)
    if potential.knows_closed_shells_only:
        _refuse_radicals(protons - charge.long(), pbc)


def _refuse_others(
    what: str, unit: str, values: Tensor, pbc: Tensor, least: int, largest: int
) -> None:
    """Refuse molecules with a total charge or multiplicity outside the range of the training.

    Periodic structures are not checked: the charge and spin of a cell grow with its size.

    Args:
        what: name of the quantity.
        unit: its unit.
        values: [n_systems].
        pbc: [n_systems, 3], bool.
        least, largest: range of the training.

    Raises:
        ValueError: the value of a molecule is outside this range.
    """
    if least > largest:
        raise ValueError(f"no {what} is known to all members of this committee: load them alone")
    unknown = ((values < least) | (values > largest)) & ~pbc.any(1)
    if unknown.any():
        sign = "+" if unit else ""
        known = " to ".join(f"{k:{sign}d}" if k else "0" for k in sorted({least, largest}))
        raise ValueError(
            f"{what} {int(values[unknown][0]):{sign}d}{unit}: this model was trained on {what} "
            f"{known}{unit} only"
        )


def _refuse_radicals(electrons: Tensor, pbc: Tensor) -> None:
    """Refuse structures with an odd number of electrons, for models of closed-shell molecules.

    Electrons of a periodic structure are those of its cell: if their number is odd, one of its
    molecules is a radical, or the total charge is not that of all of them.

    Args:
        electrons: [n_systems], numbers of electrons.
        pbc: [n_systems, 3], bool.

    Raises:
        ValueError: the number is odd.
    """
    odd = electrons % 2 == 1
    if odd.any():
        k = int(odd.nonzero()[0])
        where = f" of structure {k}" if len(electrons) > 1 else ""
        raise ValueError(
            f"the number of electrons{where} is odd, {int(electrons[k])}: this model was trained "
            "on closed shells only; is a hydrogen atom missing, or the total charge "
            '(atoms.info["charge"], charge=1 in the second line of an .xyz file, or --charge)?'
            f"{' A repeated cell has the charge of all copies.' if pbc[k].any() else ''}"
        )
