"""Shards on a dask.distributed cluster: the output of one worker, after any kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from command_line import COPPER, attncalc, fails, labelled, wait_until

from attncalc.cli import cluster
from attncalc.cli.cluster import Cluster
from attncalc.cli.shards import processing, workers
from attncalc.cli.shards.results import Job, Outcome, Work
from attncalc.cli.shards.workers import process_until_done
from attncalc.data.shards import Frame, find_shards

REPOSITORY = Path(__file__).resolve().parents[2]
N, SIZE = 40, 8
# without memory from one structure to the next; it kills its process where a structure says so, and
# waits as long as a file is there
TEACHER = """
import os, signal, time
from pathlib import Path
from ase.calculators.calculator import Calculator, all_changes

HERE = Path(__file__).parent

class Springs(Calculator):
    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if atoms.info.get("kills"):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(HERE / "seen", "a") as seen:
            seen.write(f"{atoms.info['name']}\\n")
        while atoms.info.get("waits") and (HERE / "hold").exists():
            time.sleep(0.02)
        x = atoms.positions
        self.results = {"energy": 0.5 * float((x * x).sum()), "forces": -x}

make = Springs
"""
LABEL = ("label", "many.xyz", "--oracle", "teacher:make", "-o", "out.xyz")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the scheduler of two processes in another folder.

    They, and those that come after them, are forks of one process that has imported everything.
    """
    distributed = pytest.importorskip(
        "distributed", reason='needs dask.distributed: pip install "attncalc[cluster]"'
    )
    from dask import config

    scratch = str(tmp_path_factory.mktemp("cluster"))
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["distributed.nanny", "attncalc.cli.relax", "attncalc.cli.label", "ase.optimize"]
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
    ):
        # which would let it import less
        patch.setattr(distributed.utils, "_forkserver_preload_set", True, raising=False)
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=scratch
        ) as of_two:
            yield of_two.scheduler_address


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shards of a few structures; no worker waits on after a test."""
    monkeypatch.setattr(processing, "STRUCTURES", SIZE)
    yield
    Path("hold").unlink(missing_ok=True)


def write_copper() -> None:
    """Rattled copper; one structure is gold, and of one two atoms coincide."""
    frames = [bulk("Cu", a=3.6, cubic=True) for _ in range(N)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
    frames[11].numbers[2] = 79
    frames[30].positions[1] = frames[30].positions[0]
    write("many.xyz", frames)


def write_for_teacher(kills: int | None = None, waits: int | None = None) -> None:
    """Atoms in a row, and the teacher beside them."""
    Path("teacher.py").write_text(TEACHER)
    frames = []
    for k in range(N):
        atoms = Atoms("Cu2", [[0.1 * k, 0, 0], [0, 2.5, 0]], info={"name": f"n{k}"})
        atoms.info |= {"kills": True} if k == kills else {}
        atoms.info |= {"waits": True} if k == waits else {}
        frames.append(atoms)
    write("many.xyz", frames)
    sys.modules.pop("teacher", None)  # that of another test, in this process


def by_one_process(
    monkeypatch: pytest.MonkeyPatch, *command: object, killed: Sequence[int] = ()
) -> tuple[bytes, bytes]:
    """Output of --workers 1, whose process is this one; some shards have killed two processes."""

    def compute(job: Job, work: Work, mine: Sequence[int], workers: int) -> None:
        (work.folder / "0000").mkdir()
        for k in killed:
            work.file(k, ".died").write_text("2")
        process_until_done(job, work, mine, SimpleNamespace(send=lambda _: None))

    with monkeypatch.context() as context:
        context.setattr(processing, "compute_in_processes", compute)
        attncalc(*command, "--workers", 1)
    return outputs()


def outputs() -> tuple[bytes, bytes]:
    """What is in the files, which are removed."""
    assert not Path("out.xyz.parts").exists()
    found = []
    for path in (Path("out.xyz"), Path("out.failed.xyz")):
        found.append(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
    return found[0], found[1]


def test_relaxations_are_those_of_one_worker(address, monkeypatch):
    write_copper()
    Path("model.safetensors").write_bytes(Path(COPPER).read_bytes())
    command = ("relax", "many.xyz", "--model", "model.safetensors", "--fmax", 0.05, "-o", "out.xyz")
    expected = by_one_process(monkeypatch, *command)
    Path("scheduler.json").write_text(json.dumps({"address": address}))
    result = attncalc(*command, "--scheduler", "scheduler.json", "--json")
    assert result.exit_code == 1, result.output
    assert "2 of 40 structures failed: see out.failed.xyz" in result.stderr
    assert json.loads(result.stdout)["failed"] == 2
    assert outputs() == expected


def test_errors_are_those_of_one_process(address):
    write("cu.extxyz", labelled(3 * SIZE))
    command = ("eval", COPPER, "cu.extxyz", "--no-report", "--json")
    expected = json.loads(attncalc(*command).stdout)
    result = attncalc(*command, "--scheduler", address)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == expected | {"seconds": None}
    assert not Path("eval-cu-emt-cu.html.parts").exists()


def test_a_shard_that_kills_workers_fails(address, monkeypatch):
    write_for_teacher(kills=2 * SIZE + 1)
    expected = by_one_process(monkeypatch, *LABEL, killed=[2])
    result = attncalc(*LABEL, "--scheduler", address)
    assert "8 of 40 structures failed" in result.stderr
    found = outputs()
    assert found[1].decode().count("2 processes died at structures 16 to 23") == SIZE
    assert found == expected


def test_the_client_is_killed_and_started_again(address, monkeypatch):
    write_for_teacher(waits=3 * SIZE)
    expected = by_one_process(monkeypatch, *LABEL)
    Path("seen").unlink()
    Path("hold").touch()
    few = (
        "from attncalc.cli import main; from attncalc.cli.shards import processing; "
        f"processing.STRUCTURES = {SIZE}; main()"
    )
    command = [sys.executable, "-c", few, *LABEL, "--scheduler", address]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment)
    waits = Path("out.xyz.parts/0000/000003.at")
    done = [Path(f"out.xyz.parts/0000/00000{k}.json") for k in (0, 1, 2, 4)]
    wait_until(lambda: waits.exists() and all(path.exists() for path in done), process)
    process.kill()
    process.wait()
    looks = []

    def busy(self: Cluster) -> None:  # the worker of before is still at its shard
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > 1.0:
            Path("hold").unlink(missing_ok=True)

    with monkeypatch.context() as context:
        context.setattr(Cluster, "_check", busy)
        result = attncalc(*LABEL, "--scheduler", address)
    assert result.exit_code == 0, result.output
    assert outputs() == expected
    assert sorted(Path("seen").read_text().split()) == sorted(f"n{k}" for k in range(N))


def test_ctrl_c_cancels_what_waits(address, monkeypatch):
    write_for_teacher(waits=0)
    Path("hold").touch()

    def interrupted(self: Cluster) -> None:
        if len([*Path("out.xyz.parts").glob("*/0*.json")]) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Cluster, "_check", interrupted)
        result = attncalc(*LABEL, "--scheduler", address)
    assert result.exit_code == 130
    assert "stopped: 4 of 5 shards are done: the same command goes on" in result.stderr
    Path("hold").unlink()
    assert attncalc(*LABEL, "--scheduler", address).exit_code == 0
    assert len(read("out.xyz", ":")) == N


def test_few_tasks_are_at_the_scheduler(address, monkeypatch):
    write_for_teacher()
    monkeypatch.setattr(processing, "STRUCTURES", 1)
    submit, sizes, waiting = Cluster._submit, [], []

    def count(self: Cluster, function: Callable, *arguments: object) -> object:
        from distributed.protocol import serialize

        _, frames = serialize(arguments, serializers=["pickle"])
        sizes.append(sum(map(len, frames)))
        states = [state.status for state in self.client.futures.values()]
        waiting.append(states.count("pending"))
        return submit(self, function, *arguments)

    monkeypatch.setattr(Cluster, "_submit", count)
    assert attncalc(*LABEL, "--scheduler", address).exit_code == 0
    assert [atoms.info["name"] for atoms in read("out.xyz", ":")] == [f"n{k}" for k in range(N)]
    assert len(waiting) >= N
    assert max(waiting) < 2 * cluster.FEW  # without the one that comes
    assert max(sizes) < 5000


def test_another_module_of_the_same_name(address):
    for energy in (1, 2):
        folder = Path(f"folder{energy}")
        folder.mkdir()
        os.chdir(folder)
        write_for_teacher()
        Path("teacher.py").write_text(TEACHER.replace("0.5 *", f"{energy} *"))
        assert attncalc(*LABEL, "--scheduler", address).exit_code == 0
        (atoms,) = read("out.xyz", "4:5")
        assert atoms.get_potential_energy() == pytest.approx(energy * (0.4**2 + 2.5**2))
        os.chdir("..")


def test_what_a_worker_cannot_do_is_one_line(address):
    write_for_teacher()
    line = fails("relax", "many.xyz", "--device", "cuda:99", "--scheduler", address)
    assert "worker tcp://" in line
    assert "device 'cuda:99' does not exist" in line
    assert not Path("many.relaxed.xyz.parts").exists()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("tcp://127.0.0.1:9", "no dask scheduler answers at tcp://127.0.0.1:9 (Timed out"),
        ("tcp://", "no dask scheduler answers at tcp://"),
        ("nothing.json", "no such file: nothing.json: start `dask scheduler --scheduler-file"),
        ("many.xyz", "many.xyz is no file of a dask scheduler: it names no address"),
    ],
)
def test_no_scheduler_answers(scheduler, message, monkeypatch):
    pytest.importorskip("distributed", reason='needs pip install "attncalc[cluster]"')
    monkeypatch.setattr(cluster, "ANSWER", 1.0)
    write_for_teacher()
    assert message in fails(*LABEL, "--scheduler", scheduler)
    assert not Path("out.xyz.parts").exists()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    write_for_teacher()
    line = fails(*LABEL, "--scheduler", "tcp://127.0.0.1:9")
    assert line == 'Error: --scheduler needs dask.distributed: pip install "attncalc[cluster]"'


@pytest.mark.parametrize("other", [["--workers", 2], ["--shard", "1/2"], ["--gather"]])
def test_other_ways_are_refused(other):
    write_for_teacher()
    line = fails(*LABEL, "--scheduler", "tcp://127.0.0.1:9", *other)
    assert line == "Error: --scheduler stands alone: leave out --workers, --shard and --gather"


@dataclass(frozen=True)
class Copying:
    """Leaves structures as they are, or has a bug."""

    bug: bool = False

    def identity(self) -> dict[str, object]:
        return {"bug": self.bug}

    def environment(self) -> dict[str, object]:
        return {}

    def start(self) -> Copying:
        return self

    def __call__(self, frames: Sequence[Frame], first: int) -> list[Outcome]:
        if self.bug:
            raise KeyError("a bug")
        return [(frame.atoms(), {}) for frame in frames]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Shards, in the process of a worker."""
    monkeypatch.setattr(workers, "GRACE", 0.0)
    monkeypatch.setattr(cluster, "_solvers", {})
    monkeypatch.setattr(cluster, "_note_graceful_shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_address_here", lambda: "here")
    write_for_teacher()
    return Work(find_shards(Path("many.xyz"), SIZE), Path("out.xyz").absolute())


