"""Novelty of atoms: inside what a model was trained on, outside, and the same on every path."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from contract import ethanol, triclinic
from taught import ELEMENTS, NETWORKS, OF_ROUNDING, frames, taught, untaught

from attncalc import AttnCalculator, Evaluator
from attncalc.calibrate import (
    MOST_ATOMS,
    MOST_STRUCTURES,
    _different,
    calibrate,
    some_of,
)
from attncalc.fast import lower
from attncalc.graph import GraphArrays
from attncalc.nn.so3krates import So3krates
from attncalc.novelty import Sample, environments, fit, loop, outliers_of, outside_atom
from attncalc.novelty.environments import MARGIN, NEVER_SEEN
from attncalc.potential import Committee, Potential, evaluate
from attncalc.result import Result
from attncalc.structures import fresh_graphs
from attncalc.system import System


def result_of(potential: Potential, atoms: Atoms | list[Atoms]) -> Result:
    return evaluate(potential, fresh_graphs(potential, System.from_ase(atoms)))


def novelty_of(potential: Potential, atoms: Atoms | list[Atoms]) -> np.ndarray:
    novelty = result_of(potential, atoms).novelty
    assert novelty is not None
    return novelty


@pytest.fixture(scope="module")
def potential() -> Potential:
    return taught()


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_what_is_like_the_training_is_inside(kind: str) -> None:
    novelty = novelty_of(taught(kind), frames(100, seed=1))
    assert novelty.shape == (900,)
    largest = novelty.reshape(100, 9).max(axis=1)
    assert np.mean(largest > 1) <= 0.02
    assert np.median(largest) > 0.3  # the edge is not far away


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_what_is_unlike_the_training_is_outside(kind: str) -> None:
    potential = taught(kind)
    for name in ("C6H6", "CO2", "H2O", "CH4"):
        assert novelty_of(potential, molecule(name)).max() > 1, name
    broken = ethanol()
    broken.positions[0] += (0, 0, 2.0)
    assert novelty_of(potential, broken)[0] > 1
    alone = Atoms("H")
    assert novelty_of(potential, alone)[0] > 1


def test_a_pair_closer_than_any_in_training(potential: Potential) -> None:
    """Novelty falls to 1 where the pair is a margin closer than the closest."""
    known = potential.environments
    assert known is not None
    apart = known.closest[0, 1]
    assert 0.8 < apart < 1.2
    blind = copy.deepcopy(potential)
    object.__setattr__(blind.environments, "whiten", np.zeros_like(known.whiten))
    for closer, expected in ((0.0, 0.0), (0.5, 0.5), (2.0, 2.0)):
        pair = Atoms("CH", positions=[(0, 0, 0), (0, 0, apart - closer * MARGIN)])
        assert novelty_of(blind, pair) == pytest.approx([expected] * 2, abs=1e-6)


def test_a_pair_of_elements_that_training_did_not_hold(potential: Potential) -> None:
    """Two oxygen atoms: there is one in ethanol."""
    known = potential.environments
    assert known is not None
    assert known.closest[2, 2] == potential.cutoff
    two = Atoms("OO", positions=[(0, 0, 0), (0, 0, 3.5)])
    assert novelty_of(potential, two).min() >= 0.999 * (4.0 - 3.5) / MARGIN


def test_an_element_that_training_did_not_hold() -> None:
    potential = untaught()
    calibrate(potential, [molecule("CH4")])
    assert novelty_of(potential, ethanol())[2] >= NEVER_SEEN
    assert (novelty_of(potential, molecule("CH4")) <= 1).all()


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("atoms", [ethanol(), triclinic()], ids=["molecule", "crystal"])
def test_numpy_gives_what_the_loop_gives(
    potential: Potential, atoms: Atoms, clusters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if clusters:
        potential = taught_many(monkeypatch)
    atoms.numbers[:] = np.resize([6, 1, 8], len(atoms))
    compiled = novelty_of(potential, [atoms, *frames(3)])
    monkeypatch.setattr(environments, "cpu_loops", lambda _: None)
    assert novelty_of(potential, [atoms, *frames(3)]) == pytest.approx(compiled, rel=1e-4)


def test_masked_edges_are_not_close(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their vectors are."""
    known = potential.environments
    assert known is not None
    graph = fresh_graphs(potential, System.from_ase(ethanol())).short.arrays
    at_zero = graph._replace(vectors=np.zeros_like(graph.vectors))
    masked = at_zero._replace(edge_mask=np.zeros_like(graph.edge_mask))
    for _ in ("compiled", "numpy"):
        assert (known.novelty(None, masked) == 0).all()
        assert (known.novelty(None, at_zero) > 5).all()
        monkeypatch.setattr(environments, "cpu_loops", lambda _: None)


