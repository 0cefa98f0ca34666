"""Lowering of a loaded potential for inference, and the check that its results do not change.

The fast path is chosen by device and dtype, never by the user. If the check fails, or if there is
no faster form of a network, the plain path runs.

An engine on a CPU that was checked serves all potentials of the same content in a process: making
and checking one takes up to a second, and its tables take up to 50 MB.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import itertools
import logging
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import nn

from attncalc.compiled import has_numba, has_triton
from attncalc.kernels.frozen_equiformer import frozen
from attncalc.kernels.frozen_long_range import Constants, FrozenLongRange
from attncalc.kernels.frozen_zbl import FrozenZBL
from attncalc.kernels.simd.lanes import LANES
from attncalc.nn.equiformer import Equiformer
from attncalc.nn.network import CompiledNetwork
from attncalc.nn.so3krates import So3krates
from attncalc.ops import with_modules
from attncalc.physics import dispersion
from attncalc.physics.dispersion import Dispersion
from attncalc.physics.electrostatics import DampedElectrostatics
from attncalc.physics.zbl import COULOMB_CONSTANT, SWITCH_OFF, ZBLRepulsion
from attncalc.potential import Committee, Potential, evaluate
from attncalc.result import ROUNDING, deviation
from attncalc.sample_structures import pairs, sample_structures
from attncalc.structures import fresh_graphs
from attncalc.system import System

log = logging.getLogger(__name__)

# Å: structures with closer atoms take the plain path
SHORTEST = 0.5
# Å, limits of distances at which pairs are tested; from COVERED on they are beyond SHORTEST
CLOSE, COVERED, BONDED = 0.4, 0.51, 1.0
# Å: pairs of a crystal grow with the cube of the range
LONGEST_IN_CRYSTAL = 50.0
# clusters tested at once on a GPU: engines use other programs for many atoms than for few
MANY = 200
# modules with `can_run` and `Engine`
_ENGINES: dict[str, dict[type, str]] = {
    "cpu": {
        So3krates: "attncalc.kernels.so3krates.engine",
        Equiformer: "attncalc.kernels.equiformer.engine",
    },
    "cuda": {
        So3krates: "attncalc.kernels.so3krates_gpu.engine",
    },
}


def lower(potential: Potential) -> Potential:
    """Return a faster potential with the same results, or `potential` itself.

    Args:
        potential: loaded for inference. The two share the weights, which must not change any more
            and no longer require gradients.
    """
    if len(potential.members) > 1:
        lowered = [lower(member) for member in potential.members]
        if lowered == potential.members:
            return potential
        return Committee(lowered, training=potential.training_info)
    ways = [(_unchanged, "this model runs plainly")]
    if len(potential.pair_terms):  # if a term fails, the network's engine is still used
        ways = [(_with_lowered_terms, "its pair terms run plainly"), *ways]
    content = _content(potential)
    for finish, _ in ways:
        if content is not None and (engine := _checked((content, finish))) is not None:
            return _lowered(finish(_with_network(potential, engine)), potential)
    for make, (finish, instead) in itertools.product((_with_engine, _with_fast_network), ways):
        try:
            made = make(potential)
            if made is None:
                continue
            fast = finish(made)
            error = disagreement(fast, potential)
            if not error <= ROUNDING[potential.dtype]:  # it may be rounding of the plain path
                error = disagreement(fast, _in_float64(potential))
        except Exception as reason:  # a compiler that fails must not make the model unusable
            log.warning("the fast path does not run here (%s): %s", reason, instead)
            continue
        if error <= ROUNDING[potential.dtype]:
            fast = _in_threads(fast, potential)
            made_now: Any = getattr(fast.network, "engine", None)
            works = hasattr(made_now, "shared_by") and made_now.threads == potential.threads
            if content is not None and works:
                _keep((content, finish), made_now)
            return _lowered(fast, potential)
        # NaN comes here too
        log.warning("the fast path is off by %.1e and is not used: %s", error, instead)
    return potential


def unfit_widths(network: nn.Module) -> str:
    """Name the widths of a network that keep its steps from being compiled on a CPU, "" for none.

    Vectors have 16 numbers.
    """
    name = _ENGINES["cpu"].get(type(network))
    if name is None or not has_numba():
        return ""
    widths: Any = getattr(importlib.import_module(name), "widths", lambda network: {})
    return ", ".join(f"{width} = {n}" for width, n in widths(network).items() if n % LANES)


def _lowered(fast: Potential, potential: Potential) -> Potential:
    vars(fast)["_lowered_from"] = (potential,)  # as an attribute it would be a part of the module
    return fast


def uncompiled(potential: Potential) -> Potential:
    """Return the potential that was lowered, or one without engines; it shares the weights."""
    potential = potential.lowered_from
    if len(potential.members) > 1:
        plain = [uncompiled(member) for member in potential.members]
        if plain == potential.members:
            return potential
        return with_modules(potential, members=nn.ModuleList(plain))
    network = potential.network
    if not isinstance(network, CompiledNetwork):
        return potential
    return with_modules(potential, network=network.network)


def _in_threads(fast: Potential, potential: Potential) -> Potential:
    """Return `fast` with an engine that uses `potential.threads` threads, if that works."""
    engine: Any = getattr(fast.network, "engine", None)
    if potential.threads == 1 or not hasattr(engine, "shared_by"):
        return fast
    try:
        # test structures are small: divide the work however little there is
        shared = _with_network(fast, engine.shared_by(potential.threads, fewest=1))
        error = disagreement(shared, fast)
    except Exception as reason:
        log.warning("threads do not work here (%s): one is taken", reason)
        return fast
    if not error <= ROUNDING[potential.dtype]:  # NaN comes here too
        log.warning("in %d threads results are off by %.1e: one is taken", potential.threads, error)
        return fast
    return _with_network(fast, engine.shared_by(potential.threads))


def _with_network(potential: Potential, engine: Any) -> Potential:
    """Return the potential with this engine in place of that of its network, if it has one."""
    network = potential.network
    plain = network.network if isinstance(network, CompiledNetwork) else network
    return with_modules(potential, network=CompiledNetwork(plain, engine)).requires_grad_(False)


# engines on a CPU that were checked, by content of their potential and treatment of its terms; the
# one used last is the last one
_CHECKED: dict[tuple[bytes, Any], Any] = {}
_MOST_CHECKED = 4
_CHANGES = threading.Lock()


def _checked(key: tuple[bytes, Any]) -> Any | None:
    """Return an engine that was checked, with working space of its own."""
    with _CHANGES:
        if (engine := _CHECKED.pop(key, None)) is None:
            return None
        _CHECKED[key] = engine
    return engine.shared_by(engine.threads)


def _keep(key: tuple[bytes, Any], engine: Any) -> None:
    """Let an engine serve later potentials of the same content, without its working space."""
    with _CHANGES:
        _CHECKED[key] = engine.shared_by(engine.threads)
        for oldest in list(_CHECKED)[:-_MOST_CHECKED]:
            del _CHECKED[oldest]


def _content(potential: Potential) -> bytes | None:
    """Return a digest of all that decides about the engine of a potential and its check.

    None on a GPU, whose memory is freed with the last potential, and for parts without a `config`.
    """
    modules = [potential.network, *potential.pair_terms]
    if potential.device.type != "cpu" or not all(hasattr(module, "config") for module in modules):
        return None
    known = [(type(module), module.config) for module in modules]
    digest = hashlib.sha256(repr((known, potential.species, potential.threads)).encode())
    for name, tensor in [*potential.named_parameters(), *potential.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.digest()


def _in_float64(potential: Potential) -> Potential:
    """Return a copy whose network computes in float64."""
    exact = copy.deepcopy(potential)
    exact.set_dtype(torch.float64)
    return exact


def _with_engine(potential: Potential, device: str | None = None) -> Potential | None:
    """Return the potential with an engine for its device, or the one named; None without one."""
    device = device or potential.device.type
    name = _ENGINES.get(device, {}).get(type(potential.network))
    if name is None:
        return None
    if device == "cpu" and not has_numba():
        _log_once("numba does not run here, steps take longer: pip install --upgrade numba")
        return None
    if device == "cuda" and not has_triton():
        _log_once("triton is not installed, steps take longer: pip install triton")
        return None
    module = importlib.import_module(name)  # needs numba or triton
    if not module.can_run(potential.network):
        return None
    return _with_network(potential, module.Engine(potential.network, SHORTEST))


def _with_fast_network(potential: Potential) -> Potential | None:
    """Return the potential with faster modules in its network, still differentiated by autograd."""
    network = _lower_network(potential.network)
    if network is None:
        return None
    return with_modules(potential, network=network).requires_grad_(False)


def _with_lowered_terms(potential: Potential, device: str | None = None) -> Potential:
    """Return the potential with faster pair terms for its device, or the one named."""
    terms = _lower_terms(potential.pair_terms, device or potential.device.type)
    return with_modules(potential, pair_terms=nn.ModuleList(terms)).requires_grad_(False)


def _unchanged(potential: Potential) -> Potential:
    return potential


def _lower_network(network: nn.Module) -> nn.Module | None:
    return frozen(network) if isinstance(network, Equiformer) else None


@functools.cache
def _log_once(message: str) -> None:
    log.warning(message)


def _has_slopes(term: nn.Module) -> bool:
    """Return True if a pair term is a repulsion whose value and slope are written out."""
    return isinstance(term, ZBLRepulsion) and term.config.cutoff_function == "physnet"


@torch.no_grad()
def _lower_terms(given: Iterable[Any], device: str) -> list[nn.Module]:
    """Return pair terms in closed form where there is one; terms of equal range are merged."""
    repulsion, long_range = _closed_forms(device)
    terms = list(given)
    lowered: list[nn.Module] = []
    while terms:
        term = terms.pop(0)
        if repulsion is not None and _has_slopes(term):
            lowered.append(repulsion(term, COULOMB_CONSTANT, SWITCH_OFF))
        elif long_range is not None and type(term) in _LONG_RANGE:
            partner = next((other for other in terms if _share_a_loop(term, other)), None)
            if partner is not None:
                terms.remove(partner)
            of_kind = {type(one): one for one in (term, partner)}
            electric, dispersive = (of_kind.get(kind) for kind in _LONG_RANGE)
            lowered.append(long_range(electric, dispersive, _CONSTANTS))
        else:
            lowered.append(term)
    return lowered


def _closed_forms(device: str) -> tuple[Any, Any]:
    """Return the classes for nuclear repulsion and for terms of longer range, None without one."""
    if device == "cpu" and has_numba():
        return FrozenZBL, FrozenLongRange
    if device == "cuda" and has_triton():
        from attncalc.kernels.gpu.long_range import GPUFrozenLongRange  # need triton
        from attncalc.kernels.gpu.zbl import GPUFrozenZBL

        return GPUFrozenZBL, GPUFrozenLongRange
    return None, None


_LONG_RANGE = (DampedElectrostatics, Dispersion)
_CONSTANTS = Constants(
    coulomb=COULOMB_CONSTANT,
    hartree=dispersion.HARTREE,
    bohr=dispersion.BOHR,
    radius=dispersion.RADIUS,
    width=dispersion.WIDTH,
    damping_radius=dispersion.DAMPING_RADIUS,
)


def _share_a_loop(one: Any, other: Any) -> bool:
    """Return True for electrostatics and dispersion of equal range."""
    if type(other) not in _LONG_RANGE or type(other) is type(one):
        return False
    ranges = [(term.config.cutoff, term.config.all_pairs_in_molecules) for term in (one, other)]
    return ranges[0] == ranges[1]


def disagreement(fast: Potential, plain: Potential) -> float:
    """Largest `deviation` of two potentials on clusters, a crystal and pairs at all distances."""
    found: list[float] = []
    far = (plain.long_range or 0) > LONGEST_IN_CRYSTAL
    for atoms in _tried(plain.species, plain.cutoff, plain.device.type):
        if far and any(one.pbc.any() for one in atoms):
            continue
        system = System.from_ase(atoms).to(plain.device)
        graphs = fresh_graphs(plain, system)
        found.append(deviation(evaluate(fast, graphs), evaluate(plain, graphs), system.system_idx))
    return float(np.max(found))  # NaN if any is, unlike Python's max


def _tried(species: tuple[int, ...], cutoff: float, device: str) -> list[list[Atoms]]:
    """Return batches of structures on which a fast path is tested on such a device."""
    single = sample_structures(species)
    # pairs in batches by distance: large forces of close pairs would hide errors of the others, and
    # one pair closer than SHORTEST makes its whole batch take the plain path
    limits = ((CLOSE, SHORTEST), (COVERED, BONDED), (BONDED, cutoff + 0.1))
    tried = [*([one] for one in single), *(pairs(species, *ends) for ends in limits)]
    return [*tried, MANY * single[:1]] if device == "cuda" else tried
