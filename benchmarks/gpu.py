"""CUDA tests, speed and a stretch of training on a GPU, by one command that ends in time.

    python benchmarks/gpu.py                                  # nine minutes at most
    python benchmarks/gpu.py --train RECIPE.yaml --data FILE --run FOLDER
    python benchmarks/gpu.py --dry-run                        # all of it on the CPU, small

Stages: packages (wheels of `make gpu-wheels`, put beside the results, not into the system),
machine, tests, speed, kernels, dynamics (whole steps), training (goes on from the checkpoint in
FOLDER until the time is over). Every stage is a process of its own that is killed when its time is
over; gpu.json and gpu.md are written after every stage, with what was measured until then.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpu_dynamics import table_rows
from gpu_dynamics import worker as dynamics_worker
from parts import join, split
from tables import table, write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHEELS = ROOT / ".wheels"

# s that a stage may take at most; training takes what is left
LIMITS = {"packages": 60.0, "machine": 60.0, "tests": 200.0, "speed": 100.0, "kernels": 60.0}
LIMITS["dynamics"] = 120.0
STAGES = (*LIMITS, "training")
CLOSING = 3.0  # s kept for the last files
GRACE = 20.0  # s between Ctrl-C and the end of a training that does not listen
SHORTEST_TRAINING = 15.0  # s below which importing and loading would be all of it
LARGEST_FILE = 15e6  # bytes of a file of the run that goes along

SYSTEMS = ("ethanol", "aspirin", "peptide", "water-192", "water-1536", "water-6144")
PARTS = ("network", "forward", "calculate", "list_reused", "list_rebuilt", "plain")
NEEDED = (
    *("numpy", "scipy", "torch", "ase", "matscipy", "e3nn", "h5py", "safetensors", "jinja2"),
    *("matplotlib", "click", "tqdm", "lightning", "yaml", "pytest", "hypothesis"),
)

# what a dry run does instead; little beside the imports of every stage
DRY_SYSTEMS = ("ethanol", "aspirin")
DRY_TESTS = "cpu-padded and (capacity or whole_pairs)"
DRY_DATA = ROOT / "tests" / "data" / "xtb_small_molecules_test.extxyz"
DRY_RECIPE = """\
name: dry-run
data: xtb_small_molecules_test.extxyz
split: {sizes: [20, 5]}
config: {cutoff: 4.0, num_features: 8, num_heads: 1, degrees: [1], num_layers: 1, num_basis: 8,
         head_features: 8}
epochs: 10000
batch_size: 10
compile: never
"""


# ------------------------------------------------------------------- processes with an end


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed until then."""

    state: str  # "done", "failed" or "stopped" (its time was over)
    seconds: float
    output: list[str]
    errors: list[str]
    killed: bool = False  # it did not end by itself, in the grace neither

    def rows(self) -> list[dict[str, Any]]:
        """The JSON objects among the printed lines; a line cut off by the end is none."""
        found = []
        for line in self.output:
            with contextlib.suppress(ValueError):
                if line.startswith("{"):
                    found.append(json.loads(line))
        return found

    def entry(self, **content: Any) -> dict[str, Any]:
        """What the report says of a stage; of one that did not end well, the last error line."""
        why = {"why": (self.errors or ["no output"])[-1][:300]} if self.state == "failed" else {}
        if self.state == "stopped":
            why = {"why": f"its time of {self.seconds:.0f} s was over"}
        return {"state": self.state, "seconds": round(self.seconds, 1)} | why | content


