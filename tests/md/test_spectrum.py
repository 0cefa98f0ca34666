"""Spectra of motion that is known in closed form, and of files that give none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from scipy import constants

from attncalc import md
from attncalc.md import spectrum as module
from attncalc.md.h5md_writer import H5MDWriter
from attncalc.md.spectrum import Spectrum, autocorrelation, csv_of, spectrum_of
from attncalc.result import Result
from attncalc.system import System

SPRING, LENGTH = 60.0, 1.1  # eV/Å², Å
CHARGE = 0.3  # e
TIMESTEP = 0.25 * units.fs


def springs(system: System) -> Result:
    """A spring between each atom and the next of its molecule.

    Charges alternate and add up to none, or have equal parts of the total charge.
    """
    ends = torch.arange(1, system.n_atoms)
    ends = ends[system.system_idx[1:] == system.system_idx[:-1]]
    vectors = system.positions[ends] - system.positions[ends - 1]
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    pull = (SPRING * (lengths - LENGTH) / lengths).unsqueeze(1) * vectors
    forces = torch.zeros_like(system.positions)
    forces = forces.index_add(0, ends, -pull).index_add(0, ends - 1, pull)
    energies = torch.zeros(system.n_atoms, dtype=torch.float64)
    energies = energies.index_add(0, ends, 0.5 * SPRING * (lengths - LENGTH) ** 2)
    of_systems = torch.zeros(system.n_systems, dtype=torch.float64)
    sizes = torch.bincount(system.system_idx)[system.system_idx]
    signs = 1.0 - 2.0 * (system.atom_in_system % 2)
    charges = torch.where(sizes == 3, torch.where(signs > 0, -0.5, 1.0), signs) * CHARGE
    charges = charges + system.charge[system.system_idx] / sizes
    return Result(
        energy=of_systems.index_add(0, system.system_idx, energies),
        energies=energies,
        forces=forces,
        strain_gradient=torch.zeros(system.n_systems, 3, 3, dtype=torch.float64),
        charges=charges.double(),
    )


CO = Atoms("CO", [[0, 0, 0], [0, 0, LENGTH]])
CO2 = Atoms("OCO", [[0, 0, -LENGTH], [0, 0, 0], [0, 0, LENGTH]])


def wavenumber(force_constant: float, mass: float) -> float:
    """1/cm, of velocity Verlet at this timestep; of eV/Å² and amu."""
    omega = np.sqrt(force_constant / mass)
    omega = 2 / TIMESTEP * np.arcsin(omega * TIMESTEP / 2)
    return omega * units.fs / (2 * np.pi) / (constants.c * 1e-13)


def trajectory(path: Path, structures, n_steps: int, *, every: int = 4, **given) -> Path:
    integrator = md.Verlet(TIMESTEP)
    state = integrator.init(springs, System.from_ase(structures), **given)
    writer = H5MDWriter(path, every=every, write=("dipole",))
    md.run(integrator, springs, state, n_steps, callbacks=[writer])
    return path


def near(found: Spectrum, values, expected: float) -> float:
    """Largest value within a width of a line."""
    return values[abs(found.wavenumbers - expected) < found.resolution].max()


def test_a_diatomic_of_point_charges(tmp_path: Path) -> None:
    path = trajectory(tmp_path / "co.h5md", [CO] * 3, 8_000, temperature=[100, 200, 300], seed=1)
    found = spectrum_of(path, resolution=40)
    assert found.n_systems == 3
    assert found.spacing == pytest.approx(1.0)
    assert found.resolution == pytest.approx(40, rel=0.01)
    assert found.temperature == pytest.approx(100, rel=0.01), "half of it is potential energy now"
    carbon, oxygen = CO.get_masses()
    reduced = carbon * oxygen / (carbon + oxygen)
    expected = wavenumber(SPRING, reduced)
    assert 1500 < expected < 2500
    for values in (found.vdos, found.infrared):
        peaks = found.peaks(values)
        assert abs(peaks[0][0] - expected) < 1, "well within the resolution of 40"
        assert not peaks[1:], "and nothing else"
        above = found.wavenumbers[values > peaks[0][1] / 2]
        assert np.ptp(above) == pytest.approx(found.resolution, rel=0.15), "width at half maximum"
    # it does not turn, so the bond is all there is: 3 N - 5
    assert found.integral(found.vdos) == pytest.approx(1, rel=1e-12)
    # N_A (dM / dQ)² / 12 epsilon_0 c², dM / dQ = q / sqrt(reduced mass)
    factor = constants.N_A * constants.e**2 / (12 * constants.epsilon_0 * constants.c**2)
    intensity = 1e-3 * factor * CHARGE**2 / (reduced * constants.u)
    assert intensity == pytest.approx(974.88 * CHARGE**2 / reduced, rel=1e-4), "as in textbooks"
    # velocities of Verlet, and so the temperature, lack (omega timestep)² / 3 = 0.3 %
    assert found.integral(found.infrared) == pytest.approx(intensity, rel=4e-3)


def test_the_drift_of_an_ion_is_no_vibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dipole is that about the centre of mass, whatever the origin."""
    ion = CO.copy()
    ion.info["charge"] = 1
    masses = ion.get_masses()[:, None]
    stretch = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    still, drifting = (
        spectrum_of(
            trajectory(tmp_path / name, [ion], 4_000, momenta=stretch + masses * velocity),
            resolution=80,
        )
        for name, velocity in (("still.h5md", 0.0), ("drift.h5md", np.array([0.02, 0, 0.01])))
    )
    ((_, height),) = still.peaks(still.infrared)
    # temperatures without drift are equal, and so are the units
    np.testing.assert_allclose(drifting.infrared, still.infrared, rtol=0, atol=1e-6 * height)
    assert abs(drifting.infrared[0]) < 1e-3 * height
    assert drifting.integral(drifting.vdos) > 1.1 * still.integral(still.vdos), "drift counts here"
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # frame by frame
    again = spectrum_of(tmp_path / "drift.h5md", resolution=80)
    np.testing.assert_allclose(again.infrared, drifting.infrared, rtol=0, atol=1e-12 * height)


