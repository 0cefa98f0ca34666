"""`Environments`: a compact description of the atomic environments that a model was trained on.

The novelty of an atom is the larger of two numbers, and 1 is the edge of the training environments:

* the distance of its features from those of training atoms of the same element. Features are the
  input of the network's energy readout. The distance is that from the nearest centre of a cluster
  of training atoms, in the first principal components, each divided by its standard deviation; if
  there is one centre, the mean, this is Mahalanobis' distance (Proc. Natl. Inst. Sci. India 2, 49,
  1936). Its unit is the distance that held-out structures reach, see `attncalc.novelty.fit`;
* the closeness of its neighbours: the largest distance, in units of `MARGIN`, by which one is
  closer than any two atoms of these elements in training. Elements that were never within the
  cutoff are compared with the cutoff.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncalc.compiled import cpu_loops
from attncalc.graph import Graph, GraphArrays

Floats = NDArray[np.float32]

# Å: a pair that is closer by this than any pair in training has novelty 1
MARGIN = 0.1
# novelty of an element that was not in training
NEVER_SEEN = 1000.0


@dataclass(frozen=True, eq=False)
class Environments:
    """Environments of the atoms that a model was trained on.

    The novelty of an atom of species s with features f is the smallest |(f - mean_s) whiten_s - c|
    of all centres c, or the largest (closest_ss' - d) / MARGIN of its neighbours at distances d, if
    that is more.

    Attributes:
        mean: [n_species, F], float32: of the features; F = 0 if the network has none.
        whiten: [n_species, F, K], float32: principal components, each divided by its standard
            deviation and by the distance at the edge.
        centres: [n_species, K, n_centres], float32: of clusters of atoms, in these components.
        closest: [n_species, n_species] Å, float64: shortest distance of two elements in training;
            the cutoff if they were never within it.
        n_atoms: numbers of atoms of each species in the structures used.
        n_structures: number of structures used.
    """

    mean: Floats
    whiten: Floats
    centres: Floats
    closest: NDArray[np.float64]
    n_atoms: tuple[int, ...]
    n_structures: int

    @functools.cached_property
    def least(self) -> NDArray[np.float64]:
        """Smallest possible novelty of an atom of each species, [n_species]."""
        return np.where(np.array(self.n_atoms) > 0, 0.0, NEVER_SEEN)

    @property
    def has_clusters(self) -> bool:
        """Return True if there are several centres, not only the mean."""
        return self.centres.shape[2] > 1

    @property
    def reads_features(self) -> bool:
        """Return True if features are known, not only distances."""
        return self.mean.shape[1] > 0

    def novelty(self, features: Floats | None, graph: GraphArrays) -> NDArray[np.float64]:
        """Novelty of every atom, [n_atoms].

        Args:
            features: [n_atoms, F], float32; None: only distances count.
            graph: of the atoms, on the CPU.
        """
        species, novelty = graph.species, self.least[graph.species]
        if features is None or not self.reads_features:
            features = np.zeros((0, self.mean.shape[1]), np.float32)
        if features.shape[1] != self.mean.shape[1]:  # the loop would read beyond their end
            raise ValueError(
                f"the training environments are of {self.mean.shape[1]} features, and the network "
                f"has {features.shape[1]}: calibrate the model again"
            )
        if (loops := cpu_loops("attncalc.novelty.loop")) is None:
            self._look(features, graph, novelty)
            return novelty
        edges = graph.vectors, graph.receivers, graph.senders, graph.edge_mask
        known = self.mean, self.whiten, self.centres, self.closest
        loops.update_novelty(features, *known, MARGIN, *edges, species, novelty)
        return novelty

    def _look(self, features: Floats, graph: GraphArrays, out: NDArray[np.float64]) -> None:
        """Compute the same as `attncalc.novelty.loop.update_novelty`, up to rounding, by numpy."""
        species, i, mask = graph.species, graph.receivers, graph.edge_mask
        for s in np.unique(species) if len(features) else ():
            of_kind = species == s
            coordinates = (features[of_kind] - self.mean[s]) @ self.whiten[s]
            nearest = [np.linalg.norm(self.centres[s].T - x, axis=1).min() for x in coordinates]
            out[of_kind] = np.maximum(out[of_kind], nearest)
        edges = self.closest[species[i], species[graph.senders]]
        closer = (edges - np.linalg.norm(graph.vectors, axis=1)) / MARGIN
        np.maximum.at(out, i[mask], closer[mask])


class NoveltyInputs(NamedTuple):
    """Inputs of the novelty of some atoms, which is computed on demand.

    Attributes:
        environments: that the model was trained on.
        features: [n_atoms, F], a tensor or an array; None if an engine does not give them: then
            the network is run.
        graph: of the atoms.
        network: plain network, if `features` is None.
    """

    environments: Environments
    features: Tensor | Floats | None
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


def _as_array(features: Tensor | Floats | None) -> Floats | None:
    if features is None or isinstance(features, np.ndarray):
        return features
    return features.detach().to(torch.float32).cpu().numpy()
