"""Messages about atoms that are outside the training environments of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

# novelty above which an atom is outside
OUTSIDE = 1.0
OUTSIDE_TEXT = "outside the training data"


class OutsideAtom(NamedTuple):
    """Atom of the largest novelty, if it is outside the training environments.

    Attributes:
        atom: its number, from 0 on.
        symbol: of its element.
        novelty: above 1.
    """

    atom: int
    symbol: str
    novelty: float

    def __str__(self) -> str:
        value = f"{self.novelty:.3g}"
        if float(value) <= OUTSIDE:  # "novelty 1, 1 is the edge" contradicts itself
            value = f"just above {value}"
        return (
            f"{OUTSIDE_TEXT}: atom {self.atom} ({self.symbol}) has novelty "
            f"{value}, 1 is the edge; energy and forces may be wrong"
        )


def outside_atom(
    novelty: NDArray[np.float64] | None, atomic_numbers: Sequence[int] | NDArray[np.int64]
) -> OutsideAtom | None:
    """Find the atom that is furthest outside; None if all are inside, or novelty is not known.

    Args:
        novelty: [n_atoms] of one structure.
        atomic_numbers: [n_atoms].
    """
    if novelty is None or not len(novelty):
        return None
    atom = int(novelty.argmax())
    value = float(novelty[atom])
    if value <= OUTSIDE:  # NaN is not
        return None
    return OutsideAtom(atom, chemical_symbols[int(atomic_numbers[atom])], value)
