"""The ASE calculator: numbers, bookkeeping, messages. Physics of the model itself is elsewhere."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes, compare_atoms
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixSymmetry
from ase.io import Trajectory, read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from contract import ELEMENTS, assert_close, ethanol, randomise, result_of, slab, triclinic
from torch import nn

import attncalc.evaluator as module
import attncalc.structures as structures_module
from attncalc import AttnCalculator, load, model_file
from attncalc.graph import AtomOutputs, Graph, Linearized
from attncalc.hessian import hessian
from attncalc.model_file import named_device
from attncalc.nn.network import CompiledNetwork, Engine
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.potential import Committee, Potential

ETHANOL = "so3krates-ethanol"
COPPER = Path(__file__).parent / "models" / "cu-emt.safetensors"
# a float64 network whose atoms are summed in another order
ROUNDING = 1e-10


def random_potential(**options) -> Potential:
    """A float64 network of H, C, N, O without any training."""
    config = So3kratesConfig(
        cutoff=3.5,
        avg_num_neighbors=8.0,
        num_features=16,
        num_heads=2,
        degrees=(1, 2),
        num_layers=2,
        num_basis=8,
        head_features=8,
        **options,
    )
    torch.manual_seed(0)
    network = So3krates(config, len(ELEMENTS)).double()
    randomise(network)
    return Potential(network, ELEMENTS, reference_energies=[-13.0, -1030.0, -1480.0, -2040.0])


def neutral() -> AttnCalculator:
    return AttnCalculator(random_potential())


def electrons() -> AttnCalculator:
    return AttnCalculator(random_potential(embed_charge=True, embed_spin=True))


def copper_crystal() -> Atoms:
    atoms = bulk("Cu", a=3.65, cubic=True)
    atoms.rattle(0.05, seed=2)
    strain = [[1, 0.02, 0], [0.01, 1, 0], [0, 0, 1.03]]
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


@pytest.fixture(scope="module")
def ethanol64() -> AttnCalculator:
    return AttnCalculator(ETHANOL, dtype="float64")


@pytest.fixture(scope="module")
def copper64() -> AttnCalculator:
    return AttnCalculator(COPPER, dtype="float64")


@pytest.fixture
def n_evaluations(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the network has been asked since the last question."""
    seen: list[Graph] = []
    original = module.evaluate

    def evaluate(potential: Potential, graph: Graph):
        seen.append(graph)
        return original(potential, graph)

    monkeypatch.setattr(module, "evaluate", evaluate)  # one structure
    monkeypatch.setattr(structures_module, "evaluate", evaluate)  # batches

    def count() -> int:
        n = len(seen)
        seen.clear()
        return n

    return count


# ------------------------------------------------------------------------------------- numbers


def test_results_of_a_molecule(ethanol64: AttnCalculator) -> None:
    atoms = ethanol()
    atoms.calc = ethanol64
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert isinstance(energy, float)
    assert energy == atoms.get_potential_energy(force_consistent=True)
    energies = atoms.get_potential_energies()
    assert energies.shape == (9,)
    assert_close(energies.sum(), energy, 1e-12)
    assert forces.shape == (9, 3)
    assert forces.dtype == energies.dtype == np.float64
    assert set(ethanol64.results) == {"energy", "free_energy", "energies", "forces"}
    # the sum of PBE's atomic energies and a bond energy of some 30 eV, not of hartree or kcal
    assert -4230 < energy < -4200
    assert_close(forces.sum(axis=0), np.zeros(3), 1e-10, "an isolated molecule is not pushed")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 5e-5)])
def test_results_are_those_of_the_potential(dtype: str, tolerance: float) -> None:
    """Of the plain network in float64; in float32 users run the compiled one."""
    atoms = ethanol()
    atoms.calc = AttnCalculator(ETHANOL, dtype=dtype, device="cpu")
    expected = result_of(load(ETHANOL, dtype="float64"), atoms)
    compiled = isinstance(atoms.calc.potential.network, CompiledNetwork)
    assert compiled == (dtype == "float32")
    assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), abs=tolerance)
    assert atoms.get_potential_energies() == pytest.approx(expected.energies.numpy(), abs=tolerance)
    assert atoms.get_forces() == pytest.approx(expected.forces.numpy(), abs=tolerance)


def test_forces_are_numerical_forces(ethanol64: AttnCalculator, copper64: AttnCalculator) -> None:
    for atoms, calculator in ((ethanol(), ethanol64), (copper_crystal(), copper64)):
        atoms.calc = calculator
        # h = 1e-4 Å: h² times third derivatives, and 1e-12 of rounding of the energy over h
        numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 2])
        assert np.abs(numerical).max() > 0.1
        assert np.abs(atoms.get_forces()[[0, 2]] - numerical).max() <= 1e-6


def test_stress_is_numerical_stress(copper64: AttnCalculator) -> None:
    atoms = copper_crystal()
    atoms.calc = copper64
    numerical = calculate_numerical_stress(atoms, eps=1e-4)
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    assert len(set(np.round(stress, 4))) == 6, "six different components show Voigt's order"
    assert np.abs(stress - numerical).max() <= 1e-7
    full = atoms.get_stress(voigt=False)
    assert_close(full[0], stress[[0, 5, 4]], 0.0)


