"""`PlainlyPickled`: base of objects that `multiprocessing` pickles as `pickle` does.

PyTorch tells `multiprocessing` to move tensors into shared memory instead of copying them: also the
tensors of the sender, whose former memory is freed. NumPy arrays that share this memory with a
tensor, such as those that compiled engines and neighbour lists keep, are then garbage.
"""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any


class PlainlyPickled:
    """Base of classes whose objects can be sent to other processes."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ForkingPickler.register(cls, _plainly)


def _plainly(sent: PlainlyPickled) -> tuple[Any, tuple[bytes]]:
    return pickle.loads, (pickle.dumps(sent, pickle.HIGHEST_PROTOCOL),)
