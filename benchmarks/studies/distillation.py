#!/usr/bin/env python
"""More from 950 frames: networks taught by two tight-binding methods that these frames correct.

Few frames of density functional theory do not cover all motions of a molecule. GFN1-xTB and
GFN2-xTB describe all of them, with an error that is a smooth function. The steps (MD17's labels,
split 01):

    1  python benchmarks/studies/distillation.py residual ../shared/data/rmd17_ethanol.npz \
           -o runs/ethanol-residual.npz
       differences between the labels of the 1,000 + 1,000 frames and the mean of the two methods
    2  attncalc train benchmarks/recipes/equiformer-ethanol-residual.yaml
       a network learns these differences from the 950 training frames: the teacher's correction
    3  python benchmarks/studies/distillation.py sample ../shared/data/rmd17_ethanol.npz \
           --model so3krates-ethanol -n 24000 -o runs/ethanol-sample.npz
       many structures from dynamics of a model that starts at training frames, with the labels of
       the two methods
    4  python benchmarks/studies/distillation.py lessons ../shared/data/rmd17_ethanol.npz \
           --sample runs/ethanol-sample.npz --teachers CORRECTION ... -o runs/ethanol-lessons.npz
       the same structures with corrected labels, and several copies of the 950 frames;
       with --models, the mean of these labels and those of models trained on the frames alone
    5  attncalc train models/equiformer-ethanol-distilled.yaml
       a network that needs neither correction nor tight binding; it starts from the weights of a
       network that was trained on the frames alone

Without tight binding, a slower and more accurate network teaches a faster one. Then the labels of
the 950 frames are the only reference data:

    3  python benchmarks/studies/distillation.py sample ../shared/data/rmd17_ethanol.npz \
           --model so3krates-ethanol --teacher equiformer-ethanol -n 24000 \
           --temperatures 400 900 --ps 8 --seed 31 -o runs/ethanol-sample-frames.npz
    4  python benchmarks/studies/distillation.py lessons ../shared/data/rmd17_ethanol.npz \
           --sample runs/ethanol-sample-frames.npz --labelled -o runs/ethanol-lessons-frames.npz

Correcting a cheaper method is the Δ of Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087
(2015). Test frames are only used in the tests of steps 2 and 5. Tight binding needs tblite.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tblite reads it at import

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from tqdm import tqdm

from attncalc import System, load, md
from attncalc.evaluator import Evaluator
from attncalc.fast import lower
from attncalc.data import Dataset, concatenate, read
from attncalc.data.errors import predict
from attncalc.sampling.oracles import load_oracle

METHODS = ("GFN1-xTB", "GFN2-xTB")
TRAIN, TEST, LABELS = "train_01", "test_01", "md17"
N_VALIDATION = 50  # the last training frames, as in the recipes
TIMESTEP, FRICTION = 0.5, 0.01  # fs, 1/fs
EVERY = 40  # steps between two structures of a replica: 20 fs


class TightBinding:
    """Mean of the two methods; the accuracy of 0.1 is ten times tighter than the default."""

    def __init__(self, numbers: np.ndarray) -> None:
        from tblite.ase import TBLite

        self.atoms = Atoms(numbers)
        self.calculators = [TBLite(method=name, accuracy=0.1, verbosity=0) for name in METHODS]

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Return energy, eV, and forces [n_atoms, 3] eV/Å at positions [n_atoms, 3] Å.

        Raises:
            CalculationFailed: the electrons do not converge, e.g. in a dissociated structure.
        """
        self.atoms.positions = positions
        energies = [one.get_potential_energy(self.atoms) for one in self.calculators]
        forces = [one.get_forces(self.atoms) for one in self.calculators]
        return float(np.mean(energies)), np.mean(forces, axis=0)


