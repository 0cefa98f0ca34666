"""Segment operations and the singular points of the theory, handled here once.

All divisions by a length and reductions over possibly empty sets of neighbours use this file, so
that networks and pair terms need no special cases.
"""

import copy
import functools
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def segment_sum(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    """Sum rows of `values` that share an index; segments without a row are zero.

    Args:
        values: [n, ...].
        index: [n], integers in 0..n_segments-1.
        n_segments: number of rows of the result.

    Returns:
        [n_segments, ...] in the dtype of `values`.
    """
    if n_segments == 1 and values.is_cuda:  # in a fixed order there, unlike `index_add`
        return values.sum(0, keepdim=True)
    return values.new_zeros((n_segments, *values.shape[1:])).index_add(0, index, values)


def segment_max(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    """Return the largest of values [n] >= 0 with equal `index` [n], [n_segments]; 0 for none."""
    zeros = torch.zeros(n_segments, dtype=values.dtype, device=values.device)
    return zeros.scatter_reduce(0, index, values, "amax")


@functools.cache
def kept_tensor(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a cached float64 tensor, not to be changed: recorded steps read it in place."""
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def safe_norm(vectors: Tensor) -> Tensor:
    """Return the norm along the last dimension; its gradient at the zero vector is 0, not NaN.

    Args:
        vectors: [..., 3] or any last dimension.

    Returns:
        [...], the Euclidean norm.
    """
    squared = (vectors * vectors).sum(-1)
    is_zero = squared == 0
    # the inner `where` keeps sqrt away from 0: masking only the result would leave 0 * inf = NaN
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).sqrt())


class ModuleWithConstants(nn.Module):
    """Module whose constants keep their precision under changes of dtype.

    A buffer cast to float32 and back to float64 keeps the rounding of float32. Constants registered
    here are stored in float64 beside the buffer, and every cast starts from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Add a buffer that is not saved; `value` must be float64."""
        self._exact[name] = value
        self.register_buffer(name, value.clone(), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for name, exact in self._exact.items():
            buffer = getattr(self, name)  # has the new device and dtype
            setattr(self, name, exact.to(buffer.device, buffer.dtype))
        return self


def with_modules(module: Module, **replaced: nn.Module) -> Module:
    """Return a copy of a module with some sub-modules replaced; everything else is shared."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **replaced}
    return twin
