"""Many structures in shards: the same output whoever processes them, and after any kill."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from command_line import COPPER, ETHANOL, Forked, attncalc, fails, fork_workers, wait_until

from attncalc import AttnCalculator, bonds
from attncalc.cli import output
from attncalc.cli.relaxation import Relaxation
from attncalc.cli.relaxation_shards import RelaxMany, RelaxShard
from attncalc.cli.shards import joining, processing, results, workers
from attncalc.cli.shards.results import Outcome, Work
from attncalc.cli.shards.workers import process_shard, process_until_done
from attncalc.data.shards import Frame, find_shards
from attncalc.files import FileLock, NoSpaceLeft

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


def test_two_workers_killed_and_started_again(reference, monkeypatch):
    fork_workers(monkeypatch)  # `reference` is of processes that import everything anew
    write_many()
    process, parts = Forked(*RELAX, "-o", "out.xyz", "--workers", 2), Path("out.xyz.parts")
    wait_until(lambda: list(parts.glob("*/0*.json")), process)
    process.kill()
    process.ended()
    assert not Path("out.xyz").exists()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*/0*.json")}
    time.sleep(0.5)
    result = attncalc(*RELAX, "-o", "out.xyz", "--workers", 2)
    assert result.exit_code == 1
    assert done
    assert outputs() == reference


def test_an_array_of_jobs(reference, monkeypatch):
    fork_workers(monkeypatch)  # `reference` is of processes that import everything anew
    write_many()
    said = attncalc(*RELAX, "-o", "out.xyz", "--shard", "1/2")
    assert said.exit_code == 0, said.output
    assert said.stdout == "part 1/2: 3 of 5 shards are in out.xyz.parts\n"
    line = fails(*RELAX, "-o", "out.xyz", "--gather")
    assert "2 of 5 shards are not done, of structures 64 and following" in line
    line = fails(*RELAX[:-1], "0.04", "-o", "out.xyz", "--gather")
    assert "out.xyz.parts holds shards of another fmax" in line
    line = fails(*RELAX, "-o", "out.xyz")
    assert "out.xyz.parts holds an unfinished run with --workers, --shard or" in line
    again = {path: path.stat().st_mtime_ns for path in Path("out.xyz.parts").glob("*/0*")}
    assert attncalc(*RELAX, "-o", "out.xyz", "--shard", "1/2").exit_code == 0
    assert again == {path: path.stat().st_mtime_ns for path in Path("out.xyz.parts").glob("*/0*")}
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
        (
            ["--workers", 2, "-o", "out.traj"],
            "out.traj: many structures are read from and written to .xyz or",
        ),
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
    found = find_shards(Path("many.xyz"), 4)
    assert (len(found), found.n_structures) == (3, 10)
    read_back = [frame.atoms() for k in range(3) for frame in found.read(k)]
    assert [len(atoms) for atoms in read_back] == [len(atoms) for atoms in frames]
    text = Path("many.xyz").read_text()
    for damaged, message in (
        (text[:-200], "structure 9 has"),
        ("\n" + text, "empty line where structure 0"),
        ("x\n" + text, "many.xyz: the number of atoms should stand where structure 0 begins"),
        ("", "holds no structures"),
    ):
        Path("many.xyz").write_text(damaged)
        with pytest.raises(ValueError, match=message):
            find_shards(Path("many.xyz"), 4)


def test_memory_for_100000_structures_is_that_of_a_shard():
    n = 10**5
    with open("many.xyz", "w") as file:
        for _ in range(100):
            file.write("1\n\nHe 0 0 0\n" * (n // 100))
    Path("few.xyz").write_text("1\n\nHe 0 0 0\n")
    before = Work(find_shards(Path("few.xyz"), 64), Path("few.out.xyz"))
    before.folder.mkdir()
    assert process_shard(before, 0, Copying(), lambda: None)  # modules that it imports do not count
    tracemalloc.start()
    try:
        found = find_shards(Path("many.xyz"), 64)
        work = Work(found, Path("out.xyz"))
        work.folder.mkdir()
        for k in (0, len(found) // 2, len(found) - 1):
            work.file(k, ".json").parent.mkdir(exist_ok=True)
            assert process_shard(work, k, Copying(), lambda: None)
        assert len(work.not_done(range(len(found)))) == len(found) - 3
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.n_structures == n
    assert peak < 1 << 20  # bytes: where its 1,563 shards begin, and lists of these


@dataclass(frozen=True)
class Copying:
    """Leaves structures as they are.

    Attributes:
        how: setting of the work, and what goes wrong at structure 5.
    """

    how: str = ""

    def identity(self) -> dict[str, object]:
        return {"how": self.how}

    def environment(self) -> dict[str, object]:
        return {"device": "cpu"}

    def start(self) -> Copying:
        return self

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for k, frame in enumerate(frames, start=first):
            try:
                atoms = frame.atoms()
            except ValueError as error:
                outcomes.append((None, {"error": str(error)}))
                continue
            if k == 5 and self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if k == 5 and self.how == "bug":
                raise KeyError("a bug")
            if k == 5 and self.how == "full":
                raise NoSpaceLeft("out.xyz", errno.ENOSPC)
            if k == 5 and self.how == "unwritable":
                atoms.new_array("phase", np.ones(len(atoms), dtype=complex))
            outcomes.append((atoms, {}))
        return outcomes


SOURCE, TARGET = Path("few.xyz"), Path("out.xyz")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten structures in shards of four, in this process."""
    write(SOURCE, [Atoms("Cu", [[k, 0, 0]]) for k in range(10)])
    monkeypatch.setattr(processing, "STRUCTURES", 4)
    monkeypatch.setattr(workers, "GRACE", 0.0)
    monkeypatch.setattr(processing, "compute_in_processes", in_this_process)


