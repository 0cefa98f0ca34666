"""What one trial of a drill says."""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
    """One attempt to break a promise.

    Attributes:
        kind: row of the table that it counts in, e.g. "md, batch: killed and resumed".
        failure: what went wrong, and how to repeat it; empty where the promise held.
    """

    kind: str
    failure: str = ""
