"""Data sets as batches of graphs with labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as Indexed

from attncalc.data import Dataset, StreamedDataset
from attncalc.graph import ALL_PAIRS, Graph
from attncalc.neighbors import fresh_graph
from attncalc.result import volumes
from attncalc.system import System
from attncalc.train.order import Share, Sizes
from attncalc.train.recipe_rules import OUTPUT_WEIGHTS
from attncalc.train.step import Batch, flatten, unflatten

log = logging.getLogger(__name__)

# tensors of a batch, besides its graphs, that are joined
LABELS = ("energy", "forces", "stress", "volume", *OUTPUT_WEIGHTS)

# structures whose neighbours are searched at once
TOGETHER = 256
# s between two log lines while neighbour lists are made
BETWEEN_LINES = 30.0


class Samples(Sequence[Batch]):
    """Sequence of one batch per structure, made on each access.

    Args:
        dataset: data set with forces.
        cutoff: cutoff of the network, Å.
        species: species of the potential.
        margin: distance beyond the cutoff, Å, for atoms that will be displaced; pairs there are not
            masked.
        long_range: function that returns the range of pair terms, `Potential.long_range_for`.
        labels: names of further labels that are trained on: "charges", "hirshfeld_ratios",
            "dipoles".
        keeps_system: whether batches contain their structures; with dipoles they always do.
    """

    def __init__(
        self,
        dataset: Dataset,
        cutoff: float,
        species: tuple[int, ...],
        *,
        margin: float = 0.0,
        long_range: Callable[[System], float | None] = lambda _: None,
        labels: Collection[str] = (),
        keeps_system: bool = False,
    ) -> None:
        self.dataset, self.cutoff, self.species = dataset, cutoff + margin, species
        self.long_range, self.labels = long_range, tuple(labels)
        self.keeps_system = keeps_system or "dipoles" in labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, k: Any) -> Any:
        (only,) = self.together([k])
        return only

    def together(self, chosen: Sequence[int]) -> list[Batch]:
        """Return the batches of some structures, with one neighbour search for all.

        Args:
            chosen: indices of the structures; all of them are periodic, or none is.
        """
        structures = [self.dataset.structures[k] for k in chosen]
        system = System.from_ase(structures)
        far = self.long_range(system)
        short = _split(fresh_graph(system, cutoff=self.cutoff, species=self.species))
        long: Sequence[Graph | None] = [None] * len(chosen)
        if far is not None:
            long = _split(fresh_graph(system, cutoff=far, species=self.species))
        volume = volumes(system)
        volume = torch.where(volume > 0, volume, 1.0)
        return [
            Batch(
                graph=short[n],
                long=long[n],
                all_pairs=far == ALL_PAIRS,
                system=System.from_ase(structures[n]) if self.keeps_system else None,
                volume=volume[n : n + 1],
                **self._labels(k),
            )
            for n, k in enumerate(chosen)
        ]

    def _labels(self, k: int) -> dict[str, Tensor]:
        dataset = self.dataset
        stress = np.zeros((3, 3)) if dataset.stress is None else dataset.stress[k]
        found = {
            "energy": torch.tensor([dataset.energies[k]], dtype=torch.float64),
            "forces": torch.as_tensor((dataset.forces or ())[k], dtype=torch.float64),
            "stress": torch.as_tensor(stress, dtype=torch.float64).unsqueeze(0),
        }
        for label in self.labels:
            value = torch.as_tensor(getattr(dataset, label)[k], dtype=torch.float64)
            found[label] = value.unsqueeze(0) if label == "dipoles" else value
        return found

    def in_memory(self) -> list[Batch]:
        """Return all batches; a search for 256 structures costs a few times one for a single."""
        found: dict[int, Batch] = {}
        last_line = time.monotonic()
        for start in range(0, len(self), TOGETHER):
            if time.monotonic() > last_line + BETWEEN_LINES:
                last_line = time.monotonic()
                log.info("neighbour lists of %d of %d structures are made", start, len(self))
            periodic: dict[bool, list[int]] = {False: [], True: []}
            for k in range(start, min(start + TOGETHER, len(self))):
                periodic[bool(self.dataset.structures[k].pbc.any())].append(k)
            for chosen in filter(None, periodic.values()):
                try:
                    made = self.together(chosen)
                except ValueError:  # one by one, so that the message is about the wrong one
                    made = [self[k] for k in chosen]
                found.update(zip(chosen, made, strict=True))
        return [found[k] for k in range(len(self))]


def _split(graph: Graph) -> list[Graph]:
    """Return the graphs of the single structures of a batch."""
    n = graph.n_systems
    of_edges = graph.system_idx[graph.receivers]
    sizes = torch.bincount(graph.system_idx, minlength=n).tolist()
    n_edges = torch.bincount(of_edges, minlength=n).tolist()
    n_pairs = torch.bincount(of_edges[graph.pairs], minlength=n).tolist()
    first_atom, first_edge = _starts(sizes), _starts(n_edges)

    def shifted(values: Tensor, counts: list[int], starts: list[int]) -> list[Tensor]:
        parts = values.split(counts)
        return [part - start for part, start in zip(parts, starts, strict=True)]

    parts = {
        "vectors": graph.vectors.split(n_edges),
        "receivers": shifted(graph.receivers, n_edges, first_atom),
        "senders": shifted(graph.senders, n_edges, first_atom),
        "edge_mask": graph.edge_mask.split(n_edges),
        "pairs": shifted(graph.pairs, n_pairs, first_edge),
        "species": graph.species.split(sizes),
        "system_idx": shifted(graph.system_idx, sizes, list(range(n))),
        "charge": graph.charge.split(1),
        "spin": graph.spin.split(1),
    }
    return [Graph(**{name: part[k] for name, part in parts.items()}) for k in range(n)]


def samples(
    dataset: Dataset, cutoff: float, species: tuple[int, ...], **options: Any
) -> Sequence[Batch]:
    """Return `Samples` of a data set; those of a data set in memory are kept in memory too.

    Args:
        dataset, cutoff, species, options: see `Samples`.

    Raises:
        ValueError: an element is not in `species`.
    """
    made = Samples(dataset, cutoff, species, **options)
    return made if isinstance(dataset, StreamedDataset) else made.in_memory()


def join(parts: Sequence[Batch]) -> Batch:
    """Join several batches into one: atoms and systems are renumbered, nothing else changes."""
    first = parts[0]
    far = [part.long for part in parts if part.long is not None]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in LABELS
        if getattr(first, name) is not None
    }
    return Batch(
        graph=_joined_graphs([part.graph for part in parts]),
        long=_joined_graphs(far) if far else None,
        all_pairs=first.all_pairs,
        system=None if first.system is None else _joined_systems(parts),
        **joined,
    )


def _joined_systems(parts: Sequence[Batch]) -> System:
    systems = [part.system for part in parts if part.system is not None]
    first = _starts([system.n_systems for system in systems])
    joined = {
        field.name: torch.cat([getattr(system, field.name) for system in systems])
        for field in fields(System)
    }
    numbers = [system.system_idx + n for system, n in zip(systems, first, strict=True)]
    return System(**joined | {"system_idx": torch.cat(numbers)})


def _joined_graphs(graphs: Sequence[Graph]) -> Graph:
    first_atom = _starts([graph.n_atoms for graph in graphs])
    first_edge = _starts([graph.n_edges for graph in graphs])
    first_system = _starts([graph.n_systems for graph in graphs])

    def shifted(name: str, starts: list[int]) -> Tensor:
        return torch.cat([getattr(g, name) + s for g, s in zip(graphs, starts, strict=True)])

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(graph, name) for graph in graphs])

    return Graph(
        vectors=joined("vectors"),
        receivers=shifted("receivers", first_atom),
        senders=shifted("senders", first_atom),
        edge_mask=joined("edge_mask"),
        pairs=shifted("pairs", first_edge),
        species=joined("species"),
        system_idx=shifted("system_idx", first_system),
        charge=joined("charge"),
        spin=joined("spin"),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the same batch on another device."""
    moved = [tensor.to(device) for tensor in flatten(batch)]
    return unflatten(moved, batch)


class BatchLoaders(Indexed[Callable[[], Batch | None]]):
    """Functions that make the batch of a `Share`, or None if the share is empty.

    They are called within the step, where an error ends all processes.
    """

    def __init__(self, samples: Sequence[Batch]) -> None:
        self.samples = samples

    def __getitem__(self, share: Share) -> Callable[[], Batch | None]:
        return partial(self._batch, share)

    def _batch(self, share: Share) -> Batch | None:
        if not share.structures:
            return None
        batch = join([self.samples[k] for k in share.structures])
        shares = torch.tensor([share.of_structures, share.of_atoms], dtype=torch.float64)
        return replace(batch, shares=shares)


def sizes_of(samples: Sequence[Batch]) -> Sizes:
    """Return the numbers of atoms and edges of batches of one structure each.

    Edges of longer range are not counted, because they cost a fraction of those of the network.
    """
    n = np.array([(sample.graph.n_atoms, sample.graph.n_edges) for sample in samples])
    return Sizes(n_atoms=n[:, 0], n_edges=n[:, 1])


def _starts(counts: list[int]) -> list[int]:
    return [0, *np.cumsum(counts[:-1]).tolist()]
