"""`Lookout`: a word about atoms outside the training, in programs that do not ask for it."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from attncalc.calculator import LOOK_EVERY
from attncalc.novelty import outsider
from attncalc.result import Result
from attncalc.system import System


class Lookout:
    """Warns once where an atom is outside what the model was trained on.

    It looks at the first result and at every twentieth after it.
    """

    def __init__(self) -> None:
        self._n_calls, self._has_warned = 0, False

    def __call__(
        self, system: System, result: Result, ids: NDArray[np.int64] | None = None
    ) -> None:
        """Look at a result, where it is time.

        Args:
            system: of which it is.
            result: the last one.
            ids: [n_atoms], by which the program names atoms; None: from 0 on.
        """
        is_time = self._n_calls % LOOK_EVERY == 0
        self._n_calls += 1
        if self._has_warned or not is_time:
            return
        if found := outsider(result.novelty, system.atomic_numbers.cpu().numpy()):
            self._has_warned = True
            found = found if ids is None else found._replace(atom=int(ids[found.atom]))
            warnings.warn(str(found), stacklevel=2)
