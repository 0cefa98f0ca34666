#!/usr/bin/env python
"""Data for effects across long molecules, at GFN2-xTB (needs tblite and ase).

    python benchmarks/studies/nonlocal_data.py        # about 5 minutes; writes runs/nonlocal/*.extxyz

**Cumulenes** C_nH4 are carbon chains with a CH2 group at each end. Their energy depends on the
angle between the two groups for any chain length. Training frames have a random angle and random
displacements of all atoms. `cumulene_profile` is the scan of the angle of the relaxed molecule.

**Polyyne** C10H2 and its cation C10H3+, with the proton at one end: the proton moves charge along
the whole chain, up to the other end. The carbon chain of every frame is between the two relaxed
chains, and all atoms are randomly displaced, so that the geometry of one end does not reveal the
other end. The files omit the total charge on purpose, because it would inform every atom at once.

`--seed` determines all random numbers. GFN2-xTB is a semi-empirical method with fractional
occupations at 300 K: the numbers serve to compare networks with each other, not with experiment.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tblite reads it at import

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.optimize import BFGS
from tblite.ase import TBLite

LEVEL = "GFN2-xTB"
LENGTHS = (5, 9, 13, 17)  # carbons of a cumulene; odd ones are lowest at 90 degrees
PROFILE = np.linspace(0.0, 180.0, 25)  # degrees
N_POLYYNE = 10
BOND = 1.28  # Å, before relaxation


def calculator(charge: int = 0) -> TBLite:
    return TBLite(method=LEVEL, accuracy=0.1, charge=charge, verbosity=0)


def relaxed(atoms: Atoms, charge: int = 0) -> Atoms:
    atoms.calc = calculator(charge)
    if not BFGS(atoms, logfile=None).run(fmax=0.01, steps=500):
        raise SystemExit(f"{atoms.get_chemical_formula()}: not relaxed after 500 steps")
    atoms.calc = None
    return atoms


def cumulene(n: int) -> Atoms:
    """Return relaxed C_nH4 along z; the last two atoms are the hydrogens of one end."""
    chain = [[0, 0, BOND * k] for k in range(n)]
    top = chain[-1][2] + 0.55
    ends = [[0.93, 0, -0.55], [-0.93, 0, -0.55], [0, 0.93, top], [0, -0.93, top]]
    return relaxed(Atoms(f"C{n}H4", positions=chain + ends))


def twisted(minimum: Atoms, degrees: float) -> Atoms:
    """Return the molecule with this angle between the planes of its ends; the minimum has 90."""
    atoms = minimum.copy()
    angle = np.radians(degrees - 90.0)
    turn = [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    axis = atoms.positions[-5]  # the last carbon
    atoms.positions[-2:] = axis + (atoms.positions[-2:] - axis) @ np.array(turn)
    return atoms


def polyyne(protonated: bool) -> Atoms:
    """Return C10H2 along z, or C10H3+ with CH2 at the upper end; the carbons come first."""
    chain = [[0, 0, BOND * k] for k in range(N_POLYYNE)]
    top = chain[-1][2]
    ends = [[0, 0, -1.06]]
    ends += [[0.93, 0, top + 0.55], [-0.93, 0, top + 0.55]] if protonated else [[0, 0, top + 1.06]]
    atoms = Atoms("C" * N_POLYYNE + "H" * len(ends), positions=chain + ends)
    atoms = relaxed(atoms, charge=int(protonated))
    atoms.positions -= atoms.positions[:N_POLYYNE].mean(0)
    return atoms


def between(own: Atoms, other: Atoms, share: float) -> Atoms:
    """Return `own` with chain and lower hydrogen moved towards `other` by the fraction `share`."""
    atoms, n = own.copy(), N_POLYYNE + 1
    move = share * (other.positions[:n] - own.positions[:n])
    atoms.positions[:n] += move
    atoms.positions[n:] += move[N_POLYYNE - 1]  # atoms bound to the last carbon move with it
    return atoms


def displaced(atoms: Atoms, width: float, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.normal(scale=width, size=moved.positions.shape)
    return moved


def labelled(atoms: Atoms, group: str, charge: int) -> Atoms:
    """Return a frame with energy and forces at exactly the positions that are written."""
    frame = Atoms(atoms.numbers, positions=np.round(atoms.positions, 6))
    frame.calc = calculator(charge)
    energy = round(float(frame.get_potential_energy()), 8)
    forces = np.round(frame.get_forces(), 6)
    frame.info = {"group": group, "level_of_theory": LEVEL}
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
    return frame


def cumulenes(n: int, options: argparse.Namespace) -> dict[str, list[Atoms]]:
    """Return frames of one chain length, by file."""
    minimum, group = cumulene(n), f"C{n}H4"
    made = {"profile": [labelled(twisted(minimum, angle), group, 0) for angle in PROFILE]}
    for part, count in (("train", options.n_train), ("test", options.n_test)):
        rng = np.random.default_rng([options.seed, n, part == "test"])
        frames = [twisted(minimum, angle) for angle in rng.uniform(-180, 180, count)]
        made[part] = [labelled(displaced(f, options.width, rng), group, 0) for f in frames]
    return made


def polyynes(protonated: bool, options: argparse.Namespace) -> dict[str, list[Atoms]]:
    """Return frames of the molecule or of the cation, by file."""
    own, other = polyyne(protonated), polyyne(not protonated)
    group, made = "C10H3+" if protonated else "C10H2", {}
    for part, count in (("train", options.n_train), ("test", options.n_test)):
        rng = np.random.default_rng([options.seed, 100 + protonated, part == "test"])
        frames = [between(own, other, share) for share in rng.uniform(0, 1, count)]
        moved = [displaced(frame, options.width, rng) for frame in frames]
        made[part] = [labelled(frame, group, int(protonated)) for frame in moved]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("-o", "--output", type=Path, default=here / "runs" / "nonlocal")
    parser.add_argument("--n-train", type=int, default=400, help="frames per molecule")
    parser.add_argument("--n-test", type=int, default=100, help="frames per molecule")
    parser.add_argument("--width", type=float, default=0.05, help="Å, of the displacements")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        jobs = {
            "cumulene": pool.map(partial(cumulenes, options=options), LENGTHS),
            "polyyne": pool.map(partial(polyynes, options=options), (False, True)),
        }
        for name, made in jobs.items():
            of_groups = list(made)
            for part in of_groups[0]:
                frames = [frame for group in of_groups for frame in group[part]]
                path = options.output / f"{name}_{part}.extxyz"
                partly = path.with_name(path.name + ".partial")
                write(partly, frames, format="extxyz")
                partly.replace(path)  # a stopped run leaves no incomplete file with the final name
                print(f"{len(frames):5d} frames: {path.name}", flush=True)


if __name__ == "__main__":
    main()
