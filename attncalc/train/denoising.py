"""Denoising of displaced structures (DeNS) in addition to training on energies and forces.

Liao, Smidt, Das, "Generalizing denoising to non-equilibrium structures improves equivariant force
fields", TMLR 2024. Structures are chosen at random, then some of their atoms, which are displaced
by normal noise. The network receives the forces on these atoms in the undisplaced structure. It
learns three things: the energy of the undisplaced structure, the forces on the atoms that were not
displaced, and the displacements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attncalc.nn.equiformer import Equiformer
from attncalc.nn.equiformer_denoising import DenoisingEquiformer
from attncalc.nn.so3krates import So3krates
from attncalc.nn.so3krates_denoising import DenoisingSo3krates, DenoisingSo3kratesSphc
from attncalc.nn.so3krates_sphc import So3kratesSphc
from attncalc.ops import with_modules
from attncalc.potential import Potential
from attncalc.train.recipe import Denoising
from attncalc.train.step import Batch, Loss, Prediction, Step, differentiated, gradient_step, loss

# margin of neighbour lists in standard deviations of the noise: two atoms drift apart by 7 in one
# of 10^11 cases
MARGIN = 10.0
# networks with an input for forces and a head for displacements
DENOISING: dict[type, Any] = {
    Equiformer: DenoisingEquiformer,
    So3krates: DenoisingSo3krates,
    So3kratesSphc: DenoisingSo3kratesSphc,
}
# a further word of the seed, so that it differs from that of the order of the data, [seed, epoch];
# zeros would have no effect
NOISE_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class DisplacedBatch(Batch):
    """Batch with some atoms displaced; its labels are those of the undisplaced structures.

    Attributes:
        displacements: [n_atoms, 3], in standard deviations of the noise; zero for other atoms.
        weight: weight of the errors of the displacements.
    """

    displacements: Tensor
    weight: float


def with_denoising(potential: Potential) -> Potential:
    """Return the potential with a denoising network with random weights."""
    network = potential.network
    denoising = DENOISING[type(network)](network.config, len(potential.species))
    return with_modules(potential, network=denoising.to(potential.dtype))


def without_denoising(potential: Potential) -> Potential:
    """Return the potential for inference, without denoising; any other is returned unchanged."""
    network: Any = potential.network
    if type(network) not in DENOISING.values():
        return potential
    return with_modules(potential, network=network.plain())


def displaced(
    batch: Batch, options: Denoising, cutoff: float, *, seed: int, step: int, left: float
) -> DisplacedBatch:
    """Displace some atoms; a step that is repeated displaces the same ones.

    Args:
        batch: structures whose neighbour list reaches `margin(options)` beyond the cutoff.
        options: probabilities and size of the displacements.
        cutoff: cutoff of the network, Å.
        seed, step: seed of the training and number of the step, which fix the random numbers.
        left: fraction of the training that is left.
    """
    graph = batch.graph
    random = np.random.default_rng([seed, step, NOISE_STREAM])
    chosen = random.random(graph.n_systems) < options.structures
    moved = random.random(graph.n_atoms) < options.atoms
    moved &= chosen[graph.system_idx.cpu().numpy()]
    noise = random.standard_normal((graph.n_atoms, 3)) * moved[:, None]
    displacements = torch.from_numpy(noise).to(graph.vectors.device)
    shifts = options.noise * displacements
    vectors = graph.vectors + shifts[graph.senders] - shifts[graph.receivers]
    inside = torch.linalg.vector_norm(vectors, dim=1) < cutoff
    labels = {name: getattr(batch, name) for name in ("energy", "forces", "stress", "volume")}
    return DisplacedBatch(
        graph=replace(graph, vectors=vectors, edge_mask=inside),
        **labels,
        displacements=displacements,
        weight=options.weight * left,
    )


def margin(options: Denoising) -> float:
    """Return the distance beyond the cutoff [Å] that a neighbour list must cover."""
    return MARGIN * options.noise


def denoising_step(potential: Potential, weights: Loss) -> Step:
    """Return the loss of a `DisplacedBatch` and its gradient, by double backward.

    Args:
        potential: from `with_denoising`.
        weights: weights of the errors of energies, forces and stresses.
    """
    network: Any = potential.network

    def value(batch: DisplacedBatch) -> Tensor:
        graph, in_place = batch.graph, ~batch.displacements.any(1)
        vectors = graph.vectors.detach().requires_grad_(True)
        told = torch.where(in_place.unsqueeze(1), 0.0, batch.forces)
        graph = graph.with_vectors(vectors)
        outputs, found = network.denoise(graph, told)
        energies = potential.to_eV(outputs, graph)
        energy, forces, stress, *_ = differentiated(energies, [graph], batch.volume)
        # displaced atoms have no label: their predicted forces count as correct
        forces = torch.where(in_place.unsqueeze(1), forces, batch.forces)
        total = loss(Prediction(energy, forces, stress), batch, weights)
        if in_place.all():
            return total
        errors = (found - batch.displacements.to(found.dtype))[~in_place]
        return total + batch.weight * weights.penalty(errors)

    return gradient_step(potential, value)
