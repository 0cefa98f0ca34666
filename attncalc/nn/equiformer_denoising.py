"""Equiformer with denoising of displaced atoms (DeNS), for training only.

Liao, Smidt, Das, "Generalizing denoising to non-equilibrium structures improves equivariant force
fields", TMLR 2024. Some atoms of a training structure are displaced at random. The forces on them
in the undisplaced structure are an input of the network, and a separate head predicts their
displacements. The network that is saved, `DenoisingEquiformer.plain`, has no such head and gives
the same energies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.edge_products import Features, PathIndex
from attncalc.nn.equiformer import Block, Equiformer
from attncalc.nn.equiformer_attention import Attention
from attncalc.nn.equiformer_config import EquiformerConfig
from attncalc.nn.equiformer_edges import Geometry
from attncalc.nn.equiformer_layers import EquivariantLayerNorm, IrrepsLinear, added
from attncalc.ops import safe_norm


class OpenLastBlock(Block):
    """Last block that returns features of all degrees, which the denoising head reads.

    Args:
        config: hyper-parameters.
        n_out: output channels per degree.
    """

    def __init__(self, config: EquiformerConfig, n_out: tuple[int, ...]) -> None:
        super().__init__(config, n_out)
        self.shortcut = IrrepsLinear(config.channels, n_out)

    def forward(self, features: Features, geometry: Geometry) -> Features:
        """Return features [n_atoms, 2l+1, n_out] per degree."""
        features = added(features, self.attention(self.norm_1(features), geometry))
        return added(self.shortcut(features), self.feed_forward(self.norm_2(features)))


class DenoisingHead(Attention):
    """Attention that maps the last features to one vector per atom.

    Args:
        config: hyper-parameters.
        n_in: channels of the last features, per degree.
    """

    projection: Any

    def __init__(self, config: EquiformerConfig, n_in: tuple[int, ...]) -> None:
        super().__init__(config, len(config.channels), 2, n_in)
        self.projection = VectorMap(config.channels[1])

    def vectors(self, features: Features, geometry: Geometry) -> Tensor:
        """Return [n_atoms, 3]: x, y, z."""
        (vectors,) = self(features, geometry)
        return vectors.squeeze(2)


class VectorMap(nn.Module):
    """Linear map from features of degree 1 to one vector.

    Args:
        width: channels of degree 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 1) / math.sqrt(width))

    def forward(self, features: Features) -> Features:
        """Return a list of one tensor, [n, 3, 1]."""
        return [features[1] @ self.weight]


class DenoisingEquiformer(Equiformer):
    """An Equiformer with an input for forces and a head for displacements.

    Args:
        config: hyper-parameters.
        n_species: rows of the species table.
    """

    last_block: Any

    def __init__(self, config: EquiformerConfig, n_species: int) -> None:
        super().__init__(config, n_species)
        # channels of the last features, in the ratio of `channels`: 512, 256, 128 as published
        head, scalars = config.head_features, config.channels[0]
        n_last = (head, *(max(1, head * width // scalars) for width in config.channels[1:]))
        self.force_embedding = IrrepsLinear([1] * len(n_last), config.channels)
        self.last_block = OpenLastBlock(config, n_last)
        self.norm = EquivariantLayerNorm(n_last, config.norm == "joint")
        self.denoising_head = DenoisingHead(config, n_last)
        self.to(torch.float32)

    def forward(self, graph: Graph) -> AtomOutputs:
        """Return the energies per atom [n_atoms] of structures without displacements."""
        return AtomOutputs(energies=self._run(graph, None)[0])

    def denoise(self, graph: Graph, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Predict energies [n_atoms] of the undisplaced structure, and displacements [n_atoms, 3].

        Args:
            graph: graph of the displaced atoms.
            forces: [n_atoms, 3] eV/Å of the undisplaced structure, zero for atoms not displaced.
        """
        energies, features, geometry = self._run(graph, forces)
        return energies, self.denoising_head.vectors(features, geometry)

    def _run(self, graph: Graph, forces: Tensor | None) -> tuple[Tensor, Features, Geometry]:
        geometry = self.geometry(graph)
        told = self.force_embedding(self._encoded(graph, forces))
        features = added(self.embedding(graph, geometry), told)
        for block in self.blocks:
            features = block(features, geometry)
        features = self.norm(self.last_block(features, geometry))
        return self.head(features[0]), features, geometry

    def _encoded(self, graph: Graph, forces: Tensor | None) -> Features:
        """Return Y_l(F / |F|) |F| / sqrt(3), [n_atoms, 2l+1, 1] per degree."""
        degrees = range(len(self.config.channels))
        if forces is None:
            shape = self.element.new_zeros(graph.n_atoms, 1, 1)
            return [shape.expand(-1, 2 * degree + 1, 1) for degree in degrees]
        forces = forces.to(self.element.dtype)
        amount = safe_norm(forces).view(-1, 1, 1)
        direction = torch.where(amount.squeeze(2) > 0, forces, 1.0)
        frames = self.frames(direction / safe_norm(direction).unsqueeze(1))
        # harmonics of a direction are the first row of the rotation that takes it to the pole
        harmonics = [torch.ones_like(amount)]
        harmonics += [
            math.sqrt(2 * degree + 1) * frame[:, 0].unsqueeze(2)
            for degree, frame in enumerate(frames, start=1)
        ]
        return [y * amount / math.sqrt(3) for y in harmonics]

    def plain(self) -> Equiformer:
        """Return a copy without force embedding and denoising head, which has the same energies."""
        plain = Equiformer(self.config, self.element.shape[0]).to(self.element)
        state = self.state_dict()
        state["element_bias"] = self.element_bias + self.force_embedding.scalar_bias
        taken = {}
        to_scalars = self._weights_to_scalars()
        for name, tensor in plain.state_dict().items():
            source = state[name]
            if source.shape == tensor.shape:
                taken[name] = source
            elif name.endswith(("second_weights", "radial.last", "radial.offset")):
                taken[name] = source[..., to_scalars]
            else:  # channels of scalars come first
                taken[name] = source[..., : tensor.shape[-1]]
        plain.load_state_dict(taken)
        return plain.requires_grad_(False)

    def _weights_to_scalars(self) -> Tensor:
        """Return the indices of the weights of a tensor product that belong to paths to scalars."""
        n = len(self.config.channels)
        paths = self.config.tensor_paths(n, n)
        places = PathIndex(self.config.channels, paths)
        return places.weights(path for path in paths if path[2] == 0)
