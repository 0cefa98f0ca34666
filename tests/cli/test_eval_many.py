"""attncalc eval in shards: the numbers and the page of one process, after any kill."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from command_line import COPPER, attncalc, fails, files, fork_workers, labelled, succeeds

from attncalc import data
from attncalc.cli import evaluate
from attncalc.cli.shards import processing, results, workers
from attncalc.cli.shards.results import Job, Work
from attncalc.cli.shards.workers import process_until_done
from attncalc.data.errors import Prediction, predict
from attncalc.data.shards import Shards

# of 4 or 8 atoms; three batches of 512 atoms, each of which is a shard
N, PAGE = 250, "eval-cu-emt-cu.html"
EVAL = ("eval", COPPER, "cu.extxyz")


@functools.cache
def many() -> list[Atoms]:
    frames = labelled(N)
    for k in range(0, N, 3):
        small = frames[k].calc.results
        twice = {"energy": 2 * small["energy"], "forces": np.tile(small["forces"], (2, 1))}
        frames[k] = frames[k] * (2, 1, 1)
        frames[k].calc = SinglePointCalculator(frames[k], **small | twice)
    return frames


def write_many() -> None:
    write("cu.extxyz", many())


def numbers(*options: object) -> tuple[dict, str]:
    """JSON and page of a command, but for what tells one run from the next."""
    result = attncalc(*EVAL, "--json", "--overwrite", *options)
    assert result.exit_code == 0, result.output
    assert files() == {"cu.extxyz", PAGE}
    found, page = json.loads(result.stdout), Path(PAGE).read_text()
    page = re.sub(r"<tr><td>(command|date|computed)</td>.*</tr>", "", page)
    return found | {"seconds": None}, page


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """Numbers and page without any option."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("expected"))
    try:
        write_many()
        return numbers()
    finally:
        os.chdir(before)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process computes the shards."""

    def compute(job: Job, work: Work, mine: Sequence[int], workers: int) -> None:
        process_until_done(job, work, mine, SimpleNamespace(send=lambda _: None))

    monkeypatch.setattr(processing, "compute_in_processes", compute)


def test_two_workers_make_the_page_of_one_process(expected, monkeypatch) -> None:
    fork_workers(monkeypatch)  # tests/cli/test_shards.py has processes that import anew
    write_many()
    assert numbers("--workers", 2) == expected


def test_an_array_of_jobs(here, expected) -> None:
    write_many()
    assert "no folder" in fails(*EVAL, "--gather")
    said = succeeds(*EVAL, "--shard", "1/2")
    assert said == f"part 1/2: 2 of 3 shards are in {PAGE}.parts\n"
    assert "1 of 3 shards are not done, of structures" in fails(*EVAL, "--gather")
    line = fails(*EVAL, "--dtype", "float64", "--shard", "2/2")
    assert f"{PAGE}.parts holds shards of another dtype" in line
    succeeds(*EVAL, "--shard", "2/2")
    assert numbers("--gather") == expected


class Killed(BaseException):
    """Stands for kill -9."""


def test_killed_and_started_again(here, expected, monkeypatch) -> None:
    write_many()
    asked = []

    def killed(potential: object, dataset: data.Dataset, **options: int) -> Prediction:
        if len(asked) == 1:
            raise Killed
        asked.append(len(dataset))
        return predict(potential, dataset, **options)

    with monkeypatch.context() as context:
        context.setattr(evaluate, "predict", killed)
        with pytest.raises(Killed):
            attncalc(*EVAL, "--workers", 1)
    (done,) = Path(f"{PAGE}.parts").glob("*/0*.json")
    before = done.stat().st_mtime_ns
    remove = Work.remove

    def removed(work: Work) -> None:
        assert done.stat().st_mtime_ns == before, "it is not computed again"
        remove(work)

    monkeypatch.setattr(Work, "remove", removed)
    assert numbers("--workers", 1) == expected


def test_a_structure_that_the_model_does_not_know_is_refused_before(here) -> None:
    frames = labelled(4)
    frames[2].numbers[0] = 79
    write("cu.extxyz", frames)
    line = fails(*EVAL)
    assert line.startswith("Error: structure 2: ")
    assert fails(*EVAL, "--workers", 2) == line
    assert files() == {"cu.extxyz"}


def test_an_impossible_structure_is_told_by_its_number_in_the_file(here) -> None:
    write_many()
    frames = read("cu.extxyz", ":")
    frames[-1].positions[1] = frames[-1].positions[0]
    write("cu.extxyz", frames)
    line = fails(*EVAL)
    assert line.startswith(f"Error: structure {N - 1}: atom 0 (Cu) and atom 1 (Cu) are ")
    in_shards = fails(*EVAL, "--workers", 1)
    assert in_shards == f"{line} (remove {PAGE}.parts to try again)"
    assert "the same command goes on" not in in_shards


@pytest.mark.parametrize("options", [(), ("--no-report",), ("--json",)])
def test_another_command_was_faster(here, monkeypatch, options: tuple[str, ...]) -> None:
    """It has told the errors: this one has none to tell."""
    write("cu.extxyz", labelled(4))

    def gone(work: Work, join: object) -> None:
        work.remove()
        raise results.FolderGone

    monkeypatch.setattr(processing, "gather_results", gone)
    line = fails(*EVAL, "--workers", 1, *options)
    said = f"another command has joined the shards of {PAGE} and reported them"
    assert line == f"Error: {said}"


def test_shards_of_no_report_stand_beside_any_file(here) -> None:
    write("cu.extxyz", labelled(4))
    Path(PAGE).write_text("mine")
    assert f"{PAGE} exists" in fails(*EVAL, "--workers", 1)
    assert "force, meV" in succeeds(*EVAL, "--workers", 1, "--no-report")
    assert files() == {"cu.extxyz", PAGE}
    assert Path(PAGE).read_text() == "mine"


def test_json_of_a_part(here) -> None:
    write("cu.extxyz", labelled(4))
    result = attncalc(*EVAL, "--shard", "1/2", "--json")
    expected = {"part": "1/2", "shards": 1, "of": 1, "folder": f"{PAGE}.parts"}
    assert json.loads(result.stdout) == expected


def test_a_shard_that_kills_processes_ends_it(here, monkeypatch) -> None:
    write("cu.extxyz", labelled(4))
    monkeypatch.setattr(workers, "_deaths", lambda *_: (workers.ATTEMPTS, ""))
    line = fails(*EVAL, "--workers", 1)
    assert "2 processes died at structures 0 to 3, of which this is one" in line
    assert f"(remove {PAGE}.parts to try again)" in line
    assert files() == {"cu.extxyz", f"{PAGE}.parts"}


def test_a_file_that_changes_meanwhile(here, monkeypatch) -> None:
    write("cu.extxyz", labelled(4))
    load = Work.open_folder

    def changed(work: Work, *given: object, **named: object) -> bool:
        write("cu.extxyz", labelled(5)[1:])
        return load(work, *given, **named)

    monkeypatch.setattr(Work, "open_folder", changed)
    assert "cu.extxyz: the file has changed" in fails(*EVAL, "--workers", 1)


def test_shards_begin_with_batches() -> None:
    write_many()
    dataset = data.read("cu.extxyz")
    potential = SimpleNamespace(counts_all_pairs=False)
    rows = evaluate.find_rows(dataset, potential)
    parts = [rows.structures(k) for k in range(len(rows))]
    assert [k for part in parts for k in part] == [*range(N)]
    sizes = [sum(len(dataset.structures[k]) for k in part) for part in parts]
    assert max(sizes) <= 512 < min(sizes[:-1]) + 8
    assert isinstance(rows, Shards)
    assert rows.alone(1).structures(1) == rows.structures(1)
    assert len(rows.alone(1).starts) == 2


def test_json_keeps_a_prediction_to_the_last_bit() -> None:
    random = np.random.default_rng(0)

    def of_atoms() -> tuple:
        return tuple(random.normal(size=(n, 3)) / 3 for n in (1, 4, 2))

    whole = Prediction(
        np.array([-0.0, 1e300, 0.1]),
        of_atoms(),
        random.normal(size=(3, 3, 3)),
        of_atoms(),
        random.normal(size=3),
        np.array([np.inf, 1 / 3, 2.0]),
    )
    for prediction in (whole, Prediction(whole.energies, whole.forces, None)):
        found = Prediction.of_rows(json.loads(json.dumps(prediction.rows())))
        for name, values in vars(prediction).items():
            ours = getattr(found, name)
            if values is None:
                assert ours is None
                continue
            for a, b in zip(ours, values, strict=True):
                assert a.tobytes() == b.tobytes()
