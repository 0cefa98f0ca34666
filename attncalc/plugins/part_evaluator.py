"""`PartEvaluator`: forces on the atoms of one process among several that share a structure.

For programs that divide a structure into domains, as LAMMPS does. See `attncalc.domain`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from attncalc.domain import (
    Box,
    Domain,
    Images,
    Integers,
    StructureTotals,
    atoms_by_id,
    exchanges_layers,
    exchanges_outputs,
    reach_of,
    refuse_parts,
)
from attncalc.evaluator import Evaluator
from attncalc.graph import Graphs
from attncalc.plugins.halo import OutputExchange, Owners
from attncalc.plugins.novelty_monitor import NoveltyMonitor
from attncalc.potential import evaluate, evaluate_with_virials
from attncalc.signals import ctrl_c_in_loops
from attncalc.structures import check_electrons
from attncalc.system import charge_and_spin_of

SKIN = 1.0
"""Skin of the neighbour lists, Å."""

MARGIN = 0.01
"""Extra distance within which there are ghosts, to allow for rounding, Å."""


def _read_only(*shape: int, dtype: type = float) -> Any:
    """Return zeros that nobody can change: they are the defaults of all results."""
    zeros: NDArray[Any] = np.zeros(shape, dtype)
    zeros.setflags(write=False)
    return zeros


class Part(NamedTuple):
    """Results of one process. The default values are those of a process without atoms.

    Attributes:
        rows: [n], rows of `Images` of its own atoms that the model describes.
        forces: [n, 3] eV/Å, on these atoms, summed over all processes.
        energy: eV, the part of this process.
        strain_gradient: [3, 3] eV, the part of this process.
        energies: [n] eV, energies of these atoms; None if they are not requested, or without atoms.
        virials: [n, 3, 3] eV, parts of the strain gradient, see `attncalc.potential.atom_virials`;
            None if they are not requested, or without atoms.
    """

    rows: Integers = _read_only(0, dtype=np.int64)
    forces: NDArray[np.float64] = _read_only(0, 3)
    energy: float = 0.0
    strain_gradient: NDArray[np.float64] = _read_only(3, 3)
    energies: NDArray[np.float64] | None = None
    virials: NDArray[np.float64] | None = None


class PartEvaluator:
    """Evaluator of one process among several that share a structure, on CPUs.

    All processes must create it and call it together, also those without atoms. They rebuild their
    neighbour lists together if one of them must: if atoms have other ids, elements or owners, or if
    one has moved too far.

    Args:
        comm: `mpi4py` communicator of these processes.
        evaluator: of the model.
        charge: total charge, e.
        spin: multiplicity 2S+1; None is the lowest.
        exchange: exchange ghosts between the layers of networks, if their engine supports it.
        per_atom: return energies and virials of atoms too.

    Raises:
        ValueError: the model is on a GPU.

    Attributes:
        exchanges: True if processes exchange ghosts between layers.
        ghosts_within: Å, distance from own atoms within which `Images` must have all ghosts.
        n_rebuilds: number of neighbour lists built.
    """

    def __init__(
        self,
        comm: Any,
        evaluator: Evaluator,
        charge: int = 0,
        spin: int | None = None,
        *,
        exchange: bool = True,
        per_atom: bool = False,
    ) -> None:
        self.comm, self.evaluator, self.per_atom = comm, evaluator, per_atom
        self.charge, self.spin, self.n_rebuilds = charge, spin, 0
        if evaluator.device.type != "cpu":
            raise ValueError("several processes compute on CPUs: use one process for a GPU")
        # an engine may be unavailable in one process, e.g. for lack of memory
        able = exchange and exchanges_layers(evaluator.potential)
        self.exchanges = comm.allreduce(int(able)) == comm.size
        reach = reach_of(evaluator.plain, exchanges=self.exchanges)
        self.ghosts_within = reach + SKIN + MARGIN
        self._monitor = NoveltyMonitor(comm)
        self._known: tuple[Integers, Integers] | None = None
        self._periodic: bool | None = None
        self._domain: Domain | None = None
        self._owners: Any = None
        self._exchanges_outputs = exchanges_outputs(evaluator.plain)
        self._outputs: OutputExchange | None = None
        self._neighbors: Owners | None = None  # of the ghosts exchanged between layers

    def __call__(self, images: Images, box: Box) -> Part:
        """Return the results of this process.

        Args:
            images: own atoms, and all images of atoms within `ghosts_within` of them.
            box: of the whole structure.

        Raises:
            ValueError: processes cannot share the model (see `attncalc.domain.refuse_parts`), an
                element, the charge or the multiplicity is unknown to it, a position is not finite,
                two atoms lie on top of each other, ghosts are missing, or several atoms have the
                same id. The other processes wait: end them.
        """
        holds = np.array([are_equal((images.ids, images.numbers), self._known)])
        graphs = None
        if holds[0] and self._domain is not None:
            graphs = self._graphs(images, box)
            holds[0] = graphs is not None
        together = np.zeros(1, np.int64)
        self.comm.Allreduce(holds.astype(np.int64), together)
        if together[0] < self.comm.size:
            self._share_out(images, box)
            graphs = self._graphs(images, box)
        domain = self._domain
        if domain is None:
            if self._outputs is not None:
                self._outputs.without_atoms(len(self.evaluator.plain.members))
            self._monitor()
            return Part()
        assert graphs is not None
        potential, rows, virials = self.evaluator.potential, domain.rows[: domain.n_own], None
        with ctrl_c_in_loops(), atoms_by_id(images.ids, domain.rows):
            if self.per_atom:
                result, virials = evaluate_with_virials(potential, graphs)
            else:
                result = evaluate(potential, graphs)
        self._monitor(domain.system, result, images.ids[rows])
        add = self._owners.add_to_owners
        forces = add(result.forces.numpy())
        sums = float(result.energy), result.strain_gradient[0].numpy()
        if virials is None:
            return Part(rows, forces, *sums)
        energies = add(result.energies.numpy()[:, None])[:, 0]
        return Part(rows, forces, *sums, energies, add(virials.numpy()))

    def _graphs(self, images: Images, box: Box) -> Graphs | None:
        if self._domain is None:
            return None
        with atoms_by_id(images.ids, self._domain.rows):
            return self._domain.graphs(images.positions, box, self._outputs, self._neighbors)

    def _share_out(self, images: Images, box: Box) -> None:
        """Determine which atoms this process needs, and the processes that own them."""
        periodic = bool(box.pbc.any())
        if periodic != self._periodic:  # a box may be opened
            refuse_parts(self.evaluator.plain, periodic=periodic)
            self._periodic = periodic
        self.n_rebuilds += 1
        self._known = (images.ids.copy(), images.numbers.copy())
        totals, exchanges = self.totals(images, box), self.exchanges
        domain = Domain.of(
            self.evaluator.plain, images, box, totals, skin=SKIN, exchanges=exchanges
        )
        self._domain = domain
        ids = images.ids[:0] if domain is None else images.ids[domain.rows]
        ids, n_own = ids.astype(np.int64), 0 if domain is None else domain.n_own
        self._owners = Owners(self.comm, ids[:n_own], ids[n_own:])
        if exchanges:
            end = 0 if domain is None else domain.hop_counts[1]
            self._neighbors = Owners(self.comm, ids[:n_own], ids[n_own:end])
        self._outputs = OutputExchange(self._owners, totals) if self._exchanges_outputs else None
        if not self._has_all_ghosts(domain):
            raise ValueError(
                f"ghost atoms are missing: those within {self.ghosts_within:.2f} Å of the atoms of "
                "each process are needed"
            )

    def _has_all_ghosts(self, domain: Domain | None) -> bool:
        """Return False if an atom has different neighbours in two processes."""
        if domain is None:
            none = np.zeros(0, np.int64)
            self._owners.of_ghosts(none)
            self._owners.add_to_owners(none)
            return True
        n, neighbors = domain.n_own, domain.n_neighbors
        differ = (neighbors[n:] != self._owners.of_ghosts(neighbors[:n]))[domain.is_inner[n:]]
        # own atoms that are neighbours of a ghost here are ghosts in the process that owns it
        owned = domain.n_owned.copy()
        owned[:n] = 0
        found = self._owners.add_to_owners(owned)
        return not differ.any() and np.array_equal(found, neighbors[:n] - domain.n_owned[:n])

    def totals(self, images: Images, box: Box) -> StructureTotals:
        """Return the properties of the whole structure, with the checks that one process makes.

        Raises:
            ValueError: charge or multiplicity are not possible, or not known to the model.
        """
        potential = self.evaluator.plain
        mine = images.numbers[: images.n_own]
        counts = self.comm.allreduce(np.bincount(mine, minlength=len(chemical_symbols)))
        protons = int(counts @ np.arange(len(counts)))
        given = {"charge": self.charge, "spin": self.spin}
        charge, spin = (torch.tensor([n]) for n in charge_and_spin_of(protons, given))
        pbc = torch.from_numpy(box.pbc)[None]
        check_electrons(potential, charge, spin, torch.tensor([protons]), pbc)
        composition = tuple(int(counts[z]) for z in potential.species)
        return StructureTotals(composition, int(charge), int(spin))


def are_equal(found: tuple[Integers, Integers], known: tuple[Integers, Integers] | None) -> bool:
    """Return True if ids and atomic numbers are those that are known."""
    return known is not None and all(map(np.array_equal, found, known))
