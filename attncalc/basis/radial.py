"""Radial bases: smooth functions of the distance, which are inputs of radial networks."""

import math

import torch
from torch import Tensor, nn

from attncalc.basis.cutoff import cosine
from attncalc.ops import ModuleWithConstants

# The published Bernstein basis takes this decay from a float32 constant, in float64 runs as well.
BERNSTEIN_DECAY = 0.9448630809783936  # 1/Å


class PhysnetBasis(ModuleWithConstants):
    """Gaussians in exp(-d) (PhysNet, JCTC 15, 3678, 2019, eq. 7), ascending centres.

    phi_k(d) = exp(-beta (exp(-d) - mu_k)^2), mu_k between exp(-cutoff) and 1, d in Å.
    """

    centres: Tensor

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        centres = torch.linspace(math.exp(-cutoff), 1.0, num_basis, dtype=torch.float64)
        self.width = (2 / num_basis * (1 - math.exp(-cutoff))) ** -2
        self.register_constant("centres", centres)

    def forward(self, lengths: Tensor) -> Tensor:
        """lengths [n] Å -> [n, num_basis]."""
        offset = torch.exp(-lengths).unsqueeze(1) - self.centres
        return torch.exp(-self.width * offset * offset)


class BernsteinBasis(ModuleWithConstants):
    """Bernstein polynomials in exp(-gamma d) (SpookyNet, Nat. Commun. 12, 7273, 2021).

    phi_k(d) = binom(K-1, k) t^k (1-t)^(K-1-k), t = exp(-gamma d), k = 0..K-1.
    """

    order: Tensor
    complement: Tensor
    log_binomial: Tensor

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        del cutoff  # the basis has none
        n = num_basis - 1
        logarithms = [
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)
        ]
        k = torch.arange(num_basis, dtype=torch.float64)
        self.register_constant("order", k)
        self.register_constant("complement", n - k)
        log_binomial = torch.tensor(logarithms, dtype=torch.float64)
        self.register_constant("log_binomial", log_binomial)

    def forward(self, lengths: Tensor) -> Tensor:
        """lengths [n] Å, positive -> [n, num_basis]."""
        exponent = (-BERNSTEIN_DECAY * lengths).unsqueeze(1)
        # by logarithms: the binomials reach 1e8 while the powers underflow in float32
        log_rest = torch.log(-torch.expm1(exponent))
        return torch.exp(self.log_binomial + self.order * exponent + self.complement * log_rest)


def mean_square(basis: nn.Module, cutoff: float) -> float:
    """Return the mean square of a basis over the volume within the cutoff [Å]."""
    lengths = torch.linspace(0, cutoff, 1001, dtype=torch.float64)[1:]
    weights = lengths**2 / (lengths**2).sum()
    squares = basis(lengths).square().mean(1)
    return float(weights @ squares)


RADIAL_BASES: dict[str, type[nn.Module]] = {"physnet": PhysnetBasis, "bernstein": BernsteinBasis}


class ExpNormalBasis(nn.Module):
    """Gaussians in exp(-d) times a cosine that ends at the cutoff (Equiformer, MD17).

    b_k(d) = f(d) exp(-beta_k (exp(-d) - mu_k)^2), f = (1 + cos(pi d / cutoff)) / 2, mu_k between
    exp(-cutoff) and 1, d in Å. Centres and widths are stored with the weights: published ones
    carry the rounding of float32.
    """

    centres: Tensor
    widths: Tensor

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        centres = torch.linspace(math.exp(-cutoff), 1.0, num_basis)
        width = (2 / num_basis * (1 - math.exp(-cutoff))) ** -2
        self.cutoff = cutoff
        self.register_buffer("centres", centres)
        self.register_buffer("widths", torch.full((num_basis,), width))

    def forward(self, lengths: Tensor) -> Tensor:
        """lengths [n] Å -> [n, num_basis]."""
        offset = torch.exp(-lengths).unsqueeze(1) - self.centres
        return cosine(lengths, self.cutoff).unsqueeze(1) * torch.exp(-self.widths * offset * offset)
