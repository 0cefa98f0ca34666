"""Training step: the loss of a batch and its gradient by the parameters.

The eager step is double backward: it differentiates energies by the edge vectors with a graph,
forms the loss of energies and forces, and differentiates it by the parameters. The traced step
records exactly these operations, including the parameter gradient, as one flat graph without
autograd, which is compiled. (Tracing only energies and forces and differentiating the traced graph
would be silently wrong: the trace keeps `detach` nodes on saved results.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from attncalc.graph import Graph, Graphs
from attncalc.ops import segment_sum
from attncalc.physics.pair_term import strained
from attncalc.potential import Potential, forces_from_edges
from attncalc.system import System
from attncalc.train.fx_passes import DECOMPOSITIONS, simplify


@dataclass(frozen=True)
class Batch:
    """Batch of several structures: their graph and their labels.

    Attributes:
        graph: all structures in one graph.
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
        stress: [n_systems, 3, 3] eV/Å³; zeros where the weight of the stress is zero.
        volume: [n_systems] Å³; one for structures without a volume.
        shares: [2], fractions of the structures and of the atoms of a step that are in this batch;
            the others are in other processes.
        long: graph for pair terms of longer range, if there are any.
        all_pairs: see `attncalc.graph.Graphs`.
        charges: [n_atoms] e, if they are trained on.
        hirshfeld_ratios: [n_atoms], likewise.
        dipoles: [n_systems, 3] e Å, likewise.
        features: [n_atoms, K] of a teacher, likewise.
        system: the structures, if there are dipoles or a pair term reads them.
    """

    graph: Graph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    volume: Tensor
    shares: Tensor = field(default_factory=lambda: torch.ones(2, dtype=torch.float64))
    long: Graph | None = None
    all_pairs: bool = False
    charges: Tensor | None = None
    hirshfeld_ratios: Tensor | None = None
    dipoles: Tensor | None = None
    features: Tensor | None = None
    system: System | None = None

    @property
    def graphs(self) -> Graphs:
        """Graphs of the batch, short and long."""
        return Graphs(self.graph, self.long, all_pairs=self.all_pairs, system=self.system)


def mean_square(errors: Tensor) -> Tensor:
    """Return the mean square of errors [n, k]; the worst structures have the largest effect."""
    return (errors**2).mean()


def mean_norm(errors: Tensor) -> Tensor:
    """Return the mean length of error vectors [n, k]; all have equal effect, as in an MAE.

    A length below ROUNDED counts as its square, so that the gradient is smooth at zero.
    """
    return ((errors**2).sum(1) + ROUNDED**2).sqrt().mean()


ROUNDED = 1e-4  # eV, eV/Å, eV/Å³, e: far below any error that training reaches

PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"square": mean_square, "norm": mean_norm}


@dataclass(frozen=True)
class Loss:
    """Weights of the errors of energy per atom [eV], force [eV/Å], stress [eV/Å³], outputs.

    Attributes:
        energy, force, stress: the weights.
        penalty: function from errors [n, k] (k = 1, 3, 9) to a number.
        of_outputs: weights of the errors of other labels of a data set, by label: charges [e],
            hirshfeld_ratios, dipoles [e Å]; labels without a weight are left out.
    """

    energy: float
    force: float
    stress: float
    penalty: Callable[[Tensor], Tensor] = mean_norm
    of_outputs: Mapping[str, float] = field(default_factory=dict)


Step = Callable[[Batch], tuple[Tensor, list[Tensor]]]


class Prediction(NamedTuple):
    """Prediction that a loss compares with labels; differentiable.

    Attributes:
        energy: [n_systems] eV.
        forces: [n_atoms, 3] eV/Å.
        stress: [n_systems, 3, 3] eV/Å³.
        charges: [n_atoms] e; None where the network does not predict them.
        hirshfeld_ratios: [n_atoms], likewise.
        features: [n_atoms, F], likewise.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    charges: Tensor | None = None
    hirshfeld_ratios: Tensor | None = None
    features: Tensor | None = None


