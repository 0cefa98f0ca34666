"""Time of energy + forces per call, of attncalc and four other codes, in one run.

    python benchmarks/run.py                                 # with the environments of `make bench`
    python benchmarks/run.py --peer mace-torch=ENV/bin/python --systems ethanol water-192

Here an engine is attncalc or another code (a peer). Peers have an environment of their own, and
every measurement has a process of its own. Engines take turns within a round, so that a disturbance
affects all of them. The results are medians over all calls of all rounds. The timing of the network
excludes neighbour lists, except for the published code of Equiformer, whose forward pass makes its
own list. Networks are in float32. Those of attncalc and so3krates-torch have equal
hyper-parameters; those of MACE and NequIP belong to models of their own kind. All engines also run
in one loop through ASE, with everything that their calculators do. Threads wait passively
(OMP_WAIT_POLICY), which is necessary if several processes share a machine.

Results go to benchmarks/results/cpu.json and cpu.md. They are written after every round, so that a
stopped run leaves its finished rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from result_files import machine_name, table, write
from scipy.stats import t as student_t

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers"
# peer -> engine of attncalc that it is compared with, and a note if the network differs
PEERS_OF_OURS = {
    "so3krates-torch": ("attncalc", ""),
    "mace-torch": ("attncalc", " (another network)"),
    "nequip": ("attncalc", " (another network)"),
    "equiformer": ("attncalc-equiformer-l2", ""),
}
ENGINES = (
    *(
        "attncalc",
        "attncalc-equiformer",
        "attncalc-equiformer-l2",
        "attncalc-equiformer-l3",
    ),
    *PEERS_OF_OURS,
)
SYSTEMS = ("ethanol", "aspirin", "peptide", "water-192", "water-1536", "water-6144")
# engines whose compiled steps are also timed with several threads
SHARED = ("attncalc", "attncalc-equiformer")
# for larger ones, Equiformer and NequIP, which is not compiled, need minutes per call
SMALL = ("ethanol", "aspirin", "peptide", "water-192")
PARTS = ("network", "ase_step", "forward", "calculate", "list_reused", "list_rebuilt", "plain")
STEP = [
    *("engine", "system", "`calculate`, ms", "network", "of that backward", "list reused"),
    "conversion",
    *("new list, ms", "plain path, ms"),
]
MEMORY = 18  # limit of the address space of a process, GiB
# messages of Python, C++ and torch
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "can't allocate memory", "CUDA out of memory")
LONGEST = 900  # time limit of a process, s

Key = tuple[str, str, int]  # engine, system, threads


def python_of(engine: str, given: dict[str, str]) -> str | None:
    """Return the interpreter of an engine's environment, if there is one."""
    if engine not in PEERS_OF_OURS:
        return sys.executable
    default = PEERS / engine / "bin" / "python"
    return given.get(engine) or (str(default) if default.exists() else None)


def run_worker(
    python: str,
    key: Key,
    budget: float,
    *,
    script: str = "run.py",
    more: Sequence[str] = (),
    longest: float = LONGEST,
) -> dict:
    """Return the measurements of one process; {"failed": why} if it fails.

    Args:
        python: interpreter of the engine's environment.
        key: what to measure.
        budget: time for the measurement, s.
        script: script in this folder that accepts --worker.
        more: further arguments of the script.
        longest: time limit of the process, s.
    """
    engine, system, threads = key
    environment = os.environ | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONWARNINGS": "ignore",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # MACE's e3nn needs it to load constants
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")},
    }
    command = [python, str(HERE / script), *more, "--worker", engine, "--systems", system]
    command += ["--threads", str(threads), "--budget", str(budget)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=longest
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {longest / 60:.0f} minutes"}
    rows = []
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):  # packages may print other lines
            rows += [json.loads(line)] if line.startswith("{") else []
    if done.returncode == 0 and rows:
        return rows[0]
    if any(word in done.stderr for word in OUT_OF_MEMORY):
        return {"failed": f"more than {MEMORY} GiB"}
    if done.returncode < 0:
        return {"failed": f"killed by signal {-done.returncode}"}
    return {"failed": (done.stderr.strip() or "no output").splitlines()[-1][:200]}


