"""Errors of all commands: one line, nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import COPPER, ETHANOL, attncalc, fails, files

from attncalc import model_file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("relax", "no.xyz", "--model", ETHANOL), "no such file: no.xyz"),
        (("md", "no.xyz", "--model", ETHANOL), "no such file: no.xyz"),
        (("verify", ETHANOL, "--structure", "no.xyz"), "no such file: no.xyz"),
        (("relax", "", "--model", ETHANOL), "^Error: no such file: ''$"),
        (("relax", ".", "--model", ETHANOL), r"^Error: \. is a folder: name a file in it$"),
        (
            ("relax", "/dev/null", "--model", ETHANOL),
            "^Error: /dev/null is a pipe or device",
        ),
        (("md", "", "--model", ETHANOL), "^Error: no such file: ''$"),
        (
            ("md", "..", "--model", ETHANOL, "--integrator", "ase"),
            r"^Error: \.\. is a folder",
        ),
        (("relax", "bad.xyz", "--model", ETHANOL), "bad.xyz: not a structure file that ASE"),
        (("relax", "empty.xyz", "--model", ETHANOL), "empty.xyz: not a structure file that ASE"),
        (("relax", "ethanol.xyz", "--model", "ethnol"), "shipped: .*so3krates-ethanol"),
        (("verify", "ethnol"), "no model file and no shipped model 'ethnol'; shipped: "),
        (("eval", ETHANOL, "no.xyz"), "no.xyz"),
        (("relax", "ethanol.xyz", "--model", COPPER), "not trained on H C O; its elements are: Cu"),
        (("md", "ethanol.xyz", "--model", COPPER), "not trained on H C O; its elements are: Cu"),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "--timestep", "-1"),
            "timestep must be positive",
        ),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "-o", "a.h5"),
            "a.h5: a trajectory must end in .h5md, .xyz, .extxyz or .traj",
        ),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "--integrator", "ase", "-o", "a.h5md"),
            "a.h5md: a trajectory of nvt, by ASE, must end in .xyz, .extxyz or .traj",
        ),
        (("md", "ethanol.xyz", "--model", ETHANOL, "-o", "no/a.xyz"), "no such folder: no"),
        (
            ("md", "ethanol.xyz", "--model", ETHANOL, "--ensemble", "npt"),
            '"npt" needs a structure that is periodic',
        ),
        (("relax", "ethanol.xyz", "--model", ETHANOL, "--device", "banana"), "device must be"),
        (("verify", ETHANOL, "--device", "cuda:77"), "device 'cuda:77' does not exist"),
    ],
    ids=lambda value: " ".join(Path(v).name for v in value) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line(arguments: tuple, message: str, ethanol_file: str) -> None:
    Path("bad.xyz").write_text("hello\nworld\n")
    Path("empty.xyz").write_text("")
    before = files()
    assert re.search(message, fails(*arguments))
    assert files() == before, "a failed command leaves nothing behind"


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_file, "shipped_models", interrupted)
    result = attncalc("models")
    assert result.exit_code == 130
    assert result.stderr == "stopped\n"


def test_interrupt_of_a_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr(model_file, "shipped_models", interrupted)
    result = attncalc("models")
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(model_file, "shipped_models", bug)
    assert isinstance(attncalc("models").exception, KeyError)
