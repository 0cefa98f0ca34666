"""`calibrate`: stores a description of the training environments in a potential."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from attncalc.graph import Graph
from attncalc.novelty import Environments, Sample, fit, outliers_of
from attncalc.potential import Potential
from attncalc.structures import batches, check_system, fresh_graphs
from attncalc.system import System, charge_and_spin

log = logging.getLogger(__name__)

# used of a data set: bounds the time to a fraction of that of an epoch
MOST_STRUCTURES, MOST_ATOMS = 10_000, 150_000
# per batch: bounds the memory
ATOMS_AT_ONCE = 500


def calibrate(potential: Potential, structures: Sequence[Atoms]) -> None:
    """Store the training environments in a potential, in place, so that results have a novelty.

    In a committee they are stored in every member.

    Args:
        potential: as loaded, not compiled.
        structures: for training and validation, not those of the test; labels are not needed. Of
            more than `MOST_STRUCTURES`, or more than `MOST_ATOMS` atoms, evenly spaced ones are
            used, and of equal ones the first.

    Raises:
        ValueError: there are no structures, or the model does not know an element or charge.
    """
    chosen = _different(some_of(structures))
    outliers: set[int] = set()
    for member in potential.members:
        member.environments, those = environments_of(member, chosen)
        outliers.update(those)
    if outliers:
        first = chosen[min(outliers)]
        log.warning(
            "far from all others, and so outside the training data: %d of %d structures, the first "
            "is %s, whose closest atoms are %.2f Å apart",
            *(len(outliers), len(chosen), first.get_chemical_formula(), _closest(first)),
        )


def environments_of(
    member: Potential, structures: Sequence[Atoms]
) -> tuple[Environments, list[int]]:
    """Describe the environments of all atoms in some structures, as a network sees them.

    Args:
        member: a single potential, not compiled; its network is run without gradients.
        structures: one or more.

    Returns:
        The environments, and the numbers of structures that are left out, see `outliers_of`.

    Raises:
        ValueError: there are no structures, or the model does not know an element or charge.
    """
    sample = _sample(member, structures)
    if outliers := outliers_of(sample):
        out = set(outliers)
        sample = _sample(member, [one for k, one in enumerate(structures) if k not in out])
    return fit(sample), outliers


def _closest(atoms: Atoms) -> float:
    """Return the shortest distance between atoms, Å; infinite for a single one."""
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


def _sample(member: Potential, structures: Sequence[Atoms]) -> Sample:
    n_species = len(member.species)
    closest = np.full((n_species, n_species), float(member.cutoff))
    species, numbers, features = [], [], []
    compositions: dict[bytes, int] = {}
    composition = [
        compositions.setdefault(np.sort(atoms.numbers).tobytes(), len(compositions))
        for atoms in structures
    ]
    for first, last in batches(structures, ATOMS_AT_ONCE, apart=member.counts_all_pairs):
        system = System.from_ase(structures[first:last], first=first)
        check_system(member, system)
        graph = fresh_graphs(member, system.to(member.device)).short
        species.append(graph.species.cpu().numpy())
        numbers.append(first + graph.system_idx.cpu().numpy())
        features.append(_features(member.network, graph))
        _note_distances(graph, closest)
    if not species:
        raise ValueError("at least one structure is needed to learn what a model knows")
    return Sample(
        np.concatenate(species),
        np.concatenate(numbers),
        np.concatenate(features),
        closest,
        np.array(composition),
    )


@torch.no_grad()
def _features(network: Any, graph: Graph) -> np.ndarray:
    """Return the features of a network [n_atoms, F], float32; F = 0 if it has none."""
    features = network(graph).features
    if features is None:
        return np.zeros((graph.n_atoms, 0), np.float32)
    return features.to(torch.float32).cpu().numpy()


def _note_distances(graph: Graph, closest: np.ndarray) -> None:
    """Lower `closest` [n_species, n_species] to the shortest edges of a graph."""
    near = graph.edge_mask.cpu().numpy()
    species = graph.species.cpu().numpy()
    i, j = (species[atoms.cpu().numpy()[near]] for atoms in (graph.receivers, graph.senders))
    lengths = torch.linalg.vector_norm(graph.vectors, dim=1).cpu().numpy()[near]
    np.minimum.at(closest, (i, j), lengths)


def some_of(structures: Sequence[Atoms]) -> list[Atoms]:
    """Choose evenly spaced structures, as many as `calibrate` uses; only these are read."""
    chosen = _evenly(structures, min(len(structures), MOST_STRUCTURES))
    n_atoms = sum(map(len, chosen))
    if n_atoms > MOST_ATOMS:
        chosen = _evenly(chosen, max(1, len(chosen) * MOST_ATOMS // n_atoms))
    return chosen


def _different(structures: Sequence[Atoms]) -> list[Atoms]:
    """Return each structure once: copies would predict each other in the cross-validation."""
    one_of_each: dict[bytes, Atoms] = {}
    for atoms in structures:
        parts = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        electrons = repr(charge_and_spin(atoms)).encode()
        one_of_each.setdefault(b"".join([*(part.tobytes() for part in parts), electrons]), atoms)
    return list(one_of_each.values())


def _evenly(structures: Sequence[Atoms], n: int) -> list[Atoms]:
    numbers = np.linspace(0, len(structures) - 1, n).round().astype(int) if n else ()
    return [structures[int(k)] for k in numbers]
