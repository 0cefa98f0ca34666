"""States of dynamics, compared."""

import torch

from attncalc import System
from attncalc.md import MDState


def assert_equal(one: MDState, other: MDState) -> None:
    """To the last bit."""
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if isinstance(value, System):
            for part, mine in vars(value).items():
                assert torch.equal(mine, getattr(theirs, part)), part
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs), name
        else:
            assert value == theirs, name
