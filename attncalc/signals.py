"""Delay of Ctrl-C and SIGTERM until something is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def finished_before_ctrl_c() -> Iterator[list[Any]]:
    """Delay Ctrl-C, and SIGTERM where Python handles it, until the block is done.

    No frame is cut off within a number, and no error reaches HDF5 from a signal.

    Yields:
        What waits: empty until a signal has come.
    """
    waiting: list[Any] = []
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield waiting
        return
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        # others end the process, or C code has put them there
        if callable(handler := signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda *what: waiting.append(what))
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            handlers[waiting[0][0]](*waiting[0])
