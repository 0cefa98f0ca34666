"""A general model beside its teacher: errors, minima, scans, collisions, dynamics.

    python benchmarks/studies/general.py so3krates-organic so3lr.safetensors ../shared/data \
        --held-out so3lr-test.h5
    python benchmarks/studies/general.py ... --parts dynamics --ps 100

The parts are

* errors: forces and energies on published structures, whose own labels are not read, and on
  held-out molecules with their labels;
* minima: relaxed by the teacher, then by the model (--molecules 500 takes ten minutes);
* scans: rigid torsions and dimers;
* collisions: pairs pressed together;
* dynamics: Langevin dynamics, with a check of the bonds.

Parts that are not selected keep the results of the last run. Writes MODEL-general.json and .md into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms, units
from ase.build import minimize_rotation_and_translation
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from pretrained import SETS, engine, frames_of
from result_files import machine_name, table, write

from attncalc import System, load, md
from attncalc.evaluator import Evaluator
from attncalc.sampling.clusters import principal_axes
from attncalc.sampling.conformers import embedded
from attncalc.sampling.geometry import turned

HERE = Path(__file__).resolve().parents[1]
BONDED = 1.35  # times the sum of covalent radii: two closer atoms of a molecule are bonded
BROKEN = 1.6  # times the sum of covalent radii: a longer bond is broken
TEMPERATURES = 300.0, 500.0  # K
LOOSE, TIGHT = 0.01, 0.001  # eV/Å, the default of `attncalc relax` and a tenth of it
FAR = 0.2  # Å, root mean square: a relaxation that moves atoms by more leaves its minimum
# SMILES, indices of the two atoms whose bond is the axis of rotation
TORSIONS = {
    "butane": ("CCCC", (1, 2)),
    "biphenyl": ("c1ccccc1-c1ccccc1", (5, 6)),
    "N-methylacetamide": ("CC(=O)NC", (1, 3)),
    "glycol": ("OCCO", (1, 2)),
}
DIMERS = {
    "water": "O",
    "methanol": "CO",
    "benzene, face to face": "c1ccccc1",
    # at 2.6 Å between carbon atoms, two pairs of hydrogen atoms are as close as in H2
    "benzene, edge to edge": "c1ccccc1",
    "formic acid": "OC=O",
}
SEPARATIONS = np.array([2.6, 2.8, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0])  # Å, see `pair`
COLLISIONS = (
    *(("C", "C"), ("O", "O"), ("c1ccccc1", "c1ccccc1"), ("CO", "ClC"), ("N", "FC")),
    *(("CS", "CP"), ("O", "[Cl-]"), ("C[NH3+]", "CC(=O)[O-]"), ("C=O", "C#N"), ("FF", "ClCl")),
)

Evaluate = Callable[[Sequence[Atoms]], tuple[NDArray, list[NDArray]]]


def main() -> None:
    """Measure the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--held-out", type=Path, required=True, help="of `attncalc sample`")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--frames", type=int, default=300, help="of a set, at most")
    parser.add_argument("--molecules", type=int, default=100, help="of minima and dynamics")
    parser.add_argument("--ps", type=float, default=20.0, help="of each dynamics")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)  # before the measurements, not after them
    stem = f"{Path(asked.model).stem}-general"
    path = asked.output / f"{stem}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= {"machine": machine_name(), "model": Path(asked.model).stem}
    content |= {"teacher": Path(asked.teacher).stem, "held_out": asked.held_out.name}
    for part in asked.parts:
        content[part] = PARTS[part](asked)
        print(part, json.dumps(content[part])[:2000], flush=True)
        write(path, json.dumps(content, indent=1) + "\n")
    write(asked.output / f"{stem}.md", report(content))


# --- errors -------------------------------------------------------------------------------------