def test_units_of_copper_are_those_of_emt(copper64: AttnCalculator) -> None:
    """Trained on ASE's EMT: bulk modulus in GPa and not in anything else."""
    volumes, pressures = [], []
    for a in (3.57, 3.61):
        atoms = bulk("Cu", a=a, cubic=True)
        atoms.calc = copper64
        volumes.append(atoms.get_volume())
        pressures.append(-atoms.get_stress()[:3].mean())
    modulus = -np.mean(volumes) * np.diff(pressures)[0] / np.diff(volumes)[0]
    assert 100 < modulus / units.GPa < 170  # EMT: 134 GPa


def test_single_precision_is_near_double(ethanol64: AttnCalculator) -> None:
    atoms = ethanol()
    single = AttnCalculator(ETHANOL, dtype="float32")
    assert single.potential.dtype == torch.float32
    assert ethanol64.potential.dtype == torch.float64
    forces = single.get_forces(atoms)
    assert forces.dtype == np.float64
    # 1e-7 relative, of intermediates a few hundred times the forces
    assert 1e-9 < np.abs(forces - ethanol64.get_forces(atoms)).max() < 1e-3


def test_stress_of_a_structure_without_volume(ethanol64: AttnCalculator) -> None:
    message = "stress needs a volume: this structure does not have three cell vectors"
    assert "stress" in ethanol64.implemented_properties
    for cell in (None, [20.0, 20.0, 0.0]):
        atoms = ethanol()
        atoms.cell = cell
        atoms.calc = ethanol64
        energy = atoms.get_potential_energy()
        with pytest.raises(PropertyNotImplementedError, match=message):
            atoms.get_stress()
        assert atoms.get_potential_energy() == energy
        assert atoms.get_forces().shape == (9, 3)
    boxed = ethanol()
    boxed.cell = [20.0, 20.0, 20.0]
    boxed.calc = ethanol64
    assert boxed.get_stress().any()


@pytest.mark.parametrize("name", ["dipole", "charges", "magmoms"])
def test_properties_that_nobody_promised(name: str, ethanol64: AttnCalculator) -> None:
    assert name not in ethanol64.implemented_properties
    with pytest.raises(PropertyNotImplementedError, match=name):
        ethanol64.get_property(name, ethanol())


def test_every_implemented_property_is_there(copper64: AttnCalculator) -> None:
    atoms = copper_crystal()
    for name in copper64.implemented_properties:
        assert np.isfinite(copper64.get_property(name, atoms)).all()


def test_stresses_of_atoms_add_up_to_the_stress() -> None:
    """Of one structure and of a committee; symmetric atoms have equal shares."""
    atoms = triclinic()
    models = [random_potential(), random_potential()]
    randomise(models[1].network, 1)
    for model in (models[0], models):
        atoms.calc = AttnCalculator(model)
        stresses = atoms.get_stresses()
        assert stresses.shape == (len(atoms), 6)
        assert_close(stresses.sum(0), atoms.get_stress(), 1e-6)
        atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)))
        moving = atoms.get_stresses(include_ideal_gas=True).sum(0)
        assert_close(moving, atoms.get_stress(include_ideal_gas=True), 1e-6)
        assert not np.allclose(moving, stresses.sum(0), atol=1e-4)
    diamond = bulk("C", cubic=True)
    diamond.calc = AttnCalculator(models[0])
    assert_close(diamond.get_stresses(), np.tile(diamond.get_stress() / 8, (8, 1)), 1e-6)
    molecule_alone = ethanol()
    molecule_alone.calc = diamond.calc
    with pytest.raises(PropertyNotImplementedError, match="stress needs a volume"):
        molecule_alone.get_stresses()


def test_calculate_called_by_hand(ethanol64: AttnCalculator) -> None:
    """Its results belong to the structure it was called for, also when ASE asks next."""
    one, other = ethanol(), ethanol()
    other.rattle(0.1, seed=1)
    expected = [float(result_of(ethanol64.potential, atoms).energy) for atoms in (one, other)]
    one.calc = ethanol64
    assert one.get_potential_energy() == expected[0]
    ethanol64.calculate(other)
    assert ethanol64.results["energy"] == expected[1]
    assert one.get_potential_energy() == expected[0]
    ethanol64.calculate()  # once more for the last one
    assert ethanol64.results["energy"] == expected[0]


def test_partly_periodic_structures() -> None:
    """A slab is the same in any box along its open direction, and stress goes with the box."""
    calculator = neutral()
    atoms, taller = slab(), slab()
    taller.cell[2] *= 3
    forces, stress = calculator.get_forces(atoms), calculator.get_stress(atoms)
    assert_close(calculator.get_forces(taller), forces, ROUNDING)
    assert_close(3 * calculator.get_stress(taller), stress, ROUNDING)


# -------------------------------------------------------------- when something is computed again


