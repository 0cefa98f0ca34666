"""Lowers a loaded potential for inference, and proves on the spot that nothing changed.

Chosen by device and dtype, never by the user: where the proof fails, or nothing faster is known
for a network, the plain path runs.
"""

from __future__ import annotations

import functools
import logging

import numpy as np
import torch
from torch import nn

from attncalc.compiled import has_numba
from attncalc.graph import AtomOutputs, Graph
from attncalc.kernels.folded_attention import folded
from attncalc.kernels.frozen_equiformer import frozen
from attncalc.kernels.frozen_zbl import FrozenZBL
from attncalc.neighbors import fresh_graph
from attncalc.nn.equiformer import Equiformer
from attncalc.nn.so3krates import So3krates
from attncalc.ops import with_modules
from attncalc.physics.zbl import COULOMB_CONSTANT, SWITCH_OFF, ZBLRepulsion
from attncalc.potential import ROUNDING, Committee, Potential, deviation, evaluate
from attncalc.probe import probes
from attncalc.system import System

log = logging.getLogger(__name__)

# Å: structures with closer atoms take the plain path
SHORTEST = 0.5


class CloseAtomsTakePlain(nn.Module):
    """A lowered network, and the plain one for structures with atoms closer than it covers."""

    def __init__(self, fast: nn.Module, plain: nn.Module, shortest: float) -> None:
        super().__init__()
        self.fast, self.plain, self.shortest = fast, plain, shortest
        self.config = plain.config
        self.reads_charge, self.reads_spin = plain.reads_charge, plain.reads_spin

    def forward(self, graph: Graph) -> AtomOutputs:
        """As the plain network."""
        lengths = torch.linalg.vector_norm(graph.vectors.detach(), dim=1)
        if graph.n_edges and lengths.amin().item() < self.shortest:
            return self.plain(graph)
        return self.fast(graph)


def lower(potential: Potential) -> Potential:
    """A potential with the same numbers and faster, or `potential` itself.

    Args:
        potential: loaded for inference; its weights must not change any more, and no longer
            require gradients afterwards, since both share them.
    """
    if isinstance(potential, Committee):
        members = list(potential.members)
        lowered = [lower(member) for member in members]
        return potential if lowered == members else Committee(lowered)
    network = _lower_network(potential.network, potential.device)
    if network is None:
        return potential
    terms = potential.pair_terms
    if potential.device.type == "cpu":
        terms = nn.ModuleList(_lower_term(term) for term in terms)
    fast = with_modules(potential, network=network, pair_terms=terms).requires_grad_(False)
    try:
        error = disagreement(fast, potential)
    except Exception as reason:  # a compiler that fails must not take the model away
        log.warning("the fast path does not run here (%s): this model runs plainly", reason)
        return potential
    if not error <= ROUNDING[potential.dtype]:  # NaN too
        log.warning("the fast path is off by %.1e and is not used: this model runs plainly", error)
        return potential
    return fast


def _lower_network(network: nn.Module, device: torch.device) -> nn.Module | None:
    if isinstance(network, Equiformer):
        return frozen(network)
    if device.type != "cpu" or not isinstance(network, So3krates):
        return None
    if not has_numba():
        _say_once('numba is not installed, steps take longer: pip install "attncalc[fast]"')
    return CloseAtomsTakePlain(folded(network, SHORTEST), network, SHORTEST)


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)


@torch.no_grad()
def _lower_term(term: nn.Module) -> nn.Module:
    if isinstance(term, ZBLRepulsion) and term.config.cutoff_function == "physnet" and has_numba():
        return FrozenZBL(term, COULOMB_CONSTANT, SWITCH_OFF)
    return term


def disagreement(fast: Potential, plain: Potential) -> float:
    """Largest `deviation` of two potentials on clusters, a crystal and a close pair."""
    found = []
    for atoms in probes(plain.species):
        system = System.from_ase(atoms).to(plain.device)
        graph = fresh_graph(system, cutoff=plain.cutoff, species=plain.species)
        found.append(deviation(evaluate(fast, graph), evaluate(plain, graph)))
    return float(np.max(found))  # NaN if any is, unlike Python's max
