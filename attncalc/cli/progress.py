"""Progress bar of the commands."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from attncalc.cli.output import is_quiet

log = logging.getLogger(__name__)

# s between two lines where there is no terminal
LINE_EVERY = 60.0


class _LogLines(io.TextIOBase):
    """A file for tqdm that logs what would be drawn."""

    def write(self, text: str) -> int:
        if line := text.strip():
            log.info("%s", line)
        return len(text)


@contextmanager
def progress_bar(total: int | None, unit: str, *, done: int = 0) -> Iterator[tqdm]:
    """Show a bar with rate and time left on a terminal; elsewhere print them once a minute.

    With --quiet there is neither. What was `done` before takes no part in the rate.
    """
    is_terminal = sys.stderr.isatty()
    lines = {
        "file": _LogLines(),
        "mininterval": LINE_EVERY,
        "delay": LINE_EVERY,
        "bar_format": "{n_fmt} of {total_fmt}{unit}s, {rate_fmt}, {remaining} left{postfix}",
    }
    with tqdm(
        total=total,
        initial=done,
        unit=f" {unit}",
        disable=is_quiet(),
        leave=False,
        miniters=0,  # steps that take a second each are shown as they come
        **({"dynamic_ncols": True} if is_terminal else lines),
    ) as bar:
        yield bar
