"""`benchmarks/gpu.py` without a GPU: its dry run, its tables, and that it ends in time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
ALL_STAGES = ("packages", "machine", "tests", "speed", "kernels", "dynamics", "training")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look there
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
        yield module
    for name in ("gpu", "gpu_dynamics", "parts", "tables"):
        sys.modules.pop(name, None)


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def tiny_wheel(folder: Path) -> Path:
    """The smallest thing that pip installs."""
    folder.mkdir()
    info = "tiny_thing-1.dist-info"
    with zipfile.ZipFile(folder / "tiny_thing-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_thing.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1\n")
        tags = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    output = tmp_path / "results"
    done = call("--dry-run", "--output", output, "--wheels", tiny_wheel(tmp_path / "wheels"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((output / "gpu.json").read_text())
    stages = report["stages"]
    assert list(stages) == list(ALL_STAGES)
    assert {entry["state"] for entry in stages.values()} == {"done"}
    assert (tmp_path / "results-site" / "tiny_thing.py").exists()
    assert stages["machine"]["missing"] == []
    assert (stages["tests"]["passed"], stages["tests"]["not_run"]) == (2, 0)
    timed = [(row["engine"], row["system"]) for row in stages["speed"]["rows"]]
    engines, systems = ("attncalc", "attncalc-equiformer"), ("ethanol", "aspirin")
    assert timed == [(engine, system) for engine in engines for system in systems]
    assert [row["system"] for row in stages["kernels"]["rows"]] == ["ethanol", "aspirin"]
    assert all(row["network_ms"] > 0 for row in stages["speed"]["rows"])
    assert all(row["kernels"] > 5 for row in stages["kernels"]["rows"])
    replicas = [(row["replicas"], row["atoms"]) for row in stages["dynamics"]["rows"]]
    assert replicas == [(1, 9), (2, 18)]
    assert all(row["step_us"] > 0 < row["traffic_us"] for row in stages["dynamics"]["rows"])
    training = stages["training"]
    assert training["epochs_before"] >= 2
    assert training["epochs_after"] >= training["epochs_before"] + 3
    text = (output / "gpu.md").read_text()
    assert "a dry run, its times mean nothing" in text
    assert "| attncalc | ethanol | 9 | 72 |" in text
    assert str(tmp_path) not in text + json.dumps(report)

    # the first epoch, wall time included, is the one of the run that was begun
    begun, went_on = (
        (output / name / "metrics.csv").read_text() for name in ("begun/run", "begun/went-on")
    )
    assert begun.splitlines()[:2] == went_on.splitlines()[:2]
    assert "continues from there (begun/went-on)" in training["said"][-1]
    for name in ("begun/run", "begun/went-on"):
        assert {path.name for path in (output / name).iterdir()} == {
            *("dry-run.safetensors", "last.ckpt", "metrics.csv", "recipe.json")
        }


@dataclass(frozen=True)
class Given:
    """What a training goes on with."""

    recipe: Path
    data: Path
    run: Path
    output: Path

    def arguments(self) -> list[str]:
        files = {"--train": self.recipe, "--data": self.data, "--run": self.run}
        words = [word for pair in files.items() for word in pair]
        return [*map(str, ["gpu.py", "--output", self.output, "--stages", "training", *words])]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A run of one epoch."""
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "last.ckpt").write_bytes(b"checkpoint")
    (run / "metrics.csv").write_text("epoch,wall_time_s\n1,2.0\n")
    recipe, data = tmp_path / "recipe.yaml", tmp_path / "data.xyz"
    recipe.touch(), data.touch()
    return Given(recipe, data, run, tmp_path / "results")


def test_a_training_goes_on_in_a_copy(gpu, given, monkeypatch) -> None:
    run, output = given.run, given.output

    def train(kit, *files: Path, n_epochs: int | None):
        assert files == (given.recipe, given.data, output / "run")
        assert n_epochs is None
        assert (output / "run" / "last.ckpt").read_bytes() == b"checkpoint"
        with open(output / "run" / "metrics.csv", "a") as table:
            table.write("2,5.0\n")
        return gpu.Ended("stopped", 99.0, [], [f"continues from there ({output}/run)"])

    monkeypatch.setattr(gpu, "train", train)
    monkeypatch.setattr(sys, "argv", given.arguments())
    assert gpu.main() == 0
    assert json.loads((output / "gpu.json").read_text())["stages"]["training"] == {
        **{"state": "done", "seconds": 99.0, "why": "stopped after 99 s, as planned"},
        **{"epochs_before": 1, "epochs_after": 2, "s_per_epoch": 3.0},
        "said": ["continues from there (run)"],
    }
    assert (run / "metrics.csv").read_text().count("\n") == 2, "the original stays"


