"""`System`: one structure or many as tensors; all structures are validated here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray
from torch import Tensor

# Å³ per atom of a periodic structure; solid hydrogen at 500 GPa has ten times more
SMALLEST_ROOM = 0.1
# Å; in solid hydrogen at 500 GPa atoms are three times as far apart
SHORTEST_PERIOD = 0.3
# Å, of coordinates and cell vectors: 0.1 mm. Beyond it rounding moves atoms by 1e-10 Å
LARGEST_COORDINATE = 1e6
# entries of `atoms.info`, and what other programs call them
SYNONYMS = {"charge": "total_charge", "spin": "multiplicity"}


Values = TypeVar("Values", Tensor, NDArray[Any])


@dataclass(frozen=True)
class System:
    """Structure, or batch of different structures, as flat tensors.

    Attributes:
        positions: [n_atoms, 3] Å, float64.
        atomic_numbers: [n_atoms], int64.
        cell: [n_systems, 3, 3] Å, float64; rows are the cell vectors, zero where there are none.
        pbc: [n_systems, 3], bool.
        system_idx: [n_atoms], int64, ascending: which system an atom is in.
        charge: [n_systems] e, float64: total charge.
        spin: [n_systems], int64: spin multiplicity 2S+1.
    """

    positions: Tensor
    atomic_numbers: Tensor
    cell: Tensor
    pbc: Tensor
    system_idx: Tensor
    charge: Tensor
    spin: Tensor

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures together."""
        return self.positions.shape[0]

    @property
    def n_systems(self) -> int:
        """Number of structures in the batch."""
        return self.cell.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.positions.device

    @property
    def first_atoms(self) -> Tensor:
        """Number of the first atom of each structure, [n_systems], int64."""
        sizes = torch.bincount(self.system_idx, minlength=self.n_systems)
        return torch.cumsum(sizes, 0) - sizes

    @property
    def atom_in_system(self) -> Tensor:
        """Number of each atom within its structure, [n_atoms], int64: 0, 1, ..."""
        return torch.arange(self.n_atoms, device=self.device) - self.first_atoms[self.system_idx]

    def to(self, device: torch.device | str) -> System:
        """Return the same system on another device, or itself if it is there already."""
        if self.device == torch.device(device):
            return self
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})

    @classmethod
    def from_ase(cls, atoms: Atoms | Sequence[Atoms], *, first: int = 0) -> System:
        """Convert one `ase.Atoms` or several into one batch, on the CPU.

        Masses, velocities and constraints are not included: integrators of `attncalc.md` read them
        from the `ase.Atoms`.

        Total charge and multiplicity are read from `atoms.info["charge"]` (e, default 0) and
        `atoms.info["spin"]` (2S+1, default the lowest that the number of electrons allows), or from
        `total_charge` and `multiplicity`, as other programs call them.

        Args:
            atoms: the structures.
            first: number of the first structure in messages, if they are part of a longer list.

        Raises:
            TypeError: `atoms` is neither an `ase.Atoms` nor a list of them.
            ValueError: a structure is empty, has a position or cell that is not finite, an unknown
                element, a periodic direction without cell vector, a cell too small for its atoms,
                or an impossible charge or spin.
        """
        structures = as_list(atoms)
        if not structures:
            raise ValueError("no structure given: pass an ase.Atoms or a non-empty list of them")
        charges, spins = [], []
        for k, structure in enumerate(structures, start=first):
            where = f"structure {k}: " if len(structures) > 1 or first > 0 else ""
            check_structure(structure, where)
            charge, spin = charge_and_spin(structure, where)
            charges.append(charge)
            spins.append(spin)
        lengths = torch.tensor([len(structure) for structure in structures])
        return cls(
            positions=torch.from_numpy(np.concatenate([s.positions for s in structures])),
            atomic_numbers=torch.from_numpy(np.concatenate([s.numbers for s in structures])).long(),
            cell=torch.from_numpy(np.stack([s.cell.array for s in structures])),
            pbc=torch.from_numpy(np.stack([s.pbc for s in structures])),
            system_idx=torch.repeat_interleave(torch.arange(len(structures)), lengths),
            charge=torch.tensor(charges, dtype=torch.float64),
            spin=torch.tensor(spins, dtype=torch.int64),
        )

    def with_positions_of(self, atoms: Atoms) -> System:
        """Return this single system with the positions of `atoms`, on the same device.

        Nothing else of `atoms` is read, and nothing is checked: a neighbour list refuses positions
        that are not finite.
        """
        return self.with_positions(torch.from_numpy(atoms.positions.copy()).to(self.device))

    def with_positions(self, positions: Tensor) -> System:
        """Return the same structures with other positions [n_atoms, 3] Å.

        Equivalent to `dataclasses.replace`, which took 1 % of a small molecule's step.
        """
        system = object.__new__(System)
        system.__dict__.update(self.__dict__, positions=positions)
        return system

    def split(self, values: Values) -> Sequence[Values]:
        """Split values of atoms [n_atoms, ...], a tensor or an array, into one per structure."""
        if self.n_systems == 1:
            return [values]
        ends: list[int] = torch.bincount(self.system_idx).cumsum(0).tolist()
        return [values[begin:end] for begin, end in itertools.pairwise([0, *ends])]

    def to_ase(self) -> list[Atoms]:
        """Return one `ase.Atoms` per system, with charge and spin in `info`."""
        structures = []
        for k in range(self.n_systems):
            mine = self.system_idx == k
            structures.append(
                Atoms(
                    numbers=self.atomic_numbers[mine].cpu().numpy(),
                    positions=self.positions[mine].detach().cpu().numpy(),
                    cell=self.cell[k].detach().cpu().numpy(),
                    pbc=self.pbc[k].cpu().numpy(),
                    info={"charge": int(self.charge[k]), "spin": int(self.spin[k])},
                )
            )
        return structures


