"""A periodic structure cut into boxes and evaluated part by part, in one process."""

from __future__ import annotations

import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from attncalc.domain import Box, Domain, Images, StructureTotals, exchanges_outputs, reach_of
from attncalc.plugins.halo import OutputExchange, Owners
from attncalc.potential import Potential, evaluate
from attncalc.result import Result
from attncalc.system import charge_and_spin


def rod(n: int) -> Atoms:
    """Longer than what any of its parts sees: n cells of carbon, some atoms of other elements."""
    atoms = bulk("C", a=3.6, cubic=True) * (n, 1, 1)
    atoms.numbers[::3] = 1
    atoms.numbers[::7] = 8
    atoms.rattle(0.1, seed=0)
    return atoms


def images_of(atoms: Atoms, own: NDArray, reach: float) -> Images:
    """Atoms `own`, and all images of any atom within `reach` of one of them."""
    planes = np.linalg.norm(atoms.cell.reciprocal(), axis=1) if atoms.cell.rank == 3 else 0
    far = np.where(atoms.pbc, np.ceil(reach * planes) + 1, 0).astype(int)
    positions, ids = [atoms.positions[own]], [own]
    own_places = cKDTree(atoms.positions[own])
    for shift in itertools.product(*(range(-n, n + 1) for n in far)):
        images = atoms.positions + shift @ atoms.cell.array
        near = np.flatnonzero(own_places.query(images, distance_upper_bound=reach)[0] < reach)
        if not any(shift):
            near = np.setdiff1d(near, own)
        positions.append(images[near])
        ids.append(near)
    rows = np.concatenate(ids)
    return Images(np.concatenate(positions), rows, atoms.numbers[rows], len(own))


def box_of(atoms: Atoms) -> Box:
    return Box(atoms.cell.array.copy(), atoms.pbc.copy())


def whole_of(potential: Potential, atoms: Atoms) -> StructureTotals:
    composition = tuple(int((atoms.numbers == z).sum()) for z in potential.species)
    charge, spin = charge_and_spin(atoms)
    return StructureTotals(composition, charge, spin)


def parts_of(
    potential: Potential,
    atoms: Atoms,
    counts: tuple[int, int, int],
    *,
    skin: float = 0.5,
    exchanges: bool = False,
) -> list[tuple[Images, Domain | None]]:
    """Parts of a structure whose box is cut so often in each direction."""
    places = atoms.get_scaled_positions()
    cells = np.minimum((places * counts).astype(int), np.array(counts) - 1)
    which = np.ravel_multi_index(tuple(cells.T), counts)
    reach = reach_of(potential, exchanges=exchanges) + skin
    options = {"skin": skin, "exchanges": exchanges}
    whole = whole_of(potential, atoms)
    found = []
    for part in range(int(np.prod(counts))):
        images = images_of(atoms, np.flatnonzero(which == part), reach)
        found.append((images, Domain.of(potential, images, box_of(atoms), whole, **options)))
    return found


def added_up(
    potential: Potential, atoms: Atoms, parts: list[tuple[Images, Domain | None]]
) -> Result:
    """Results of all parts, as those of the whole: forces of ghosts go to their owners."""
    found = []
    for images, domain in parts:
        if domain is not None:
            graphs = domain.graphs(images.positions, box_of(atoms))
            assert graphs is not None
            found.append((images.ids[domain.rows], evaluate(potential, graphs)))
    return _sum_of(atoms, found)


def _sum_of(atoms: Atoms, found: list[tuple[NDArray, Result]]) -> Result:
    """Sums of the results of parts, whose nodes are these atoms."""
    energies, forces = torch.zeros(len(atoms)).double(), torch.zeros(len(atoms), 3).double()
    strain_gradient = torch.zeros(1, 3, 3).double()
    for numbers, result in found:
        ids = torch.from_numpy(numbers)
        assert len(ids.unique()) == len(ids)
        energies.index_add_(0, ids, result.energies)
        forces.index_add_(0, ids, result.forces)
        strain_gradient += result.strain_gradient
    return Result(energies.sum(0, keepdim=True), energies, forces, strain_gradient)


class Channel:
    """What some threads use as processes use MPI: messages, and sums over all."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=900)
        self.told: list[Any] = [None] * size
        self.mail = {(a, b): queue.Queue() for a in range(size) for b in range(size)}

    def of(self, rank: int) -> Communicator:
        return Communicator(self, rank)


class Communicator:
    """The part of `mpi4py` that `PartEvaluator` uses, for one thread."""

    def __init__(self, channel: Channel, rank: int) -> None:
        self.channel, self.rank, self.size = channel, rank, channel.size

    def _all(self, value: Any) -> list[Any]:
        self.channel.told[self.rank] = value
        self.channel.barrier.wait()
        told = list(self.channel.told)
        self.channel.barrier.wait()
        return told

    def allreduce(self, value: float) -> float:
        return sum(self._all(value))

    def Allreduce(self, values: NDArray, total: NDArray) -> None:
        total[:] = sum(self._all(values.copy()))

    def allgather(self, value: Any) -> list[Any]:
        return self._all(value)

    def alltoall(self, values: list[Any]) -> list[Any]:
        return [row[self.rank] for row in self._all(values)]

    def Isend(self, part: NDArray, dest: int) -> Communicator:
        self.channel.mail[self.rank, dest].put(part.copy())
        return self

    def Irecv(self, buffer: NDArray, source: int) -> Waiting:
        return Waiting(buffer, self.channel.mail[source, self.rank])

    def Wait(self) -> None:
        """Return at once: the message is a copy."""


class Waiting:
    """A message that is to come."""

    def __init__(self, buffer: NDArray, mail: queue.Queue) -> None:
        self.buffer, self.mail = buffer, mail

    def Wait(self) -> None:
        """Write it into the buffer."""
        self.buffer[...] = self.mail.get(timeout=900)


def added_up_with_messages(
    potential: Potential,
    atoms: Atoms,
    parts: list[tuple[Images, Domain | None]],
    *,
    exchanges: bool = False,
) -> Result:
    """Results of all parts, each in a thread, which tell each other of charges or of layers."""
    channel = Channel(len(parts))

    def of_part(rank: int) -> tuple[NDArray, Result] | None:
        images, domain = parts[rank]
        n_own = 0 if domain is None else domain.n_own
        ids = images.ids[:0] if domain is None else images.ids[domain.rows]
        shared, neighbors = None, None
        if exchanges_outputs(potential):
            owners = Owners(channel.of(rank), ids[:n_own], ids[n_own:])
            shared = OutputExchange(owners, whole_of(potential, atoms))
        if exchanges:
            end = 0 if domain is None else domain.hop_counts[1]
            neighbors = Owners(channel.of(rank), ids[:n_own], ids[n_own:end])
        if domain is None:
            if shared is not None:
                shared.without_atoms(len(potential.members))
            return None
        graphs = domain.graphs(images.positions, box_of(atoms), shared, neighbors)
        assert graphs is not None
        return ids, evaluate(potential, graphs)

    with ThreadPoolExecutor(len(parts)) as threads:
        found = threads.map(of_part, range(len(parts)))
        return _sum_of(atoms, [one for one in found if one is not None])