class Teacher:
    """An oracle of `attncalc sample`, such as a model."""

    def __init__(self, name: str, numbers: np.ndarray) -> None:
        self.atoms = Atoms(numbers, info={"charge": 0, "spin": 1})
        self.oracle = load_oracle(name)

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Return energy, eV, and forces [n_atoms, 3] eV/Å at positions [n_atoms, 3] Å.

        Raises:
            CalculationFailed: the oracle refuses the structure, its labels are not finite, or the
                structure is outside its training data.
        """
        self.atoms.positions = positions
        (found,) = self.oracle.label([self.atoms])
        if isinstance(found, str) or found.is_outside or not found.are_finite:
            raise CalculationFailed(found if isinstance(found, str) else "outside")
        return found.energy, found.forces


def arrays_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions [n, n_atoms, 3] Å, energies [n] eV and forces [n, n_atoms, 3] eV/Å."""
    positions = np.array([atoms.positions for atoms in dataset.structures])
    return positions, dataset.energies, np.array(dataset.forces)


def moved(
    model: str, frames: Sequence[Atoms], kelvin: tuple[float, ...], n_rounds: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield structures [n_atoms, 3] Å from short Langevin dynamics of replicas, without end.

    Every replica has its own temperature, and gives `n_rounds` structures per run. In every run,
    replicas start at other frames. A run ends when one of its replicas explodes.
    """
    langevin = md.Langevin(TIMESTEP * units.fs, kelvin, FRICTION / units.fs)
    force = Evaluator(load(model))
    for k in count():
        rng = np.random.default_rng([seed, k])
        starts = [frames[i] for i in rng.choice(len(frames), len(kelvin), replace=False).tolist()]
        state = langevin.init(force, System.from_ase(starts), seed=int(rng.integers(2**31)))
        with suppress(FloatingPointError):
            for _ in range(n_rounds):
                state = md.run(langevin, force, state, EVERY)
                yield from state.system.positions.reshape(len(starts), -1, 3).numpy()


def write(path: Path, numbers: np.ndarray, arrays: Sequence[np.ndarray], **splits) -> None:
    """Write a file for `attncalc.data.read`, with these splits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    positions, energies, forces = arrays
    labelled = {"z": numbers, "R": positions, "E": energies, "F": forces}
    np.savez(path, **labelled, **splits, units="eV, eV/angstrom")
    print(f"{len(positions)} structures in {path}")


def residual(options: argparse.Namespace) -> None:
    """Step 1: differences between the labels and tight binding."""
    dataset = read(options.data, labels=LABELS)
    chosen = dataset[np.concatenate([dataset.splits[TRAIN], dataset.splits[TEST]])]
    numbers = chosen.structures[0].numbers
    positions, energies, forces = arrays_of(chosen)
    cheap = [*map(TightBinding(numbers), tqdm(positions, unit="frame"))]
    left = (
        energies - np.array([energy for energy, _ in cheap]),
        forces - np.array([force for _, force in cheap]),
    )
    n_train = len(dataset.splits[TRAIN])
    ends = {TRAIN: np.arange(n_train), TEST: np.arange(n_train, len(positions))}
    write(options.output, numbers, (positions, *left), **ends)
    for what, whole, rest, size in (
        ("forces", forces, left[1], "a mean size of {:.0f} meV/Å"),
        ("energies", energies - energies.mean(), left[0] - left[0].mean(), "{:.0f} meV"),
    ):
        sizes = [size.format(1e3 * np.abs(some).mean()) for some in (whole, rest)]
        print(f"{what}: {sizes[0]}, of which {sizes[1]} is left")


def sample(options: argparse.Namespace) -> None:
    """Step 3: structures from dynamics, labelled by tight binding or a model."""
    dataset = read(options.data, labels=LABELS)
    training = dataset[dataset.splits[TRAIN]][:-N_VALIDATION].structures
    numbers = training[0].numbers
    kelvin = tuple(np.linspace(*options.temperatures, options.replicas).tolist())
    teacher = Teacher(options.teacher, numbers) if options.teacher else TightBinding(numbers)
    frames: list[tuple[np.ndarray, float, np.ndarray]] = []
    n_rounds = max(1, round(1e3 * options.ps / (TIMESTEP * EVERY)))
    endless = moved(options.model, training, kelvin, n_rounds, options.seed)
    structures = islice(endless, options.n)
    for positions in tqdm(structures, total=options.n, unit="frame"):
        with suppress(CalculationFailed):
            frames.append((positions, *teacher(positions)))
    # the mean energy of a harmonic molecule: broken bonds cost more, and atoms that fell into each
    # other may gain energy
    energies = np.array([energy for _, energy, _ in frames])
    thermal = 1.5 * len(numbers) * units.kB * max(kelvin)
    usual = np.abs(energies - np.median(energies)) < thermal
    kept = [frame for frame, is_usual in zip(frames, usual, strict=True) if is_usual]
    write(options.output, numbers, [np.array(values) for values in zip(*kept, strict=True)])


def lessons(options: argparse.Namespace) -> None:
    """Step 4: the data file of the training, with corrected labels."""
    dataset = read(options.data, labels=LABELS)
    known, test = dataset[dataset.splits[TRAIN]], dataset[dataset.splits[TEST]]
    new = concatenate([read(path) for path in options.sample])
    positions, energies, forces = arrays_of(new)
    if options.labelled == bool(options.teachers):
        sys.exit("give --teachers for labels of tight binding, else --labelled, not both")
    corrections = [predict(lower(load(name)), new) for name in options.teachers]
    if corrections:
        energies = energies + np.mean([one.energies for one in corrections], axis=0)
        forces = forces + np.mean([np.array(one.forces) for one in corrections], axis=0)
    if options.models:
        models = [predict(lower(load(name)), new) for name in options.models]
        all_energies = np.array([energies, *(one.energies for one in models)])
        all_forces = np.array([forces, *(np.array(one.forces) for one in models)])
        # far from the frames, networks of the frames alone fail, but tight binding does not
        agreed = all_forces.std(axis=0).max(axis=(1, 2)) < options.agreement
        energies[agreed] = all_energies.mean(axis=0)[agreed]
        forces[agreed] = all_forces.mean(axis=0)[agreed]
        print(f"the mean of all labels {agreed.sum()} structures, the first alone the others")
    # validation frames last, where the recipe expects them
    training = arrays_of(known[:-N_VALIDATION])
    ends = [arrays_of(known[-N_VALIDATION:]), arrays_of(test)]
    parts = [(positions, energies, forces), *[training] * options.repeat, *ends]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    n, n_test = len(joined[0]), len(test)
    splits = {TRAIN: np.arange(n - n_test), TEST: np.arange(n - n_test, n)}
    write(options.output, new.structures[0].numbers, joined, **splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    made = {}
    for step in (residual, sample, lessons):
        command = made[step] = commands.add_parser(step.__name__, help=step.__doc__)
        command.set_defaults(run=step)
        command.add_argument("data", type=Path, help="rmd17_MOLECULE.npz with MD17's labels")
        command.add_argument("-o", "--output", type=Path, required=True, help="an .npz file")
    made[sample].add_argument("--model", required=True, help="that moves the atoms")
    made[sample].add_argument("--teacher", help="an oracle that labels, such as a model")
    made[sample].add_argument("-n", type=int, default=16_000, help="structures")
    made[sample].add_argument("--ps", type=float, default=1.0, help="length of a run")
    made[sample].add_argument("--replicas", type=int, default=40)
    made[sample].add_argument(
        "--temperatures", nargs=2, type=float, default=(350.0, 750.0), metavar="K",
        help="of the coldest and the hottest replica",
    )  # fmt: skip
    made[sample].add_argument("--seed", type=int, default=1)
    made[lessons].add_argument(
        "--sample", type=Path, nargs="+", required=True, help="files of `sample`"
    )
    made[lessons].add_argument("--teachers", nargs="*", default=[], help="of `residual`")
    made[lessons].add_argument(
        "--labelled", action="store_true", help="labels of the sample are those of a model"
    )
    made[lessons].add_argument(
        "--models", nargs="*", default=[],
        help="that need no tight binding: labels are the mean with theirs",
    )  # fmt: skip
    made[lessons].add_argument(
        "--agreement", type=float, default=0.03,
        help="eV/Å, largest standard deviation over teachers of a structure's forces for that mean",
    )  # fmt: skip
    made[lessons].add_argument("--repeat", type=int, default=5, help="of every known frame")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
