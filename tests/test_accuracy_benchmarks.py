"""Scripts of benchmarks/ that train, test and run dynamics: their arithmetic, on tiny cases."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from attncalc.data import Dataset
from attncalc.model_file import shipped_models
from attncalc.train import Recipe

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script of benchmarks/ under its plain name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in ("accuracy", "published", "nvt", "result_files", "mend_silicon"):
        sys.modules.pop(name, None)


def test_every_data_set_has_a_quick_recipe(load):
    accuracy = load("accuracy")
    recipes = [accuracy.recipe_of(name) for name in accuracy.DATA]
    assert sorted(recipes) == sorted(accuracy.QUICK.glob("*.yaml"))
    known = {name for one in load("published").PUBLISHED for name in one.values}
    assert known <= set(accuracy.DATA)


def finished(runs: Path, name: str) -> None:
    """What a training leaves behind, with the numbers of a shipped model."""
    model = shipped_models()["so3krates-silicon"]
    (runs / name).mkdir()
    shutil.copy(model, runs / name / f"{name}.safetensors")
    shutil.copy(model.with_suffix(".md"), runs / name / f"{name}.md")


def test_a_training_that_fails_does_not_stop_the_others(load, monkeypatch, tmp_path):
    accuracy, seen, again = load("accuracy"), [], "so3krates-acac-quick"

    def train(path: Path, data: Path, runs: Path) -> bool:
        seen.append(path.stem)
        if path.stem == again:
            return False
        finished(runs, path.stem)
        return True

    monkeypatch.setattr(accuracy, "train", train)
    monkeypatch.setattr(accuracy.signal, "signal", lambda *_: None)
    arguments = ["accuracy.py", str(tmp_path), "--runs", str(tmp_path / "runs")]
    arguments += ["--output", str(tmp_path), "--only", "acac", "uracil"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        with pytest.raises(SystemExit, match="failed: so3krates-acac-quick"):
            accuracy.main()
    others = ["equiformer-acac", "so3krates-uracil-quick", "equiformer-uracil"]
    assert seen == [again, *others, again]  # once each
    for title in ("So3krates, quick", "Equiformer, an hour"):
        assert f"| uracil | MD17 | {title} |" in (tmp_path / "accuracy.md").read_text()
    assert json.loads((tmp_path / "results" / "accuracy.json").read_text())["rows"]


def test_silicon_is_mended_once(load, tmp_path):
    accuracy = load("accuracy")
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array + 0.02 * np.eye(3, k=1), scale_atoms=True)
    atoms.info["group"] = "Elastic"
    atoms.calc = EMT()
    stress = atoms.get_stress()
    ase.io.write(tmp_path / "mlearn_Si.extxyz", atoms)
    silicon, ethanol = (Recipe.from_yaml(accuracy.recipe_of(x)) for x in ("mlearn-si", "ethanol"))
    assert accuracy.data_file(ethanol, tmp_path, tmp_path) == tmp_path / "rmd17_ethanol.npz"
    file = accuracy.data_file(silicon, tmp_path, tmp_path)
    assert abs(stress[3] - stress[4]) > 1e-3
    swapped = stress[[0, 1, 2, 4, 3, 5]]
    np.testing.assert_allclose(ase.io.read(file, 0).get_stress(), swapped, atol=1e-7)
    alone = ase.io.read(file, -1)
    assert (str(alone.symbols), alone.info["config_type"]) == ("Si", "IsolatedAtom")
    assert alone.get_potential_energy() == -0.79
    (tmp_path / "mlearn_Si.extxyz").unlink()
    assert accuracy.data_file(silicon, tmp_path, tmp_path) == file


def test_lengths_and_angles(load):
    nvt = load("nvt")
    corner = np.array([[1.0, 0, 0], [0, 0, 0], [0, 2.0, 0], [0, 2.0, 3.0]])
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    triples = nvt.angles(pairs)
    assert triples.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert nvt.lengths_of(corner[None], pairs)[0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(nvt.degrees_of(corner[None], triples), 90)
    assert len(nvt.angles(np.array([[0, 1]]))) == 0


def test_the_error_of_a_mean_temperature(load):
    """Of free atoms in a Langevin thermostat, whose momenta are known series."""
    nvt, rng, n_atoms, dt, ps = load("nvt"), np.random.default_rng(0), 9, 0.05, 100.0
    kept = np.exp(-1e3 * nvt.FRICTION * dt)
    momenta = rng.normal(size=(500, 3 * n_atoms))  # in units of the thermal ones
    means = np.zeros(len(momenta))
    n_steps = round(ps / dt)
    for _ in range(n_steps):
        momenta = kept * momenta + np.sqrt(1 - kept**2) * rng.normal(size=momenta.shape)
        means += (momenta**2).mean(1) / n_steps
    assert nvt.TEMPERATURE * means.std() == pytest.approx(
        nvt.error_of_temperature(n_atoms, ps), rel=0.1
    )


def test_overlap_of_histograms(load):
    nvt = load("nvt")
    values, ones = np.random.default_rng(0).normal(size=20_000), np.ones(20_000)
    sample = nvt.Sample(values, ones)
    assert nvt.overlap(sample, sample) == pytest.approx(1)
    assert nvt.overlap(sample, nvt.Sample(values + 100, ones)) == 0
    # two normal distributions two deviations apart share 2 Φ(-1)
    assert nvt.overlap(sample, nvt.Sample(2 + values[::-1], ones)) == pytest.approx(0.317, abs=0.02)


def test_frames_are_weighted_to_another_temperature(load):
    """Twenty-one harmonic modes at 500 K: their energies, and one of their coordinates."""
    nvt, rng = load("nvt"), np.random.default_rng(0)
    modes = rng.normal(scale=np.sqrt(units.kB * 500), size=(100_000, 21))
    energies = 0.5 * (modes**2).sum(axis=1)
    found = nvt.temperature_of(21 / 2 * units.kB * 640, energies)
    assert found == pytest.approx(640, rel=0.01)
    weights = nvt.weights_at(energies, 640)
    assert weights.mean() == pytest.approx(1)
    (sample,) = nvt.by_kind(modes[:, :2], weights, ["x", "x"]).values()
    assert sample.mean == pytest.approx(0, abs=0.005)
    assert sample.std == pytest.approx(np.sqrt(units.kB * 640), rel=0.02)
    with pytest.raises(ValueError, match="too short, or too cold"):
        nvt.temperature_of(100.0, energies)


def vibrating(nvt, wavenumber: float, n: int):
    """Water that drifts while one bond vibrates, a frame every 4 fs, and these frames as data."""
    atoms = molecule("H2O")
    time = 4.0 * np.arange(n)
    omega = 2 * np.pi * nvt.SPEED_OF_LIGHT * wavenumber
    along = atoms.positions[1] - atoms.positions[0]
    positions = np.tile(atoms.positions, (n, 1, 1))
    positions[:, 1] += 0.02 * np.cos(omega * time)[:, None] * along
    velocities = np.full_like(positions, 0.3)
    velocities[:, 1] -= 0.02 * omega * np.sin(omega * time)[:, None] * along
    rng = np.random.default_rng(0)
    temperatures = 500 + rng.normal(size=n)
    energies = rng.gamma(0.5, units.kB * 500, size=n)
    frames = tuple(Atoms("OHH", positions=frame) for frame in positions)
    data = Dataset(structures=frames, energies=energies)
    return atoms, nvt.Trajectory(positions, velocities, temperatures, energies, 4.0), data


def test_the_spectrum_of_one_vibration(load):
    nvt = load("nvt")
    atoms, run, _ = vibrating(nvt, 2300.0, 5000)
    wavenumber, density = nvt.density_of_states(run, atoms.get_masses())
    assert wavenumber[density.argmax()] == pytest.approx(2300, abs=5)
    assert np.trapezoid(density, wavenumber) == pytest.approx(1)
    assert density[0] < 1e-3 * density.max()  # the drift is gone
    omega = 2 * np.pi * nvt.SPEED_OF_LIGHT * 2300
    expected = -500 * (omega * nvt.TIMESTEP) ** 2 / 4
    assert nvt.expected_shift(wavenumber, density) == pytest.approx(expected, rel=0.01)


def test_a_broken_bond_is_seen(load):
    nvt = load("nvt")
    atoms, run, data = vibrating(nvt, 2300.0, 400)
    row, figure = nvt.examined(run, atoms, data)
    assert (row["bonds"], row["broken_frames"]) == (2, 0)
    assert row["with_3N"] == pytest.approx(1500)
    assert row["temperature"] == pytest.approx(500, abs=0.3)
    assert row["data_temperature"] == pytest.approx(500, abs=1e-6)
    assert row["shapes"][0]["name"] == "O-H"
    assert row["shapes"][0]["overlap"] == pytest.approx(1)
    text = nvt.markdown({"so3krates-x": {"machine": "a machine"} | row})
    assert "| so3krates-x | 2 | 400 | 2 | 0 |" in text
    assert figure.axes
    run.positions[7, 1, 1] += 0.5
    assert nvt.examined(run, atoms, data)[0]["broken_frames"] == 1


def test_a_stopped_run_goes_on(load, tmp_path):
    nvt = load("nvt")
    first = molecule("CH3CH2OH")
    for steps in (40, 80):
        nvt.run_until(first, "so3krates-ethanol", tmp_path / "twice", steps)
    nvt.run_until(first, "so3krates-ethanol", tmp_path / "once", 80)
    nvt.run_until(first, "so3krates-ethanol", tmp_path / "once", 80)
    twice, once = (nvt.read_run(tmp_path / name) for name in ("twice", "once"))
    assert twice.interval == nvt.EVERY * nvt.TIMESTEP
    assert len(once.positions) == 11
    np.testing.assert_array_equal(twice.positions, once.positions)
    np.testing.assert_array_equal(twice.velocities, once.velocities)
    kinetic = 0.5 * first.get_masses()[:, None] * (once.velocities / units.fs) ** 2
    kelvin = 2 * kinetic.sum((1, 2)) / (3 * len(first) * units.kB)
    np.testing.assert_allclose(kelvin, once.temperatures, rtol=1e-6)
    with pytest.raises(SystemExit, match="holds a run of so3krates-ethanol"):
        nvt.run_until(first, "so3krates-xtb-small-molecules", tmp_path / "once", 90)
