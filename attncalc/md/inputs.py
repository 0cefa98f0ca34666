"""Structures that a run starts from: those of ASE hold more data than a `System`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import ArrayLike
from torch import Tensor

from attncalc.md.state import MDState
from attncalc.system import System, as_list

Structures: TypeAlias = System | Atoms | Sequence[Atoms]
Start: TypeAlias = Structures | MDState


def read_structures(structures: Start, *, velocities: bool = True) -> tuple[System, dict[str, Any]]:
    """Return the system, and arguments of `initial_state` that structures of ASE hold besides.

    Args:
        structures: of ASE, one or several, or a state, or a `System`.
        velocities: whether those of the structures are used.

    Returns:
        The system; and momenta (None if there are none), masses and fixed atoms of the structures,
        of a state also its replicas; and as "earlier" the momenta that they have, used or not. A
        `System` has none of these.

    Raises:
        ValueError: a structure is impossible, a constraint is not `FixAtoms` or holds an atom that
            does not exist, or only some of the structures have velocities.
    """
    if isinstance(structures, System):
        return structures, {}
    if isinstance(structures, MDState):
        said = {name: getattr(structures, name) for name in ("masses", "fixed", "replicas")}
        earlier = structures.momenta
        return structures.system, said | {
            "momenta": earlier if velocities else None,
            "earlier": earlier,
        }
    many = as_list(structures)
    system = System.from_ase(many)
    masses = np.concatenate([atoms.get_masses() for atoms in many])
    fixed = fixed_atoms(many)
    momenta = _momenta(many, fixed) if velocities else None
    theirs = np.concatenate([atoms.get_momenta() for atoms in many])
    return system, {
        "momenta": momenta,
        "masses": masses,
        "fixed": fixed,
        "earlier": theirs if theirs.any() else None,
    }


def fixed_atoms(structures: Sequence[Atoms], *, first: int = 0) -> Tensor:
    """Return the mask [n_atoms] of atoms that `ase.constraints.FixAtoms` holds, of all structures.

    Args:
        structures: one after the other.
        first: number of the first structure in messages, if they are part of a longer list.

    Raises:
        ValueError: there are constraints of other kinds, or one holds an atom that does not exist.
    """
    masks = []
    for k, atoms in enumerate(structures, start=first):
        where = f"structure {k}: " if len(structures) > 1 or first > 0 else ""
        fixed = torch.zeros(len(atoms), dtype=torch.bool)
        for constraint in atoms.constraints:
            if not isinstance(constraint, FixAtoms):
                kind = type(constraint).__name__
                raise ValueError(
                    f"{where}the constraint {kind} needs ASE's integrators or optimizers (of "
                    "attncalc md: --integrator ase); here only FixAtoms is known"
                )
            held = constraint.get_indices()
            absent = held[(held < -len(atoms)) | (held >= len(atoms))]
            if len(absent):
                raise ValueError(
                    f"{where}FixAtoms holds atom {absent[0]}, but there are {len(atoms)} atoms, "
                    "counted from 0"
                )
            fixed[torch.from_numpy(held).long()] = True
        masks.append(fixed)
    return torch.cat(masks)


def as_tensor(name: str, values: Tensor | ArrayLike) -> Tensor:
    """Make a tensor on the CPU; arrays and lists are copied.

    Raises:
        TypeError: the values are not numbers.
    """
    if isinstance(values, Tensor):
        return values.cpu()
    try:
        return torch.from_numpy(np.array(values, order="C"))
    except (TypeError, ValueError):
        kind = type(values).__name__
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {kind}") from None


def of_shape(name: str, values: Tensor | ArrayLike, shape: tuple[int, ...]) -> Tensor:
    """Make a tensor of this shape on the CPU.

    Raises:
        TypeError: the values are not numbers.
        ValueError: they have another shape.
    """
    tensor = as_tensor(name, values)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    return tensor


def mask_of(fixed: Tensor | ArrayLike, n_atoms: int) -> Tensor:
    """Check and return the mask of fixed atoms, [n_atoms], bool, on the CPU.

    Raises:
        TypeError: the values are not numbers.
        ValueError: they are not True or False, or not one for each atom.
    """
    mask = of_shape("fixed", fixed, (n_atoms,))
    if not ((mask == 0) | (mask == 1)).all():  # indices of atoms would count as True
        raise ValueError("fixed must be True or False for each atom, got numbers of atoms?")
    return mask.bool()


def _momenta(structures: Sequence[Atoms], fixed: Tensor) -> Tensor | None:
    """Return momenta [n_atoms, 3] of all structures; None if no atom that can move has any."""
    momenta = [torch.from_numpy(atoms.get_momenta()) for atoms in structures]
    free = (~fixed).split([len(atoms) for atoms in structures])
    have = [bool(values[mask].any()) for values, mask in zip(momenta, free, strict=True)]
    if any(have) and not all(have):
        raise ValueError(
            f"structure {have.index(False)} has no velocities but others have: set them for all "
            "or for none (in Python, new_velocities=True draws new ones)"
        )
    return torch.cat(momenta) if all(have) else None