def worker(arguments: argparse.Namespace) -> None:
    """Print one JSON line per system."""
    from engines import measure

    if arguments.device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY << 30, MEMORY << 30))
    for engine, name in product(arguments.worker, arguments.systems):
        for threads in arguments.threads if suits(engine, name) else ():
            row = measure(
                engine,
                name,
                device=arguments.device,
                threads=threads,
                budget=arguments.budget,
            )
            print(json.dumps(row), flush=True)


def suits(engine: str, system: str) -> bool:
    """Return True if the engine is timed on this system."""
    return system in SMALL or not ("equiformer" in engine or engine == "nequip")


def merged(rounds: Iterable[dict[Key, dict]]) -> dict[Key, dict]:
    """Merge the rounds: all calls, the largest memory, and the number of failed rounds."""
    together: dict[Key, dict] = {}
    failures: dict[Key, list[str]] = {}
    for measured in rounds:
        for key, row in measured.items():
            if "failed" in row:
                failures.setdefault(key, []).append(row["failed"])
            elif key not in together:
                together[key] = {
                    name: list(value) if isinstance(value, list) else value
                    for name, value in row.items()
                }
            else:
                for name in PARTS:
                    if name in row:
                        together[key][name] += row[name]
                peak = max(together[key]["peak_MiB"], row["peak_MiB"])
                together[key]["peak_MiB"] = peak
    for key, reasons in failures.items():
        if key in together:
            together[key]["failed_rounds"] = len(reasons)
        else:
            together[key] = {"failed": reasons[-1]}
    return together


def growth(rounds: list[list[tuple[int, float]]]) -> tuple[float, float, float]:
    """Return the exponent of time against atoms, and its 95 % interval by Student's t.

    The samples are the exponents of the rounds. Calls within a round are no independent samples,
    because they share its disturbances.

    Args:
        rounds: numbers of atoms and median times of each round. The exponent of a round is the
            slope of the logarithms.

    Returns:
        Mean, lower and upper bound; the bounds are NaN for a single round.
    """
    slopes = [np.polyfit(*np.log(np.array(one).T), 1)[0] for one in rounds]
    mean = float(np.mean(slopes))
    if len(slopes) == 1:
        return mean, math.nan, math.nan
    n = len(slopes)
    half = float(student_t.ppf(0.975, n - 1) * np.std(slopes, ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def summary(rows: dict[Key, dict]) -> list[dict]:
    """Return one entry per engine, system and number of threads, with medians."""
    entries = []
    for (engine, system, threads), row in rows.items():
        entry = {"engine": engine, "system": system, "threads": threads}
        if "failed" in row:
            entries.append(entry | {"failed": row["failed"]})
            continue
        known = ("atoms", "edges", "versions", "imported_MiB", "peak_MiB", "failed_rounds")
        facts = {k: row[k] for k in known if k in row}
        times = {f"{part}_ms": median(row[part]) for part in PARTS if part in row}
        entries.append(entry | facts | times | {"calls": len(row["network"])})
    return entries


def growths(rounds: list[dict[Key, dict]]) -> list[dict]:
    """Return exponents over the water boxes that an engine did in every round, if two or more."""
    found = []
    for engine, threads in dict.fromkeys((e, t) for one in rounds for e, _, t in one):
        boxes = [
            key
            for key in rounds[0]
            if key == (engine, key[1], threads)
            and key[1].startswith("water")
            and all("network" in one.get(key, {}) for one in rounds)
        ]
        if len(boxes) > 1:
            times = [
                [(one[k]["atoms"], median(one[k]["network"])) for k in boxes] for one in rounds
            ]
            exponent, low, high = growth(times)
            found.append(
                {"engine": engine, "threads": threads, "exponent": exponent}
                | {"low": low, "high": high, "boxes": len(boxes), "rounds": len(rounds)}
            )
    return found


def markdown(entries: list[dict], exponents: list[dict], machine: str, notes: list[str]) -> str:
    """Return the tables in Markdown."""
    at = {(e["engine"], e["system"], e["threads"]): e for e in entries}
    systems = list(dict.fromkeys(e["system"] for e in entries))
    columns = [c for c in dict.fromkeys((e["engine"], e["threads"]) for e in entries)]
    shared = [(engine, n) for engine, n in columns if n > 1 and (engine, 1) in columns]
    peers = [
        (peer, threads)
        for peer, threads in columns
        if peer in PEERS_OF_OURS and (PEERS_OF_OURS[peer][0], threads) in columns
    ]

    def ms(part: str, engine: str, system: str, threads: int) -> str:
        entry = at.get((engine, system, threads))
        if entry is None:
            return ""
        if "failed" in entry:
            return entry["failed"]
        if part not in entry:  # the published Equiformer has no calculator
            return ""
        failed = f" (failed in {n} rounds)" if (n := entry.get("failed_rounds")) else ""
        return f"{entry[part]:.2f}{failed}"

    def ratio(part: str, system: str, peer: tuple[str, int]) -> str:
        theirs = at.get((peer[0], system, peer[1]), {}).get(part)
        ours = at.get((PEERS_OF_OURS[peer[0]][0], system, peer[1]), {}).get(part)
        return f"{theirs / ours:.2f}" if theirs and ours else ""

    def gain(part: str, system: str, column: tuple[str, int]) -> str:
        one = at.get((column[0], system, 1), {}).get(part)
        several = at.get((column[0], system, column[1]), {}).get(part)
        return f"{one / several:.2f}" if one and several else ""

    def atoms(system: str) -> int:
        return next((e["atoms"] for e in entries if e["system"] == system and "atoms" in e), 0)

    names = [f"{engine}, {threads} thr." for engine, threads in columns]
    for engine, threads in peers:
        ours, other = PEERS_OF_OURS[engine]
        names.append(f"{engine}{other} / {ours}, {threads} thr.")
    names += [f"{engine}, 1 / {threads} thr." for engine, threads in shared]

    def beside_peers(part: str) -> list[str]:
        return table(
            ["system", "atoms", *names],
            [
                [system, str(atoms(system))]
                + [ms(part, engine, system, threads) for engine, threads in columns]
                + [ratio(part, system, peer) for peer in peers]
                + [gain(part, system, column) for column in shared]
                for system in systems
            ],
        )

    lines = [machine, "", *notes, "", "## Energy + forces, ms per call", ""]
    lines += beside_peers("network_ms")
    lines += ["", "## A step as ASE's dynamics ask for it, ms", ""]
    lines += ["Atoms have moved, and `atoms.get_forces()` is called: neighbour lists included.", ""]
    lines += beside_peers("ase_step_ms")
    lines += ["", "## A step of dynamics with attncalc, 1 thread", ""]
    lines += [
        "Shares of `AttnCalculator.calculate` on a step that reuses the neighbour list; conversion "
        "is what is left: ASE's arrays to tensors and back. Differences of medians, so a share of "
        "a few percent can come out negative.",
        "",
    ]
    lines += table(
        STEP,
        [_shares(e) for e in entries if "calculate_ms" in e and e["threads"] == 1],
    )
    lines += ["", "## Peak memory of the process, MiB (1 thread)", ""]
    single = [engine for engine, threads in columns if threads == 1]
    lines += table(
        ["system", *single],
        [
            [s] + [f"{at[e, s, 1]['peak_MiB']:.0f}" if _done(at, e, s) else "" for e in single]
            for s in systems
        ],
    )
    imported = {
        e: next(
            x["imported_MiB"] for x in entries if _done(at, e, x["system"]) and x["engine"] == e
        )
        for e in single
        if any(_done(at, e, s) for s in systems)
    }
    lines += [
        "",
        "Of which torch and the structure alone: "
        + ", ".join(f"{name} {value:.0f}" for name, value in imported.items())
        + ".",
    ]
    lines += ["", "## Growth: time ~ atoms^x over the water boxes", ""]
    lines += table(
        ["engine", "threads", "boxes", "x", "95 % interval"],
        [
            [
                g["engine"],
                str(g["threads"]),
                str(g["boxes"]),
                f"{g['exponent']:.3f}",
                f"{g['low']:.3f} to {g['high']:.3f}" if g["rounds"] > 1 else "one round only",
            ]
            for g in exponents
        ],
    )
    return "\n".join([*lines, ""])


def _done(at: dict[Key, dict], engine: str, system: str) -> bool:
    return "peak_MiB" in at.get((engine, system, 1), {})


def _shares(entry: dict) -> list[str]:
    whole, network = entry["calculate_ms"], entry["network_ms"]
    rest = whole - network - entry["list_reused_ms"]
    backward = "-"  # in one call with the forward pass
    if "forward_ms" in entry:
        backward = f"{100 * (network - entry['forward_ms']) / whole:.1f} %"
    parts = (f"{100 * part / whole:.1f} %" for part in (entry["list_reused_ms"], rest))
    shares = [f"{100 * network / whole:.1f} %", backward, *parts]
    new, plain = f"{entry['list_rebuilt_ms']:.2f}", f"{entry['plain_ms']:.2f}"
    return [entry["engine"], entry["system"], f"{whole:.2f}", *shares, new, plain]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", action="append", default=[], metavar="ENGINE=PYTHON", help="its environment"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="of our compiled steps"
    )
    parser.add_argument("--peer-threads", nargs="+", type=int, default=[1], help="of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=4.0, help="s per measurement, at least")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs="+", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not arguments.worker:
        parser.error("this table is of the CPU; on a GPU run benchmarks/gpu.py")
    if min(arguments.rounds, *arguments.threads, *arguments.peer_threads) < 1:
        parser.error("--rounds and numbers of threads must be positive")
    arguments.python = {}
    for entry in arguments.peer:
        engine, found, python = entry.partition("=")
        if not found or engine not in PEERS_OF_OURS:
            known = " or ".join(f"{name}=PYTHON" for name in PEERS_OF_OURS)
            parser.error(f"--peer must be {known}, got {entry!r}")
        arguments.python[engine] = python
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.worker:
        worker(arguments)
        return
    pythons = {engine: python_of(engine, arguments.python) for engine in arguments.engines}
    for engine in [engine for engine, python in pythons.items() if python is None]:
        print(f"{engine}: no environment (`make peers`, or --peer {engine}=PYTHON): left out")
        del pythons[engine]
    keys: list[Key] = [
        (engine, system, threads)
        for system in arguments.systems
        for engine in pythons
        for threads in (arguments.threads if engine in SHARED else arguments.peer_threads)
        if suits(engine, system)
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    rounds: list[dict[Key, dict]] = []
    start, n_done, n_all = time.monotonic(), 0, arguments.rounds * len(keys)
    for _ in range(arguments.rounds):
        rounds.append({})
        for key in keys:
            row = run_worker(str(pythons[key[0]]), key, arguments.budget)
            rounds[-1][key] = row
            n_done += 1
            left = (time.monotonic() - start) / n_done * (n_all - n_done) / 60
            told = row.get("failed") or f"{median(row['network']):.2f} ms"
            engine, system, threads = key
            print(f"[{n_done}/{n_all}, {left:.0f} min left] {engine} {system} x{threads}: {told}")
        report(rounds, arguments, list(pythons))
    print((arguments.output / "cpu.md").read_text())


def report(
    rounds: list[dict[Key, dict]], arguments: argparse.Namespace, engines: list[str]
) -> None:
    """Write both files."""
    from engines import ENGINES as KNOWN

    entries, exponents = summary(merged(rounds)), growths(rounds)
    machine = machine_name()
    notes = [f"{len(rounds)} rounds by turns, medians over all calls; threads wait passively.", ""]
    for engine in engines:
        versions = {e["versions"] for e in entries if e["engine"] == engine and "versions" in e}
        notes.append(f"- {engine}: {KNOWN[engine][1]} ({'; '.join(sorted(versions))})")
    content = {"machine": machine, "rounds": len(rounds), "budget_s": arguments.budget}
    content |= {"rows": entries, "growth": exponents}
    write(arguments.output / "cpu.json", json.dumps(content, indent=1) + "\n")
    write(arguments.output / "cpu.md", markdown(entries, exponents, machine, notes))


if __name__ == "__main__":
    main()
