"""Protocol of a network, and its outputs with their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from attncalc.graph import AtomOutputs, Graph, Linearized, gradients_of


class NetworkConfig(Protocol):
    """Hyper-parameters, a frozen dataclass of plain values.

    Attributes:
        graph_cutoff: cutoff of the graph, the interaction range of one layer, Å.
        receptive_field: distance up to which an atom can change the energy of another, Å.
        n_weights_at_least: lower bound on the number of weights in a file of such a network.
        faults: defects of these settings for molecular dynamics, one sentence each.
    """

    @property
    def graph_cutoff(self) -> float: ...
    @property
    def receptive_field(self) -> float: ...
    @property
    def n_weights_at_least(self) -> int: ...
    @property
    def faults(self) -> list[str]: ...


class Network(Protocol):
    """Module that predicts outputs for every atom of a `Graph`.

    Attributes:
        config: its hyper-parameters.
        reads_charge: whether the energy depends on the total charge.
        reads_spin: whether the energy depends on the multiplicity.
    """

    @property
    def config(self) -> NetworkConfig: ...
    @property
    def reads_charge(self) -> bool: ...
    @property
    def reads_spin(self) -> bool: ...

    def __call__(self, graph: Graph) -> AtomOutputs:
        """Return the outputs of all atoms, differentiable with respect to `graph.vectors`."""
        ...

    def for_species(self, rows: Sequence[int]) -> Self:
        """Return a copy whose species table consists of these rows of this one, in this order."""
        ...


class Engine(Protocol):
    """Code compiled for one network with fixed weights.

    Attributes:
        defers: True if `linearize` returns energies of NaN, instead of None, for a structure that
            the engine does not cover: then nothing has to be read back from the device.
    """

    defers: bool

    def linearize(self, graph: Graph) -> Linearized | None:
        """Return outputs and their gradient; None for a structure that the engine cannot handle."""
        ...


class CompiledNetwork(nn.Module):
    """Network with an engine; autograd uses the network alone.

    Args:
        network: network whose weights no longer change.
        engine: engine that gives the same numbers faster.
    """

    network: Any

    def __init__(self, network: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.network, self.engine = network, engine

    @property
    def config(self) -> Any:
        """Hyper-parameters of the network."""
        return self.network.config

    @property
    def reads_charge(self) -> bool:
        """Return True if the energy depends on the total charge."""
        return self.network.reads_charge

    @property
    def reads_spin(self) -> bool:
        """Return True if the energy depends on the multiplicity."""
        return self.network.reads_spin

    def for_species(self, rows: Sequence[int]) -> nn.Module:
        """Return an uncompiled copy of the network for some of its species."""
        return self.network.for_species(rows)

    def forward(self, graph: Graph) -> AtomOutputs:
        """Return the outputs of the network itself."""
        return self.network(graph)


def linearize(network: Any, graph: Graph, *, waits: bool = True) -> Linearized:
    """Return the outputs of a network and their gradient by the edge vectors.

    Args:
        network: a `Network`, or a `CompiledNetwork`, whose engine is tried first.
        graph: graph of the structures.
        waits: False: the energies of an engine that defers are not checked and may be NaN.
    """
    engine: Engine | None = getattr(network, "engine", None)
    if engine is not None:
        found = engine.linearize(graph)
        looks = waits and engine.defers
        if found is not None and not (looks and bool(found.outputs.energies.isnan().any())):
            return found
        network = network.network
    return by_autograd(network, graph)


def by_autograd(network: Any, graph: Graph) -> Linearized:
    """Return the outputs of a network, with their gradient by autograd.

    Raises:
        ValueError: ghosts need an exchange between layers, which only engines do.
    """
    if graph.ghosts is not None and graph.ghosts.exchange is not None:
        raise ValueError(
            "two atoms are too close to each other for the compiled loops that processes share: "
            "minimize the structure first, or use one process"
        )
    vectors = graph.vectors.detach().requires_grad_(True)
    with torch.enable_grad():  # callers may be under no_grad
        outputs = network(graph.with_vectors(vectors))

    def pull(d_outputs: AtomOutputs) -> Tensor:
        (gradient,) = gradients_of(outputs, d_outputs, [vectors])
        return gradient

    return Linearized(outputs.detached(), pull)
