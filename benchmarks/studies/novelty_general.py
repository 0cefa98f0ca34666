#!/usr/bin/env python
"""Novelty of a general model: what it notices of structures that its teacher labels.

    python benchmarks/studies/novelty_general.py so3krates-organic runs/so3lr.safetensors \
        runs/so3lr4.h5 runs/so3lr4-test.h5

Unseen structures of the sampler, the same molecules with one bond pulled apart, small molecules of
ASE's G2 collection with random displacements, and dynamics at 300, 1,500 and 3,000 K. Forces of the
model are compared with the teacher's. The description with clusters is compared with that of one
cloud of points per element, made from the same training structures. Writes novelty_general.md into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.collections import g2

sys.path[:0] = [str(Path(__file__).parents[1])]
from result_files import machine_name, table, write

from attncalc import Evaluator, System, data, load, md
from attncalc.bonds import Bonds
from attncalc.calibrate import calibrate
from attncalc.fast import lower
from attncalc.novelty.fit import largest_of
from attncalc.potential import Potential
from attncalc.structures import evaluate_many

RESULTS = Path(__file__).resolve().parents[1] / "results"
LIMITS = (0.5, 1.0, 2.0, 4.0)  # eV/Å
LENGTHS = (2.0, 2.5, 3.0, 4.0, 5.5)  # Å
HOTTEST = 60.0  # eV/Å: the teacher's forces beyond are not looked at


@dataclass(frozen=True)
class Seen:
    """Atoms of some structures: number of the structure, force error [eV/Å], two novelties."""

    structure: np.ndarray
    off: np.ndarray
    novelty: np.ndarray
    of_one_cloud: np.ndarray


def pulled(structures: list[Atoms], rng: np.random.Generator) -> Iterator[Atoms]:
    """Molecules of which a bond between heavy atoms, not of a ring, is pulled to other lengths."""
    for atoms in structures:
        edges = Bonds.of(System.from_ase(atoms)).edges
        pairs = np.stack([edges.receivers.numpy(), edges.senders.numpy()], 1)
        heavy = [pair for pair in pairs if (atoms.numbers[pair] > 1).all()]
        rng.shuffle(heavy)
        for i, j in heavy:
            others = pairs[~((pairs == (i, j)).all(1))]
            side = _connected(int(j), others)
            if i in side or len(_connected(int(i), others)) + len(side) < len(atoms):
                continue
            for length in LENGTHS:
                longer, bond = atoms.copy(), atoms.positions[j] - atoms.positions[i]
                longer.positions[list(side)] += bond * (length / np.linalg.norm(bond) - 1)
                yield longer
            break


def _connected(start: int, pairs: np.ndarray) -> set[int]:
    found = {start}
    while True:
        touched = np.isin(pairs, list(found)).any(1)
        more = set(pairs[touched].ravel().tolist()) | found
        if more == found:
            return found
        found = more


def displaced(species: tuple[int, ...]) -> Iterator[Atoms]:
    """Molecules of known elements and an even number of electrons, six times each."""
    for name in g2.names:
        atoms = molecule(name)
        if set(atoms.numbers) <= set(species) and sum(atoms.numbers) % 2 == 0 and len(atoms) > 1:
            for k, amount in enumerate((0.02, 0.05, 0.1, 0.15, 0.2, 0.3)):
                one = Atoms(atoms.numbers, atoms.positions)
                one.rattle(amount, seed=k)
                yield one


def hot(potential: Potential, start: list[Atoms], kelvin: float) -> list[Atoms]:
    """Frames of Langevin dynamics, 50 fs apart, without those whose atoms nearly meet."""
    evaluator = Evaluator(potential)
    langevin = md.Langevin(
        timestep=0.25 * units.fs, temperature=kelvin, friction=0.05 / units.fs
    )
    state, frames = langevin.init(evaluator, System.from_ase(start), seed=1), []
    for _ in range(10):
        state = md.run(langevin, evaluator, state, 200)
        frames += state.system.to_ase()
    return [atoms for atoms in frames if _nearest(atoms) > 0.6]


def _nearest(atoms: Atoms) -> float:
    return float((atoms.get_all_distances() + 10 * np.eye(len(atoms))).min())


def update_novelty(
    potential: Potential, one_cloud: Any, teacher: Potential, structures: list[Atoms]
) -> Seen:
    """Compare forces, and compute both novelties."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    n = 0
    for (system, ours), (_, theirs) in zip(
        evaluate_many(potential, structures), evaluate_many(teacher, structures), strict=True
    ):
        off = np.linalg.norm((ours.forces - theirs.forces).numpy(), axis=1)
        off[~(np.abs(theirs.forces.numpy()).max(1) < HOTTEST)] = np.nan
        other = ours.surroundings._replace(environments=one_cloud).novelty()
        found = n + system.system_idx.numpy(), off, ours.novelty, other
        for column, values in zip(columns, found, strict=True):
            column.append(values)
        n += system.n_systems
    seen = Seen(*map(np.concatenate, columns))
    good = np.isfinite(seen.off)
    return Seen(*(values[good] for values in vars(seen).values()))


