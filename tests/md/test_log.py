"""The log of a run: what is in it, and what a run that goes on makes of it."""

from __future__ import annotations

import csv
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from contract import ethanol

from attncalc import System, load, md
from attncalc.evaluator import Evaluator
from attncalc.files import FileLock
from attncalc.md.h5md_writer import H5MDWriter
from attncalc.md.log_file import LogSummary

LANGEVIN = md.Langevin(0.5 * units.fs, 300.0, 0.01 / units.fs)


@pytest.fixture(scope="module")
def forces() -> Evaluator:
    return Evaluator(load("so3krates-ethanol"))


def run(path: Path, forces: Evaluator, n: int, n_systems: int = 1) -> md.MDState:
    """The last state, which goes on as that of a checkpoint does."""
    first = LANGEVIN.init(forces, System.from_ase([ethanol()] * n_systems))
    last = md.run(LANGEVIN, forces, first, n, callbacks=[md.Log(path, every=5)])
    return last.replace(limit=LANGEVIN.highest_temperature(first))


def test_lines(tmp_path: Path, forces: Evaluator) -> None:
    last = run(tmp_path / "a.csv", forces, 12)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time_fs"]) for row in rows] == [0.0, 2.5, 5.0, 6.0]
    assert float(rows[-1]["temperature_K"]) == float(last.temperature)
    assert float(rows[-1]["potential_eV"]) == float(last.energy)
    assert float(rows[-1]["conserved_eV"]) == float(last.conserved)
    assert rows[0]["volume_A3"] == "nan"


@pytest.mark.parametrize("n_systems", [1, 2])
def test_a_run_that_goes_on(n_systems: int, tmp_path: Path, forces: Evaluator) -> None:
    run(tmp_path / "whole.csv", forces, 30, n_systems)
    path = tmp_path / "part.csv"
    state = run(path, forces, 13, n_systems)
    with open(path, "a") as file:
        file.write("1.0,2")  # of a run that was killed
    md.run(LANGEVIN, forces, state, 17, callbacks=[md.Log(path, every=5)])
    assert path.read_text() == (tmp_path / "whole.csv").read_text()


def test_a_log_that_another_run_writes_is_refused_and_stays(
    tmp_path: Path, forces: Evaluator
) -> None:
    path = tmp_path / "a.csv"
    state = run(path, forces, 13)
    content = path.read_bytes()
    with (
        FileLock(path),
        pytest.raises(BlockingIOError, match=r"a\.csv: another run is still writing"),
    ):
        md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=5)])
    assert path.read_bytes() == content
    md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=5)])
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
    damage, message: str, tmp_path: Path, forces: Evaluator
) -> None:
    path = tmp_path / "a.csv"
    state = run(path, forces, 13)
    broken = damage(path.read_bytes().decode())
    path.write_bytes(broken.encode())
    with pytest.raises(ValueError, match=message):
        md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=5)])
    assert path.read_bytes() == broken.encode()


@pytest.mark.parametrize("every", [3, 10])
def test_another_spacing_is_refused(every: int, tmp_path: Path, forces: Evaluator) -> None:
    path = tmp_path / "a.csv"
    state = run(path, forces, 23)
    content = path.read_bytes()
    message = rf"a\.csv: it has a line every 5 steps, the run continues with one every {every}"
    with pytest.raises(ValueError, match=message):
        md.run(LANGEVIN, forces, state, 5, callbacks=[md.Log(path, every=every)])
    assert path.read_bytes() == content


def test_the_log_of_another_run_is_refused_and_stays(tmp_path: Path, forces: Evaluator) -> None:
    """Of the same atoms and columns, but not with the energy of this run."""
    path = tmp_path / "a.csv"
    state = run(path, forces, 13)
    content = path.read_bytes()
    other = state.replace(energy=state.energy + 1e-3)
    with pytest.raises(ValueError, match=r"a\.csv: its energy at step 13 differs"):
        md.run(LANGEVIN, forces, other, 5, callbacks=[md.Log(path, every=5)])
    assert path.read_bytes() == content


# ------------------------------------------------------------------------------ lost lines


COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"


def both(path: Path, forces: Evaluator, n: int, structures: list, state: md.MDState | None = None):
    """A run with trajectory and log; goes on where a state is given."""
    first = LANGEVIN.init(forces, System.from_ase(structures)) if state is None else state
    log = md.Log(path.with_suffix(".csv"), every=5, trajectory=path)
    files = [H5MDWriter(path, every=5), log]
    last = md.run(LANGEVIN, forces, first, n, callbacks=files)
    return last.replace(limit=LANGEVIN.highest_temperature(first))