def taught_many(monkeypatch: pytest.MonkeyPatch) -> Potential:
    """Of two molecules, as if these were many."""
    monkeypatch.setattr(import_module("attncalc.novelty.fit"), "MANY", 2)
    potential, frames_of_methane = untaught(), [molecule("CH4") for _ in range(60)]
    for k, atoms in enumerate(frames_of_methane):
        atoms.rattle(0.05, seed=k)
    calibrate(potential, frames(60) + frames_of_methane)
    assert potential.environments is not None
    assert potential.environments.has_clusters
    return potential


def test_a_model_that_was_not_told(tmp_path) -> None:
    potential = untaught()
    assert not potential.knows_its_training
    assert result_of(potential, ethanol()).novelty is None
    evaluator = Evaluator(potential)
    assert evaluator.novelty(System.from_ase(ethanol())) is None


def test_a_committee_has_that_of_the_first_member_that_knows(potential: Potential) -> None:
    pair = Committee([untaught(seed=1), potential])
    assert pair.knows_its_training
    assert np.array_equal(novelty_of(pair, ethanol()), novelty_of(potential, ethanol()))


def test_without_features_distances_count() -> None:
    """A network from elsewhere need not give any."""

    class Silent(So3krates):
        def forward(self, graph):
            outputs = super().forward(graph)
            return type(outputs)(outputs.energies)

    torch.manual_seed(0)
    potential = Potential(Silent(NETWORKS["so3krates"][1], 3), ELEMENTS).requires_grad_(False)
    calibrate(potential, frames(20))
    assert potential.environments is not None
    assert not potential.environments.reads_features
    assert (novelty_of(potential, frames(20)) == 0).all()
    close = ethanol()
    close.set_distance(0, 1, 0.9)
    assert novelty_of(potential, close).max() > 1


def test_an_evaluator_keeps_the_last_and_computes_others(potential: Potential) -> None:
    evaluator = Evaluator(potential)
    one, other = (System.from_ase(atoms) for atoms in frames(2, seed=3))
    result = evaluator(one)
    assert evaluator.novelty(one) is result.novelty
    expected = novelty_of(potential, frames(2, seed=3)[1])
    assert evaluator.novelty(other) == pytest.approx(expected, abs=OF_ROUNDING)
    again = pickle.loads(pickle.dumps(evaluator))
    assert again.novelty(one) == pytest.approx(result.novelty, abs=OF_ROUNDING)
    evaluator(one)
    one.positions[8] += torch.tensor([0.0, 0.0, 0.35])  # in place
    expected = Evaluator(potential).novelty(one)
    assert np.abs(expected - result.novelty).max() > 0.1
    assert evaluator.novelty(one) == pytest.approx(expected, abs=OF_ROUNDING)
    periodic = frames(1, seed=3)[0]
    periodic.set_cell([9.0, 9.0, 9.0])
    periodic.pbc = True
    one = System.from_ase(periodic)
    result = evaluator(one)
    one.cell[0, 0] *= 0.5  # in place
    expected = Evaluator(potential).novelty(one)
    assert np.abs(expected - result.novelty).max() > 0.1
    assert evaluator.novelty(one) == pytest.approx(expected, abs=OF_ROUNDING)


def test_an_engine_that_gives_no_features_has_those_of_the_network(potential: Potential) -> None:
    """As those of a GPU."""
    fast = lower(potential)
    result = result_of(fast, ethanol())
    assert result.surroundings is not None
    plain = getattr(fast.network, "network", fast.network)
    blind = result.surroundings._replace(features=None, network=plain)
    assert blind.novelty() == pytest.approx(result.novelty, abs=OF_ROUNDING)


