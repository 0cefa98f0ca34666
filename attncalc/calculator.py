"""The ASE calculator: atoms in, numbers out; the lower layers do the work."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from attncalc import checks
from attncalc.evaluator import Evaluator
from attncalc.graph import ALL_PAIRS
from attncalc.heat_flux import Flux, HeatFlux
from attncalc.hessian import hessian, hessian_by_differences
from attncalc.model_file import DEFAULT_MODEL, load, model_name, named_device
from attncalc.novelty import OUTSIDE, OutsideAtom, outside_atom
from attncalc.options import one_of, positive
from attncalc.pickling import PlainlyPickled
from attncalc.potential import Committee, Potential
from attncalc.result import SMALLEST_VOLUME, Result, has_volume, volumes
from attncalc.structures import require_finite
from attncalc.system import SYNONYMS, System, require_list, what_is_ignored

Model = str | Path | Potential

# interval of novelty checks, in calculations, where a check is expensive
LOOK_EVERY = 20


class AttnCalculator(PlainlyPickled, BaseCalculator):
    """A trained attention network as an ASE calculator.

    Results: `energy` = `free_energy` [eV], `energies` [n_atoms] eV, `forces` [n_atoms, 3] eV/Å and,
    for structures with three cell vectors, `stress` [6] eV/Å³ in Voigt order. On request also
    `stresses` [n_atoms, 6] eV/Å³, which add up to `stress`. Networks that predict partial charges
    give `charges` [n_atoms] e and, for structures without periodic directions, `dipole` [3] e Å.
    The dipole is the sum of charge times position, so it depends on the origin for ions.

    Total charge and multiplicity 2S+1 are read from `atoms.info["charge"]` and
    `atoms.info["spin"]` at every call.

    If the model file describes the training environments, `novelty` [n_atoms] measures how far each
    atom is outside of them; 1 is the edge. The calculator warns when the first atom of a structure
    is outside. For the same elements in the same order, it warns again when the largest novelty has
    doubled.

    Threads may share a calculator: calls are answered one after the other, each for its own atoms.
    `results`, `atoms`, `spread` and `novelty` are those of the last call of any thread.

    Args:
        model: name of a shipped model, path of a model file or of the folder of a training, or a
            `Potential`. A `Potential` is copied: training it further does not change this
            calculator. A list of two or more of these is a committee: the results are the mean of
            its members, `spread` their standard deviation. The default is the general model of
            molecules of H, C, N, O, F, P, S and Cl; its energies compare structures of one
            composition and total charge only.
        device: "auto" (CUDA if available), "cpu", "cuda", "cuda:1" ...
        dtype: of the network, "float32", "float64" or a torch dtype; None: the model's own.
        skin: Å added to the cutoff so that the neighbour list can be reused; None chooses it by
            device and size, 0 builds a new list whenever an atom moved.
        threads: number of threads of a compiled network on a CPU for large structures. Small ones
            use one thread, since more would be slower. An equal number gives bitwise equal results.
            None: 1, or the number of a given `Potential`.
        long_range_cutoff: Å, cutoff of the pair terms of longer range than the network; `math.inf`
            counts all pairs, for molecules only. None: the model's own. Energies of different
            cutoffs must not be compared.
        delta: True for a delta model and only for one. Its results are to be added to those of its
            baseline, for instance by ASE's `LinearCombinationCalculator`.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model file is damaged, or an argument is invalid.
        TypeError: `model` has another type.

    Attributes:
        evaluator: potential and neighbour lists that `calculate` uses.
        spread: standard deviation of the members of a committee in the last calculation,
            {"energy": eV, "forces": [n_atoms, 3] eV/Å}; None for a single model.
        hirshfeld_ratios: [n_atoms], volumes of the atoms relative to free atoms in the last
            calculation; None if the network does not predict them.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]  # noqa: RUF012

    def __init__(
        self,
        model: Model | Sequence[Model] = DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        skin: float | None = None,
        threads: int | None = None,
        long_range_cutoff: float | None = None,
        delta: bool = False,
    ) -> None:
        super().__init__()
        self._lock = threading.RLock()
        potential = _potential(model, named_device(device), dtype)
        if threads is not None:
            potential.set_num_threads(threads)
        if long_range_cutoff is not None:
            potential.set_long_range_cutoff(long_range_cutoff)
        if potential.predicts_charges:
            self.implemented_properties = [*self.implemented_properties, "charges", "dipole"]
        self.evaluator = Evaluator(potential, skin=skin, delta=delta)
        self._names = _names(model)
        self._has_warned, self._reads_spin = False, potential.reads_spin
        self.spread: dict[str, Any] | None = None
        self.hirshfeld_ratios: Any = None
        self._last_result: Result | None = None
        self._novelty: NDArray[np.float64] | None = None  # of a copy, which has no such result
        self._is_stored = False  # whether ASE has stored a copy of the structure in `atoms`
        self._unlooked = 0  # calculations left until the next novelty check, if it is expensive
        self._looked = b""  # elements of the structure that this number is for
        self._told: dict[bytes, float] = {}  # elements of a structure: novelty in its last warning
        self._seen: tuple[_Written, System | None] = (_Written.of(Atoms()), None)
        self._volume: list[float] = []  # of the structure in `_seen`
        self._heat_flux: HeatFlux | None = None

    @property
    def potential(self) -> Potential:
        """Potential in use, compiled at its first use; `evaluator.plain` is not compiled."""
        return self.evaluator.potential

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            dropped = dict.fromkeys(("_lock", "_last_result", "_heat_flux"))
            return {**vars(self), **dropped, "_novelty": self.novelty}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    @property
    def novelty(self) -> NDArray[np.float64] | None:
        """Distance of each atom from the training environments in the last calculation, [n_atoms].

        It has no unit; 1 is their edge, see `attncalc.novelty.Environments`. None if the model file
        does not describe the training environments.
        """
        return self._novelty if self._last_result is None else self._last_result.novelty

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return a result for these atoms, and calculate it if necessary; called by ASE.

        Args:
            name: one of `implemented_properties`.
            atoms: the structure; None: that of the last call.
            allow_calculation: False: return None if a calculation would be needed.

        Raises:
            ValueError: the structure is impossible or not known to the model.
            PropertyNotImplementedError: the structure has no such property, see `calculate`.
        """
        # hold the lock from the check for changes to the answer: another thread could change the
        # structure that the results belong to in between
        with self._lock:
            self._last(atoms)
            self._is_stored = self.use_cache
            try:
                return super().get_property(name, atoms, allow_calculation)
            finally:
                self._is_stored = False

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Any:
        """Return several results of one calculation; called by ASE."""
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def calculation_required(self, atoms: Atoms, properties: Sequence[str]) -> bool:
        """Return True if `calculate` would be called for these atoms; called by ASE."""
        with self._lock:
            return super().calculation_required(atoms, properties)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] | None = None,
    ) -> None:
        """Fill `self.results`; called by ASE when something has changed.

        Args:
            atoms: the structure; None: that of the last call.
            properties: requested results; all but `stresses` are always computed.
            system_changes: given by ASE; not used.

        Raises:
            ValueError: the structure is impossible or not known to the model.
            PropertyNotImplementedError: stress of a structure without three cell vectors, stress
                per atom of a model with an Ewald sum, or dipole of a structure with periodic
                directions.
        """
        with self._lock:
            atoms = self._last(atoms)
            if "dipole" in properties and atoms.pbc.any():
                raise PropertyNotImplementedError(
                    "the dipole of a periodic structure depends on the choice of its images: it is "
                    "given for molecules only"
                )
            needs_volume = "stress" in properties or "stresses" in properties
            if needs_volume and not has_volume(atoms):
                raise PropertyNotImplementedError(
                    "stress needs a volume: this structure does not have three cell vectors"
                )
            if "stresses" in properties and self.evaluator.plain.reads_system:
                raise PropertyNotImplementedError(
                    "stress per atom: this model has an Ewald sum or another term that is "
                    "not a sum over pairs"
                )
            # if this structure fails, results of the one before must not be taken for its own
            self.results = {}
            self.spread = self.hirshfeld_ratios = self._last_result = self._novelty = None
            if not self._is_stored:
                self.atoms = None
            system = self._system(atoms)
            result = self.evaluator(system)
            (results,) = _results(result, system, self._volume)
            # a sum shows it, and takes no more than that at every step
            if not math.isfinite(results["energy"] + results["forces"].sum()):
                require_finite(result)
            self._last_result = result
            self._warn_outside(result, atoms)
            if "energy_spread" in results:  # ASE's writers fail on properties unknown to ASE
                self.spread = {name: results.pop(f"{name}_spread") for name in ("energy", "forces")}
            self.hirshfeld_ratios = results.pop("hirshfeld_ratios", None)
            if "stresses" in properties:
                stresses = self.evaluator.stresses(system).cpu().numpy()
                results["stresses"] = full_3x3_to_voigt_6_stress(stresses)
            self.results = results
            if not self._is_stored:
                self.atoms = atoms.copy()

    def get_hessian(
        self,
        atoms: Atoms | None = None,
        *,
        method: Literal["autograd", "differences"] = "autograd",
        displacement: float = 0.01,
    ) -> NDArray[np.float64]:
        """Hessian [3 n_atoms, 3 n_atoms] eV/Å², d²E / dx_ia dx_jb, without constraints.

        Args:
            atoms: the structure; None: that of the last call.
            method: "autograd" is exact to rounding (`attncalc.hessian.hessian`); "differences"
                takes differences of forces, faster for large structures
                (`hessian_by_differences`).
            displacement: Å, of the atoms for differences.

        Raises:
            ValueError: the structure is impossible or not known to the model, or an argument is
                invalid.
        """
        one_of("method", method, ("autograd", "differences"))
        positive("displacement", displacement)
        with self._lock:
            atoms = self._last(atoms)
            self.evaluator.check(System.from_ase(atoms))
            if method == "autograd":
                return hessian(self.evaluator.plain, atoms)
            return hessian_by_differences(self.potential, atoms, displacement)

    def get_atomic_volumes(self) -> NDArray[np.float64]:
        """Return the volume [Å³] that the stress of each atom is divided by: that of the cell.

        ASE divides the ideal-gas part of `atoms.get_stresses(include_ideal_gas=True)` by it, so
        that stresses of atoms add up to the stress.

        Raises:
            ValueError: nothing was calculated yet, or the structure has no volume.
        """
        with self._lock:
            if self.atoms is None or not has_volume(self.atoms):
                raise ValueError("no structure with a volume was calculated")
            return np.full(len(self.atoms), self.atoms.get_volume())

    def get_heat_flux(self, atoms: Atoms) -> Flux:
        """Heat flux of moving atoms times the volume, eV Å per ASE's unit of time.

        The list of periodic images is reused between calls, like a neighbour list. A call costs as
        much as four evaluations of the cell with the images that its atoms depend on.

        Args:
            atoms: the structure, with velocities.

        Raises:
            ValueError: the structure is impossible or not known to the model, or the model has no
                heat flux (see `HeatFlux`).
        """
        with self._lock:
            system = System.from_ase(atoms)
            self.evaluator.check(system)
            if self._heat_flux is None:
                self._heat_flux = HeatFlux(self.potential)
            return self._heat_flux(system, atoms.get_velocities(), atoms.get_masses())

    def _warn_outside(self, result: Result, atoms: Atoms) -> None:
        elements, surroundings = atoms.numbers.tobytes(), result.surroundings
        if surroundings is None:
            return
        # again only if it has doubled: an atom at the edge must not hide one that leaves
        limit = 2 * self._told[elements] if elements in self._told else OUTSIDE
        # expensive: edges are copied from a GPU, or a network is run to get features
        if surroundings.features is None or surroundings.graph.vectors.device.type != "cpu":
            if elements != self._looked:
                self._looked, self._unlooked = elements, 0
            self._unlooked -= 1
            if self._unlooked >= 0:
                return
            self._unlooked = LOOK_EVERY - 1
        novelty = surroundings.novelty()
        if (novelty > limit).any():
            self._told[elements] = float(novelty.max())
            warnings.warn(str(outside_atom(novelty, atoms.numbers)), stacklevel=2)

    def _last(self, atoms: Atoms | None) -> Atoms:
        if atoms is None and (atoms := self.atoms) is None:
            raise ValueError("there is no structure of a last call: give one")
        return atoms

    def _system(self, atoms: Atoms) -> System:
        """Convert and check atoms, reusing all but the positions if nothing else has changed."""
        reads_spin = self._reads_spin
        if not self._has_warned and (ignored := what_is_ignored(atoms, reads_spin=reads_spin)):
            self._has_warned = True
            warnings.warn(ignored, stacklevel=2)
        now = _Written.of(atoms)
        then, system = self._seen
        if system is not None and now == then:
            return system.with_positions_of(atoms)
        system = self.evaluator.take(System.from_ase(atoms))
        self._seen, self._volume = (now, system), volumes(system).tolist()
        return system

    def calculate_many(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Return the results of several structures, evaluated in batches.

        Args:
            structures: may differ in size, elements, cell, charge.

        Returns:
            One dictionary per structure with the entries of `results`, `stress` only if there is a
            volume, `dipole` only without periodic directions. A committee adds `energy_spread` and
            `forces_spread`, a network that predicts them `hirshfeld_ratios`: ASE's
            `SinglePointCalculator` accepts only what is in
            `ase.calculators.calculator.all_properties`. For novelty, see `evaluator.many`.
            A warning gives the number of structures outside the training environments, and names
            the first.

        Raises:
            TypeError: `structures` is not a list of `ase.Atoms`.
            ValueError: a structure is impossible or not known to the model.
        """
        require_list(structures, "calculate_many takes a list of structures")
        results: list[dict[str, Any]] = []
        found: list[OutsideAtom | None] = []
        with self._lock:
            for system, result in self.evaluator.many(structures):
                if (novelty := result.novelty) is not None:
                    numbers = system.split(system.atomic_numbers.cpu().numpy())
                    found += map(outside_atom, system.split(novelty), numbers)
                results += _results(result, system, volumes(system).tolist())
        if any(found):
            first, n = next(k for k, one in enumerate(found) if one), sum(map(bool, found))
            said = f"{n} of {len(found)} structures, the first is {first}: {found[first]}"
            warnings.warn(said, stacklevel=1)  # commands filter warnings of this module
        return results

    def verify(self, atoms: Atoms | None = None) -> checks.Report:
        """Check the physics of the model on a structure, and print the result as a table.

        Args:
            atoms: None takes a random cluster of the model's elements.

        Raises:
            RuntimeError: a check failed; the table says which.
        """
        if atoms is not None:  # refuse an invalid structure before anything is compiled
            self.evaluator.check(System.from_ase(atoms))
        with self._lock:
            report = checks.verify(self.evaluator.plain, atoms, fast=self.potential)
        print(report)
        report.require()
        return report

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return ASE's list of changes, plus `charge_and_spin` if these changed in `atoms.info`.

        Args:
            atoms: the structure.
            tol: not used: any difference from the structure of the last call is a change.
        """
        with self._lock:
            last = self.atoms
        if not self.use_cache or last is None:
            return list(all_changes)
        # ASE's own comparison takes a third as long as an evaluation of ethanol
        changes = [
            name
            for name, one, other in (
                *((name, last.arrays.get(name), atoms.arrays.get(name)) for name in _ARRAYS),
                ("cell", last.cell.array, atoms.cell.array),
                ("pbc", last.pbc, atoms.pbc),
            )
            if one is not other and not _are_equal(one, other)
        ]
        if _charge_and_spin(atoms) != self._seen[0].charge_and_spin:
            changes.append("charge_and_spin")
        return changes

    def todict(self) -> dict[str, Any]:
        """Return model, checksum of its file, dtype and device; ASE databases store it in each row.

        A `Potential` that was not loaded from a file has no checksum; a committee given as a list
        has a list of models and of checksums.
        """
        plain = self.evaluator.plain
        members: Any = plain.members if len(self._names) > 1 else [plain]
        checksums = [getattr(member, "checksum", "") for member in members]
        several = len(self._names) > 1
        return {
            "model": list(self._names) if several else self._names[0],
            "sha256": checksums if several else checksums[0],
            "dtype": str(plain.dtype).removeprefix("torch."),
            "device": str(plain.device),
            **({} if plain.long_range is None else {"long_range_cutoff": _described_range(plain)}),
        }

    def __repr__(self) -> str:
        known = self.todict()
        names = ", ".join(self._names)
        kinds = sorted({type(network).__name__ for network in self.evaluator.plain.networks})
        elements = " ".join(chemical_symbols[z] for z in self.evaluator.plain.species)
        sums = known["sha256"] if isinstance(known["sha256"], list) else [known["sha256"]]
        short = ", ".join(one[:12] or "none" for one in sums)
        return (
            f"AttnCalculator({names}: {' and '.join(kinds)} for {elements}, {known['dtype']} on "
            f"{known['device']}, sha256 {short})"
        )

    def _get_name(self) -> str:
        return "attncalc"

    @property
    def n_rebuilds(self) -> int:
        """Number of times a neighbour list was built."""
        return self.evaluator.neighbors.n_rebuilds

    @property
    def n_updates(self) -> int:
        """Number of times a neighbour list was requested, rebuilt or not."""
        return self.evaluator.neighbors.n_updates


def _described_range(potential: Potential) -> str:
    """Describe the cutoff of the pair terms of longer range."""
    far = potential.long_range or 0.0
    periodic = "all pairs" if far >= ALL_PAIRS else f"{far:g} Å"
    return f"{periodic}, all pairs of molecules" if potential.counts_all_pairs else periodic


def _names(model: Any) -> tuple[str, ...]:
    """Return the names of the models."""
    if isinstance(model, list | tuple):
        return tuple(name for member in model for name in _names(member))
    return (model_name(str(model)) if isinstance(model, str | Path) else type(model).__name__,)


@torch.inference_mode(False)  # weights that are copied in that mode cannot be used outside
def _potential(model: Any, device: torch.device, dtype: str | torch.dtype | None) -> Potential:
    if isinstance(model, list | tuple):
        return Committee([_potential(member, device, dtype) for member in model])
    if isinstance(model, Potential):
        if dtype is not None:
            raise ValueError("dtype belongs to load(...) when a Potential is given")
        return copy.deepcopy(model.lowered_from).to(device)
    if isinstance(model, str | Path):
        return load(model, device=device, dtype=dtype)
    raise TypeError(
        f"model must be a name, a path, a Potential, or a list of these, got {type(model).__name__}"
    )


class _Written(NamedTuple):
    """Copy of everything in a structure but its positions, to be compared with later ones."""

    numbers: bytes
    cell: bytes
    pbc: bytes
    charge_and_spin: tuple[str, ...]

    @classmethod
    def of(cls, atoms: Atoms) -> _Written:
        numbers, cell, pbc = atoms.numbers, atoms.cell.array, atoms.pbc
        return cls(numbers.tobytes(), cell.tobytes(), pbc.tobytes(), _charge_and_spin(atoms))


# arrays of a structure whose changes ASE lists
_ARRAYS = tuple(name for name in all_changes if name not in ("cell", "pbc"))


def _are_equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Return True if both arrays have the same shape and the same bytes."""
    if one is None or other is None:
        return False
    return one.shape == other.shape and one.tobytes() == other.tobytes()