def test_a_large_checkpoint_travels_in_parts(gpu, given, monkeypatch) -> None:
    from parts import split

    run, output, content = given.run, given.output, os.urandom(40_000_000)
    (run / "last.ckpt").write_bytes(content)
    assert len(split(run)) == 3
    assert not (run / "last.ckpt").exists()

    def train(kit, recipe: Path, data: Path, folder: Path, *, n_epochs: int | None):
        assert (folder / "last.ckpt").read_bytes() == content
        (folder / "last.ckpt").write_bytes(content[::-1])
        with open(folder / "metrics.csv", "a") as table:
            table.write("2,5.0\n")
        return gpu.Ended("stopped", 99.0, [], [])

    monkeypatch.setattr(gpu, "train", train)
    monkeypatch.setattr(sys, "argv", given.arguments())
    assert gpu.main() == 0
    sizes = [path.stat().st_size for path in (output / "run").iterdir()]
    assert max(sizes) <= gpu.LARGEST_FILE
    assert sum(sizes) > 40_000_000
    assert len(list(run.glob("last.ckpt.part-*"))) == 3, "the original stays"


def test_parts_that_do_not_belong_together_are_not_joined(gpu, tmp_path) -> None:
    from parts import join, split

    whole, small = tmp_path / "deep" / "last.ckpt", tmp_path / "metrics.csv"
    whole.parent.mkdir()
    content = os.urandom(1000)
    whole.write_bytes(content)
    small.write_text("small")
    parts = split(tmp_path, 300)
    assert [part.stat().st_size for part in parts] == [300, 300, 300, 100]
    taken = parts[2].read_bytes()
    parts[2].unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt: part 2 of 4 is missing"):
        join(tmp_path)
    parts[2].write_bytes(taken[::-1])
    with pytest.raises(ValueError, match=r"last\.ckpt: its parts are damaged"):
        join(tmp_path)
    parts[2].write_bytes(taken)
    whole.write_text("newer")
    with pytest.raises(ValueError, match=r"last\.ckpt: there are several of it; remove all but"):
        join(tmp_path)
    assert whole.read_text() == "newer"
    whole.unlink()
    assert join(tmp_path) == [whole]
    assert whole.read_bytes() == content
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        *("last.ckpt", "metrics.csv")
    ]
    assert join(tmp_path) == split(tmp_path) == []


@pytest.mark.parametrize(
    ("killed", "n_new", "state", "why"),
    [
        (False, 1, "done", "as planned"),
        (False, 0, "stopped", "without a further epoch"),
        (True, 1, "stopped", "it did not listen to Ctrl-C and was killed"),
    ],
)
def test_a_stopped_training_is_done_if_it_got_on(
    gpu, given, monkeypatch, killed, n_new, state, why
) -> None:
    def train(kit, recipe: Path, data: Path, folder: Path, *, n_epochs: int | None):
        with open(folder / "metrics.csv", "a") as table:
            table.write("2,5.0\n" * n_new)
        return gpu.Ended("stopped", 99.0, [], [], killed)

    monkeypatch.setattr(gpu, "train", train)
    monkeypatch.setattr(sys, "argv", given.arguments())
    assert gpu.main() == int(state != "done")
    training = json.loads((given.output / "gpu.json").read_text())["stages"]["training"]
    assert training["state"] == state
    assert why in training["why"]
    assert (training["epochs_before"], training["epochs_after"]) == (1, 1 + n_new)