def task(run: str, *, bug: bool = False) -> cluster._Task:
    return cluster._Task(Copying(bug), run, str(Path.cwd()))


def test_only_deaths_of_one_run_are_counted(work):
    work.open_folder({"bug": False}, new=True)
    note, died = work.file(1, ".at"), work.file(1, ".died")
    note.parent.mkdir()
    note.write_text("another run")  # all processes were killed
    assert cluster._process_shard(task("run"), work, 1) == ("done", "")
    assert not note.exists()
    assert not died.exists()
    work.file(1, ".json").unlink()
    note.write_text("run")
    assert cluster._process_shard(task("run"), work, 1) == ("done", "")
    assert died.read_text() == "1"
    with workers.FileLock(work.file(2, ".json")):
        assert cluster._process_shard(task("run"), work, 2) == ("busy", "")


def test_a_bug_counts_as_a_death(work):
    work.open_folder({"bug": True}, new=True)
    with_bug = task("run", bug=True)
    for _ in range(2):
        assert cluster._process_shard(with_bug, work, 0) == (
            "again",
            "worker here: KeyError: 'a bug'",
        )
    assert cluster._process_shard(with_bug, work, 0) == ("done", "")
    failed = work.file(0, ".failed.xyz").read_text()
    assert "2 processes died at structures 0 to" in failed
    assert "this is one: KeyError: 'a bug'" in failed


