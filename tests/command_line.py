"""The command line as its tests call it, and small inputs for it."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner, Result

from attncalc.cli import main

TESTS = Path(__file__).resolve().parent
ETHANOL = "so3krates-ethanol"
SECONDS_TO_WAIT = 300  # for another process, however slow the machine
COPPER = str(TESTS / "models" / "cu-emt.safetensors")


def attncalc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeeds(*arguments: object) -> str:
    result = attncalc(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == "", "a pipe shows no progress bar"
    return result.stdout


def fails(*arguments: object) -> str:
    """The one line on stderr."""
    result = attncalc(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "a traceback"
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def files() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()}


def import_again(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """The next import of these packages runs their code; later tests have the modules of before."""
    for name, module in list(sys.modules.items()):
        if name.startswith(packages):
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:  # an import also sets a name there
                monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
    for name in [name for name in sys.modules if name.startswith(packages)]:
        monkeypatch.delitem(sys.modules, name)


class Forked:
    """A command in a process of its own, a fork of this one: nothing is imported again.

    Args:
        arguments: of the command.
        changed: called there first.
    """

    def __init__(self, *arguments: object, changed: Callable[[], object] = lambda: None) -> None:
        self._said, theirs = os.pipe()

        def run() -> None:
            # coverage would not be saved, and a signal that comes while it holds its lock leaves
            # the lock held: the process would wait for it for ever
            sys.settrace(None)
            with open(theirs, "w", buffering=1) as said, redirect_stderr(said):
                changed()
                main([str(argument) for argument in arguments])

        self._process = multiprocessing.get_context("fork").Process(target=run)
        self._process.start()
        os.close(theirs)
        self.pid, self.kill = self._process.pid, self._process.kill
        self.terminate = self._process.terminate

    def poll(self) -> int | None:
        """Exit status; None while it goes on."""
        return self._process.exitcode

    def ended(self) -> tuple[int, str]:
        """Exit status, and what it said on stderr; waits for the end, but not for ever."""
        in_time = ends_in_time(self._process)
        with open(self._said) as said:
            what = said.read()
        assert in_time, f"it went on for {SECONDS_TO_WAIT} s, and said: {what}"
        return self._process.exitcode, what


def python_forked(
    *arguments: object, folder: Path, changed: Callable[[], object] = lambda: None
) -> tuple[int, str, str]:
    """Run Python in a fork of this process, where nothing is imported again.

    What the program forgets to import may be there all the same: of a package that tests have
    imported, all modules are.

    Args:
        arguments: of Python: a script, "-m" and a module or "-c" and code; and those of this.
        folder: to run in.
        changed: called there first.

    Returns:
        Exit status, and what it said on stdout and stderr.
    """
    kind, *others = map(str, arguments)

    def run() -> None:
        says_all_to(said / "out", said / "err")
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
        first = "" if kind in ("-c", "-m") else str(Path(kind).parent)
        sys.path[:] = [first, *(path for path in sys.path if path != str(TESTS))]
        sys.argv = [kind, *others]
        changed()
        try:
            if kind == "-c":
                sys.argv = ["-c", *others[1:]]
                exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
            elif kind == "-m":
                sys.argv = others
                runpy.run_module(others[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(kind, run_name="__main__")
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        finally:
            ctypes.CDLL(None).fflush(None)  # a fork ends without what libraries in C still hold

    with tempfile.TemporaryDirectory() as name:
        said = Path(name)
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        in_time = ends_in_time(process)
        out, err = ((said / one).read_text() for one in ("out", "err"))
    assert in_time, f"it went on for {SECONDS_TO_WAIT} s, and said: {out}{err}"
    assert process.exitcode is not None
    return process.exitcode, out, err


def says_all_to(file: Path, errors: Path | None = None) -> None:
    """Let all that this process, a fork, writes to a terminal go to files, as of a new process.

    Nothing is caught by pytest, and coverage, which would not be saved, is not measured.

    Args:
        file: of stdout.
        errors: of stderr; the same if None.
    """
    sys.settrace(None)
    for number, path in ((1, file), (2, errors or file)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    logging.getLogger().handlers.clear()
    warnings.resetwarnings()
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", hidden)
    warnings.showwarning = lambda *what: sys.stderr.write(warnings.formatwarning(*what[:4]))


def ends_in_time(process: BaseProcess) -> bool:
    """Wait for the end, but not for ever; return False if the process was killed then."""
    process.join(SECONDS_TO_WAIT)
    if process.exitcode is not None:
        return True
    process.kill()
    process.join()
    return False


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """Let workers be forks of this process: what is imported here is not imported again.

    What they are given is pickled and read again, as it is for workers of users.
    """
    fork = multiprocessing.get_context("fork")

    class Context(type(fork)):
        def Process(self, *, args: tuple[object, ...] = (), **options: Any) -> BaseProcess:
            given = [one if isinstance(one, Connection) else copied(one) for one in args]
            return fork.Process(args=given, **options)

    context = Context()
    patch.setattr(multiprocessing, "get_context", lambda _: context)


def copied(one: object) -> object:
    return pickle.loads(pickle.dumps(one))


def wait_until(condition: Callable[[], bool], process: Forked | subprocess.Popen) -> None:
    """Wait for something that a process does."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def labelled(n: int) -> list[Atoms]:
    """Copper with EMT's labels, which the model was trained on."""
    frames = []
    for k in range(n):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.08, seed=k)
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames
