"""Constant pressure: cells whose distribution is known, and exact restarts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from states import assert_equal
from toys import assert_mean, gas, zeros_of

from attncalc import System, load, md
from attncalc.evaluator import Evaluator
from attncalc.md.cell_rescaling import deform
from attncalc.md.checkpoint import save_checkpoint
from attncalc.neighbors import ImpossiblePositions, neighbor_list
from attncalc.result import Result, volumes

FS = units.fs
KELVIN = 300.0
THERMAL = units.kB * KELVIN  # eV
COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
BOX = 12.0  # Å
# of an ideal gas of 4 atoms in that box; its compressibility is 1 / pressure
PRESSURE = 4 * THERMAL / BOX**3
NPT = md.CellRescaling(
    timestep=2 * FS,
    temperature=KELVIN,
    pressure=PRESSURE,
    relaxation=20 * FS,
    cell_relaxation=150 * FS,
    compressibility=1 / PRESSURE,
)
# of copper, by its own model
CRYSTAL = md.CellRescaling(
    timestep=4 * FS,
    temperature=KELVIN,
    pressure=2 * units.GPa,
    relaxation=50 * FS,
    cell_relaxation=200 * FS,
    compressibility=0.007 / units.GPa,
)
N_SYSTEMS = 250


def volumes_of_a_gas(n_atoms: int, pressure: float) -> np.ndarray:
    """[N_SYSTEMS] Å³, by the distribution V^n exp(-P V / kT)."""
    return np.random.default_rng(1).gamma(n_atoms + 1, THERMAL / pressure, N_SYSTEMS)


def cubes(volumes: np.ndarray) -> np.ndarray:
    return np.cbrt(volumes)[:, None, None] * np.eye(3)


def sampled(integrator: md.CellRescaling, force, state: md.MDState, n: int) -> list[md.MDState]:
    """Every fifth state of a run, without those of the first 100 steps."""
    states = []
    for step in range(n):
        state = integrator.step(state, force)
        if step >= 100 and step % 5 == 0:
            states.append(state)
    return states


# ------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize("fixed", [False, True])
def test_volume_and_pressure_of_an_ideal_gas(fixed: bool) -> None:
    """All atoms count, though their centre of mass rests; fixed ones do not."""
    n = 3 if fixed else 4
    cells = cubes(volumes_of_a_gas(n, PRESSURE))
    options = {"fixed": torch.arange(4 * N_SYSTEMS) % 4 == 2} if fixed else {}
    first = NPT.init(zeros_of, System.from_ase(gas(4, cells)), **options)
    assert first.n_dof.tolist() == [9] * N_SYSTEMS
    states = sampled(NPT, zeros_of, first, 1000)
    # V P / kT, of mean n + 1 and variance n + 1
    reduced = np.array([volumes(state.system).numpy() for state in states]) * PRESSURE / THERMAL
    assert_mean(reduced, n + 1, bias=0.01)
    assert_mean((reduced - (n + 1)) ** 2, n + 1, bias=0.03)
    assert_mean(np.array([state.pressure.numpy() for state in states]) / PRESSURE, 1.0, bias=0.01)
    heat = np.array([state.temperature.numpy() for state in states]) / KELVIN
    assert_mean(heat, 1.0, bias=0.005)
    assert_mean((heat - 1) ** 2, 2 / 9, bias=0.01)
    if fixed:
        still = options["fixed"]
        systems = [state.system for state in (first, states[-1])]
        places = [s.positions / s.cell[s.system_idx, :1, 0] for s in systems]
        torch.testing.assert_close(places[0][still], places[1][still], rtol=1e-10, atol=1e-10)


def spring_of_volume(strength: float, volume: float):
    """U = strength / 2 (V - volume)², in eV and Å³."""

    def force(system: System) -> Result:
        gas = zeros_of(system)
        volumes = torch.linalg.det(system.cell).abs()
        stretch = volumes - volume
        pressure = (strength * stretch * volumes)[:, None, None] * torch.eye(3).double()
        return replace(gas, energy=0.5 * strength * stretch**2, strain_gradient=pressure)

    return force


@pytest.mark.parametrize("isotropic", [True, False])
def test_a_volume_on_a_spring(isotropic: bool) -> None:
    """Also where the shape, which nothing holds, wanders off."""
    n, volume, strength = 4, 1000.0, THERMAL / 200.0**2
    grid = np.linspace(1.0, 2500.0, 20_000)
    log_weight = n * np.log(grid) - (PRESSURE * grid + 0.5 * strength * (grid - volume) ** 2) / (
        THERMAL
    )
    weights = np.exp(log_weight - log_weight.max())
    weights /= weights.sum()
    mean = weights @ grid
    variance = weights @ (grid - mean) ** 2
    integrator = replace(NPT, compressibility=1 / (volume * strength), isotropic=isotropic)
    chosen = np.random.default_rng(2).choice(grid, N_SYSTEMS, p=weights)
    force = spring_of_volume(strength, volume)
    first = integrator.init(force, System.from_ase(gas(n, cubes(chosen))))
    states = sampled(integrator, force, first, 700)
    found = np.array([volumes(state.system).numpy() for state in states])
    assert_mean(found, mean, bias=0.01)
    assert_mean((found - mean) ** 2, variance, bias=0.03)
    assert_mean(np.array([s.pressure.numpy() for s in states]) / PRESSURE, 1.0, bias=0.01)
    shape = states[-1].system.cell / torch.linalg.det(states[-1].system.cell)[:, None, None] ** (
        1 / 3
    )
    off = (shape - torch.eye(3)).abs().amax()
    assert off < 1e-12 if isotropic else off > 0.01


METRIC = BOX**2 * np.array([[1.0, 0.2, 0.1], [0.2, 1.2, -0.1], [0.1, -0.1, 0.9]])
STIFFNESS = THERMAL / (0.12 * BOX**2) ** 2  # eV/Å⁴


def spring_of_metric(system: System) -> Result:
    """U = STIFFNESS / 2 |cell cellᵀ - METRIC|², which holds lengths and angles."""
    cell = system.cell
    off = cell @ cell.mT - torch.from_numpy(METRIC)
    energy = 0.5 * STIFFNESS * (off * off).sum((1, 2))
    strain_gradient = 2 * STIFFNESS * cell.mT @ off @ cell
    return replace(zeros_of(system), energy=energy, strain_gradient=strain_gradient)


def metrics(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Metric tensors [n, 3, 3] by exp(-U / kT), and weights V^(n_atoms - 3) exp(-P V / kT).

    Cells h have the weight V^(n_atoms - 2) dh, and dh is dG / V for G = h hᵀ.
    """
    rng = np.random.default_rng(3)
    width = np.sqrt(THERMAL / STIFFNESS)
    noise = rng.normal(size=(n, 3, 3)) * width
    symmetric = np.triu(noise, 1) / np.sqrt(2)
    symmetric = symmetric + symmetric.transpose(0, 2, 1) + noise * np.eye(3)
    found = METRIC + symmetric
    definite = np.linalg.eigvalsh(found).min(axis=1) > 0
    volume = np.sqrt(np.linalg.det(found).clip(min=1e-9))
    weights = definite * volume ** (4 - 3) * np.exp(-PRESSURE * volume / THERMAL)
    return found, weights / weights.sum()