def test_nothing_changed_nothing_computed(n_evaluations: Callable[[], int]) -> None:
    atoms = triclinic()
    atoms.calc = neutral()
    atoms.get_potential_energy()
    assert n_evaluations() == 1
    atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()
    assert atoms.calc.calculation_required(atoms, ["energy", "forces", "stress"]) is False
    atoms.copy().get_volume()
    atoms.info["a note"] = 3
    atoms.set_momenta(np.ones((3, 3)))
    atoms.get_forces()
    assert n_evaluations() == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.positions.__setitem__((0, 0), 0.3),
        lambda atoms: atoms.set_cell(atoms.cell.array * 1.01),
        lambda atoms: atoms.set_pbc([True, True, False]),
        lambda atoms: atoms.symbols.__setitem__(0, "O"),
        lambda atoms: atoms.append("O"),
    ],
    ids=["positions", "cell", "pbc", "numbers", "one atom more"],
)
def test_every_change_is_noticed(change: Callable, n_evaluations: Callable[[], int]) -> None:
    atoms = triclinic()
    atoms.positions += 0.5
    atoms.calc = neutral()
    before = atoms.get_potential_energy()
    change(atoms)
    assert atoms.calc.calculation_required(atoms, ["energy"])
    after = atoms.get_potential_energy()
    assert n_evaluations() == 2
    assert abs(after - before) > 1e-6  # eV: rounding is 1e-12, however little these weights feel
    assert_close(after, neutral().get_potential_energy(atoms), 1e-13)


def test_changes_have_the_names_of_ase() -> None:
    """As of `compare_atoms`, which ASE's own calculators use."""
    atoms = triclinic()
    atoms.calc = calculator = neutral()
    assert calculator.check_state(atoms) == all_changes
    atoms.get_potential_energy()
    assert calculator.check_state(atoms) == []
    for change in (
        lambda atoms: atoms.set_initial_charges([0.0] * len(atoms)),
        lambda atoms: atoms.set_initial_magnetic_moments([1.0] * len(atoms)),
        lambda atoms: atoms.rattle(1e-3),
        lambda atoms: atoms.set_cell(atoms.cell * 1.1),
        lambda atoms: atoms.append("O"),
        lambda atoms: atoms.set_pbc(False),
    ):
        change(atoms)
        expected = compare_atoms(calculator.atoms, atoms)
        assert sorted(calculator.check_state(atoms)) == sorted(expected) != []
    calculator.use_cache = False
    assert calculator.check_state(atoms) == all_changes


def test_charge_and_spin_are_noticed(n_evaluations: Callable[[], int]) -> None:
    atoms = ethanol()
    atoms.calc = electrons()
    seen = {}
    for charge, spin in ((None, None), (2, None), (2, 3), (-2, 3), (1, 2), (0, 1)):
        atoms.info.update(charge=charge, spin=spin)
        if charge is None:
            atoms.info.clear()
        seen[charge, spin] = atoms.get_potential_energy()
        atoms.get_forces()
        assert n_evaluations() == 1, "once, and only once"
    # no entries mean charge 0 and the lowest spin, to the bit
    assert seen.pop((0, 1)) == seen[None, None]
    assert len({round(energy, 6) for energy in seen.values()}) == len(seen)


def test_a_charge_that_is_changed_in_place_is_noticed(n_evaluations: Callable[[], int]) -> None:
    atoms = ethanol()
    atoms.calc = electrons()
    atoms.info["charge"] = np.array(0)
    first = atoms.get_potential_energy()
    atoms.info["charge"][...] = 2
    assert abs(atoms.get_potential_energy() - first) > 1e-6
    assert n_evaluations() == 2


def test_an_error_leaves_nothing_behind() -> None:
    """Neither the old numbers for the impossible structure, nor trouble after mending it."""
    atoms = ethanol()
    atoms.calc = neutral()
    energy = atoms.get_potential_energy()
    for key, value in (("charge", 1), ("charge", "one"), ("spin", 2), ("spin", 3)):
        atoms.info = {key: value}
        for _ in range(2):
            with pytest.raises(ValueError, match=key if key == "charge" else "multiplicity"):
                atoms.get_potential_energy()
        atoms.info = {}
        assert atoms.get_potential_energy() == energy


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda atoms: atoms.get_properties(["energy", "forces"]),
        lambda atoms: atoms.calc.calculate(atoms, ["energy"], all_changes),
        lambda atoms: atoms.calc.calculate(atoms),
    ],
    ids=["get_properties", "calculate as ASE calls it", "calculate by hand"],
)
def test_results_belong_to_the_structure_that_was_evaluated(evaluate: Callable) -> None:
    atoms = triclinic()
    atoms.calc = neutral()
    energy = atoms.get_potential_energy()
    other = atoms.copy()
    other.rattle(0.1, seed=1)
    other.calc = atoms.calc
    evaluate(other)
    assert atoms.get_potential_energy() == energy
    assert_close(other.get_potential_energy(), neutral().get_potential_energy(other), ROUNDING)


def test_an_error_of_a_call_by_hand_leaves_nothing_behind() -> None:
    atoms = ethanol()
    atoms.calc = electrons()
    energy = atoms.get_potential_energy()
    other = atoms.copy()
    other.info["charge"] = 2
    impossible = other.copy()
    impossible.positions[1] = impossible.positions[0]
    with pytest.raises(ValueError, match="apart"):
        atoms.calc.calculate(impossible)
    other.calc = atoms.calc
    assert abs(other.get_potential_energy() - energy) > 1e-6


def test_a_property_that_is_refused_changes_nothing(n_evaluations: Callable[[], int]) -> None:
    atoms = ethanol()
    atoms.calc = AttnCalculator([random_potential(), random_potential(embed_spin=True)])
    atoms.get_forces()
    spread = atoms.calc.spread
    for flat in (np.zeros((3, 3)), [[10, 0, 0], [20, 0, 0], [0, 0, 10]]):
        atoms.cell = flat
        atoms.get_forces()
        for ask in (atoms.get_stress, atoms.get_stresses):
            with pytest.raises(PropertyNotImplementedError, match="stress needs a volume"):
                ask()
    assert atoms.calc.spread["energy"] == spread["energy"]


