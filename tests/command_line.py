"""The command line as its tests call it, and small inputs for it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
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

ETHANOL = "so3krates-ethanol"
SECONDS_TO_WAIT = 300  # for another process, however slow the machine
COPPER = str(Path(__file__).parent / "models" / "cu-emt.safetensors")


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


def says_all_to(file: Path) -> None:
    """Let all that this process, a fork, writes to a terminal go to a file, as of a new process.

    Nothing is caught by pytest, and coverage, which would not be saved, is not measured.
    """
    sys.settrace(None)
    for number in (1, 2):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
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
