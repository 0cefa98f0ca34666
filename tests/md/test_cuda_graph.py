"""Recorded steps: the same run, at fixed addresses, and nobody waits for the device."""

from __future__ import annotations

import functools
import gc
import logging
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from again import Again
from ase import Atoms, units
from ase.build import bulk
from contract import ELEMENTS, ethanol
from states import assert_equal
from torch.utils._python_dispatch import TorchDispatchMode

import attncalc.potential as potential_module
from attncalc import System, load, md
from attncalc.evaluator import Evaluator
from attncalc.graph import AtomOutputs, Graph, Linearized
from attncalc.md import cuda_graph, fused_steps, noise
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.network import CompiledNetwork, by_autograd
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.ops import with_modules
from attncalc.potential import Potential
from attncalc.recording import WARM_UPS, CudaGraph, Function

FS = units.fs
LANGEVIN = md.Langevin(0.5 * FS, (300.0, 2500.0), 0.02 / FS)
HOT = replace(LANGEVIN, temperature=2500.0)
VERLET = md.Verlet(0.5 * FS)
BUSSI = md.Bussi(0.5 * FS, 2500.0, 10 * FS)
NPT = md.CellRescaling(
    timestep=2 * FS,
    temperature=2500.0,
    pressure=0.0,
    relaxation=50 * FS,
    cell_relaxation=50 * FS,
    compressibility=0.1 / units.GPa,
    isotropic=False,
)
COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"