def test_lengths_and_angles_on_springs() -> None:
    """Means and variances of the metric tensor, against weighted random numbers."""
    expected, weights = metrics(1_000_000)
    mean = np.einsum("n,nab->ab", weights, expected)
    variance = np.einsum("n,nab->ab", weights, (expected - mean) ** 2)
    chosen = expected[np.random.default_rng(4).choice(len(expected), N_SYSTEMS, p=weights)]
    compressibility = 1 / (BOX**4 * STIFFNESS * 2) * BOX**3  # roughly
    integrator = replace(NPT, isotropic=False, compressibility=compressibility)
    first = integrator.init(spring_of_metric, System.from_ase(gas(4, np.linalg.cholesky(chosen))))
    states = sampled(integrator, spring_of_metric, first, 700)
    cells = np.array([state.system.cell.numpy() for state in states])
    assert np.abs(np.triu(cells, 1)).max() < 1e-9, "the orientation stays"
    found = cells @ cells.swapaxes(2, 3)
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        width = np.sqrt(variance[a, b])
        assert_mean((found[:, :, a, b] - mean[a, b]) / width + 1, 1.0, bias=0.03)
        assert_mean((found[:, :, a, b] - mean[a, b]) ** 2 / width**2, 1.0, bias=0.04)


@pytest.mark.parametrize("isotropic", [True, False])
def test_a_volume_relaxes_in_the_time_that_was_asked_for(isotropic: bool) -> None:
    """Of a spring whose compressibility is given, without heat: as exp(-t / cell_relaxation)."""
    volume, strength, wanted = 1000.0, 1e-3, 0.02
    integrator = md.CellRescaling(
        timestep=FS,
        temperature=1e-6,
        pressure=wanted,
        relaxation=20 * FS,
        cell_relaxation=100 * FS,
        compressibility=1 / (volume * strength),
        isotropic=isotropic,
    )
    force, beyond = spring_of_volume(strength, volume), 1.0
    rest = volume - wanted / strength  # Å³, where the spring's pressure is the one wanted
    state = integrator.init(force, System.from_ase(gas(4, cubes(np.array([rest + beyond])))))
    for n in (100, 100):
        for _ in range(n):
            state = integrator.step(state, force)
        beyond *= np.exp(-1)
        assert float(volumes(state.system)) - rest == pytest.approx(beyond, rel=0.05)


