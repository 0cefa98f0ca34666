"""Pretrained models and GFN2-xTB beside DFT labels of molecules: forces, relative energies.

    python benchmarks/studies/pretrained.py ../shared/data so3lr.safetensors

Every model is evaluated on the same frames, at most --frames of a set, evenly spaced. Models and
labels have different levels of theory and different zeros of energy. Therefore the mean over all
frames of one composition and charge is subtracted from reference and predicted energies, and
compositions with one frame are omitted. Elements that one model does not know (bromine) are omitted
for all models. Writes pretrained.json and .md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

from attncalc import data as data_
from attncalc import evaluate_many, load
from attncalc.data import Dataset
from attncalc.fast import lower

HERE = Path(__file__).resolve().parents[1]
# file, split or None, description
SETS: tuple[tuple[str, str | None, str], ...] = (
    ("spice_dev.extxyz", "dipeptides", "dipeptides, wB97M-D3(BJ)"),
    ("spice_dev.extxyz", "pubchem", "PubChem molecules, wB97M-D3(BJ)"),
    ("spice_dev.extxyz", "water", "water clusters, wB97M-D3(BJ)"),
    ("spice_dipeptides_polar.extxyz", None, "polar dipeptides, wB97M-D3(BJ)"),
    ("3bpa_test_300K.npz", None, "3BPA at 300 K, wB97X/6-31G(d)"),
    ("acac_test_300K.npz", None, "acetylacetone at 300 K, PBE-D3/def2-SVP"),
    ("acac_test_dihedral.npz", None, "acetylacetone, scan of a dihedral angle"),
    ("alkane_c08.npz", None, "octane, B3LYP/cc-pVDZ"),
    ("alkane_c12.npz", None, "dodecane, B3LYP/cc-pVDZ"),
    ("qm22_nma.npz", None, "N-methylacetamide and its saddle points, B3LYP"),
    ("qm22_ethanol.npz", None, "ethanol at high energy, B3LYP"),
)
GFN2 = "GFN2-xTB"
Evaluate = Callable[[Sequence[Atoms]], tuple[NDArray, list[NDArray]]]


def main() -> None:
    """Evaluate all models on all sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("models", nargs="+", help="model files or names")
    parser.add_argument("--frames", type=int, default=300, help="of a set, at most")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    names = {GFN2: gfn2} | {Path(name).stem: engine(name) for name in arguments.models}
    known = set.intersection(*(set(load(name).species) for name in arguments.models))
    rows: list[dict[str, Any]] = []
    for file, split, words in SETS:
        dataset = frames_of(arguments.data / file, split, known, arguments.frames)
        row: dict[str, Any] = {"set": words, "frames": len(dataset)}
        row["atoms"] = float(np.mean([len(atoms) for atoms in dataset.structures]))
        for name, evaluate in names.items():
            begun = time.perf_counter()
            energies, forces = evaluate(dataset.structures)
            row[name] = errors(dataset, energies, forces)
            row[name]["ms_per_frame"] = 1e3 * (time.perf_counter() - begun) / len(dataset)
        rows.append(row)
        print(json.dumps(row), flush=True)
    content = {"machine": machine_name(), "rows": rows}
    write(arguments.output / "pretrained.json", json.dumps(content, indent=1) + "\n")
    write(arguments.output / "pretrained.md", report(rows, list(names), content["machine"]))


def frames_of(path: Path, split: str | None, known: set[int], most: int) -> Dataset:
    """Return evenly spaced frames of a set, of elements that all models know."""
    dataset = data_.read(path)
    chosen = dataset.splits[split] if split else np.arange(len(dataset))
    usable = [k for k in chosen if set(dataset.structures[k].numbers.tolist()) <= known]
    if len(usable) > most:
        usable = [usable[k] for k in np.linspace(0, len(usable) - 1, most).astype(int)]
    return dataset[usable]


def engine(model: str) -> Evaluate:
    """Return a function that evaluates the compiled loops of a model in batches."""
    potential = lower(load(model, device="cpu"))

    def evaluate(structures: Sequence[Atoms]) -> tuple[NDArray, list[NDArray]]:
        energies, forces = [], []
        for system, result in evaluate_many(potential, structures):
            energies.append(result.energy.numpy())
            ends = np.cumsum(np.bincount(system.system_idx.numpy()))[:-1]
            forces += np.split(result.forces.numpy(), ends)
        return np.concatenate(energies), forces

    return evaluate


def gfn2(structures: Sequence[Atoms]) -> tuple[NDArray, list[NDArray]]:
    """Evaluate GFN2-xTB (Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652, 2019)."""
    from tblite.ase import TBLite

    energies, forces = [], []
    for atoms in structures:
        one = atoms.copy()
        one.calc = TBLite(method=GFN2, verbosity=0, charge=atoms.info.get("charge", 0))
        energies.append(one.get_potential_energy())
        forces.append(one.get_forces())
    return np.array(energies), forces


def errors(dataset: Dataset, energies: NDArray, forces: list[NDArray]) -> dict[str, float | None]:
    """Return MAEs of force components [meV/Å] and of relative energies [meV]."""
    of_kind: dict[tuple[str, int], list[int]] = defaultdict(list)
    for k, atoms in enumerate(dataset.structures):
        kind = atoms.get_chemical_formula(), int(atoms.info.get("charge", 0))
        of_kind[kind].append(k)
    off: list[float] = []
    for members in of_kind.values():
        if len(members) > 1:
            differences = energies[members] - dataset.energies[members]
            off += np.abs(differences - differences.mean()).tolist()
    found: dict[str, float | None] = {"force": None, "energy": None, "rms_force": None}
    found["energies"] = len(off)
    if off:
        found["energy"] = 1e3 * float(np.mean(off))
    if dataset.forces is not None:
        wanted = np.concatenate(dataset.forces)
        found["force"] = 1e3 * float(np.abs(np.concatenate(forces) - wanted).mean())
        found["rms_force"] = 1e3 * float(np.sqrt((wanted**2).mean()))
    return found


def report(rows: list[dict[str, Any]], names: list[str], machine: str) -> str:
    """Return the tables in Markdown."""
    header = ["set", "frames", "atoms", "rms force", *names, *(f"energy, {n}" for n in names)]
    lines = []
    for row in rows:
        first = row[names[0]]
        numbers = [first["rms_force"], *(row[name]["force"] for name in names)]
        energies = [row[name]["energy"] for name in names]
        shown = ["-" if x is None else f"{x:.0f}" for x in (*numbers, *energies)]
        lines.append([row["set"], str(row["frames"]), f"{row['atoms']:.0f}", *shown])
    times = ", ".join(
        f"{name} {np.mean([row[name]['ms_per_frame'] for row in rows]):.1f} ms" for name in names
    )
    return (
        "# Pretrained models beside DFT labels\n\n"
        "Mean absolute errors of force components, meV/Å, and of energies relative to the mean of "
        "their composition, meV, against the\nlabels of each set, whose level of theory is not "
        "that of any model here: part of each number is the functional.\n\n"
        + "\n".join(table(header, lines))
        + f"\n\nTime per frame, mean over the sets, lists included: {times} ({machine}).\n\n"
        "`python benchmarks/studies/pretrained.py ../shared/data MODEL...`\n"
    )


if __name__ == "__main__":
    main()