def predict(potential: Potential, graphs: Graphs, volume: Tensor) -> Prediction:
    """Return the prediction for a batch.

    Args:
        potential: a single potential, no committee.
        graphs: graphs of the batch.
        volume: [n_systems] Å³.
    """
    graphs = replace(
        graphs,
        short=_to_differentiate(graphs.short),
        long=None if graphs.long is None else _to_differentiate(graphs.long),
    )
    with torch.enable_grad():
        leaves: list[Tensor] = []
        if potential.reads_system:
            graphs, *leaves = strained(graphs)
        energies, outputs = potential.predict(graphs)
        parts = [graph for graph in (graphs.short, graphs.long) if graph is not None]
        found = differentiated(energies, parts, volume, leaves)
        return found._replace(
            charges=outputs.charges,
            hirshfeld_ratios=outputs.hirshfeld_ratios,
            features=outputs.features,
        )


def _to_differentiate(graph: Graph) -> Graph:
    return graph.with_vectors(graph.vectors.detach().requires_grad_(True))


def differentiated(
    energies: Tensor, graphs: Sequence[Graph], volume: Tensor, leaves: Sequence[Tensor] = ()
) -> Prediction:
    """Return energy, forces and stress from energies per atom that depend on edge vectors.

    Args:
        energies: [n_atoms] eV.
        graphs: graphs by whose vectors the energies are differentiated.
        volume: [n_systems] Å³.
        leaves: positions and strain, see `strained`, if the energies depend on them too.
    """
    first = graphs[0]
    with torch.enable_grad():
        by_vectors = [graph.vectors for graph in graphs]
        gradients = torch.autograd.grad(energies.sum(), [*by_vectors, *leaves], create_graph=True)
        forces = energies.new_zeros(first.n_atoms, 3)
        strain = energies.new_zeros(first.n_systems, 3, 3)
        for graph, gradient in zip(graphs, gradients, strict=False):
            receivers, senders = graph.receivers, graph.senders
            forces = forces + forces_from_edges(gradient, receivers, senders, graph.n_atoms)
            outer = graph.vectors.unsqueeze(2) * gradient.unsqueeze(1)
            strain = strain + segment_sum(outer, graph.system_idx[receivers], graph.n_systems)
        if leaves:
            by_positions, by_strain = gradients[len(graphs) :]
            forces = forces - by_positions
            strain = strain + (by_strain + by_strain.transpose(1, 2)) / 2
        energy = segment_sum(energies, first.system_idx, first.n_systems)
    return Prediction(energy, forces, strain / volume[:, None, None])


def dipoles(charges: Tensor, batch: Batch) -> Tensor:
    """Return dipoles [n_systems, 3] e Å of partial charges [n_atoms] at positions of a batch.

    Raises:
        ValueError: the batch has no structures.
    """
    if batch.system is None:
        raise ValueError("dipoles need a batch with its structures")
    moments = charges.double().unsqueeze(1) * batch.system.positions
    return segment_sum(moments, batch.graph.system_idx, batch.graph.n_systems)


def loss(prediction: Prediction, batch: Batch, weights: Loss) -> Tensor:
    """Return the weighted sum of penalties; those of all shares of a step add up to its loss."""
    energy, forces, stress, *_ = prediction
    ones = torch.ones_like(batch.forces[:, 0])
    n_atoms = segment_sum(ones, batch.graph.system_idx, batch.graph.n_systems)
    per_atom = ((energy - batch.energy) / n_atoms).unsqueeze(1)
    of_systems, of_atoms = batch.shares.unbind()
    total = of_systems * weights.energy * weights.penalty(per_atom)
    total = total + of_atoms * weights.force * weights.penalty(forces - batch.forces)
    if weights.stress:
        errors = (stress - batch.stress).flatten(1)
        total = total + of_systems * weights.stress * weights.penalty(errors)
    for label, weight in weights.of_outputs.items():
        share = of_systems if label == "dipoles" else of_atoms
        total = total + share * weight * weights.penalty(output_errors(prediction, batch, label))
    return total


