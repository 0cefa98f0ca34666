"""The benchmark scripts themselves: their arithmetic, their tables, and one real measurement."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script of benchmarks/ under its plain name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in (
        "run",
        "engines",
        "structures",
        "result_files",
        "mend_silicon",
        "train",
        "training_steps",
    ):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "study", sorted((BENCHMARKS / "studies").glob("*.py")), ids=lambda x: x.stem
)
def test_studies_find_what_they_import(study, load, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    runpy.run_path(str(study))


def test_structures_are_what_their_names_say(load):
    systems = load("structures").SYSTEMS
    sizes = {name: len(make()) for name, make in systems.items()}
    assert list(sizes.values()) == [9, 21, 42, 192, 1536, 6144]
    assert systems["peptide"]().get_chemical_formula() == "C12H22N4O4"
    for name in ("water-192", "water-6144"):
        box = systems[name]()
        mass = box.get_masses().sum() * 1.66053907e-24  # g
        assert mass / (box.get_volume() * 1e-24) == pytest.approx(0.997, abs=0.003)
        assert box.pbc.all()


def test_growth_is_the_exponent_with_what_rounds_leave_open(load):
    growth = load("run").growth
    sizes = (192, 1536, 6144)
    exact = [(n, 1e-3 * n**1.2) for n in sizes]
    np.testing.assert_allclose(growth([exact, exact]), 1.2, rtol=1e-12)
    exponent, low, high = growth([exact])
    assert exponent == pytest.approx(1.2)
    assert np.isnan(low)
    assert np.isnan(high)
    # what disturbs all calls of a box in a round: the interval holds the truth as often as it says
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        rounds = [[(n, n * rng.lognormal(sigma=0.03)) for n in sizes] for _ in range(3)]
        _, low, high = growth(rounds)
        hits.append(low < 1.0 < high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_the_edges_that_the_published_equiformer_gets(load):
    engines = load("engines")
    rng = np.random.default_rng(0)
    positions, batch = rng.uniform(0, 4, (12, 3)), np.repeat([0, 1], [5, 7])
    senders, receivers = engines._radius_graph(
        torch.tensor(positions), r=2.5, batch=torch.tensor(batch), max_num_neighbors=1000
    )
    expected = [
        (j, i)
        for i in range(12)
        for j in range(12)
        if i != j and batch[i] == batch[j] and np.linalg.norm(positions[i] - positions[j]) < 2.5
    ]
    assert 10 < len(expected) < 62
    assert list(zip(senders.tolist(), receivers.tolist(), strict=True)) == expected


def test_one_real_measurement(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--engines", "attncalc"]
    command += ["--systems", "ethanol", "--threads", "1", "--rounds", "1", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert (entry["atoms"], entry["edges"]) == (9, 72)
    assert "forward_ms" not in entry, "forces come in the same call"
    assert entry["network_ms"] > 0
    assert entry["peak_MiB"] > entry["imported_MiB"] > 50
    text = (tmp_path / "cpu.md").read_text()
    assert "| ethanol | 9 |" in text
    assert re.search(
        r"- attncalc: So3krates .* \(attncalc .*, torch [\d.]+.*, Python [\d.]+\)", text
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu.json", "cpu.md"]


def test_swapped_shears_are_found_and_mended(load):
    mend = load("mend_silicon")
    stress = np.arange(6.0)
    assert mend.swapped(stress).tolist() == [0, 1, 2, 4, 3, 5]
    assert mend.swapped(mend.swapped(stress)).tolist() == stress.tolist()
    frames = []
    for k in range(6):
        atoms = bulk("Cu", cubic=True)
        change = np.eye(3)
        change[1, 2] = 0.01 * (k + 1)
        atoms.set_cell(atoms.cell.array @ change, scale_atoms=True)
        atoms.calc = EMT()
        frames.append(atoms)
    (row,) = [line for line in mend.evidence(frames) if line.startswith("| yz")]
    change, stored, other = (float(cell) for cell in row.split("|")[2:5])
    assert stored == pytest.approx(change, rel=0.02)
    assert abs(other) < 0.2 * change


def test_a_worker_that_fails_is_told_in_one_line(load):
    failed = load("run").run_worker(sys.executable, ("mace-torch", "ethanol", 1), 0.1)
    assert list(failed) == ["failed"]
    assert "mace" in failed["failed"]
    assert "\n" not in failed["failed"]


def rmd17(folder, n: int) -> None:
    """A file laid out as rMD17's, of ethanol that is rattled."""
    from ase.build import molecule

    rng = np.random.default_rng(0)
    atoms = molecule("CH3CH2OH")
    positions = atoms.positions + rng.normal(scale=0.03, size=(n, len(atoms), 3))
    arrays = {"z": atoms.numbers, "R": positions, "units": "E: eV, R: Angstrom, F: eV/Angstrom"}
    arrays |= {"E": rng.normal(size=n), "F": rng.normal(size=positions.shape)}
    splits = {"train_01": np.arange(n - 10), "test_01": np.arange(n - 10, n)}
    np.savez(folder / "rmd17_ethanol.npz", **arrays, **splits)