def test_who_is_told_to_end_removes_its_notes(work, monkeypatch):
    work.open_folder({"bug": False}, new=True)

    def told(self: Copying, frames: Sequence[Frame], first: int) -> list[Outcome]:
        assert work.file(0, ".at").read_text() == "run"
        cluster._GracefulShutdown().teardown(None)
        assert not work.file(0, ".at").exists()
        return [(None, {"error": "ended"}) for _ in frames]

    monkeypatch.setattr(Copying, "__call__", told)
    assert cluster._process_shard(task("run"), work, 0) == ("done", "")


def test_a_folder_that_a_worker_does_not_find(work):
    what, said = cluster._process_shard(task("run"), work, 0)
    assert what == "gone"
    assert said == f"worker here does not find {work.folder}: share it"


def test_workers_of_another_kind_are_refused(work):
    work.open_folder({"bug": True}, new=True)
    what, said = cluster._process_shard(task("run"), work, 0)
    assert what == "error"
    assert "holds shards of another bug" in said


def test_a_model_is_loaded_once_and_forgotten(work, monkeypatch):
    work.open_folder({"bug": False}, new=True)
    started = []
    monkeypatch.setattr(Copying, "start", lambda self: started.append(1) or self)
    for k in range(3):
        assert cluster._process_shard(task("run"), work, k)[0] == "done"
    assert len(started) == 1
    other = ("another run", 0)
    cluster._solvers[other] = Copying(), time.monotonic() - cluster.IDLE + 60.0
    assert cluster._process_shard(task("run"), work, 3)[0] == "done"
    assert other in cluster._solvers
    cluster._solvers[other] = Copying(), time.monotonic() - cluster.IDLE - 1.0
    assert cluster._process_shard(task("run"), work, 4)[0] == "done"
    assert [run for run, _ in cluster._solvers] == ["run"]
