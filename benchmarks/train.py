"""Time of training steps, of attncalc and three other codes, in one run.

    python benchmarks/train.py ../shared/data                # rmd17_ethanol.npz, rmd17_aspirin.npz
    python benchmarks/train.py ../shared/data --systems ethanol --engines attncalc so3krates-torch

A step consists of loader, energies and forces, gradient of a loss of both, clipping and Adam. It
uses 10 frames of ethanol or 8 of aspirin, the same ones in all engines, in float32. Here an engine
is attncalc or another code (a peer). Peers take the steps of their own training loops, in the
environments of `make peers`. Of Equiformer's published code only the network and the loader are
used, with the loss and the optimizer that all engines have. Engines take turns within a round, each
in a process of its own, so that a disturbance affects all of them. The results are medians over all
steps of all rounds. Compilation happens in the first round; later rounds find the compiler's cache.

Results go to benchmarks/results/train.json and train.md after every measurement, so that a stopped
run leaves its finished measurements.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from result_files import machine_name, table, write
from run import HERE, PEERS_OF_OURS, Key, python_of, run_worker

STRUCTURES = {"ethanol": 10, "aspirin": 8}  # per step
N_BATCHES = 8  # different batches
EPOCH = 950  # structures of the usual split of rMD17
LONGEST = 3600  # time limit of a process, s; mostly for compilation
# peer -> engine of attncalc with the same network
EQUAL = {peer: ours for peer, (ours, other) in PEERS_OF_OURS.items() if not other}
COMPARED = ("step_ms", "processor_ms", "held_MiB")
ENGINES = (
    "attncalc",
    "attncalc-eager",
    "so3krates-torch",
    "mace-torch",
    "attncalc-equiformer-l2",
    "attncalc-equiformer-l2-eager",
    "attncalc-equiformer",
    "equiformer",
)


def save_frames(data: Path, system: str, file: Path) -> None:
    """Write frames of rMD17's training set to a file that all engines can read."""
    from ase.io import write as write_atoms

    from attncalc.data import official_split, read

    source = data / f"rmd17_{system}.npz"
    training, *_ = official_split(read(source), train="train_01", n_validation=50)
    n = N_BATCHES * STRUCTURES[system]
    frames = []
    for atoms, energy, forces in zip(
        training.structures[:n],
        training.energies[:n] - training.energies[:n].mean(),
        training.forces[:n],
        strict=True,
    ):
        frame = atoms.copy()
        frame.info["REF_energy"], frame.arrays["REF_forces"] = float(energy), forces
        frames.append(frame)
    write_atoms(file, frames, format="extxyz")


def worker(arguments: argparse.Namespace) -> None:
    """Print one JSON line."""
    from ase.io import read as read_atoms
    from training_steps import measure

    (system,) = arguments.systems
    frames = read_atoms(arguments.data, ":")
    row = measure(
        arguments.worker,
        frames,
        STRUCTURES[system],
        threads=arguments.threads,
        budget=arguments.budget,
    )
    print(json.dumps(row), flush=True)


