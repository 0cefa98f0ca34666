"""Lowering: the same numbers, proven before the first step; otherwise the plain path."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from contract import ELEMENTS, build_graph, randomise
from torch import nn

from attncalc import AttnCalculator, load
from attncalc import fast as module
from attncalc.fast import SHORTEST, disagreement, lower, unfit_widths
from attncalc.graph import AtomOutputs, Graph
from attncalc.nn.equiformer import Equiformer
from attncalc.nn.equiformer_config import EquiformerConfig
from attncalc.nn.network import CompiledNetwork
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.ops import with_modules
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential, evaluate
from attncalc.result import ROUNDING, Result, deviation
from attncalc.sample_structures import pairs, sample_structures
from attncalc.system import System

COPPER = Path(__file__).parent / "models" / "cu-emt.safetensors"
SHIPPED = ["so3krates-ethanol", COPPER]


@pytest.fixture(autouse=True)
def _nothing_checked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECKED", {})


def random_potential(**options) -> Potential:
    config = So3kratesConfig(
        cutoff=4.0,
        avg_num_neighbors=10.0,
        num_features=16,
        num_heads=2,
        degrees=(1, 2),
        num_layers=2,
        num_basis=16,
        head_features=8,
    )
    torch.manual_seed(0)
    network = So3krates(config, len(ELEMENTS)).double()
    randomise(network)
    return Potential(network, ELEMENTS, **options).requires_grad_(False)


def both(fast: Potential, plain: Potential, atoms: Atoms | list[Atoms]):
    graph = build_graph(plain, System.from_ase(atoms))
    return evaluate(fast, graph), evaluate(plain, graph)


@pytest.mark.parametrize("model", SHIPPED, ids=["ethanol", "copper"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_shipped_models_are_lowered(model: str | Path, dtype: str, tolerance: float) -> None:
    plain = load(model, dtype=dtype)
    fast = lower(plain)
    if dtype == "float64" or model == COPPER:  # whose widths do not fill the vectors
        assert fast is plain
        return
    assert fast.network.engine is not None
    assert fast.network.network is plain.network
    assert fast.species == plain.species
    assert (fast.cutoff, fast.dtype, fast.device) == (plain.cutoff, plain.dtype, plain.device)
    assert 0 < disagreement(fast, plain) <= tolerance


def test_lowering_leaves_the_potential_alone() -> None:
    plain = load("so3krates-ethanol", device="cpu")
    network, state = plain.network, copy.deepcopy(plain.state_dict())
    lower(plain)
    assert plain.network is network
    assert isinstance(network, So3krates)
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


# -------------------------------------------------------------------- fast paths that are refused


class Broken(nn.Module):
    """Energies times a number."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.config, self.factor = network, network.config, factor

    def forward(self, graph: Graph) -> AtomOutputs:
        return AtomOutputs(self.factor * self.network(graph).energies)


