"""Check that a model knows structures, before the work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from attncalc import model_file
from attncalc.cli.output import say, warn
from attncalc.describe import describe_model
from attncalc.potential import Potential
from attncalc.result import has_volume
from attncalc.structures import check_system
from attncalc.system import System, charge_and_spin, what_is_ignored

# Å, component of a periodic cell vector along an open direction that comes from rounding
ALIGNED = 1e-6


def is_delta(model: str) -> bool:
    """Return True for a delta model, which can be evaluated alone but not used for dynamics."""
    return bool(model_file.header(model)["training"].get("baseline"))


def say_model(model: str, potential: Potential) -> str:
    """Print which model runs; return its name and level of theory, for titles."""
    named = describe_model(model_file.model_name(model), potential)
    say(f"model: {named}")
    return named


def say_charges(structures: Sequence[Atoms]) -> None:
    """Print total charge and multiplicity, unless all are 0 and 1."""
    found = dict.fromkeys(charge_and_spin(atoms) for atoms in structures)
    if list(found) == [(0, 1)]:
        return
    if len(found) == 1:
        ((charge, multiplicity),) = found
        say(f"total charge {charge:+d} e, multiplicity {multiplicity}")
    else:
        charges = [charge for charge, _ in found]
        say(f"total charges from {min(charges):+d} to {max(charges):+d} e")


def require_limits(potential: Potential, *, stop: bool) -> None:
    """Refuse `--stop-when-unknown` with a model that does not know its training data.

    Args:
        potential: the model.
        stop: True if the option was given.

    Raises:
        ValueError: the option would have no effect.
    """
    if stop and not potential.knows_its_training:
        raise ValueError(
            "--stop-when-unknown needs a model that knows its training data, and this one does "
            "not: remove the option, or see attncalc calibrate"
        )


def strain_mask(atoms: Atoms) -> NDArray[np.bool_]:
    """Return which components [3, 3] of the strain relax: vacuum has no stress.

    Raises:
        ValueError: the cell has no volume, no direction is periodic, or periodic cell vectors have
            components along an open direction.
    """
    if not has_volume(atoms):
        raise ValueError("stress needs a volume: this structure does not have three cell vectors")
    if not atoms.pbc.any():
        raise ValueError(
            "its cell cannot relax: no direction is periodic; set pbc if it is a crystal"
        )
    if np.abs(atoms.cell.array[np.ix_(atoms.pbc, ~atoms.pbc)]).max(initial=0.0) > ALIGNED:
        raise ValueError(
            "its cell cannot relax: periodic cell vectors must be perpendicular to the axes x, y, "
            "z of open directions; rotate the structure (atoms.rotate(..., rotate_cell=True))"
        )
    return np.outer(atoms.pbc, atoms.pbc)


def require_known(
    potential: Potential, structures: Sequence[Atoms], *, volume: bool = False
) -> None:
    """Refuse structures that the model does not know; warn of properties that it ignores.

    Args:
        potential: the model.
        structures: structures to check; if there are several, the message names the one refused.
        volume: True if each must have a cell that can relax, see `strain_mask`.

    Raises:
        ValueError: a structure is impossible, or the model does not know its elements, charge or
            spin.
    """
    for k, atoms in enumerate(structures):
        try:
            check_system(potential, System.from_ase(atoms))
            if volume:
                strain_mask(atoms)
        except ValueError as error:
            where = f"structure {k}: " if len(structures) > 1 else ""
            raise ValueError(f"{where}{error}") from None
    found = (what_is_ignored(atoms, reads_spin=potential.reads_spin) for atoms in structures)
    for ignored in dict.fromkeys(filter(None, found)):
        warn(ignored)
