"""On a GPU as on the CPU: the same numbers, lists that are kept, memory that stays.

Every test runs in two places. "cuda" needs a GPU. "cpu-padded" is the CPU made to go CUDA's way
(no compiled loops, lists of fixed length), so that the tests themselves are run everywhere.

CUDA adds in another order than the CPU, and in another one each time, so float64 agrees to 1e-9 of
the largest force, never to the bit; float32 to what `attncalc.result.ROUNDING` allows.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from again import Again
from ase import Atoms, units
from ase.build import bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS
from contract import ELEMENTS, assert_close, ethanol, rotation, transformed, triclinic

from attncalc import AttnCalculator, load, md
from attncalc.evaluator import Evaluator
from attncalc.fast import lower
from attncalc.graph import AtomOutputs, Edges, Graphs, one_per_pair
from attncalc.md.fused_steps import _kernels as kernels_of_steps
from attncalc.model_file import header, save, shipped_models
from attncalc.neighbors import (
    SKIN,
    VerletList,
    fresh_graph,
    matscipy_list,
    neighbor_list,
    nvalchemi_list,
    torch_list,
)
from attncalc.neighbors.by_device import _kernels as kernels_of_search
from attncalc.neighbors.nvalchemi_list import has_nvalchemi
from attncalc.neighbors.padded import _kernels as kernels_of_lists
from attncalc.potential import Potential, evaluate, evaluate_without_waiting
from attncalc.result import ROUNDING
from attncalc.system import System

ETHANOL = "so3krates-ethanol"
# delta models move no atoms
POTENTIALS = [name for name in shipped_models() if "baseline" not in header(name)["training"]]
# largest difference over the largest force; energies in eV, forces in eV/Å, stress in eV/Å³
TOLERANCE = {"float64": 1e-9, "float32": ROUNDING[torch.float32]}

PLACES = ["cpu-padded", pytest.param("cuda", marks=pytest.mark.gpu)]
# on the CPU it is the test that is tested: one model of each kind
EACH_KIND = (ETHANOL, "so3krates-silicon", "equiformer-ethanol", "ethanol-committee")


@pytest.fixture(params=PLACES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param.removesuffix("-padded")


def calculator(device: str, model: str | Path = ETHANOL, dtype: str = "float64") -> AttnCalculator:
    """One that goes CUDA's way on either device."""
    calc = AttnCalculator(model, device=device, dtype=dtype, skin=SKIN["cuda"])
    if device == "cpu":
        calc.evaluator.potential = calc.evaluator.plain
        calc.evaluator.neighbors = replace(calc.evaluator.neighbors, capacity=64)
    return calc


def crystal() -> Atoms:
    """Ethanol in a sheared cell that is hardly larger than it."""
    atoms = ethanol()
    atoms.set_cell([[5.6, 0.2, 0.0], [0.9, 5.1, 0.0], [-0.4, 0.7, 4.9]])
    atoms.pbc = True
    return atoms


STRUCTURES = {"molecule": ethanol, "crystal": crystal}


def assert_same_results(actual: dict, expected: dict, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    scale = max(1.0, float(np.abs(expected["forces"]).max()))
    for name in expected:
        error = float(np.abs(np.asarray(actual[name]) - expected[name]).max())
        assert error <= tolerance * scale, f"{name}: off by {error:.1e}"


# ----------------------------------------------------------------------------------- calculator


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("place", "model"),
    [
        *(("cpu-padded", model) for model in EACH_KIND),
        *(pytest.param("cuda", model, marks=pytest.mark.gpu) for model in POTENTIALS),
    ],
)
def test_shipped_models(place: str, model: str, dtype: str) -> None:
    ours = calculator(place.removesuffix("-padded"), model, dtype)
    theirs = AttnCalculator(model, device="cpu", dtype=dtype)
    for structure, make in STRUCTURES.items():
        atoms = make()
        if set(atoms.numbers) - set(ours.potential.species):  # its own elements, and room for them
            atoms.numbers[:] = np.resize(ours.potential.species, len(atoms))
            atoms.set_cell(2 * atoms.cell.array)
            atoms.positions *= 2
        for calc in (ours, theirs):
            calc.calculate(atoms, ["energy", "forces"], [])
        assert ours.evaluator.neighbors.listed.padding is not None
        assert ("stress" in ours.results) == (structure == "crystal")
        assert_same_results(ours.results, theirs.results, TOLERANCE[dtype])
        assert (ours.spread is None) == (theirs.spread is None) == ("committee" not in model)
        if ours.spread is not None:
            tolerance = TOLERANCE[dtype] * max(1.0, np.abs(theirs.results["forces"]).max())
            for name, value in theirs.spread.items():
                assert np.abs(np.asarray(ours.spread[name]) - value).max() <= tolerance