@pytest.mark.parametrize(
    ("run", "output", "told"),
    [
        ("results/run", "results", "--run lies in the results folder, {output}: move it out first"),
        ("results/run/member-1", "results", "--run lies in the results folder, {output}: move it"),
        ("link", "results", "--run lies in the results folder, {output}: move it out first"),
        ("mine", "mine", "--output lies in the folder of --run, {run}: give another one"),
        ("mine", "mine/results", "--output lies in the folder of --run, {run}: give another one"),
        ("mine", "results", "--output: {output}/run holds an earlier training: move it out first"),
    ],
    ids=["same", "inside", "linked", "as-output", "around-output", "second-call"],
)
def test_no_checkpoint_is_overwritten(
    gpu, given, tmp_path, monkeypatch, capsys, run, output, told
) -> None:
    given = replace(given, run=tmp_path / run, output=tmp_path / output)
    (tmp_path / "results" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "results" / "run")
    for folder in (given.run, tmp_path / "results" / "run"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.ckpt").write_bytes(b"checkpoint")
    monkeypatch.setattr(sys, "argv", given.arguments())
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert told.format(run=given.run, output=given.output) in line
    for folder in (given.run, tmp_path / "results" / "run"):
        assert (folder / "last.ckpt").read_bytes() == b"checkpoint"


def test_wheels_of_an_earlier_call_are_removed(gpu, tmp_path, monkeypatch) -> None:
    stale = tmp_path / "results-site" / "numpy" / "__init__.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    arguments = ["--dry-run", "--output", str(tmp_path / "results"), "--stages", "packages"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    assert gpu.main() == 0
    assert not stale.exists()


CLEANS_UP_BADLY = """
import pytest

@pytest.fixture
def thing():
    yield
    raise OSError("still open")

def test_with(thing):
    pass

def test_after_it():
    pass
"""


def test_a_test_counts_once(gpu, tmp_path, monkeypatch) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(CLEANS_UP_BADLY)
    script = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import gpu, pytest; "
        f"pytest.main(['-q', '-p', 'no:cacheprovider', {str(file)!r}], plugins=[gpu.EachTest()])"
    )
    monkeypatch.setattr(gpu.Kit, "worker", lambda *_: [sys.executable, "-c", script])
    arguments = ["--dry-run", "--output", str(tmp_path / "results"), "--stages", "tests"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "results" / "gpu.json").read_text())["stages"]["tests"]
    assert [found[name] for name in ("collected", "passed", "failed", "not_run")] == [2, 1, 1, 0]
    (failure,) = found["failures"]
    assert "still open" in failure["message"]


