"""The progress bar of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(total: int | None, unit: str) -> Iterator[tqdm]:
    """A progress bar with rate and time left on a terminal, none in a pipe."""
    with tqdm(
        total=total,
        unit=f" {unit}",
        disable=None,
        leave=False,
        dynamic_ncols=True,
        miniters=0,  # steps that take a second each are shown as they come
    ) as bar:
        yield bar
