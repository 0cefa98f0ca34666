"""The scripts of docs/doors.md run as shown, each in an empty folder."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/doors.md").read_text(encoding="utf-8")
# (heading, script)
SCRIPTS = re.findall(r"^#+ ([^\n]+)\n(?:(?!^#+ ).)*?```python\n(.*?)```", PAGE, flags=re.M | re.S)
NEEDS = {"OpenMM": "openmm", "Molecules among a force field": "openmm"}
NEEDS |= {"OpenMM-ML": "openmmml", "i-PI": "ipi", "TorchSim": "torch_sim"}
NEEDS |= {"ALCHEMI Toolkit": "nvalchemi", "Enhanced sampling": "attncalc"}


def test_every_script_has_a_heading_of_its_own():
    assert [heading for heading, _ in SCRIPTS] == ["ASE", *NEEDS]
    assert len(SCRIPTS) == PAGE.count("```python")


@pytest.mark.parametrize(("heading", "script"), SCRIPTS, ids=[heading for heading, _ in SCRIPTS])
def test_a_script_runs_as_shown(heading, script, tmp_path):
    package = NEEDS.get(heading, "ase")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, see docs/doors.md")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\d\.\d", done.stdout), "says a number"