def test_different_structures_alternately() -> None:
    shared = neutral()
    structures = [ethanol(), triclinic(), slab(), molecule("H2O"), Atoms("O")]
    expected = [neutral().get_forces(atoms) for atoms in structures]
    for _ in range(2):
        for atoms, forces in zip(structures, expected, strict=True):
            assert_close(shared.get_forces(atoms), forces, ROUNDING)


def test_results_are_not_shared_with_the_caller() -> None:
    atoms = ethanol()
    atoms.calc = neutral()
    forces = atoms.get_forces()
    atoms.get_forces()[:] = 0
    assert np.array_equal(atoms.get_forces(), forces)


# ------------------------------------------------------------------------------- neighbour list


def counted_run(calculator: AttnCalculator, atoms: Atoms, steps: int, timestep: float) -> list:
    """Positions, energies, forces along an NVE trajectory."""
    atoms.calc = calculator
    seen = []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.attach(
        lambda: seen.append(
            (atoms.positions.copy(), calculator.results["energy"], atoms.get_forces())
        )
    )
    dynamics.run(steps)
    return seen


def test_skin_changes_nothing_along_a_molecule_s_trajectory() -> None:
    """Random weights fold a molecule up within 100 fs: atoms enter and leave the cutoff."""
    start = ethanol()
    thermalize_momenta(start, temperature_K=600, rng=np.random.default_rng(0))
    fresh = AttnCalculator(random_potential(), skin=0.0)
    reused = AttnCalculator(random_potential(), skin=0.7)
    for _, energy, forces in counted_run(reused, start, 120, 0.5):
        assert np.isfinite(energy)
        assert np.isfinite(forces).all()
    # the same positions by both: trajectories would amplify rounding
    twin = start.copy()
    thermalize_momenta(twin, temperature_K=600, rng=np.random.default_rng(1))
    again = AttnCalculator(random_potential(), skin=0.7)
    for positions, energy, forces in counted_run(again, twin, 120, 0.5):
        still = Atoms(twin.numbers, positions)
        assert_close(fresh.get_potential_energy(still), energy, 1e-14)
        assert_close(fresh.get_forces(still), forces, ROUNDING)
    assert fresh.n_rebuilds == fresh.n_updates == 121
    assert again.n_updates == 121
    assert 1 < again.n_rebuilds < 40


def test_skin_changes_nothing_while_the_cell_changes() -> None:
    """A copper crystal is compressed and sheared while its atoms move."""
    fresh = AttnCalculator(COPPER, dtype="float64", skin=0.0)
    reused = AttnCalculator(COPPER, dtype="float64", skin=0.8)
    atoms = copper_crystal()
    rng = np.random.default_rng(0)
    for step in range(60):
        strain = np.eye(3) + 2e-3 * np.array([[-1, 0.5, 0], [0, -1, 0.3], [0, 0, 1]])
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=0.004, size=(4, 3))
        if step == 30:
            atoms.wrap()
        assert_close(reused.get_potential_energy(atoms), fresh.get_potential_energy(atoms), 1e-12)
        assert_close(reused.get_forces(atoms), fresh.get_forces(atoms), ROUNDING)
        assert_close(reused.get_stress(atoms), fresh.get_stress(atoms), ROUNDING)
    assert fresh.n_rebuilds == 60
    assert reused.n_updates == 60
    assert 2 <= reused.n_rebuilds < 25


def test_counts_of_lists() -> None:
    calculator = neutral()
    assert (calculator.n_updates, calculator.n_rebuilds) == (0, 0)
    atoms = ethanol()
    for shift in (0.0, 0.01, 0.02):
        atoms.positions[0, 0] += shift
        calculator.get_forces(atoms)
    assert (calculator.n_updates, calculator.n_rebuilds) == (3, 1)
    atoms.positions[0] -= 1.0
    calculator.get_forces(atoms)
    assert (calculator.n_updates, calculator.n_rebuilds) == (4, 2)


def test_skin_suits_the_structure_unless_given() -> None:
    calculator = neutral()
    for atoms, expected in ((ethanol(), 2.0), (triclinic(), 0.5), (ethanol(), 2.0)):
        calculator.calculate(atoms, ["energy"], [])
        assert calculator.evaluator.neighbors.skin == expected
    assert AttnCalculator(random_potential(), skin=0).evaluator.neighbors.skin == 0.0


# ------------------------------------------------------------------------------ many structures


def many() -> list[Atoms]:
    charged = molecule("CH3")
    charged.info = {"charge": 1, "spin": 1}
    return [ethanol(), triclinic(), charged, slab(), Atoms("O"), molecule("H2O"), ethanol()]


@pytest.mark.parametrize("largest", [1, 13, 2000], ids=["one each", "several", "one batch"])
def test_many_are_singles(
    largest: int, monkeypatch: pytest.MonkeyPatch, n_evaluations: Callable[[], int]
) -> None:
    monkeypatch.setitem(structures_module.evaluate_many.__kwdefaults__, "batch_atoms", largest)
    results = electrons().calculate_many(many())
    assert n_evaluations() == {1: 7, 13: 3, 2000: 1}[largest]
    for atoms, result in zip(many(), results, strict=True):
        single = electrons()
        single.get_potential_energy(atoms)
        assert set(result) == set(single.results)
        assert ("stress" in result) == (atoms.cell.rank == 3)
        for name, value in single.results.items():
            assert_close(result[name], value, ROUNDING, name)
        assert isinstance(result["energy"], float)


