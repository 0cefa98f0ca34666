"""Teachers that cost nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from ase.calculators.lj import LennardJones
from networks import tiny_so3krates

from attncalc import Potential, save
from attncalc.nn.so3krates import So3krates

SPECIES = (1, 6, 7, 8, 9, 15, 16, 17)


def spheres() -> LennardJones:
    """Soft spheres: `attncalc sample --oracle teachers:spheres`."""
    return LennardJones(sigma=0.9, epsilon=0.05, rc=6.0)


def no_calculator() -> int:
    return 3


def tiny_model(path: Path, species: tuple[int, ...] = SPECIES) -> Path:
    """A model file of random weights that knows charges and predicts everything."""
    torch.manual_seed(0)
    config = tiny_so3krates(
        3.0, embed_charge=True, predict_charges=True, predict_hirshfeld_ratios=True
    )
    save(Potential(So3krates(config, len(species)), species), path)
    return path
