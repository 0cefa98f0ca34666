"""Committees: the mean of their members, with the spread, through every interface."""

import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.units import fs
from long_range_terms import potential as long_ranged
from long_range_terms import terms

from attncalc import AttnCalculator, Committee, Potential, evaluate, load, md, save
from attncalc.describe import describe_cutoffs, describe_names, describe_networks
from attncalc.fast import disagreement, lower
from attncalc.model_file import header
from attncalc.neighbors import fresh_graph
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.system import System

SPECIES = (1, 6, 8)


def member(
    seed: int, *, cutoff: float = 4.0, species=SPECIES, charge: bool = False, **others: bool
) -> Potential:
    torch.manual_seed(seed)
    config = So3kratesConfig(
        cutoff,
        avg_num_neighbors=8.0,
        num_features=16,
        num_heads=2,
        degrees=(1, 2),
        num_basis=8,
        head_features=8,
        embed_charge=charge,
        **others,
    )
    network = So3krates(config, len(species)).double()
    references = [-float(seed + z) for z in species]
    return Potential(network, species, reference_energies=references).requires_grad_(False)


@pytest.fixture(scope="module")
def committee() -> Committee:
    return Committee([member(seed) for seed in range(3)], training={"data": "none"})


def test_results_are_mean_and_standard_deviation_of_the_members(committee):
    system = System.from_ase([molecule("CH3CH2OH"), molecule("H2O")])
    graph = fresh_graph(system, cutoff=4.0, species=SPECIES)
    result = evaluate(committee, graph)
    alone = [evaluate(potential, graph) for potential in committee.members]
    for name in ("energy", "energies", "forces", "strain_gradient"):
        values = np.stack([getattr(one, name).numpy() for one in alone])
        np.testing.assert_allclose(getattr(result, name), values.mean(0), rtol=1e-13, atol=1e-13)
        if name in ("energy", "forces"):
            spread = getattr(result.spread, name)
            np.testing.assert_allclose(spread, values.std(0, ddof=1), rtol=1e-10, atol=1e-13)
            assert spread.max() > 1e-3
    assert alone[0].spread is None
    # the differentiable form is the same mean
    torch.testing.assert_close(committee.energies(graph), result.energies, rtol=0, atol=1e-12)


def test_one_file_holds_a_committee_to_the_bit(committee, tmp_path):
    path = tmp_path / "three.safetensors"
    save(committee, path)
    again = load(path)
    assert isinstance(again, Committee)
    assert again.training_info == {"data": "none"}
    assert len(again.members) == 3
    for ours, theirs in zip(again.members, committee.members, strict=True):
        assert ours.reference_energies.tolist() == theirs.reference_energies.tolist()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert load(path, dtype="float32").dtype == torch.float32
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_calculator_takes_a_list_or_a_file(committee, tmp_path):
    save(committee, tmp_path / "three.safetensors")
    paths = []
    for k, potential in enumerate(committee.members):
        paths.append(tmp_path / f"{k}.safetensors")
        save(potential, paths[-1])
    atoms = molecule("CH3CH2OH")
    energies = []
    for path in paths:
        atoms.calc = AttnCalculator(path, device="cpu")
        energies.append(atoms.get_potential_energy())
        assert atoms.calc.spread is None
    results = []
    for model in (paths, tmp_path / "three.safetensors", committee, list(committee.members)):
        atoms.calc = AttnCalculator(model, device="cpu")
        assert atoms.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-9)
        spread = atoms.calc.spread
        assert spread["energy"] == pytest.approx(np.std(energies, ddof=1), abs=1e-9)
        results.append(atoms.get_forces())
        atoms.calc.export_properties()  # ASE refuses names that it does not know
        many = atoms.calc.calculate_many([atoms, molecule("H2O")])
        for found, one in zip(many, (atoms, molecule("H2O")), strict=True):
            np.testing.assert_allclose(found["forces"], atoms.calc.get_forces(one), atol=1e-10)
            spread = atoms.calc.spread
            assert np.abs(spread["forces"]).max() > 1e-3
            np.testing.assert_allclose(found["forces_spread"], spread["forces"], atol=1e-10)
            assert found["energy_spread"] == pytest.approx(spread["energy"], abs=1e-9)
    for forces in results[1:]:
        np.testing.assert_allclose(forces, results[0], atol=1e-12)


