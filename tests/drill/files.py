"""Inputs of the drill, and files compared; no part of it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

COPPER = str(Path(__file__).resolve().parents[1] / "models" / "cu-emt.safetensors")

SO3KRATES = """\
name: tiny
data: cu.extxyz
split: {sizes: [6, 2, 2]}
config: {cutoff: 4.0, num_features: 8, num_heads: 2, degrees: [1], num_layers: 1, num_basis: 4}
epochs: 4
batch_size: 2
compile: never
"""
EQUIFORMER = """\
name: tiny
network: equiformer
data: cu.extxyz
split: {sizes: [6, 2, 2]}
config: {cutoff: 4.0, channels: [4, 4], num_layers: 1, num_heads: 2, num_basis: 4,
  attention_features: 4, radial_features: 8, head_features: 6}
epochs: 3
batch_size: 2
compile: never
"""


def write_inputs() -> None:
    """Structures and recipes, in the current folder."""
    copper = bulk("Cu", a=3.6, cubic=True)
    write("copper.extxyz", copper)
    fixed = copper.copy()
    fixed.set_constraint(FixAtoms([0]))
    write("fixed.extxyz", fixed)
    # some frames of it fill a chunk, so that its trajectory grows on the way
    write("large.extxyz", copper.repeat((3, 3, 3)))
    write("silicon.extxyz", bulk("Si", cubic=True))
    write("ethanol.extxyz", molecule("CH3CH2OH"))
    write("batch.extxyz", [copper, copper.repeat((2, 1, 1)), copper])
    write("cu.extxyz", [_labelled(k) for k in range(10)])
    Path("so3krates.yaml").write_text(SO3KRATES)
    Path("committee.yaml").write_text(SO3KRATES.replace("epochs: 4", "epochs: 2\ncommittee: 2"))
    Path("equiformer.yaml").write_text(EQUIFORMER)


def _labelled(k: int):
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.rattle(0.08, seed=k)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def trajectory(path: Path) -> dict[str, np.ndarray]:
    """Every dataset, under its name."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:

        def note(name: str, thing: object) -> None:
            if isinstance(thing, h5py.Dataset):
                found[name] = thing[()]

        file.visititems(note)
    return found


def difference(ours: Path, whole: Path) -> str:
    """What is not the same, to the last bit, in two trajectories and their logs."""
    try:
        mine, theirs = trajectory(ours), trajectory(whole)
    except OSError as error:
        return f"{ours.name} cannot be read: {error}"
    if mine.keys() != theirs.keys():
        return f"other datasets: {sorted(mine.keys() ^ theirs.keys())}"
    for name, values in mine.items():
        if values.shape != theirs[name].shape or values.tobytes() != theirs[name].tobytes():
            return f"{name} differs: {values.shape}, {theirs[name].shape}"
    if ours.with_suffix(".csv").read_bytes() != whole.with_suffix(".csv").read_bytes():
        return "the log differs"
    return ""


def hidden(folder: Path) -> str:
    """Names of files left behind that nobody sees."""
    left = sorted(path.name for path in folder.rglob(".*"))
    return f"left behind: {left}" if left else ""