# all names of total charge and multiplicity
_NAMES = tuple(name for names in SYNONYMS.items() for name in names)


def _charge_and_spin(atoms: Atoms) -> tuple[str, ...]:
    info = atoms.info
    return tuple([repr(info[name]) if name in info else "" for name in _NAMES])


def _results(result: Result, system: System, volume: list[float]) -> list[dict[str, Any]]:
    """Return one dictionary per structure, in ASE's names, units and order of stress components.

    Args:
        result: of the model.
        system: the structures.
        volume: [n_systems] Å³.
    """
    energy, energies, forces, strain_gradient, *_ = arrays = result.arrays
    of_energies, of_forces = system.split(energies), system.split(forces)
    others = {
        name: system.split(values)
        for name in ("charges", "hirshfeld_ratios")
        if (values := getattr(arrays, name)) is not None
    }
    positions = system.split(system.positions.cpu().numpy()) if others else ()
    results: list[dict[str, Any]] = []
    for k in range(len(volume)):
        total = float(energy[k])
        entry = {
            "energy": total,
            "free_energy": total,
            "energies": of_energies[k],
            "forces": of_forces[k],
        }
        if volume[k] > SMALLEST_VOLUME:
            entry["stress"] = full_3x3_to_voigt_6_stress(strain_gradient[k] / volume[k])
        entry |= {name: values[k] for name, values in others.items()}
        if "charges" in entry and not system.pbc[k].any():
            entry["dipole"] = entry["charges"] @ positions[k]
        results.append(entry)
    if result.spread is not None:
        of_energy = result.spread.energy.tolist()
        spreads = system.split(result.spread.forces.cpu())
        for entry, energy_spread, forces_spread in zip(results, of_energy, spreads, strict=True):
            entry |= {"energy_spread": energy_spread, "forces_spread": forces_spread.numpy()}
    return results
