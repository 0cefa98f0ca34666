"""Ctrl-C and SIGTERM: delayed until a block is done, and recognised inside compiled loops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def finished_before_ctrl_c() -> Iterator[list[Any]]:
    """Delay Ctrl-C, and SIGTERM where Python handles it, until the block is done.

    So no frame is written in part, and no signal raises an error inside HDF5.

    Yields:
        Pending signals: an empty list until a signal has come.
    """
    waiting: list[Any] = []
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield waiting
        return
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        # other handlers end the process, or were set by C code
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
    """Raise KeyboardInterrupt if Ctrl-C was pressed while a compiled loop returned its arrays.

    Numba runs some Python code for that, and turns an exception in it into a SystemError.
    """
    try:
        yield
    except SystemError as error:
        raise_ctrl_c(error)


def raise_ctrl_c(error: SystemError) -> NoReturn:
    """Raise KeyboardInterrupt if it is the cause of the error, else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        cause = cause.__cause__
    raise error