def percent(values: np.ndarray) -> str:
    """Return the share of true values."""
    return f"{100 * np.mean(values):.1f} %" if len(values) else "-"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("teacher")
    parser.add_argument("training", type=Path)
    parser.add_argument("test", type=Path)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    potential, teacher = (load(name, device="cpu") for name in (asked.model, asked.teacher))
    plain = copy.deepcopy(potential)
    import_module("attncalc.novelty.fit").MANY = 10**9
    calibrate(plain, data.read(asked.training).structures)
    unseen = data.read(asked.test).structures
    test = [unseen[k] for k in rng.permutation(len(unseen))[:3000]]
    small = [atoms for atoms in test if 8 <= len(atoms) <= 30]
    sets: dict[str, list[Atoms]] = {
        "unseen structures": test,
        "a bond pulled to 2 to 5.5 Å": list(pulled(small[:300], rng)),
        "small molecules of G2, displaced": list(displaced(potential.species)),
    }
    for kelvin in (300, 1500, 3000):
        sets[f"dynamics at {kelvin:,} K"] = hot(potential, small[:60], kelvin)
    fast = lower(potential), plain.environments, lower(teacher)
    rows, all_of_it = [], []
    for words, structures in sets.items():
        seen = look(*fast, structures)
        all_of_it.append(seen)
        outside, before = (
            largest_of(novelty, seen.structure) > 1 for novelty in (seen.novelty, seen.of_one_cloud)
        )
        numbers = f"{len(structures)}", f"{1e3 * seen.off.mean():.0f}"
        rows.append([words, *numbers, percent(outside), percent(before)])
        print(rows[-1], flush=True)
    off, novelty, before = (
        np.concatenate([getattr(seen, name) for seen in all_of_it])
        for name in ("off", "novelty", "of_one_cloud")
    )
    caught = [
        [f"{limit} eV/Å", f"{(off > limit).sum()}", percent(novelty[off > limit] > 1)]
        + [percent(before[off > limit] > 1)]
        for limit in LIMITS
    ]
    lines = [
        *(machine_name(), "", f"`python benchmarks/studies/{Path(__file__).name} {asked.model} ...`"),
        *("", f"Forces of {asked.model} and of its teacher, lengths of the difference per atom."),
        "",
        *table(["structures", "number", "difference, meV/Å", "outside", "by one cloud"], rows),
        *("", "Atoms of all these structures that are wrong by more than:", ""),
        *table(["error", "atoms", "novelty above 1", "by one cloud"], caught),
        "",
    ]
    write(RESULTS / "novelty_general.md", "\n".join(lines))


if __name__ == "__main__":
    main()