def test_settings_of_the_command_are_in_gigapascals() -> None:
    settings = md.Settings(ensemble="npt", pressure=2.0, compressibility=0.1)
    made = md.CellRescaling.from_settings(settings)
    assert made.pressure == pytest.approx(2 / 160.21766, rel=1e-6)  # 1 eV/Å³ = 160.21766 GPa
    assert made.compressibility == pytest.approx(0.1 * 160.21766, rel=1e-6)


@pytest.mark.parametrize("isotropic", [True, False])
def test_the_conserved_quantity_moves_by_the_timestep_only(isotropic: bool) -> None:
    """Of real forces, whose stress must be theirs: it drifts in proportion to the timestep."""
    force = Evaluator(load(COPPER))
    crystal = bulk("Cu", cubic=True)
    off = []
    for timestep in (2.0, 4.0):
        integrator = replace(CRYSTAL, timestep=timestep * FS, isotropic=isotropic)
        state = integrator.init(force, System.from_ase([crystal] * 12))
        conserved, energies = [state.conserved.numpy()], []
        for _ in range(int(400 / timestep)):
            state = integrator.step(state, force)
            conserved.append(state.conserved.numpy())
            energies.append((state.energy + state.kinetic_energy).numpy())
        off.append(np.sqrt(np.mean((conserved[-1] - conserved[0]) ** 2)))
        assert off[-1] < 0.1 * np.std(energies, axis=0).mean()
    assert 1.3 < off[1] / off[0] < 5


def test_work_on_a_sheared_cell_is_exact_to_second_order_in_the_strain() -> None:
    """Its noise strains it by the square root of the timestep, and the cell is turned back."""
    off, sheared = [], np.linalg.cholesky(METRIC) @ [[1, 0, 0], [0.3, 1, 0], [-0.2, 0.3, 1.2]]
    system = System.from_ase(gas(4, np.stack([sheared] * 50)))
    for timestep in (0.04, 0.01):
        integrator = replace(NPT, timestep=timestep * FS, isotropic=False)
        first = integrator.init(spring_of_metric, system, seed=1)
        last = integrator.step(first, spring_of_metric)
        off.append(float((last.conserved - first.conserved).abs().mean()))
    assert off[1] / off[0] == pytest.approx(1 / 8, rel=0.15)


