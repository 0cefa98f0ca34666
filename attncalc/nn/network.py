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
        graph_cutoff: interaction range of one layer, Å.
        receptive_field: distance up to which an atom can change the energy of another, Å.
        n_weights_at_least: number of weights that a file of such a network has at the least.
        faults: what is wrong with these settings for moving atoms, a sentence each.
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
    """A module that predicts something of every atom of a `Graph`.

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
        """Outputs of all atoms, differentiable by `graph.vectors`."""
        ...

    def for_species(self, rows: Sequence[int]) -> Self:
        """Return a copy whose species table has these rows of the present one, in this order."""
        ...


class Engine(Protocol):
    """Code compiled for one network with fixed weights.

    Attributes:
        defers: True if a structure that it does not cover has energies that are NaN instead of
            None for an answer: then nothing has to be read back from the device.
    """

    defers: bool

    def linearize(self, graph: Graph) -> Linearized | None:
        """Outputs and their gradient; None for a structure that it does not cover."""
        ...


class CompiledNetwork(nn.Module):
    """A network with an engine; autograd sees the network alone.

    Args:
        network: weights must not change any more.
        engine: gives the same numbers, and faster.
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
        """Return a copy of the network, not compiled, for some of the species."""
        return self.network.for_species(rows)

    def forward(self, graph: Graph) -> AtomOutputs:
        """Outputs of the network itself."""
        return self.network(graph)


def linearize(network: Any, graph: Graph, *, waits: bool = True) -> Linearized:
    """Outputs of a network and their gradient by the edge vectors.

    Args:
        network: a `Network`, or a `CompiledNetwork`, whose engine is asked first.
        graph: of the structures.
        waits: False: what an engine defers is not looked at, and outputs may be NaN.
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
    """Outputs of a network, with PyTorch's gradient.

    Raises:
        ValueError: ghosts are to be told between layers what they are, which engines do.
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
