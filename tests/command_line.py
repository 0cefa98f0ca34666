"""The command line as its tests call it, and small inputs for it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner, Result

from attncalc.cli import main

ETHANOL = "so3krates-ethanol"
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


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Of a process that goes on, however slow the machine."""
    deadline = time.monotonic() + 300
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
