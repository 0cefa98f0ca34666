"""Reproducible rounding of trainings on CUDA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def ordered_sums(device: torch.device) -> Iterator[None]:
    """Make sums over the edges of an atom on CUDA use a fixed order, for all code inside.

    By default CUDA adds in the order in which its threads arrive, in `index_add` and in the
    gradient of a gather, so that two runs rarely end with the same bits. This enables PyTorch's
    deterministic versions of both; on an H100 a training needs no others
    (`tests/train/test_cuda.py`). Other devices are not changed: a CPU adds in order anyway.

    Args:
        device: device of the training.
    """
    if device.type != "cuda":
        yield
        return
    strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property, which is not annotated
    fills = memory.fill_uninitialized_memory
    # "warn only", because PyTorch refuses matrix products unless an environment variable was set
    # before the first one of the process; a single stream, as here, needs none
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # costs time, for debugging only
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s)Deterministic behavior.*CuBLAS")
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)
        memory.fill_uninitialized_memory = fills
