"""Which training step a run uses: the fastest one whose gradient is the plain one's."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from attncalc.kernels.collocation import collocated
from attncalc.nn.equiformer import Equiformer
from attncalc.nn.so3krates import So3krates
from attncalc.nn.so3krates_sphc import So3kratesSphc
from attncalc.potential import Potential
from attncalc.train.batches import join
from attncalc.train.recipe import Recipe
from attncalc.train.step import (
    Batch,
    Loss,
    Step,
    compiled,
    eager_step,
    relative_error,
    trace,
    traced_step,
    with_network,
)

log = logging.getLogger(__name__)

# below this many steps, compiling costs more than it saves: one to four minutes; for Equiformer,
# whose steps are longer, up to nine against the 80 ms that each of its smallest steps gains with
# AVX-512; with AVX2, where steps take longer, 21 were seen
STEPS_WORTH_COMPILING, OF_EQUIFORMER = 20_000, 6_000
# relative error of a fast step's gradient: float32 double backward itself reaches 1e-5
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-5}
# relative error that is never put down to rounding
MOST_ROUNDING = 0.05
# Å: collocation holds from here on; shorter distances need the plain radial networks
SHORTEST_COLLOCATED = 0.6


def fastest_step(
    potential: Potential,
    weights: Loss,
    batches: list[Batch],
    recipe: Recipe,
    *,
    shortest: float,
    n_steps: int,
) -> Step:
    """Make the fast steps that suit the run and return the first that agrees with the plain one.

    Args:
        potential: its parameters are read at every step.
        weights: of the loss.
        batches: the training structures, one each; the first `recipe.batch_size` are the probe.
        recipe: says whether to compile.
        shortest: Å, the shortest distance in the data.
        n_steps: of the whole run.
    """
    plain = eager_step(potential, weights)
    # unequal sizes first: the compiler, too, takes equal ones of its first batch for the same
    probes = (unequal_sizes(batches), join(batches[: recipe.batch_size]))
    fast = with_network(potential, _faster_network(potential.network, shortest))
    candidates: dict[str, Callable[[], Step]] = {}
    if fast.network is not potential.network:
        candidates["eager"] = lambda: eager_step(fast, weights)
    is_worth_it = _worth_compiling(fast.network, recipe, n_steps)
    if is_worth_it and _can_be_traced(fast.network, batches, recipe):
        graph = partial(trace, fast, weights, probes[0])
        candidates = {"compiled": lambda: traced_step(fast, compiled(graph())), **candidates}
    for name, make in candidates.items():
        try:
            step = make()
            error = max(relative_error(step, plain, probe) for probe in probes)
        except RuntimeError as failure:  # a compiler has many ways to fail
            reason = str(failure).partition("\n")[0]
            log.warning("%s training step cannot be made: not used (%s)", name, reason)
            continue
        log.info("%s training step: gradient within %.1e of double backward", name, error)
        # only near the end of a training, or where one starts from a good model, is that too much
        if error < TOLERANCE[potential.dtype] or _only_rounds(step, potential, weights, probes):
            return step
        log.warning("%s training step is off by %.1e: not used", name, error)
    return plain


def _faster_network(network: Any, shortest: float) -> nn.Module:
    """The same function with less work for its gradients, or the network itself."""
    if not isinstance(network, So3krates):
        return network
    if shortest > SHORTEST_COLLOCATED:
        return collocated(network, SHORTEST_COLLOCATED)
    log.info("shortest distance %.2f Å: radial networks are evaluated pair by pair", shortest)
    return network


def _only_rounds(step: Step, potential: Potential, weights: Loss, probes: Sequence[Batch]) -> bool:
    """Whether a step is as close to the gradient in float64 as the plain one, within a factor of 2.

    Where errors of forces are small, their directions, which are the gradient of a norm, are
    mostly rounding, in every step.
    """
    if potential.dtype == torch.float64:
        return False
    exact = copy.deepcopy(potential)
    exact.compute_in(torch.float64)
    definition = eager_step(exact, weights)
    off, plainly_off = (
        max(relative_error(one, definition, probe) for probe in probes)
        for one in (step, eager_step(potential, weights))
    )
    return off <= min(2 * plainly_off, MOST_ROUNDING)


def _can_be_traced(network: Any, batches: list[Batch], recipe: Recipe) -> bool:
    """Whether a trace of one batch holds for all."""
    if isinstance(network, So3kratesSphc):
        # which pairs are far is decided by numbers, which a trace does not see
        return network.config.nonlocal_attention == "none"
    if isinstance(network, Equiformer):  # which sums are done in chunks depends on the sizes
        largest = sorted((batch.graph.n_edges for batch in batches), reverse=True)
        return not network.needs_chunks(recipe.batch_edges or sum(largest[: recipe.batch_size]))
    return True


def unequal_sizes(batches: list[Batch]) -> Batch:
    """A batch in which no two sizes (systems, atoms, edges, pairs, ...) agree.

    The trace would take equal sizes for the same size.
    """
    for n in range(7, max(8, len(batches))):
        example = join([batches[k % len(batches)] for k in range(n)])
        graph = example.graph
        n_pairs = len(graph.pairs)
        sizes = (graph.n_systems, graph.n_atoms, graph.n_edges, n_pairs)
        if len(set(sizes)) == 4 and 2 * n_pairs == graph.n_edges:
            return example
    return join([batches[k % len(batches)] for k in range(7)])


def _worth_compiling(network: Any, recipe: Recipe, n_steps: int) -> bool:
    fewest = OF_EQUIFORMER if isinstance(network, Equiformer) else STEPS_WORTH_COMPILING
    if recipe.compile == "never" or (recipe.compile == "auto" and n_steps < fewest):
        return False
    if shutil.which("g++") is None:
        log.warning("no C++ compiler (g++) found: training runs uncompiled, about half as fast")
        return False
    return True