def as_list(structures: Atoms | Sequence[Atoms]) -> list[Atoms]:
    """Return one structure or several as a list.

    Raises:
        TypeError: `structures` is neither an `ase.Atoms` nor a list of them.
    """
    if isinstance(structures, Atoms):
        return [structures]
    require_list(structures, "expected ase.Atoms or a list of them")
    return list(structures)


def require_list(structures: Any, expected: str) -> None:
    """Refuse one structure, or anything else that is no list of structures.

    Args:
        structures: a list, tuple, trajectory of ASE, iterator.
        expected: beginning of the message.

    Raises:
        TypeError: `structures` cannot be read one by one, or is a text or a dictionary.
    """
    if isinstance(structures, Atoms):
        raise TypeError(f"{expected}, got one ase.Atoms")
    if not is_list(structures):
        raise TypeError(f"{expected}, got {type(structures).__name__}")


def is_list(value: Any) -> bool:
    """Return True for what can be read one by one, except texts and dictionaries."""
    try:
        iter(value)
    except TypeError:
        return False
    return not isinstance(value, str | Mapping)


def charge_and_spin(atoms: Atoms, where: str = "") -> tuple[int, int]:
    """Return the total charge [e] and multiplicity 2S+1 of a structure, from `atoms.info`.

    Raises:
        ValueError: the charge is not an integer, or no state of the structure's number of
            electrons has this multiplicity.
    """
    return charge_and_spin_of(int(atoms.numbers.sum()), atoms.info, where)


def charge_and_spin_of(protons: int, info: Mapping[str, Any], where: str = "") -> tuple[int, int]:
    """Return charge and multiplicity like `charge_and_spin`, from the sum of atomic numbers."""
    given = _agreed(info, "charge", where)
    charge = 0 if given is None else _integer(*given, "total charge in e", where)
    electrons = protons - charge
    if electrons < 0:
        raise ValueError(
            f"{where}charge {charge:+d} removes more electrons than the atoms have "
            f"({electrons + charge})"
        )
    if electrons > 2 * (electrons + charge):
        raise ValueError(
            f"{where}charge {charge:+d} adds more electrons than the atoms have "
            f"({electrons + charge})"
        )
    lowest = 1 + electrons % 2
    given = _agreed(info, "spin", where)
    if given is None or given[1] is None:
        return charge, lowest
    spin = _integer(*given, "multiplicity 2S+1", where)
    if spin < 1 or spin % 2 != lowest % 2 or spin - 1 > electrons:
        kind = "odd" if lowest == 1 else "even"
        raise ValueError(
            f'{where}atoms.info["{given[0]}"] = {spin} is impossible for {electrons} electrons '
            f"(charge {charge:+d}): the multiplicity 2S+1 must be {kind}, e.g. {lowest}"
        )
    return charge, spin


def assumed_radical(atoms: Atoms) -> str:
    """Say that a molecule without charge and multiplicity counts as a radical; "" if not."""
    values = [value for key in SYNONYMS for value in stated(atoms.info, key).values()]
    is_stated = any(value is not None for value in values)
    if is_stated or atoms.pbc.any() or atoms.numbers.sum() % 2 == 0:
        return ""
    return "charge 0 e and multiplicity 2 are assumed, as the number of electrons is odd"


def what_is_ignored(
    atoms: Atoms, info: Mapping[str, Any] | None = None, *, reads_spin: bool = True
) -> str:
    """Describe charges, magnetic moments and entries that no model reads; "" if there are none.

    Args:
        atoms: the structure. Initial charges are no problem if `info` has a total charge, nor are
            initial magnetic moments if it has a multiplicity.
        info: None takes `atoms.info`.
        reads_spin: False: the model supports the lowest multiplicity only.
    """
    info = atoms.info if info is None else info
    wanted = {
        "charge": ("initial charges", atoms.arrays.get("initial_charges")),
        "spin": ("initial magnetic moments", atoms.arrays.get("initial_magmoms")),
    }
    ignored = {
        key: name
        for key, (name, values) in wanted.items()
        if values is not None and np.any(values) and not stated(info, key)
    }
    if not ignored:
        return ""
    if list(ignored) == ["spin"] and not reads_spin:
        return (
            "initial magnetic moments of the atoms are not read: this model supports only the "
            "lowest spin state"
        )
    entries = " and ".join(f'atoms.info["{key}"]' for key in ignored)
    meaning = " and ".join(
        {"charge": "total charge in e", "spin": "multiplicity 2S+1"}[key] for key in ignored
    )
    return f"{' and '.join(ignored.values())} of the atoms are not read: set {entries} ({meaning})"


