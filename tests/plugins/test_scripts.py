"""The scripts of docs/interfaces.md run as shown, each in an empty folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import python_forked

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/interfaces.md").read_text(encoding="utf-8")
# (heading, script)
SCRIPTS = re.findall(r"^#+ ([^\n]+)\n(?:(?!^#+ ).)*?```python\n(.*?)```", PAGE, flags=re.M | re.S)
NEEDS = {"OpenMM": "openmm", "Molecules among a force field": "openmm"}
NEEDS |= {"OpenMM-ML": "openmmml", "i-PI": "ipi", "TorchSim": "torch_sim"}
NEEDS |= {"ALCHEMI Toolkit": "nvalchemi", "Enhanced sampling": "attncalc"}
# modules that `import torch` and `import torch_sim` import
COME_ALONG = {"torch.autograd", "torch_sim.integrators", "torch_sim.io"}


def test_parts_that_a_script_does_not_import():
    assert parts_not_imported("import xml as x\nx.sax.parse(x.none)") == ["xml.sax"]
    assert parts_not_imported("import xml, xml.sax\nfrom ase import io\nxml.sax") == []
    assert parts_not_imported("from ase import io\nio.trajectory") == ["ase.io.trajectory"]


def test_every_script_has_a_heading_of_its_own():
    assert [heading for heading, _ in SCRIPTS] == ["ASE", *NEEDS]
    assert len(SCRIPTS) == PAGE.count("```python")


def run_anew(script: str, folder: Path) -> tuple[int, str, str]:
    """Run it as a user does; return exit status, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def run_forked(script: str, folder: Path) -> tuple[int, str, str]:
    # a fork has all parts of a package, a new process has no `ase.io` after `import ase`
    assert parts_not_imported(script) == []
    return python_forked("-c", script, folder=folder)


def parts_not_imported(script: str) -> list[str]:
    """Modules that a script reads as attributes of packages and does not import itself."""
    tree = ast.parse(script)
    names, imported = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {one.name for one in node.names}
            names |= {one.asname or one.name.split(".")[0]: one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{one.name}" for one in node.names}
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    read = {
        f"{names[node.value.id]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in names
    }
    return sorted(name for name in read - imported - COME_ALONG if is_module(name))


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # an attribute of something that is no package
        return False


@pytest.mark.parametrize(("heading", "script"), SCRIPTS, ids=[heading for heading, _ in SCRIPTS])
def test_a_script_runs_as_shown(heading, script, tmp_path):
    package = NEEDS.get(heading, "ase")
    if find_spec(package) is None:
        pytest.skip(f"needs {package}, see docs/interfaces.md")
    # the others would spend most of their time on imports
    status, out, err = (run_anew if heading == "ASE" else run_forked)(script, tmp_path)
    assert status == 0, err[-3000:]
    assert re.search(r"\d\.\d", out), "says a number"