@pytest.mark.parametrize("attention", ["nonlinear", "linear", "dot"])
@pytest.mark.parametrize("in_chunks", [False, True], ids=["at once", "in chunks"])
def test_equiformer(
    device: str, attention: str, in_chunks: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Random weights; edges at once, and in chunks that are computed again."""
    import attncalc.nn.equiformer as module

    torch.manual_seed(0)
    config = module.EquiformerConfig(
        4.0, 10.0, attention=attention, channels=(16, 8, 8), num_layers=2, head_features=16
    )
    potential = Potential(module.Equiformer(config, len(ELEMENTS)), ELEMENTS)
    save(potential, tmp_path / "random.safetensors")
    theirs = AttnCalculator(tmp_path / "random.safetensors", device="cpu", dtype="float64")
    ours = calculator(device, tmp_path / "random.safetensors")
    structures = [ethanol(), crystal()]
    expected = theirs.calculate_many(structures)
    if in_chunks:
        monkeypatch.setattr(module, "LARGEST_KEPT", 0)
        per_edge = ours.potential.network.bytes_per_edge
        monkeypatch.setattr(module, "LARGEST_CHUNK", 30 * per_edge)
    for atoms, wanted in zip(structures, expected, strict=True):
        ours.calculate(atoms, ["energy", "forces"], [])
        assert_same_results(ours.results, wanted, TOLERANCE["float64"])


@pytest.mark.parametrize("attention", ["none", "window"])
def test_so3krates_with_sphcs(device: str, attention: str, tmp_path: Path) -> None:
    """Random weights; far pairs are selected from the padded list."""
    from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig

    torch.manual_seed(0)
    config = So3kratesSphcConfig(
        3.5, num_features=24, num_layers=2, nonlocal_attention=attention, nonlocal_cutoff=7.0
    )
    potential = Potential(So3kratesSphc(config, len(ELEMENTS)), ELEMENTS)
    save(potential, tmp_path / "random.safetensors")
    theirs = AttnCalculator(tmp_path / "random.safetensors", device="cpu", dtype="float64")
    ours = calculator(device, tmp_path / "random.safetensors")
    for atoms in (ethanol(), crystal()):
        ours.calculate(atoms, ["energy", "forces"], [])
        theirs.calculate(atoms, ["energy", "forces"], [])
        assert_same_results(ours.results, theirs.results, TOLERANCE["float64"])


def test_calculate_many(device: str) -> None:
    structures = [ethanol(), crystal(), ethanol()[:3], ethanol()]
    structures[3].rattle(0.1, seed=7)
    ours = calculator(device).calculate_many(structures)
    theirs = AttnCalculator(ETHANOL, device="cpu", dtype="float64").calculate_many(structures)
    for actual, expected in zip(ours, theirs, strict=True):
        assert_same_results(actual, expected, TOLERANCE["float64"])


def test_a_potential_may_be_given(device: str) -> None:
    potential = load(ETHANOL, dtype="float64", device="cpu")
    calc = AttnCalculator(potential, device=device)
    assert calc.potential.device.type == device
    assert potential.device.type == "cpu"
    expected = AttnCalculator(potential, device="cpu").calculate_many([ethanol()])
    assert_same_results(calc.calculate_many([ethanol()])[0], expected[0], TOLERANCE["float64"])


def test_the_physics_checks_pass(device: str) -> None:
    assert calculator(device, "so3krates-xtb-small-molecules").verify(ethanol()).passed


def test_save_there_and_load_here_gives_the_same_bits(device: str, tmp_path: Path) -> None:
    potential = load(ETHANOL, device=device)
    assert potential.device.type == device
    save(potential, tmp_path / "copy.safetensors")
    ours, theirs = (load(one, device="cpu") for one in (tmp_path / "copy.safetensors", ETHANOL))
    assert ours.dtype == theirs.dtype
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


@pytest.mark.gpu
def test_messages_about_devices() -> None:
    n = torch.cuda.device_count()
    assert AttnCalculator(ETHANOL).potential.device.type == "cuda"
    assert AttnCalculator(ETHANOL, device=f"cuda:{n - 1}").potential.device.index == n - 1
    with pytest.raises(ValueError, match=f"device 'cuda:{n}' does not exist: PyTorch finds {n} "):
        AttnCalculator(ETHANOL, device=f"cuda:{n}")


# -------------------------------------------------------------------------------- neighbour lists


def shaken(system: System, random: np.random.Generator, step: float) -> System:
    move = torch.from_numpy(random.normal(size=tuple(system.positions.shape)) * step)
    return replace(system, positions=system.positions + move)


def padded_list(system: System, potential) -> VerletList:
    verlet = VerletList.create(
        cutoff=potential.cutoff, skin=0.6, species=potential.species, capacity=64
    )
    return verlet.update(system)[0]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_energies_along_a_path_that_forces_new_lists(device: str, structure: str) -> None:
    potential = load("so3krates-xtb-small-molecules", dtype="float64", device="cpu")
    there = load("so3krates-xtb-small-molecules", dtype="float64", device=device)
    options = {"cutoff": potential.cutoff, "species": potential.species}
    random = np.random.default_rng(2)
    system = System.from_ase(STRUCTURES[structure]())
    verlet = padded_list(system.to(there.device), there)
    for _ in range(12):
        system = shaken(system, random, 0.06)
        verlet, graph = verlet.update(system.to(there.device))
        ours, theirs = evaluate(there, graph), evaluate(potential, fresh_graph(system, **options))
        scale = max(1.0, float(theirs.forces.abs().max()))
        assert_close(ours.energy.cpu(), theirs.energy, 1e-9, "energy")
        assert float((ours.forces.cpu() - theirs.forces).abs().max()) <= 1e-9 * scale
    assert verlet.n_updates == 13
    assert 1 < verlet.n_rebuilds < 13


def test_a_list_is_kept_as_long_as_it_holds(device: str) -> None:
    potential = load("so3krates-xtb-small-molecules", device=device)
    system = System.from_ase(crystal())
    verlet = padded_list(system.to(potential.device), potential)
    for sign in (1, -1):  # 2 max|u| is just below the skin of 0.6 Å, then just above it
        shift = torch.zeros(system.n_atoms, 3, dtype=torch.float64)
        shift[3, 1] = 0.3 - sign * 1e-6
        moved = replace(system, positions=system.positions + shift).to(potential.device)
        later, graph = verlet.update(moved)
        assert later.n_rebuilds == 1 + (sign < 0)
        assert graph.vectors.device == potential.device
    strained = replace(system, cell=1.2 * system.cell).to(potential.device)
    assert verlet.update(strained)[0].n_rebuilds == 2
    renamed = system.to(potential.device)
    renamed = replace(renamed, atomic_numbers=renamed.atomic_numbers.flip(0))
    _, graph = verlet.update(renamed)
    assert graph.species.tolist() == verlet.graph(renamed).species.tolist()[::-1]


@pytest.mark.gpu
def test_lists_of_small_molecules_last() -> None:
    """Where the skin is chosen: a GPU lists all of their pairs."""
    forces = Evaluator(load(ETHANOL, device="cuda"))
    langevin = md.Langevin(0.5 * units.fs, 1500.0, 0.02 / units.fs)
    first = langevin.init(forces, System.from_ase([ethanol()] * 16))
    md.run(langevin, forces, first, 400)
    assert forces.neighbors.n_rebuilds == 1


def test_capacity_grows_and_never_shrinks(device: str) -> None:
    potential = load("so3krates-xtb-small-molecules", device=device)
    apart, together = ethanol(), crystal()
    apart.positions *= 8.0
    apart.set_cell(together.cell.array * 8.0)
    apart.pbc = True
    verlet = padded_list(System.from_ase(apart).to(potential.device), potential)
    small = verlet.capacity
    assert small == 64
    verlet, graph = verlet.update(System.from_ase(together).to(potential.device))
    large = verlet.capacity
    assert large == graph.n_edges > small
    assert large % 64 == 0
    assert large > verlet.listed.reference.n_atoms
    verlet, graph = verlet.update(System.from_ase(apart).to(potential.device))
    assert verlet.capacity == graph.n_edges == large
    assert not graph.edge_mask.any()


PERIODIC = ([1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1], [1, 0, 1])


def assert_lists_of_random_cells(
    device: str, backend, cutoff: float = 3.3, kinds: Sequence[Sequence[int]] = PERIODIC
) -> None:
    random = np.random.default_rng(4)
    for periodic in kinds:
        n_atoms = int(random.integers(1, 12))
        atoms = Atoms(numbers=random.choice(ELEMENTS, n_atoms), pbc=periodic)
        atoms.set_cell(random.normal(size=(3, 3)) + 4.0 * np.diag(random.uniform(0.6, 2.0, 3)))
        atoms.set_scaled_positions(random.uniform(-1.5, 2.5, (n_atoms, 3)))
        system = System.from_ase([atoms, triclinic()])
        found = backend(system.to(device), cutoff)
        assert found.receivers.device.type == device
        expected = matscipy_list(system, cutoff)
        for name in ("receivers", "senders", "cell_shifts"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name


def test_lists_of_random_cells(device: str) -> None:
    assert_lists_of_random_cells(device, torch_list)
    assert_lists_of_random_cells(device, neighbor_list)


@pytest.mark.gpu
@pytest.mark.skipif(
    not has_nvalchemi(), reason="needs nvalchemi-toolkit-ops (pip install 'attncalc[cuda]')"
)
def test_lists_of_random_cells_by_nvalchemi() -> None:
    """On the CPU, it is tested in test_neighbors.py."""
    assert_lists_of_random_cells("cuda", nvalchemi_list)


def test_shells_exactly_at_the_cutoff_come_in_whole_pairs(device: str) -> None:
    """Rounding on the device must not keep (i, j, S) and drop (j, i, -S)."""
    atoms = transformed(bulk("Cu", a=3.61, cubic=True), rotation(3))
    for backend in (torch_list, neighbor_list):
        edges: Edges = backend(System.from_ase(atoms).to(device), 3.61)
        assert edges.n_edges > 0
        assert 2 * int(one_per_pair(edges).sum()) == edges.n_edges


# ------------------------------------------------------------------------------------- interfaces


def dynamics(calc: AttnCalculator, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Total energies [n_steps + 1] eV of 0.5 fs NVE at 300 K, positions after ten steps."""
    atoms = ethanol()
    atoms.calc = calc
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    energies, early = [], []
    run = VelocityVerlet(atoms, 0.5 * units.fs)
    run.attach(lambda: energies.append(atoms.get_total_energy()))
    run.attach(lambda: early.append(atoms.positions.copy()) if run.nsteps == 10 else None)
    run.run(n_steps)
    return np.array(energies), early[0]


def test_dynamics_keep_the_energy_as_on_the_cpu(device: str) -> None:
    n_steps = 60
    ours, our_positions = dynamics(calculator(device), n_steps)
    theirs, positions = dynamics(AttnCalculator(ETHANOL, device="cpu", dtype="float64"), n_steps)
    # rounding of 1e-12 eV/Å grows little in 10 steps, and in 60 stays far below the fluctuation
    assert np.abs(our_positions - positions).max() <= 1e-10
    assert np.abs(ours - theirs).max() <= 1e-8
    assert 1e-4 < np.ptp(theirs) < 0.1


def forces_on(device: str) -> Evaluator:
    """As on a GPU on either device: recorded steps, by lists that nobody asks within a chunk."""
    forces = Evaluator(load(ETHANOL, device=device, dtype="float64"), skin=SKIN["cuda"])
    if device == "cpu":
        forces.potential = forces.plain
        forces.neighbors = replace(forces.neighbors, capacity=64)
        forces.checks_list_every_step = False
        forces.recorder = Again
    return forces


INTEGRATORS = {
    "verlet": md.Verlet(0.5 * units.fs),
    "langevin": md.Langevin(0.5 * units.fs, (300.0, 900.0), 0.02 / units.fs),
    "bussi": md.Bussi(0.5 * units.fs, 300.0, 20.0 * units.fs),
    "cell_rescaling": md.CellRescaling(
        timestep=0.5 * units.fs,
        temperature=300.0,
        pressure=0.0,
        relaxation=20.0 * units.fs,
        cell_relaxation=100.0 * units.fs,
        compressibility=0.1 / units.GPa,
        isotropic=False,
    ),
}


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_whole_steps_on_the_device(device: str, integrator: str) -> None:
    """The same run as on the CPU, noise included, in chunks that nobody looks into."""
    moves, n_steps = INTEGRATORS[integrator], 20 if integrator == "cell_rescaling" else 60
    batch = System.from_ase([crystal() if integrator == "cell_rescaling" else ethanol()] * 2)
    can_fix = integrator in ("verlet", "langevin")
    options = {"seed": 3} | ({"fixed": torch.arange(18) == 4} if can_fix else {})
    here = Evaluator(load(ETHANOL, dtype="float64", device="cpu"))
    expected = md.run(moves, here, moves.init(here, batch, **options), n_steps)
    there = forces_on(device)
    first = moves.init(there, batch, **options)
    last = md.run(moves, there, first, n_steps, chunk=n_steps // 3)
    assert there.recorder is not None, "steps were not recorded, see the log"
    assert last.momenta.device.type == last.heat.device.type == device
    assert_close(last.system.positions.cpu(), expected.system.positions, 1e-6)
    assert_close(last.system.cell.cpu(), expected.system.cell, 1e-6)
    assert_close(last.momenta.cpu(), expected.momenta, 1e-5)
    assert_close(last.conserved.cpu(), expected.conserved, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("model", POTENTIALS)
def test_steps_of_shipped_models_are_recorded(model: str) -> None:
    """In their own precision; recorded steps are compared with others before they are used."""
    forces = Evaluator(load(model, device="cuda"))
    atoms = ethanol() if set(ethanol().numbers) <= set(forces.potential.species) else bulk("Si")
    langevin = md.Langevin(0.5 * units.fs, 300.0, 0.02 / units.fs)
    first = langevin.init(forces, System.from_ase([atoms] * 2))
    md.run(langevin, forces, first, 20, chunk=10)
    assert forces.recorder is not None, "steps were not recorded, see the log"
    assert forces.recorded is not None


@pytest.mark.gpu
def test_compiled_kernels_run_on_the_device() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert kernels_of_steps(device) is not None
    assert kernels_of_lists(device) is not None
    assert kernels_of_search(device) is not None


def test_a_run_goes_on_from_a_checkpoint(device: str, tmp_path: Path) -> None:
    langevin = md.Langevin(0.5 * units.fs, 300.0, 0.02 / units.fs)
    forces = forces_on(device)
    first = langevin.init(forces, System.from_ase([ethanol()] * 3))
    callbacks = [
        md.H5MDWriter(tmp_path / "a.h5md", every=10),
        md.Log(tmp_path / "a.csv", every=10),
        md.Checkpoint(tmp_path / "a.ckpt", every=20),
    ]
    md.run(langevin, forces, first, 20, callbacks=callbacks)
    integrator, state, _ = md.load_checkpoint(tmp_path / "a.ckpt", device=device)
    last = md.run(integrator, forces, state, 20, callbacks=callbacks)
    whole = md.run(langevin, forces, first, 40)
    assert_close(last.system.positions.cpu(), whole.system.positions.cpu(), 1e-6)
    assert len(md.read_h5md(tmp_path / "a.h5md", system=2)) == 5


@pytest.mark.gpu
def test_a_run_goes_on_with_the_same_bits() -> None:
    """After a restart, which begins with new lists: kernels, pair terms, a periodic structure."""
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[3.2] * 3, pbc=True)
    langevin = md.Langevin(0.5 * units.fs, 300.0, 0.02 / units.fs)
    model = load("so3krates-organic", device="cuda")
    without = Evaluator(model)
    first = langevin.init(without, System.from_ase(water * (3, 3, 3)), seed=3)
    whole = md.run(langevin, without, first, 60)
    half = md.run(langevin, Evaluator(model), first, 30)
    last = md.run(langevin, Evaluator(model), half, 30)
    assert without.neighbors.n_rebuilds > 1
    assert without.recorded is not None
    for name in ("momenta", "forces", "charges"):
        assert torch.equal(getattr(last, name), getattr(whole, name)), name


def test_a_batch_is_relaxed(device: str) -> None:
    frames = [ethanol() for _ in range(4)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.02 * (k + 1), seed=k)
    relaxed = md.relax_batch(forces_on(device), System.from_ase(frames))
    assert relaxed.largest_force.amax() <= 0.01
    here = Evaluator(load(ETHANOL, dtype="float64", device="cpu"))
    expected = md.relax_batch(here, System.from_ase(frames))
    assert torch.equal(relaxed.steps.cpu(), expected.steps)
    assert_close(relaxed.energy.cpu(), expected.energy, 1e-9)


def test_relaxation_finds_zero_force(device: str) -> None:
    atoms = ethanol()
    atoms.calc = calculator(device)
    assert LBFGS(atoms, logfile=None).run(fmax=1e-3, steps=200)
    found = atoms.get_potential_energy()
    atoms.calc = AttnCalculator(ETHANOL, device="cpu", dtype="float64")
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 1e-3 + 1e-8
    assert abs(atoms.get_potential_energy() - found) <= 1e-8


def bytes_held(device: str) -> int:
    """Bytes of all tensors that are still in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    # type(), since isinstance() wakes lazy objects of other libraries
    tensors = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_memory_does_not_grow(device: str) -> None:
    calc, start = calculator(device), crystal()
    random = np.random.default_rng(0)
    held = []
    for _ in range(2):
        for _ in range(25):
            atoms = start.copy()
            atoms.positions += random.uniform(-0.05, 0.05, atoms.positions.shape)
            calc.calculate(atoms, ["energy", "forces"], [])
        held.append(bytes_held(device))
    assert calc.n_rebuilds == 1
    assert held[0] > 0
    assert held[1] <= held[0]


@pytest.mark.gpu
def test_the_kernels_of_so3krates_run_and_can_be_captured() -> None:
    """A replayed CUDA graph gives for other positions what a call gives, to the bit."""
    calc = AttnCalculator(ETHANOL, device="cuda", dtype="float32", skin=SKIN["cuda"])
    potential = calc.potential
    assert potential.network.engine.defers
    atoms, moved = ethanol(), ethanol()
    moved.rattle(0.05, seed=1)
    verlet = VerletList.create(cutoff=potential.cutoff, skin=1.0, species=potential.species)
    verlet, graph = verlet.update(System.from_ase(atoms).to("cuda"))
    verlet, other = verlet.update(System.from_ase(moved).to("cuda"))
    assert verlet.n_rebuilds == 1
    expected = evaluate(potential, other)
    static = replace(graph, vectors=graph.vectors.clone(), edge_mask=graph.edge_mask.clone())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        evaluate_without_waiting(potential, static)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = evaluate_without_waiting(potential, static)
    static.vectors.copy_(other.vectors)
    static.edge_mask.copy_(other.edge_mask)
    captured.replay()
    torch.cuda.synchronize()
    for name in ("energy", "energies", "forces", "strain_gradient"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name


@pytest.mark.gpu
def test_pair_terms_run_by_kernels_of_their_own() -> None:
    """Those of a shipped model, in float64, with padding and in the skin, beside autograd."""
    plain = load("so3krates-organic", device="cuda").requires_grad_(False)
    fast = lower(plain)
    assert fast.network.engine.defers
    names = [type(term).__name__ for term in fast.pair_terms]
    assert names == ["GPUFrozenZBL", "GPUFrozenLongRange", "SelfEnergy"]  # the last by autograd
    systems = System.from_ase([ethanol(), triclinic(), Atoms("O")]).to("cuda")
    lists = (
        VerletList.create(cutoff=end, skin=1.0, species=plain.species, capacity=4000)
        for end in (plain.cutoff, 12.0)
    )
    graphs = Graphs(*(one.update(systems)[1] for one in lists))
    expected, found = evaluate(plain, graphs), evaluate_without_waiting(fast, graphs)
    for name in ("energies", "forces", "strain_gradient", "charges", "hirshfeld_ratios"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        scale = max(1.0, float(expected.forces.abs().amax()))
        assert float((ours - theirs).abs().amax()) <= ROUNDING[torch.float32] * scale, name
    networkless = plain.network(graphs.short)
    outputs = AtomOutputs(
        networkless.energies.double(),
        networkless.charges.double(),
        networkless.hirshfeld_ratios.double(),
    )
    terms = list(plain.pair_terms)
    (repulsion, _, _), (together, _, _) = (
        term.linearize(graph, outputs)
        for term, graph in zip(fast.pair_terms[:2], (graphs.short, graphs.long), strict=True)
    )
    torch.testing.assert_close(repulsion, terms[0](graphs.short, outputs), rtol=1e-10, atol=1e-10)
    both = sum(term(graphs.long, outputs) for term in (terms[1], terms[3]))
    torch.testing.assert_close(together, both, rtol=1e-7, atol=1e-8)
