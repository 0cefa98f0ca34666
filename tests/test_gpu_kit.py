"""`benchmarks/gpu.py` without a GPU: its dry run, its tables, and that it ends in time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look there
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
        yield module
    for name in ("gpu", "gpu_dynamics", "result_files"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    output = tmp_path / "results"
    command = [sys.executable, str(SCRIPT), "--dry-run", "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((output / "gpu.json").read_text())
    stages = report["stages"]
    assert list(stages) == [
        "machine",
        "compile",
        "tests",
        "speed",
        "kernels",
        "dynamics",
        "settings",
    ]
    assert {entry["state"] for entry in stages.values()} == {"done"}
    assert stages["tests"]["said"][-1].startswith("2 passed")
    timed = [(row["engine"], row["system"]) for row in stages["speed"]["rows"]]
    engines, systems = ("attncalc", "attncalc-equiformer"), ("ethanol", "aspirin")
    assert timed == [(engine, system) for engine in engines for system in systems]
    assert [row["system"] for row in stages["kernels"]["rows"]] == ["ethanol", "aspirin"]
    assert all(row["network_ms"] > 0 for row in stages["speed"]["rows"])
    assert all(row["kernels"] > 5 for row in stages["kernels"]["rows"])
    replicas = [(row["replicas"], row["atoms"]) for row in stages["dynamics"]["rows"]]
    assert replicas == [(1, 9), (2, 18)]
    assert all(row["step_us"] > 0 < row["traffic_us"] for row in stages["dynamics"]["rows"])
    text = (output / "gpu.md").read_text()
    assert "a dry run, its times mean nothing" in text
    assert "| attncalc | ethanol | 9 | 72 |" in text
    assert str(tmp_path) not in text + json.dumps(report)


SLEEPS = "import time; time.sleep(600)"
HANGS = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"child": child.pid}), flush=True)
print('{"cut o', end="", flush=True)
time.sleep(600)
"""


def test_a_stage_that_hangs_is_killed_with_its_children(gpu) -> None:
    start = time.monotonic()
    ended = gpu.run_for(2.0, [sys.executable, "-c", HANGS], dict(os.environ))
    assert time.monotonic() - start < 10
    assert ended.entry()["state"] == "stopped"
    assert ended.entry()["why"] == "its time of 2 s was over"
    (row,) = ended.rows()
    deadline = time.monotonic() + 5  # the system takes a moment to end what was killed
    while is_running(row["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(row["child"])


def is_running(process: int) -> bool:
    """Whether it is there, and not a zombie that nobody has fetched."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_nothing_runs_beyond_the_minutes(gpu, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu.Kit, "worker", lambda *_: [sys.executable, "-c", SLEEPS])
    arguments = ["--dry-run", "--output", str(tmp_path), "--stages", "kernels", "dynamics"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--minutes", str(2 / 60)])
    assert gpu.main() == 1
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert (stages["kernels"]["state"], stages["dynamics"]["state"]) == ("stopped", "skipped")


def test_what_was_measured_survives_the_script(gpu, tmp_path) -> None:
    told = tmp_path / "stage.out"
    gpu.run_for(1.0, [sys.executable, "-c", HANGS], dict(os.environ), told)
    assert json.loads(told.read_text().splitlines()[0])["child"] > 0


def test_a_failure_is_told_by_its_last_line(gpu) -> None:
    ended = gpu.run_for(9.0, [sys.executable, "-c", "print('{}'); 1 / 0"], dict(os.environ))
    entry = ended.entry(rows=ended.rows())
    assert entry["state"] == "failed"
    assert entry["why"] == "ZeroDivisionError: division by zero"
    assert entry["rows"] == [{}]


def test_a_compiler_that_fails_fails_its_stage(gpu, monkeypatch) -> None:
    def processes(stage: str) -> list[subprocess.Popen]:
        return [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({n})"]) for n in (0, 3)]

    monkeypatch.setattr(gpu, "_in_processes", processes)
    with pytest.raises(SystemExit, match=r"^1 of 2 processes could not compile their kernels$"):
        gpu.compile_worker(dry_run=False)


def test_a_machine_that_will_not_do(gpu, tmp_path, monkeypatch) -> None:
    found = {"gpu": None, "torch": "2.11.0", "cuda": None, "driver": None, "python": "3.12.3"}
    script = f"print({json.dumps(found)!r})"
    monkeypatch.setattr(gpu.Kit, "worker", lambda *_: [sys.executable, "-c", script])
    arguments = ["gpu.py", "--output", str(tmp_path), "--stages", "machine", "speed"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"^gpu\.py: PyTorch 2\.11\.0 sees no CUDA device .*$"):
        gpu.main()
    assert list(json.loads((tmp_path / "gpu.json").read_text())["stages"]) == ["machine"]


REPORT = {
    "dry_run": False,
    "minutes": 9.0,
    "stages": {
        "machine": {
            **{"state": "done", "seconds": 4.2, "gpu": "A GPU", "torch": "2.11.0", "cuda": "13.0"},
            **{"driver": "580.1", "python": "3.12.3", "commit": "6c2ab8e"},
        },
        "tests": {
            **{"state": "stopped", "why": "its time of 200 s was over", "seconds": 200.0},
            "said": ["FAILED tests/test_cuda.py::test_x - off by 1", "1 failed, 30 passed"],
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
        "settings": {
            **{"state": "done", "seconds": 9.0},
            "rows": [
                {"kernel": "turn", "system": "a", "num_warps": 4, "used": True, "us": 9.0},
                {"kernel": "turn", "system": "a", "num_warps": 8, "used": False, "us": 5.26},
                {"kernel": "turn", "system": "a", "num_warps": 2, "used": False, "failed": "no"},
            ],
        },
    },
}


def test_tables(gpu) -> None:
    lines = gpu.markdown(REPORT).splitlines()
    head = "A GPU, torch 2.11.0, CUDA 13.0, driver 580.1, Python 3.12.3, commit 6c2ab8e"
    assert lines[0] == head
    for line in (
        "| machine | done | 4 |  |",
        "| tests | stopped | 200 | its time of 200 s was over |",
        "FAILED tests/test_cuda.py::test_x - off by 1",
        "| engine | system | atoms | edges | network | list reused | peak MiB |",
        "| ours | ethanol | 9 | 72 | 3.000 |  | 10 |",
        "| ours | box | 99 | 7 |  | 0.500 | 100 |",
        "| a | 500 | 3.000 | 0.900 | 2.000 | launches |",
        "| b | 500 | 9.000 | 8.500 | 2.000 | kernels |",
        "| c | none seen by the profiler | 9.000 |  |  |  |",
        "| d | 500 | 9.000 | 0.900 | 2.000 | neither |",
        "| e | 500 | 3.000 | 1.500 | 2.000 | kernels |",
        "| turn | a | 9.0 | 5.3 | num_warps 8 |",
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
    # of a pair, which is two edges; the filters of two layers, forward and reverse
    assert of_edge == 2 * 2 * 2 * (spherical + table + attention) / 2
    assert (
        gpu_dynamics.least_work(config, 0, 10)[0] == 10 * gpu_dynamics.least_work(config, 0, 1)[0]
    )


def test_medians(gpu) -> None:
    row = {"system": "x", "atoms": 3, "network": [3.0, 1.0, 2.0, 9.0], "plain": [], "other": [1]}
    assert gpu.medians(row) == {"system": "x", "atoms": 3, "network_ms": 2.5}