def test_nothing_is_computed_before_somebody_asks(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    unchanged = loop.update_novelty
    counted = lambda *arguments: (calls.append(1), unchanged(*arguments))  # noqa: E731
    monkeypatch.setattr(loop, "update_novelty", counted)
    calculator = Evaluator(potential)
    result = calculator(System.from_ase(ethanol()))
    assert not calls
    assert result.novelty is result.novelty
    assert len(calls) == 1


def test_forces_stay_the_same_bits(potential: Potential) -> None:
    ours, theirs = result_of(potential, ethanol()), result_of(untaught(), ethanol())
    assert torch.equal(ours.forces, theirs.forces)
    assert torch.equal(ours.energy, theirs.energy)
    atoms = ethanol()
    forces = [
        AttnCalculator(one, device="cpu").get_property("forces", atoms)
        for one in (potential, untaught())
    ]
    assert np.array_equal(*forces)


# ------------------------------------------------------------------------------------- the fit


def drawn(n_structures: int, seed: int, width: int = 40) -> Sample:
    """Ten atoms of two elements in each structure, normally distributed in six directions."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(6, width))
    species = np.tile([0, 1], 5 * n_structures)
    features = rng.normal(size=(10 * n_structures, 6)) @ mixing + 7 * species[:, None]
    return Sample(
        species.astype(np.int64),
        np.repeat(np.arange(n_structures), 10),
        features.astype(np.float32),
        np.full((3, 3), 5.0),
    )


def test_the_edge_is_where_one_structure_in_a_thousand_is() -> None:
    known = fit(drawn(1000, seed=0))
    assert known.n_atoms == (5000, 5000, 0)
    assert known.n_structures == 1000
    others = drawn(1000, seed=1)
    for s in (0, 1):
        off = others.features[others.species == s] - known.mean[s]
        largest = np.linalg.norm(off @ known.whiten[s], axis=1).reshape(1000, 5).max(axis=1)
        assert np.mean(largest > 1) <= 0.003
        assert np.mean(largest > 0.6) > 0.003


FIVE_POINTS, MIXING = (np.random.default_rng(k).normal(size=(5 - k, 4 + 8 * k)) for k in (0, 1))


def drawn_many(n_structures: int, seed: int) -> Sample:
    """Ten atoms of one element in each structure, near five points; 200 compositions."""
    rng = np.random.default_rng(seed)
    n, kind = 10 * n_structures, rng.integers(5, size=10 * n_structures)
    near = FIVE_POINTS[kind] + 0.05 * rng.normal(size=(n, 4))
    return Sample(
        np.zeros(n, np.int64),
        np.repeat(np.arange(n_structures), 10),
        (near @ MIXING).astype(np.float32),
        np.full((2, 2), 5.0),
        np.arange(n_structures) % 200,
    )


def novelty_of_features(known: environments.Environments, features: np.ndarray) -> np.ndarray:
    none, zeros = np.zeros(0, np.int64), np.zeros(len(features), np.int64)
    graph = GraphArrays(np.zeros((0, 3)), none, none, none > 0, none, zeros, zeros)
    return known.novelty(features.astype(np.float32), graph)


def test_many_molecules_have_clusters_and_an_edge_of_new_ones() -> None:
    """What is between two clusters is outside, which the mean of all does not tell."""
    sample = drawn_many(2000, seed=0)
    known, one_cloud = fit(sample), fit(replace(sample, composition=None))
    assert (known.has_clusters, one_cloud.has_clusters) == (True, False)
    assert (known.whiten.shape, known.centres.shape) == ((2, 12, 12), (2, 12, 256))
    others = drawn_many(2000, seed=1).features
    largest = novelty_of_features(known, others).reshape(2000, 10).max(axis=1)
    assert 0.001 < np.mean(largest > 1) < 0.01  # one in 200
    pairs = [(FIVE_POINTS[a] + FIVE_POINTS[b]) / 2 for a in range(5) for b in range(a)]
    between = np.array(pairs) @ MIXING
    assert novelty_of_features(known, between).min() > 1
    assert novelty_of_features(one_cloud, between).max() < 1


def test_one_composition_that_prevails_is_not_many() -> None:
    sample = drawn_many(600, seed=0)
    prevails = np.arange(600) % 200
    prevails[:300] = 0
    assert fit(sample).has_clusters
    assert not fit(replace(sample, composition=prevails)).has_clusters


@pytest.mark.parametrize("compiled", [True, False])
def test_features_that_are_not_numbers_are_outside(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = fit(drawn(20, seed=0))
    if not compiled:
        monkeypatch.setattr(environments, "cpu_loops", lambda name: None)
    features = np.full((2, known.mean.shape[1]), np.nan)
    features[0] = known.mean[0]
    novelty = novelty_of_features(known, features)
    assert np.isnan(novelty).tolist() == [False, True]
    found = outside_atom(novelty, [6, 8])
    assert found is not None
    assert str(found).startswith("outside the training data: atom 1 (O) has novelty nan")


def test_many_compositions_without_features_or_with_equal_ones() -> None:
    sample = drawn_many(300, seed=0)
    assert not fit(replace(sample, features=np.zeros((3000, 0), np.float32))).has_clusters
    known = fit(replace(sample, features=np.ones((3000, 12), np.float32)))
    assert np.isfinite(known.whiten).all()
    assert np.isfinite(known.centres).all()


@pytest.mark.parametrize(("n_species", "width"), [(8, 128), (89, 512)])
def test_clusters_take_a_megabyte_at_most(n_species: int, width: int) -> None:
    sample = drawn_many(300, seed=0)
    wide = np.tile(sample.features, (1, width // 12 + 1))[:, :width]
    apart = np.full((n_species, n_species), 5.0)
    known = fit(replace(sample, features=wide, closest=apart))
    assert known.has_clusters
    assert known.whiten.nbytes + known.centres.nbytes < 1.3e6


def test_features_of_another_network_are_refused(potential: Potential) -> None:
    known = potential.environments
    assert known is not None
    graph = fresh_graphs(potential, System.from_ase(ethanol())).short
    with pytest.raises(ValueError, match="are of 64 features, and the network has 3"):
        known.novelty(np.zeros((9, 3), np.float32), graph.arrays)


def test_few_atoms_of_an_element_have_few_clusters() -> None:
    sample = drawn_many(300, seed=0)
    species = sample.species.copy()
    species[:20] = 1
    known = fit(replace(sample, species=species))
    assert len(np.unique(known.centres[1], axis=1).T) == 2
    assert np.isfinite(known.centres).all()


def test_few_structures_do() -> None:
    known = fit(drawn(1, seed=0))
    assert np.isfinite(known.whiten).all()
    one = Sample(
        np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones((1, 4), np.float32), np.eye(1)
    )
    assert np.isfinite(fit(one).whiten).all()


def test_many_elements_take_fewer_components() -> None:
    sample = drawn(20, seed=0, width=128)
    several = Sample(sample.species, sample.structure, sample.features, np.full((20, 20), 5.0))
    known = fit(several)
    assert known.mean.nbytes + known.whiten.nbytes + known.closest.nbytes <= 100_000
    assert known.whiten.shape[2] < fit(sample).whiten.shape[2] == 32


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one structure"):
        calibrate(untaught(), [])
    with pytest.raises(ValueError, match="not trained on N"):
        calibrate(untaught(), [molecule("NH3")])
    sample = drawn(2, seed=0)
    sample.features[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit(sample)


def test_one_broken_structure_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """It would move the edge, and what was outside would be inside."""
    known, alone, together = frames(40, seed=1), untaught(), untaught()
    calibrate(alone, known)
    assert not caplog.records
    broken = ethanol()
    broken.positions *= 0.4
    calibrate(together, [*known[:20], broken, *known[20:]])
    assert [record.getMessage() for record in caplog.records] == [
        "far from all others, and so outside the training data: 1 of 41 structures, the first is "
        "C2H6O, whose closest atoms are 0.40 Å apart"
    ]
    for structure in (ethanol(), molecule("C6H6")):
        expected = novelty_of(alone, structure)
        np.testing.assert_allclose(novelty_of(together, structure), expected, rtol=1e-6)
    assert novelty_of(together, broken).max() > 10


def test_a_part_of_the_data_is_not_left_out(caplog: pytest.LogCaptureFixture) -> None:
    potential, compressed = untaught(), frames(4, seed=2)
    for one in compressed:
        one.positions *= 0.4
    calibrate(potential, [*frames(40, seed=1), *compressed])
    assert not caplog.records
    assert novelty_of(potential, frames(1, seed=3)[0]).max() < 1


def test_an_element_in_few_structures_has_no_strays() -> None:
    """Three structures have no usual distance."""
    features = np.random.default_rng(0).normal(size=(43, 6)).astype(np.float32)
    species, structure = np.repeat([0, 1], [40, 3]), np.concatenate([np.arange(40), np.arange(3)])
    closest = np.ones((2, 2))
    for far, expected in ((42, []), (7, [7])):
        features[far] += 1e4
        assert outliers_of(Sample(species, structure, features, closest)) == expected


def test_several_strays_are_a_part_of_the_data() -> None:
    """Of a hundred structures one or two may be broken, each in its own way, but not three."""
    features = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    zeros, structure, closest = np.zeros(100, int), np.arange(100), np.ones((1, 1))
    for way, (far, expected) in enumerate(((7, [7]), (42, [7, 42]), (77, []))):
        features[far, way] += 1e4
        assert outliers_of(Sample(zeros, structure, features, closest)) == expected


def test_equal_structures_count_once() -> None:
    one, other = untaught(), untaught()
    calibrate(one, frames(20, seed=1))
    calibrate(other, [frame for frame in frames(20, seed=1) for _ in range(3)])
    assert np.array_equal(one.environments.whiten, other.environments.whiten)
    ions = [Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"total_charge": q}) for q in (0, 1, -1)]
    assert len(_different([*ions, *ions])) == 3


def test_large_data_sets_are_looked_at_in_part() -> None:
    small = [Atoms("H")] * (2 * MOST_STRUCTURES)
    assert len(some_of(small)) == MOST_STRUCTURES
    large = [Atoms("H100", positions=np.zeros((100, 3)))] * 2000
    assert sum(map(len, some_of(large))) == MOST_ATOMS
    assert some_of([]) == []
