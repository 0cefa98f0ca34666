"""docs/architecture.md agrees with the code: modules, imports, and the path of a call."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from ase import units
from ase.build import molecule
from test_layers import EXEMPT, LAYER_OF, PACKAGE, REPOSITORY, STEPS

from attncalc import AttnCalculator, Evaluator, System, load, md

PAGE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
PATHS = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
HOP = re.compile(r"^\d+\. `([\w/]+\.py)`(?: `([\w.]+)`)?( \(compiled\))?", flags=re.MULTILINE)
COUNTED = re.compile(r"(\d+) hops.*?(\d+) functions.*?(\d+) of them", flags=re.DOTALL)


@dataclass
class Trace:
    """Python functions of the package that a call enters.

    Attributes:
        hops: file -> the function of it that is entered first.
        functions: file and name of all.
        from_elsewhere: those that a function of another file calls.
    """

    hops: dict[str, str] = field(default_factory=dict)
    functions: set[tuple[str, str]] = field(default_factory=set)
    from_elsewhere: set[tuple[str, str]] = field(default_factory=set)

    def of(self, call: Callable[[], Any]) -> Trace:
        def note(frame: FrameType, event: str, argument: object) -> None:
            del argument
            file, name = file_of(frame), frame.f_code.co_qualname
            # compiled loops have no caller, and whether they are seen here is up to Numba
            if event != "call" or not file or frame.f_back is None or name.endswith(">"):
                return
            self.hops.setdefault(file, name)
            self.functions.add((file, name))
            if (caller := caller_of(frame)) and caller != file:
                self.from_elsewhere.add((file, name))

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(before)
        return self


def file_of(frame: FrameType) -> str:
    """Its file in the package; "" outside."""
    file = Path(frame.f_code.co_filename)
    return file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else ""


def caller_of(frame: FrameType) -> str:
    """The file of the package that it is called from, by way of others perhaps."""
    above = frame.f_back
    while above is not None and not file_of(above):
        above = above.f_back
    return "" if above is None else file_of(above)


def of_a_calculation() -> Trace:
    atoms = molecule("CH3CH2OH")
    calc = AttnCalculator("so3krates-ethanol", device="cpu")
    for _ in range(3):
        atoms.rattle(1e-3)
        calc.calculate(atoms, ["forces"], ["positions"])
    atoms.positions[0, 0] += 1e-3
    return Trace().of(lambda: calc.calculate(atoms, ["forces"], ["positions"]))


def of_a_langevin_step() -> Trace:
    langevin = md.Langevin(0.5 * units.fs, 300.0, 0.01 / units.fs)
    evaluator = Evaluator(load("so3krates-ethanol"))
    state = langevin.init(evaluator, System.from_ase(molecule("CH3CH2OH")), seed=0)
    state = md.run(langevin, evaluator, state, 3)
    return Trace().of(lambda: langevin.step(state, evaluator))


def test_the_modules_are_those_of_the_package():
    rows = re.findall(r"^\| (\d) \| `([\w/.]+)` \| .+ \|$", PAGE, flags=re.MULTILINE)
    drawn = {module.removesuffix("/").removesuffix(".py"): int(layer) for layer, module in rows}
    assert drawn == LAYER_OF
    assert len(drawn) == len(rows)
    assert [int(layer) for layer, _ in rows] == sorted(int(layer) for layer, _ in rows)
    there = {f"{file.name}" for file in PACKAGE.glob("*.py") if file.stem not in EXEMPT}
    there |= {f"{file.parent.name}/" for file in PACKAGE.glob("*/__init__.py")}
    assert {module for _, module in rows} == there


def test_steps_within_a_layer_are_those_that_imports_may_take():
    drawn = re.findall(r"`(\w+)` → `(\w+)`", PAGE)
    assert set(drawn) == STEPS
    assert len(drawn) == len(STEPS)


@pytest.mark.parametrize(
    ("path", "trace", "goal"),
    [(PATHS[0], of_a_calculation, 16), (PATHS[1], of_a_langevin_step, 24)],
    ids=["calculate", "Langevin step"],
)
def test_the_path_is_the_one_that_runs(path: str, trace: Callable[[], Trace], goal: int):
    listed, found = HOP.findall(path), trace()
    in_python = {file: name for file, name, is_compiled in listed if not is_compiled}
    assert list(in_python) == list(found.hops)
    assert {file: name for file, name in in_python.items() if name}.items() <= found.hops.items()
    for file, name, is_compiled in listed:
        if is_compiled:
            source = (PACKAGE / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", source, flags=re.MULTILINE), f"{name} in {file}"
    match = COUNTED.search(path)
    assert match is not None
    hops, functions, from_elsewhere = map(int, match.groups())
    assert hops == len(listed) < goal
    # a number or so may change without anything to say about it
    assert functions == pytest.approx(len(found.functions), abs=5)
    assert from_elsewhere == pytest.approx(len(found.from_elsewhere), abs=3)


def test_files_exist():
    for page in ("architecture.md", "extending.md"):
        text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
        for target in re.findall(r"`((?:attncalc|tests)/[\w/]+\.\w+)`", text):
            assert (REPOSITORY / target).exists(), target
