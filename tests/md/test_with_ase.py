"""Runs with ASE's integrators: files, seeds, refusals, and the stop before nonsense."""

from __future__ import annotations

import csv
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixBondLengths
from ase.io import read
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from contract import ELEMENTS, randomise

from attncalc import AttnCalculator
from attncalc.md import ENSEMBLES, LogSummary, Settings, read_log, run_with_ase, with_ase
from attncalc.md.log_file import Row
from attncalc.md.noise import seed_of
from attncalc.md.with_ase import COLUMNS
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Potential

COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"


@pytest.fixture(scope="module")
def calculator() -> AttnCalculator:
    """Quick and bound to nothing: a small network with small weights, hardly any forces."""
    config = So3kratesConfig(
        cutoff=3.0,
        avg_num_neighbors=8.0,
        num_features=8,
        num_heads=2,
        degrees=(1,),
        num_layers=1,
        num_basis=4,
        head_features=None,
    )
    network = So3krates(config, len(ELEMENTS)).double()
    randomise(network)
    return AttnCalculator(Potential(network, ELEMENTS))


@pytest.fixture(scope="module")
def copper() -> AttnCalculator:
    return AttnCalculator(COPPER)


@pytest.fixture(scope="module")
def ethanol() -> AttnCalculator:
    return AttnCalculator("so3krates-ethanol")


def water(calculator: AttnCalculator) -> Atoms:
    atoms = molecule("H2O")
    atoms.calc = calculator
    return atoms


def crystal(calculator: AttnCalculator) -> Atoms:
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.calc = calculator
    return atoms


def run_and_read(atoms: Atoms, settings: Settings, path: Path, **options: Any) -> list[Row]:
    """All lines of the log; what the run tells of them is right."""
    summary = run_with_ase(atoms, settings, path, **options)
    rows = read_log(path.with_suffix(".csv"))
    assert summary.n_rows == len(rows)
    assert summary.last == pytest.approx(rows[-1], nan_ok=True)
    return rows


def log_of(trajectory: Path) -> list[dict[str, str]]:
    with open(trajectory.with_suffix(".csv"), newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["run.xyz", "run.extxyz", "run.traj"])
def test_what_lies_on_disk(name: str, tmp_path: Path, calculator: AttnCalculator) -> None:
    atoms = water(calculator)
    settings = Settings("nve", n_steps=25, every=10, timestep=0.5 * units.fs)
    rows = run_and_read(atoms, settings, tmp_path / name)
    frames = read(tmp_path / name, ":")
    assert len(frames) == len(rows) == 4  # steps 0, 10, 20 and the last
    assert rows[-1]["time_fs"] == pytest.approx(12.5)
    assert np.abs(frames[-1].positions - atoms.positions).max() < 1e-7, "where the run ended"
    for frame, row in zip(frames, rows, strict=True):
        assert frame.get_chemical_formula() == "H2O"
        assert frame.get_forces().shape == (3, 3)
        # extended XYZ rounds positions and momenta to eight digits behind the point
        assert frame.get_potential_energy() == pytest.approx(row["potential_eV"], abs=1e-9)
        assert frame.get_kinetic_energy() == pytest.approx(row["kinetic_eV"], abs=1e-6)
        forces = calculator.get_forces(frame)
        assert np.abs(frame.get_forces() - forces).max() < 1e-6, "forces of this very frame"
    table = log_of(tmp_path / name)
    assert tuple(table[0]) == COLUMNS
    assert [{key: float(value) for key, value in line.items()} for line in table] == [
        pytest.approx(row, nan_ok=True) for row in rows
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({name, "run.csv"})


def test_columns_add_up(tmp_path: Path, copper: AttnCalculator) -> None:
    atoms = crystal(copper)
    rows = run_and_read(atoms, Settings("nve", n_steps=4, every=2), tmp_path / "a.xyz")
    assert [row["time_fs"] for row in rows] == pytest.approx([0.0, 1.0, 2.0])
    for row in rows:
        assert row["total_eV"] == pytest.approx(row["potential_eV"] + row["kinetic_eV"])
        assert row["temperature_K"] == pytest.approx(row["kinetic_eV"] / (1.5 * 3 * units.kB))
        assert row["volume_A3"] == pytest.approx(3.6**3)
    assert rows[-1]["potential_eV"] == pytest.approx(atoms.get_potential_energy())
    assert np.isnan(run_and_read(*short(water(copper), tmp_path))[0]["volume_A3"])


def test_a_calculator_without_stress_logs_no_pressure(tmp_path: Path) -> None:
    class Springs(Calculator):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012

        def calculate(self, atoms: Any, properties: Any, changes: Any) -> None:
            super().calculate(atoms, properties, changes)
            self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}

    atoms = bulk("Cu", cubic=True)
    atoms.calc = Springs()
    (row, *_) = run_and_read(atoms, Settings("nvt", n_steps=2, every=1), tmp_path / "a.xyz")
    assert "pressure_GPa" not in row


