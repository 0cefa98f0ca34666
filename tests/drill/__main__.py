"""Run all parts of the drill and write the table.

PYTHONPATH=tests python -m drill -o docs/drill.md
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir
from datetime import date
from importlib import import_module
from pathlib import Path

from drill.trial import Trial

# part: trials of the full drill
PARTS = {
    "links": 20,
    "threads": 20,
    "hostile_files": 10_000,
    "disk_full": 24,
    "power_cuts": 60,
    "kills": 110,
}

HEAD = """# Tests of robustness

Each row gives the number of attempts to make a command fail badly, and how many of them did: a
run was lost, a file was incomplete, a message had more than one line, a process was killed by a
signal, or a number was wrong. `make drill` repeats
all of it and writes this page; CI runs a few trials of every part (`tests/test_drill.py`).

"""


def main() -> int:
    """Exit status 1 if a trial failed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-o", "--output", type=Path, help="The page to write.")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--scale", type=float, default=1.0, help="Factor of the counts.")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    output = given.output and given.output.resolve()
    tried: Counter[str] = Counter()
    failures: list[Trial] = []
    for part in given.parts:
        count = max(1, round(PARTS[part] * given.scale))
        print(f"{part}: {count} trials", flush=True)
        began, before = time.monotonic(), tried.total()
        try:
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                for trial in import_module(f"drill.{part}").trials(count, given.seed):
                    tried[trial.kind] += 1
                    if trial.failure:
                        failures.append(trial)
                        print(f"FAILED {trial.kind}: {trial.failure}", flush=True)
        finally:  # also after Ctrl-C: what has been done is told
            if output:
                output.write_text(_page(tried, failures, given.seed))
        seconds = time.monotonic() - began
        print(f"{part}: {tried.total() - before} done in {seconds:.0f} s", flush=True)
    if output:
        print(f"wrote {output.name}")
    return int(bool(failures))


def _page(tried: Counter[str], failures: list[Trial], seed: int) -> str:
    failed = Counter(trial.kind for trial in failures)
    table = ["| what is done | trials | failures |", "|---|--:|--:|"]
    table += [f"| {kind} | {n:,} | {failed[kind]} |" for kind, n in tried.items()]
    table.append(f"| **all** | {tried.total():,} | {len(failures)} |")
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    where = f"Run on {date.today()}, {machine}, seed {seed}.\n"
    lost = "".join(f"\n* {one.kind}: {one.failure}" for one in failures)
    return HEAD + "\n".join(table) + "\n\n" + where + (f"\n## Failures\n{lost}\n" if lost else "")


if __name__ == "__main__":
    sys.exit(main())
