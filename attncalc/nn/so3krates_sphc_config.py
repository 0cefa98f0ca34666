"""Hyper-parameters of So3krates with spherical harmonic coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from attncalc.basis.cutoff import CUTOFF_FUNCTIONS
from attncalc.basis.radial import RADIAL_BASES
from attncalc.graph import ALL_PAIRS
from attncalc.options import (
    cutoff_radius,
    degrees_of_width,
    one_of,
    positive,
    true_or_false,
    whole_number,
)

# products of coordinates of higher degrees would take minutes and gigabytes
HIGHEST_DEGREE = 6

Form = Literal["smooth", "published"]
NonlocalAttention = Literal["none", "window", "fixed", "dynamic"]
CutoffFunction = Literal["physnet", "cosine", "exponential"]


@dataclass(frozen=True)
class So3kratesSphcConfig:
    """Hyper-parameters; the defaults define our smooth network, options the published ones.

    Attributes:
        cutoff: cutoff of the local attention, Å.
        num_features: F, divisible by num_heads and by the number of degrees.
        num_heads: H, attention heads of the features.
        degrees: degrees l of the coordinates, ascending, at least 1.
        num_layers: number of message-passing layers.
        radial_basis: "physnet" or "bernstein".
        num_basis: K, at least 2.
        radial_features: hidden width of the radial part of the filters.
        spherical_features: hidden width of the spherical part of the filters.
        cutoff_function: "physnet" (two continuous derivatives), "exponential", or "cosine"
            (the paper's; its second derivative jumps at the cutoff).
        form: "smooth" or "published", see the docstring of module `so3krates_sphc`.
        nonlocal_attention: "none"; "window" (smooth form); "fixed" or "dynamic" (published form),
            over all pairs of a molecule.
        nonlocal_cutoff: distance at which the window in space ends, Å; more than `cutoff`.
        sphc_cutoff: end of the neighbourhood in SPHC space: the radius rho of "window", or the
            kappa of "fixed".
        feature_norm: "layer" (layer norm of the features after attention and after interaction) or
            "none".
        sphc_norm: "degree" (the coordinates of each degree are rescaled to a learned length at the
            same places; published form only, singular where they vanish) or "none".
        paths: products of coordinates: "natural" (those that conserve parity) or "all" (the
            paper's default).
        embed_charge, embed_spin: whether to embed the total charge, and the number of unpaired
            electrons.
    """

    cutoff: float
    num_features: int = 132
    num_heads: int = 4
    degrees: tuple[int, ...] = (1, 2, 3)
    num_layers: int = 3
    radial_basis: Literal["physnet", "bernstein"] = "physnet"
    num_basis: int = 32
    radial_features: int = 128
    spherical_features: int = 32
    cutoff_function: CutoffFunction = "physnet"
    form: Form = "smooth"
    nonlocal_attention: NonlocalAttention = "window"
    nonlocal_cutoff: float = 30.0
    sphc_cutoff: float = 2.0
    feature_norm: Literal["layer", "none"] = "layer"
    sphc_norm: Literal["degree", "none"] = "none"
    paths: Literal["natural", "all"] = "natural"
    embed_charge: bool = False
    embed_spin: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.degrees, list | tuple):  # JSON and YAML have no tuples
            raise ValueError(f"degrees must be a list, got {self.degrees!r}")
        object.__setattr__(self, "degrees", tuple(self.degrees))
        cutoff_radius(self.cutoff)
        for name in ("nonlocal_cutoff", "sphc_cutoff"):
            positive(name, getattr(self, name))
        for name, least in (
            *(("num_features", 1), ("num_heads", 1), ("num_layers", 1), ("num_basis", 2)),
            *(("radial_features", 1), ("spherical_features", 1)),
        ):
            whole_number(name, getattr(self, name), least)
        for name in ("embed_charge", "embed_spin"):
            true_or_false(name, getattr(self, name))
        widths = self.num_features, self.num_heads
        degrees_of_width(self.degrees, *widths, least=1, most=HIGHEST_DEGREE)
        one_of("radial_basis", self.radial_basis, RADIAL_BASES)
        one_of("cutoff_function", self.cutoff_function, CUTOFF_FUNCTIONS)
        one_of("form", self.form, get_args(Form))
        one_of("nonlocal_attention", self.nonlocal_attention, get_args(NonlocalAttention))
        one_of("feature_norm", self.feature_norm, ("layer", "none"))
        one_of("sphc_norm", self.sphc_norm, ("degree", "none"))
        one_of("paths", self.paths, ("natural", "all"))
        theirs = ("fixed", "dynamic") if self.form == "smooth" else ("window",)
        if self.nonlocal_attention in theirs:
            raise ValueError(
                f"nonlocal_attention {self.nonlocal_attention!r} does not belong to the "
                f"{self.form} form"
            )
        if self.form == "smooth" and self.sphc_norm != "none":
            raise ValueError("sphc_norm 'degree' is singular and belongs to the published form")
        if self.nonlocal_attention == "window" and not (
            self.cutoff < self.nonlocal_cutoff < ALL_PAIRS
        ):
            raise ValueError(
                f"nonlocal_cutoff must be more than cutoff = {self.cutoff} and less than "
                f"{ALL_PAIRS:g}, got {self.nonlocal_cutoff}"
            )

    @property
    def graph_cutoff(self) -> float:
        """Cutoff of the graph that the network reads, Å; `ALL_PAIRS` for all pairs of atoms.

        With non-local attention it exceeds `cutoff`, where the local attention ends.
        """
        if self.nonlocal_attention == "none":
            return self.cutoff
        return self.nonlocal_cutoff if self.nonlocal_attention == "window" else ALL_PAIRS

    @property
    def receptive_field(self) -> float:
        """Distance beyond which other atoms do not change the energy of an atom, Å."""
        return self.num_layers * self.graph_cutoff + self.cutoff  # initial chi reads neighbours

    @property
    def n_weights_at_least(self) -> int:
        """Least number of weights of a network of this size; a file with fewer is refused."""
        width = self.num_features
        n_degrees = len(self.degrees)
        filters = 2 * self.radial_features * (self.num_basis + width)
        filters += 2 * self.spherical_features * (n_degrees + width)
        interaction = 2 * (width + n_degrees) ** 2 + n_degrees**3
        return self.num_layers * (filters + interaction) + width * width

    @property
    def faults(self) -> list[str]:
        """Defects of the network's physics, in sentences for the model's card."""
        found = []
        if self.cutoff_function == "cosine":
            found.append("forces have a kink where an atom crosses the cutoff")
        if self.form == "published":
            found.append("energy and forces jump where the last neighbour of an atom leaves")
            found.append("forces jump where coordinates vanish or those of two atoms agree")
        if self.paths == "all":
            found.append("a molecule and its mirror image have different energies")
        if self.nonlocal_attention in ("fixed", "dynamic"):
            found.append("two molecules far apart have another energy than each alone")
        return found
