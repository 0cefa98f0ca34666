"""Losses by hand, and fast training steps against the plain one."""

import dataclasses
import logging
import subprocess
import sys

import pytest
import torch

from attncalc.kernels.collocation import collocated
from attncalc.model_file import NETWORKS
from attncalc.nn import equiformer as equiformer_module
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.ops import with_modules
from attncalc.potential import Potential, evaluate
from attncalc.train import compilation, select_step
from attncalc.train.batches import join, samples
from attncalc.train.select_step import select_step as selected
from attncalc.train.select_step import unequal_sizes, with_distant_labels
from attncalc.train.step import (
    ROUNDED,
    Batch,
    Loss,
    eager_step,
    flatten,
    loss,
    mean_norm,
    mean_square,
    predict,
    relative_error,
    trace,
    traced_step,
    trainable,
)

WEIGHTS = Loss(energy=1.0, force=2.0, stress=50.0)


@pytest.fixture(scope="module")
def batches(dataset) -> list[Batch]:
    return samples(dataset, 3.4, (28, 29))


@pytest.fixture
def potential(recipe, batches) -> Potential:
    return new_potential(recipe, torch.float64)


def new_potential(recipe, dtype) -> Potential:
    network, config = NETWORKS["so3krates"]
    torch.manual_seed(0)
    net = network(config(**recipe.config, avg_num_neighbors=12.0), 2)
    return Potential(net.to(dtype), (28, 29), reference_energies=[1.0, 2.0])


def test_the_loss_by_hand(batches):
    two = join(batches[:2])  # 4 and 8 atoms
    assert torch.bincount(two.graph.system_idx).tolist() == [4, 8]
    batch = dataclasses.replace(
        two,
        energy=torch.tensor([4.0, 8.0], dtype=torch.float64),
        forces=torch.zeros(12, 3, dtype=torch.float64),
        stress=torch.zeros(2, 3, 3, dtype=torch.float64),
    )
    energy = batch.energy + torch.tensor([0.4, -1.6], dtype=torch.float64)  # 0.1, -0.2 per atom
    forces = batch.forces.clone()
    forces[5, 1] = 3.0  # mean square 9 / 36
    stress = batch.stress.clone()
    stress[1, 0, 2] = 0.6  # mean square 0.36 / 18
    weights = Loss(energy=2.0, force=4.0, stress=10.0, penalty=mean_square)
    value = loss((energy, forces, stress), batch, weights)
    assert value.item() == pytest.approx(2 * (0.01 + 0.04) / 2 + 4 * 0.25 + 10 * 0.02, rel=1e-12)
    without = loss((energy, forces, stress), batch, dataclasses.replace(weights, stress=0.0))
    assert without.item() == pytest.approx(1.05, rel=1e-12)
    lengths = loss((energy, forces, stress), batch, dataclasses.replace(weights, penalty=mean_norm))
    # one of 12 atoms is off by 3 eV/Å, one of 2 stresses by 0.6; nothing else but the rounding
    expected = 2 * (0.1 + 0.2) / 2 + 4 * 3.0 / 12 + 10 * 0.6 / 2
    assert lengths.item() == pytest.approx(expected, abs=15 * ROUNDED)
    assert lengths.item() > expected


def test_training_and_inference_predict_the_same(potential, batches):
    batch = join(batches[:3])
    energy, forces, stress, *_ = predict(potential, batch.graphs, batch.volume)
    result = evaluate(potential, batch.graph)
    torch.testing.assert_close(energy, result.energy, rtol=1e-12, atol=0)
    torch.testing.assert_close(forces, result.forces, rtol=1e-9, atol=1e-12)
    theirs = result.strain_gradient / batch.volume[:, None, None]
    torch.testing.assert_close(stress, theirs, rtol=1e-9, atol=1e-12)


def test_features_may_be_taught(potential, batches):
    """A row of eight numbers of each atom, all off by 0.5."""
    batch = join(batches[:2])
    found = predict(potential, batch.graphs, batch.volume)
    taught = dataclasses.replace(batch, features=found.features.detach() + 0.5)
    weights = dataclasses.replace(WEIGHTS, of_outputs={"features": 3.0})
    more = loss(found, taught, weights) - loss(found, taught, WEIGHTS)
    assert more.item() == pytest.approx(3 * 8**0.5 * 0.5, rel=1e-6)
    step, plain = eager_step(potential, weights), eager_step(potential, WEIGHTS)
    assert relative_error(step, plain, taught) > 1e-3


def test_the_gradient_is_the_derivative_of_the_loss(potential, batches):
    """Energy, force and stress terms together, along one direction of all parameters."""
    batch = join(batches[:3])
    step = eager_step(potential, WEIGHTS)
    _, gradients = step(batch)
    parameters = list(trainable(potential).values())
    generator = torch.Generator().manual_seed(1)
    directions = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype).mul_(0.1) for p in parameters
    ]
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()

    def moved(by: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=by)
        value = step(batch)[0].item()
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=-by)
        return value

    h = 1e-5
    assert (moved(h) - moved(-h)) / (2 * h) == pytest.approx(expected, rel=1e-6)


