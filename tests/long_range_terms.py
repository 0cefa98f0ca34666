"""Electrostatics and dispersion: a network with both, and their derivatives by autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from contract import ELEMENTS, ethanol, randomise
from networks import compiled_so3krates
from torch import nn

from attncalc import Potential
from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.so3krates import So3krates
from attncalc.physics.dispersion import Dispersion, DispersionConfig
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.potential import forces_from_edges

CUTOFF = 7.0
HEADS = {"predict_charges": True, "predict_hirshfeld_ratios": True}
# of cubics: eV, eV/Å and so on, relative to the largest where that exceeds 1
TOLERANCE = 1e-8

TERMS: dict[str, Callable[[float | None], list[nn.Module]]] = {
    "both": lambda end: [
        DampedElectrostatics(ElectrostaticsConfig(end), ELEMENTS),
        Dispersion(DispersionConfig(end), ELEMENTS),
    ],
    "electrostatics": lambda end: [
        DampedElectrostatics(ElectrostaticsConfig(end, damping_length=2.0), ELEMENTS)
    ],
    "dispersion": lambda end: [Dispersion(DispersionConfig(end, damping=0.9), ELEMENTS)],
}


def terms(cutoff: float | None = CUTOFF, *, by_kind: bool = False) -> list[nn.Module]:
    return [
        DampedElectrostatics(ElectrostaticsConfig(cutoff, by_kind), ELEMENTS),
        Dispersion(DispersionConfig(cutoff, by_kind), ELEMENTS),
    ]


def potential(pair_terms: list[nn.Module], **options) -> Potential:
    torch.manual_seed(0)
    config = compiled_so3krates(4.0, num_basis=8, **(options or HEADS))
    network = So3krates(config, len(ELEMENTS)).double()
    randomise(network)
    return Potential(network, ELEMENTS, pair_terms=pair_terms).requires_grad_(False).eval()


def charged() -> Atoms:
    atoms = ethanol()
    atoms.info["charge"] = 1
    return atoms


def many() -> Atoms:
    """More pairs than there are in a chunk, of several images."""
    generator = np.random.default_rng(0)
    atoms = bulk("C", a=3.4, cubic=True) * (2, 1, 1)
    atoms.numbers[:] = generator.choice(ELEMENTS, len(atoms))
    atoms.numbers[0] = 6 + atoms.numbers[1:].sum() % 2
    atoms.rattle(0.1, seed=0)
    return atoms


def outputs_for(n: int) -> AtomOutputs:
    generator = torch.Generator().manual_seed(0)
    charges, ratios = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return AtomOutputs(torch.zeros(n), 0.4 * charges, 0.9 + 0.1 * ratios)


def by_autograd(terms: list[nn.Module], graph: Graph, outputs: AtomOutputs) -> list[torch.Tensor]:
    """Energies, forces, strain gradient, gradients by charges and ratios."""
    vectors = graph.vectors.detach().clone().requires_grad_()
    charges, ratios = (
        one.detach().clone().requires_grad_() for one in (outputs.charges, outputs.hirshfeld_ratios)
    )
    given = AtomOutputs(outputs.energies, charges, ratios)
    energies = sum(term(graph.with_vectors(vectors), given) for term in terms)
    gradient, *others = torch.autograd.grad(
        energies.sum(), [vectors, charges, ratios], materialize_grads=True, allow_unused=True
    )
    forces = forces_from_edges(gradient, graph.receivers, graph.senders, graph.n_atoms)
    strain = torch.zeros(graph.n_systems, 3, 3, dtype=torch.float64)
    outer = graph.vectors.unsqueeze(2) * gradient.unsqueeze(1)
    strain.index_add_(0, graph.system_idx[graph.receivers], outer)
    return [energies.detach(), forces, (strain + strain.transpose(1, 2)) / 2, *others]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        scale = expected.abs().amax().clamp(min=1.0) if expected.numel() else 1.0
        assert (found - expected).abs().amax() <= TOLERANCE * scale
