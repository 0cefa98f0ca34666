"""What docs/extending.md adds is added as shown there, from outside the package, and works."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ase import units
from ase.io import read as read_with_ase
from contract import (
    ELEMENTS,
    NetworkContract,
    assert_derivatives,
    assert_same_result,
    ethanol,
    random_potential,
    slab,
    triclinic,
)
from parts import Channel, box_of, images_of, rod

from attncalc import AttnCalculator, Evaluator, Potential, System, data, evaluate, load, md, save
from attncalc import fast as lowering
from attncalc.data.readers import _READERS
from attncalc.fast import disagreement, lower
from attncalc.graph import Linearized
from attncalc.md.integrators import INTEGRATORS
from attncalc.model_file import NETWORKS, PAIR_TERMS
from attncalc.neighbors import fresh_graph
from attncalc.nn.network import CompiledNetwork
from attncalc.ops import with_modules
from attncalc.plugins.part_evaluator import Part
from attncalc.structures import fresh_graphs

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
FRAMES = REPOSITORY / "tests/data/xtb_small_molecules_test.extxyz"
TABLES: tuple[dict[str, Any], ...] = (NETWORKS, PAIR_TERMS, INTEGRATORS)
NAME = "shown_in_extending"


def module_of(page: str) -> tuple[ModuleType, list[dict[str, Any]]]:
    """The page's code as a module, and what it added to each of the tables, which are as before."""
    before = [dict(table) for table in TABLES]
    module = sys.modules[NAME] = ModuleType(NAME)
    source = "".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    exec(compile(source, "docs/extending.md", "exec"), vars(module))
    added = [
        {name: kind for name, kind in table.items() if name not in old}
        for table, old in zip(TABLES, before, strict=True)
    ]
    for table, old in zip(TABLES, before, strict=True):
        table.clear()
        table.update(old)
    return module, added


