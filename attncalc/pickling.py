"""`PlainlyPickled`: base of objects that `multiprocessing` pickles as `pickle` does.

PyTorch tells `multiprocessing` to move tensors into shared memory instead of copying them: also the
tensors of the sender, whose former memory is freed. NumPy arrays that share this memory with a
tensor, such as those that compiled engines and neighbour lists keep, are then garbage.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any, Self, TypeVar

_Kind = TypeVar("_Kind", bound="PlainlyPickled")


class PlainlyPickled:
    """Base of a class that `multiprocessing` pickles as `pickle` does."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a copy."""
        return dict(vars(self))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return bytes by plain pickle: sending an object leaves the original as it is."""
        return _unpickled, (type(self), pickle.dumps(self.__getstate__(), pickle.HIGHEST_PROTOCOL))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __copy__(self) -> Self:
        return _with_state(type(self), self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = object.__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


def _unpickled(kind: type[PlainlyPickled], state: bytes) -> PlainlyPickled:
    return _with_state(kind, pickle.loads(state))


def _with_state(kind: type[_Kind], state: dict[str, Any]) -> _Kind:
    twin = object.__new__(kind)
    twin.__setstate__(state)
    return twin
