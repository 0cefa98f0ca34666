"""Commands of attncalc in children of one process that has imported everything.

A start of Python with torch takes seconds, a fork some milliseconds: no part of the drill, but what
makes a hundred kills affordable.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, Self

TESTS = Path(__file__).resolve().parents[1]
# s between two checkpoints or two writes of a trajectory, so that kills fall between many of them
OFTEN = 0.05
# variable of the environment: if set, each PNG is one pixel, written as others are
DRAW_NONE = "DRILL_DRAWS_NONE"


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: of the process; negative: the signal that ended it.
        output, error: what it wrote.
        seconds: how long it took.
    """

    status: int
    output: str
    error: str
    seconds: float


class Forked:
    """A process from which commands are forked, until the end of a `with` block."""

    def __enter__(self) -> Self:
        path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drill.forked"],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, *arguments: object, folder: Path | str = ".", **options: Any) -> Ended:
        """Run `attncalc` with these arguments.

        Args:
            arguments: of the command line; or "batch", for `batch` below.
            folder: to run in.
            options: kill_after, s until kill -9; limit, bytes of the largest file; first_only, to
                kill it where it writes the first frame.
        """
        order = {
            "arguments": [str(one) for one in arguments],
            "folder": str(Path(folder).resolve()),
            **options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


def batch(structures: str, model: str, steps: str, name: str) -> None:
    """Begin or go on with a batch by the Python interface."""
    from ase import units
    from ase.io import read

    from attncalc import System, load, md

    potential, n_steps = load(model), int(steps)
    path = Path(name)
    files = [
        md.H5MDWriter(path, every=5),
        md.Log(path.with_suffix(".csv"), every=5, trajectory=path),
        md.Checkpoint(path.with_suffix(".ckpt"), every=5),
    ]
    if path.with_suffix(".ckpt").exists():
        integrator, state, _ = md.load_checkpoint(path.with_suffix(".ckpt"))
        todo = n_steps - state.step
        md.run(integrator, potential, state, todo, callbacks=files)
        return
    langevin = md.Langevin(0.5 * units.fs, 300.0, 0.01 / units.fs)
    state = langevin.init(potential, System.from_ase(read(structures, ":")), seed=3)
    md.run(langevin, potential, state, n_steps, callbacks=files)


def _child(order: dict[str, Any]) -> None:
    """Run a command; the interpreter ends after it as any other does."""
    import click

    from attncalc.cli import main
    from attncalc.md import h5md_writer, job

    job.SECONDS_BETWEEN_CHECKPOINTS = h5md_writer.BUFFER_SECONDS = OFTEN
    h5md_writer.LARGEST_SHARE = 1.0
    os.chdir(order["folder"])
    if (limit := order.get("limit")) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if order.get("first_only"):  # the checkpoint of the first state, and nothing else
        h5md_writer.H5MDWriter.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    first, *others = order["arguments"]
    sys.argv = ["attncalc", first, *others]
    if first == "batch":
        try:
            batch(*others)
        except (OSError, ValueError) as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        sys.exit(0)
    main()


def _import_the_rest() -> None:
    """Take the steps that load what a first step loads, and forget them."""
    from ase.build import bulk

    from attncalc.cli import main
    from drill.files import COPPER

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        bulk("Cu", cubic=True).write("cu.xyz")
        with suppress(SystemExit), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            main(["md", "cu.xyz", "--model", COPPER, "--steps", "2"])


def _serve() -> None:
    # without a GPU it is of no use, and what is frozen of it would be called a leak on stderr
    sys.modules["triton"] = None  # type: ignore[assignment]

    import torch

    torch.set_num_threads(1)
    import attncalc.cli.relax
    import attncalc.train.training  # noqa: F401

    if os.environ.get(DRAW_NONE):
        from matplotlib.figure import Figure
        from pictures import save

        Figure.savefig = save  # type: ignore[method-assign]
    _import_the_rest()
    gc.collect()
    gc.freeze()  # a child that ends need not visit, and so copy, all that was imported
    for text in sys.stdin:
        order = json.loads(text)
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as error:
            began = time.monotonic()
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2(error.fileno(), 2)
                _child(order)
                sys.exit(0)
            status = _wait(child, began, order.get("kill_after"))
            seconds = time.monotonic() - began
            for file in (output, error):
                file.seek(0)
            said = (output.read(), error.read())
        print(json.dumps([os.waitstatus_to_exitcode(status), *said, seconds]), flush=True)


def _wait(child: int, began: float, kill_after: float | None) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if kill_after is not None and time.monotonic() - began >= kill_after:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)


if __name__ == "__main__":
    _serve()