def short(atoms: Atoms, folder: Path) -> tuple[Atoms, Settings, Path]:
    atoms.symbols[:] = "Cu"
    return atoms, Settings("nve", n_steps=1, every=1), folder / "short.xyz"


@pytest.mark.parametrize("name", ["a.xyz", "a.traj"])
def test_frames_are_complete_while_the_run_goes_on(
    name: str, tmp_path: Path, calculator: AttnCalculator
) -> None:
    """What a kill -9 would leave behind: every frame that was reported."""
    path = tmp_path / name
    seen: list[int] = []

    def look(steps: int, status: str) -> None:
        frames = read(path, ":")
        assert len(frames) == len(log_of(path)) == len(seen) // 5 + 1
        assert frames[-1].get_forces().shape == (3, 3)
        assert status.startswith("T ")
        seen.append(steps)

    run_with_ase(water(calculator), Settings(n_steps=20, every=5), path, progress=look)
    assert seen == [0] + 20 * [1], "also between frames, which may be long in coming"


@pytest.mark.parametrize(("n_steps", "every"), [(12, 5), (3, 10), (10, 5), (1, 1)])
def test_the_last_step_is_a_frame(
    n_steps: int, every: int, tmp_path: Path, calculator: AttnCalculator
) -> None:
    seen: list[int] = []
    rows = run_and_read(
        water(calculator),
        Settings(n_steps=n_steps, every=every),
        tmp_path / "a.xyz",
        progress=lambda steps, _: seen.append(steps),
    )
    assert rows[-1]["time_fs"] == pytest.approx(0.5 * n_steps)
    assert sum(seen) == n_steps
    assert len(read(tmp_path / "a.xyz", ":")) == len(log_of(tmp_path / "a.xyz")) == len(rows)


@pytest.mark.parametrize("name", ["a.xyz", "a.traj"])
@pytest.mark.parametrize("stop", ["write", "add"])
def test_ctrl_c_while_a_frame_is_written(
    name: str, stop: str, tmp_path: Path, calculator: AttnCalculator, monkeypatch
) -> None:
    """It waits: trajectory and log hold the same whole frames."""
    kind, method = (with_ase.Frames, "write") if stop == "write" else (LogSummary, "add")
    third = 3
    original, calls = getattr(kind, method), []

    def interrupted(self, what):
        calls.append(what)
        if len(calls) == third:
            signal.raise_signal(signal.SIGINT)
        return original(self, what)

    monkeypatch.setattr(kind, method, interrupted)
    # what is started in the background inherits that Ctrl-C is ignored
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    said = rf"10 of 50 steps are done; {name} holds 3 whole"
    try:
        with pytest.raises(KeyboardInterrupt, match=said):
            run_with_ase(water(calculator), Settings(n_steps=50, every=5), tmp_path / name)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert len(read(tmp_path / name, ":")) == len(log_of(tmp_path / name)) == 3


