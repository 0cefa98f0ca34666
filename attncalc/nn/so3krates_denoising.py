"""Both forms of So3krates with denoising of displaced atoms (DeNS), for training only.

Liao, Smidt, Das, "Generalizing denoising to non-equilibrium structures improves equivariant force
fields", TMLR 2024. The networks of the paper have channels of every degree. Here, the harmonics of
the force on an atom, an input, are added to its initial Euclidean variables (or SPHC coordinates),
and a bounded function of its magnitude to its initial features. The denoising head is one more
attention; it combines the vectors before and after it. The network that is saved, `plain()`, has
neither the embedding of the forces nor this head. Its energies are those of a call without forces.
"""

from __future__ import annotations

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
    """Embedding of the force on an atom, added to the embedding of its element.

    It is bounded: without layer norms, updates grow as the cube of features and variables, and a
    force of 7 eV/Å, as in ethanol at 500 K, made energies overflow after 30 epochs.

    Args:
        width: number of features.
        degrees: degrees of the Euclidean variables.
    """

    repeat: Tensor

    def __init__(self, width: int, degrees: tuple[int, ...]) -> None:
        super().__init__()
        # the scale of the elements' features
        self.size = nn.Parameter(0.1 * lecun_normal(1, width))
        self.by_degree = nn.Parameter(torch.ones(len(degrees)))
        self.register_constant("repeat", repeat_over_orders(degrees))

    def forward(self, forces: Tensor, harmonics: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the terms to add to features [n_atoms, F] and ev [n_atoms, M].

        For forces F [n_atoms, 3] eV/Å they are w a and w_l Y_l(F / |F|) a with
        a = |F| / (|F| + 1 eV/Å); both are zero where the force is zero.
        """
        forces = forces.to(self.size.dtype)
        amount = safe_norm(forces).unsqueeze(1)
        direction = torch.where(amount > 0, forces, 1.0)
        direction = direction / safe_norm(direction).unsqueeze(1)
        amount = amount / (amount + 1.0)
        return amount @ self.size, amount * harmonics(direction) * (self.by_degree @ self.repeat)


class DenoisingHead(ModuleWithConstants):
    """Attention and a gate that predict one vector per atom.

    The vector is the sum of the degree-1 variables before the attention and of their update by it,
    each multiplied by a gate that is computed from features and invariants.

    Args:
        attention: an attention module like that of a layer.
        width: number of features.
        degrees: degrees of the Euclidean variables; 1 is among them.
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
        """Return one vector per atom, [n_atoms, 3]: x, y, z.

        Args:
            features, ev: [n_atoms, F] and [n_atoms, M], after the last layer.
            geometry: the other arguments of the attention.
        """
        d_features, d_ev = self.attention(features, ev, *geometry)
        invariants = [(part * part) @ self.contract for part in (ev, d_ev)]
        gates = self.gates(torch.cat([features + d_features, *invariants], dim=1))
        vectors = torch.stack([ev[:, self.places], d_ev[:, self.places]], dim=1)
        return (gates.unsqueeze(2) * vectors).sum(1)


class DenoisingSo3krates(So3krates):
    """So3krates with an input for forces and a head for displacements.

    `forward` takes no forces and gives the output of the plain network.

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
        """Predict energies [n_atoms] of the undisplaced structure, and displacements [n_atoms, 3].

        Args:
            graph: graph of the displaced atoms.
            forces: [n_atoms, 3] eV/Å of the undisplaced structure, zero for atoms not displaced.
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
        """Return a copy without force embedding and denoising head, which has the same energies."""
        return _filled(So3krates(self.config, len(self.embedding.element)), self)


class DenoisingSo3kratesSphc(So3kratesSphc):
    """`DenoisingSo3krates` for the form with spherical harmonic coordinates.

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
        """Return a copy without force embedding and denoising head, which has the same energies."""
        return _filled(So3kratesSphc(self.config, len(self.embedding.element)), self)


def _require_vectors(degrees: tuple[int, ...]) -> None:
    if 1 not in degrees:
        raise ValueError(f"denoising needs vectors: degrees must hold 1, got {degrees}")


def _filled(plain: Any, denoising: nn.Module) -> Any:
    """Copy into `plain` the weights that it shares with its denoising form, and return it."""
    state = denoising.state_dict()
    plain = plain.to(next(denoising.parameters()).dtype)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.requires_grad_(False)
