"""2,000 relaxations by `attncalc relax --workers`: repeatedly killed and undisturbed, compared.

    python benchmarks/studies/many_relaxations.py            # with the extra `sample`; 15 minutes

The structures are conformers, from a classical force field, of molecules that `attncalc sample`
draws. All processes are killed with SIGKILL at random times, and the same command continues. Its
output is compared byte for byte with that of an undisturbed run. Results:
benchmarks/results/many_relaxations.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import iread, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name
from result_files import write as write_result

from attncalc.sampling.conformers import embedded
from attncalc.sampling.molecules import draw

RESULTS = Path(__file__).resolve().parents[1] / "results"
MODEL, LARGE = "so3krates-organic", 100_000


def structures(n: int, seed: int) -> list[Atoms]:
    """Return one conformer each of n molecules."""
    rng, seen, found, number = np.random.default_rng(seed), set(), [], 0
    while len(found) < n:
        molecule = draw(rng, number, seen)
        number += 1
        for conformer in embedded(rng, molecule.smiles, 1):
            info = {"charge": conformer.charge}
            found.append(Atoms(conformer.numbers, conformer.positions, info=info))
    return found


def command(source: Path, target: Path, workers: int) -> list[str]:
    """Return the command that is killed and started again."""
    options = ["--model", MODEL, "-o", str(target), "--workers", str(workers), "--quiet"]
    return [sys.executable, "-m", "attncalc", "relax", str(source), *options]


def run(line: list[str], seconds: float | None) -> bool:
    """Run a command for at most `seconds`; return True if it finished."""
    process = subprocess.Popen(line, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "many.xyz")
        write(source, structures(arguments.structures, arguments.seed), format="extxyz")
        alone, killed = Path(folder, "alone.xyz"), Path(folder, "killed.xyz")
        began = time.perf_counter()
        run(command(source, alone, arguments.workers), None)
        seconds = time.perf_counter() - began
        rng, began, kills = np.random.default_rng(arguments.seed), time.perf_counter(), 0
        while not run(
            command(source, killed, arguments.workers),
            float(rng.uniform(10, 2 * seconds / arguments.kills + 10))
            if kills < arguments.kills
            else None,
        ):
            kills += 1
        in_all = time.perf_counter() - began
        same = alone.read_bytes() == killed.read_bytes()
        relaxed = list(iread(alone))
        failed = Path(folder, "alone.failed.xyz")
        n_failed = len(list(iread(failed))) if failed.exists() else 0
    hours = seconds * LARGE / arguments.structures / 3600
    content = {
        "machine": machine_name(),
        "structures": arguments.structures,
        "atoms": float(np.mean([len(atoms) for atoms in relaxed])),
        "relaxed": len(relaxed),
        "failed": n_failed,
        "seconds": seconds,
        "kills": kills,
        "seconds with kills": in_all,
        "same bytes": same,
        "workers": arguments.workers,
    }
    text = (
        f"{machine_name()}\n\n{arguments.structures} molecules of {content['atoms']:.0f} atoms on "
        f"average, {MODEL}, {arguments.workers} workers: {len(relaxed)} relaxed, {n_failed} set "
        f"aside, in {seconds:.0f} s; {LARGE:,} of them would take {hours:.1f} h. With {kills} "
        f"kills of all processes {in_all:.0f} s, and {'the same' if same else 'NOT the same'} "
        "bytes.\n"
    )
    write_result(arguments.output / "many_relaxations.json", json.dumps(content, indent=1) + "\n")
    write_result(arguments.output / "many_relaxations.md", text)
    print(text)


if __name__ == "__main__":
    main()