SHOWN, ADDED = module_of(PAGE)
CONFIG = SHOWN.DensityConfig(cutoff=4.0)


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    """With what the page adds, for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        for table, added in zip(TABLES, ADDED, strict=True):
            for name, kind in added.items():
                patch.setitem(table, name, kind)
        yield


def potential(*, disperses: bool = False) -> Potential:
    terms = []
    if disperses:
        config = SHOWN.AttractionConfig(strength=20.0, radius=2.0, cutoff=7.0)
        terms = [SHOWN.Attraction(config, ELEMENTS)]
    network = random_potential(CONFIG).network
    scale = [1.0, 2.0, 0.5, 3.0]
    return Potential(network, ELEMENTS, scale=scale, pair_terms=terms).requires_grad_(False).eval()


def soft(model: Potential) -> Potential:
    """With so small forces that no atom runs away: weights are random."""
    model.scale *= 0.02
    return model


def test_the_page_names_lines_that_are_there():
    named = re.findall(r"`(\w+)`\s\(`([\w/]+\.py)`\)", PAGE)
    assert {name for name, _ in named} >= {"NETWORKS", "PAIR_TERMS", "_ENGINES", "_READERS"}
    for name, place in named:
        source = (REPOSITORY / "attncalc" / place).read_text(encoding="utf-8")
        found = rf"^{name}(: .+)? = |^ *(class|def) {name}\b"
        assert re.search(found, source, flags=re.MULTILINE), f"{name} in {place}"
    assert [list(added) for added in ADDED] == [["density"], ["attraction"], ["damped"]]


class TestNetwork(NetworkContract):
    @pytest.fixture
    def potential(self) -> Potential:
        return random_potential(CONFIG)


def test_format_and_network_are_trained_together(tmp_path, monkeypatch):
    """A file of the new format trains the new network, which is saved, loaded and run."""
    pytest.importorskip("lightning")
    from attncalc import train

    frames = read_with_ase(FRAMES, ":80")
    monkeypatch.setitem(_READERS, ".jsonl", SHOWN.read_jsonl)
    path = tmp_path / "frames.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "z": atoms.numbers.tolist(),
                    "r": atoms.positions.tolist(),
                    "e": atoms.get_potential_energy(),
                    "f": atoms.get_forces().tolist(),
                }
            )
            + "\n"
            for atoms in frames
        )
    )
    dataset = data.read(path)
    assert len(dataset) == 80
    np.testing.assert_array_equal(dataset.forces[3], frames[3].get_forces())
    with pytest.raises(ValueError, match=r"frames\.jsonl: these files are in eV"):
        data.read(path, energy_unit="kcal/mol")
    for damaged in (
        '{"z": [1]}\n',
        "{",
        '{"z": [1], "r": [[0, 0, 0]], "e": "x", "f": [[0, 0, 0]]}\n',
    ):
        (tmp_path / "damaged.jsonl").write_text(damaged)
        with pytest.raises(ValueError, match=r"^damaged\.jsonl: not such a file"):
            data.read(tmp_path / "damaged.jsonl")

    recipe = train.Recipe(
        name="mine",
        data=str(path),
        split={"sizes": [60, 20, 0]},
        network="density",
        config={"cutoff": 4.0},
        pair_terms=["attraction"],
        epochs=8,
        batch_size=5,
        learning_rate=0.02,
    )
    result = train.run(recipe, tmp_path / "run")
    trained = load(result.model)
    assert "| network | density, " in result.model.with_suffix(".md").read_text()
    assert type(trained.network) is SHOWN.Density
    assert [type(term) for term in trained.pair_terms] == [SHOWN.Attraction]
    assert trained.pair_terms[0].config == SHOWN.AttractionConfig(cutoff=4.0)
    losses = [epoch["validation_loss"] for epoch in result.history]
    assert losses[-1] < losses[0]
    frames[0].calc = AttnCalculator(result.model)
    assert np.isfinite(frames[0].get_forces()).all()
    frames[0].calc.verify(frames[0])  # raises where forces are no differences


@pytest.mark.parametrize("structure", [ethanol, triclinic])
def test_forces_and_stress_of_the_pair_term_are_differences(structure):
    plain = potential(disperses=True)
    assert plain.long_range == 7.0
    assert_derivatives(plain, structure())


@pytest.mark.parametrize("structure", [ethanol, triclinic, slab])
def test_the_gradient_of_the_fast_pair_term_is_that_of_autograd(structure):
    plain = potential(disperses=True)
    config = plain.pair_terms[0].config
    fast = with_modules(
        plain, pair_terms=torch.nn.ModuleList([SHOWN.FastAttraction(config, ELEMENTS)])
    )
    graphs = fresh_graphs(plain, System.from_ase(structure()))
    assert fast.pair_terms[0].linearize(graphs.long, None).by_vectors.abs().max() > 1e-3
    assert_same_result(evaluate(fast, graphs), evaluate(plain, graphs))


def test_a_model_file_keeps_network_and_pair_term(tmp_path):
    plain, path = potential(disperses=True), tmp_path / "model.safetensors"
    save(plain, path)
    graphs = fresh_graphs(plain, System.from_ase(slab()))
    loaded = load(path)
    assert torch.equal(evaluate(loaded, graphs).forces, evaluate(plain, graphs).forces)
    without = potential()
    assert not torch.equal(evaluate(without, graphs).forces, evaluate(plain, graphs).forces)


def test_a_recipe_refuses_a_pair_term_with_numbers_it_cannot_give(monkeypatch):
    pytest.importorskip("lightning")
    from attncalc import train

    @dataclass(frozen=True)
    class WithoutDefaults:
        strength: float
        radius: float
        cutoff: float

    monkeypatch.setitem(PAIR_TERMS, "attraction", (SHOWN.Attraction, WithoutDefaults))
    with pytest.raises(ValueError, match=r"attraction needs strength, radius, for which a recipe"):
        train.Recipe(name="mine", data="d.h5", split={}, pair_terms=["attraction"])


def test_a_run_is_logged_interrupted_and_goes_on(tmp_path):
    model, damped = soft(potential()), SHOWN.Damped(0.5 * units.fs, 0.01 / units.fs)
    start = damped.init(model, System.from_ase(ethanol()), temperature=50.0, seed=1)

    def callbacks(folder: Path) -> list[Any]:
        folder.mkdir(exist_ok=True)
        return [
            md.Log(folder / "run.csv", every=5),
            md.H5MDWriter(folder / "run.h5md", every=5),
            md.Checkpoint(folder / "run.checkpoint", every=10),
        ]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    end = md.run(damped, model, start, 40, callbacks=callbacks(whole))
    md.run(damped, model, start, 20, callbacks=callbacks(parts))
    restart = md.load_checkpoint(parts / "run.checkpoint")
    assert restart.integrator == damped
    assert restart.state.step == 20
    resumed = md.run(restart.integrator, model, restart.state, 20, callbacks=callbacks(parts))
    assert torch.equal(resumed.system.positions, end.system.positions)
    assert torch.equal(resumed.heat, end.heat)
    assert (whole / "run.csv").read_text() == (parts / "run.csv").read_text()
    assert "heat_eV" in (whole / "run.csv").read_text().splitlines()[0]
    assert float(end.heat) < 0
    assert float(end.conserved - start.conserved) == pytest.approx(0, abs=2e-3)


def test_an_engine_by_hand_is_the_plain_network():
    plain = potential(disperses=True)
    network = CompiledNetwork(plain.network, SHOWN.Engine(plain.network, 0.5))
    fast = with_modules(plain, network=network)
    assert disagreement(fast, plain) < 1e-12
    graphs = fresh_graphs(plain, System.from_ase([ethanol(), triclinic()]))
    assert_same_result(evaluate(fast, graphs), evaluate(plain, graphs))
    atoms, twin = slab(), slab()
    atoms.calc, twin.calc = AttnCalculator(fast, device="cpu"), AttnCalculator(plain, device="cpu")
    assert atoms.calc.potential.network.engine is not None
    np.testing.assert_allclose(atoms.get_forces(), twin.get_forces(), atol=1e-11)
    np.testing.assert_allclose(atoms.get_stress(), twin.get_stress(), atol=1e-11)


def test_an_engine_in_the_list_is_chosen(monkeypatch):
    monkeypatch.setitem(lowering._ENGINES["cpu"], SHOWN.Density, NAME)
    assert isinstance(lower(potential()).network.engine, SHOWN.Engine)


def test_an_engine_that_is_wrong_is_not_chosen(monkeypatch):
    class Wrong(SHOWN.Engine):
        def linearize(self, graph):
            outputs, pull = super().linearize(graph)
            return Linearized(outputs, lambda d_outputs: 1.01 * pull(d_outputs))

    monkeypatch.setitem(lowering._ENGINES["cpu"], SHOWN.Density, NAME)
    monkeypatch.setattr(SHOWN, "Engine", Wrong)
    plain = potential()
    assert lower(plain) is plain


def test_a_door_gives_what_the_calculator_gives():
    model, atoms = potential(disperses=True), triclinic()
    driver = SHOWN.Driver(model, atoms.numbers)
    atoms.calc = AttnCalculator(model, device="cpu")
    for _ in range(3):
        atoms.positions += 0.01
        atoms.positions[0, 1] += 0.02
        energy, forces, virial = driver(atoms.positions / units.Bohr, atoms.cell / units.Bohr)
        assert energy * units.Hartree == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        force = units.Hartree / units.Bohr
        np.testing.assert_allclose(forces * force, atoms.get_forces(), atol=1e-10)
        stress = -virial * units.Hartree / atoms.get_volume()
        np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-10)
    assert driver.evaluator.neighbors.n_rebuilds == 1
    with pytest.raises(ValueError, match="not trained on"):
        SHOWN.Driver(model, [79])(np.zeros((1, 3)), np.eye(3) * 20)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_a_door_to_a_program_that_divides_a_structure(n_processes):
    """Forces of the parts are those of the whole, while atoms move; one process has no atoms."""
    model, atoms = potential(), rod(4)
    first = np.arange(len(atoms)) < 12
    owned = [np.flatnonzero(first), np.flatnonzero(~first), np.zeros(0, int)][:n_processes]
    channel = Channel(n_processes)
    with ThreadPoolExecutor(n_processes) as threads:
        made = threads.map(
            lambda rank: SHOWN.PartDriver(channel.of(rank), model), range(n_processes)
        )
        drivers = list(made)
        reach, before = drivers[0].evaluator.ghosts_within, atoms.copy()
        for _ in range(3):
            parts = [images_of(before, own, reach) for own in owned]
            # as LAMMPS: ghosts move, but are not chosen again
            moved = atoms.positions - before.positions
            parts = [one._replace(positions=one.positions + moved[one.ids]) for one in parts]
            found = list(
                threads.map(lambda one, images: one(images, box_of(atoms)), drivers, parts)
            )
            forces = np.zeros((len(atoms), 3))
            for own, (_, of_own) in zip(owned, found, strict=True):
                forces[own] = of_own
            expected = evaluate(model, fresh_graphs(model, System.from_ase(atoms)))
            assert [energy for energy, _ in found] == pytest.approx(
                [float(expected.energy)] * n_processes
            )
            np.testing.assert_allclose(forces, expected.forces, atol=1e-10)
            atoms.positions[::2] += 0.01
    assert [driver.evaluator.n_rebuilds for driver in drivers] == [1] * n_processes


def test_a_door_to_a_program_that_divides_refuses_what_cannot_be_divided():
    model, atoms = load("so3krates-organic", device="cpu"), ethanol()
    driver = SHOWN.PartDriver(Channel(1).of(0), model)
    images = images_of(atoms, np.arange(9), 20.0)
    with pytest.raises(ValueError, match="counts all pairs of structures without periodic"):
        driver(images, box_of(atoms))
    with pytest.raises(ValueError, match="read-only"):
        Part().strain_gradient[0, 0] = 1


def test_a_function_may_take_the_place_of_a_model():
    """Forces of another program in our dynamics."""
    model = soft(potential())
    ours = Evaluator(model)

    def foreign(system: System) -> Any:
        return evaluate(model, fresh_graph(system, cutoff=4.0, species=model.species))

    damped = SHOWN.Damped(0.5 * units.fs, 0.01 / units.fs)
    ends = []
    for force in (ours, foreign):
        start = damped.init(force, System.from_ase(ethanol()), temperature=50.0, seed=1)
        ends.append(md.run(damped, force, start, 5).system.positions)
    torch.testing.assert_close(*ends, atol=1e-10, rtol=0)
