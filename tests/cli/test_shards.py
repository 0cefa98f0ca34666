"""Many structures in shards: the same output whoever works them off, and after any kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from command_line import COPPER, ETHANOL, attncalc, fails

from attncalc import AttnCalculator
from attncalc.data.shards import find_shards

REPOSITORY = Path(__file__).resolve().parents[2]
N, BAD = 300, {70: "atom 0 (Cu) and atom 1", 131: "Au", 199: "columns"}
RELAX = ("relax", "many.xyz", "--model", COPPER, "--fmax", "0.05")


def write_many(path: str = "many.xyz") -> None:
    """Rattled copper of 4 atoms; of three one cannot be moved, one is gold, one is no structure."""
    frames = []
    for k in range(N):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.05, seed=k)
        if k == 70:
            atoms.positions[1] = atoms.positions[0]
        if k == 131:
            atoms.numbers[2] = 79
        frames.append(atoms)
    write(path, frames)
    rows = Path(path).read_text().splitlines(keepends=True)
    rows[199 * 6 + 3] = "Cu 1.0 nonsense\n"
    Path(path).write_text("".join(rows))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[bytes, bytes]:
    """Output and failures of one worker that nobody interrupts."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("reference")
    os.chdir(folder)
    try:
        write_many()
        result = attncalc(*RELAX, "-o", "out.xyz", "--workers", 1, "--json")
    finally:
        os.chdir(before)
    assert result.exit_code == 1
    assert "3 of 300 structures failed: see out.failed.xyz" in result.stderr
    counts = json.loads(result.stdout)
    assert (counts["structures"], counts["failed"], counts["unfinished"]) == (N, 3, 0)
    assert {path.name for path in folder.iterdir()} == {"many.xyz", "out.xyz", "out.failed.xyz"}
    return (folder / "out.xyz").read_bytes(), (folder / "out.failed.xyz").read_bytes()


def outputs() -> tuple[bytes, bytes]:
    assert not Path("out.xyz.parts").exists()
    return Path("out.xyz").read_bytes(), Path("out.failed.xyz").read_bytes()


def test_structures_are_relaxed_and_in_order(reference):
    Path("out.xyz").write_bytes(reference[0])
    relaxed = read("out.xyz", ":")
    assert [atoms.info["structure"] for atoms in relaxed] == [k for k in range(N) if k not in BAD]
    calculator = AttnCalculator(COPPER)
    for atoms in relaxed[::40]:
        assert np.linalg.norm(calculator.get_forces(atoms), axis=1).max() < 0.05
        # the file has positions to 1e-8 Å, and the network is float32
        expected = pytest.approx(calculator.get_potential_energy(atoms), abs=1e-5)
        assert atoms.get_potential_energy() == expected


def test_a_structure_that_fails_says_why(reference):
    text = reference[1].decode()
    assert text.count("error=") == 3
    errors = [line for line in text.splitlines() if "error=" in line]
    for line, reason in zip(errors, BAD.values(), strict=True):
        assert reason in line
    # the first two are structures
    Path("failed.xyz").write_text("".join(text.splitlines(keepends=True)[:12]))
    assert "atom 0 (Cu)" in read("failed.xyz", 0).info["error"]


def test_two_workers_killed_and_started_again(reference):
    write_many()
    command = [sys.executable, "-m", "attncalc", *RELAX, "-o", "out.xyz", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    parts, limit = Path("out.xyz.parts"), time.monotonic() + 240
    while not list(parts.glob("0*.json")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("out.xyz").exists()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("0*.json")}
    time.sleep(0.5)
    result = attncalc(*RELAX, "-o", "out.xyz", "--workers", 2)
    assert result.exit_code == 1
    assert done
    assert outputs() == reference


def test_an_array_of_jobs(reference):
    write_many()
    said = attncalc(*RELAX, "-o", "out.xyz", "--shard", "1/2")
    assert said.exit_code == 0, said.output
    assert said.stdout == "part 1/2: 3 of 5 shards are in out.xyz.parts\n"
    line = fails(*RELAX, "-o", "out.xyz", "--gather")
    assert "2 of 5 shards are not done, of structures 64 and following" in line
    line = fails(*RELAX[:-1], "0.04", "-o", "out.xyz", "--gather")
    assert "out.xyz.parts holds shards of another fmax" in line
    again = {path: path.stat().st_mtime_ns for path in Path("out.xyz.parts").glob("0*")}
    assert attncalc(*RELAX, "-o", "out.xyz", "--shard", "1/2").exit_code == 0
    assert again == {path: path.stat().st_mtime_ns for path in Path("out.xyz.parts").glob("0*")}
    assert attncalc(*RELAX, "-o", "out.xyz", "--shard", "2/2").exit_code == 0
    result = attncalc(*RELAX, "-o", "out.xyz", "--gather")
    assert "3 of 300 structures failed" in result.stderr
    assert outputs() == reference


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/4"], "--shard must be K/N with K from 1 to N, got '0/4'"),
        (["--shard", "5/4"], "--shard must be K/N with K from 1 to N, got '5/4'"),
        (["--gather", "--workers", 2], "--gather stands alone"),
        (["--workers", 2, "-o", "out.traj"], "out.traj: --workers and --shard read and write .xyz"),
        (["--workers", 2, "--model", "none"], "no model file and no shipped model 'none'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    write("many.xyz", [Atoms("Cu"), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])])
    assert message in fails("relax", "many.xyz", "--model", ETHANOL, *options)
    assert not Path("many.relaxed.xyz.parts").exists()


def test_shards_of_a_file():
    frames = [bulk("Cu", cubic=True) * (1, 1, 1 + k % 3) for k in range(10)]
    write("many.xyz", frames)
    shards = find_shards(Path("many.xyz"), 4)
    assert (len(shards), shards.n_structures) == (3, 10)
    read_back = [frame.atoms() for k in range(3) for frame in shards.read(k)]
    assert [len(atoms) for atoms in read_back] == [len(atoms) for atoms in frames]
    text = Path("many.xyz").read_text()
    for damaged, message in (
        (text[:-200], "structure 9 has"),
        ("\n" + text, "empty line where structure 0"),
        ("x\n" + text, "number of atoms should stand where many.xyz: structure 0 begins"),
        ("", "holds no structures"),
    ):
        Path("many.xyz").write_text(damaged)
        with pytest.raises(ValueError, match=message):
            find_shards(Path("many.xyz"), 4)
