"""Potentials of ethanol that know their training, and such that do not."""

from __future__ import annotations

import torch
from ase import Atoms
from contract import ethanol, randomise
from networks import tiny_so3krates

from attncalc.calibrate import calibrate
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates import So3krates
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.potential import Potential

ELEMENTS = (1, 6, 8)
# rounding of features, 1e-7 of their size, in units of the least standard deviation, 1e-5 of it
OF_ROUNDING = 1e-2
NETWORKS = {
    "so3krates": (
        So3krates,
        tiny_so3krates(4.0, num_features=64, num_heads=4, degrees=(1, 2, 3, 4), head_features=16),
    ),
    "so3krates-sphc": (
        So3kratesSphc,
        So3kratesSphcConfig(cutoff=4.0, num_features=24, nonlocal_attention="none"),
    ),
    "equiformer": (
        Equiformer,
        EquiformerConfig(
            cutoff=4.0,
            avg_num_neighbors=7.0,
            channels=(32, 16),
            num_layers=2,
            num_heads=2,
            attention_features=16,
            radial_features=16,
            num_basis=8,
            head_features=32,
        ),
    ),
}


def frames(n: int, seed: int = 0, amount: float = 0.05) -> list[Atoms]:
    """Ethanol, rattled."""
    made = []
    for k in range(n):
        atoms = ethanol()
        atoms.rattle(amount, seed=1000 * seed + k)
        made.append(atoms)
    return made


def untaught(kind: str = "so3krates", seed: int = 0) -> Potential:
    torch.manual_seed(seed)
    network_kind, config = NETWORKS[kind]
    network = network_kind(config, len(ELEMENTS))
    randomise(network)
    return Potential(network, ELEMENTS).requires_grad_(False)


def taught(kind: str = "so3krates", seed: int = 0) -> Potential:
    potential = untaught(kind, seed)
    calibrate(potential, frames(100))
    return potential
