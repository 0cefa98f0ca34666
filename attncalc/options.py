"""Checks of settings; each message names the one that is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LARGEST_CUTOFF = 100.0  # Å


def positive(name: str, value: Any) -> None:
    """Refuse anything but a finite number above zero.

    Raises:
        ValueError: it is something else.
    """
    if not _is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if not is_finite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def finite_number(name: str, value: Any) -> None:
    """Refuse anything but a finite number.

    Raises:
        ValueError: it is something else.
    """
    if not _is_number(value) or not is_finite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return True for a number that is neither infinite, nor NaN, nor beyond any float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def cutoff_radius(value: Any) -> None:
    """Refuse anything but a usable cutoff; the number of pairs grows with its cube.

    Raises:
        ValueError: it is not a positive number, or more than LARGEST_CUTOFF.
    """
    positive("cutoff", value)
    if value > LARGEST_CUTOFF:
        raise ValueError(f"cutoff must be at most {LARGEST_CUTOFF:g} Å, got {value:g}")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse anything but an integer of `least` or more, and of `most` or less.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and int(value) > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Refuse anything but one of the given words.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def true_or_false(name: str, value: Any) -> None:
    """Refuse anything but a bool.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def degrees_of_width(
    degrees: Sequence[Any], num_features: int, num_heads: int, *, least: int, most: int
) -> None:
    """Refuse degrees that are not ascending integers, and features that do not divide among them.

    Args:
        degrees: degrees of spherical harmonics.
        num_features: divisible by the number of degrees and by `num_heads`.
        num_heads: number of attention heads.
        least, most: smallest and largest degree that is allowed.

    Raises:
        ValueError: one of these conditions does not hold.
    """
    for degree in degrees:
        whole_number("degrees", degree, least)
        if degree > most:
            raise ValueError(f"degrees must be at most {most}, got {degree}")
    if not degrees or list(degrees) != sorted(set(degrees)):
        raise ValueError(f"degrees must be ascending and not empty, got {degrees}")
    for name, parts in (("num_heads", num_heads), ("len(degrees)", len(degrees))):
        if num_features % parts:
            raise ValueError(
                f"num_features must be divisible by {name} = {parts}, got {num_features}"
            )


def option_of(key: str) -> str:
    """Return the name of the option that a file stores under this key, for messages."""
    return {"teacher": "oracle"}.get(key, key)


def require_equal(mine: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    """Refuse to continue with other settings than those that a folder was begun with.

    Raises:
        ValueError: a setting differs; the message names the first one.
    """
    for key in {**mine, **theirs}:
        if mine.get(key) != theirs.get(key):
            raise ValueError(
                f"{folder} was begun with {option_of(key)} {theirs.get(key)}, not "
                f"{mine.get(key)}: choose another output, or use --overwrite"
            )