def test_a_thread_may_run_dynamics(tmp_path: Path, calculator: AttnCalculator) -> None:
    """Where Python lets nobody touch signals."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_with_ase, water(calculator), Settings(n_steps=3), tmp_path / "a.xyz")
        assert run.result().n_rows == 2


def test_nothing_is_overwritten(tmp_path: Path, calculator: AttnCalculator) -> None:
    for name in ("a.xyz", "a.csv"):
        path = tmp_path / name
        path.write_text("precious")
        with pytest.raises(FileExistsError, match=rf"{name} exists: choose another name"):
            run_with_ase(water(calculator), Settings(n_steps=1), tmp_path / "a.xyz")
        assert path.read_text() == "precious"
        path.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run.h5md", "run", "run.pdb"])
def test_formats_that_are_not_written(name: str, tmp_path: Path, calculator) -> None:
    with pytest.raises(ValueError, match=r"must end in \.xyz, \.extxyz or \.traj"):
        run_with_ase(water(calculator), Settings(n_steps=1), tmp_path / name)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_a_seed_fixes_every_bit(ensemble: str, tmp_path: Path) -> None:
    ends = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        # a calculator of its own each, as in another process
        atoms = crystal(AttnCalculator(COPPER))
        run_with_ase(atoms, Settings(ensemble, n_steps=10, seed=seed), tmp_path / f"{name}.xyz")
        ends[name] = (atoms.positions.copy(), atoms.get_momenta())
    for same, other in zip(ends["a"], ends["b"], strict=True):
        assert np.array_equal(same, other)
    assert not np.array_equal(ends["a"][0], ends["c"][0])
    assert (tmp_path / "a.xyz").read_bytes() == (tmp_path / "b.xyz").read_bytes()


def test_a_run_that_continues_another_has_other_noise(
    tmp_path: Path, calculator: AttnCalculator
) -> None:
    """With equal noise it would become a copy of the run before."""
    start = water(calculator)
    run_with_ase(start, Settings(n_steps=5), tmp_path / "first.xyz")
    ends = {}
    for seed in (None, 0, seed_of(start.get_momenta())):
        atoms = start.copy()
        atoms.calc = calculator
        run_with_ase(atoms, Settings(n_steps=5, seed=seed), tmp_path / f"{seed}.xyz")
        ends[seed] = atoms.get_momenta()
    of_default, of_zero, of_momenta = ends.values()
    assert np.array_equal(of_default, of_momenta)
    assert np.abs(of_default - of_zero).max() > 0.1 * np.abs(of_zero).max()


def test_initial_velocities(tmp_path: Path, calculator: AttnCalculator) -> None:
    """Drawn without net momentum and, for a molecule, without rotation; kept if there are some."""
    atoms = molecule("C6H6")
    atoms.calc = calculator
    settings = Settings("nve", n_steps=1, every=1, timestep=0.01 * units.fs)
    run_with_ase(atoms, settings, tmp_path / "a.xyz")
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-8
    assert np.abs(atoms.get_angular_momentum()).max() < 1e-8
    given = atoms.get_momenta()
    assert given.any()
    run_with_ase(atoms, settings, tmp_path / "b.xyz")
    assert np.abs(atoms.get_momenta() - given).max() < 1e-2 * np.abs(given).max()


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_the_log_starts_at_the_temperature_asked_for(
    ensemble: str, tmp_path: Path, copper: AttnCalculator
) -> None:
    settings = Settings(ensemble, n_steps=1, temperature=250)
    first = run_and_read(crystal(copper), settings, tmp_path / "a.xyz")[0]
    assert first["temperature_K"] == pytest.approx(250)
    n_dof = 12 if ensemble == "nvt" else 9
    assert first["kinetic_eV"] == pytest.approx(n_dof * units.kB * 250 / 2)


def test_nve_of_water_starts_warm(tmp_path: Path, calculator: AttnCalculator) -> None:
    first = run_and_read(water(calculator), Settings("nve", n_steps=1), tmp_path / "a.xyz")[0]
    assert first["temperature_K"] == pytest.approx(300)
    assert first["kinetic_eV"] == pytest.approx(3 * units.kB * 300 / 2)


# ------------------------------------------------------------------------------------ ensembles


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_every_ensemble_runs(ensemble: str, tmp_path: Path, copper: AttnCalculator) -> None:
    atoms = crystal(copper)
    start = atoms.positions.copy()
    settings = Settings(ensemble, n_steps=20, every=5, timestep=2.0 * units.fs, pressure=1.0)
    rows = run_and_read(atoms, settings, tmp_path / "a.xyz")
    assert len(rows) == 5
    assert np.abs(atoms.positions - start).max() > 0.01
    total, volume = (np.array([row[k] for row in rows]) for k in ("total_eV", "volume_A3"))
    # velocity Verlet keeps its energy to 1 meV here, Langevin moves it by tens of meV
    assert ensemble == "npt" or (np.ptp(total) < 2e-3) == (ensemble == "nve")
    assert (np.ptp(volume) > 0) == (ensemble == "npt")


@pytest.mark.parametrize("pressure", [0.0, 20.0])
def test_npt_is_ase_s_barostat_in_gpa(
    pressure: float, tmp_path: Path, copper: AttnCalculator
) -> None:
    start = crystal(copper)
    momenta = np.random.default_rng(0).normal(size=(4, 3))
    start.set_momenta(momenta - momenta.mean(axis=0))
    atoms, expected = start.copy(), start.copy()
    atoms.calc = expected.calc = copper
    settings = Settings(
        "npt", n_steps=30, timestep=2.0 * units.fs, temperature=400, pressure=pressure
    )
    run_with_ase(atoms, settings, tmp_path / "a.xyz")
    IsotropicMTKNPT(
        expected,
        2 * units.fs,
        # it would heat 12 degrees of freedom, of which 3 stay cold
        temperature_K=400 * 9 / 12,
        pressure_au=pressure * units.GPa,
        tdamp=200 * units.fs,
        pdamp=2000 * units.fs,
    ).run(30)
    # 0 and 20 GPa are a thousand times further apart
    assert atoms.get_volume() == pytest.approx(expected.get_volume(), rel=1e-8)
    assert np.allclose(atoms.positions, expected.positions, atol=1e-6)


def test_npt_is_without_drift(tmp_path: Path, copper: AttnCalculator) -> None:
    """ASE's thermostat would take it for heat, and what is left would be too cold."""
    atoms, told = crystal(copper), []
    before = np.random.default_rng(0).normal(size=(len(atoms), 3)) / 100
    atoms.set_velocities(before)
    still = before - atoms.get_momenta().sum(0) / atoms.get_masses().sum()
    for velocities, said in ((before, 1), (still, 0)):
        told.clear()
        atoms.set_velocities(velocities)
        run = tmp_path / f"{said}.xyz"
        run_with_ase(atoms, Settings("npt", n_steps=1), run, tell=told.append)
        assert len(told) == said
        np.testing.assert_allclose(read(run, 0).get_velocities(), still, atol=1e-6)