def test_committee_passes_the_physics_checks(committee):
    assert AttnCalculator(committee, device="cpu").verify().passed
    atoms = bulk("C", cubic=True)
    assert AttnCalculator(committee, device="cpu").verify(atoms).passed


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda: [member(0)], "a committee needs two members or more, got 1"),
        (lambda: [member(0), member(1, cutoff=5.0)], "must have the same cutoff, got 4.0, 5.0"),
        (lambda: [member(0), member(1, species=(1, 8))], "must have the same species, got "),
        (lambda: [member(0), member(1), member(0)], "the same model is twice in a committee"),
    ],
    ids=["one", "cutoff", "species", "twice"],
)
def test_impossible_committees_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        AttnCalculator(members(), device="cpu")


def test_members_of_different_levels_of_theory_are_mentioned():
    members = [member(0), member(1)]
    for one, level in zip(members, ("PBE+vdW-TS (MD17)", "GFN2-xTB (tblite)"), strict=True):
        one.training_info = {"level_of_theory": level}
    with pytest.warns(UserWarning, match=r"levels of theory \(gfn2-xtb, pbe\+vdw-ts\): mean and"):
        Committee(members)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("aspirin-committee")  # which names the source of its labels in different words


def test_spread_is_never_that_of_another_structure(committee):
    calculator = AttnCalculator(committee, device="cpu")
    calculator.calculate(molecule("H2O"), ["energy"], [])
    assert calculator.spread is not None
    with pytest.raises(ValueError, match="was not trained on N"):
        calculator.calculate(molecule("NH3"), ["energy"], [])
    assert calculator.spread is None


def test_a_committee_among_the_members_is_taken_apart(committee):
    fourth = member(7)
    flat = AttnCalculator([*committee.members, fourth], device="cpu")
    nested = AttnCalculator([committee, fourth], device="cpu")
    assert len(nested.potential.members) == 4
    results = [c.calculate_many([molecule("H2O")])[0] for c in (flat, nested)]
    assert results[0]["energy"] == results[1]["energy"]
    assert results[0]["energy_spread"] == results[1]["energy_spread"]


def test_threads_are_those_of_the_members():
    pair = Committee([member(1), member(2)])
    assert pair.threads == 1
    pair.set_num_threads(3)
    assert pair.threads == 3 == pair.members[1].threads


def test_spin_and_charges_are_abilities_of_every_member():
    able = {"embed_spin": True, "predict_charges": True}
    reads, reads_too, neither = member(0, **able), member(1, **able), member(2)
    for potentials in ([reads, neither], [neither, reads]):
        pair = Committee(potentials)
        assert not pair.reads_spin
        assert not pair.predicts_charges
    triplet = molecule("H2O")
    triplet.info["spin"] = 3
    with pytest.raises(ValueError, match="multiplicity"):
        AttnCalculator([reads, neither], device="cpu").get_potential_energy(triplet)
    both = AttnCalculator([reads, reads_too], device="cpu")
    alone = [AttnCalculator(one, device="cpu") for one in (reads, reads_too)]
    for one in (triplet, molecule("H2O")):
        mean = np.mean([calc.get_potential_energy(one) for calc in alone])
        assert both.get_potential_energy(one) == pytest.approx(mean, abs=1e-9)
        charges = np.mean([calc.get_charges(one) for calc in alone], axis=0)
        np.testing.assert_allclose(both.get_charges(one), charges, atol=1e-9)


@pytest.mark.parametrize(
    ("ranges", "asked"), [((6.0, 6.0), 5.0), ((5.0, 7.0), None)], ids=["changed", "different"]
)
def test_every_member_has_its_own_range(ranges, asked):
    """Members differ in the charges that they predict."""
    alone = []
    for seed, end in enumerate(ranges):
        one = long_ranged(terms(end))
        with torch.no_grad():
            for parameter in one.network.parameters():
                parameter.mul_(1 + 0.1 * seed)
        alone.append(one)
    both = AttnCalculator(Committee(alone), device="cpu", long_range_cutoff=asked)
    each = [AttnCalculator(one, device="cpu", long_range_cutoff=asked) for one in alone]
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([6, 7, 8])
    atoms.pbc = True
    assert both.get_potential_energy(atoms) == pytest.approx(
        np.mean([calc.get_potential_energy(atoms) for calc in each]), abs=1e-9
    )
    forces = np.mean([calc.get_forces(atoms) for calc in each], axis=0)
    np.testing.assert_allclose(both.get_forces(atoms), forces, atol=1e-9)
    if asked:
        farther = AttnCalculator(Committee(alone), device="cpu")
        assert abs(farther.get_potential_energy(atoms) - both.get_potential_energy(atoms)) > 1e-4


