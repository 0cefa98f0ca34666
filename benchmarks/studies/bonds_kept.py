"""Molecules of a batch that keep their bonds in dynamics, for trajectories of any number of runs.

    python benchmarks/studies/bonds_kept.py --choose 30 ../shared/data/spice_dev.extxyz -o some.xyz
    attncalc relax some.xyz --model so3krates-organic
    attncalc md some.relaxed.xyz --model so3krates-organic --replicas 1 --temperature 500 \
        --steps 200000 --every 1000 -o t500.h5md
    python benchmarks/studies/bonds_kept.py t500.h5md

Bonds are those of `same_bonds` in benchmarks/studies/general.py: of the first frame, and broken or
new in a later one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from general import same_bonds

from attncalc import load, md
from attncalc.md.h5md_reader import count_systems_h5md, iread_h5md

MODEL = "so3krates-organic"


def main() -> None:
    """Choose molecules, or print which of them kept their bonds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", help="trajectories, or with --choose one data set")
    parser.add_argument("--choose", type=int, help="number of molecules of SPICE's PubChem set")
    parser.add_argument("-o", "--output")
    asked = parser.parse_args()
    if asked.choose is not None:
        write(asked.output, chosen(asked.files[0], asked.choose))
        return
    for file in asked.files:
        n_systems = count_systems_h5md(file)
        changed = {k: first_change(file, k) for k in range(n_systems)}
        changed = {k: at for k, at in changed.items() if at}
        length = md.read_h5md(file, -1)[0].info["time_fs"] / 1000
        print(f"{file}: {n_systems - len(changed)} of {n_systems} molecules keep their bonds")
        print(f"{length:g} ps; mean temperature {temperature(file, n_systems):.0f} K; {changed}")


def chosen(data: str, n: int) -> list[Atoms]:
    """Return the first frame each of evenly spaced compositions that the model knows."""
    known, of_formula = set(load(MODEL).species), {}
    for atoms in read(data, ":"):
        if atoms.info["config_type"] == "pubchem" and known.issuperset(atoms.numbers):
            of_formula.setdefault(atoms.get_chemical_formula(), atoms)
    all_of_them = list(of_formula.values())
    some = [all_of_them[k] for k in np.linspace(0, len(all_of_them) - 1, n).astype(int)]
    for atoms in some:
        atoms.calc, atoms.info = None, {"charge": int(atoms.info["charge"])}
    return some


def first_change(file: str, system: int) -> str:
    """Return formula and time of the first frame with other bonds than the first; "" if none."""
    frames = iread_h5md(file, system=system)
    first = next(frames)
    for frame in frames:
        if not same_bonds(first, frame):
            return f"{first.symbols} at {frame.info['time_fs'] / 1000:g} ps"
    return ""


def temperature(file: str, n_systems: int) -> float:
    """Return the mean temperature of all systems in the second half of a run, K."""
    rows = md.read_log(Path(file).with_suffix(".csv"), n_systems=n_systems)
    return float(np.mean([row["temperature_K"] for row in rows[len(rows) // 2 :]]))


if __name__ == "__main__":
    main()