@pytest.fixture(scope="module", params=[1, 2], ids=["one system", "two systems"])
def stopped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Evaluator, list[Atoms], md.MDState]:
    """A run `whole`, and `part` with its last state, of a periodic and, in a batch, a larger cell.

    Whoever goes on with `part` copies the folder.
    """
    folder, forces = tmp_path_factory.mktemp("stopped"), Evaluator(load(COPPER))
    cells = [bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1)][: request.param]
    both(folder / "whole.h5md", forces, 40, cells)
    return folder, forces, cells, both(folder / "part.h5md", forces, 23, cells)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: None,
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[: len(content) // 2],
        lambda content: content[: len(content) // 2].ljust(len(content), b"\0"),
        lambda content: bytes(len(content)),
        lambda content: content + bytes(5000),
    ],
    ids=["missing", "empty", "in the header", "cut", "zeros", "all zeros", "longer"],
)
def test_lost_lines_are_made_again_from_the_trajectory(damage, stopped, tmp_path: Path) -> None:
    """To the last byte."""
    folder, forces, cells, state = stopped
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "part.h5md"
    log = path.with_suffix(".csv")
    content = damage(log.read_bytes())
    if content is None:
        log.unlink()
    else:
        log.write_bytes(content)
    both(path, forces, 17, cells, state)
    assert log.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_lines_that_the_trajectory_lacks_are_named(tmp_path: Path, forces: Evaluator) -> None:
    path = tmp_path / "a.h5md"
    state = both(path, forces, 20, [ethanol()])
    log = path.with_suffix(".csv")
    content = b"".join(log.read_bytes().splitlines(keepends=True)[:2])
    log.write_bytes(content)
    finer = md.Log(log, every=2, trajectory=path)
    message = r"a\.csv: ends before step 20, .*; .*a\.h5md: it does not hold step \d+ either"
    with pytest.raises(ValueError, match=message):
        md.run(LANGEVIN, forces, state, 2, callbacks=[finer])
    assert log.read_bytes() == content


def test_a_log_that_is_removed_during_the_run_is_there_at_its_end(
    tmp_path: Path, forces: Evaluator
) -> None:
    path = tmp_path / "a.csv"
    log = md.Log(path, every=5)
    state = LANGEVIN.init(forces, System.from_ase(ethanol()))
    log.begin(state, LANGEVIN)
    log(state)
    content = path.read_bytes()
    path.unlink()
    log.end()
    assert path.read_bytes() == content


# ---------------------------------------------------------------------------------- memory


class Fake:
    """What a log reads of a state, of a system that never changes."""

    system = System.from_ase(ethanol())
    spread = strain_gradient = None
    energy = kinetic_energy = conserved = temperature = torch.tensor([1.0 / 3], dtype=torch.float64)

    def __init__(self, step: int) -> None:
        self.step = step


def test_a_long_log_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """Neither written, nor resumed, nor read for a picture."""
    path, n = tmp_path / "a.csv", 20_000
    tracemalloc.start()
    try:
        log = md.Log(path, every=1)
        log.begin(Fake(0), LANGEVIN)
        for step in range(n):
            log(Fake(step))
        log.end()
        assert log.summary.n_rows == n
        again = md.Log(path, every=1)
        again.resume(Fake(n // 2), LANGEVIN)
        again.end()
        assert again.summary.n_rows == n // 2 + 1
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 4e6, "bytes; a list of the lines takes 10 million"
    finally:
        tracemalloc.stop()
    rows = md.read_log(path, at_most=100)
    assert 50 <= len(rows) <= 100
    assert rows[-1]["time_fs"] == again.summary.last["time_fs"] == 5_000.0


def test_some_lines_of_a_log_are_those_of_all_systems_at_some_times(tmp_path: Path) -> None:
    lines = ["system,time_fs", *(f"{k},{10 * time}" for time in range(8) for k in range(3))]
    (tmp_path / "a.csv").write_text("\r\n".join([*lines, ""]))
    rows = md.read_log(tmp_path / "a.csv", at_most=3, n_systems=3)
    expected = [(k, time) for time in (10, 40, 70) for k in range(3)]
    assert [(row["system"], row["time_fs"]) for row in rows] == expected


def test_the_largest_drift_of_all_systems() -> None:
    summary = LogSummary()
    for time in (0.0, 500.0, 2000.0):
        for system, slope in enumerate((0.0, -0.8, 0.1)):  # eV per ps
            row = {"system": system, "time_fs": time, "conserved_eV": 7 + slope * time / 1000}
            summary.add(row)
    assert summary.drift([2, 4, 1]) == pytest.approx(-0.2), "eV per atom and ps"
    assert summary.drift([1000, 1000, 1000]) == 0, "as small as fluctuations"
    assert LogSummary().drift([1]) == 0


@pytest.mark.parametrize(("change", "drift"), [(0.006, 0.0), (0.06, 30.0)])
def test_drift_of_a_short_run(change: float, drift: float) -> None:
    """A fluctuation of 6 meV per atom in a few steps would be a drift of eV per ps."""
    summary = LogSummary()
    for time, conserved in ((0.0, 7.0), (2.0, 7 + change)):
        summary.add({"time_fs": time, "conserved_eV": conserved})
    assert summary.drift([1]) == pytest.approx(drift)
