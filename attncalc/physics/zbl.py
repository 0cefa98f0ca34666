"""Screened nuclear repulsion at short range (Ziegler, Biersack, Littmark, 1985), trainable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.graph import AtomOutputs, Graph
from attncalc.ops import safe_norm, segment_sum
from attncalc.options import one_of, positive

COULOMB_CONSTANT = 14.399645351950548  # e^2 / (4 pi epsilon_0) in eV Å
SWITCH_OFF = 1.5  # Å: the repulsion is zero beyond

# ZBL's universal screening function; 1/Å where it is a length
EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)
COEFFICIENTS = (0.1818, 0.5099, 0.2802, 0.02817)
CHARGE_POWER = 0.23
INVERSE_LENGTH = 1 / (0.8854 * 0.529177)


@dataclass(frozen=True)
class ZBLConfig:
    """Cutoff [Å] and cutoff function of the network, which also end this term smoothly."""

    cutoff: float
    cutoff_function: str = "physnet"

    def __post_init__(self) -> None:
        positive("cutoff", self.cutoff)
        one_of("cutoff_function", self.cutoff_function, CUTOFF_FUNCTIONS)


class ZBLRepulsion(nn.Module):
    """E_ij = k_e C(d) w(d) Z_i Z_j / d sum_m c_m exp(-a_m d (Z_i^p + Z_j^p) delta), per pair.

    As in SO3LR (JACS 147, 33723, 2025): c is normalised to sum 1, w switches off smoothly between
    0 and 1.5 Å, and a, c, p, delta are softplus of the stored numbers, which keeps them positive.
    Each atom of a pair gets half of its energy.

    Args:
        config: cutoff and cutoff function.
        atomic_numbers: element of every species.
    """

    atomic_numbers: Tensor

    def __init__(self, config: ZBLConfig, atomic_numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        numbers = torch.tensor(atomic_numbers, dtype=torch.float64)
        self.register_buffer("atomic_numbers", numbers, persistent=False)
        self.exponents = nn.Parameter(_inverse_softplus(EXPONENTS))
        self.coefficients = nn.Parameter(_inverse_softplus(COEFFICIENTS))
        self.charge_power = nn.Parameter(_inverse_softplus((CHARGE_POWER,)))
        self.inverse_length = nn.Parameter(_inverse_softplus((INVERSE_LENGTH,)))

    def forward(self, graph: Graph, outputs: AtomOutputs) -> Tensor:
        """Return energies [n_atoms] eV, float64; `outputs` is not used."""
        del outputs
        i, j = graph.receivers[graph.pairs], graph.senders[graph.pairs]
        mask = graph.edge_mask[graph.pairs]
        # a masked vector may be anything, also zero, at which the repulsion is infinite
        lengths = safe_norm(torch.where(mask.unsqueeze(1), graph.vectors[graph.pairs], 1.0))
        z = self.atomic_numbers[graph.species]
        scaled = z ** softplus(self.charge_power)
        reduced = lengths * (scaled[i] + scaled[j]) * softplus(self.inverse_length)
        weights = softplus(self.coefficients)
        weights = weights / weights.sum()
        decay = torch.exp(-softplus(self.exponents) * reduced.unsqueeze(1))
        cutoff = CUTOFF_FUNCTIONS[self.config.cutoff_function](lengths, self.config.cutoff)
        envelope = cutoff * switch_off(lengths, 0.0, SWITCH_OFF) * mask
        repulsion = COULOMB_CONSTANT * envelope * z[i] * z[j] / lengths * (decay @ weights)
        both = torch.cat([repulsion, repulsion]) / 2
        return segment_sum(both, torch.cat([i, j]), graph.n_atoms)


def switch_off(lengths: Tensor, start: float, stop: float) -> Tensor:
    """C-infinity step from 1 at `start` to 0 at `stop`.

    s(1-t) / (s(1-t) + s(t)) with s(y) = exp(-1/y) and t from 0 to 1 between them.
    """
    t = (lengths - start) / (stop - start)
    inside = (t > 0) & (t < 1)
    # outside, any harmless value: the gradient of the discarded branch must stay finite too
    t_inside = torch.where(inside, t, 0.5)
    falling = torch.sigmoid(1 / t_inside - 1 / (1 - t_inside))
    return torch.where(inside, falling, (t <= 0).to(lengths.dtype))


def _inverse_softplus(values: tuple[float, ...]) -> Tensor:
    return torch.tensor([math.log(math.expm1(value)) for value in values], dtype=torch.float64)
