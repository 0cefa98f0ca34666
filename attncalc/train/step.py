"""Training step: the loss of a batch and its gradient by the parameters.

The plain way is double backward: differentiate energies by the edge vectors with a graph, form
the loss of energies and forces, differentiate that by the parameters. The traced way records
exactly those operations, parameter gradient included, as one flat graph without autograd, and
compiles it. (Tracing only energies and forces and differentiating the traced graph would be
silently wrong: the trace keeps `detach` nodes on saved results.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from attncalc.graph import Graph
from attncalc.ops import segment_sum, with_modules
from attncalc.potential import Potential, forces_from_edges
from attncalc.train.fx_passes import DECOMPOSITIONS, simplify


@dataclass(frozen=True)
class Batch:
    """Batch of several structures: their graph and their labels.

    Attributes:
        graph: all structures in one graph.
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
        stress: [n_systems, 3, 3] eV/Å³; zeros where the weight of the stress is zero.
        volume: [n_systems] Å³; ones where there is none.
        shares: [2]: which part of the structures and of the atoms of a step these are; the others
            are in other processes.
    """

    graph: Graph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    volume: Tensor
    shares: Tensor = field(default_factory=lambda: torch.ones(2, dtype=torch.float64))


def mean_square(errors: Tensor) -> Tensor:
    """[n, k] -> mean over n and k of the squares: drawn to the worst structures."""
    return (errors**2).mean()


def mean_norm(errors: Tensor) -> Tensor:
    """[n, k] -> mean over n of the lengths: every atom pulls alike, as a mean absolute error does.

    A length below ROUNDED counts as its square, so that the gradient is smooth at zero.
    """
    return ((errors**2).sum(1) + ROUNDED**2).sqrt().mean()


ROUNDED = 1e-4  # eV, eV/Å, eV/Å³: far below any error that training reaches

PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"square": mean_square, "norm": mean_norm}


@dataclass(frozen=True)
class Loss:
    """Weights of the errors of energy per atom [eV], force [eV/Å], stress [eV/Å³].

    Attributes:
        energy, force, stress: the weights.
        penalty: errors [n, k] (k = 1, 3, 9) -> a number.
    """

    energy: float
    force: float
    stress: float
    penalty: Callable[[Tensor], Tensor] = mean_norm


Step = Callable[[Batch], tuple[Tensor, list[Tensor]]]


Prediction = tuple[Tensor, Tensor, Tensor]


def predict(potential: Potential, graph: Graph, volume: Tensor) -> Prediction:
    """Return energy [n_systems], forces [n_atoms, 3], stress [n_systems, 3, 3]; differentiable."""
    vectors = graph.vectors.detach().requires_grad_(True)
    with torch.enable_grad():
        energies = potential.energies(graph.with_vectors(vectors))
        return differentiated(energies, vectors, graph, volume)


def differentiated(energies: Tensor, vectors: Tensor, graph: Graph, volume: Tensor) -> Prediction:
    """Return the same as `predict` from energies per atom that depend on the edge vectors."""
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        forces = forces_from_edges(gradient, graph.receivers, graph.senders, graph.n_atoms)
        outer = vectors.unsqueeze(2) * gradient.unsqueeze(1)
        strain = segment_sum(outer, graph.system_idx[graph.receivers], graph.n_systems)
        energy = segment_sum(energies, graph.system_idx, graph.n_systems)
    return energy, forces, strain / volume[:, None, None]


def loss(prediction: Prediction, batch: Batch, weights: Loss) -> Tensor:
    """Return the weighted sum of penalties; the shares of a step add up to that of the step."""
    energy, forces, stress = prediction
    ones = torch.ones_like(batch.forces[:, 0])
    n_atoms = segment_sum(ones, batch.graph.system_idx, batch.graph.n_systems)
    per_atom = ((energy - batch.energy) / n_atoms).unsqueeze(1)
    of_systems, of_atoms = batch.shares.unbind()
    total = of_systems * weights.energy * weights.penalty(per_atom)
    total = total + of_atoms * weights.force * weights.penalty(forces - batch.forces)
    if weights.stress:
        errors = (stress - batch.stress).flatten(1)
        total = total + of_systems * weights.stress * weights.penalty(errors)
    return total


def eager_step(potential: Potential, weights: Loss) -> Step:
    """Return the loss and its gradient by the trainable parameters, by double backward."""

    def value(batch: Batch) -> Tensor:
        return loss(predict(potential, batch.graph, batch.volume), batch, weights)

    return gradient_step(potential, value)


def gradient_step(potential: Potential, loss_of: Callable[[Any], Tensor]) -> Step:
    """Return a loss and its gradient by `trainable(potential)`.

    Args:
        potential: its parameters are read at every call.
        loss_of: a batch -> a number that depends on them.
    """
    parameters = list(trainable(potential).values())

    def step(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            value = loss_of(batch)
            gradients = torch.autograd.grad(
                value, parameters, allow_unused=True, materialize_grads=True
            )
        return value.detach(), list(gradients)

    return step


def trace(potential: Potential, weights: Loss, example: Batch) -> torch.fx.GraphModule:
    """Trace the operations of `eager_step` into one flat graph without autograd, sizes left open.

    Its arguments are all of `trainable(potential)`, then all of `flatten(batch)`; its results are
    those of a `Step`, in one tuple.

    Args:
        potential: whose network and pair terms are recorded.
        weights: of the loss.
        example: a batch in which no two sizes agree: equal ones would be taken for the same.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    named = trainable(potential)
    names, parameters = list(named), list(named.values())
    plain = _FlatLoss(potential, weights)

    def flat(*arguments: Tensor) -> tuple[Tensor, ...]:
        values = [p.detach().requires_grad_(True) for p in arguments[: len(names)]]
        state = {f"potential.{name}": value for name, value in zip(names, values, strict=True)}
        with torch.enable_grad():
            value = functional_call(plain, state, arguments[len(names) :])
            gradients = torch.autograd.grad(
                value, values, allow_unused=True, materialize_grads=True
            )
        return value.detach(), *gradients

    make_graph = make_fx(
        flat,
        decomposition_table=DECOMPOSITIONS,
        tracing_mode="symbolic",
        _allow_non_fake_inputs=True,
    )
    graph = make_graph(*parameters, *flatten(example))
    simplify(graph)
    return graph


