"""So3krates as first published: attention with spherical harmonic coordinates, over any distance.

Frank, Unke, Müller, "So3krates: Equivariant attention for interactions on arbitrary length-scales
in molecular systems", NeurIPS 2022 (arXiv 2205.14276), code of version 0.1. The default is another
form of it, which is smooth and size-consistent.

| paper            | here                                                                   |
|------------------|------------------------------------------------------------------------|
| x_i              | features [n_atoms, F]                                                  |
| chi_i (SPHC)     | ev [n_atoms, M], M = sum of 2l+1, as in `so3krates`                    |
| phi(d), C(d)     | radial basis [P, K], envelope [P]; P pairs within the cutoff           |
| Y(u_ij)          | harmonics [2, P, M] of R_i - R_j: from the sender to the receiver      |
| w^f, w^g         | filters [2, P, F], first index: features, geometry                     |
| S_ij             | shares of `sphc_attention`                                             |

Differences between the two forms:

| published                                             | smooth                                   |
|-------------------------------------------------------|------------------------------------------|
| lengths ||chi||_l, whose slope jumps at 0             | squares sum_m chi_lm^2 / sqrt(2l+1)      |
| chi^0 = sum C Y / sum C: jumps when the last leaves   | sum C Y / (1 + sum C)                    |
| products chi x chi of both parities: E of a molecule  | those that keep parity                   |
| and of its mirror image differ                        |                                          |
| (x + a) / sqrt(3) in every layer                      | x + a                                    |
| non-local attention by a softmax over all pairs       | by a window                              |

This module holds the network. Its hyper-parameters are in `so3krates_sphc_config`, its layers in
`so3krates_sphc_layers`, and the weights of distant pairs in `sphc_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.radial import RADIAL_BASES
from attncalc.basis.so3 import SphericalHarmonics, couplings, parity
from attncalc.graph import AtomOutputs, Graph, sum_over_system
from attncalc.nn.layers import Embedding, EnergyHead, with_species
from attncalc.nn.so3krates_sphc_config import So3kratesSphcConfig
from attncalc.nn.so3krates_sphc_layers import Geometry, Layer
from attncalc.nn.sphc_attention import FarEdges
from attncalc.ops import ModuleWithConstants, safe_norm, segment_sum


class So3kratesSphc(ModuleWithConstants):
    """So3krates network with SPHC, which maps a graph of edge vectors to one energy per atom.

    Args:
        config: hyper-parameters.
        n_species: rows of the species table.
    """

    parity: Tensor
    coupling: Tensor

    def __init__(self, config: So3kratesSphcConfig, n_species: int) -> None:
        super().__init__()
        self.config = config
        width = config.num_features
        self.embedding = Embedding(
            width, n_species, charge=config.embed_charge, spin=config.embed_spin
        )
        self.radial = RADIAL_BASES[config.radial_basis](config.num_basis, config.cutoff)
        self.harmonics = SphericalHarmonics(config.degrees)
        self.register_constant("parity", parity(config.degrees))
        natural = config.paths == "natural"
        self.register_constant("coupling", couplings(config.degrees, natural_only=natural))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.head = EnergyHead(width, width)
        self.to(torch.float32)

    @property
    def reads_charge(self) -> bool:
        """True if the energy depends on the total charge."""
        return self.config.embed_charge

    @property
    def reads_spin(self) -> bool:
        """True if the energy depends on the multiplicity."""
        return self.config.embed_spin

    def for_species(self, rows: Sequence[int]) -> So3kratesSphc:
        """Return a copy whose species table consists of these rows of this one, in this order."""
        other = So3kratesSphc(self.config, len(rows)).to(self.parity.dtype)
        other.load_state_dict(with_species(self.state_dict(), rows))
        return other

    def forward(self, graph: Graph) -> AtomOutputs:
        """Return the energies per atom [n_atoms], before scale and reference energies."""
        geometry = self.geometry(graph)
        features = self.embedding(graph)
        ev = self.initial_ev(geometry, graph.n_atoms)
        for layer in self.layers:
            features, ev = layer(features, ev, geometry, self.harmonics, self.coupling)
        return AtomOutputs(energies=self.head(features), features=features)

    def geometry(self, graph: Graph) -> Geometry:
        """Return lengths, directions and functions of them for the edges of a graph."""
        config, dtype = self.config, self.parity.dtype
        far, pairs = None, graph.pairs
        if config.nonlocal_attention != "none":
            # computed once per call; on a GPU this waits for the device
            lengths = torch.linalg.vector_norm(graph.vectors.detach(), dim=1)
            is_near = lengths < config.cutoff
            pairs = pairs[(is_near & graph.edge_mask)[pairs]]
            which = (graph.edge_mask & ~is_near).nonzero().squeeze(1)
            vectors = graph.vectors.index_select(0, which).to(dtype)
            far = FarEdges(graph.receivers[which], graph.senders[which], vectors, graph.n_atoms)
        mask = graph.edge_mask[pairs]
        # vectors of masked edges are arbitrary; a zero or very long one would give NaN
        vectors = torch.where(
            mask.unsqueeze(1), graph.vectors[pairs].to(dtype), 0.5 * config.cutoff
        )
        i, j = graph.receivers[pairs], graph.senders[pairs]
        lengths = safe_norm(vectors)
        harmonics = self.harmonics(vectors / lengths.unsqueeze(1))
        envelope = CUTOFF_FUNCTIONS[config.cutoff_function](lengths, config.cutoff) * mask
        n_atoms = sum_over_system(torch.ones_like(graph.system_idx, dtype=dtype), graph)
        return Geometry(
            receivers=torch.cat([i, j]),
            senders=torch.cat([j, i]),
            envelope=envelope,
            lengths=lengths,
            # the edge of the graph points to the sender
            harmonics=torch.stack([harmonics * self.parity, harmonics]),
            radial=self.radial(lengths) * envelope.unsqueeze(1),
            far=far,
            n_atoms=n_atoms[graph.system_idx],
        )

    def initial_ev(self, geometry: Geometry, n_atoms: int) -> Tensor:
        """Return [n_atoms, M]: a weighted mean of the harmonics of the neighbours' directions."""
        messages = geometry.envelope.unsqueeze(1) * geometry.harmonics
        total = segment_sum(messages.flatten(0, 1), geometry.receivers, n_atoms)
        envelope = geometry.envelope.repeat(2)
        norm = segment_sum(envelope, geometry.receivers, n_atoms).unsqueeze(1)
        if self.config.form == "smooth":
            return total / (1 + norm)
        return torch.where(norm > 0, total / torch.where(norm > 0, norm, 1.0), 0.0)
