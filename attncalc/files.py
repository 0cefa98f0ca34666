"""Files that a program is about to write."""

from __future__ import annotations

from pathlib import Path


def refuse_existing(*paths: Path) -> None:
    """What is there stays as it is.

    Raises:
        FileExistsError: one of them exists; the message names it.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name, nothing is overwritten")
