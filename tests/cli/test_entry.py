"""Help, the version, and the real program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ETHANOL, attncalc, succeeds

from attncalc.cli import main
from attncalc.cli.entry import LOADING

COMMANDS = [
    ["relax"],
    ["md"],
    ["lammps"],
    ["distill"],
    ["sample"],
    ["label"],
    ["train"],
    ["eval"],
    ["export"],
    ["spectrum"],
    ["verify"],
    ["models"],
    ["calibrate"],
    ["convert", "so3krates"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: list[str]) -> None:
    result = attncalc(*command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert f"Example: attncalc {' '.join(command)}" in text
    for option, default in re.findall(r"(--[a-z-]+) .*?\[default: ([^\]]+)\]", text):
        assert default, option
    assert attncalc(*command, "-h").output == result.output


def test_help_shows_defaults() -> None:
    text = " ".join(attncalc("md", "--help").output.split())
    for shown in ("300.0", "10000", "0.5", "0.01", "nvt", "auto"):
        assert f"[default: {shown}]" in text
    assert "NAME.md.h5md" in text


def test_all_commands_are_known_to_the_group() -> None:
    listed = attncalc("--help").output
    assert set(main.commands) == {command[0] for command in COMMANDS}
    for command in main.commands:
        assert re.search(rf"^  {command} +\S", listed, re.MULTILINE), command


def test_the_list_cuts_no_line() -> None:
    assert "..." not in attncalc("--help").output.partition("Commands:")[2]


def test_the_list_waits_for_no_command() -> None:
    code = "import sys; from attncalc.cli import main; main(['--help'], standalone_mode=False)\n"
    code += "print(sorted({'torch', 'numpy', 'ase', 'matplotlib'} & sys.modules.keys()))"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert shown.splitlines()[-1] == "[]"


def test_a_first_energy_waits_for_no_compiler_of_pytorch() -> None:
    """Importing it takes longer than all else: 2 of 5.5 s."""
    code = "import sys; from ase.build import molecule; from attncalc import AttnCalculator\n"
    code += "atoms = molecule('H2O'); atoms.calc = AttnCalculator(); atoms.get_forces()\n"
    code += "print(sorted({'torch._dynamo', 'sympy', 'e3nn'} & sys.modules.keys()))"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert shown.splitlines()[-1] == "[]"


def test_version() -> None:
    assert re.fullmatch(r"attncalc, version \d+\.\d+\.\d+\S*\n", succeeds("--version"))


def test_misspelt_options_are_usage_errors() -> None:
    result = attncalc("relax", "a.xyz", "--modle", ETHANOL)
    assert result.exit_code == 2
    assert "--modle" in result.stderr
    assert attncalc("relax", "a.xyz", "--model").exit_code == 2, "--model takes a name"
    assert attncalc("relaxx").exit_code == 2


def program(*arguments: str) -> subprocess.CompletedProcess:
    script = Path(sys.executable).with_name("attncalc")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "attncalc"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_console_script(ethanol_file: str) -> None:
    done = program("relax", ethanol_file, "--model", ETHANOL, "--fmax", "0.05", "-o", "out.xyz")
    assert done.returncode == 0, done.stderr
    assert "wrote out.xyz" in done.stdout
    # in a new clone its loops are compiled, which is announced
    said = [line for line in done.stderr.splitlines() if not line.startswith("compiling loops")]
    assert said == [LOADING], "neither progress bar nor warnings in a pipe"