def test_the_spread_of_dynamics_is_the_largest_of_a_structures_atoms(committee, tmp_path):
    """In a state, in the log of our integrators, and in that of ASE's."""
    calculator = AttnCalculator(committee, device="cpu")
    structures = [molecule("CH3CH2OH"), molecule("H2O")]
    expected = []
    for atoms in structures:
        calculator.get_forces(atoms)
        expected.append(np.linalg.norm(calculator.spread["forces"], axis=1).max())
    verlet = md.Verlet(timestep=0.5 * fs)
    state = verlet.init(committee, structures, seed=0)
    np.testing.assert_allclose(state.spread, expected, rtol=1e-9)
    md.run(verlet, committee, state, 1, callbacks=[md.Log(tmp_path / "ours.csv")])
    rows = md.read_log(tmp_path / "ours.csv", n_systems=2)
    ours = [float(row["force_spread_eV_A"]) for row in rows[:2]]
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    atoms = structures[0]
    atoms.calc = calculator
    md.run_with_ase(atoms, md.Settings("nve", n_steps=1, every=1), tmp_path / "ase.xyz")
    first = md.read_log(tmp_path / "ase.csv")[0]
    assert float(first["force_spread_eV_A"]) == pytest.approx(expected[0], rel=1e-3)


def test_charge_counts_only_where_every_member_reads_it():
    charged = molecule("H2O")
    charged.info["charge"] = 1
    reads, reads_too, ignores = member(0, charge=True), member(1, charge=True), member(2)
    for potentials in ([reads, ignores], [ignores, reads]):
        charged.calc = AttnCalculator(potentials, device="cpu")
        with pytest.raises(ValueError, match="supports neutral structures only"):
            charged.get_potential_energy()
    charged.calc = AttnCalculator([reads, reads_too], device="cpu")
    energy = charged.get_potential_energy()
    charged.info["charge"] = 0
    assert abs(charged.get_potential_energy() - energy) > 1e-6


@pytest.fixture(scope="module")
def mixed() -> Committee:
    """Shipped models of the same molecule by two networks, one twice but for its last bias."""
    so3krates = load("so3krates-ethanol")
    other = load("so3krates-ethanol")
    with torch.no_grad():
        other.network.head.energy.bias += 0.01
    return Committee([so3krates, load("equiformer-ethanol"), other])


def test_a_committee_of_different_networks_in_one_file(mixed, tmp_path):
    path = tmp_path / "mixed.safetensors"
    save(mixed, path)
    again = load(path)
    assert [type(network).__name__ for network in again.networks] == [
        "So3krates",
        "Equiformer",
        "So3krates",
    ]
    for ours, theirs in zip(again.members, mixed.members, strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert {described["network"] for described in header(path)["members"]} == {
        "so3krates",
        "equiformer",
    }
    (of_file,) = AttnCalculator(path, device="cpu").calculate_many([molecule("CH3CH2OH")])
    alone = [AttnCalculator(m, device="cpu") for m in ("so3krates-ethanol", "equiformer-ethanol")]
    forces = [one.calculate_many([molecule("CH3CH2OH")])[0]["forces"] for one in alone]
    mean = (2 * forces[0] + forces[1]) / 3  # a bias of the energy exerts no force
    np.testing.assert_allclose(of_file["forces"], mean, atol=1e-6)


def test_every_member_of_a_mixed_committee_has_its_own_engine(mixed):
    fast = lower(mixed)
    names = [type(member.network.engine).__module__ for member in fast.members]
    assert [name.split(".")[2] for name in names] == ["so3krates", "equiformer", "so3krates"]
    assert disagreement(fast, mixed) < 1e-4
    AttnCalculator(mixed, device="cpu").verify()


def test_a_mixed_committee_moves_atoms_and_conserves_energy(mixed):
    system = System.from_ase(molecule("CH3CH2OH"))
    verlet = md.Verlet(timestep=0.5 * fs)
    state = verlet.init(mixed, system, seed=0)
    then = state.conserved
    state = md.run(verlet, mixed, state, n_steps=40)
    torch.testing.assert_close(state.conserved, then, rtol=0, atol=5e-3)
    assert 0 < state.spread.item() < 1


def test_description_of_a_mixed_committee(mixed, committee):
    assert describe_networks(mixed) == (
        "mean of 2 x So3krates, 382,461 parameters and 1 x Equiformer, 482,993 parameters"
    )
    assert describe_networks(committee).startswith("mean of 3 x So3krates, ")
    assert describe_networks(mixed.members[0]) == "So3krates, 382,461 parameters"
    assert describe_cutoffs(mixed) == "5 Å"
    assert describe_names(["a", "b", "a"]) == "a x 2 + b x 1"
    assert describe_names(["a", "a"]) == "a x 2"
    assert describe_names(["a"]) == "a"