HANGS = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"collected": 2}))
print(json.dumps({"test": "a", "outcome": "passed", "message": ""}))
print(json.dumps({"child": child.pid}), flush=True)
print('{"test": "cut o', end="", flush=True)
time.sleep(600)
"""


def test_a_stage_that_hangs_is_killed_with_its_children(gpu, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(gpu.LIMITS, "tests", 2.0)
    monkeypatch.setattr(gpu.Kit, "worker", lambda *_: [sys.executable, "-c", HANGS])
    children = []
    entry = gpu.Ended.entry

    def spied(ended, **content):
        children.extend(row["child"] for row in ended.rows() if "child" in row)
        return entry(ended, **content)

    monkeypatch.setattr(gpu.Ended, "entry", spied)
    arguments = ["--dry-run", "--output", str(tmp_path), "--stages", "tests", "training"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--minutes", "0.3"])
    start = time.monotonic()
    assert gpu.main() == 1
    assert time.monotonic() - start < 10
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert stages["tests"]["state"] == "stopped"
    assert stages["tests"]["why"] == "its time of 2 s was over"
    assert (stages["tests"]["passed"], stages["tests"]["not_run"]) == (1, 1)
    assert stages["training"]["state"] == "skipped"
    assert "s were left" in stages["training"]["why"]
    assert "tests: stopped its time of 2 s was over" in capsys.readouterr().out
    (child,) = children
    deadline = time.monotonic() + 5  # the system takes a moment to end what was killed
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process: int) -> bool:
    """Whether it is there, and not a zombie that nobody has fetched."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_nothing_runs_beyond_the_minutes(gpu, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu.Kit, "worker", lambda *_: [sys.executable, "-c", HANGS])
    arguments = ["--dry-run", "--output", str(tmp_path), "--stages", "tests", "kernels"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--minutes", str(5 / 60)])
    start = time.monotonic()
    assert gpu.main() == 1
    assert time.monotonic() - start < 6
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert (stages["tests"]["state"], stages["kernels"]["state"]) == ("stopped", "skipped")


def test_a_training_that_does_not_listen_is_killed(gpu, monkeypatch) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    start = time.monotonic()
    ended = gpu.run_for(1.0, [sys.executable, "-c", deaf], dict(os.environ), grace=1.0)
    assert (ended.state, ended.killed) == ("stopped", True)
    assert 2.0 <= time.monotonic() - start < 5


def test_a_training_that_listens_ends_by_itself(gpu, tmp_path) -> None:
    there = tmp_path / "there"
    listens = (
        "import pathlib, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"pathlib.Path({str(there)!r}).touch(); time.sleep(600)"
    )
    ended = gpu.run_for(
        30.0, [sys.executable, "-c", listens], dict(os.environ), grace=30.0, enough=there.exists
    )
    assert (ended.state, ended.killed) == ("stopped", False)
    assert ended.errors[-1] == "KeyboardInterrupt"


def test_a_failure_is_told_by_its_last_line(gpu) -> None:
    ended = gpu.run_for(9.0, [sys.executable, "-c", "print('{}'); 1 / 0"], dict(os.environ))
    entry = ended.entry(rows=ended.rows())
    assert entry["state"] == "failed"
    assert entry["why"] == "ZeroDivisionError: division by zero"
    assert entry["rows"] == [{}]


NO_GPU = {"gpu": None, "torch": "2.11.0", "cuda": None, "driver": None, "python": "3.12.3"}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (NO_GPU | {"missing": []}, "PyTorch 2.11.0 sees no CUDA device (--dry-run does all on"),
        ({"missing": ["ase (No module)"]}, "cannot be imported: ase (`make gpu-wheels"),
    ],
)
def test_a_machine_that_will_not_do(gpu, tmp_path, monkeypatch, found, told) -> None:
    script = f"print({json.dumps(found)!r})"
    monkeypatch.setattr(gpu.Kit, "worker", lambda *_: [sys.executable, "-c", script])
    arguments = ["gpu.py", "--output", str(tmp_path), "--stages", "machine", "speed"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert str(ended.value).startswith(f"gpu.py: {told}")
    assert "\n" not in str(ended.value)
    assert list(json.loads((tmp_path / "gpu.json").read_text())["stages"]) == ["machine"]


def test_wrong_arguments_get_one_line(gpu, tmp_path, monkeypatch, capsys) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text("name: x\n")
    run.mkdir()
    all_three = ["--train", recipe, "--data", recipe, "--run", run]

    def told(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            gpu.main()
        return capsys.readouterr().err.splitlines()[-1]

    assert told("--train", recipe).endswith("go together; missing: --data, --run")
    assert told(*all_three).endswith(f"--run: no checkpoint (last.ckpt) in {run}")
    (run / "last.ckpt").write_bytes(bytes(16_000_000))
    assert told(*all_three).endswith(f"python benchmarks/parts.py split {run}")
    assert told(*all_three[:2], "--data", "nowhere", *all_three[4:]).endswith(
        "--data: no such file: nowhere"
    )
    assert told("--minutes", "-1").endswith("--minutes must be positive, got -1.0")
    assert told("--wheels", tmp_path / "no").endswith(f"no such folder: {tmp_path / 'no'}")


REPORT = {
    "dry_run": False,
    "minutes": 9.0,
    "stages": {
        "machine": {
            **{"state": "done", "seconds": 4.2, "gpu": "A GPU", "torch": "2.11.0", "cuda": "13.0"},
            **{"driver": "580.1", "python": "3.12.3", "missing": []},
        },
        "tests": {
            **{"state": "stopped", "why": "its time of 200 s was over", "seconds": 200.0},
            **{"passed": 30, "failed": 1, "error": 0, "skipped": 2, "not_run": 4},
            "failures": [{"test": "tests/test_cuda.py::test_x", "message": "off by 1"}],
        },
        "speed": {
            "state": "done",
            "seconds": 40.0,
            "rows": [
                {"engine": "ours", "system": "ethanol", "atoms": 9, "edges": 72}
                | {"peak_MiB": 10.4, "network_ms": 3.0},
                {"engine": "ours", "system": "box", "atoms": 99, "edges": 7}
                | {"peak_MiB": 99.6, "list_reused_ms": 0.5},
            ],
        },
        "kernels": {
            "state": "done",
            "seconds": 9.0,
            "rows": [
                {"system": "a", "kernels": 500, "wall_ms": 3.0, "busy_ms": 0.9, "launch_us": 4.0},
                {"system": "b", "kernels": 500, "wall_ms": 9.0, "busy_ms": 8.5, "launch_us": 4.0},
                {"system": "c", "kernels": 0, "wall_ms": 9.0, "busy_ms": 0.0, "launch_us": 4.0},
                {"system": "d", "kernels": 500, "wall_ms": 9.0, "busy_ms": 0.9, "launch_us": 4.0},
                {"system": "e", "kernels": 500, "wall_ms": 3.0, "busy_ms": 1.5, "launch_us": 4.0},
            ],
        },
        "training": {
            **{"state": "done", "seconds": 99.0, "epochs_before": 3, "epochs_after": 13},
            "s_per_epoch": 9.8765,
        },
    },
}


def test_tables(gpu) -> None:
    lines = gpu.markdown(REPORT).splitlines()
    assert lines[0] == "A GPU, torch 2.11.0, CUDA 13.0, driver 580.1, Python 3.12.3"
    for line in (
        "| machine | done | 4 |  |",
        "| tests | stopped | 200 | its time of 200 s was over; 30 passed, 1 failed, 2 skipped, "
        "4 not run |",
        "| training | done | 99 | epochs 3 -> 13, 9.88 s/epoch |",
        "- `tests/test_cuda.py::test_x`: off by 1",
        "| engine | system | atoms | edges | network | list reused | peak MiB |",
        "| ours | ethanol | 9 | 72 | 3.000 |  | 10 |",
        "| ours | box | 99 | 7 |  | 0.500 | 100 |",
        "| a | 500 | 3.000 | 0.900 | 2.000 | launches |",
        "| b | 500 | 9.000 | 8.500 | 2.000 | kernels |",
        "| c | none seen by the profiler | 9.000 |  |  |  |",
        "| d | 500 | 9.000 | 0.900 | 2.000 | neither |",
        "| e | 500 | 3.000 | 1.500 | 2.000 | kernels |",
    ):
        assert line in lines
    assert gpu.markdown({"dry_run": False, "stages": {}}).startswith("Machine not known")


def test_a_step_beside_its_limits(gpu) -> None:
    facts = {"network": "so3krates", "system": "aspirin", "replicas": 64}
    row = {"atoms": 1344, "step_us": 400.0, "kernels_per_step": 20.0, "busy_us": 350.0}
    row |= {"waits_per_chunk": 1, "launches_us": 40.0, "traffic_us": 100.0, "arithmetic_us": 80.0}
    equiformer = {name: row[name] for name in row if name not in ("traffic_us", "arithmetic_us")}
    head, body = gpu.table_rows(
        [facts | row, facts | {"failed": "no"}, {**facts, "network": "equiformer"} | equiformer]
    )
    step = ["1,344", "400.0", "6.25", "298", "20", "350.0", "1", "40.0 / 100.0 / 80.0", "25 %"]
    assert body[0] == ["so3krates", "aspirin", "64", *step]
    assert body[1][3] == "no"
    assert body[2][-2:] == ["40.0", "10 %"]
    assert {len(head)} == {len(cells) for cells in body}


def test_least_work_of_a_network(gpu) -> None:
    """By two countings: of the layers' tensors here, and one by one in the module."""
    import gpu_dynamics

    from attncalc.nn.so3krates import So3krates, So3kratesConfig

    config = So3kratesConfig(4.5, 13.17)
    network = So3krates(config, 3)
    (_, one_atom), (_, of_edge) = (
        gpu_dynamics.least_work(config, *sizes) for sizes in ((1, 0), (0, 1))
    )
    layer = network.layers[0]
    weights = [
        *(layer.attention.feature_projection, layer.attention.geometry_projection),
        *(layer.mlp_after_attention.first.weight, layer.mlp_after_attention.second.weight),
        layer.exchange.linear.weight,
    ]
    # forward and reverse, 2 operations for each weight
    assert one_atom == 2 * 2 * config.num_layers * sum(weight.numel() for weight in weights)
    filters = layer.attention.spherical_mlp
    spherical = filters.first.numel() + filters.second.numel()
    table, attention = 4 * 2 * 128, 5 * 128 + 2 * 24
    # of a pair, which is two edges; the filters of two layers, three times
    assert of_edge == 2 * 3 * 2 * (spherical + table + attention) / 2
    assert (
        gpu_dynamics.least_work(config, 0, 10)[0] == 10 * gpu_dynamics.least_work(config, 0, 1)[0]
    )


def test_medians(gpu) -> None:
    row = {"system": "x", "atoms": 3, "network": [3.0, 1.0, 2.0, 9.0], "plain": [], "other": [1]}
    assert gpu.medians(row) == {"system": "x", "atoms": 3, "network_ms": 2.5}


def test_progress_of_a_committee(gpu, tmp_path) -> None:
    for name, times in (("member-1", [2.0, 4.0, 6.5]), ("member-2", [1.0])):
        (tmp_path / name).mkdir()
        rows = "".join(f"{k},{time}\n" for k, time in enumerate(times))
        (tmp_path / name / "metrics.csv").write_text(f"epoch,wall_time_s\n{rows}")
    found = gpu.histories(tmp_path)
    assert found == {"member-1": [2.0, 4.0, 6.5], "member-2": [1.0]}
    before = {"member-1": [2.0]}
    assert gpu.progress(before, found) == {
        **{"epochs_before": 1, "epochs_after": 4, "s_per_epoch": 2.0}
    }
    assert gpu.progress(found, found)["s_per_epoch"] is None


def test_the_last_lines_of_a_failure(gpu) -> None:
    text = "def test():\n>   assert 1 == 2\nE   assert 1 == 2\nE     why\n\ntests/a.py:3: Error\n"
    assert gpu.last_lines(text) == "assert 1 == 2 | why | tests/a.py:3: Error"
    assert gpu.last_lines("Skipped: no GPU") == "Skipped: no GPU"
    assert gpu.last_lines("") == ""