def test_many_leave_the_calculator_as_it_is(n_evaluations: Callable[[], int]) -> None:
    atoms = ethanol()
    calculator = neutral()
    energy = calculator.get_potential_energy(atoms)
    calculator.calculate_many([molecule("H2O")])
    assert calculator.get_potential_energy(atoms) == energy
    assert n_evaluations() == 2
    assert (calculator.n_updates, calculator.n_rebuilds) == (1, 1)


def test_many_of_none_and_of_one() -> None:
    assert neutral().calculate_many([]) == []
    with pytest.raises(TypeError, match=r"takes a list of structures, got one ase\.Atoms"):
        neutral().calculate_many(ethanol())
    for wrong in (None, 3, {}, "molecules.xyz"):
        name = type(wrong).__name__
        with pytest.raises(TypeError, match=f"calculate_many takes a list of .*, got {name}$"):
            neutral().calculate_many(wrong)


def test_an_error_names_the_structure_of_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(structures_module.evaluate_many.__kwdefaults__, "batch_atoms", 20)
    many = [ethanol() for _ in range(7)]
    many[5].positions[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"^structure 5: the position of atom 3"):
        neutral().calculate_many(many)
    many[5] = ethanol()
    many[4].numbers[0] = 79
    with pytest.raises(ValueError, match=r"^structure 4: .*not trained on Au"):
        neutral().calculate_many(many)


# -------------------------------------------------------------------------------------- messages


def with_info(**info) -> Atoms:
    atoms = ethanol()
    atoms.info = info
    return atoms


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_no_longer_finite_is_refused(bad: float) -> None:
    atoms = ethanol()
    atoms.calc = AttnCalculator("so3krates-ethanol")
    atoms.get_forces()
    atoms.positions[2, 1] = bad
    with pytest.raises(ValueError, match=r"^the position of atom 2 \(O\) is not finite"):
        atoms.get_forces()


def test_numbers_that_overflow_are_refused() -> None:
    heap = Atoms("H60", np.random.default_rng(0).uniform(0, 1.2, (60, 3)))
    calculator = AttnCalculator(ETHANOL)
    with pytest.raises(ValueError, match=r"^energy or forces are not finite: atoms are too close"):
        calculator.get_forces(heap)
    with pytest.raises(ValueError, match=r"^structure 1: energy or forces are not finite"):
        calculator.calculate_many([ethanol(), heap])