def test_npt_needs_a_crystal(tmp_path: Path, calculator: AttnCalculator) -> None:
    boxed = water(calculator)
    boxed.cell = [9.0, 9.0, 9.0]
    boxed.pbc = [True, True, False]
    for atoms in (water(calculator), boxed):
        with pytest.raises(ValueError, match='"npt" needs a structure that is periodic in all'):
            run_with_ase(atoms, Settings("npt", n_steps=1), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_langevin_s_friction_is_per_femtosecond(tmp_path: Path, copper: AttnCalculator) -> None:
    """400 free atoms: their mean momentum decays by exp(-friction t)."""
    places = np.stack(np.meshgrid(*3 * [np.arange(8)], indexing="ij"), axis=-1).reshape(-1, 3)
    atoms = Atoms("Cu400", positions=20.0 * places[:400])
    atoms.calc = copper
    thermal = np.sqrt(atoms.get_masses()[0] * units.kB * 300)
    atoms.set_momenta(np.tile([5 * thermal, 0, 0], (400, 1)))
    settings = Settings(
        "nvt", n_steps=100, every=100, timestep=0.5 * units.fs, friction=0.02 / units.fs
    )
    run_with_ase(atoms, settings, tmp_path / "a.xyz")
    decayed = 5 * np.exp(-0.02 * 50)
    # four standard errors of a mean over 400 atoms
    assert atoms.get_momenta()[:, 0].mean() / thermal == pytest.approx(decayed, abs=4 / 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nph"}, "ensemble must be one of 'nve', 'nvt', 'npt', got 'nph'"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"n_steps": 10.5}, "n_steps must be a whole number, got 10.5"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"every": True}, "every must be a whole number, got True"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"seed": 2**32}, "seed must be at most 4294967295, got 4294967296"),
        ({"timestep": -0.5}, "timestep must be positive, got -0.5"),
        ({"timestep": "1"}, "timestep must be a number, got '1'"),
        ({"timestep": 0.5}, r"timestep 0.5 is 5.09 fs: times are in ASE's unit, write 0.5 \* ase"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"temperature": float("inf")}, "temperature must be finite, got inf"),
        ({"friction": 0.0}, "friction must be positive, got 0.0"),
        ({"pressure": float("nan")}, "pressure must be a finite number, got nan"),
        ({"pressure": float("-inf")}, "pressure must be a finite number, got -inf"),
    ],
)
def test_impossible_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_settings_take_numpy_s_numbers() -> None:
    Settings(n_steps=np.int64(5), seed=np.uint32(2**32 - 1), timestep=np.float32(0.05), pressure=-1)


