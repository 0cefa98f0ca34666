"""The log of a run: what is in it, and what a run that goes on makes of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from ase import units
from contract import ethanol

from attncalc import System, load, md
from attncalc.files import Claim

LANGEVIN = md.Langevin(0.5 * units.fs, 300.0, 0.01 / units.fs)


@pytest.fixture(scope="module")
def forces() -> md.Forces:
    return md.Forces(load("so3krates-ethanol"))


def run(path: Path, forces: md.Forces, n: int, n_systems: int = 1) -> md.MDState:
    first = LANGEVIN.init(forces, System.from_ase([ethanol()] * n_systems))
    return md.run(LANGEVIN, forces, first, n, callbacks=[md.Log(path, every=5)])


def test_lines(tmp_path: Path, forces: md.Forces) -> None:
    last = run(tmp_path / "a.csv", forces, 12)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time_fs"]) for row in rows] == [0.0, 2.5, 5.0, 6.0]
    assert float(rows[-1]["temperature_K"]) == float(last.temperature)
    assert float(rows[-1]["potential_eV"]) == float(last.energy)
    assert float(rows[-1]["conserved_eV"]) == float(last.conserved)
    assert rows[0]["volume_A3"] == "nan"


@pytest.mark.parametrize("n_systems", [1, 2])
def test_a_run_that_goes_on(n_systems: int, tmp_path: Path, forces: md.Forces) -> None:
    run(tmp_path / "whole.csv", forces, 30, n_systems)
    path = tmp_path / "part.csv"
    state = run(path, forces, 13, n_systems)
    with open(path, "a") as file:
        file.write("1.0,2")  # of a run that was killed
    md.run(LANGEVIN, forces, state, 17, callbacks=[md.Log(path, every=5)], resumed=True)
    assert path.read_text() == (tmp_path / "whole.csv").read_text()


def test_a_log_that_another_run_writes_is_refused_and_stays(
    tmp_path: Path, forces: md.Forces
) -> None:
    path = tmp_path / "a.csv"
    state = run(path, forces, 13)
    content = path.read_bytes()
    with Claim(path), pytest.raises(BlockingIOError, match=r"a\.csv: another run is still writing"):
        md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=5)], resumed=True)
    assert path.read_bytes() == content
    md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=5)], resumed=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("time_fs", "time"), "not the log of this run"),
        (lambda text: "", "line 1 is damaged"),
        (lambda text: text.replace("\r\n2.5,", "\r\nx,"), "line 3 is damaged"),
        (lambda text: "\r\n".join(text.splitlines()[:2]) + "\r\n", "ends before step 10"),
    ],
    ids=["columns", "empty", "a line", "too short"],
)
def test_a_damaged_log_is_refused_and_stays(
    damage, message: str, tmp_path: Path, forces: md.Forces
) -> None:
    path = tmp_path / "a.csv"
    state = run(path, forces, 13)
    broken = damage(path.read_bytes().decode())
    path.write_bytes(broken.encode())
    with pytest.raises(ValueError, match=message):
        md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=5)], resumed=True)
    assert path.read_bytes() == broken.encode()
