"""Heads of a So3krates in one form: s(x W + b) . w[species] + c[species], s = SiLU."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad


class Head(NamedTuple):
    """Weights of one output; G is the same for all outputs, filled up with zeros.

    Attributes:
        weight: [F, G].
        hidden_bias: [G].
        last: [n_species, G].
        bias: [n_species].
    """

    weight: Tensor
    hidden_bias: Tensor
    last: Tensor
    bias: Tensor

    def filled_up(self, width: int) -> Head:
        """Return the head with G = `width`; silu(0) = 0, so the added zeros contribute nothing."""
        more = (0, width - len(self.hidden_bias))
        weight, hidden_bias, last = (pad(tensor, more) for tensor in self[:3])
        return Head(weight, hidden_bias, last, self.bias)


def heads_of(network: Any) -> dict[str, Head]:
    """Return the heads of a network with a hidden layer, by the name of their output.

    Hirshfeld ratios are those before the absolute value, charges those before the shift to the
    total.
    """
    n_species = len(network.embedding.element)
    heads = {"energies": _of_energy(network.head, n_species)}
    if network.charge_head is not None:
        head = _of_energy(network.charge_head.head, n_species)
        heads["charges"] = head._replace(bias=head.bias + network.charge_head.of_species)
    if (ratios := network.hirshfeld_head) is not None:
        directions = ratios.directions / math.sqrt(ratios.directions.shape[1])
        heads["hirshfeld_ratios"] = Head(
            ratios.hidden.weight,
            ratios.hidden.bias,
            directions @ ratios.projected.weight.T,
            ratios.of_species + directions @ ratios.projected.bias,
        )
    width = max(len(head.hidden_bias) for head in heads.values())
    return {name: head.filled_up(width) for name, head in heads.items()}


def _of_energy(head: Any, n_species: int) -> Head:
    last, bias = head.energy.weight.T, head.energy.bias
    return Head(
        head.hidden.weight, head.hidden.bias, last.expand(n_species, -1), bias.expand(n_species)
    )
