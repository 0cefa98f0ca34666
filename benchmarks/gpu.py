"""CUDA tests and speed on a GPU, by one command with a time limit.

    python benchmarks/gpu.py                                  # nine minutes at most
    python benchmarks/gpu.py --dry-run                        # all of it on the CPU, small

Stages: machine, compile, tests, speed, kernels, dynamics (whole steps), settings (sizes of the
tiles of So3krates' kernels, and numbers of threads). Every stage is a process of its own, which is
killed when its time is over. After every stage, gpu.json and gpu.md are written with all
measurements so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from gpu_dynamics import longest, table_rows
from gpu_dynamics import worker as dynamics_worker
from result_files import table, write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# time limit of each stage, s
LIMITS = {"machine": 60.0, "compile": 90.0, "tests": 200.0, "speed": 100.0, "kernels": 60.0}
LIMITS |= {"dynamics": 150.0, "settings": 120.0}
LAST_LINES = 100  # last lines of the tests' output that are kept
# processes that compile, and the environment variable by which each knows its share
COMPILERS, SHARE = 14, "ATTNCALC_GPU_SETTINGS"
# model, structure, replicas, of which kernels are compiled, and with other settings
TO_TRY = [("so3krates-ethanol", "aspirin", 1), ("so3krates-ethanol", "ethanol", 64)]
TO_TRY += [("so3lr-sized", "water-1536", 1)]
TO_COMPILE = [*TO_TRY, ("so3lr-sized", "water-6144", 1), ("so3krates-ethanol", "ethanol", 1024)]
TO_COMPILE += [("so3krates-organic", name, 1) for name in ("aspirin", "water-192")]
# sizes of tiles that are tried; steps of atoms also work on more of a weight at a time
_BLOCKS = tuple({"B": n, "num_warps": w} for n in (8, 16) for w in (2, 4))
_EDGES = tuple(
    {"EDGES": n, "COLUMNS": columns, "num_warps": w}
    for n in (16, 32, 64)
    for columns in (32, 64, 128)
    for w in (2, 4)
)
_ATOMS = tuple({"SIZE": size, "num_warps": w} for size in (4096, 8192, 16384) for w in (4, 8))
_WARPS = tuple({"num_warps": w} for w in (1, 2, 4, 8))  # groups of 32 threads
VARIANTS = dict.fromkeys(("messages", "messages_gradient"), _BLOCKS)
VARIANTS |= dict.fromkeys(("first_messages", "first_messages_gradient"), _BLOCKS)
VARIANTS |= dict.fromkeys(("filters", "filters_gradient"), _EDGES)
VARIANTS |= dict.fromkeys(("update_gradient", "turn"), _ATOMS)
PROCESSES = 14  # that share the tests if pytest-xdist is installed

SYSTEMS = ("ethanol", "aspirin", "peptide", "water-192", "water-1536", "water-6144")
PARTS = ("network", "forward", "calculate", "list_reused", "list_rebuilt", "plain")

# for a dry run, in which imports take most of the time
DRY_SYSTEMS = ("ethanol", "aspirin")
DRY_TESTS = "cpu-padded and (capacity or whole_pairs)"


# ------------------------------------------------------------------- processes with a time limit


@dataclass(frozen=True)
class Ended:
    """State in which a process ended, and its output until then."""

    state: str  # "done", "failed" or "stopped" (its time was over)
    seconds: float
    output: list[str]
    errors: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """Return the JSON objects among the printed lines; incomplete lines are skipped."""
        found = []
        for line in self.output:
            with contextlib.suppress(ValueError):
                if line.startswith("{"):
                    found.append(json.loads(line))
        return found

    def entry(self, **content: Any) -> dict[str, Any]:
        """Return the report's entry of a stage; after a failure, with the last error line."""
        why = {"why": (self.errors or ["no output"])[-1][:300]} if self.state == "failed" else {}
        if self.state == "stopped":
            why = {"why": f"its time of {self.seconds:.0f} s was over"}
        return {"state": self.state, "seconds": round(self.seconds, 1)} | why | content