def test_deforming_keeps_orientation_and_fractional_coordinates() -> None:
    cells = np.random.default_rng(5).normal(size=(3, 3, 3)) + 8 * np.eye(3)
    state = NPT.init(zeros_of, System.from_ase(gas(4, cells)))
    strain = 0.05 * torch.randn(3, 3, 3, generator=torch.manual_seed(0)).double()
    strain = strain + strain.mT
    other, turned = deform(state, strain, turns_back=True)
    idx = state.system.system_idx

    def places(one: md.MDState) -> torch.Tensor:
        inverse = torch.linalg.inv(one.system.cell)[idx]
        return (one.system.positions.unsqueeze(1) @ inverse).squeeze(1)

    torch.testing.assert_close(places(other), places(state), rtol=0, atol=1e-12)
    ours, theirs = state.system.cell, other.system.cell
    direction = torch.linalg.cross(ours[:, 0], theirs[:, 0])
    assert direction.abs().amax() < 1e-12
    plane = torch.linalg.cross(ours[:, 0], ours[:, 1])
    assert (plane * theirs[:, 1]).sum(1).abs().amax() < 1e-10
    growth = volumes(other.system) / volumes(state.system)
    trace = strain.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(growth, trace.exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(turned.mT, turned, rtol=0, atol=1e-14)
    # momenta go with the inverse: their products with the vectors of the cell stay

    def products(one: md.MDState) -> torch.Tensor:
        return (one.momenta.unsqueeze(1) @ one.system.cell.mT[idx]).squeeze(1)

    torch.testing.assert_close(products(other), products(state), rtol=0, atol=1e-8)
    # but the momentum of the whole stays
    drift = state.masses[:, None] * torch.tensor([0.02, -0.01, 0.03])
    drifting, _ = deform(state.replace(momenta=state.momenta + drift), strain, turns_back=True)
    torch.testing.assert_close(drifting.momenta - other.momenta, drift, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------- the same run, however cut


@pytest.mark.parametrize("isotropic", [True, False])
def test_batching_does_not_matter(isotropic: bool) -> None:
    force = Evaluator(load(COPPER, dtype="float64"))
    crystals = [bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1)]
    integrator = replace(CRYSTAL, isotropic=isotropic)
    together = md.run(integrator, force, integrator.init(force, System.from_ase(crystals)), 20)
    options = {"replicas": torch.tensor([1])}
    first = integrator.init(force, System.from_ase(crystals[1]), **options)
    alone = md.run(integrator, force, first, 20)
    torch.testing.assert_close(alone.momenta, together.momenta[4:], rtol=0, atol=1e-7)
    torch.testing.assert_close(alone.system.cell, together.system.cell[1:], rtol=0, atol=1e-7)


@pytest.mark.parametrize("isotropic", [True, False])
def test_a_run_goes_on_bit_for_bit_and_so_do_its_files(isotropic: bool, tmp_path: Path) -> None:
    force, crystals = Evaluator(load(COPPER)), [bulk("Cu", cubic=True)] * 2
    integrator = replace(CRYSTAL, isotropic=isotropic)
    first = integrator.init(force, System.from_ase(crystals), seed=3)

    def files(name: str) -> list:
        trajectory = tmp_path / f"{name}.h5md"
        return [
            md.H5MDWriter(trajectory, every=5),
            md.Log(trajectory.with_suffix(".csv"), every=5, trajectory=trajectory),
            md.Checkpoint(trajectory.with_suffix(".ckpt")),
        ]

    whole = md.run(integrator, force, first, 40, callbacks=files("whole"))
    md.run(integrator, force, first, 17, callbacks=files("part"))
    found, state, _ = md.load_checkpoint(tmp_path / "part.ckpt")
    assert found == integrator
    (tmp_path / "part.csv").unlink()  # and is made again from the trajectory
    last = md.run(found, force, state, 23, callbacks=files("part"))
    assert_equal(last, whole)
    assert (tmp_path / "part.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with open(tmp_path / "whole.csv", newline="") as file:
        rows = list(csv.DictReader(file))[1::2]
    assert list(rows[0])[-2:] == ["conserved_eV", "pressure_GPa"]
    frames = md.read_h5md(tmp_path / "part.h5md", system=1)
    assert len(frames) == len(rows) == 9
    for frame, row in zip(frames, rows, strict=True):
        assert frame.get_volume() == pytest.approx(float(row["volume_A3"]), rel=1e-12)
        assert frame.info["pressure_GPa"] == float(row["pressure_GPa"])
    assert len({frame.get_volume() for frame in frames}) == 9
    with h5py.File(tmp_path / "whole.h5md") as file:
        observable = file["observables/system_0000/pressure/value"]
        assert observable.attrs["unit"] == "GPa"


def test_a_state_without_strain_gradient_is_refused(tmp_path: Path) -> None:
    """As in a checkpoint of constant volume by version 0.1."""
    state = NPT.init(zeros_of, System.from_ase(gas(4, cubes(np.full(1, BOX**3)))))
    file = tmp_path / "run.ckpt"
    save_checkpoint(file, NPT, replace(state, strain_gradient=None), {})
    with pytest.raises(ValueError, match="this state has no strain gradient"):
        md.run(NPT, zeros_of, md.load_checkpoint(file).state, 1)


# ------------------------------------------------------------------------------------ bad input


def test_structures_of_ase_bring_velocities_out_of_an_iterator() -> None:
    atoms = gas(4, cubes(np.full(1, BOX**3)))[0]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(4, 3)))
    state = NPT.init(zeros_of, (one for one in (atoms, atoms)))
    assert torch.equal(state.momenta, torch.from_numpy(np.tile(atoms.get_momenta(), (2, 1))))


