"""The one place from which kernels are launched."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the current stream.

    Args:
        kernel: made by `triton.jit`.
        grid: how many programs.
        arguments: tensors and numbers.
        constants: what the kernel is compiled for; `num_warps` among them.
    """
    if 0 not in grid:
        kernel[grid](*arguments, enable_fp_fusion=True, **constants)