def test_a_real_training_step(tmp_path):
    rmd17(tmp_path, n=140)
    command = [sys.executable, str(BENCHMARKS / "train.py"), str(tmp_path), "--rounds", "1"]
    command += ["--engines", "attncalc-eager", "--systems", "ethanol", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "out" / "train.json").read_text())["rows"]
    assert "failed" not in entry, entry
    assert entry["step_ms"] > 0
    assert entry["peak_MiB"] > 100 > entry["held_MiB"] > 1
    text = (tmp_path / "out" / "train.md").read_text()
    assert re.search(r"\| ethanol \| 10 \| attncalc-eager \| [\d.,]+ \|", text)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.json", "train.md"]


def test_joined_models_tell_what_each_was_trained_on(load, tmp_path, monkeypatch):
    from ase.build import molecule

    from attncalc import AttnCalculator
    from attncalc import load as load_model

    ethanol, rng = molecule("CH3CH2OH"), np.random.default_rng(0)
    frames = ethanol.positions + 0.03 * rng.normal(size=(4, 9, 3))
    labels = {"E": rng.normal(size=4), "F": rng.normal(size=(4, 9, 3))}
    data = {"R": frames, "z": ethanol.numbers, **labels, "units": "eV, eV/angstrom"}
    np.savez(tmp_path / "ethanol.npz", **data, test=np.array([3, 1, 0]))
    # a committee that one recipe has trained, from random weights, and a model that had a start
    members = ["so3krates-ethanol-committee", "equiformer-ethanol-distilled"]
    words = [*members, "--data", tmp_path / "ethanol.npz", "--split", "test"]
    output = tmp_path / "joined.safetensors"
    monkeypatch.setattr(sys, "argv", ["join_models.py", *map(str, words), "-o", str(output)])
    load("join_models").main()

    joined = load_model(output)
    told = joined.training_info["members"]
    assert [told[name]["start_from"] for name in members] == [
        "random weights",
        load_model("equiformer-ethanol-distilled").training_info["start_from"]["name"],
    ]
    ethanol.calc = AttnCalculator(output)
    errors = []
    for index in [3, 1, 0]:
        ethanol.positions = frames[index]
        errors.append(np.abs(ethanol.get_forces() - labels["F"][index]).mean())
    mean = joined.training_info["test_errors"]["force_mae"]
    assert mean == pytest.approx(np.mean(errors), abs=1e-6)
    card = output.with_suffix(".md").read_text()
    assert "validation, 3 test |" in card
    assert all(f"| {name} | {told[name]['start_from']} |" in card for name in members)


def test_one_system_has_the_edges_of_the_batch(load):
    from ase.build import molecule

    from attncalc import System
    from attncalc.neighbors import fresh_graph

    script, water = load("batching"), molecule("H2O")
    together = script.in_one_system(water)
    assert len(together) == 3 * script.N_MOLECULES
    batch, one = (
        fresh_graph(System.from_ase(structures), cutoff=4.5, species=(1, 8))
        for structures in ([water] * script.N_MOLECULES, [together])
    )
    assert one.n_edges == batch.n_edges == 6 * script.N_MOLECULES
    for ends in ("receivers", "senders"):
        np.testing.assert_array_equal(getattr(one, ends), getattr(batch, ends))


def test_stretched_water_is_the_same_molecules_further_apart(load):
    script, box = load("batching"), load("structures").water_box((3, 3, 3))
    thin = script.stretched(box, 1.5)
    np.testing.assert_allclose(thin.cell, 1.5 * box.cell)
    molecules = zip(*(x.positions.reshape(-1, 3, 3) for x in (box, thin)), strict=True)
    for before, after in molecules:
        np.testing.assert_allclose(after - after.mean(0), before - before.mean(0), atol=1e-12)
        np.testing.assert_allclose(after.mean(0), 1.5 * before.mean(0))
