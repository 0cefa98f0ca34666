"""Self-energy of charges: its formula, derivatives, molecules in cells, nearness to all images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from contract import ELEMENTS, assert_close, assert_derivatives, ethanol, slab, triclinic
from long_range_terms import CUTOFF, outputs_for, potential, terms
from torch import nn

from attncalc import AttnCalculator, System, evaluate
from attncalc.fast import lower
from attncalc.graph import AtomOutputs, Graphs
from attncalc.model_file import load, save
from attncalc.neighbors import fresh_graph
from attncalc.physics.electrostatics import DampedElectrostatics, ElectrostaticsConfig
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.physics.self_energy import SelfEnergy, SelfEnergyConfig
from attncalc.structures import fresh_graphs


def self_energy(cutoff: float | None = CUTOFF, *, by_kind: bool = False) -> SelfEnergy:
    return SelfEnergy(SelfEnergyConfig(cutoff, by_kind), ELEMENTS)


def with_it(cutoff: float | None = CUTOFF, *, by_kind: bool = False) -> list[nn.Module]:
    return [*terms(cutoff, by_kind=by_kind), self_energy(cutoff, by_kind=by_kind)]


def boxed(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.center(vacuum=CUTOFF)
    atoms.pbc = True
    return atoms


def test_by_a_second_formula() -> None:
    outputs, expected = outputs_for(9), -14.399645351950548 * math.erf(CUTOFF / 4) / CUTOFF / 2
    graph = fresh_graph(System.from_ase(ethanol()), cutoff=4.0, species=ELEMENTS)
    energies = expected * outputs.charges.numpy() ** 2
    np.testing.assert_allclose(self_energy()(graph, outputs), energies, rtol=1e-14)
    found = self_energy().linearize(graph, outputs)
    np.testing.assert_allclose(found.energies, energies, rtol=1e-14)
    by_charges = 2 * expected * outputs.charges.numpy()
    np.testing.assert_allclose(found.by_outputs["charges"], by_charges, rtol=1e-14)
    assert not self_energy(None)(graph, outputs).any()


@pytest.mark.parametrize("structure", [triclinic, slab, ethanol])
def test_forces_and_stress_are_differences(structure: Callable) -> None:
    assert_derivatives(potential(with_it()), structure())


def test_a_molecule_is_the_same_in_a_cell() -> None:
    """No force is shifted below 0.45 of the cutoff. Without the term, both differ."""
    water = molecule("H2O")
    for pair_terms, is_same in ((with_it(by_kind=True), True), (terms(by_kind=True), False)):
        calculator = AttnCalculator(potential(pair_terms))
        alone, inside = (
            (calculator.get_potential_energy(atoms), calculator.get_forces(atoms))
            for atoms in (water, boxed(water))
        )
        assert (abs(alone[0] - inside[0]) < 1e-10) == is_same
        assert (np.abs(alone[1] - inside[1]).max() < 1e-10) == is_same


def test_it_is_left_out_of_molecules() -> None:
    whole = potential(with_it(by_kind=True))
    for structure, n in ((ethanol(), 0), (triclinic(), 1)):
        terms_now = whole.terms_for(fresh_graphs(whole, System.from_ase(structure)))
        assert sum(isinstance(term, SelfEnergy) for term in terms_now) == n


def test_the_cutoff_may_be_changed() -> None:
    term = self_energy(by_kind=True)
    assert term.of_all_pairs.is_zero
    assert term.with_cutoff(5.0).of_all_pairs is None
    chosen = AttnCalculator(potential(with_it(by_kind=True)), long_range_cutoff=5.0)
    expected = AttnCalculator(potential(with_it(5.0)))
    for atoms in (ethanol(), triclinic()):
        assert_close(chosen.get_forces(atoms), expected.get_forces(atoms), 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_compiled_steps_have_it(dtype: str, tolerance: float) -> None:
    plain = potential(with_it(by_kind=True))
    system = System.from_ase([triclinic(), slab()])
    expected = evaluate(plain, fresh_graphs(plain, system))
    plain.set_dtype(getattr(torch, dtype))
    fast = lower(plain)
    found = evaluate(fast, fresh_graphs(fast, system))
    for name in ("energies", "forces", "strain_gradient"):
        size = getattr(expected, name).abs().amax().clamp(min=1)
        assert_close(getattr(found, name), getattr(expected, name), tolerance * size, name)


def test_energies_of_ghosts_do_not_count() -> None:
    whole = potential([self_energy()])
    graphs = fresh_graphs(whole, System.from_ase(triclinic() * (2, 1, 1)))
    everything = evaluate(whole, graphs)
    some = evaluate(whole, Graphs(graphs.short, graphs.long, n_counted=3))
    assert_close(some.energies[:3], everything.energies[:3], 1e-12)
    assert not some.energies[3:].any()


def test_charges_feel_nearly_all_images() -> None:
    """In a polar crystal, dE / d charge of an Ewald sum; without the term it is far off."""
    water = molecule("H2O")
    crystal = Atoms(cell=[9.3] * 3, pbc=True)
    for n, place in enumerate(np.ndindex(3, 3, 3)):
        one = water.copy()
        one.rotate(61 * n, (1, n % 2, n % 5))
        one.positions += 3.1 * np.array(place)
        crystal += one
    system, end = System.from_ase(crystal), 12.0
    charges = torch.tensor(np.where(crystal.numbers == 8, -0.8, 0.4)).requires_grad_()
    outputs = AtomOutputs(torch.zeros(len(crystal)), charges)
    graph = fresh_graph(system, cutoff=end, species=ELEMENTS)
    electric = DampedElectrostatics(ElectrostaticsConfig(end), ELEMENTS)(graph, outputs)
    neutral = self_energy(end)(graph, outputs)
    images = Ewald(EwaldConfig(), ELEMENTS)(graph, outputs, system)
    exact, cut, cut_neutral = (
        torch.autograd.grad(energies.sum(), charges, retain_graph=True)[0]
        for energies in (images, electric, electric + neutral)
    )
    assert (cut_neutral - exact).abs().mean() < 0.25 * (cut - exact).abs().mean()


def test_a_model_file_keeps_it(tmp_path) -> None:
    whole = potential(with_it(by_kind=True))
    save(whole, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", dtype="float64", device="cpu")
    assert again.pair_terms[-1].config == SelfEnergyConfig(CUTOFF, True)
    with pytest.raises(ValueError, match="damping_length must be positive"):
        SelfEnergyConfig(9.0, damping_length=-1.0)
