"""So3krates, both forms, that also learn to say how atoms were displaced: DeNS, for training only.

Liao, Smidt, Das, "Generalizing denoising to non-equilibrium structures improves equivariant force
fields", TMLR 2024, whose networks have channels of every degree. Here the Euclidean variables (or
SPHC coordinates) of an atom start with the harmonics of the force that the network is told, and its
features with the size of that force; the head adds one more attention and combines the vectors
before and after it. What the head and the told forces need is left out of the network that is
saved, `plain()`, which gives the same energies: it starts without them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from attncalc.basis.so3 import contract_orders, repeat_over_orders
from attncalc.graph import Graph
from attncalc.nn.layers import Dense, lecun_normal
from attncalc.nn.so3krates import EuclideanAttention, So3krates, So3kratesConfig
from attncalc.nn.so3krates_sphc import So3kratesSphc
from attncalc.nn.so3krates_sphc_config import So3kratesSphcConfig
from attncalc.nn.so3krates_sphc_layers import SphcAttention
from attncalc.ops import ModuleWithConstants, safe_norm


class ForceEmbedding(ModuleWithConstants):
    """Embedding of the force on an atom, added to that of its element.

    Args:
        width: of the features.
        degrees: of the Euclidean variables.
    """

    repeat: Tensor

    def __init__(self, width: int, degrees: tuple[int, ...]) -> None:
        super().__init__()
        self.size = nn.Parameter(lecun_normal(1, width))
        self.by_degree = nn.Parameter(torch.ones(len(degrees)))
        self.register_constant("repeat", repeat_over_orders(degrees))

    def forward(self, forces: Tensor, harmonics: nn.Module) -> tuple[Tensor, Tensor]:
        """forces [n_atoms, 3] eV/Å -> additions to features [n_atoms, F] and ev [n_atoms, M].

        w |F| / sqrt(3), and w_l Y_l(F / |F|) |F| / sqrt(3): both zero where there is no force.
        """
        forces = forces.to(self.size.dtype)
        amount = safe_norm(forces).unsqueeze(1)
        direction = torch.where(amount > 0, forces, 1.0)
        direction = direction / safe_norm(direction).unsqueeze(1)
        amount = amount / math.sqrt(3)
        return amount @ self.size, amount * harmonics(direction) * (self.by_degree @ self.repeat)


class DenoisingHead(ModuleWithConstants):
    """One more attention, then a vector per atom: those of degree 1, times numbers that it finds.

    Args:
        attention: as that of a layer.
        width: of the features.
        degrees: of the Euclidean variables; 1 is among them.
    """

    contract: Tensor

    def __init__(self, attention: nn.Module, width: int, degrees: tuple[int, ...]) -> None:
        super().__init__()
        self.attention = attention
        self.gates = Dense(width + 2 * len(degrees), 2)
        self.register_constant("contract", contract_orders(degrees))
        first = sum(2 * l + 1 for l in degrees if l < 1)
        self.places = [first + 2, first, first + 1]  # x, y, z among (y, z, x)

    def forward(self, features: Tensor, ev: Tensor, *geometry: Any) -> Tensor:
        """features [n_atoms, F], ev [n_atoms, M] -> [n_atoms, 3], x, y, z.

        Args:
            features, ev: after the last layer.
            geometry: what the attention takes beside them.
        """
        d_features, d_ev = self.attention(features, ev, *geometry)
        invariants = [(part * part) @ self.contract for part in (ev, d_ev)]
        gates = self.gates(torch.cat([features + d_features, *invariants], dim=1))
        vectors = torch.stack([ev[:, self.places], d_ev[:, self.places]], dim=1)
        return (gates.unsqueeze(2) * vectors).sum(1)


class DenoisingSo3krates(So3krates):
    """A So3krates with an input for forces and a head for displacements.

    Without told forces, a call is that of the plain network.

    Args:
        config: hyper-parameters; 1 is among the degrees.
        n_species: rows of the species table.

    Raises:
        ValueError: there are no Euclidean variables of degree 1.
    """

    def __init__(self, config: So3kratesConfig, n_species: int) -> None:
        super().__init__(config, n_species)
        _require_vectors(config.degrees)
        self.force_embedding = ForceEmbedding(config.num_features, config.degrees)
        self.denoising_head = DenoisingHead(
            EuclideanAttention(config), config.num_features, config.degrees
        )
        self.to(torch.float32)

    def denoise(self, graph: Graph, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [n_atoms] of the undisturbed structure, and displacements [n_atoms, 3].

        Args:
            graph: of the displaced atoms.
            forces: [n_atoms, 3] eV/Å of the undisturbed structure, zero for atoms in their place.
        """
        geometry = self.geometry(graph)
        told_features, ev = self.force_embedding(forces, self.harmonics)
        features = self.embedding(graph) + told_features
        initial = self.initial_ev(geometry, graph.n_atoms)
        if initial is not None:
            ev = ev + initial
        for layer in self.layers:
            features, ev = layer(features, ev, geometry)
        return self.head(features), self.denoising_head(features, ev, geometry)

    def plain(self) -> So3krates:
        """The network without input for forces and denoising head; same energies, own tensors."""
        return _filled(So3krates(self.config, len(self.embedding.element)), self)


class DenoisingSo3kratesSphc(So3kratesSphc):
    """`DenoisingSo3krates` of the form with spherical harmonic coordinates.

    Args:
        config: hyper-parameters.
        n_species: rows of the species table.
    """

    def __init__(self, config: So3kratesSphcConfig, n_species: int) -> None:
        super().__init__(config, n_species)
        _require_vectors(config.degrees)
        self.force_embedding = ForceEmbedding(config.num_features, config.degrees)
        self.denoising_head = DenoisingHead(
            SphcAttention(config), config.num_features, config.degrees
        )
        self.to(torch.float32)

    def denoise(self, graph: Graph, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same as `DenoisingSo3krates.denoise`."""
        geometry = self.geometry(graph)
        told_features, told_ev = self.force_embedding(forces, self.harmonics)
        features = self.embedding(graph) + told_features
        ev = self.initial_ev(geometry, graph.n_atoms) + told_ev
        for layer in self.layers:
            features, ev = layer(features, ev, geometry, self.harmonics, self.coupling)
        vectors = self.denoising_head(features, ev, geometry, self.harmonics)
        return self.head(features), vectors

    def plain(self) -> So3kratesSphc:
        """The network without input for forces and denoising head; same energies, own tensors."""
        return _filled(So3kratesSphc(self.config, len(self.embedding.element)), self)


def _require_vectors(degrees: tuple[int, ...]) -> None:
    if 1 not in degrees:
        raise ValueError(f"denoising needs vectors: degrees must hold 1, got {degrees}")


def _filled(plain: Any, denoising: nn.Module) -> Any:
    """`plain` with the weights that it shares with its denoising form."""
    state = denoising.state_dict()
    plain = plain.to(next(denoising.parameters()).dtype)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.requires_grad_(False)
