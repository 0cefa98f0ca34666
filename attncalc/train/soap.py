"""SOAP: Adam in the eigenbasis of the second moments of matrices' gradients.

Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson, Kakade, "SOAP: Improving and Stabilizing
Shampoo using Adam", ICLR 2025 (arXiv 2409.11321), algorithm 3. A parameter of more than two
dimensions is a batch of matrices in its last two. Matrices of one shape and precision are processed
together. "Turned" gradients are those in the eigenbases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# a basis for a shorter side gains nothing, one for a longer side costs more than it gains
SHORTEST_SIDE, LONGEST_SIDE = 4, 512
# decays of first and second moments of turned gradients, and of the others' second, as in Adam
OF_FIRST, OF_SECOND, OF_SECOND_OF_OTHERS = 0.95, 0.95, 0.99
STEPS_BETWEEN_BASES = 20
EPSILON = 1e-8


class Soap(torch.optim.Optimizer):
    """SOAP optimizer for matrices, and Adam for all other parameters.

    The state of all matrices of one shape and precision, [n, rows, columns], is kept with the
    first parameter that has some. First and second moments are those of turned gradients, so that
    first moments need not be turned at every step. The first step only computes the bases.

    Args:
        parameters: parameters of a network; all must have a gradient at every step.
        lr: learning rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change all parameters, in place, by their gradients."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            # pair terms are in float64 beside a network in float32
            alike: dict[tuple[tuple[int, int], torch.dtype], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                alike[_shape(parameter), parameter.dtype].append(parameter)
            for (shape, _), parameters in alike.items():
                self._change(parameters, shape, group["lr"])
        return value

    def _change(self, parameters: list[Tensor], shape: tuple[int, int], lr: float) -> None:
        state = self.state[parameters[0]]
        gradients = torch.cat([_gradient(one).reshape(-1, *shape) for one in parameters])
        turned = [dim for dim in (1, 2) if SHORTEST_SIDE <= shape[dim - 1] <= LONGEST_SIDE]
        if shape[0] == 1:  # a row of numbers
            turned = []
        begins = not state
        if begins:
            state["n"] = 0
            state["turned first"], state["second"] = (torch.zeros_like(gradients) for _ in range(2))
        if not (begins and turned):  # no gradient is turned into a basis computed from itself
            state["n"] += 1
            bases = {dim: state[f"basis {dim}"] for dim in turned}
            decay = OF_SECOND if turned else OF_SECOND_OF_OTHERS
            in_bases = _to(bases, gradients)
            state["turned first"].lerp_(in_bases, 1 - OF_FIRST)
            state["second"].lerp_(in_bases**2, 1 - decay)
            first = state["turned first"] / (1 - OF_FIRST ** state["n"])
            second = state["second"] / (1 - decay ** state["n"])
            changes = _back(bases, first / (second.sqrt() + EPSILON))
            counts = [parameter.numel() // (shape[0] * shape[1]) for parameter in parameters]
            for parameter, change in zip(parameters, changes.split(counts), strict=True):
                parameter.sub_(change.reshape(parameter.shape), alpha=lr)
        for dim in turned:
            self._follow(state, gradients, dim)

    def _follow(self, state: dict[str, Any], gradients: Tensor, dim: int) -> None:
        """Update second moments along rows (dim 1) or columns (2), and at intervals the basis."""
        products = gradients @ gradients.mT if dim == 1 else gradients.mT @ gradients
        moments, name = f"moments {dim}", f"basis {dim}"
        if moments not in state:
            state[moments] = torch.zeros_like(products)
        state[moments].lerp_(products, 1 - OF_SECOND)
        if name not in state:
            # in float64: of moments that go down to the smallest numbers of float32, as those of
            # radial functions do, LAPACK's single precision returns NaN without a word
            vectors = torch.linalg.eigh(state[moments].double())[1]
            state[name] = vectors.to(gradients.dtype)
        elif state["n"] % STEPS_BETWEEN_BASES == 0:
            basis = state[name]
            along = (basis * (state[moments] @ basis)).sum(1)  # eigenvalue estimates
            order = along.argsort(dim=1, descending=True)
            basis = basis.gather(2, order.unsqueeze(1).expand_as(basis))
            new = torch.linalg.qr(state[moments] @ basis)[0]  # a step of power iteration
            turn = state[name].mT @ new
            state[name] = new
            first = state["turned first"]
            state["turned first"] = turn.mT @ first if dim == 1 else first @ turn
            # second moments are reordered with their vectors
            index = order.unsqueeze(2 if dim == 1 else 1).expand_as(state["second"])
            state["second"] = state["second"].gather(dim, index)


def _shape(parameter: Tensor) -> tuple[int, int]:
    """Return rows and columns of the matrices of a parameter; one row for numbers and vectors."""
    if parameter.ndim < 2:
        return 1, parameter.numel()
    return parameter.shape[-2], parameter.shape[-1]


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _to(bases: dict[int, Tensor], matrices: Tensor) -> Tensor:
    if 1 in bases:
        matrices = bases[1].mT @ matrices
    return matrices @ bases[2] if 2 in bases else matrices


def _back(bases: dict[int, Tensor], matrices: Tensor) -> Tensor:
    if 1 in bases:
        matrices = bases[1] @ matrices
    return matrices @ bases[2].mT if 2 in bases else matrices