def stated(info: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the entries of `atoms.info` under a key of `SYNONYMS` and under its other name."""
    return {name: info[name] for name in (key, SYNONYMS[key]) if name in info}


def _agreed(info: Mapping[str, Any], key: str, where: str) -> tuple[str, Any] | None:
    """Return the name and value of an entry that may have another name; None without one."""
    found = stated(info, key)
    if len(found) == 2 and not np.array_equal(*found.values()):
        values = " but ".join(f'atoms.info["{name}"] = {value!r}' for name, value in found.items())
        raise ValueError(f"{where}{values}: remove one of them")
    return next(iter(found.items()), None)


def _integer(key: str, value: object, meaning: str, where: str) -> int:
    number = float("nan")
    try:
        if not isinstance(value, bool | np.bool_):  # as ASE reads an entry without value
            number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        pass
    if not number.is_integer():
        raise ValueError(
            f'{where}atoms.info["{key}"] must be an integer ({meaning}), got {value!r}'
        )
    return int(number)


def check_structure(atoms: Atoms, where: str = "") -> None:
    """Check a structure as `System.from_ase` does, except charge and spin.

    Args:
        atoms: the structure.
        where: beginning of the message.

    Raises:
        TypeError: `atoms` is not an `ase.Atoms`.
        ValueError: the structure is invalid, see `System.from_ase`.
    """
    if not isinstance(atoms, Atoms):
        raise TypeError(f"{where}expected ase.Atoms, got {type(atoms).__name__}")
    if len(atoms) == 0:
        raise ValueError(f"{where}the structure has no atoms")
    # first: other messages name elements
    unknown = (atoms.numbers < 1) | (atoms.numbers >= len(chemical_symbols))
    if unknown.any():
        first = int(np.flatnonzero(unknown)[0])
        raise ValueError(
            f"{where}atom {first} has no known element (number {atoms.numbers[first]})"
        )
    _check_positions(atoms, where)
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError(f"{where}the cell is not finite: {atoms.cell.array.tolist()}")
    if np.abs(atoms.cell.array).max() > LARGEST_COORDINATE:
        raise ValueError(
            f"{where}a cell vector has a component of {np.abs(atoms.cell.array).max():.3g} Å, more "
            f"than {LARGEST_COORDINATE:.0e} Å; are the cell vectors in Å?"
        )
    periodic = atoms.cell.array[atoms.pbc]
    # no lattice vector is shorter than the smallest singular value
    smallest = np.linalg.svd(periodic, compute_uv=False).min() if len(periodic) else np.inf
    if smallest <= 1e-8:
        raise ValueError(
            f"{where}pbc is {atoms.pbc.tolist()} but the cell vectors of the periodic directions "
            "are zero, shorter than 1e-8 Å or linearly dependent: set atoms.cell in Å, or "
            "atoms.pbc = False"
        )
    if len(periodic) == 3 and abs(np.linalg.det(periodic)) < SMALLEST_ROOM * len(atoms):
        # there would be too many neighbours within a cutoff
        raise ValueError(
            f"{where}cell volume is {abs(np.linalg.det(periodic)) / len(atoms):.2g} Å³ per atom; "
            "are the cell vectors in Å?"
        )
    if smallest < SHORTEST_PERIOD:  # or the cell is skewed
        _check_images(atoms, where)


def _check_images(atoms: Atoms, where: str) -> None:
    """Refuse cells with atoms on top of their own periodic images, which have too many images."""
    reduced, _ = minkowski_reduce(atoms.cell, atoms.pbc)
    shortest = np.linalg.norm(reduced[atoms.pbc], axis=1).min()
    if shortest < SHORTEST_PERIOD:
        raise ValueError(
            f"{where}atoms are {shortest:.2g} Å from their own periodic images; are the cell "
            "vectors in Å?"
        )


def _check_positions(atoms: Atoms, where: str) -> None:
    finite = np.isfinite(atoms.positions)
    if not finite.all():
        first = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise ValueError(
            f"{where}the position of atom {first} ({atoms.symbols[first]}) is not finite: "
            f"{atoms.positions[first].tolist()}"
        )
    if (far := np.abs(atoms.positions).max(axis=1) > LARGEST_COORDINATE).any():
        first = int(np.flatnonzero(far)[0])
        raise ValueError(
            f"{where}the position of atom {first} ({atoms.symbols[first]}) is more than "
            f"{LARGEST_COORDINATE:.0e} Å from the origin: {atoms.positions[first].tolist()}; "
            "call atoms.wrap(), or move the structure"
        )
