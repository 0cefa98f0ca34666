"""Compilation of a training step in a second process while the first one trains.

Tracing and compiling a step takes one to twenty minutes. The second process does both and discards
its result. PyTorch's cache of compiled code remains on the disk, and from it the training process
makes the same step in a fraction of the time.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import torch

from attncalc.potential import Potential
from attncalc.text import one_line
from attncalc.train.step import Batch, Loss, Step, compiled, trace, traced_step

# the second process gives way to the training
NICENESS = 10
# s between two checks of the second process that the first one still runs
POLL_INTERVAL = 2.0


def compiled_step(potential: Potential, weights: Loss, examples: Sequence[Batch]) -> Step:
    """Trace and compile a step.

    Args:
        potential: potential to train; its parameters are read at every step.
        weights: weights of the loss.
        examples: batches; no two sizes of the first may agree (see `unequal_sizes`).

    Raises:
        RuntimeError: the compiler fails.
    """
    step = traced_step(potential, compiled(trace(potential, weights, examples[0])))
    for example in examples:
        step(example)  # compiles
    return step


class Compilation:
    """Compilation of a training step, in a second process once it is started.

    Args:
        make: function that returns the compiled step, or None if the step is not usable; it is slow
            until the second process has filled the cache.
        potential: potential to train.
        weights: weights of the loss.
        examples: batches, as in `compiled_step`.
    """

    def __init__(
        self,
        make: Callable[[], Step | None],
        potential: Potential,
        weights: Loss,
        examples: Sequence[Batch],
    ) -> None:
        self.make = make
        self._what = (potential, weights, examples, torch.get_num_threads())
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the second process."""
        # -P: nothing is imported from the current folder; the child has our import path
        places = [place or os.getcwd() for place in sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the training, which then stops this process
        )
        content = pickle.dumps(self._what)
        threading.Thread(target=_send, args=(self._process, content), daemon=True).start()

    @property
    def is_done(self) -> bool:
        """True if the second process has ended, with success or not."""
        return self._process is not None and self._process.poll() is not None

    @property
    def failure(self) -> str:
        """Reason for a failure of the second process; empty where there is none."""
        if self._process is None or not self._process.poll():
            return ""
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode(errors="replace").strip()
        return said or f"the compiling process ended with status {self._process.returncode}"

    def stop(self) -> None:
        """End the second process."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the compilers that it runs, too
            self._process.wait()


def _send(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(content)
    except OSError:  # the process has ended already
        return


def _fill_cache() -> None:
    """Compile the step that `Compilation.start` has sent to the standard input."""
    parent = int(sys.argv[1])

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_INTERVAL)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    # the output of compilers is discarded; the reason of a failure has a pipe of its own
    reason = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        potential, weights, examples, n_threads = pickle.load(sys.stdin.buffer)
        torch.set_num_threads(n_threads)  # part of what is compiled
        compiled_step(potential, weights, examples)
    except Exception as error:  # a compiler has many ways to fail
        reason.write(one_line(error))
        reason.close()
        sys.exit(1)


if __name__ == "__main__":
    _fill_cache()
