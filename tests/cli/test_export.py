"""attncalc export: the frames of a trajectory in other formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from command_line import COPPER, attncalc, fails, files, labelled, succeeds

from attncalc.md import read_h5md


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Five frames of two systems."""
    write("cu.extxyz", labelled(1))
    succeeds(
        *("md", "cu.extxyz", "--model", COPPER, "--replicas", 2, "--steps", 20, "--every", 5),
        *("-o", "run.h5md", "--quiet"),
    )
    return "run.h5md"


@pytest.mark.parametrize("name", ["out.xyz", "out.extxyz", "out.traj"])
def test_export_keeps_what_ase_knows(name: str, run: str) -> None:
    said = succeeds("export", run, "-o", name, "--system", 1)
    assert said == f"wrote {name} (5 frames of system 1 of 2; --system selects another)\n"
    expected = read_h5md(run, system=1)
    for ours, theirs in zip(read(name, ":"), expected, strict=True):
        np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-7)
        np.testing.assert_allclose(ours.get_momenta(), theirs.get_momenta(), atol=1e-7)
        np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-7)
        assert ours.get_potential_energy() == pytest.approx(theirs.get_potential_energy())
        assert np.allclose(ours.cell, theirs.cell)


@pytest.mark.parametrize(
    ("far", "fits"), [(-999.9, True), (-1500, False), (9990, True), (12000, False)]
)
def test_coordinates_that_pdb_has_no_room_for(far: float, fits: bool) -> None:
    atoms = bulk("Cu", cubic=True)  # ASE does not turn its cell
    atoms.positions += [far, 0, 0]
    write("far.extxyz", atoms)
    succeeds("md", "far.extxyz", "--model", COPPER, "--steps", 1, "-o", "far.h5md")
    if fits:
        succeeds("export", "far.h5md", "-o", "far.pdb")
        assert read("far.pdb", 0).positions[0, 0] == pytest.approx(far, abs=0.01)
        return
    said = fails("export", "far.h5md", "-o", "far.pdb")
    assert said == (
        "Error: PDB has no room for coordinates below -999.999 or above 9999.999 Å: choose .xyz or "
        ".traj"
    )
    assert "far.pdb" not in files()


def test_export_as_pdb(run: str) -> None:
    succeeds("export", run, "-o", "out.pdb", "--every", 2)
    frames = read("out.pdb", ":")
    assert len(frames) == 3
    for ours, theirs in zip(frames, read_h5md(run)[::2], strict=True):
        np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-3)
    text = Path("out.pdb").read_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("MODEL")] == list(
        "123"
    )
    assert text.count("CRYST1") == 1


def test_export_says_what_is_wrong(run: str) -> None:
    before = files()
    assert fails("export", run, "-o", "out.doc") == (
        "Error: out.doc: the file must end in .xyz, .extxyz, .traj, .pdb"
    )
    assert fails("export", run, "-o", "out.xyz", "--system", 2) == (
        "Error: run.h5md holds 2 systems, not number 2"
    )
    assert "run.csv: not a trajectory that attncalc wrote" in fails(
        "export", "run.csv", "-o", "a.xyz"
    )
    assert "no such file: no.h5md" in fails("export", "no.h5md", "-o", "out.xyz")
    assert "exists" in fails("export", run, "-o", "cu.extxyz")
    assert files() == before


def test_export_as_json_and_again(run: str) -> None:
    arguments = ("export", run, "-o", "out.xyz", "--every", 4)
    found = json.loads(attncalc(*arguments, "--json").stdout)
    assert found == {"output": "out.xyz", "frames": 2, "system": 0}
    assert succeeds(*arguments, "--overwrite", "--quiet") == ""