def errors(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return errors against the teacher for every set."""
    model, teacher = engine(asked.model), engine(asked.teacher)
    known = set(load(asked.model).species)
    rows = []
    for file, split, words in SETS:
        frames = frames_of(asked.data / file, split, known, asked.frames).structures
        wanted = teacher(frames)
        rows.append({"set": words.partition(",")[0]} | errors_of(frames, model(frames), wanted))
        print(json.dumps(rows[-1]), flush=True)
    frames, kinds, wanted, smiles = held_out(asked.held_out)
    found = model(frames)
    rows.append({"set": "held-out molecules"} | errors_of(frames, found, wanted))
    rows[-1] |= {"molecules": len(set(smiles))}
    charges = np.array([atoms.info["charge"] for atoms in frames])
    groups = {f"held out, {kind}": kinds == kind for kind in np.unique(kinds)}
    groups |= {f"held out, total charge {q:+d} e": charges == q for q in np.unique(charges)}
    for words, mask in groups.items():
        chosen = np.flatnonzero(mask)
        parts = [frames[k] for k in chosen]
        of_found = found[0][chosen], [found[1][k] for k in chosen]
        of_wanted = wanted[0][chosen], [wanted[1][k] for k in chosen]
        rows.append({"set": words} | errors_of(parts, of_found, of_wanted))
    return rows


def errors_of(
    frames: Sequence[Atoms],
    found: tuple[NDArray, list[NDArray]],
    wanted: tuple[NDArray, list[NDArray]],
) -> dict[str, Any]:
    """Return MAEs of forces [meV/Å], also by element, and of unshifted energies [meV/atom]."""
    off = np.abs(np.concatenate(found[1]) - np.concatenate(wanted[1]))
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    per_atom = np.abs(found[0] - wanted[0]) / np.array([len(atoms) for atoms in frames])
    return {
        "frames": len(frames),
        "rms_force": 1e3 * float(np.sqrt((np.concatenate(wanted[1]) ** 2).mean())),
        "force": 1e3 * float(off.mean()),
        "force_rmse": 1e3 * float(np.sqrt((off**2).mean())),
        "energy": 1e3 * float(per_atom.mean()),
        "elements": {
            chemical_symbols[z]: 1e3 * float(off[numbers == z].mean()) for z in np.unique(numbers)
        },
    }


def held_out(path: Path) -> tuple[list[Atoms], NDArray, tuple[NDArray, list[NDArray]], NDArray]:
    """Return structures of a file of `attncalc sample`, their kinds, labels and molecules."""
    with h5py.File(path) as file:
        offsets = file["offsets"][:]
        numbers, positions, forces = file["z"][:], file["R"][:], file["F"][:]
        charge, energies = file["charge"][:], file["E"][:]
        kinds = np.array(file.attrs["kinds"].decode().split())[file["kind"][:]]
        smiles = file["molecule_smiles"][:].astype(str)[file["molecule"][:]]
    spans = [slice(a, b) for a, b in pairwise(offsets)]
    frames = [
        Atoms(numbers[span], positions[span], info={"charge": int(q)})
        for span, q in zip(spans, charge, strict=True)
    ]
    return frames, kinds, (energies, [forces[span] for span in spans]), smiles


# --- minima -------------------------------------------------------------------------------------


def minima(asked: argparse.Namespace) -> dict[str, Any]:
    """Relax minima of the teacher again with the model, and compare them.

    Where the surface is flat, a largest force of 0.01 eV/Å is far from a minimum: relaxed further,
    to 0.001 eV/Å, the teacher itself moves one molecule in six by more than 0.2 Å. Therefore its
    minima are relaxed to 0.001 eV/Å, and those of 0.01 eV/Å are a control.
    """
    starts, smiles = molecules(asked)
    loose = relaxed(asked.teacher, starts)
    usable = [k for k in range(len(starts)) if same_bonds(starts[k], loose[k])]
    loose, smiles = [loose[k] for k in usable], [smiles[k] for k in usable]
    tight = relaxed(asked.teacher, loose, TIGHT)
    rows = [
        {"by": by, "start_fmax": start, "fmax": fmax} | moves(smiles, before, after)
        for by, start, fmax, before, after in (
            ("model", TIGHT, LOOSE, tight, relaxed(asked.model, tight)),
            ("model", TIGHT, TIGHT, tight, relaxed(asked.model, tight, TIGHT)),
            ("teacher", LOOSE, TIGHT, loose, tight),
        )
    ]
    return {"asked": asked.molecules, "molecules": len(usable), "relaxations": rows}


def moves(smiles: Sequence[str], before: Sequence[Atoms], after: Sequence[Atoms]) -> dict[str, Any]:
    """Compare structures before and after a relaxation."""
    moved = []
    for first, last in zip(before, after, strict=True):
        turned_back = first.copy()
        minimize_rotation_and_translation(last, turned_back)
        squares = ((turned_back.positions - last.positions) ** 2).sum(1)
        moved.append(float(np.sqrt(squares.mean())))
    kept = [same_bonds(*pair) for pair in zip(before, after, strict=True)]
    return {
        "bonds_kept": sum(kept),
        "good": sum(k and rmsd < FAR for k, rmsd in zip(kept, moved, strict=True)),
        "median_rmsd": float(np.median(moved)),
        "worst": [{"molecule": smiles[k], "rmsd": moved[k]} for k in np.argsort(moved)[:-9:-1]],
    }


def molecules(asked: argparse.Namespace) -> tuple[list[Atoms], list[str]]:
    """Return one structure each of evenly spaced held-out single molecules, and their SMILES."""
    frames, kinds, _, smiles = held_out(asked.held_out)
    first = {
        name: k
        for k, name in reversed(list(enumerate(smiles)))
        if "." not in name and kinds[k] == "relaxed"
    }
    chosen = [first[name] for name in sorted(first)]
    chosen = [chosen[k] for k in np.linspace(0, len(chosen) - 1, asked.molecules).astype(int)]
    return [frames[k] for k in chosen], [str(smiles[k]) for k in chosen]


def relaxed(model: str, structures: Sequence[Atoms], fmax: float = LOOSE) -> list[Atoms]:
    """Return structures relaxed to `fmax` (eV/Å) in one batch."""
    system = System.from_ase(structures)
    steps = 2000 if fmax >= LOOSE else 20_000
    end = md.relax_batch(Evaluator(load(model)), system, fmax=fmax, steps=steps)
    positions = np.split(
        end.system.positions.numpy(), np.cumsum([len(atoms) for atoms in structures])[:-1]
    )
    found = []
    for atoms, at in zip(structures, positions, strict=True):
        found.append(atoms.copy())
        found[-1].positions = at
    return found


def bonds(atoms: Atoms, factor: float) -> NDArray:
    """Return the pairs [n, n], bool, within `factor` times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < factor * (radii[:, None] + radii)
    return near & ~np.eye(len(atoms), dtype=bool)


def same_bonds(before: Atoms, after: Atoms) -> bool:
    """Return True if no bond of `before` is broken in `after`, and no new one has formed."""
    return not (
        (bonds(before, BONDED) & ~bonds(after, BROKEN)).any()
        or (bonds(after, 1.15) & ~bonds(before, BONDED)).any()
    )


# --- scans --------------------------------------------------------------------------------------


def scans(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return mean absolute differences, meV, for rigid torsions and dimers of teacher's minima."""
    model, teacher = engine(asked.model), engine(asked.teacher)
    rows = []
    for name, (smiles, bond) in TORSIONS.items():
        conformer = embedded(np.random.default_rng(0), smiles, 8, lowest=True)[0]
        (start,) = relaxed(asked.teacher, [Atoms(conformer.numbers, conformer.positions)])
        frames = [
            Atoms(conformer.numbers, turned(conformer.mol, start.positions, bond, angle))
            for angle in np.linspace(0, 2 * np.pi, 36, endpoint=False)
        ]
        rows.append({"scan": f"torsion, {name}"} | scanned(model, teacher, frames, "mean"))
    for name, smiles in DIMERS.items():
        one = minimum(asked.teacher, smiles)
        if name.endswith("face to face"):
            one = flat_to_x(one)
        frames = [pair(one, one, distance) for distance in SEPARATIONS]
        frames.append(pair(one, one, 60.0))
        rows.append({"scan": f"dimer, {name}"} | scanned(model, teacher, frames, "last"))
    return rows


def scanned(
    model: Evaluate, teacher: Evaluate, frames: Sequence[Atoms], zero: str
) -> dict[str, Any]:
    """Compare energies of a scan relative to their mean, or to its last frame."""
    curves = []
    for evaluate in (model, teacher):
        energies, _ = evaluate(frames)
        curves.append(1e3 * (energies - (energies.mean() if zero == "mean" else energies[-1])))
    found, wanted = curves
    if zero == "last":
        found, wanted = found[:-1], wanted[:-1]
    return {
        "mae": float(np.abs(found - wanted).mean()),
        "largest": float(np.abs(found - wanted).max()),
        "range": float(wanted.max() - wanted.min()),
        "model": found.round(1).tolist(),
        "teacher": wanted.round(1).tolist(),
    }


def minimum(model: str, smiles: str) -> Atoms:
    """Return a molecule at a minimum of a model."""
    conformer = embedded(np.random.default_rng(0), smiles, 4, lowest=True)[0]
    start = Atoms(conformer.numbers, conformer.positions, info={"charge": conformer.charge})
    (end,) = relaxed(model, [start])
    return end


def flat_to_x(atoms: Atoms) -> Atoms:
    """Return a molecule turned so that its extent along x is the smallest."""
    turned = atoms.copy()
    turned.positions = atoms.positions @ principal_axes(atoms.positions)[[2, 0, 1]].T
    return turned


def pair(a: Atoms, b: Atoms, distance: float) -> Atoms:
    """Return two molecules whose nearest heavy atoms have this distance, Å.

    The second one is rotated by 180° about z. They approach from far along x, on the line through
    their centres.
    """
    first, second = a.copy(), b.copy()
    second.rotate(180, "z", center="COM")
    first.positions -= first.get_center_of_mass()
    second.positions -= second.get_center_of_mass()
    heavy = [np.flatnonzero(atoms.numbers > 1) for atoms in (first, second)]

    def nearest(shift: float) -> float:
        moved = second.positions[heavy[1]] + [shift, 0, 0]
        return float(np.linalg.norm(first.positions[heavy[0], None] - moved, axis=-1).min())

    low, high = 0.0, distance + 40.0
    for _ in range(60):  # finds the outermost solution: beyond it, distances only grow
        middle = (low + high) / 2
        low, high = (middle, high) if nearest(middle) < distance else (low, middle)
    second.positions += [high, 0, 0]
    both = first + second
    both.info = {"charge": a.info.get("charge", 0) + b.info.get("charge", 0)}
    return both


# --- collisions ---------------------------------------------------------------------------------


def collisions(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return how far the energy falls when pairs are pressed together from 4 Å to 0.3 Å."""
    model, teacher = engine(asked.model), engine(asked.teacher)
    rows = []
    for names in COLLISIONS:
        a, b = (minimum(asked.teacher, name) for name in names)
        distances = np.arange(4.0, 0.29, -0.05)
        frames = [pair(a, b, distance) for distance in distances]
        rises, of_teacher = (e - e[0] for e in (model(frames)[0], teacher(frames)[0]))
        row = {"pair": " + ".join(names), "lowest": float(rises.min())}
        row |= {"at": float(distances[rises.argmin()]), "teacher": float(of_teacher.min())}
        row |= {"before": float(rises[: rises.argmin() + 1].max())}
        rows.append(row | {"highest": float(rises.max()), "last": float(rises[-1])})
    return rows


# --- dynamics -----------------------------------------------------------------------------------


def dynamics(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Run Langevin dynamics of held-out molecules in one batch, and check their bonds."""
    starts, smiles = molecules(asked)
    starts = relaxed(asked.model, starts)
    rows = []
    for temperature in TEMPERATURES:
        langevin = md.Langevin(0.5 * units.fs, temperature, 0.01 / units.fs)
        force = Evaluator(load(asked.model))
        state = langevin.init(force, System.from_ase(starts), seed=0)
        broken: dict[int, float] = {}
        blocks = max(1, round(asked.ps))
        temperatures = []
        for block in range(blocks):
            state = md.run(langevin, force, state, round(2000 * asked.ps / blocks))
            temperatures.append(state.temperature.numpy())
            ends = state.system.to_ase()
            for k, (before, after) in enumerate(zip(starts, ends, strict=True)):
                if k not in broken and not same_bonds(before, after):
                    broken[k] = asked.ps * (block + 1) / blocks
            print(
                f"{temperature} K, block {block + 1} of {blocks}: {len(broken)} broken", flush=True
            )
        row = {"temperature": temperature, "ps": asked.ps, "molecules": len(starts)}
        row |= {"whole": len(starts) - len(broken)}
        row |= {"mean_temperature": float(np.mean(temperatures))}
        row |= {"changed": {smiles[k]: at for k, at in broken.items()}}
        rows.append(row)
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    part.__name__: part for part in (errors, minima, scans, collisions, dynamics)
}


# --- report -------------------------------------------------------------------------------------


def report(content: dict[str, Any]) -> str:
    """Return the tables in Markdown."""
    model, teacher = content["model"], content["teacher"]
    lines = [f"# {model} beside {teacher}", ""]
    if "errors" in content:
        lines += [
            f"Mean absolute differences from {teacher}, which it learnt from: force components, "
            "meV/Å, and energies, meV/atom, without any shift.",
            "",
        ]
        head = ["structures", "frames", "rms force", "force MAE", "force RMSE", "energy MAE"]
        rows = [
            [row["set"], str(row["frames"])]
            + [f"{row[name]:.0f}" for name in ("rms_force", "force", "force_rmse")]
            + [f"{row['energy']:.1f}"]
            for row in content["errors"]
        ]
        lines += [*table(head, rows), ""]
        ours = next(row for row in content["errors"] if "molecules" in row)
        by_element = ", ".join(f"{name} {x:.0f}" for name, x in ours["elements"].items())
        lines += [f"Held-out molecules by element, meV/Å: {by_element}.", ""]
    if "minima" in content:
        found = content["minima"]
        head = ["relaxed by", "to, eV/Å", "of the minima of", "within 0.2 Å", "median, Å"]
        head += ["all bonds kept"]
        rows = [
            [
                content[row["by"]],
                f"{row['fmax']:g}",
                f"{row['start_fmax']:g}",
                f"{row['good']} ({100 * row['good'] / found['molecules']:.1f} %)",
                f"{row['median_rmsd']:.3f}",
                str(row["bonds_kept"]),
            ]
            for row in found["relaxations"]
        ]
        far = found["relaxations"][0]["worst"][:5]
        names = ", ".join(f"`{row['molecule']}` {row['rmsd']:.2f}" for row in far)
        lines += [
            f"Minima of {teacher} ({found['molecules']} held-out molecules: `--parts minima "
            f"--molecules {found['asked']}`), relaxed again. Distances are root mean squares over "
            "atoms:",
            "",
            *table(head, rows),
            "",
            f"Furthest in the first row: {names}.",
            "",
        ]
    if "scans" in content:
        head = ["scan", "range", "MAE", "largest"]
        rows = [
            [row["scan"], *(f"{row[name]:.0f}" for name in ("range", "mae", "largest"))]
            for row in content["scans"]
        ]
        lines += [f"Rigid scans, meV, and differences from {teacher}:", "", *table(head, rows), ""]
    if "collisions" in content:
        head = ["pressed together, 4 to 0.3 Å", "lowest", "at, Å", "highest before that"]
        head += ["lowest of the teacher", "highest", "at 0.3 Å"]
        names = ("lowest", "at", "before", "teacher", "highest", "last")
        rows = [
            [row["pair"], *(f"{row[name]:.1f}" for name in names)] for row in content["collisions"]
        ]
        told = "Energies of pairs that collide, eV, from that at 4 Å between heavy atoms:"
        lines += [told, "", *table(head, rows), ""]
    if "dynamics" in content:
        for row in content["dynamics"]:
            changed = ", ".join(f"`{name}`" for name in row["changed"]) or "none"
            lines.append(
                f"Langevin dynamics, {row['temperature']:.0f} K, 0.5 fs, {row['ps']:g} ps: "
                f"{row['whole']} of {row['molecules']} molecules keep their bonds "
                f"(changed: {changed}); last frames of each picosecond have "
                f"{row['mean_temperature']:.0f} K."
            )
        lines.append("")
    lines += [
        f"{content['machine']}. `python benchmarks/studies/general.py {model} {teacher}.safetensors"
        f" ../shared/data --held-out {content['held_out']}`",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