# ----------------------------------------------------------------------------------- explosions


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_a_timestep_that_is_far_too_long(
    ensemble: str, tmp_path: Path, ethanol: AttnCalculator
) -> None:
    """A thermostat would cool the debris between two frames: the guard looks at every step."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = ethanol
    settings = Settings(ensemble, n_steps=1000, timestep=20.0 * units.fs, every=50)
    with pytest.raises(FloatingPointError, match=r"stopped at \d+\.0 fs: ") as error:
        run_with_ase(atoms, settings, tmp_path / "a.xyz")
    assert "the last valid frame is in a.xyz. Relax the structure first" in str(error.value)
    assert "\n" not in str(error.value)
    frames = read(tmp_path / "a.xyz", ":")
    assert len(frames) == len(log_of(tmp_path / "a.xyz")) < 100
    assert np.isfinite(frames[-1].get_forces()).all()
    assert frames[-1].get_temperature() < 6000
    assert np.isfinite(frames[-1].get_potential_energy())


class Fails(AttnCalculator):
    """Meets an impossible structure at some step."""

    def calculate(self, atoms, properties, system_changes) -> None:
        if self.n_updates == 8:
            atoms = atoms.copy()
            atoms.positions[1] = np.nan
        super().calculate(atoms, properties, system_changes)


def test_positions_that_are_lost_stop_the_run_too(tmp_path: Path) -> None:
    atoms = crystal(Fails(COPPER))
    with pytest.raises(
        FloatingPointError, match=r"stopped at 3\.5 fs: the position of atom 1 .* is not finite"
    ):
        run_with_ase(atoms, Settings(n_steps=50, every=5), tmp_path / "a.xyz")
    assert len(read(tmp_path / "a.xyz", ":")) == 2  # steps 0 and 5


def test_a_structure_that_is_impossible_from_the_start(tmp_path: Path, copper) -> None:
    """No run, so no advice about runs: the calculator's own message."""
    atoms = water(copper)
    with pytest.raises(ValueError, match="not trained on"):
        run_with_ase(atoms, Settings(n_steps=5), tmp_path / "a.xyz")


def test_settings_of_version_0_1_counted_in_fs() -> None:
    now = Settings("nvt", timestep=0.5 * units.fs, friction=0.02 / units.fs)
    assert Settings.from_stored(now.stored()) == now
    then = {"ensemble": "nvt", "timestep": 0.5, "friction": 0.02}
    assert Settings.from_stored(then) == now


def test_bonds_of_fixed_length_keep_it(ethanol: AttnCalculator, tmp_path: Path) -> None:
    """BAOAB moves positions without asking constraints."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = ethanol
    atoms.set_constraint(FixBondLengths([[2, 3]]))
    length = atoms.get_distance(2, 3)
    settings = Settings(n_steps=200, every=20, friction=0.05 / units.fs)
    run_with_ase(atoms, settings, tmp_path / "run.xyz")
    for frame in read(tmp_path / "run.xyz", ":"):
        assert frame.get_distance(2, 3) == pytest.approx(length, abs=1e-6)


def test_constraints_at_constant_pressure_are_refused(copper: AttnCalculator, tmp_path: Path):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = copper
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="ASE's npt knows no constraints"):
        run_with_ase(atoms, Settings(ensemble="npt"), tmp_path / "run.xyz")
