"""Hyper-parameters of Equiformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from attncalc.nn.edge_products import TensorPath
from attncalc.options import cutoff_radius, one_of, positive, whole_number

SHORTEST_CUTOFF = 0.01  # Å
HIGHEST_DEGREE = 6  # far above any in use; coupling tensors of higher degrees take minutes

AttentionName = Literal["nonlinear", "linear", "dot"]
NormName = Literal["joint", "degree"]


@dataclass(frozen=True)
class EquiformerConfig:
    """Hyper-parameters; the defaults define our smooth, mirror-symmetric network of lmax 2.

    Attributes:
        cutoff: cutoff radius, Å.
        avg_num_neighbors: mean number of neighbours in the training data.
        attention: "nonlinear" (non-linear messages, MLP attention: the published Equiformer),
            "linear" (linear messages, MLP attention) or "dot" (dot-product attention).
        channels: feature channels per degree l = 0, 1, ...; each divisible by num_heads.
        num_layers: number of blocks; each extends `receptive_field` by the cutoff.
        num_heads: number of attention heads.
        attention_features: features per head of the MLP attention.
        feed_forward_factor: hidden channels of the feed-forward networks / channels.
        num_basis: number of radial basis functions.
        radial_features: hidden width of the radial networks.
        head_features: number of scalars that the energy is computed from.
        cutoff_function: envelope of every edge: "physnet" (two continuous derivatives), or "none"
            (published: energy and forces jump at the cutoff).
        norm: what higher degrees are divided by: the root mean square "joint" of all degrees, or
            that of each "degree" (published: without limit where the environment of an atom has a
            symmetry that forbids a degree). None: "degree" if `cutoff_function` is "none", so that
            these are those of the published network, else "joint".
        paths: tensor products: "natural" (those that conserve parity) or "all" (as in the
            published network, including weights that cannot change its output).
    """

    cutoff: float
    avg_num_neighbors: float
    attention: AttentionName = "nonlinear"
    channels: tuple[int, ...] = (128, 64, 32)
    num_layers: int = 6
    num_heads: int = 4
    attention_features: int = 32
    feed_forward_factor: int = 3
    num_basis: int = 32
    radial_features: int = 64
    head_features: int = 512
    cutoff_function: Literal["physnet", "none"] = "physnet"
    paths: Literal["natural", "all"] = "natural"
    norm: NormName | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.channels, list | tuple):  # JSON and YAML have no tuples
            raise ValueError(f"channels must be a list, got {self.channels!r}")
        object.__setattr__(self, "channels", tuple(self.channels))
        cutoff_radius(self.cutoff)
        positive("avg_num_neighbors", self.avg_num_neighbors)
        if self.cutoff < SHORTEST_CUTOFF:  # the radial basis cannot tell it from zero
            raise ValueError(f"cutoff must be at least {SHORTEST_CUTOFF}, got {self.cutoff}")
        for name, least in (
            *(("num_layers", 1), ("num_heads", 1), ("attention_features", 1)),
            *(("feed_forward_factor", 1), ("num_basis", 2)),
            *(("radial_features", 2), ("head_features", 2)),  # layer norm of one number is 0
        ):
            whole_number(name, getattr(self, name), least)
        if not 2 <= len(self.channels) <= HIGHEST_DEGREE + 1:
            raise ValueError(
                f"channels must be given for degrees 0 to 1 at least and {HIGHEST_DEGREE} at "
                f"most, got {len(self.channels)} numbers"
            )
        for width in self.channels:
            whole_number("channels", width, 1)
            if width % self.num_heads:
                raise ValueError(
                    f"channels must be divisible by num_heads = {self.num_heads}, got {width}"
                )
        one_of("attention", self.attention, get_args(AttentionName))
        one_of("cutoff_function", self.cutoff_function, ("physnet", "none"))
        one_of("paths", self.paths, ("natural", "all"))
        if self.norm is None:
            published = self.cutoff_function == "none"
            object.__setattr__(self, "norm", "degree" if published else "joint")
        one_of("norm", self.norm, get_args(NormName))

    @property
    def highest_degree(self) -> int:
        """Highest degree, lmax."""
        return len(self.channels) - 1

    @property
    def n_weights_at_least(self) -> int:
        """Least number of weights of a network of this size; a file with fewer is refused."""
        squares, scalars = sum(width * width for width in self.channels), self.channels[0]
        of_atoms = 2 * squares + (1 + self.feed_forward_factor) * scalars * scalars
        radial = self.radial_features * (self.num_basis + self.radial_features)
        attention = 0 if self.attention == "dot" else self.num_heads * self.attention_features
        per_layer = of_atoms + radial + scalars * attention
        return self.num_layers * per_layer + self.head_features * self.head_features

    @property
    def graph_cutoff(self) -> float:
        """Cutoff of the graph that the network reads, Å: here `cutoff`."""
        return self.cutoff

    @property
    def receptive_field(self) -> float:
        """Distance beyond which other atoms do not change the energy of an atom, Å."""
        return (self.num_layers + 1) * self.cutoff  # the embedding reads the neighbours too

    @property
    def faults(self) -> list[str]:
        """Defects of the network's physics, in sentences for the model's card."""
        found = []
        if self.cutoff_function == "none":
            found.append("energy and forces jump where an atom crosses the cutoff")
        if self.paths == "all":
            found.append("a molecule and its mirror image have different energies")
        if self.norm == "degree":
            found.append(
                "energy and forces are wrong at atoms of high symmetry, as in CH4 or perfect "
                "crystals"
            )
        return found

    def tensor_paths(self, n_in: int, n_out: int) -> list[TensorPath]:
        """Return paths from degrees below `n_in` to degrees below `n_out` in published order."""
        degrees = range(len(self.channels))
        return [
            (a, b, c)
            for a in range(n_in)
            for b in degrees
            for c in range(abs(a - b), min(a + b, self.highest_degree) + 1)
            if c < n_out and (self.paths == "all" or (a + b + c) % 2 == 0)
        ]

    @property
    def degrees_kept(self) -> int:
        """Number of input degrees of the embedding's product and output degrees of the last block.

        Scalars alone are enough. The published network also has the other degrees, whose weights
        multiply zeros or are never read.
        """
        return len(self.channels) if self.paths == "all" else 1