def test_the_collocated_step_is_the_plain_step(potential, batches):
    fast = eager_step(with_modules(potential, network=collocated(potential.network, 1.5)), WEIGHTS)
    assert relative_error(fast, eager_step(potential, WEIGHTS), join(batches[:3])) < 1e-9


@pytest.fixture(scope="module")
def recorded(recipe, batches) -> tuple[Potential, Potential, torch.fx.GraphModule]:
    """A potential, the same collocated, and the trace of its step."""
    potential = new_potential(recipe, torch.float64)
    fast = with_modules(potential, network=collocated(potential.network, 1.5))
    return potential, fast, trace(fast, WEIGHTS, unequal_sizes(batches))


def test_the_traced_step_is_the_plain_step(recorded, batches):
    """Recorded on one batch, run on batches of other sizes, after the parameters have moved."""
    potential, fast, graph = recorded
    traced, plain = traced_step(fast, graph), eager_step(potential, WEIGHTS)
    assert relative_error(traced, plain, join(batches[:3])) < 1e-9
    with torch.no_grad():
        torch._foreach_mul_(list(trainable(potential).values()), 1.1)
    for batch in (join(batches[4:6]), batches[0]):
        assert relative_error(traced, plain, batch) < 1e-9
        assert traced(batch)[0].item() == pytest.approx(plain(batch)[0].item(), rel=1e-9)


@pytest.mark.no_cover
def test_the_trace_is_of_a_kind_that_the_compiler_takes(recorded, batches):
    """Of one structure as well, whose number the compiler takes for a constant."""
    potential, fast, graph = recorded
    taken = torch.compile(graph, fullgraph=True, dynamic=True, backend="eager")
    step, plain = traced_step(fast, taken), eager_step(potential, WEIGHTS)
    for batch in (unequal_sizes(batches), batches[0]):
        assert relative_error(step, plain, batch) < 1e-9


def test_the_example_of_a_trace_has_unequal_sizes(batches):
    graph = unequal_sizes(batches).graph
    sizes = [graph.n_systems, graph.n_atoms, graph.n_edges, len(graph.pairs)]
    assert len(set(sizes)) == 4


def test_the_collocated_step_is_chosen(recipe, potential, batches, monkeypatch):
    asked = []
    monkeypatch.setattr(
        select_step, "collocated", lambda network, shortest: asked.append(shortest) or network
    )
    selected(potential, WEIGHTS, batches, recipe, shortest=2.0, n_steps=10)
    assert asked == [select_step.SHORTEST_COLLOCATED]
    selected(potential, WEIGHTS, batches, recipe, shortest=0.5, n_steps=10)
    assert len(asked) == 1, "atoms as close as 0.5 Å are outside the interpolation"