@pytest.mark.parametrize("name", ["energy", "forces"])
def test_one_number_that_overflows_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An energy whose forces are finite, and a force whose energy is finite."""

    def overflowing(evaluate):
        def evaluated(*args):
            result = evaluate(*args)
            getattr(result, name).view(-1)[-1] = torch.inf
            return result

        return evaluated

    for place in (module, structures_module):
        monkeypatch.setattr(place, "evaluate", overflowing(place.evaluate))
    calculator = AttnCalculator(ETHANOL, device="cpu")
    with pytest.raises(ValueError, match=r"^energy or forces are not finite: atoms are too close"):
        calculator.calculate(ethanol())
    assert not calculator.results
    with pytest.raises(ValueError, match=r"^structure 0: energy or forces are not finite"):
        calculator.calculate_many([ethanol()])


def test_a_calculator_without_a_structure() -> None:
    for ask in (lambda one: one.get_property("energy"), lambda one: one.calculate()):
        with pytest.raises(ValueError, match=r"^there is no structure of a last call: give one"):
            ask(neutral())


def test_many_takes_structures_only() -> None:
    calculator = neutral()
    assert len(calculator.calculate_many(atoms for atoms in [ethanol(), ethanol()])) == 2
    for wrong in (["a", "b"], [3]):
        with pytest.raises(TypeError, match=r"^structure 0: expected ase\.Atoms, got (str|int)$"):
            calculator.calculate_many(wrong)


def not_finite() -> Atoms:
    atoms = ethanol()
    atoms.positions[3, 1] = np.nan
    return atoms


def on_top() -> Atoms:
    atoms = ethanol()
    atoms.positions[3] = atoms.positions[4]
    return atoms


def periodic_without_cell() -> Atoms:
    atoms = ethanol()
    atoms.pbc = True
    return atoms


IMPOSSIBLE = {
    "unknown element": (
        molecule("CH3Cl"),
        "this model was not trained on Cl; its elements are: H C O",
    ),
    "NaN": (not_finite(), r"the position of atom 3 \(H\) is not finite: \[.*nan.*\]"),
    "impossible spin": (
        with_info(spin=2),
        r'atoms\.info\["spin"\] = 2 is impossible for 26 electrons .* must be odd, e\.g\. 1',
    ),
    "spin of a model without": (with_info(spin=3), "multiplicity 3: .* only the lowest spin"),
    "charge of a neutral model": (
        with_info(charge=-1),
        "total charge -1 e: this model supports neutral structures only; remove ",
    ),
    "charge 0.5": (with_info(charge=0.5), r'atoms\.info\["charge"\] must be an integer .* got 0.5'),
    "charges per atom": (
        with_info(charge=np.zeros(9)),
        r'atoms\.info\["charge"\] must be an integer .* got array',
    ),
    "on top": (on_top(), r"atom 3 \(H\) and atom 4 \(H\) are 0\.0e\+00 Å apart: remove one"),
    "empty": (Atoms(), "the structure has no atoms"),
    "no cell": (periodic_without_cell(), r"pbc is \[True, True, True\] but the cell vectors"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_structures(case: str, ethanol64: AttnCalculator) -> None:
    atoms, message = IMPOSSIBLE[case]
    for ask in (ethanol64.get_forces, lambda a: ethanol64.calculate_many([a])):
        with pytest.raises(ValueError, match=message) as error:
            ask(atoms)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"device": "cuda"},
            ValueError,
            "device 'cuda' does not exist: .* finds 0 CUDA devices; use",
        ),
        ({"device": "cuda:1"}, ValueError, "device 'cuda:1' does not exist"),
        ({"device": "banana"}, ValueError, "device must be \"auto\", .* got 'banana'"),
        ({"device": "mps"}, ValueError, "device must be \"auto\", .* got 'mps'"),
        ({"device": None}, ValueError, 'device must be "auto", .* got None'),
        ({"dtype": "float16"}, ValueError, "dtype must be one of float32, float64, got 'float16'"),
        ({"skin": -0.1}, ValueError, "skin must be a number of Å >= 0, got -0.1"),
        ({"skin": float("nan")}, ValueError, "skin must be a number of Å >= 0, got nan"),
        ({"skin": "a"}, ValueError, "skin must be a number of Å >= 0, got 'a'"),
        ({"skn": 0.1}, TypeError, "skn"),
        (
            {"model": "so3krates-ethnol"},
            FileNotFoundError,
            "no model file and no shipped model 'so3krates-ethnol'; shipped: .*so3krates-ethanol",
        ),
        (
            {"model": __file__},
            ValueError,
            "test_calculator.py: not a safetensors file, or a damaged",
        ),
        ({"model": None}, TypeError, "or a list of these, got NoneType"),
        ({"model": 3}, TypeError, "a name, a path, a Potential, or a list of these, got int"),
    ],
    ids=str,
)
def test_impossible_arguments(
    arguments: dict, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(kind, match=message) as error:
        AttnCalculator(**({"model": ETHANOL} | arguments))
    assert "\n" not in str(error.value)


def test_threads_of_an_argument_and_of_a_potential() -> None:
    plain = load(COPPER, threads=3)
    assert AttnCalculator(COPPER).potential.threads == 1
    assert AttnCalculator(COPPER, threads=2).potential.threads == 2
    assert AttnCalculator(plain).potential.threads == 3
    assert AttnCalculator(plain, threads=2).potential.threads == 2
    assert plain.threads == 3
    other = random_potential()
    members = AttnCalculator(
        [other, random_potential(embed_spin=True)], threads=2
    ).potential.members
    assert [member.threads for member in members] == [2, 2]
    assert other.threads == 1
    assert AttnCalculator(COPPER, threads=np.int64(2)).potential.threads == 2
    for wrong in (0, -1, 1.5, "2"):
        said = rf"^threads must be a whole number from 1 to 1024, got {wrong!r}$"
        with pytest.raises(ValueError, match=said):
            AttnCalculator(COPPER, threads=wrong)


def test_a_compiled_potential_is_checked_by_its_network() -> None:
    compiled = AttnCalculator(ETHANOL).potential
    calculator = AttnCalculator(compiled)
    assert type(calculator.evaluator.plain.network) is So3krates
    assert calculator.potential.network.engine.weights is compiled.network.engine.weights
    calculator.verify()
    for change in (
        lambda: compiled.set_num_threads(2),
        lambda: compiled.set_dtype(torch.float64),
        lambda: compiled.set_long_range_cutoff(5.0),
    ):
        with pytest.raises(ValueError, match="networks of this potential are compiled already"):
            change()


def test_a_calculator_of_a_compiled_potential_is_that_of_the_plain_one() -> None:
    """Also with other options; and second derivatives have all pair terms."""
    compiled, atoms = AttnCalculator("so3krates-organic").potential, molecule("CH3OH")
    plain = load("so3krates-organic", device="cpu", long_range_cutoff=6.0)
    expected = AttnCalculator(plain).get_potential_energy(atoms)
    chosen = AttnCalculator(compiled, long_range_cutoff=6.0, threads=2)
    assert chosen.get_potential_energy(atoms) == expected
    assert chosen.todict()["long_range_cutoff"] == "6 Å"
    second = hessian(load("so3krates-organic", device="cpu"), atoms)
    assert np.array_equal(hessian(compiled, atoms), second)
    assert np.array_equal(AttnCalculator(compiled).get_hessian(atoms), second)
    both = Committee([load("so3krates-ethanol"), load("so3krates-ethanol-distilled")])
    assert type(AttnCalculator(AttnCalculator(both).potential).evaluator.plain) is Committee


def test_dtype_beside_a_potential() -> None:
    with pytest.raises(ValueError, match=r"dtype belongs to load\(\.\.\.\) when a Potential"):
        AttnCalculator(random_potential(), dtype="float32")


def test_options_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        AttnCalculator(ETHANOL, "cpu")  # type: ignore[misc]


def test_auto_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert named_device("auto").type == expected
    assert AttnCalculator(random_potential(), device="cpu").potential.device.type == "cpu"


# ------------------------------------------------------------------------------ what ASE users do


def test_name_path_and_potential_are_the_same_model() -> None:
    atoms = copper_crystal()
    energies = [
        AttnCalculator(model).get_potential_energy(atoms) for model in (COPPER, str(COPPER))
    ]
    energies.append(AttnCalculator(load(COPPER)).get_potential_energy(atoms))
    assert len(set(energies)) == 1


def test_a_potential_stays_its_owner_s() -> None:
    """One may look at a model in the middle of its training, and train on."""
    potential = random_potential().train()
    atoms = ethanol()
    calculator = AttnCalculator(potential)
    energy = calculator.get_potential_energy(atoms)
    assert all(p.requires_grad for p in potential.parameters())
    assert potential.training
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.5)
    atoms.positions += 1.0
    assert_close(calculator.get_potential_energy(atoms), energy, 1e-12)
    changed = AttnCalculator(potential).get_potential_energy(atoms)
    assert abs(changed - energy) > 1e-3


def test_deepcopy_and_pickle() -> None:
    atoms = ethanol()
    atoms.calc = neutral()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    # as after dynamics on a GPU: a recorded step cannot be pickled
    atoms.calc.evaluator.recorded = threading.Lock()
    shallow = copy.copy(atoms)
    shallow.calc = copy.copy(atoms.calc)
    assert shallow.calc.evaluator is atoms.calc.evaluator, "which memory and time are for"
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert twin.calc is not atoms.calc
        assert twin.get_potential_energy() == energy
        np.testing.assert_array_equal(twin.calc.novelty, atoms.calc.novelty)
        twin.positions[0] += 0.3
        assert abs(twin.get_potential_energy() - energy) > 1e-6
        assert atoms.get_potential_energy() == energy
        twin.positions[0] -= 0.3
        assert_close(twin.get_forces(), forces, ROUNDING)


def test_a_calculator_that_refers_to_itself_is_pickled() -> None:
    calculator = neutral()
    calculator.template = ethanol()
    calculator.template.calc = calculator
    twin = pickle.loads(pickle.dumps(calculator))
    assert twin.template.calc is twin


def test_frames_written_by_a_trajectory(tmp_path: Path, ethanol64: AttnCalculator) -> None:
    """A molecule has no stress; that is no reason to lose its energy and forces."""
    atoms = ethanol()
    atoms.calc = ethanol64
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        atoms.get_potential_energy()
        trajectory.write()
    frame = read(tmp_path / "a.traj")
    assert isinstance(frame.calc, SinglePointCalculator)
    assert frame.get_potential_energy() == atoms.get_potential_energy()
    assert np.array_equal(frame.get_forces(), atoms.get_forces())


def test_grad_mode_and_dtype_of_the_process_are_left_alone() -> None:
    with torch.no_grad():
        forces = neutral().get_forces(ethanol())
        assert not torch.is_grad_enabled()
    assert forces.any()
    assert torch.get_default_dtype() == torch.float32


# ---------------------------------------------------------------------------------------- verify


class Crooked(nn.Module):
    """A network that prefers a direction: everything in it is right but rotation."""

    def __init__(self, network: So3krates) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        self.reads_charge = self.reads_spin = False

    def forward(self, graph: Graph) -> AtomOutputs:
        energies = self.network(graph).energies
        height = torch.zeros_like(energies).index_add(
            0, graph.receivers, graph.vectors[:, 2] ** 2 * graph.edge_mask
        )
        return AtomOutputs(energies + 1e-5 * height)


class OffByAThousandth:
    """An engine whose gradients are too large."""

    defers = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def linearize(self, graph: Graph) -> Linearized:
        found = self.engine.linearize(graph)
        assert found is not None
        return Linearized(found.outputs, lambda d_outputs: 1.001 * found.pull(d_outputs))


def test_verify_prints_a_table(capsys: pytest.CaptureFixture) -> None:
    report = AttnCalculator(ETHANOL).verify(ethanol())
    assert report.passed
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "physics checks on C2H6O, 9 atoms"
    assert len(lines) == 1 + len(report.checks)
    assert all(line.endswith(" ok") for line in lines[1:])
    names = [check.name for check in report.checks]
    assert "forces = -dE/dr (central differences)" in names
    assert "fast path = plain path (E, F, strain)" in names


def test_verify_chooses_a_structure(copper64: AttnCalculator) -> None:
    assert copper64.verify().structure == "Cu12, 12 atoms"
    assert copper64.verify(copper_crystal()).structure == "periodic Cu4, 4 atoms"


def test_verify_of_a_structure_with_constraints(copper64: AttnCalculator) -> None:
    """A strain that a constraint undoes would look like a wrong stress."""
    atoms = copper_crystal()
    atoms.set_constraint([FixAtoms([0]), FixSymmetry(atoms)])
    assert copper64.verify(atoms).passed
    assert len(atoms.constraints) == 2


def test_verify_raises_for_a_broken_model(capsys: pytest.CaptureFixture) -> None:
    good = random_potential()
    calculator = AttnCalculator(Potential(Crooked(good.network), ELEMENTS))
    with pytest.raises(RuntimeError, match="rotation: energy unchanged") as error:
        calculator.verify(ethanol())
    assert "\n" not in str(error.value)
    assert "FAILED" in capsys.readouterr().out
    AttnCalculator(good).verify(ethanol())


def test_verify_raises_for_a_broken_fast_path() -> None:
    calculator = AttnCalculator(ETHANOL)
    engine = calculator.potential.network.engine
    calculator.potential.network.engine = OffByAThousandth(engine)
    with pytest.raises(RuntimeError, match=r"fails 1 checks: fast path = plain path"):
        calculator.verify(ethanol())


def test_verify_refuses_what_the_model_does_not_know(ethanol64: AttnCalculator) -> None:
    with pytest.raises(ValueError, match="total charge"):
        ethanol64.verify(with_info(charge=1))
    with pytest.raises(ValueError, match="not trained on Cu"):
        ethanol64.verify(Atoms("Cu"))


def test_bad_structures_are_refused_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lowered = []
    monkeypatch.setattr(
        "attncalc.evaluator.lower", lambda potential: lowered.append(potential) or potential
    )
    calculator = neutral()
    copper = Atoms("Cu", calculator=calculator)
    for refused in (copper.get_potential_energy, lambda: calculator.verify(copper)):
        with pytest.raises(ValueError, match="not trained on Cu"):
            refused()
    assert not lowered
    atoms = ethanol()
    atoms.calc = calculator
    atoms.get_forces()
    atoms.rattle(0.01)
    atoms.get_forces()
    assert lowered == [calculator.evaluator.plain]


# --------------------------------------------------------------------------- who it is


def test_a_calculator_says_which_model_it_is():
    calc = AttnCalculator("so3krates-ethanol")
    sha = model_file.checksum("so3krates-ethanol")
    assert calc.name == "attncalc"
    assert calc.todict() == {
        "model": "so3krates-ethanol",
        "sha256": sha,
        "dtype": "float32",
        "device": "cpu",
    }
    assert repr(calc) == (
        f"AttnCalculator(so3krates-ethanol: So3krates for H C O, float32 on cpu, sha256 {sha[:12]})"
    )
    several = AttnCalculator(["so3krates-ethanol", "equiformer-ethanol"])
    assert several.todict()["model"] == ["so3krates-ethanol", "equiformer-ethanol"]
    assert several.todict()["sha256"][0] == sha
    assert "Equiformer and So3krates" in repr(several)
    trained = AttnCalculator(load("so3krates-ethanol"))
    assert trained.todict()["model"] == "Potential"
    assert trained.todict()["sha256"] == sha


def test_a_row_of_a_database_names_model_and_checksum(tmp_path):
    from ase.db import connect

    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("so3krates-ethanol")
    energy = atoms.get_potential_energy()
    with connect(tmp_path / "rows.db") as database:
        database.write(atoms)
    row = connect(tmp_path / "rows.db").get(1)
    assert row.calculator == "attncalc"
    assert row.calculator_parameters["sha256"] == model_file.checksum("so3krates-ethanol")
    assert row.energy == energy


def test_dtypes_of_torch_are_understood():
    assert AttnCalculator("so3krates-ethanol", dtype=torch.float64).potential.dtype == torch.float64
    with pytest.raises(ValueError, match="dtype must be one of float32, float64, got 'float16'"):
        AttnCalculator("so3krates-ethanol", dtype=torch.float16)


def test_charge_and_multiplicity_under_other_names_are_read() -> None:
    """As `total_charge` and `multiplicity`, as data sets and other programs call them."""
    corners = 0.6 * np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    ammonium = Atoms("NH4", [(0, 0, 0), *corners])
    calc = AttnCalculator()
    ammonium.info = {"charge": 1, "spin": 1}
    energy = calc.get_potential_energy(ammonium)
    ammonium.info = {"total_charge": 1, "multiplicity": 1}
    assert calc.get_potential_energy(ammonium) == energy
    ammonium.info = {"total_charge": 0}
    with pytest.raises(ValueError, match="number of electrons is odd"):
        calc.get_potential_energy(ammonium)
    ammonium.info = {"charge": 1, "total_charge": 0}
    message = r'atoms\.info\["charge"\] = 1 but atoms\.info\["total_charge"\] = 0: remove one'
    with pytest.raises(ValueError, match=message):
        calc.get_potential_energy(ammonium)
    ammonium.info = {"total_charge": 1, "multiplicity": 2}
    with pytest.raises(ValueError, match=r'atoms\.info\["multiplicity"\] = 2 is impossible'):
        calc.get_potential_energy(ammonium)


@pytest.mark.parametrize(
    ("set_them", "message"),
    [
        ("set_initial_charges", r'initial charges .* atoms\.info\["charge"\] \(total charge in e'),
        ("set_initial_magnetic_moments", "this model supports only the lowest spin state"),
    ],
)
def test_charges_that_nobody_reads_are_a_warning(set_them, message):
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("so3krates-ethanol")
    getattr(atoms, set_them)([1.0] + 8 * [0.0])
    with pytest.warns(UserWarning, match=message):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        atoms.get_potential_energy()  # once is enough
        atoms.info |= {"charge": 0, "spin": 1}
        atoms.get_potential_energy()
        getattr(atoms, set_them)(9 * [0.0])
        del atoms.info["charge"], atoms.info["spin"]
        atoms.get_potential_energy()


def test_ctrl_c_while_a_compiled_loop_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba makes a SystemError of it; whoever waits for Ctrl-C, like `relax`, gets that."""

    def interrupted(*_: object) -> None:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("so3krates-ethanol", device="cpu")
    monkeypatch.setattr("attncalc.evaluator.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atoms.get_forces()