def summary(rows: Iterable[tuple[Key, dict]]) -> list[dict]:
    """Return one entry per engine and system, with medians over the steps of all rounds."""
    by_key: dict[Key, list[dict]] = {}
    for key, row in rows:
        by_key.setdefault(key, []).append(row)
    entries = []
    for (engine, system, threads), all_rounds in by_key.items():
        done = [row for row in all_rounds if "failed" not in row]
        entry = {"engine": engine, "system": system, "threads": threads}
        if len(done) < len(all_rounds):
            entry["failed"] = next(row["failed"] for row in all_rounds if "failed" in row)
        if done:
            entry |= {
                "versions": done[0]["versions"],
                "step_ms": median(t for row in done for t in row["step"]),
                "processor_ms": median(t for row in done for t in row["processor"]),
                "steps": sum(len(row["step"]) for row in done),
                "rounds": len(done),
                "ready_s": done[0]["ready_s"],  # of the first round, which includes compilation
                "held_MiB": max(row["held_MiB"] for row in done),
                "peak_MiB": max(row["peak_MiB"] for row in done),
            }
            entry["epochs_per_hour"] = 3.6e6 / entry["step_ms"] / -(-EPOCH // STRUCTURES[system])
        entries.append(entry)
    return entries


def markdown(entries: list[dict], machine: str, notes: list[str]) -> str:
    """Return the tables in Markdown."""
    head = ["system", "structures", "engine", "ms per step", "processor ms", "epochs per hour"]
    head += ["memory of a step, MiB", "peak of the process, MiB", "ready after, s"]
    cells = []
    for e in sorted(entries, key=lambda e: list(STRUCTURES).index(e["system"])):
        start = [e["system"], str(STRUCTURES[e["system"]]), e["engine"]]
        if "step_ms" not in e:
            cells.append([*start, e["failed"], *[""] * 5])
            continue
        times = [f"{e['step_ms']:,.1f}", f"{e['processor_ms']:,.1f}"]
        times += [f"{e['epochs_per_hour']:,.1f}"]
        memory = [f"{e['held_MiB']:,.0f}", f"{e['peak_MiB']:,.0f}"]
        cells.append([*start, *times, *memory, f"{e['ready_s']:,.0f}"])
    lines = [machine, "", *notes, "", *table(head, cells), ""]
    lines += [
        "Memory of a step is the most that its tensors hold at once, weights and optimizer "
        f"not counted. An epoch has {EPOCH} structures. Ready after: until the first step of the "
        "first round is done; later runs find in its cache what was compiled.",
        "",
    ]
    at = {(e["engine"], e["system"]): e for e in entries if "step_ms" in e}
    ratios = [
        [f"{theirs} / {ours}", system]
        + [f"{at[theirs, system][name] / at[ours, system][name]:.2f}" for name in COMPARED]
        for theirs, ours in EQUAL.items()
        for system in STRUCTURES
        if (theirs, system) in at and (ours, system) in at
    ]
    if ratios:
        lines += ["## Networks of equal size", ""]
        lines += [*table(["engines", "system", "time", "processor time", "memory"], ratios), ""]
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with rmd17_ethanol.npz, rmd17_aspirin.npz")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--systems", nargs="+", choices=list(STRUCTURES), default=list(STRUCTURES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=10.0, help="s per measurement, at least")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads) < 1:
        parser.error("--rounds and --threads must be positive")
    for system in () if arguments.worker else arguments.systems:
        if not (arguments.data / f"rmd17_{system}.npz").exists():
            parser.error(f"there is no rmd17_{system}.npz in {arguments.data}")
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.worker:
        worker(arguments)
        return
    pythons = {engine: python_of(engine, {}) for engine in arguments.engines}
    for engine in [engine for engine, python in pythons.items() if python is None]:
        print(f"{engine}: no environment (`make peers`): left out")
        del pythons[engine]
    keys: list[Key] = [
        (engine, system, arguments.threads) for system in arguments.systems for engine in pythons
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Key, dict]] = []
    start, n_all = time.monotonic(), arguments.rounds * len(keys)
    with TemporaryDirectory() as folder:
        files = {system: Path(folder) / f"{system}.xyz" for system in arguments.systems}
        for system, file in files.items():
            save_frames(arguments.data, system, file)
        for key in keys * arguments.rounds:
            engine, system, _ = key
            row = run_worker(
                str(pythons[engine]),
                key,
                arguments.budget,
                script="train.py",
                more=[str(files[system])],
                longest=LONGEST,
            )
            rows.append((key, row))
            report(rows, arguments.output)
            left = (time.monotonic() - start) / len(rows) * (n_all - len(rows)) / 60
            told = row.get("failed") or f"{median(row['step']):.1f} ms"
            print(f"[{len(rows)}/{n_all}, {left:.0f} min left] {engine} {system}: {told}")
    print((arguments.output / "train.md").read_text())


def report(rows: list[tuple[Key, dict]], output: Path) -> None:
    """Write both files."""
    from training_steps import ENGINES as KNOWN

    entries, machine = summary(rows), machine_name()
    rounds = max(e.get("rounds", 0) for e in entries)
    threads = " and ".join(str(n) for n in sorted({threads for (_, _, threads), _ in rows}))
    notes = [
        f"{rounds} round{'s' * (rounds != 1)} by turns, medians over all steps; {threads} thread"
        f"{'s' * (threads != '1')}, which wait passively.",
        "",
    ]
    for engine in dict.fromkeys(e["engine"] for e in entries):
        versions = {e["versions"] for e in entries if e["engine"] == engine and "versions" in e}
        notes.append(f"- {engine}: {KNOWN[engine][1]} ({'; '.join(sorted(versions))})")
    content = {"machine": machine, "rounds": rounds, "rows": entries}
    write(output / "train.json", json.dumps(content, indent=1) + "\n")
    write(output / "train.md", markdown(entries, machine, notes))


if __name__ == "__main__":
    main()
