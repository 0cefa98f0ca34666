#!/usr/bin/env python
"""Generate GFN2-xTB training and test data for small H/C/N/O molecules (needs tblite and ase).

Each molecule is taken from `ase.build.molecule` or from a file, relaxed, and moved by Langevin
dynamics; one frame is stored per `--stride` steps. Training and test frames come from trajectories
with independent velocities and noise. Everything follows from `--seed`.

    python tests/data/make_xtb_small_molecules.py
    python tests/data/make_xtb_small_molecules.py --molecules benchmarks/aspirin.xyz \
        --n-train 5000 --trajectories 2 --n-test 100 --temperature 600 --timestep 1 --stride 10 \
        --train runs/xtb_aspirin_train.extxyz --test runs/xtb_aspirin_test.extxyz

The files are extended XYZ in eV and eV/Å. Positions and forces are rounded to 6 decimals, energies
to 8; energy and forces are computed by a fresh calculator at the *rounded* positions, so that
a label belongs exactly to the structure beside it and not to the history of the trajectory.
GFN2-xTB is a semi-empirical method: never quote these numbers as those of a DFT data set.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by tblite when it is imported

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from tblite.ase import TBLite

METHOD = "GFN2-xTB"
# Neutral and closed shell.
MOLECULES = [
    "H2O", "NH3", "CH4", "H2CO", "CH3OH", "HCOOH", "H3CNH2", "C2H4",
    "CH3CHO", "CH3OCH3", "CH3CH2OH", "CH3CONH2",
]  # fmt: skip


def calculator() -> TBLite:
    """GFN2-xTB with an SCF ten times tighter than the default: forces good to about 1e-5 eV/Å."""
    return TBLite(method=METHOD, accuracy=0.1, verbosity=0)


def relax(name: str) -> Atoms:
    """The molecule at its GFN2-xTB minimum; a name is one of ASE's or a file's."""
    atoms = read(name) if Path(name).suffix else molecule(name)
    atoms.set_initial_magnetic_moments(None)
    atoms.calc = calculator()
    if not BFGS(atoms, logfile=None).run(fmax=0.01, steps=500):
        raise SystemExit(f"{name}: not relaxed after 500 steps")
    atoms.calc = None  # which cannot be sent to another process
    return atoms


def label(positions: np.ndarray, numbers: np.ndarray, name: str) -> Atoms:
    """A stored frame: rounded positions [n_atoms, 3] Å and the labels that belong to them."""
    frame = Atoms(numbers=numbers, positions=positions)
    frame.positions = np.round(frame.positions - frame.get_center_of_mass(), 6)
    frame.calc = calculator()
    energy = round(float(frame.get_potential_energy()), 8)
    forces = np.round(frame.get_forces(), 6)
    frame.info = {"group": name, "charge": 0, "spin": 1, "level_of_theory": METHOD}
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
    return frame


def sample(minimum: Atoms, name: str, n_frames: int, rng: np.random.Generator, options) -> list:
    """`n_frames` frames of one Langevin trajectory that starts at the minimum."""
    atoms = minimum.copy()
    atoms.calc = calculator()
    spread = np.sqrt(atoms.get_masses() * units.kB * options.temperature)  # [n_atoms]
    atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))
    # fixcm=True would not sample the canonical ensemble of a small molecule: the centre of mass
    # stays free here and is taken out of the stored positions.
    dynamics = Langevin(
        atoms,
        options.timestep * units.fs,
        temperature_K=options.temperature,
        friction=options.friction / units.fs,
        rng=rng,
        fixcm=False,
    )
    dynamics.run(options.equilibrate)
    frames = []
    for _ in range(n_frames):
        dynamics.run(options.stride)
        frames.append(label(atoms.positions, atoms.numbers, name))
    return frames


def trajectory(minimum: Atoms, part: int, k: int, n_frames: int, name: str, options) -> list:
    """The k-th trajectory of a part (0 training, 1 test) of a molecule."""
    # The seed holds the name, so that another choice of molecules changes no trajectory.
    own = [k] if k else []
    rng = np.random.default_rng([options.seed, part, *own, *name.encode()])
    return sample(minimum, name, n_frames, rng, options)


def main(argv: list[str] | None = None) -> None:
    runs = Path(__file__).resolve().parent.parent / "runs"
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--train", type=Path, default=runs / "xtb_small_molecules_train.extxyz")
    parser.add_argument("--test", type=Path, default=runs / "xtb_small_molecules_test.extxyz")
    parser.add_argument(
        "--molecules", nargs="+", default=MOLECULES, help="ase.build.molecule names, or files"
    )
    parser.add_argument("--n-train", type=int, default=80, help="training frames per molecule")
    parser.add_argument("--n-test", type=int, default=10, help="test frames per molecule")
    parser.add_argument(
        "--trajectories", type=int, default=1, help="share the training frames, a process each"
    )
    parser.add_argument("--temperature", type=float, default=500.0, help="K")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--friction", type=float, default=0.02, help="1/fs")
    parser.add_argument("--equilibrate", type=int, default=1000, help="MD steps thrown away first")
    parser.add_argument("--stride", type=int, default=40, help="MD steps between stored frames")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    files = {name for name in options.molecules if Path(name).is_file()}
    unknown = sorted(set(options.molecules) - set(g2.names) - files)
    if unknown:
        parser.error(f"not known to ase.build.molecule: {', '.join(unknown)}")

    started = time.perf_counter()
    training, test = [], []
    for k, name in enumerate(options.molecules, start=1):
        minimum, title = relax(name), Path(name).stem
        n_each = [options.n_train // options.trajectories] * options.trajectories
        n_each[0] += options.n_train - sum(n_each)
        with ProcessPoolExecutor(options.trajectories) as pool:
            frames = [
                pool.submit(trajectory, minimum, 0, i, n, title, options)
                for i, n in enumerate(n_each)
            ]
            training += [frame for part in frames for frame in part.result()]
        test += trajectory(minimum, 1, 0, options.n_test, title, options)
        seconds = time.perf_counter() - started
        left = seconds / k * (len(options.molecules) - k)
        print(
            f"[{k}/{len(options.molecules)}] {title:9s} {len(minimum)} atoms, "
            f"{seconds:.0f} s, about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
    for path, frames in ((options.train, training), (options.test, test)):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        write(partial, frames, format="extxyz")
        partial.replace(path)  # a stopped run leaves no half file under the final name
        print(f"wrote {len(frames)} frames, {path.stat().st_size / 1000:.0f} kB: {path}")


if __name__ == "__main__":
    main()