def test_a_wrong_step_is_rejected(recipe, potential, batches, monkeypatch, caplog):
    """Both fast steps spoilt by 1 %: the plain step is taken, with a warning each."""

    def spoilt(make):
        def wrong(*arguments):
            step = make(*arguments)
            return lambda batch: (step(batch)[0], [1.01 * g for g in step(batch)[1]])

        return wrong

    plain = eager_step(potential, WEIGHTS)
    steps = iter([plain, spoilt(eager_step)(potential, WEIGHTS)])
    monkeypatch.setattr(select_step, "eager_step", lambda *_: next(steps))
    monkeypatch.setattr(select_step.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(compilation, "trace", lambda *_: None)
    monkeypatch.setattr(compilation, "compiled", lambda graph: graph)
    monkeypatch.setattr(
        compilation, "traced_step", lambda potential, graph: spoilt(eager_step)(potential, WEIGHTS)
    )
    always = dataclasses.replace(recipe, compile="always")
    with caplog.at_level(logging.WARNING):
        chosen, other = selected(potential, WEIGHTS, batches, always, shortest=2.0, n_steps=10)
        assert other.make() is None
    assert chosen is plain
    assert [r.getMessage() for r in caplog.records] == [
        "eager training step deviates by 1.0e-02 and is not used",
        "compiled training step deviates by 1.0e-02 and is not used",
    ]


def test_gradients_are_compared_on_a_scale_that_stays(recipe, batches):
    """Of a network that knows its labels, the gradient is small and mostly rounding."""
    single, exact = (new_potential(recipe, d) for d in (torch.float32, torch.float64))
    exact.load_state_dict(single.state_dict())
    batch = join(batches[:3])
    energy, forces, stress, *_ = predict(exact, batch.graphs, batch.volume)
    known = dataclasses.replace(
        batch, energy=energy.detach(), forces=forces.detach(), stress=stress.detach()
    )
    fast = eager_step(with_modules(single, network=collocated(single.network, 0.6)), WEIGHTS)
    plain = eager_step(single, WEIGHTS)
    distant = relative_error(fast, plain, with_distant_labels(known, WEIGHTS))
    assert distant < 1e-5 < select_step.TOLERANCE[torch.float32]
    assert relative_error(fast, plain, known) > 10 * distant


def test_steps_of_equiformer_are_worth_compiling_sooner(recipe, monkeypatch):
    monkeypatch.setattr(select_step.shutil, "which", lambda name: "/usr/bin/g++")
    auto = dataclasses.replace(recipe, compile="auto")
    equiformer, others = object.__new__(Equiformer), torch.nn.Identity()  # its kind decides
    worth = select_step._worth_compiling
    assert [worth(equiformer, auto, n) for n in (5_999, 6_000)] == [False, True]
    assert [worth(others, auto, n) for n in (19_999, 20_000)] == [False, True]


def test_a_compiler_that_fails_is_not_the_end(recipe, potential, batches, monkeypatch, caplog):
    def broken(graph):
        raise RuntimeError("g++: internal compiler error\nat line 1")

    monkeypatch.setattr(compilation, "trace", lambda *_: None)
    monkeypatch.setattr(compilation, "compiled", broken)
    always = dataclasses.replace(recipe, compile="always")
    _, other = selected(potential, WEIGHTS, batches, always, shortest=2.0, n_steps=10)
    assert other.make() is None
    assert "compiled training step cannot be made and is not used (g++: internal" in caplog.text


def test_no_compiler_no_compiling(recipe, potential, batches, monkeypatch, caplog):
    monkeypatch.setattr(select_step.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "g++")  # on every platform
    always = dataclasses.replace(recipe, compile="always")
    selected(potential, WEIGHTS, batches, always, shortest=2.0, n_steps=10)
    assert "no C++ compiler (g++) found" in caplog.text


def test_the_compiler_is_that_of_pytorch(recipe, potential, monkeypatch, caplog):
    """It reads the environment variable when it is imported."""
    which = {"clang++": "/usr/bin/clang++"}.get
    monkeypatch.setattr(select_step.shutil, "which", which)
    always = dataclasses.replace(recipe, compile="always")
    for compiler in ("clang++", "icpx"):
        monkeypatch.setenv("CXX", compiler)
        is_found = compiler == "clang++"
        assert select_step._worth_compiling(potential.network, always, 10) == is_found
        assert ("no C++ compiler (icpx) found" in caplog.text) != is_found
    code = "import torch._inductor.config as c; print(c.cpp.cxx[-1])"
    for environment in ({"CXX": "icpx"}, {}):
        monkeypatch.delenv("CXX", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert theirs.stdout.strip() == select_step._cpp_compiler()


def test_flatten_has_every_tensor(batches):
    """Nine of the graph, four labels and the shares."""
    assert len(flatten(batches[0])) == 14


# ---------------------------------------------------------------------------------- equiformer


def equiformer() -> Potential:
    torch.manual_seed(0)
    config = EquiformerConfig(
        *(3.4, 12.0), channels=(4, 4), num_layers=2, num_heads=2, num_basis=4, head_features=6
    )
    return Potential(Equiformer(config, 2).double(), (28, 29))


@pytest.mark.no_cover
def test_what_is_traced_of_a_network_with_sphcs(batches, monkeypatch):
    """The local one; far pairs are found by their length, which a trace does not know."""
    config = So3kratesSphcConfig(3.4, num_features=12, num_layers=1, nonlocal_attention="none")
    for name, traces in (("none", True), ("window", False)):
        config = dataclasses.replace(config, nonlocal_attention=name)
        torch.manual_seed(0)
        potential = Potential(So3kratesSphc(config, 2).double(), (28, 29))
        assert select_step._can_be_traced(potential.network, batches, None) == traces
        if traces:
            graph = trace(potential, WEIGHTS, unequal_sizes(batches))
            error = relative_error(
                traced_step(potential, graph), eager_step(potential, WEIGHTS), join(batches[:3])
            )
            assert error < 1e-10


@pytest.mark.no_cover
def test_the_trace_of_an_equiformer_is_its_step(batches):
    potential = equiformer()
    graph = trace(potential, WEIGHTS, unequal_sizes(batches))
    step, plain = traced_step(potential, graph), eager_step(potential, WEIGHTS)
    for batch in (unequal_sizes(batches), join(batches[:3])):
        assert step(batch)[0].item() == pytest.approx(plain(batch)[0].item(), rel=1e-12)
        assert relative_error(step, plain, batch) < 1e-11


def test_batches_that_need_chunks_are_not_compiled(recipe, batches, monkeypatch):
    """A trace takes all edges at once, however many there are."""
    potential = equiformer()
    always = dataclasses.replace(recipe, compile="always", batch_size=2)
    arguments = {"shortest": 2.0, "n_steps": 10}
    most = sum(sorted((b.graph.n_edges for b in batches), reverse=True)[:2])
    kept = potential.network.bytes_per_edge * potential.network.config.num_layers * most
    monkeypatch.setattr(equiformer_module, "LARGEST_KEPT", kept - 1)
    assert selected(potential, WEIGHTS, batches, always, **arguments)[1] is None
    monkeypatch.setattr(equiformer_module, "LARGEST_KEPT", 1 << 40)
    assert selected(potential, WEIGHTS, batches, always, **arguments)[1] is not None
