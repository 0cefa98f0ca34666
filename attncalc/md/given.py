"""Structures as a run takes them: ASE's say more than a `System` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor

from attncalc.system import System

Structures: TypeAlias = System | Atoms | Sequence[Atoms]


def as_list(structures: Atoms | Sequence[Atoms]) -> list[Atoms]:
    """One structure or several as a list."""
    return [structures] if isinstance(structures, Atoms) else list(structures)


def said_by(structures: Structures) -> tuple[System, dict[str, Any]]:
    """System, and arguments of `initial_state` that ASE's structures have beside it.

    Returns:
        The structures; and their momenta, where they have any, masses and fixed atoms. A `System`
        has none of these.

    Raises:
        ValueError: a structure is impossible, a constraint is not `FixAtoms`, or only some of the
            structures have velocities.
    """
    if isinstance(structures, System):
        return structures, {}
    many = as_list(structures)
    system = System.from_ase(many)
    masses = np.concatenate([atoms.get_masses() for atoms in many])
    return system, {"momenta": _momenta(many), "masses": masses, "fixed": fixed_atoms(many)}


def fixed_atoms(structures: Sequence[Atoms]) -> Tensor:
    """[n_atoms], bool, of all structures: atoms that `ase.constraints.FixAtoms` holds.

    Raises:
        ValueError: there are constraints of other kinds.
    """
    masks = []
    for atoms in structures:
        fixed = torch.zeros(len(atoms), dtype=torch.bool)
        for constraint in atoms.constraints:
            if not isinstance(constraint, FixAtoms):
                kind = type(constraint).__name__
                raise ValueError(
                    f"the constraint {kind} needs ASE's integrators or optimizers (of "
                    "attncalc md: --integrator ase); here only FixAtoms is known"
                )
            fixed[torch.from_numpy(constraint.get_indices()).long()] = True
        masks.append(fixed)
    return torch.cat(masks)


def _momenta(structures: Sequence[Atoms]) -> Tensor | None:
    """[n_atoms, 3] of all structures; None where none has any."""
    momenta = [atoms.get_momenta() for atoms in structures]
    have = [bool(values.any()) for values in momenta]
    if any(have) and not all(have):
        raise ValueError(
            f"structure {have.index(False)} has no velocities but others have: set them for all "
            "or for none"
        )
    return torch.from_numpy(np.concatenate(momenta)) if all(have) else None