def output_errors(prediction: Prediction, batch: Batch, label: str) -> Tensor:
    """Return errors [n, k] of charges, ratios (k = 1), dipoles (k = 3) or features (k = F).

    Raises:
        ValueError: label or prediction is missing.
    """
    found = prediction.charges if label == "dipoles" else getattr(prediction, label)
    wanted = getattr(batch, label)
    if found is None or wanted is None:
        raise ValueError(f"a loss on {label} needs labels and a network that predicts them")
    if label == "dipoles":
        return dipoles(found, batch) - wanted
    off = found - wanted
    return off if label == "features" else off.unsqueeze(1)


def eager_step(potential: Potential, weights: Loss) -> Step:
    """Return the loss and its gradient by the trainable parameters, by double backward."""

    def value(batch: Batch) -> Tensor:
        return loss(predict(potential, batch.graphs, batch.volume), batch, weights)

    return gradient_step(potential, value)


def gradient_step(potential: Potential, loss_of: Callable[[Any], Tensor]) -> Step:
    """Return a loss and its gradient by `trainable(potential)`.

    Args:
        potential: its parameters are read at every call.
        loss_of: function from a batch to a number that depends on the parameters.
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
    """Trace the operations of `eager_step` into one flat graph for any sizes, without autograd.

    Its arguments are all of `trainable(potential)`, then all of `flatten(batch)`; its results are
    those of a `Step`, in one tuple.

    Args:
        potential: potential whose network and pair terms are recorded.
        weights: weights of the loss.
        example: batch in which no two sizes agree, because equal sizes are traced as one size.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    named = trainable(potential)
    names, parameters = list(named), list(named.values())
    plain = _FlatLoss(potential, weights, example)

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
        graph: result of `trace` for this potential, or of `compiled` for that result.
    """
    parameters = list(trainable(potential).values())

    def step(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            value, *gradients = graph(*parameters, *flatten(batch))
        return value, gradients

    return step


def trainable(potential: Potential) -> dict[str, Tensor]:
    """Return all parameters that are trained, by name."""
    return {name: p for name, p in potential.named_parameters() if p.requires_grad}


def relative_error(step: Step, definition: Step, batch: Batch) -> float:
    """Return the distance of the gradients of two steps, relative to the norm of the second."""
    ours = torch.cat([g.flatten().double() for g in step(batch)[1]])
    theirs = torch.cat([g.flatten().double() for g in definition(batch)[1]])
    return float((ours - theirs).norm() / theirs.norm())


def flatten(batch: Batch) -> tuple[Tensor, ...]:
    """Return all tensors of a batch in a fixed order."""
    found: list[Tensor] = []
    for name in _PARTS:
        value = getattr(batch, name)
        if isinstance(value, Graph | System):
            found += [getattr(value, name) for name in _names_of(value)]
        elif value is not None:
            found.append(value)
    return tuple(found)


def unflatten(tensors: Sequence[Tensor], like: Batch) -> Batch:
    """Invert `flatten`, for a batch with the same parts as another one."""
    left = iter(tensors)
    parts: dict[str, Any] = {}
    for name in _PARTS:
        value = getattr(like, name)
        if isinstance(value, Graph | System):
            kind = Graph if isinstance(value, Graph) else System
            content: dict[str, Any] = {one: next(left) for one in _names_of(value)}
            parts[name] = kind(**content)
        elif value is not None:
            parts[name] = next(left)
    return Batch(**parts, all_pairs=like.all_pairs)


def _names_of(value: Graph | System) -> list[str]:
    """Return the names of its tensors; graphs of a training have neither ghosts nor an order."""
    return [f.name for f in fields(value) if f.name not in ("ghosts", "order")]


_PARTS = tuple(f.name for f in fields(Batch) if f.name != "all_pairs")


class _FlatLoss(torch.nn.Module):
    def __init__(self, potential: Potential, weights: Loss, like: Batch) -> None:
        super().__init__()
        self.potential, self.weights, self.like = potential, weights, like

    def forward(self, *tensors: Tensor) -> Tensor:
        batch = unflatten(tensors, self.like)
        return loss(predict(self.potential, batch.graphs, batch.volume), batch, self.weights)