# what has a host wait for a device, or makes a tensor there of Python's numbers (lift_fresh)
WAITS = (
    *("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "item"),
    *("_unique2", "bincount", "lift_fresh"),
)


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compiled for the CPU, which would round differently."""
    for module in (noise, fused_steps):
        monkeypatch.setattr(module, "cpu_loops", lambda _: None)
    monkeypatch.setattr(potential_module, "has_numba", lambda: False)
    monkeypatch.setattr("attncalc.evaluator.lower", lambda potential: potential)


@functools.cache
def potential_of(name: str) -> Potential:
    if name == "copper":
        return load(COPPER, dtype="float64")
    if not name.startswith(("small", "equiformer")):
        return load(name, dtype="float64")
    torch.manual_seed(0)
    if name.startswith("small"):
        options = {"num_features": 16, "num_layers": 1, "num_basis": 8}
        config = So3kratesConfig(4.0, 10.0, **options, predict_charges=name == "small-charges")
        return Potential(So3krates(config, len(ELEMENTS)), ELEMENTS).to(torch.float64)
    attention = name.removeprefix("equiformer-")
    options = {"channels": (16, 8, 8), "num_layers": 1, "head_features": 16}
    config = EquiformerConfig(4.0, 10.0, attention=attention, **options)
    return Potential(Equiformer(config, len(ELEMENTS)), ELEMENTS)


def forces_of(name: str, *, skin: float = 1.0) -> Evaluator:
    """On the CPU as on a GPU: lists of fixed length that nobody asks within a chunk."""
    forces = Evaluator(potential_of(name), skin=skin)
    forces.neighbors = replace(forces.neighbors, capacity=64)
    forces.checks_list_every_step = False
    return forces


class Counting:
    """Stands in for a CUDA graph, and counts how often something is recorded and replayed."""

    def __init__(self) -> None:
        self.n_recorded = self.n_replayed = 0

    def __call__(self, function: Function) -> Function:
        self.n_recorded += 1
        again = Again(function)

        def replay() -> None:
            self.n_replayed += 1
            again()

        return replay


def pair(shift: float = 6.0) -> Atoms:
    """Two ethanol molecules as one structure."""
    other = ethanol()
    other.positions += [shift, 0.0, 0.0]
    return ethanol() + other


def both(name: str, integrator, atoms, n: int, *, skin: float = 1.0, chunk: int = 20, **options):
    """The last state of a run that is recorded, and of one that is not; the recorder and forces."""
    states, counting = [], Counting()
    for recorder in (None, counting):
        forces = forces_of(name, skin=skin)
        forces.recorder = recorder
        first = integrator.init(forces, System.from_ase(atoms), seed=5, **options)
        states.append(md.run(integrator, forces, first, n, chunk=chunk))
    assert forces.recorder is counting
    return *states, counting, forces


# --------------------------------------------------------------------------------- the same run


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("integrator", [VERLET, LANGEVIN], ids=["verlet", "langevin"])
def test_the_same_bits_with_lists_that_end_and_chunks_thrown_away(integrator, fixed: bool) -> None:
    options = {"fixed": torch.arange(18) == 4} if fixed else {}
    if integrator is VERLET:
        options["temperature"] = 2500.0
    plain, ours, counting, forces = both(
        "small", integrator, [ethanol(), ethanol()], 30, skin=0.3, **options
    )
    assert_equal(ours, plain)
    assert forces.neighbors.n_rebuilds > 4
    assert counting.n_recorded == 1  # new lists stand where the first one stood
    assert counting.n_replayed > 30


@pytest.mark.parametrize("periodic", [False, True])
def test_committees_and_crystals(periodic: bool) -> None:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2) if periodic else ethanol()
    name = "copper" if periodic else "so3krates-ethanol-committee"
    plain, ours, counting, _ = both(name, HOT, atoms, 6, chunk=3)
    assert_equal(ours, plain)
    assert counting.n_replayed >= 6
    assert (ours.spread is None) == periodic


def test_charges_are_those_of_the_last_positions() -> None:
    plain, ours, counting, forces = both("small-charges", HOT, ethanol(), 6, chunk=3)
    assert_equal(ours, plain)
    assert counting.n_replayed >= 6
    assert torch.equal(ours.charges, forces(ours.system).charges)


@pytest.mark.parametrize("integrator", [BUSSI, NPT], ids=["bussi", "cell_rescaling"])
def test_thermostats_and_cells_that_change(integrator) -> None:
    """Cells and lists of a crystal, drift and rotation of a molecule: nobody waits."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2) if integrator is NPT else ethanol()
    name = "copper" if integrator is NPT else "small"
    plain, ours, counting, forces = both(name, integrator, atoms, 12, chunk=4, skin=0.3)
    assert_equal(ours, plain)
    assert counting.n_replayed >= 12
    forces.recorder, forces.recorded = Watched(), None
    first = integrator.init(forces, System.from_ase([atoms, atoms]))
    md.run(integrator, forces, first, 3, chunk=3)
    assert isinstance(forces.recorder, Watched), "a wait, see the log"


def test_a_longer_list_is_recorded_anew() -> None:
    states = []
    for recorder in (None, Counting()):
        forces = forces_of("small")
        forces.recorder = recorder
        first = VERLET.init(forces, System.from_ase(pair(12.0)), temperature=300.0)
        first = md.run(VERLET, forces, first, 6, chunk=3)
        small = forces.neighbors.capacity
        near = torch.tensor([[0.0, 0.0, 0.0]] * 9 + [[7.5, 0.0, 0.0]] * 9)
        last = md.run(
            VERLET, forces, first.with_positions(first.system.positions - near), 6, chunk=3
        )
        assert forces.neighbors.capacity > small
        states.append(last)
    assert_equal(*states)
    assert recorder.n_recorded == 2


def test_few_chunks_are_thrown_away_once_it_is_known_how_long_lists_hold() -> None:
    """Two hot molecules, whose list ends every few steps."""
    forces, counting = forces_of("small"), Counting()
    forces.recorder = counting
    first, n_steps = HOT.init(forces, System.from_ase([ethanol()] * 2), seed=5), 300
    md.run(HOT, forces, first, n_steps, chunk=20)
    assert forces.neighbors.n_rebuilds > 40
    # 5.3 times as many steps if nobody learns
    assert n_steps <= counting.n_replayed <= 1.5 * n_steps


class Tables:
    """An engine that has none for atoms closer than this, and says so by NaN.

    Args:
        plain: does all the work.
        shortest: Å.
    """

    defers = True

    def __init__(self, plain: Potential, shortest: float) -> None:
        self.plain, self.shortest = plain, shortest
        self.n_calls = self.n_refused = 0

    def linearize(self, graph: Graph) -> Linearized:
        outputs, pull = by_autograd(self.plain.network, graph)
        close = torch.linalg.vector_norm(graph.vectors, dim=1).amin() < self.shortest
        self.n_calls, self.n_refused = self.n_calls + 1, self.n_refused + int(close)
        return Linearized(AtomOutputs(torch.where(close, torch.nan, outputs.energies)), pull)


def test_a_chunk_that_an_engine_has_no_tables_for_is_done_again_step_by_step() -> None:
    states = []
    for tables in (None, Tables(potential_of("small"), 0.98)):  # for some of the steps
        forces = forces_of("small")
        forces.recorder = Again
        if tables is not None:
            network = CompiledNetwork(forces.potential.network, tables)
            forces.potential = with_modules(forces.potential, network=network)
        first = HOT.init(forces, System.from_ase(ethanol()), seed=5)
        states.append(md.run(HOT, forces, first, 40, chunk=10))
    assert_equal(*states)
    assert 0 < tables.n_refused < tables.n_calls / 2


def test_what_is_recorded_serves_other_runs_of_the_same_form() -> None:
    forces, counting = forces_of("small"), Counting()
    plain = forces_of("small")
    forces.recorder = counting
    for masses in (torch.arange(9) + 1.0, torch.arange(9) + 7.0):
        options = {"masses": masses, "replicas": masses[:1].long()}
        first = HOT.init(forces, System.from_ase(ethanol()), **options)
        expected = md.run(HOT, plain, first, 8, chunk=4)
        kept = first.system.positions.clone(), first.momenta.clone()
        assert_equal(md.run(HOT, forces, first, 8, chunk=4), expected)
        assert torch.equal(first.system.positions, kept[0])  # states stay what they are
        assert torch.equal(first.momenta, kept[1])
    assert counting.n_recorded == 1
    first = HOT.init(forces, System.from_ase(ethanol()), seed=9)
    assert_equal(md.run(HOT, forces, first, 8, chunk=4), md.run(HOT, plain, first, 8, chunk=4))
    assert counting.n_recorded == 2  # the seed is no tensor


def test_what_was_recorded_is_gone_before_something_else_is() -> None:
    """Without waiting for the garbage collector: two at a time may be too large for a GPU."""
    alive: list[weakref.ref[Again]] = []

    def recorder(function: Function) -> Function:
        assert all(one() is None for one in alive)
        again = Again(function)
        alive.append(weakref.ref(again))
        return again

    forces = forces_of("small")
    forces.recorder = recorder
    gc.disable()
    try:
        for seed in range(3):
            first = HOT.init(forces, System.from_ase(ethanol()), seed=seed)
            md.run(HOT, forces, first, 4, chunk=2)
    finally:
        gc.enable()
    assert forces.recorder is recorder
    assert len(alive) == 3


def test_states_between_chunks_stay() -> None:
    seen: list[md.MDState] = []

    class Keeper(md.Callback):
        every = 4

        def __call__(self, state) -> None:
            seen.append(state)

    forces = forces_of("small")
    forces.recorder = Again
    first = HOT.init(forces, System.from_ase(ethanol()))
    last = md.run(HOT, forces, first, 12, callbacks=[Keeper()])
    assert [state.step for state in seen] == [0, 4, 8, 12]
    assert_equal(seen[-1].as_first(), last)
    assert_equal(md.run(HOT, forces, seen[1], 8), last)


# ------------------------------------------------------------------------------- nobody waits


class Waiting(TorchDispatchMode):
    """Fails where an operation would have the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in WAITS or by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class Watched:
    """A recorder whose replays must not wait."""

    def __init__(self) -> None:
        self.n_replayed = 0

    def __call__(self, function: Function) -> Function:
        def replay() -> None:
            with Waiting():
                function()
            self.n_replayed += 1

        return replay


@pytest.mark.parametrize("integrator", [VERLET, LANGEVIN], ids=["verlet", "langevin"])
@pytest.mark.parametrize(
    "name",
    [
        "so3krates-ethanol",
        "so3krates-ethanol-committee",
        "equiformer-nonlinear",
        "equiformer-linear",
        "equiformer-dot",
    ],
)
def test_nothing_waits_within_a_chunk(name: str, integrator) -> None:
    forces = forces_of(name)
    forces.recorder = watched = Watched()
    batch = System.from_ase([ethanol(), ethanol()])
    first = integrator.init(forces, batch, fixed=torch.arange(18) == 4)
    md.run(integrator, forces, first, 3, chunk=3)
    assert forces.recorder is watched, "a wait, see the log"
    assert watched.n_replayed >= 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda result: float(result.energy[0]),
        lambda result: bool((result.energy > 0).any()),
        lambda result: result.forces[result.forces > 0],
        lambda result: result.energy.nonzero(),
        lambda result: torch.equal(result.energy, result.energy),
        lambda result: torch.tensor([1.0, 2.0]),
    ],
)
def test_a_wait_would_be_seen(
    wait, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forces = forces_of("small")
    evaluate = forces.without_check

    def waiting(system):
        result, may_miss = evaluate(system)
        wait(result)
        return result, may_miss

    monkeypatch.setattr(forces, "without_check", waiting)
    forces.recorder = Watched()
    first = VERLET.init(forces, System.from_ase(ethanol()))
    md.run(VERLET, forces, first, 4)
    assert forces.recorder is None
    assert "waits for the device" in caplog.text


# ------------------------------------------------------------------------ where it does not work


def refuses(function: Function) -> Function:
    raise RuntimeError("operation not permitted when stream is capturing")


def forgets_the_number(function: Function) -> Function:
    """As if the number of the step were part of the recording."""

    def replay() -> None:
        buffers = function.__self__
        number = buffers.number.clone()
        function()
        buffers.number.copy_(number)

    return replay


def does_nothing(function: Function) -> Function:
    return lambda: None


@pytest.mark.parametrize("recorder", [refuses, forgets_the_number, does_nothing])
def test_a_recording_that_fails_or_is_wrong_takes_no_run_away(
    recorder, caplog: pytest.LogCaptureFixture
) -> None:
    forces, plain = forces_of("small"), forces_of("small")
    forces.recorder = recorder
    first = HOT.init(forces, System.from_ase(ethanol()))
    with caplog.at_level(logging.WARNING):
        last = md.run(HOT, forces, first, 20, chunk=5)
    assert_equal(last, md.run(HOT, plain, first, 20, chunk=5))
    assert [r.message for r in caplog.records if r.name == cuda_graph.__name__] == [
        caplog.messages[0]
    ]
    assert "steps are not recorded here" in caplog.messages[0]
    assert forces.recorder is None


@pytest.mark.parametrize(("per_atom", "accepted"), [(0.5e-8, True), (2e-8, False)])
def test_rounding_adds_up_over_the_atoms(per_atom: float, accepted: bool) -> None:
    """Energies of nine atoms that are off by what each may be, and by more."""

    def rounds(function: Function) -> Function:
        def replay() -> None:
            function()
            function.__self__.state.energy.add_(9 * per_atom)

        return replay

    forces = forces_of("small")
    forces.recorder = rounds
    first = VERLET.init(forces, System.from_ase(ethanol()))
    assert first.forces.abs().amax() < 1.5
    md.run(VERLET, forces, first, 4, chunk=2)
    assert (forces.recorder is rounds) == accepted


def test_on_a_cpu_nothing_is_recorded() -> None:
    forces = Evaluator(potential_of("small"))
    first = VERLET.init(forces, System.from_ase(ethanol()))
    md.run(VERLET, forces, first, 4)
    assert forces.recorder is None
    assert forces.recorded is None


# ------------------------------------------------------------------------------------ CUDA itself


def test_a_cuda_graph_warms_up_on_another_stream_then_captures_then_replays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def on(what: Stream | Graph, stream: Stream | None = None):
        name = what.name if isinstance(what, Stream) else f"capture on {stream.name}"
        events.append(f"begin {name}")
        yield
        events.append(f"end {name}")

    main = Stream("main")
    for name, value in {
        "Stream": Stream,
        "current_stream": lambda: main,
        "stream": on,
        "graph": on,
        "CUDAGraph": Graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    replayed = CudaGraph(lambda: events.append("step"))
    assert events == [
        *("side waits for main", "begin side", *["step"] * WARM_UPS, "end side"),
        *("main waits for side", "begin main", "begin capture on side", "step"),
        *("end capture on side", "end main"),
    ]
    events.clear()
    replayed()
    replayed()
    assert events == ["replay", "replay"]
