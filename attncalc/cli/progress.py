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
    """File for tqdm that writes the bar to the log."""

    def write(self, text: str) -> int:
        if line := text.strip():
            log.info("%s", line)
        return len(text)


@contextmanager
def progress_bar(total: int | None, unit: str, *, done: int = 0) -> Iterator[tqdm]:
    """Show a bar with rate and time left on a terminal; elsewhere log them once a minute.

    With --quiet nothing is shown. Units `done` before are not counted in the rate.
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
        miniters=0,  # show slow steps immediately
        **({"dynamic_ncols": True} if is_terminal else lines),
    ) as bar:
        yield bar