def run_for(
    seconds: float, command: list[str], environment: dict[str, str], told: Path | None = None
) -> Ended:
    """Run a command, and kill it with all of its children when its time is over.

    Args:
        seconds: time limit.
        command: program and arguments.
        environment: all environment variables.
        told: file for its output, which survives if this script is killed; None: none.
    """
    start, state = time.monotonic(), "done"
    with (
        tempfile.TemporaryFile() if told is None else told.open("w+b") as output,
        tempfile.TemporaryFile() as errors,
    ):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            state = "stopped"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its children
            process.wait()
        if state == "done" and process.returncode:
            state = "failed"
        return Ended(state, time.monotonic() - start, _lines(output), _lines(errors))


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").splitlines()


# ------------------------------------------------------------------- stages, in the main process


@dataclass(frozen=True)
class Kit:
    """One call of this script.

    Attributes:
        arguments: arguments of the command line.
        deadline: value of `time.monotonic()` by which everything must end.
    """

    arguments: argparse.Namespace
    deadline: float

    @property
    def left(self) -> float:
        """Return the time for further stages, s."""
        return self.deadline - time.monotonic()

    @property
    def environment(self) -> dict[str, str]:
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        quiet = {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
        # several processes share the cores in the stages "tests" and "settings"
        single = {"OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(place for place in places if place)
        return os.environ | quiet | single | {"PYTHONPATH": path}

    def worker(self, stage: str) -> list[str]:
        """Return the command that runs a stage of this script in another process."""
        dry = ["--dry-run"] if self.arguments.dry_run else []
        return [sys.executable, str(HERE / "gpu.py"), "--worker", stage, *dry]

    def run(self, stage: str, command: list[str], variables: dict[str, str] | None = None) -> Ended:
        """Run a command within the time limit of its stage, with other environment variables."""
        told = self.arguments.output / f"{stage}.out"
        seconds = max(0.0, min(LIMITS[stage], self.left))
        return run_for(seconds, command, self.environment | (variables or {}), told)


def machine(kit: Kit) -> dict[str, Any]:
    """Describe the machine, and check that it has a CUDA device."""
    ended = kit.run("machine", kit.worker("machine"))
    entry = ended.entry(**{k: v for row in ended.rows() for k, v in row.items()})
    if entry["state"] == "done" and not entry["gpu"] and not kit.arguments.dry_run:
        why = f"PyTorch {entry['torch']} sees no CUDA device (--dry-run does all on the CPU)"
        return entry | {"state": "failed", "why": why}
    return entry


def tests(kit: Kit) -> dict[str, Any]:
    """Return the end of pytest's output: counts, failures, and reasons of skipped tests."""
    options = ["-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors"]
    if kit.arguments.dry_run:
        chosen = ["-k", DRY_TESTS, "tests/test_cuda.py"]
    else:
        files = sorted(ROOT.glob("tests/**/test_*.py"))
        marked = [path for path in files if "pytest.mark.gpu" in path.read_text()]
        chosen = ["-m", "gpu", *map(str, marked)]
        if find_spec("xdist"):  # Python takes most of a test's time, so processes share the GPU
            options += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
    options += ["-p", "gpu_test_report"]
    with tempfile.TemporaryDirectory() as folder:
        # the CPU's numbers come from the plain network: every process would compile loops first
        Path(folder, "numba.py").write_text("raise ImportError")
        places = os.pathsep.join([folder, str(HERE), kit.environment["PYTHONPATH"]])
        command = [sys.executable, "-m", "pytest", *options, *chosen]
        ended = kit.run("tests", command, {"PYTHONPATH": places})
    entry = ended.entry(said=ended.output[-LAST_LINES:])
    if ended.state == "failed":
        entry["why"] = (ended.output or ended.errors or ["no output"])[-1]
    return entry


def compile_kernels(kit: Kit) -> dict[str, Any]:
    """Compile kernels in several processes; the stages after this one find them on the disk."""
    ended = kit.run("compile", kit.worker("compile"))
    return ended.entry()


def speed(kit: Kit) -> dict[str, Any]:
    """Return medians of the measurements of `benchmarks/run.py`."""
    dry = kit.arguments.dry_run
    engines = ["attncalc", "attncalc-equiformer"]
    command = [sys.executable, str(HERE / "run.py"), "--worker", *engines, "--threads", "1"]
    command += ["--device", "cpu" if dry else "cuda", "--budget", "0.05" if dry else "1.5"]
    ended = kit.run("speed", [*command, "--systems", *(DRY_SYSTEMS if dry else SYSTEMS)])
    return ended.entry(rows=[medians(row) for row in ended.rows()])


def kernels(kit: Kit) -> dict[str, Any]:
    """Count the kernels of one evaluation, and compare their time with that of launches."""
    ended = kit.run("kernels", kit.worker("kernels"))
    return ended.entry(rows=ended.rows())


def dynamics(kit: Kit) -> dict[str, Any]:
    """Time whole steps of dynamics, and compare them with their lower bounds."""
    ended = kit.run("dynamics", kit.worker("dynamics"))
    return ended.entry(rows=ended.rows())


def settings(kit: Kit) -> dict[str, Any]:
    """Time every kernel of So3krates for different numbers of threads per program."""
    ended = kit.run("settings", kit.worker("settings"))
    return ended.entry(rows=ended.rows())


# ------------------------------------------------------------------- numbers and tables


def medians(row: dict[str, Any]) -> dict[str, Any]:
    """Replace lists of ms per call by their medians; keep all other values."""
    facts = {name: value for name, value in row.items() if not isinstance(value, list)}
    return facts | {f"{name}_ms": median(row[name]) for name in PARTS if row.get(name)}


def markdown(report: dict[str, Any]) -> str:
    """Return the tables in Markdown."""
    stages = report["stages"]
    lines = [title(report), "", *table(["stage", "", "s", "remark"], _overview(stages))]
    if said := stages.get("tests", {}).get("said"):
        lines += ["", "## Tests", "", "```text", *said, "```"]
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
    if rows := stages.get("settings", {}).get("rows"):
        lines += ["", "## Settings of So3krates' kernels", ""]
        lines += ["Time of one launch.", ""]
        lines += table(["kernel", "structures", "as it is, µs", "fastest, µs", "with"], _best(rows))
    return "\n".join([*lines, ""])


def title(report: dict[str, Any]) -> str:
    """Return a description of the machine in one line."""
    found = report["stages"].get("machine", {})
    if "torch" not in found:
        return "Machine not known"
    where = found["gpu"] or f"no GPU ({platform.machine()})"
    cuda = f", CUDA {found['cuda']}" if found["cuda"] else ""
    driver = f", driver {found['driver']}" if found["driver"] else ""
    dry = "; a dry run, its times mean nothing" if report["dry_run"] else ""
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    return f"{where}, torch {found['torch']}{cuda}{driver}, Python {found['python']}{commit}{dry}"


def _best(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return a line for every kernel and structure: its time, and the fastest settings."""
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "us" in row:
            by_name.setdefault((row["kernel"], row["system"]), []).append(row)
    facts = ("kernel", "system", "used", "us", "registers", "spilled", "failed")
    lines = []
    for names, tried in by_name.items():
        used = next((f"{row['us']:.1f}" for row in tried if row["used"]), "")
        best = min(tried, key=lambda row: row["us"])
        chosen = ", ".join(f"{k} {v}" for k, v in best.items() if k not in facts)
        lines.append([*names, used, f"{best['us']:.1f}", chosen])
    return lines


def _overview(stages: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [name, entry["state"], f"{entry.get('seconds', 0):.0f}", entry.get("why", "")]
        for name, entry in stages.items()
    ]


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
    """Print one line of JSON for the waiting process."""
    print(json.dumps(row), flush=True)


def machine_worker() -> None:
    import torch

    import attncalc  # noqa: F401  # fails here if a dependency is missing

    driver = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
        driver = told.stdout.split("\n")[0].strip() or None
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        told = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True)
        commit = told.stdout.strip()
    there = torch.cuda.is_available()
    show(
        gpu=torch.cuda.get_device_name() if there else None,
        memory_GiB=round(torch.cuda.mem_get_info()[1] / 2**30, 1) if there else None,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        driver=driver,
        python=platform.python_version(),
        cores=os.cpu_count(),
        commit=commit,
    )


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
        for _ in range(2):  # the first one starts the profiler, and may miss events
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
            longest=longest(found),
        )


def compile_worker(dry_run: bool) -> None:
    """Compile the kernels of So3krates and of pair terms; Triton caches them on the disk."""
    if dry_run:  # a CPU has no kernels
        return
    if SHARE not in os.environ:
        _wait_for(_in_processes("compile"))
        return
    from attncalc.kernels.gpu import launching

    for n, (_, kernel, grid, given) in enumerate(launches_of(TO_COMPILE)):
        if n % COMPILERS == int(os.environ[SHARE]):
            kernel.warmup(grid=grid, **given, **launching.options_of(kernel))


def settings_worker(dry_run: bool) -> None:
    """Launch the kernels of one evaluation again, one by one, with other settings."""
    if dry_run:
        return
    import torch

    from attncalc.kernels.gpu import launching

    share = os.environ.get(SHARE)  # if it is there, this process only compiles
    others = [] if share else _in_processes("settings")
    launches = list(launches_of(TO_TRY, runs=share is None))
    _wait_for(others)
    tries = [
        (*launch, constants)
        for launch in launches
        for constants in VARIANTS.get(launch[1].fn.__name__, _WARPS)
    ]
    for case, kernel, grid, given, constants in tries[int(share) :: COMPILERS] if share else tries:
        known = given | launching.options_of(kernel)
        programs, chosen = _grid_with(grid, given, constants), known | constants

        def again(kernel=kernel, programs=programs, chosen=chosen) -> Any:
            return kernel[programs](**chosen)

        row = {"kernel": kernel.fn.__name__, "system": case, **constants}
        row["used"] = all(known[name] == value for name, value in constants.items())
        try:
            made = kernel.warmup(grid=programs, **chosen) if share else again()
            torch.cuda.synchronize()
        except Exception as error:  # too many registers, or too little memory
            row["failed"] = str(error)[:100]
        if share:
            continue
        if "failed" not in row:
            row["us"] = min(1e3 * timed_ms(again, torch.cuda.synchronize, n=20) for _ in range(3))
            row |= {"registers": made.n_regs, "spilled": made.n_spills}
        show(**row)


def launches_of(
    cases: Sequence[tuple[str, str, int]], *, runs: bool = False
) -> Iterator[tuple[str, Any, tuple[int, ...], dict[str, Any]]]:
    """Yield name of the structure, kernel, grid and arguments of all different launches.

    Args:
        cases: model, structure, number of replicas.
        runs: True: the kernels run, so that all arguments are what they should be.
    """
    from engines import so3lr_sized
    from structures import SYSTEMS as MAKERS

    from attncalc import load
    from attncalc.fast import lower
    from attncalc.graph import ALL_PAIRS, Graphs
    from attncalc.kernels.gpu import launching, long_range, sums, zbl
    from attncalc.kernels.so3krates_gpu import engine
    from attncalc.neighbors import fresh_graph
    from attncalc.potential import evaluate_without_waiting
    from attncalc.system import System

    launch, seen = launching.launch, {}

    def noted(kernel: Any, grid: tuple[int, ...], *known: dict, **more: Any) -> None:
        given = launching.arguments_of(kernel, more, *known)
        if runs:
            launch(kernel, grid, *known, **more)
        if not given.get("RESTS"):  # the others do less
            constants = sorted((k, v) for k, v in given.items() if k.isupper())
            seen[kernel.fn.__name__, str(constants)] = kernel, grid, given

    for model, name, replicas in cases:
        made = so3lr_sized().to("cuda") if model == "so3lr-sized" else load(model, device="cuda")
        potential = lower(made)
        system = System.from_ase([MAKERS[name]()] * replicas).to("cuda")
        reach = potential.long_range_for(system)
        short, *long = (
            fresh_graph(system, cutoff=cutoff, species=potential.species)
            for cutoff in (potential.cutoff, reach)
            if cutoff is not None
        )
        graphs = Graphs(short, *long, all_pairs=reach == ALL_PAIRS, system=system)
        seen.clear()
        for module in (engine, zbl, long_range, sums):
            module.launch = noted
        evaluate_without_waiting(potential, graphs)
        for module in (engine, zbl, long_range, sums):
            module.launch = launch
        for found in list(seen.values()):
            yield f"{replicas} x {name}", *found


def _grid_with(
    grid: tuple[int, ...], given: dict[str, Any], others: dict[str, int]
) -> tuple[int, ...]:
    """Return the number of programs, whose first one counts tiles, for other sizes of tiles."""
    for name in ("EDGES", "T"):
        if name in others:
            return (-(-grid[0] * given[name] // others[name]), *grid[1:])
    return grid


def _in_processes(stage: str) -> list[subprocess.Popen]:
    """Start COMPILERS processes of a stage, each of which compiles its share and runs none."""
    command = [sys.executable, str(HERE / "gpu.py"), "--worker", stage]
    environments = [os.environ | {SHARE: str(n)} for n in range(COMPILERS)]
    return [subprocess.Popen(command, env=one) for one in environments]


def _wait_for(processes: list[subprocess.Popen]) -> None:
    """Wait for all of them; end this process if one failed."""
    failed = sum(process.wait() != 0 for process in processes)
    if failed:
        sys.exit(f"{failed} of {len(processes)} processes could not compile their kernels")


def timed_ms(call: Callable[[], Any], wait: Callable[[], None], n: int) -> float:
    """Return ms per call of n calls that do not wait for each other, after one warm-up call."""
    call()
    wait()
    start = time.perf_counter()
    for _ in range(n):
        call()
    wait()
    return 1e3 * (time.perf_counter() - start) / n


def launched(events: Any, device: str) -> list[tuple[str, float]]:
    """Return name and µs of every kernel; on the CPU, of every ATen call without inner calls."""
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


# ------------------------------------------------------------------- command line


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu", help="folder")
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--dry-run", action="store_true", help="all stages on the CPU, small")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < float("inf"):
        parser.error(f"--minutes must be positive, got {arguments.minutes}")
    return arguments


STAGES = {
    "machine": machine,
    "compile": compile_kernels,
    "tests": tests,
    "speed": speed,
    "kernels": kernels,
    "dynamics": dynamics,
    "settings": settings,
}
# stages of this script, each called in its own process with the flag of a dry run
WORKERS = {
    "machine": lambda _: machine_worker(),
    "compile": compile_worker,
    "kernels": kernels_worker,
    "settings": settings_worker,
    "dynamics": lambda dry_run: dynamics_worker(dry_run=dry_run),
}


def main() -> int:
    arguments = parsed()
    if arguments.worker:
        WORKERS[arguments.worker](arguments.dry_run)
        return 0
    kit = Kit(arguments, time.monotonic() + 60 * arguments.minutes)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"dry_run": arguments.dry_run, "minutes": arguments.minutes}
    report["stages"] = {}
    for stage in (name for name in STAGES if name in arguments.stages):
        if kit.left > 0:
            entry = STAGES[stage](kit)
        else:
            entry = {"state": "skipped", "why": "no time was left"}
        report["stages"][stage] = entry
        write(output / "gpu.json", json.dumps(report, indent=1) + "\n")
        write(output / "gpu.md", markdown(report))
        print(f"{stage}: {entry['state']} {entry.get('why', '')}".rstrip(), flush=True)
        if stage == "machine" and entry["state"] != "done":
            sys.exit(f"gpu.py: {entry['why']}")
    print((output / "gpu.md").read_text())
    return int(any(e["state"] in ("failed", "stopped") for e in report["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