def test_a_molecule_has_no_volume() -> None:
    with pytest.raises(ValueError, match='"npt" needs a structure that is periodic in all'):
        NPT.init(zeros_of, System.from_ase(Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])))
    with pytest.raises(ValueError, match='"npt" needs a structure that is periodic in all'):
        NPT.init(zeros_of, Atoms("Ar2", [[0, 0, 0], [0, 0, 3]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pressure": np.nan}, "pressure must be a finite number, got nan"),
        ({"compressibility": 0.0}, "compressibility must be positive, got 0"),
        ({"cell_relaxation": 1000.0}, "write 1000 \\* ase.units.fs for 1000 fs"),
        ({"relaxation": -1.0}, "relaxation must be positive"),
        ({"temperature": (300.0, 0.0)}, "temperature must be positive"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NPT, **options)


def test_a_pressure_in_another_unit_is_refused_before_the_cell_collapses() -> None:
    """20,000 bar read as GPa: the neighbours of a collapsing cell filled the memory."""
    copper = Evaluator(load(COPPER))
    npt = md.CellRescaling(2 * FS, 300, 2e4 * units.GPa, 100 * FS, 1000 * FS, 0.1 / units.GPa)
    state = npt.init(copper, bulk("Cu", cubic=True))
    with pytest.raises(FloatingPointError, match=r"strain the cell by .* % in one step: is the pr"):
        md.run(npt, copper, state, 50)
    flat = state.system.cell * torch.tensor([[1.0, 1.0, 1e-3]])
    collapsed = replace(state.system, cell=flat)
    with pytest.raises(ImpossiblePositions, match=r"the cell has a volume of 0\.012 Å³ per atom"):
        neighbor_list(collapsed, 3.0)
