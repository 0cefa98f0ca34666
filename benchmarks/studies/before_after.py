"""Waiting times of a user and memory of a long run, in this checkout and in another one.

The script measures the time to the first line and to the first epoch of `attncalc train`, the time
of `attncalc eval`, and the memory of a log with many rows. The two checkouts take turns, and every
measurement has a process of its own.

git worktree add ../before COMMIT
python benchmarks/studies/before_after.py rmd17_ethanol.npz --other ../before -o before-after
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[2]
MODEL = "so3krates-ethanol"
# rows of the log before the first measurement of memory; time limit of a training, s
WARM, PATIENCE = 1000, 1800.0

LOGGED = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from ase import units
from attncalc.md import Log

one = torch.ones(1, dtype=torch.float64)
state = SimpleNamespace(
    step=0, temperature=300 * one, energy=-one, kinetic_energy=one, conserved=one, spread=None,
    system=SimpleNamespace(n_systems=1, cell=torch.eye(3, dtype=torch.float64)[None]),
)
n, warm, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
log = Log(path, every=1)
log.begin(state, SimpleNamespace(timestep=0.5 * units.fs))


def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


for step in range(n):
    state.step = step
    log(state)
    if step == warm:
        before = memory()
print(memory() - before)
"""


def command(checkout: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of Python with the package of a checkout.

    The command must run in the folder of the checkout.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return [sys.executable, *arguments], environment


def training(checkout: Path, data: Path) -> dict[str, float]:
    """Return the time to the first line and epoch, s, with an empty compiler cache."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = str(HERE / "models" / f"{MODEL}.yaml")
        arguments, environment = command(checkout, "-m", "attncalc", "train", recipe)
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "cache")
        output, said = Path(folder) / "run", Path(folder) / "said"
        found: dict[str, float] = {}
        with open(said, "wb") as file:
            began = time.monotonic()
            process = subprocess.Popen(
                [*arguments, "--data", str(data), "-o", str(output)],
                env=environment,
                cwd=checkout,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            while len(found) < 2 and time.monotonic() - began < PATIENCE:
                if process.poll() is not None:
                    raise RuntimeError(said.read_text())
                now = time.monotonic() - began
                if "first line, s" not in found and said.stat().st_size:
                    found["first line, s"] = now
                if (output / "metrics.csv").exists():
                    found["first epoch, s"] = now
                time.sleep(0.05)
            os.killpg(process.pid, 9)
            process.wait()
    return found


def evaluation(checkout: Path, data: Path) -> dict[str, float]:
    """Return the time of the predictions according to the report, and of the whole command, s."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        arguments, environment = command(checkout, "-m", "attncalc", "eval", MODEL, str(data))
        more = ["--labels", "md17", "--split", "test_01", "-o", str(page)]
        began = time.monotonic()
        subprocess.run(
            [*arguments, *more], env=environment, cwd=checkout, check=True, capture_output=True
        )
        whole = time.monotonic() - began
        predicted = re.search(r"on cpu, ([\d.]+) s", page.read_text())
    assert predicted is not None
    return {"predictions of eval, s": float(predicted[1]), "attncalc eval, s": whole}


def logging(checkout: Path, rows: int) -> dict[str, float]:
    """Return the memory, MiB, that a log takes after `rows` rows beyond that after WARM rows."""
    with tempfile.TemporaryDirectory() as folder:
        log = str(Path(folder) / "run.csv")
        arguments, environment = command(checkout, "-c", LOGGED, str(rows), str(WARM), log)
        done = subprocess.run(
            arguments, env=environment, cwd=checkout, check=True, capture_output=True
        )
    return {f"memory of {rows:,} logged rows, MiB": int(done.stdout) / 2**20}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="rmd17_ethanol.npz")
    options.add_argument("--other", type=Path, required=True, help="The checkout of before.")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("-o", "--output", help="Name in benchmarks/results.")
    given = options.parse_args()
    data, other = given.data.resolve(), given.other.resolve()
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(given.rounds):
        for name, checkout in (("before", other), ("after", HERE)):
            measured = evaluation(checkout, data)
            if turn == 0:  # once: these are long and vary little
                measured |= logging(checkout, given.rows) | training(checkout, data)
            for what, value in measured.items():
                found.setdefault(what, {}).setdefault(name, []).append(value)
                print(f"{name}: {what} {value:.2f}", flush=True)
    table = ["| | before | after | runs |", "|---|--:|--:|--:|"]
    for what, values in found.items():
        numbers = " | ".join(f"{median(values[name]):.3g}" for name in ("before", "after"))
        table.append(f"| {what} | {numbers} | {len(values['before'])} |")
    print("\n".join(table))
    if given.output:
        results = HERE / "benchmarks" / "results"
        (results / f"{given.output}.json").write_text(json.dumps(found, indent=1) + "\n")
        head = f"# Before and after\n\n{machine()}. Medians, by turns.\n\n"
        how = "`python benchmarks/studies/before_after.py rmd17_ethanol.npz --other CHECKOUT`"
        (results / f"{given.output}.md").write_text(head + "\n".join(table) + f"\n\n{how}\n")


def machine() -> str:
    """Return processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "?")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return f"{name}, {os.cpu_count()} cores, one thread; largest process {peak:.1f} GiB"


if __name__ == "__main__":
    main()