def test_what_moves_no_dipole_is_not_in_the_infrared(tmp_path: Path) -> None:
    carbon, oxygen = CO2.get_masses()[1], CO2.get_masses()[0]
    symmetric, asymmetric = (
        wavenumber(SPRING, oxygen),
        wavenumber(SPRING, 1 / (1 / oxygen + 2 / carbon)),
    )
    momenta = np.zeros((3, 3))
    momenta[:, 2] = [1.0 - 0.6, 1.2, -1.0 - 0.6]  # of both stretches
    path = trajectory(tmp_path / "co2.h5md", [CO2], 4_000, momenta=momenta)
    found = spectrum_of(path, resolution=80)
    both = sorted(peak for peak, _ in found.peaks(found.vdos))
    assert both == pytest.approx(sorted([symmetric, asymmetric]), abs=2)
    ((only, height),) = found.peaks(found.infrared)
    assert only == pytest.approx(asymmetric, abs=2)
    assert abs(near(found, found.infrared, symmetric)) < 1e-3 * height


def test_degrees_of_freedom_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All motion is counted, and blocks of any size give the same."""
    carbon_dioxide = CO2.copy()
    carbon_dioxide.positions[1, 0] = 0.3
    path = trajectory(tmp_path / "run.h5md", [carbon_dioxide], 4_001, every=3, temperature=50)
    found = spectrum_of(path, resolution=80)
    assert found.n_frames == 1334, "the last frame, which comes early, does not count"
    assert found.integral(found.vdos) == pytest.approx(3, rel=1e-9), "3 N - 6"
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # atom by atom
    monkeypatch.setattr(module, "_block", lambda n_lags: n_lags + 7)
    done = []
    again = spectrum_of(path, resolution=80, progress=lambda *numbers: done.append(numbers))
    assert done == sorted(set(done))
    assert done[-1] == (3 * 1334, 3 * 1334)
    np.testing.assert_allclose(again.vdos, found.vdos, rtol=0, atol=1e-12 * found.vdos.max())
    np.testing.assert_allclose(
        again.infrared, found.infrared, rtol=0, atol=1e-12 * found.infrared.max()
    )


@pytest.mark.parametrize(("n_frames", "n_lags"), [(20, 5), (1000, 300), (700, 300), (1025, 1)])
def test_autocorrelation_by_its_definition(n_frames: int, n_lags: int) -> None:
    series = np.random.default_rng(0).normal(size=(n_frames, 3)).cumsum(axis=0)
    read: list[int] = []

    def rows(first: int, last: int):
        read.append(last - first)
        return series[first:last]

    found = autocorrelation(rows, n_frames, n_lags)
    for lag in (0, n_lags // 2, n_lags - 1):
        products = series[: n_frames - lag] * series[lag:]
        assert found[lag] == pytest.approx(products.sum() / (n_frames - lag), rel=1e-10)
    assert max(read) <= 2 * max(n_lags, 256)


def test_a_batch_of_others_and_one_of_it(tmp_path: Path) -> None:
    path = trajectory(tmp_path / "run.h5md", [CO, CO2, CO], 2_000, temperature=100)
    message = r"run\.h5md: systems 0 and 1 have different elements: choose one of the batch"
    with pytest.raises(ValueError, match=message):
        spectrum_of(path, resolution=200)
    assert spectrum_of(path, resolution=200, system=1).n_systems == 1
    with pytest.raises(IndexError, match="holds 3 systems, not number 3"):
        spectrum_of(path, resolution=200, system=3)


def test_isotopologues_have_no_mean(tmp_path: Path) -> None:
    masses = [12.011, 15.999, 13.003, 15.999]
    options = {"temperature": 100, "masses": masses}
    path = trajectory(tmp_path / "run.h5md", [CO, CO], 400, **options)
    with pytest.raises(ValueError, match="systems 0 and 1 have different masses: choose one"):
        spectrum_of(path, resolution=200)


def test_frames_that_show_no_spectrum(tmp_path: Path) -> None:
    path = trajectory(tmp_path / "run.h5md", [CO], 400, every=40, temperature=100)
    for options, message in (
        (
            {},
            "frames are 10 fs apart and show frequencies up to 1668 1/cm; for 2500 1/cm they must "
            "be 6.67 fs apart or less: write them every 26 steps, or, if there is no faster "
            "motion, state a lower highest frequency",
        ),
        ({"highest": 1e6}, "0.0167 fs apart or less: take a shorter timestep, or"),
        (
            {"highest": 1600},
            "too few frames: a resolution of 10 1/cm needs 668, 6.68 ps, and there are 11: "
            "continue the run, or take a resolution (--resolution) of 668 1/cm or more",
        ),
        ({"highest": 400}, "and there are 11: continue the run"),
        ({"highest": 100, "resolution": 200}, "a resolution of 200 1/cm shows nothing below 100"),
        ({"resolution": 0}, "resolution must be positive, got 0"),
        ({"highest": float("nan")}, "highest must be positive, got nan"),
    ):
        with pytest.raises(ValueError) as error:
            spectrum_of(path, **options)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert spectrum_of(path, highest=1600, resolution=668).n_frames == 11
    one = trajectory(tmp_path / "one.h5md", [CO], 1, temperature=100)
    with pytest.raises(ValueError, match="too few frames for a spectrum: 2"):
        spectrum_of(one)
    still = trajectory(tmp_path / "still.h5md", [CO], 200, momenta=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="nothing moves"):
        spectrum_of(still, resolution=2000)
    with pytest.raises(FileNotFoundError):
        spectrum_of(tmp_path / "none.h5md")


@pytest.mark.parametrize(("symbols", "highest"), [("CO", 2500.0), ("OH", 4500.0)])
def test_bonds_with_hydrogen_are_faster(symbols: str, highest: float, tmp_path: Path) -> None:
    pair = Atoms(symbols, CO.positions)
    path = trajectory(tmp_path / "pair.h5md", [pair], 200, temperature=300, seed=1)
    assert spectrum_of(path, resolution=1500).highest == highest


@pytest.mark.parametrize(
    ("highest", "centres"), [(1900.0, [1501.0, 1000.0]), (1480.0, [1000.0]), (900.0, [])]
)
def test_a_slope_that_is_cut_off_is_no_peak(highest: float, centres: list[float]) -> None:
    wavenumbers = np.arange(0.0, 2000.0, 2.5)
    heights = {1000.0: 1.0, 1501.0: 5.0, 3.0: 9.0}
    values = sum(h * np.exp(-(((wavenumbers - c) / 25) ** 2)) for c, h in heights.items())
    spectrum = Spectrum(wavenumbers, values, None, 10.0, highest, *[1.0] * 5)
    found = spectrum.peaks(values)
    assert [peak for peak, _ in found] == pytest.approx(centres, abs=0.01)
    assert [height for _, height in found] == pytest.approx([heights[c] for c in centres], rel=1e-4)


def test_numbers_as_text(tmp_path: Path) -> None:
    path = trajectory(tmp_path / "run.h5md", [CO], 400, every=2, temperature=100)
    found = spectrum_of(path, resolution=700)
    head, *lines = csv_of(found).splitlines()
    assert head == "wavenumber_per_cm,vdos_cm,infrared_km_cm_per_mol"
    rows = np.array([[float(value) for value in line.split(",")] for line in lines])
    n = len(rows)
    assert found.wavenumbers[n - 1] <= found.highest < found.wavenumbers[n]
    np.testing.assert_allclose(rows[:, 0], found.wavenumbers[:n], rtol=1e-8)
    np.testing.assert_allclose(rows[:, 1], found.vdos[:n], rtol=1e-8)
    np.testing.assert_allclose(rows[:, 2], found.infrared[:n], rtol=1e-8)


def test_a_first_frame_between_two_multiples_does_not_count(tmp_path: Path) -> None:
    """As after an equilibration of an odd number of steps."""
    integrator = md.Verlet(TIMESTEP)
    first = integrator.init(springs, System.from_ase([CO]), temperature=100, seed=1)
    found = []
    for n_before in (101, 104):
        state = md.run(integrator, springs, first, n_before)
        path = tmp_path / f"{n_before}.h5md"
        writer = H5MDWriter(path, every=4, write=("dipole",))
        md.run(integrator, springs, state, 4104 - n_before, callbacks=[writer])
        found.append(spectrum_of(path, resolution=80))
    assert [one.n_frames for one in found] == [1001, 1001]
    np.testing.assert_allclose(found[0].vdos, found[1].vdos, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found[0].infrared, found[1].infrared, rtol=1e-9, atol=1e-12)
