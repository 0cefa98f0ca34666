"""Owners of ghosts; messages themselves are tested on processes, by `test_lammps.py`."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from attncalc.plugins.halo import Owners


class OneProcess:
    """A communicator with one process."""

    size = 1

    def alltoall(self, values: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        return values


def test_two_atoms_with_one_id_are_refused():
    none = np.zeros(0, np.int64)
    Owners(OneProcess(), np.array([5, 3, 4]), none)
    with pytest.raises(ValueError, match="several atoms have the id 3"):
        Owners(OneProcess(), np.array([5, 3, 4, 3]), none)
