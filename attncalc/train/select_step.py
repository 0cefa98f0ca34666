"""Selection of the training step: an eager one at once, and a compiled one to switch to."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from attncalc.graph import Graph
from attncalc.kernels.collocation import collocated
from attncalc.nn.equiformer import Equiformer
from attncalc.nn.so3krates import So3krates
from attncalc.nn.so3krates_sphc import So3kratesSphc
from attncalc.ops import with_modules
from attncalc.potential import Potential
from attncalc.train.batches import join
from attncalc.train.compilation import Compilation, compiled_step
from attncalc.train.recipe import Recipe
from attncalc.train.step import (
    Batch,
    Loss,
    Step,
    eager_step,
    relative_error,
)

log = logging.getLogger(__name__)

# below this many steps a run is over soon after the compiled step is ready: compiling takes one to
# four minutes of another core; for Equiformer, whose steps are longer, up to nine against the 80 ms
# that each of its smallest steps gains with AVX-512 (21 with AVX2, where steps take longer)
STEPS_WORTH_COMPILING, OF_EQUIFORMER = 20_000, 6_000
# largest relative error of a fast step's gradient, for labels far from the predictions
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
# eV per atom, eV/Å, eV/Å³: distance of these labels
DISTANCE_OF_LABELS = 1.0
# Å: collocation holds from here on; shorter distances need the plain radial networks
SHORTEST_COLLOCATED = 0.6


def select_step(
    potential: Potential,
    weights: Loss,
    batches: list[Batch],
    recipe: Recipe,
    *,
    shortest: float,
    n_steps: int,
) -> tuple[Step, Compilation | None]:
    """Select the eager step to begin with and, where it pays, the compiled one to switch to.

    A faster step is used only if it reproduces the gradient of the plain step.

    Args:
        potential: potential to train; its parameters are read at every step.
        weights: weights of the loss.
        batches: one training structure each; the first `recipe.batch_size` are tried.
        recipe: states whether to compile.
        shortest: shortest distance in the data, Å.
        n_steps: number of steps of the whole run.

    Returns:
        The eager step, and the compilation of a faster one, not started yet; None if compiling does
        not pay or is not possible.
    """
    plain = eager_step(potential, weights)
    # unequal sizes first: the compiler, too, treats equal sizes in its first batch as one size
    tried = (unequal_sizes(batches), join(batches[: recipe.batch_size]))
    examples = [with_distant_labels(batch, weights) for batch in tried]
    fast = with_modules(potential, network=_faster_network(potential.network, shortest))
    proved = partial(_proved, plain=plain, examples=examples, dtype=potential.dtype)
    step: Step | None = None
    if fast.network is not potential.network:
        step = proved("eager", lambda: eager_step(fast, weights))
    compilation = None
    is_worth_it = _worth_compiling(fast.network, recipe, n_steps)
    # the choice of reciprocal vectors depends on values, which a trace does not see
    if is_worth_it and not potential.reads_system and _can_be_traced(fast.network, batches, recipe):
        make = partial(proved, "compiled", lambda: compiled_step(fast, weights, examples))
        compilation = Compilation(make, fast, weights, examples)
    return step or plain, compilation


def _proved(
    name: str,
    make: Callable[[], Step],
    *,
    plain: Step,
    examples: Sequence[Batch],
    dtype: torch.dtype,
) -> Step | None:
    """Return the step if it reproduces the plain gradient; else warn and return None."""
    try:
        step = make()
        error = max(relative_error(step, plain, example) for example in examples)
    except (RuntimeError, OSError) as failure:  # a compiler has many ways to fail
        reason = str(failure).partition("\n")[0]
        log.warning("%s training step cannot be made and is not used (%s)", name, reason)
        return None
    if not error < TOLERANCE[dtype]:  # NaN comes here too
        log.warning("%s training step deviates by %.1e and is not used", name, error)
        return None
    log.info("%s training step: gradient within %.1e of double backward", name, error)
    return step


def with_distant_labels(batch: Batch, weights: Loss) -> Batch:
    """Return the batch with labels far from any prediction, for comparisons of gradients.

    The gradient of a norm depends on the directions of the force errors. If a network is accurate,
    these errors are small and their directions mostly rounding. Two correct steps then differ by
    1e-3 of the gradient, which is itself small. With labels that are off by a constant, they differ
    by 1e-6 at any stage.
    """
    random = torch.Generator().manual_seed(0)

    def moved(labels: torch.Tensor) -> torch.Tensor:
        off = torch.randn(labels.shape, generator=random, dtype=labels.dtype)
        return labels + DISTANCE_OF_LABELS * off.to(labels.device)

    n_atoms = torch.bincount(batch.graph.system_idx, minlength=batch.graph.n_systems)
    more: dict[str, Any] = {label: moved(getattr(batch, label)) for label in weights.of_outputs}
    return dataclasses.replace(
        batch,
        energy=batch.energy + DISTANCE_OF_LABELS * n_atoms,
        forces=moved(batch.forces),
        stress=moved(batch.stress) if weights.stress else batch.stress,
        **more,
    )


def _faster_network(network: Any, shortest: float) -> nn.Module:
    """Return a network with the same values and cheaper gradients, or the network itself."""
    if not isinstance(network, So3krates):
        return network
    if shortest > SHORTEST_COLLOCATED:
        return collocated(network, SHORTEST_COLLOCATED)
    log.info("shortest distance %.2f Å: radial networks are evaluated pair by pair", shortest)
    return network


def _can_be_traced(network: Any, batches: list[Batch], recipe: Recipe) -> bool:
    """Return True if a trace of one batch is valid for all batches."""
    if isinstance(network, So3kratesSphc):
        # the choice of far pairs depends on values, which a trace does not see
        return network.config.nonlocal_attention == "none"
    if isinstance(network, Equiformer):  # which sums are done in chunks depends on the sizes
        largest = sorted((batch.graph.n_edges for batch in batches), reverse=True)
        return not network.needs_chunks(recipe.batch_edges or sum(largest[: recipe.batch_size]))
    return True


def unequal_sizes(batches: list[Batch]) -> Batch:
    """Return a batch in which no two sizes (systems, atoms, edges, pairs, ...) agree.

    A trace treats equal sizes as one size. Masked edges are added to a long graph until its sizes
    are unique: long graphs of small molecules have no pair beyond the short cutoff.
    """
    for n in range(7, max(8, len(batches))):
        example = join([batches[k % len(batches)] for k in range(n)])
        graph = example.graph
        n_pairs = len(graph.pairs)
        sizes = {graph.n_systems, graph.n_atoms, graph.n_edges, n_pairs}
        if len(sizes) == 4 and 2 * n_pairs == graph.n_edges:
            break
    else:
        example = join([batches[k % len(batches)] for k in range(7)])
        graph = example.graph
        sizes = {graph.n_systems, graph.n_atoms, graph.n_edges, len(graph.pairs)}
    far = example.long
    while far is not None and sizes & {far.n_edges, len(far.pairs), 2 * len(far.pairs)}:
        far = _with_masked_pair(far)
    return dataclasses.replace(example, long=far)


def _with_masked_pair(graph: Graph) -> Graph:
    """Return a graph with one more pair, which is masked."""
    last = graph.receivers[-1:]
    none = torch.zeros(2, dtype=torch.bool, device=last.device)
    return dataclasses.replace(
        graph,
        vectors=torch.cat([graph.vectors, graph.vectors.new_ones(2, 3)]),
        receivers=torch.cat([graph.receivers, last, last]),
        senders=torch.cat([graph.senders, last, last]),
        edge_mask=torch.cat([graph.edge_mask, none]),
        pairs=torch.cat([graph.pairs, graph.pairs.new_full((1,), graph.n_edges)]),
        order=None,
    )


def _worth_compiling(network: Any, recipe: Recipe, n_steps: int) -> bool:
    fewest = OF_EQUIFORMER if isinstance(network, Equiformer) else STEPS_WORTH_COMPILING
    if recipe.compile == "never" or (recipe.compile == "auto" and n_steps < fewest):
        return False
    if shutil.which(compiler := _cpp_compiler()) is None:
        log.warning(
            "no C++ compiler (%s) found: training runs uncompiled, about half as fast; install it, "
            "or set the environment variable CXX to another one",
            compiler,
        )
        return False
    return True


def _cpp_compiler() -> str:
    """Return the compiler that PyTorch calls, as `torch._inductor.config.cpp.cxx` has it."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