def compiled(graph: torch.fx.GraphModule) -> Callable[..., tuple[Tensor, ...]]:
    """Compile the graph of `trace` for batches of any size, at the first call."""
    return torch.compile(graph, fullgraph=True, dynamic=True)


def traced_step(potential: Potential, graph: Callable[..., tuple[Tensor, ...]]) -> Step:
    """Return a graph of `trace` as a `Step`.

    Args:
        potential: its parameters are read at every call, so an optimizer may change them in place.
        graph: what `trace` of this potential, or `compiled` of that, returned.
    """
    parameters = list(trainable(potential).values())

    def step(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            value, *gradients = graph(*parameters, *flatten(batch))
        return value, gradients

    return step


def trainable(potential: Potential) -> dict[str, Tensor]:
    """Return name -> parameter of everything that is trained."""
    return {name: p for name, p in potential.named_parameters() if p.requires_grad}


def relative_error(step: Step, definition: Step, batch: Batch) -> float:
    """Return the distance of two steps' gradients of one batch, relative to the second's norm."""
    ours = torch.cat([g.flatten().double() for g in step(batch)[1]])
    theirs = torch.cat([g.flatten().double() for g in definition(batch)[1]])
    return float((ours - theirs).norm() / theirs.norm())


def flatten(batch: Batch) -> tuple[Tensor, ...]:
    """Return all tensors of a batch in a fixed order: the graph's first, then the labels."""
    graph = tuple(getattr(batch.graph, f.name) for f in fields(Graph))
    return (*graph, batch.energy, batch.forces, batch.stress, batch.volume, batch.shares)


def unflatten(tensors: tuple[Tensor, ...]) -> Batch:
    """Invert `flatten`."""
    n = len(fields(Graph))
    return Batch(Graph(*tensors[:n]), *tensors[n:])


class _FlatLoss(torch.nn.Module):
    def __init__(self, potential: Potential, weights: Loss) -> None:
        super().__init__()
        self.potential, self.weights = potential, weights

    def forward(self, *tensors: Tensor) -> Tensor:
        batch = unflatten(tensors)
        return loss(predict(self.potential, batch.graph, batch.volume), batch, self.weights)


def with_network(potential: Potential, network: torch.nn.Module) -> Potential:
    """Return the same potential around another network; everything else is shared."""
    return with_modules(potential, network=network)
