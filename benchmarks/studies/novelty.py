"""Novelty against true errors: detection outside the training data, and false alarms inside.

    python benchmarks/studies/novelty.py ../shared/data

For each model, the atoms of structures outside the training set are divided into atoms with a large
force error and others. AUC is the probability that an atom with a large error has the larger
novelty. The same is computed for the spread of a committee. A force error is large above five times
the model's mean error on its test set, and at least above 0.5 eV/Å if the labels have another level
of theory. For most models, broken bonds, collisions and other molecules have no labels at their
level of theory. For so3krates-xtb-small-molecules, GFN2-xTB (tblite) computes them here. Writes
novelty.json and novelty.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from result_files import machine_name, table, write

from attncalc import data, load
from attncalc.fast import lower
from attncalc.novelty import OUTSIDE
from attncalc.structures import evaluate_many
from attncalc.potential import Potential

RESULTS = Path(__file__).resolve().parents[1] / "results"
FAR_OFF, OTHER_LEVEL = 5, 0.5  # times the error on the test set; eV/Å
MOST = 200  # largest number of structures of a case
OWN = "its test set"


@dataclass(frozen=True)
class Case:
    """Structures that a model was not trained on.

    Attributes:
        words: description for the table.
        file, labels, split: the data.
        same_level: True if the labels have the model's level of theory.
    """

    words: str
    file: str
    labels: str | None = None
    split: str | None = None
    same_level: bool = True


def others(*names: str) -> list[Case]:
    """Return molecules of rMD17 with MD17's labels; for benzene these are noisy, so rMD17's."""
    return [
        Case(name, f"rmd17_{name}.npz", "rmd17" if name == "benzene" else "md17", None, name != "benzene")
        for name in names
    ]


HOT = Case("ethanol, hot (QM22, B3LYP)", "qm22_ethanol.npz", same_level=False)
FAR = [
    Case("ethane, C-C from 0.76 to 5 Å (wB97X)", "c2h6_dissociation.npz", same_level=False),
    Case("acetylacetone (PBE-D3)", "acac_test_300K.npz", same_level=False),
    Case("octane (B3LYP)", "alkane_c08.npz", same_level=False),
]
CASES = {
    "so3krates-ethanol-committee": [
        Case(OWN, "rmd17_ethanol.npz", "md17", "test_01"),
        *others("benzene", "malonaldehyde", "naphthalene", "aspirin"),
        *(HOT, *FAR),
    ],
    "equiformer-ethanol": [
        Case(OWN, "rmd17_ethanol.npz", "md17", "test_01"),
        *others("benzene", "malonaldehyde", "naphthalene", "aspirin"),
        *(HOT, *FAR),
    ],
    "so3krates-aspirin-committee": [
        Case(OWN, "rmd17_aspirin.npz", "md17", "test_01"),
        *others("benzene", "malonaldehyde", "naphthalene", "ethanol"),
        *(HOT, *FAR),
    ],
    "so3krates-silicon": [Case(OWN, "mlearn_Si.extxyz", None, "test")],
}
SCANS = ("ethanol_pbe_test_norm_mode_874.npz", "ethanol_pbe_test_norm_mode_3005.npz")


@dataclass(frozen=True)
class Found:
    """Atoms of a case.

    Attributes:
        novelty: [n_atoms], novelty.
        off: [n_atoms], force error, eV/Å.
        spread: [n_atoms], spread of the committee, eV/Å; None for a single model.
        structure: [n_atoms], number of the structure.
        far_off: limit of large force errors, eV/Å.
    """

    novelty: NDArray[np.float64]
    off: NDArray[np.float64]
    spread: NDArray[np.float64] | None
    structure: NDArray[np.int64]
    far_off: float

    @property
    def bad(self) -> NDArray[np.bool_]:
        return self.off > self.far_off

    @property
    def outside(self) -> float:
        """Fraction of structures with an atom outside the training data."""
        largest = np.zeros(self.structure.max() + 1)
        np.maximum.at(largest, self.structure, self.novelty)
        return float(np.mean(largest > OUTSIDE))


def auc(values: NDArray[np.float64], bad: NDArray[np.bool_]) -> float | None:
    """Return the probability that a bad atom has the larger value than a good one (Mann-Whitney).

    It is None if there are only bad or only good atoms.
    """
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if not n_bad or not n_good:
        return None
    ranks = np.argsort(np.argsort(values, kind="stable"))
    return float((ranks[bad].sum() - n_bad * (n_bad - 1) / 2) / (n_bad * n_good))


def found(
    potential: Potential, structures: Sequence[Atoms], forces: Sequence[Any], far_off: float
) -> Found:
    """Return novelty, spread and force errors of a model for the atoms of all structures."""
    novelty, off, spread, structure, n = [], [], [], [], 0
    for system, result in evaluate_many(potential, structures):
        novelty.append(result.novelty)
        ours = system.split(result.forces.numpy())
        theirs = forces[n : n + system.n_systems]
        off += [np.linalg.norm(a - b, axis=1) for a, b in zip(ours, theirs, strict=True)]
        structure.append(n + system.system_idx.numpy())
        n += system.n_systems
        if result.spread is not None:
            spread.append(np.linalg.norm(result.spread.forces.numpy(), axis=1))
    return Found(
        np.concatenate(novelty),
        np.concatenate(off),
        np.concatenate(spread) if spread else None,
        np.concatenate(structure),
        far_off,
    )


def read(case: Case, folder: Path) -> tuple[list[Atoms], list[Any]]:
    """Return structures and forces of a case: a whole test set, or evenly spaced frames."""
    dataset = data.read(folder / case.file, labels=case.labels)
    if case.split is not None:
        dataset = dataset[dataset.splits[case.split]]
    elif len(dataset) > MOST:
        dataset = dataset[np.linspace(0, len(dataset) - 1, MOST).round().astype(int)]
    assert dataset.forces is not None
    return list(dataset.structures), list(dataset.forces)


def row(words: str, one: Found) -> dict[str, Any]:
    """Return the numbers of a case."""
    bad = one.bad
    return {
        "case": words,
        "structures": int(one.structure.max()) + 1,
        "mean_error": float(one.off.mean()),
        "outside": one.outside,
        "far_off": float(bad.mean()),
        "caught": float(np.mean(one.novelty[bad] > OUTSIDE)) if bad.any() else None,
        "auc": auc(one.novelty, bad),
        "auc_spread": None if one.spread is None else auc(one.spread, bad),
    }


def rows_of(cases: Iterator[tuple[str, list[Atoms], list[Any], bool]], potential: Potential) -> list:
    """Return numbers of all cases of a model (its test set first), and of all cases together."""
    rows, all_of, limit = [], [], 0.0
    for words, structures, forces, same_level in cases:
        one = found(potential, structures, forces, limit)
        if not limit:
            limit = FAR_OFF * float(one.off.mean())
        far_off = limit if same_level else max(limit, OTHER_LEVEL)
        one = Found(one.novelty, one.off, one.spread, one.structure, far_off)
        rows.append(row(words, one))
        all_of.append(one)
        print(rows[-1], flush=True)
    bad = np.concatenate([one.bad for one in all_of])
    novelty = np.concatenate([one.novelty for one in all_of])
    spreads = [one.spread for one in all_of]
    spread = None if spreads[0] is None else np.concatenate(spreads)
    together = {
        "case": "all together",
        "structures": sum(one["structures"] for one in rows),
        "mean_error": float(np.concatenate([one.off for one in all_of]).mean()),
        "outside": None,
        "far_off": float(bad.mean()),
        "caught": float(np.mean(novelty[bad] > OUTSIDE)),
        "auc": auc(novelty, bad),
        "auc_spread": None if spread is None else auc(spread, bad),
    }
    return [*rows, together]


def of_files(name: str, folder: Path) -> Iterator[tuple[str, list[Atoms], list[Any], bool]]:
    for case in CASES[name]:
        yield case.words, *read(case, folder), case.same_level


# ------------------------------------------------------------------- cases labelled here, GFN2-xTB


def labelled(structures: Sequence[Atoms]) -> tuple[list[Atoms], list[Any]]:
    """Return structures with their forces; those that do not converge are omitted."""
    from tblite.ase import TBLite

    kept, forces = [], []
    for structure in structures:
        atoms = structure.copy()
        atoms.set_initial_magnetic_moments(None)
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
        try:
            forces.append(atoms.get_forces())
        except Exception:  # from tblite: no self-consistent field
            continue
        kept.append(structure)
    return kept, forces


KNOWN = ("H2O", "CH4", "H2CO", "CH3OH", "H3CNH2", "CH3CH2OH", "CH3CONH2")
UNKNOWN = ("C6H6", "C2H2", "HCN", "CO2", "N2H4", "H2O2", "C2H6", "CH3CN", "C5H5N", "C4H4O", "N2O")


def stretched() -> list[Atoms]:
    """Return molecules with one bond to a terminal atom, 1.1 to 3 times as long."""
    made = []
    for name, factor in itertools.product(KNOWN, (1.1, 1.3, 1.6, 2.0, 3.0)):
        atoms = molecule(name)
        i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
        for a, b in zip(i, j, strict=True):
            if (i == b).sum() == 1:  # b is terminal
                made.append(atoms.copy())
                made[-1].set_distance(a, b, factor * atoms.get_distance(a, b), fix=0)
    return made


def colliding() -> list[Atoms]:
    """Return pairs of molecules, one above the other, with contacts of 2.5 to 0.9 Å."""
    made = []
    for (one, other), gap in itertools.product(
        itertools.combinations_with_replacement(KNOWN[:5], 2), (2.5, 2.0, 1.6, 1.3, 1.1, 0.9)
    ):
        below, above = molecule(one), molecule(other)
        shift = below.positions[:, 2].max() - above.positions[:, 2].min() + gap
        above.translate((0, 0, shift))
        made.append(below + above)
    return made


def hot() -> list[Atoms]:
    """Return molecules with random displacements of 0.05 to 0.3 Å."""
    made = []
    for name, amount, seed in itertools.product(KNOWN, (0.05, 0.1, 0.2, 0.3), range(5)):
        made.append(molecule(name))
        made[-1].rattle(amount, seed=seed)
    return made


def other_molecules() -> list[Atoms]:
    """Return other molecules, undisplaced and displaced by 0.05 Å."""
    made = []
    for name, seed in itertools.product(UNKNOWN, range(4)):
        made.append(molecule(name))
        made[-1].rattle(0.05 * (seed > 0), seed=seed)
    return made


def of_xtb() -> Iterator[tuple[str, list[Atoms], list[Any], bool]]:
    test = data.read(RESULTS.parents[1] / "tests/data/xtb_small_molecules_test.extxyz")
    assert test.forces is not None
    yield OWN, list(test.structures), list(test.forces), True
    for words, made in (
        ("broken bonds", stretched()),
        ("collisions of two molecules", colliding()),
        ("displaced by 0.05 to 0.3 Å", hot()),
        ("other molecules", other_molecules()),
    ):
        yield words, *labelled(made), True


# ------------------------------------------------------------------------------------ normal modes


def scans(folder: Path) -> list[list[str]]:
    """Return rows for two normal modes of ethanol: inside or outside, and energy errors."""
    potential = lower(load("so3krates-ethanol", device="cpu"))
    rows = []
    for file in SCANS:
        with np.load(folder / file) as content:
            numbers, positions, energies = content["z"], content["R"], content["E"]
            reached = content["displacement"]
        frames = [Atoms(numbers, position) for position in positions]
        results = list(evaluate_many(potential, frames))
        ours = np.concatenate([result.energy.numpy() for _, result in results])
        largest = np.concatenate([result.novelty.reshape(-1, 9).max(axis=1) for _, result in results])
        lowest = int(np.argmin(energies))
        off = np.abs((ours - ours[lowest]) - (energies - energies[lowest]))
        for label, chosen in (("inside", largest <= OUTSIDE), ("outside", largest > OUTSIDE)):
            if chosen.any():
                ends = f"{reached[chosen].min():.2f} to {reached[chosen].max():.2f}"
                mode = file.split("_")[-1].removesuffix(".npz")
                numbers_ = [f"{1e3 * off[chosen].mean():.0f}", f"{1e3 * off[chosen].max():.0f}"]
                rows.append([mode, label, str(int(chosen.sum())), ends, *numbers_])
    return rows


# ------------------------------------------------------------------------------------------ output


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


HEAD = ["", "structures", "force off, eV/Å", "structures outside", "atoms far off", "of these caught",
        "AUC novelty", "AUC spread"]  # fmt: skip


def page(numbers: dict[str, Any]) -> str:
    lines = [
        *(numbers["machine"], "", f"`{numbers['command']}`"),
        "",
        "\"Structures outside\" on a model's own test set are false alarms. Far off: a force that is "
        f"wrong by more than {FAR_OFF} times the mean on the test set; where the labels are of "
        f"another level of theory (named in the row), by {OTHER_LEVEL} eV/Å at least. Caught: its "
        "atom has novelty above 1. AUC: the chance that an atom far off has the larger novelty (or "
        "spread of the committee) than one that is not; 0.5 is chance. Where all atoms of a row are "
        "far off there is none.",
    ]
    for name, rows in numbers["models"].items():
        body = [
            [
                *(one["case"], str(one["structures"]), f"{one['mean_error']:.3f}"),
                *(percent(one[key]) for key in ("outside", "far_off", "caught")),
                *(number(one[key]) for key in ("auc", "auc_spread")),
            ]
            for one in rows
        ]
        lines += ["", f"## {name}", "", *table(HEAD, body)]
    head = ["mode", "", "structures", "displacement", "mean error, meV", "largest, meV"]
    lines += [
        *("", "## Two normal modes of ethanol, so3krates-ethanol", ""),
        "Labels at PBE, relative to the lowest energy of the scan.",
        *("", *table(head, numbers["scans"]), ""),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="with the data")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    models: dict[str, Any] = {}
    for name in CASES:
        potential = lower(load(name, device="cpu"))
        models[name] = rows_of(of_files(name, options.folder), potential)
    small = "so3krates-xtb-small-molecules"
    models[small] = rows_of(of_xtb(), lower(load(small, device="cpu")))
    numbers = {
        "machine": machine_name(),
        "command": f"python benchmarks/studies/{Path(__file__).name} {options.folder}",
        "models": models,
        "scans": scans(options.folder),
    }
    write(options.output / "novelty.json", json.dumps(numbers, indent=1) + "\n")
    write(options.output / "novelty.md", page(numbers))
    print(page(numbers))


if __name__ == "__main__":
    main()