@pytest.mark.parametrize("factor", [1 + 1e-6, 1.5, float("nan"), float("inf")])
def test_a_broken_fast_path_is_not_used(
    factor: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_lower_network", lambda network: Broken(network, factor))
    plain = random_potential()
    with caplog.at_level(logging.WARNING, logger="attncalc.fast"):
        assert lower(plain) is plain
    message = caplog.records[-1].getMessage()
    assert message.startswith("the fast path is off by ")
    assert message.endswith("and is not used: this model runs plainly")


def test_a_sound_fast_path_is_used_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_lower_network", lambda network: Broken(network, 1 + 1e-10))
    with caplog.at_level(logging.WARNING, logger="attncalc.fast"):
        fast = lower(random_potential())
    assert isinstance(fast.network, Broken)
    assert "off by" not in caplog.text


def test_networks_without_a_fast_path_run_plainly() -> None:
    plain = random_potential()
    other = Potential(Broken(plain.network, 1.0), ELEMENTS)
    assert lower(other) is other


def test_widths_that_keep_steps_from_being_compiled_are_named() -> None:
    assert unfit_widths(load("so3krates-ethanol").network) == ""
    assert unfit_widths(load("equiformer-ethanol-distilled").network) == ""
    named = "num_features / num_heads = 8, num_features / number of degrees = 8, num_features / 4 ="
    assert unfit_widths(random_potential().network).startswith(named)
    other = Equiformer(EquiformerConfig(4.0, 10.0, channels=(24, 16), num_layers=1, num_basis=4), 3)
    assert unfit_widths(other) == "channels of degree 0 = 24"


def test_disagreement_is_the_worst_of_all_probes() -> None:
    plain = random_potential()
    off = with_modules(plain, network=Broken(plain.network, 1.25))
    ends = ((0.4, 0.5), (0.51, 1.0), (1.0, 4.1))
    each = [
        # energies, forces and strain: a quarter more
        deviation(*both(off, plain, atoms), System.from_ase(atoms).system_idx)
        for atoms in [*sample_structures(plain.species), *(pairs(ELEMENTS, *of) for of in ends)]
    ]
    assert disagreement(off, plain) == max(each) >= 0.25 * (1 - 1e-9)
    assert disagreement(plain, plain) == 0.0


@pytest.mark.parametrize("place", [0, 1, -1])
def test_one_probe_that_gives_no_number_is_a_disagreement(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = random_potential()
    errors = [1e-9] * len(module._tried(plain.species, plain.cutoff, "cpu"))
    errors[place] = np.nan
    monkeypatch.setattr(module, "deviation", lambda *_: errors.pop(0))
    assert np.isnan(disagreement(plain, plain))


def test_pairs_of_every_element_are_tried_up_to_the_cutoff() -> None:
    """None so close that the plain path takes its whole batch, but those meant for it."""
    lengths: dict[int, list[float]] = {z: [] for z in ELEMENTS}
    for batch in module._tried(ELEMENTS, 4.0, "cpu"):
        of_pairs = [atoms.get_distance(0, 1) for atoms in batch if len(atoms) == 2]
        for atoms, length in zip(batch, of_pairs, strict=False):
            lengths[int(atoms.numbers[0])].append(length)
        assert max(of_pairs, default=0) <= SHORTEST + 1e-9 or min(of_pairs) > SHORTEST
    for one in lengths.values():
        assert min(one) < SHORTEST
        assert max(one) > 3.9
        assert np.diff(sorted(one)).max() < 0.5


def test_on_a_gpu_programs_for_many_atoms_are_tried_too() -> None:
    pytest.importorskip("triton")
    from attncalc.kernels.so3krates_gpu.engine import FEW

    on_cpu, on_gpu = (module._tried(ELEMENTS, 4.0, device) for device in ("cpu", "cuda"))
    assert len(on_gpu) == len(on_cpu) + 1
    graph = build_graph(random_potential(), System.from_ase(on_gpu[-1]))
    assert graph.n_atoms > FEW


class Shifted(Broken):
    """Energies plus a number: forces stay."""

    def forward(self, graph: Graph) -> AtomOutputs:
        return AtomOutputs(self.factor + self.network(graph).energies)


def test_an_energy_that_is_off_by_a_constant_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_lower_network", lambda network: Shifted(network, 1e-3))
    plain = random_potential()
    assert lower(plain) is plain


def test_a_compiler_that_fails_leaves_the_plain_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(network: nn.Module) -> None:
        raise ImportError("Numba needs another NumPy")

    monkeypatch.setattr(module, "_lower_network", no_compiler)
    plain = random_potential()
    with caplog.at_level(logging.WARNING, logger="attncalc.fast"):
        assert lower(plain) is plain
    assert "does not run here (Numba needs another NumPy)" in caplog.text


def test_threads_that_give_no_numbers_leave_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(fast: Potential, plain: Potential) -> float:
        return np.nan if fast.network.engine.threads > 1 else 0.0

    monkeypatch.setattr(module, "disagreement", measured)
    with caplog.at_level(logging.WARNING, logger="attncalc.fast"):
        fast = lower(load("so3krates-silicon", threads=2))
    assert fast.network.engine.threads == 1
    assert "in 2 threads results are off by nan: one is taken" in caplog.text


def test_threads_that_do_not_work_leave_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from attncalc.kernels.simd import threads

    def no_threads(self: object, work: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads.Threads, "run", no_threads)
    plain = load("so3krates-silicon", threads=2)
    with caplog.at_level(logging.WARNING, logger="attncalc.fast"):
        fast = lower(plain)
    assert fast.network.engine.threads == 1
    assert "threads do not work here (can't start new thread): one is taken" in caplog.text


@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_pairs_at_the_limit_itself(ulps: int) -> None:
    """Where one path hands over to the other, rounding decides: both must be finite and equal."""
    plain = load("so3krates-ethanol")
    length = SHORTEST + ulps * float(np.spacing(np.float32(SHORTEST)))
    pair = Atoms("CO", positions=[[0, 0, 0], [0.6 * length, 0, 0.8 * length]])
    actual, expected = both(lower(plain), plain, pair)
    assert actual.forces.isfinite().all()
    assert deviation(actual, expected, torch.zeros(2).long()) < ROUNDING[torch.float32]


def test_a_pair_term_that_fails_leaves_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(module, "FrozenZBL", no_compiler)
    plain = load("so3krates-ethanol", device="cpu")
    term = ZBLRepulsion(ZBLConfig(cutoff=4.0), plain.species).requires_grad_(False)
    repels = with_modules(plain, pair_terms=nn.ModuleList([term]))
    with caplog.at_level(logging.WARNING, logger="attncalc.fast"):
        fast = lower(repels)
    assert isinstance(fast.network, CompiledNetwork)
    assert [type(one) for one in fast.pair_terms] == [ZBLRepulsion]
    (record,) = caplog.records
    expected = "the fast path does not run here (no C compiler): its pair terms run plainly"
    assert record.getMessage() == expected


def test_charges_and_ratios_count_as_deviations() -> None:
    """Also where no pair term reads them."""
    graph = build_graph(random_potential(), System.from_ase(Atoms("CO", [[0, 0, 0], [0, 0, 1.2]])))
    result = evaluate(random_potential(), graph)
    for name in ("charges", "hirshfeld_ratios"):
        one, other = (replace(result, **{name: torch.full((2,), x)}) for x in (0.5, 0.75))
        assert deviation(one, other, graph.system_idx) == 0.25
        assert deviation(one, one, graph.system_idx) == 0.0
        for first, second in ((one, result), (result, one)):
            assert deviation(first, second, graph.system_idx) == float("inf")


def test_a_deviation_does_not_grow_with_the_structure() -> None:
    """Neither with its size, nor with the pressure, under which large forces cancel."""
    n = 1000

    def result(energy: float, strain: float) -> Result:
        return Result(
            energy=torch.full((1,), n * energy),
            energies=torch.full((n,), energy),
            forces=torch.zeros(n, 3),
            strain_gradient=torch.full((1, 3, 3), n * strain),
        )

    idx = torch.zeros(n, dtype=torch.int64)
    assert deviation(result(0.0, 0.25), result(0.0, 0.5), idx) == 0.25
    assert deviation(result(0.0, 6.0), result(0.0, 8.0), idx) == 0.25
    assert deviation(result(1.0, 0.0), result(1.5, 0.0), idx) == 0.5


def test_a_checked_engine_serves_equal_potentials(monkeypatch: pytest.MonkeyPatch) -> None:
    first = lower(load("so3krates-silicon", device="cpu"))
    monkeypatch.setattr(module, "disagreement", lambda *_: pytest.fail("checked again"))
    again = load("so3krates-silicon", device="cpu")
    second = lower(again)
    assert second.network.network is again.network
    third = lower(load("so3krates-silicon", device="cpu"))
    one, other, another = (potential.network.engine for potential in (first, second, third))
    assert len({id(engine) for engine in (one, other, another)}) == 3, "each has its own space"
    assert one.weights is other.weights
    graph = build_graph(again, System.from_ase(bulk("Si") * (2, 1, 1)))
    results = [evaluate(potential, graph) for potential in (first, second)]
    assert torch.equal(results[0].forces, results[1].forces)


def test_weights_that_change_in_place_change_no_other_calculator() -> None:
    first, second = (AttnCalculator("so3krates-silicon") for _ in range(2))
    crystals = [bulk("Si") * (2, 1, 1), bulk("Si", cubic=True)]
    for atoms in crystals:
        atoms.rattle(0.05, seed=1)
    expected = AttnCalculator("so3krates-silicon").get_forces(crystals[1])
    first.get_forces(crystals[0])
    second.get_forces(crystals[0])
    for parameter in first.evaluator.plain.parameters():
        parameter.data.mul_(1.1)
    for one in (second, AttnCalculator("so3krates-silicon")):
        assert np.array_equal(one.get_forces(crystals[1]), expected)


def test_a_kept_engine_has_no_memory_of_its_first_user() -> None:
    engine = lower(load("so3krates-silicon", device="cpu")).network.engine
    (kept,) = module._CHECKED.values()
    assert kept is not engine
    assert kept.weights is engine.weights
    assert kept._free is not engine._free


@pytest.mark.parametrize("change", ["weight", "scale", "threads", "pair term"])
def test_an_engine_does_not_serve_others(change: str) -> None:
    first = lower(load("so3krates-silicon", device="cpu"))
    other = load("so3krates-silicon", device="cpu", threads=2 if change == "threads" else None)
    if change == "weight":
        next(other.network.parameters()).data.view(-1)[0] += 1e-6
    elif change == "scale":
        other.scale[0] *= 1 + 1e-12
    elif change == "pair term":
        term = ZBLRepulsion(ZBLConfig(cutoff=4.0), other.species).requires_grad_(False)
        other = with_modules(other, pair_terms=nn.ModuleList([term]))
    assert lower(other).network.engine.weights is not first.network.engine.weights


def test_few_checked_engines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_CHECKED", 2)

    class Lent:
        threads = 1

        def shared_by(self, threads: int) -> Lent:
            return self

    a, b, c = (Lent() for _ in range(3))
    module._keep((b"a", None), a)
    module._keep((b"b", None), b)
    assert module._checked((b"a", None)) is a  # used last
    module._keep((b"c", None), c)
    assert [module._checked((name, None)) for name in (b"a", b"b", b"c")] == [a, None, c]


def test_a_pickle_has_no_tables() -> None:
    calculator = AttnCalculator("so3krates-silicon")
    before = len(pickle.dumps(calculator))
    forces = calculator.get_forces(bulk("Si") * (2, 1, 1))
    after = pickle.dumps(calculator)
    assert len(after) < 1.1 * before
    assert np.array_equal(pickle.loads(after).get_forces(bulk("Si") * (2, 1, 1)), forces)
