"""`Environments`: the atomic environments that a model was trained on, in few numbers.

The novelty of an atom is the larger of two numbers, and 1 is the edge of what training held:

* distance of its features from those of the training's atoms of the same element. Features are
  what the network reads the energy from. The distance is Mahalanobis' in their first principal
  components (Hotelling's T²; Mahalanobis, Proc. Natl. Inst. Sci. India 2, 49, 1936), in units of
  the one that held-out structures reach, see `attncalc.novelty.fit`;
* closeness of its neighbours: by how many times `MARGIN` one is closer than any two atoms of these
  elements were. A pair of elements that was never within the cutoff counts from the cutoff on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.compiled import has_numba
from attncalc.graph import Graph, GraphArrays

Floats = NDArray[np.float32]

# Å closer than any pair in training is as novel as the edge
MARGIN = 0.1
# novelty of an element that training did not hold
NEVER_SEEN = 1000.0


@dataclass(frozen=True, eq=False)
class Environments:
    """Environments of the atoms that a model was trained on.

    With the features f of an atom of species s, its novelty is |(f - mean_s) whiten_s|, or more
    where a neighbour at distance d has (closest_ss' - d) / MARGIN.

    Attributes:
        mean: [n_species, F], float32: of the features; F = 0 where the network gives none.
        whiten: [n_species, F, K], float32: principal components, each divided by its standard
            deviation and by the distance that is the edge.
        closest: [n_species, n_species] Å, float64: shortest distance of two elements in training;
            the cutoff where they were never within it.
        n_atoms: of each species in the structures that were looked at.
        n_structures: that were looked at.
    """

    mean: Floats
    whiten: Floats
    closest: NDArray[np.float64]
    n_atoms: tuple[int, ...]
    n_structures: int

    @functools.cached_property
    def least(self) -> NDArray[np.float64]:
        """[n_species]: novelty that an atom has in any case."""
        return np.where(np.array(self.n_atoms) > 0, 0.0, NEVER_SEEN)

    @property
    def reads_features(self) -> bool:
        """Return True if features are known, not only distances."""
        return self.mean.shape[1] > 0

    def novelty(self, features: Floats | None, graph: GraphArrays) -> NDArray[np.float64]:
        """Novelty of every atom, [n_atoms].

        Args:
            features: [n_atoms, F], float32; None counts distances alone.
            graph: of the atoms, on the CPU.
        """
        species, novelty = graph.species, self.least[graph.species]
        if features is None or not self.reads_features:
            features = np.zeros((0, self.mean.shape[1]), np.float32)
        edges = graph.vectors, graph.receivers, graph.senders, graph.edge_mask
        _loop()(features, self.mean, self.whiten, self.closest, MARGIN, *edges, species, novelty)
        return novelty


class Surroundings(NamedTuple):
    """Inputs of the novelty of some atoms, kept until somebody asks for it.

    Attributes:
        environments: that the model was trained on.
        features: [n_atoms, F]; None where an engine does not give them: then the network is run.
        graph: of the atoms.
        network: the plain one, where `features` is None.
    """

    environments: Environments
    features: Tensor | None
    graph: Graph
    network: Any

    def novelty(self) -> NDArray[np.float64]:
        """Novelty of every atom, [n_atoms]."""
        features, graph = self.features, self.graph
        if features is None and self.environments.reads_features:
            with torch.no_grad():
                features = self.network(graph).features
        if graph.vectors.device.type == "cpu":
            arrays = graph.arrays
        else:
            named = (getattr(graph, name).detach().cpu().numpy() for name in GraphArrays._fields)
            arrays = GraphArrays(*named)
        return self.environments.novelty(_as_array(features), arrays)


def _as_array(features: Tensor | None) -> Floats | None:
    if features is None:
        return None
    return features.detach().to(torch.float32).cpu().numpy()


@functools.cache
def _loop() -> Callable[..., None]:
    """The compiled loop; without numba, the same in numpy."""
    if not has_numba():
        return _look
    from attncalc.novelty.loop import look

    return look


def _look(
    features: Floats,
    mean: Floats,
    whiten: Floats,
    closest: NDArray[np.float64],
    margin: float,
    vectors: NDArray[np.float64],
    receivers: NDArray[np.int64],
    senders: NDArray[np.int64],
    mask: NDArray[np.bool_],
    species: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Equal to `attncalc.novelty.loop.look` but for rounding."""
    for s in np.unique(species) if len(features) else ():
        of_kind = species == s
        coordinates = (features[of_kind] - mean[s]) @ whiten[s]
        out[of_kind] = np.maximum(out[of_kind], np.linalg.norm(coordinates, axis=1))
    edges = closest[species[receivers], species[senders]]
    closer = (edges - np.linalg.norm(vectors, axis=1)) / margin
    np.maximum.at(out, receivers[mask], closer[mask])
