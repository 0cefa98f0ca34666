"""Descriptions of a model for cards, reports and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from attncalc.graph import ALL_PAIRS
from attncalc.potential import Potential


def describe_model(name: str, potential: Potential) -> str:
    """Return the name of a model, and the level of theory that it was trained on if it says so."""
    level = str(potential.training_info.get("level_of_theory") or "")
    return f"{name} ({level})" if level else name


def describe_networks(potential: Potential) -> str:
    """Return names and sizes of the networks; equal members of a committee are counted."""
    networks = potential.networks
    if len(networks) == 1:
        return _named(networks[0])
    kinds = Counter(map(_named, networks))
    return "mean of " + " and ".join(f"{n} x {kind}" for kind, n in kinds.items())


def _named(network: Any) -> str:
    return f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters"


def describe_names(names: Iterable[str]) -> str:
    """Return the names of the networks of a model file: "a", or of a committee "a x 2 + b x 1"."""
    (first, n), *others = Counter(names).items()
    if n == 1 and not others:
        return first
    return " + ".join(f"{name} x {n}" for name, n in [(first, n), *others])


def describe_cutoffs(potential: Potential) -> str:
    """Return the cutoffs of the networks, once where they agree."""
    configs = [network.config for network in potential.networks]
    return "; ".join(dict.fromkeys(f"{c.cutoff:g} Å{describe_nonlocal(c)}" for c in configs))


def describe_nonlocal(config: Any) -> str:
    """Return a description of non-local attention, to follow the cutoff; empty without it."""
    if config.graph_cutoff == config.cutoff:
        return ""
    far = (
        "over all pairs" if config.graph_cutoff >= ALL_PAIRS else f"up to {config.graph_cutoff:g} Å"
    )
    return f", non-local attention {far}"
