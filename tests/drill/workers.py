"""Attempts in processes of their own, with little memory and time: a crash or hang is a result."""

from __future__ import annotations

import json
import os
import select
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from damage import limits

# s, MB above what a worker has when it begins
SECONDS, MEGABYTES = 10, 2048


def attempts(n: int, attempt: Callable[[int], str]) -> Iterator[str]:
    """What each of n attempts says, "" if all went well, or how it ended.

    Args:
        n: how many.
        attempt: called with 0 .. n - 1, in a process that is forked off.
    """
    done = 0
    while done < n:
        reading, writing = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(reading)
            _work(range(done, n), attempt, writing)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            for said in _lines(pipe):
                yield json.loads(said)
                done += 1
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        status = os.waitpid(worker, 0)[1]
        if done < n:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            hung = number == signal.SIGKILL
            yield "it hung" if hung else f"the process ended (signal {number}, status {status})"
            done += 1


def _work(numbers: range, attempt: Callable[[int], str], writing: int) -> None:
    try:
        warnings.simplefilter("ignore")
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        for number in numbers:
            try:
                with limits(megabytes=MEGABYTES, seconds=SECONDS):
                    said = attempt(number)
            except BaseException as error:
                said = f"{type(error).__name__}: {str(error)[:300]}"
            os.write(writing, json.dumps(said).encode() + b"\n")
    finally:
        os._exit(0)


def _lines(pipe: Any) -> Iterator[bytes]:
    """Until the worker ends, or says nothing for twice its time."""
    kept = b""
    while select.select([pipe], [], [], 2 * SECONDS)[0]:
        content = pipe.read(1 << 16)
        if not content:
            return
        *lines, kept = (kept + content).split(b"\n")
        yield from lines


def refusal(error: Exception, *files: str) -> str:
    """What is wrong with a message about a file; "" if nothing is."""
    text = str(error)
    if not isinstance(error, ValueError | OSError):
        return f"a traceback: {type(error).__name__}: {text[:300]}"
    if not any(name in text for name in files):
        return f"the message does not name {files[0]}: {text[:300]!r}"
    if not text.isprintable() or len(text) > 700:
        return f"not one short line: {text[:300]!r}"
    return ""