def run_for(
    seconds: float,
    command: list[str],
    environment: dict[str, str],
    *,
    grace: float = 0.0,
    enough: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a command, and kill it with all of its children when its time is over.

    Args:
        seconds: its time.
        command: program and arguments.
        environment: variables, all of them.
        grace: s between Ctrl-C at the end of the time and the killing; 0 kills at once.
        enough: asked again and again; True ends the time.
    """
    start, state = time.monotonic(), "done"
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            while process.poll() is None and state == "done":
                time.sleep(0.05)
                if time.monotonic() - start > seconds or enough():
                    state = "stopped"
            if state == "stopped" and grace:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
        finally:
            killed = process.poll() is None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children, too
            process.wait()
        if state == "done" and process.returncode:
            state = "failed"
        return Ended(state, time.monotonic() - start, _lines(output), _lines(errors), killed)


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").splitlines()


# ------------------------------------------------------------------- stages, as seen from outside


@dataclass(frozen=True)
class Kit:
    """One call of this script.

    Attributes:
        arguments: of the command line.
        deadline: `time.monotonic()` at which everything has ended.
    """

    arguments: argparse.Namespace
    deadline: float

    @property
    def left(self) -> float:
        """s for further stages."""
        return self.deadline - time.monotonic() - CLOSING

    @property
    def site(self) -> Path:
        """Where the wheels go: beside the results."""
        output = self.arguments.output
        return output.with_name(f"{output.name}-site")

    @property
    def environment(self) -> dict[str, str]:
        places = [str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        quiet = {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
        single = {"OMP_NUM_THREADS": "1"} if self.arguments.dry_run else {}
        path = os.pathsep.join(place for place in places if place)
        return os.environ | quiet | single | {"PYTHONPATH": path}

    def worker(self, stage: str, *more: str) -> list[str]:
        """The command of a stage that this script does itself, in another process."""
        dry = ["--dry-run"] if self.arguments.dry_run else []
        return [sys.executable, str(HERE / "gpu.py"), "--worker", stage, *dry, *more]

    def run(self, stage: str, command: list[str]) -> Ended:
        """A command within the time of its stage."""
        return run_for(max(0.0, min(LIMITS[stage], self.left)), command, self.environment)


def packages(kit: Kit) -> dict[str, Any]:
    """Unpack the wheels; those of an earlier call may be of another Python."""
    shutil.rmtree(kit.site, ignore_errors=True)
    folder = kit.arguments.wheels
    if folder is None or not folder.is_dir():
        return {"state": "skipped", "why": "no folder of wheels; what is installed is used"}
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    if not wheels:
        return {"state": "skipped", "why": f"no wheels in {folder.name}"}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--no-warn-conflicts"]
    return kit.run("packages", [*command, "--target", str(kit.site), *wheels]).entry(n=len(wheels))


def machine(kit: Kit) -> dict[str, Any]:
    """What this is, and whether it will do."""
    ended = kit.run("machine", kit.worker("machine"))
    entry = ended.entry(**{k: v for row in ended.rows() for k, v in row.items()})
    if entry.get("missing"):
        names = ", ".join(reason.split(" ")[0] for reason in entry["missing"])
        why = f"cannot be imported: {names} (`make gpu-wheels` fetches wheels)"
        return entry | {"state": "failed", "why": why}
    if entry["state"] == "done" and not entry["gpu"] and not kit.arguments.dry_run:
        why = f"PyTorch {entry['torch']} sees no CUDA device (--dry-run does all on the CPU)"
        return entry | {"state": "failed", "why": why}
    return entry


def tests(kit: Kit) -> dict[str, Any]:
    """Counts, and the end of every failure."""
    ended = kit.run("tests", kit.worker("tests"))
    rows = ended.rows()
    # a test that passed may fail once more when it cleans up: the last word counts
    counts = Counter({row["test"]: row["outcome"] for row in rows if "outcome" in row}.values())
    collected = sum(row.get("collected", 0) for row in rows)
    return ended.entry(
        collected=collected,
        **{name: counts[name] for name in ("passed", "failed", "error", "skipped")},
        not_run=collected - sum(counts.values()) + counts["error"],
        failures=[row for row in rows if row.get("outcome") in ("failed", "error")],
        why_skipped=sorted({row["message"] for row in rows if row.get("outcome") == "skipped"}),
    )


def speed(kit: Kit) -> dict[str, Any]:
    """Medians of what `benchmarks/run.py` measures."""
    dry = kit.arguments.dry_run
    engines = ["attncalc", "attncalc-equiformer"]
    command = [sys.executable, str(HERE / "run.py"), "--worker", *engines, "--threads", "1"]
    command += ["--device", "cpu" if dry else "cuda", "--budget", "0.05" if dry else "4"]
    ended = kit.run("speed", [*command, "--systems", *(DRY_SYSTEMS if dry else SYSTEMS)])
    return ended.entry(rows=[medians(row) for row in ended.rows()])


def kernels(kit: Kit) -> dict[str, Any]:
    """How many kernels one evaluation launches, and whether launching them is what takes time."""
    ended = kit.run("kernels", kit.worker("kernels"))
    return ended.entry(rows=ended.rows())


def dynamics(kit: Kit) -> dict[str, Any]:
    """Whole steps of dynamics, beside what limits them."""
    ended = kit.run("dynamics", kit.worker("dynamics"))
    return ended.entry(rows=ended.rows())


def training(kit: Kit) -> dict[str, Any]:
    """Let a run go on until the time is over; checkpoint, metrics and model come back."""
    asked, dry = kit.arguments, kit.arguments.dry_run
    if asked.train is None and not dry:
        return {"state": "skipped", "why": "not asked for (--train, --data, --run)"}
    if kit.left - GRACE < SHORTEST_TRAINING:
        return {"state": "skipped", "why": f"only {kit.left:.0f} s were left"}
    if asked.train is None:
        recipe, data, begun = begin_training(kit)
        folder = begun.with_name("went-on")
    else:
        recipe, data, begun = asked.train, asked.data, asked.run
        folder = copy_of_run(asked)  # not there yet: `check_run`
    shutil.copytree(begun, folder)
    join(folder)
    before = histories(folder)
    ended = train(kit, recipe, data, folder, n_epochs=2 if dry else None)
    split(folder)  # what comes back has small files, too
    said = [line.replace(f"{asked.output}{os.sep}", "") for line in ended.errors[-8:]]
    entry = ended.entry(**progress(before, histories(folder)), said=said)
    if ended.state == "stopped":
        entry |= how_it_stopped(ended, n_new=entry["epochs_after"] - entry["epochs_before"])
    return entry


def how_it_stopped(ended: Ended, n_new: int) -> dict[str, str]:
    """Whether a training that was stopped did what it was started for."""
    when = f"stopped after {ended.seconds:.0f} s"
    if ended.killed:
        return {"state": "stopped", "why": f"{when}: it did not listen to Ctrl-C and was killed"}
    if n_new < 1:
        return {"state": "stopped", "why": f"{when}, without a further epoch"}
    return {"state": "done", "why": f"{when}, as planned"}


def copy_of_run(arguments: argparse.Namespace) -> Path:
    """Where a training goes on: in a copy, what is given stays as it is."""
    return arguments.output / "run"


def begin_training(kit: Kit) -> tuple[Path, Path, Path]:
    """Recipe, data and folder of a tiny run that was stopped, for a dry run."""
    place = kit.arguments.output / "begun"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    recipe = place / "dry-run.yaml"
    recipe.write_text(DRY_RECIPE)
    train(kit, recipe, DRY_DATA, place / "run", n_epochs=1)
    return recipe, DRY_DATA, place / "run"


def train(kit: Kit, recipe: Path, data: Path, folder: Path, *, n_epochs: int | None) -> Ended:
    """`attncalc train` until the time is over or, if given, so many further epochs are kept."""

    def done() -> int:
        return sum(map(len, histories(folder).values()))

    start, files = done(), {"--train": recipe, "--data": data, "--output": folder}
    return run_for(
        kit.left - GRACE,
        kit.worker("training", *(str(word) for pair in files.items() for word in pair)),
        kit.environment,
        grace=GRACE,
        # an epoch's row is written before its checkpoint: the next row says that both are there
        enough=lambda: n_epochs is not None and done() > start + n_epochs,
    )


# ------------------------------------------------------------------- numbers and tables


def medians(row: dict[str, Any]) -> dict[str, Any]:
    """Of the lists of ms per call; what is no list stays."""
    facts = {name: value for name, value in row.items() if not isinstance(value, list)}
    return facts | {f"{name}_ms": median(row[name]) for name in PARTS if row.get(name)}


def histories(folder: Path) -> dict[str, list[float]]:
    """Wall time [s] at the end of every epoch, by the folder of each member (of a committee)."""
    found = {}
    for path in sorted(folder.rglob("metrics.csv")):
        with open(path, newline="") as file:
            times = [float(row["wall_time_s"]) for row in csv.DictReader(file)]
        found[str(path.parent.relative_to(folder))] = times
    return found


def progress(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Any]:
    """Epochs before and after, and the median time of a new one."""
    took = []
    for name, times in after.items():
        n_known = len(before.get(name, []))
        starts = [0.0, *times][n_known:-1]
        took += [end - start for start, end in zip(starts, times[n_known:], strict=True)]
    return {
        "epochs_before": sum(map(len, before.values())),
        "epochs_after": sum(map(len, after.values())),
        "s_per_epoch": round(median(took), 3) if took else None,
    }


def markdown(report: dict[str, Any]) -> str:
    """The tables people read."""
    stages = report["stages"]
    lines = [title(report), "", *table(["stage", "", "s", "remark"], _overview(stages))]
    if (found := stages.get("tests", {})).get("failures"):
        lines += ["", "## Tests that failed", ""]
        lines += [f"- `{row['test']}`: {row['message']}" for row in found["failures"]]
    if rows := stages.get("speed", {}).get("rows"):
        lines += ["", "## Energy + forces, ms per call (float32, medians)", ""]
        lines += [
            "attncalc: So3krates of SO3LR's size; attncalc-equiformer: ours, 6 blocks, lmax 2.",
            "",
        ]
        parts = [part for part in PARTS if any(f"{part}_ms" in row for row in rows)]
        head = ["engine", "system", "atoms", "edges", *(part.replace("_", " ") for part in parts)]
        body = [
            [row["engine"], row["system"], str(row["atoms"]), str(row["edges"])]
            + [f"{row[f'{part}_ms']:.3f}" if f"{part}_ms" in row else "" for part in parts]
            + [f"{row['peak_MiB']:.0f}"]
            for row in rows
        ]
        lines += table([*head, "peak MiB"], body)
    if rows := stages.get("kernels", {}).get("rows"):
        lines += ["", "## What one evaluation launches", ""]
        lines += [
            "Busy: sum of the times of all kernels. Launches: their number times what one empty "
            "launch takes here. Bound by kernels: they are busy for half of the evaluation or "
            "more, and faster ones would help. By launches: not that, but launching takes half of "
            "it or more, and fewer kernels would help. Neither: most of the time lies between "
            "the launches, in Python and autograd.",
            "",
        ]
        head = ["system", "kernels", "evaluation, ms", "busy, ms", "launches, ms", "bound by"]
        lines += table(head, [_launches(row) for row in rows])
    if rows := stages.get("dynamics", {}).get("rows"):
        lines += ["", "## Steps of Langevin dynamics", ""]
        lines += ["What the limits are is said in benchmarks/gpu_dynamics.py.", ""]
        lines += table(*table_rows(rows))
    return "\n".join([*lines, ""])


def title(report: dict[str, Any]) -> str:
    """The machine in one line."""
    found = report["stages"].get("machine", {})
    if "torch" not in found:
        return "Machine not known"
    where = found["gpu"] or f"no GPU ({platform.machine()})"
    cuda = f", CUDA {found['cuda']}" if found["cuda"] else ""
    driver = f", driver {found['driver']}" if found["driver"] else ""
    dry = "; a dry run, its times mean nothing" if report["dry_run"] else ""
    return f"{where}, torch {found['torch']}{cuda}{driver}, Python {found['python']}{dry}"


def _overview(stages: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, entry in stages.items():
        remarks = [entry["why"]] if "why" in entry else []
        if "passed" in entry:
            kinds = ("passed", "failed", "error", "skipped", "not_run")
            told = [f"{entry[k]} {k.replace('_', ' ')}" for k in kinds if entry[k] or k == "passed"]
            remarks.append(", ".join(told))
        if "epochs_after" in entry:
            each = entry["s_per_epoch"]
            pace = f", {each:.3g} s/epoch" if each is not None else ""
            remarks.append(f"epochs {entry['epochs_before']} -> {entry['epochs_after']}{pace}")
        rows.append([name, entry["state"], f"{entry.get('seconds', 0):.0f}", "; ".join(remarks)])
    return rows


def _launches(row: dict[str, Any]) -> list[str]:
    if not row["kernels"]:
        return [row["system"], "none seen by the profiler", f"{row['wall_ms']:.3f}", "", "", ""]
    launches = row["kernels"] * row["launch_us"] / 1e3
    numbers = [f"{row['wall_ms']:.3f}", f"{row['busy_ms']:.3f}", f"{launches:.3f}"]
    half = 0.5 * row["wall_ms"]
    bound = "launches" if launches >= half else "neither"
    bound = "kernels" if row["busy_ms"] >= half else bound
    return [row["system"], str(row["kernels"]), *numbers, bound]


# ------------------------------------------------------------------- stages, in their own process


def show(**row: Any) -> None:
    """One line of JSON for the process that waits."""
    print(json.dumps(row), flush=True)


def machine_worker() -> None:
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except Exception as error:  # one that does not suit the others raises anything
            missing.append(f"{name} ({error})"[:100])
    show(missing=missing)
    import torch

    driver = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
        driver = told.stdout.split("\n")[0].strip() or None
    there = torch.cuda.is_available()
    show(
        gpu=torch.cuda.get_device_name() if there else None,
        memory_GiB=round(torch.cuda.mem_get_info()[1] / 2**30, 1) if there else None,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        driver=driver,
        python=platform.python_version(),
        cores=os.cpu_count(),
    )


class EachTest:
    """A plugin of pytest that prints one line of JSON per test, as soon as it is done."""

    def __init__(self) -> None:
        self.output = os.fdopen(os.dup(1), "w", buffering=1)  # pytest keeps what tests print

    def tell(self, **row: Any) -> None:
        self.output.write(f"\n{json.dumps(row)}\n")  # pytest may stand in the middle of a line

    def pytest_collection_finish(self, session: Any) -> None:
        self.tell(collected=len(session.items))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.tell(test=report.nodeid, outcome="error", message=last_lines(report.longreprtext))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            message = report.longreprtext
            if report.skipped and isinstance(report.longrepr, tuple):
                message = report.longrepr[2]
            self.tell(test=report.nodeid, outcome=report.outcome, message=last_lines(message))


def last_lines(text: str) -> str:
    """What pytest marks as the error, and the place, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return " | ".join([*marked[:3], *lines[-1:]])[:500]


def tests_worker(dry_run: bool) -> None:
    import pytest

    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if dry_run:
        chosen = ["-k", DRY_TESTS, "tests/test_cuda.py"]
    else:
        files = sorted(ROOT.glob("tests/**/test_*.py"))
        marked = [path for path in files if "pytest.mark.gpu" in path.read_text()]
        chosen = ["-m", "gpu", *map(str, marked)]
    status = pytest.main([*options, *chosen], plugins=[EachTest()])
    # failures are counted by who started this; anything else is a failure of the stage
    sys.exit(0 if status in (0, 1) else f"pytest ended with status {int(status)}")


def kernels_worker(dry_run: bool) -> None:
    import torch
    from engines import so3lr_sized
    from structures import SYSTEMS as MAKERS

    from attncalc import System, evaluate
    from attncalc.fast import lower
    from attncalc.neighbors import fresh_graph

    device, wait = ("cpu", lambda: None) if dry_run else ("cuda", torch.cuda.synchronize)
    one = torch.zeros(1, device=device)
    launch_us = 1e3 * timed_ms(lambda: one.add_(1), wait, n=2000)
    potential = lower(so3lr_sized().to(device))
    for name in DRY_SYSTEMS if dry_run else SYSTEMS:
        system = System.from_ase(MAKERS[name]()).to(device)
        graph = fresh_graph(system, cutoff=potential.cutoff, species=potential.species)
        wall_ms = timed_ms(lambda g=graph: evaluate(potential, g), wait, n=2 if dry_run else 20)
        for _ in range(2):  # the first one starts the profiler, and may miss something
            with torch.profiler.profile() as profiled:
                evaluate(potential, graph)
                wait()
        found = launched(profiled.events(), device)
        most = Counter(kernel for kernel, _ in found).most_common(8)
        show(
            system=name,
            kernels=len(found),
            wall_ms=wall_ms,
            busy_ms=sum(us for _, us in found) / 1e3,
            launch_us=launch_us,
            most_frequent=[{"kernel": kernel[:120], "n": n} for kernel, n in most],
        )


def timed_ms(call: Callable[[], Any], wait: Callable[[], None], n: int) -> float:
    """ms per call of n calls that do not wait for each other, after one that warms up."""
    call()
    wait()
    start = time.perf_counter()
    for _ in range(n):
        call()
    wait()
    return 1e3 * (time.perf_counter() - start) / n


def launched(events: Any, device: str) -> list[tuple[str, float]]:
    """Name and µs of every kernel; on the CPU, of every ATen call without calls inside it."""
    found = []
    for event in events:
        on_gpu = event.device_type.name == "CUDA"
        if device == "cuda":
            counts = on_gpu and not event.name.startswith(("Memcpy", "Memset"))
        else:
            counts = event.name.startswith("aten::") and not event.cpu_children
        if counts:
            found.append((event.name, event.time_range.elapsed_us()))
    return found


def training_worker(recipe: Path, data: Path, output: Path) -> None:
    import logging

    from attncalc.cli import main as attncalc

    # what is started in the background inherits that Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("attncalc").setLevel(logging.INFO)  # says which step was chosen
    sys.argv = ["attncalc", "train", str(recipe), "--data", str(data), "-o", str(output)]
    attncalc()


# ------------------------------------------------------------------- command line


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu", help="folder")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--wheels", type=Path, help="folder; default: .wheels, if it is there")
    parser.add_argument("--train", type=Path, metavar="RECIPE.yaml", help="a training that goes on")
    parser.add_argument("--data", type=Path, metavar="FILE", help="of that training")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="that holds its checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="all stages on the CPU, small")
    parser.add_argument("--worker", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return arguments
    if not 0 < arguments.minutes < float("inf"):
        parser.error(f"--minutes must be positive, got {arguments.minutes}")
    together = {"--train": arguments.train, "--data": arguments.data, "--run": arguments.run}
    missing = [name for name, value in together.items() if value is None]
    if 0 < len(missing) < 3:
        parser.error(f"--train, --data and --run go together; missing: {', '.join(missing)}")
    if not missing:
        check_run(parser, arguments)
    if arguments.wheels is None and not arguments.dry_run:  # wheels of another Python may be there
        arguments.wheels = WHEELS
    elif arguments.wheels is not None and not arguments.wheels.is_dir():
        parser.error(f"--wheels: no such folder: {arguments.wheels}")
    # stages run in the folder of the repository
    for name in ("output", "wheels", "train", "data", "run"):
        if (path := getattr(arguments, name)) is not None:
            setattr(arguments, name, path.absolute())
    return arguments


def check_run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what could not go along, before any time is spent."""
    for name in ("train", "data"):
        if not getattr(arguments, name).is_file():
            parser.error(f"--{name}: no such file: {getattr(arguments, name)}")
    if not [*arguments.run.rglob("last.ckpt"), *arguments.run.rglob("last.ckpt.part-*")]:
        parser.error(f"--run: no checkpoint (last.ckpt) in {arguments.run}")
    run, copy = arguments.run.resolve(), copy_of_run(arguments)
    if run.is_relative_to(copy.resolve()):
        parser.error(
            f"--run lies in the results folder, {arguments.output}: move it out first, or give "
            "another --output"
        )
    if copy.resolve().is_relative_to(run):
        parser.error(f"--output lies in the folder of --run, {arguments.run}: give another one")
    if os.path.lexists(copy):
        parser.error(
            f"--output: {copy} holds an earlier training: move it out first, or give another "
            "--output"
        )
    for path in sorted(path for path in arguments.run.rglob("*") if path.is_file()):
        size = path.stat().st_size
        if size > LARGEST_FILE:
            parser.error(
                f"--run: {path.name} has {size / 1e6:.1f} MB, the limit is "
                f"{LARGEST_FILE / 1e6:.0f} MB a file: python benchmarks/parts.py split "
                f"{arguments.run}"
            )


def work(arguments: argparse.Namespace) -> None:
    """One stage, in the process that was started for it."""
    dry = arguments.dry_run
    if arguments.worker == "machine":
        machine_worker()
    elif arguments.worker == "tests":
        tests_worker(dry)
    elif arguments.worker == "kernels":
        kernels_worker(dry)
    elif arguments.worker == "dynamics":
        dynamics_worker(dry_run=dry)
    elif arguments.worker == "training":
        training_worker(arguments.train, arguments.data, arguments.output)


DOES = {
    "packages": packages,
    "machine": machine,
    "tests": tests,
    "speed": speed,
    "kernels": kernels,
    "dynamics": dynamics,
    "training": training,
}


def main() -> int:
    arguments = parsed()
    if arguments.worker:
        work(arguments)
        return 0
    kit = Kit(arguments, time.monotonic() + 60 * arguments.minutes)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"dry_run": arguments.dry_run, "minutes": arguments.minutes}
    report["stages"] = {}
    for stage in (name for name in STAGES if name in arguments.stages):
        if kit.left > 0:
            entry = DOES[stage](kit)
        else:
            entry = {"state": "skipped", "why": "no time was left"}
        report["stages"][stage] = entry
        write(output / "gpu.json", json.dumps(report, indent=1) + "\n")
        write(output / "gpu.md", markdown(report))
        print(f"{stage}: {entry['state']} {entry.get('why', '')}".rstrip(), flush=True)
        if stage == "machine" and entry["state"] != "done":
            sys.exit(f"gpu.py: {entry['why']}")
    print((output / "gpu.md").read_text())
    stages = report["stages"].values()
    bad = any(e["state"] in ("failed", "stopped") or e.get("failures") for e in stages)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
