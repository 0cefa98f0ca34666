"""Results that a trajectory holds on request: partial charges, dipole moment and stress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase.stress import full_3x3_to_voigt_6_stress

from attncalc.md.state import MDState

RESULTS = ("charges", "dipole", "stress")


def checked_names(names: object) -> tuple[str, ...]:
    """Return names of results in the order of `RESULTS`.

    Args:
        names: a list or tuple of names.

    Raises:
        ValueError: it is not a list or tuple, or has an unknown name.
    """
    if not isinstance(names, list | tuple) or not all(name in RESULTS for name in names):
        given = ", ".join(map(str, names)) if isinstance(names, list | tuple) else repr(names)
        raise ValueError(
            f"write takes the names {', '.join(RESULTS[:-1])} and {RESULTS[-1]}, got {given}"
        )
    return tuple(name for name in RESULTS if name in names)


def require_results(
    names: Sequence[str], *, predicts_charges: bool, periodic: bool, bulk: bool
) -> None:
    """Refuse results that a model does not give for its structures.

    Args:
        names: of `RESULTS`.
        predicts_charges: whether the model predicts partial charges.
        periodic: whether a structure has periodic directions.
        bulk: whether all structures are periodic in all directions.

    Raises:
        ValueError: the model predicts no charges, the dipole would be of a periodic structure, or
            the stress of one that is not periodic in all directions.
    """
    of_charges = [name for name in names if name != "stress"]
    if of_charges and not predicts_charges:
        raise ValueError(
            f"cannot write {' and '.join(of_charges)}: this model predicts no partial charges"
        )
    if "dipole" in names and periodic:
        raise ValueError(
            "cannot write dipole: that of a periodic structure depends on the choice of its "
            "images, and is given for molecules only"
        )
    if "stress" in names and not bulk:
        raise ValueError(
            "cannot write stress: it is given for structures that are periodic in all directions"
        )


def require_of_state(names: Sequence[str], state: MDState) -> None:
    """Refuse results that the model of a run does not give for its structures.

    Args:
        names: of `RESULTS`.
        state: of the run.

    Raises:
        ValueError: see `require_results`; or version 0.1 began the run, and stress is asked for.
    """
    pbc = state.system.pbc
    require_results(
        names,
        predicts_charges=state.charges is not None,
        periodic=bool(pbc.any()),
        bulk=bool(pbc.all()) and state.strain_gradient is not None,
    )


def results_of(state: MDState, names: Sequence[str]) -> dict[str, Any]:
    """Return results of a single structure in ASE's form.

    They are charges [n_atoms] e, dipole [3] e Å and stress [6] eV/Å³, of the potential only.

    Args:
        state: of one structure, with charges.
        names: of `RESULTS`.
    """
    found: dict[str, Any] = {}
    if "charges" in names and state.charges is not None:
        found["charges"] = state.charges.double().cpu().numpy()
    if "dipole" in names:
        found["dipole"] = state.dipole[0].cpu().numpy()
    if "stress" in names:
        found["stress"] = full_3x3_to_voigt_6_stress(state.stress[0].cpu().numpy())
    return found
