"""Ctrl-C and SIGTERM: delayed until something is done, and recognised wherever they come."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


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


@contextmanager
def ctrl_c_in_loops() -> Iterator[None]:
    """Raise KeyboardInterrupt where Ctrl-C came while a compiled loop handed its arrays over.

    Numba does that by a little Python code, and makes a SystemError of what is raised there.
    """
    try:
        yield
    except SystemError as error:
        raise_ctrl_c(error)


def raise_ctrl_c(error: SystemError) -> NoReturn:
    """Raise KeyboardInterrupt if that is what the error was made of, else the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        cause = cause.__cause__
    raise error