@pytest.fixture
def forked(few, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes process them, in which nothing is imported again."""
    fork_workers(monkeypatch)
    monkeypatch.setattr(processing, "compute_in_processes", compute)


compute = processing.compute_in_processes


def in_this_process(job: Copying, work: Work, mine: Sequence[int], workers: int) -> None:
    class Silent:
        def send(self, what: object) -> None: ...

    process_until_done(job, work, mine, Silent())


def process(how: str = "", *, shard: str | None = None, gather: bool = False) -> None:
    results.output_of_shards(SOURCE, TARGET)
    options = {"workers": None if shard or gather else 1, "shard": shard, "gather": gather}
    processing.process_shards(Copying(how), SOURCE, TARGET, **options)


class Killed(BaseException):
    """Stands for kill -9."""


def test_killed_while_the_shards_are_removed(few, monkeypatch):
    def rmtree(folder: Path, **options: bool) -> None:
        if (folder / "0000").exists():
            (folder / "plan.json").unlink()
            raise Killed
        shutil.rmtree(folder, **options)

    stub = SimpleNamespace(rmtree=rmtree, copyfileobj=shutil.copyfileobj)
    with monkeypatch.context() as context:
        context.setattr(results, "shutil", stub)
        with pytest.raises(Killed):
            process()
    assert len(read(TARGET, ":")) == 10
    assert not Path("out.xyz.parts").exists()
    TARGET.unlink()
    process("other")  # nothing of the first is in its way


def test_killed_while_the_output_is_written(few, monkeypatch):
    def killed(_: Work) -> None:
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(Work, "remove", killed)
        with pytest.raises(Killed):
            process()
    TARGET.write_text("half")
    process()  # the same command goes on, though its output is there
    assert len(read(TARGET, ":")) == 10


@pytest.mark.parametrize(
    ("ending", "content"),
    [(".xyz", None), (".xyz", b""), (".xyz", b"[]"), (".json", b""), (".json", b"[]")],
)
def test_a_damaged_shard_is_done_again(few, ending, content):
    for k in range(3):
        process(shard=f"{k + 1}/3")
    (part,) = Path("out.xyz.parts").rglob(f"000001{ending}")
    part.unlink()
    if content is not None:
        part.write_bytes(content)
    with pytest.raises(ValueError, match="the results of structures 4 to 7 are damaged: run the"):
        process(gather=True)
    assert not TARGET.exists()
    process(shard="1/1")
    process(gather=True)
    assert [atoms.positions[0, 0] for atoms in read(TARGET, ":")] == list(range(10))


def test_a_folder_is_made_with_its_plan_once(few):
    work = Work(find_shards(SOURCE, 4), TARGET)
    assert work.open_folder({"how": "one"}, new=True)
    # another process looked when there was no folder yet
    assert not work._make({"how": "two"})
    with pytest.raises(ValueError, match="holds shards of another how"):
        work.open_folder({"how": "two"}, new=True)
    assert {path.name for path in Path().iterdir()} == {"few.xyz", "out.xyz.parts"}
    (work.folder / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"no plan\.json"):
        work.open_folder({"how": "two"}, new=True)


def test_nothing_is_made_where_nothing_was_worked_off(few):
    with pytest.raises(ValueError, match=r"no folder out\.xyz\.parts: process its shards first"):
        process(gather=True)
    assert not Path("out.xyz.parts").exists()


def test_a_comment_in_another_encoding(few):
    lines = SOURCE.read_bytes().splitlines(keepends=True)
    lines[3 * 5 + 1] = lines[3 * 5 + 1].replace(b"\n", b" name=caf\xe9\n")
    SOURCE.write_bytes(b"".join(lines))
    with pytest.raises(click.ClickException, match="1 of 10 structures failed"):
        process()
    assert len(read(TARGET, ":")) == 9
    failed = Path("out.failed.xyz").read_bytes()
    assert b'name=caf\xe9 error="structure 5: not UTF-8 text (byte 0xe9)"\n' in failed


def test_what_ase_cannot_write_has_failed(few):
    with pytest.raises(click.ClickException, match="1 of 10 structures failed"):
        process("unwritable")
    assert len(read(TARGET, ":")) == 9
    assert "structure 5: ASE cannot write it" in Path("out.failed.xyz").read_text()


def test_an_error_of_a_process_ends_all_with_one_line(forked, capfd):
    with pytest.raises(RuntimeError, match=r"no space left .*; 1 of 3 shards are done: the same"):
        process("full")
    assert "Traceback" not in capfd.readouterr().err


def test_a_shard_that_kills_processes_fails(forked):
    with pytest.raises(click.ClickException, match="4 of 10 structures failed"):
        process("die")
    assert [atoms.positions[0, 0] for atoms in read(TARGET, ":")] == [0, 1, 2, 3, 8, 9]
    assert Path("out.failed.xyz").read_text().count("2 processes died at structures 4 to 7") == 4


def test_what_nobody_expects_is_named(forked, capfd):
    with pytest.raises(click.ClickException, match="4 of 10 structures failed"):
        process("bug")
    failed = Path("out.failed.xyz").read_text()
    assert failed.count("of which this is one: KeyError: 'a bug'") == 4
    assert capfd.readouterr().err.count("Traceback") == 2  # for whoever mends it


def test_the_file_of_what_fails_is_an_output(few, monkeypatch):
    failed = Path("out.failed.xyz")
    failed.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.failed\.xyz exists"):
        process()
    assert failed.read_text() == "mine"
    monkeypatch.setattr(joining, "overwrites", lambda: True)
    monkeypatch.setattr(output, "overwrites", lambda: True)
    said = []
    monkeypatch.setattr(joining, "report_json", said.append)
    process()
    assert not failed.exists(), "it was of an earlier run"
    assert said[0]["failures"] is None
    SOURCE.rename(failed)
    with pytest.raises(ValueError, match=r"out\.failed\.xyz, .* is the input"):
        results.output_of_shards(failed, TARGET)


def test_the_slower_of_two_equal_commands(few, monkeypatch):
    said = []
    monkeypatch.setattr(joining, "say", said.append)

    def slower(job: Copying, work: Work, mine: Sequence[int], workers: int) -> None:
        monkeypatch.setattr(processing, "compute_in_processes", in_this_process)
        process()
        in_this_process(job, work, mine, workers)

    monkeypatch.setattr(processing, "compute_in_processes", slower)
    process()
    assert said[0] == "wrote out.xyz: 10 of 10 structures"
    assert said[1].startswith("out.xyz is complete: another command has written it")
    TARGET.unlink()

    def later(path: Path, size: int) -> object:
        monkeypatch.setattr(processing, "find_shards", find_shards)
        process()
        return find_shards(path, size)

    monkeypatch.setattr(processing, "find_shards", later)
    process()
    assert said[3].startswith("out.xyz is complete: another command has written it")
    assert {path.name for path in Path().iterdir()} == {"few.xyz", "out.xyz"}


def test_only_one_command_puts_shards_together(few, monkeypatch):
    lock, waited = FileLock(TARGET), []

    def sleep(seconds: float) -> None:
        waited.append(TARGET.exists())
        lock.release()

    monkeypatch.setattr(workers.time, "sleep", sleep)
    process()
    assert waited == [False]
    assert len(read(TARGET, ":")) == 10


def test_a_folder_that_somebody_removed(few, monkeypatch):
    def removed(job: Copying, work: Work, mine: Sequence[int], workers: int) -> None:
        shutil.rmtree(work.folder)
        in_this_process(job, work, mine, workers)

    monkeypatch.setattr(processing, "compute_in_processes", removed)
    with pytest.raises(ValueError, match=r"no folder out\.xyz\.parts: process its shards"):
        process()


def test_the_folder_is_not_listed_for_every_shard(few, monkeypatch):
    monkeypatch.setattr(processing, "STRUCTURES", 1)
    monkeypatch.setattr(results, "SHARDS", 4)
    listed = []
    monkeypatch.setattr(results.os, "listdir", lambda path: listed.append(path) or [])
    process(shard="1/1")
    assert len(listed) == 3
    folders = [f"out.xyz.parts/000{k}" for k in range(3)]
    assert [len([*os.scandir(folder)]) for folder in folders] == [3 * 4, 3 * 4, 3 * 2]


def relax_many() -> RelaxMany:
    options = {"device": "cpu", "dtype": None, "long_range_cutoff": None}
    return RelaxMany(COPPER, options, 1, Relaxation(10.0, 5, "lbfgs", cell=False, stop=False))


def test_what_is_not_read_is_counted(few, capsys, monkeypatch):
    frames = [bulk("Cu", a=3.6, cubic=True) for _ in range(6)]
    for atoms in frames[:5]:
        atoms.set_initial_magnetic_moments([1.0] * 4)
    write(SOURCE, frames)
    reported = []
    monkeypatch.setattr(joining, "report_json", reported.append)
    processing.process_shards(relax_many(), SOURCE, TARGET, workers=1, shard=None, gather=False)
    warning = "Warning: 5 of 6 structures: initial magnetic moments of the atoms are not read: thi"
    assert warning in capsys.readouterr().err
    assert reported[0]["ignored"] == 5


def test_structures_whose_bonds_broke_are_counted(few, capsys, monkeypatch):
    write(SOURCE, [bulk("Cu", a=3.6, cubic=True), Atoms("Cu", cell=[9, 9, 9], pbc=True)])
    usual = bonds.BROKEN
    monkeypatch.setattr(bonds, "BROKEN", 0.5)  # where nothing moves
    reported = []
    monkeypatch.setattr(joining, "report_json", reported.append)
    processing.process_shards(relax_many(), SOURCE, TARGET, workers=1, shard=None, gather=False)
    assert reported[0]["broken"] == 1
    assert "bonds broke in 1 of 2 structures: see broken_bonds in " in capsys.readouterr().err
    broken, whole = read(TARGET, ":")
    assert broken.info["broken_bonds"] == 24
    assert "broken_bonds" not in whole.info
    monkeypatch.setattr(bonds, "BROKEN", usual)
    again = TARGET.with_name("again.xyz")
    processing.process_shards(relax_many(), TARGET, again, workers=1, shard=None, gather=False)
    assert not any("broken_bonds" in atoms.info for atoms in read(again, ":"))


def test_shards_of_another_device_or_version_do_not_mix(few, monkeypatch):
    write(SOURCE, [bulk("Cu", a=3.6, cubic=True) for _ in range(6)])
    asked = {"workers": None, "gather": False}
    processing.process_shards(relax_many(), SOURCE, TARGET, shard="1/2", **asked)
    place = relax_many().environment()
    assert place == {"device": "cpu", "attncalc": version("attncalc")}
    for name in place:
        other = {**place, name: "other"}
        with monkeypatch.context() as context:
            context.setattr(RelaxMany, "environment", lambda _, other=other: other)
            with pytest.raises(ValueError, match=f"holds shards of another {name}:"):
                processing.process_shards(relax_many(), SOURCE, TARGET, shard="2/2", **asked)
    processing.process_shards(relax_many(), SOURCE, TARGET, shard="2/2", **asked)
    # nothing is computed: any machine will do
    monkeypatch.setattr(RelaxMany, "environment", lambda _: other)
    processing.process_shards(relax_many(), SOURCE, TARGET, workers=None, shard=None, gather=True)
    assert len(read(TARGET, ":")) == 6


def test_a_structure_too_large_for_the_memory_has_failed(monkeypatch):
    write("many.xyz", [bulk("Cu", a=3.6, cubic=True) for _ in range(3)])
    frames = find_shards(Path("many.xyz"), 4).read(0)
    relax = RelaxShard._relax

    def hungry(self: RelaxShard, batch: list[Atoms], together: bool, first: int) -> list:
        if first <= 1 < first + len(batch):
            raise MemoryError
        return relax(self, batch, together, first)

    monkeypatch.setattr(RelaxShard, "_relax", hungry)
    solve = RelaxShard(relax_many().asked, AttnCalculator(COPPER, device="cpu"))
    outcomes = solve(frames, 0)
    assert [said.get("error") for _, said in outcomes] == [None, "MemoryError", None]
