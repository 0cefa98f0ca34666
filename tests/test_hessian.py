"""Second derivatives: by autograd and by differences, of molecules and crystals."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from contract import ELEMENTS, ethanol, randomise, triclinic

from attncalc import AttnCalculator, Committee, Potential
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion


def potential(seed: int = 0, **options: object) -> Potential:
    config = So3kratesConfig(
        cutoff=4.0,
        avg_num_neighbors=8.0,
        num_features=16,
        degrees=(1, 2),
        num_layers=2,
        num_basis=8,
    )
    torch.manual_seed(seed)
    network = So3krates(config, len(ELEMENTS))
    randomise(network, seed)
    made = Potential(network, ELEMENTS, pair_terms=[ZBLRepulsion(ZBLConfig(cutoff=4.0), ELEMENTS)])
    made.set_dtype(torch.float64)
    return made


def by_differences_of_forces(calc: AttnCalculator, atoms: Atoms, h: float = 1e-4) -> np.ndarray:
    rows = []
    for k in range(3 * len(atoms)):
        forces = []
        for sign in (1, -1):
            one = atoms.copy()
            one.positions.reshape(-1)[k] += sign * h
            one.calc = calc
            forces.append(one.get_forces().ravel())
        rows.append((forces[1] - forces[0]) / (2 * h))
    return np.array(rows)


@pytest.mark.parametrize("structure", [ethanol, triclinic, lambda: Atoms("O")])
@pytest.mark.parametrize("method", ["autograd", "differences"])
def test_hessian(structure, method: str) -> None:
    atoms, calc = structure(), AttnCalculator(potential())
    found = calc.get_hessian(atoms, method=method, displacement=1e-4)
    assert found.shape == (3 * len(atoms), 3 * len(atoms))
    assert np.array_equal(found, found.T)
    expected = by_differences_of_forces(calc, atoms)
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(found - expected).max() <= 1e-6 * scale
    # a translation of everything costs nothing
    assert np.abs(found.reshape(-1, len(atoms), 3).sum(1)).max() <= 1e-6 * scale


def test_hessian_of_a_committee_is_the_mean() -> None:
    members, atoms = [potential(seed) for seed in (0, 1)], ethanol()
    each = [AttnCalculator(member).get_hessian(atoms) for member in members]
    found = AttnCalculator(Committee(members)).get_hessian(atoms)
    assert np.abs(found - np.mean(each, axis=0)).max() <= 1e-9 * np.abs(found).max()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_hessian_where_gradients_are_off(mode) -> None:
    calc = AttnCalculator(potential())
    expected = calc.get_hessian(ethanol())
    assert np.abs(expected).max() > 1
    with mode():
        assert np.array_equal(calc.get_hessian(ethanol()), expected)


def test_frequencies_of_ethanol() -> None:
    """Of a float32 model as shipped: its engine and autograd agree; six zero, the O-H stretch."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator("so3krates-ethanol", device="cpu")
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=300)
    frequencies = {}
    for method in ("autograd", "differences"):
        hessian = atoms.calc.get_hessian(method=method)
        frequencies[method] = VibrationsData.from_2d(atoms, hessian).get_frequencies().real
    exact = frequencies["autograd"]
    assert np.abs(exact[:6]).max() < 30
    assert 3500 < exact[-1] < 4000  # cm⁻¹
    assert np.abs(exact[6:] - frequencies["differences"][6:]).max() < 15


def test_hessian_is_refused_by_name() -> None:
    calc = AttnCalculator(potential())
    with pytest.raises(ValueError, match="there is no structure of a last call: give one"):
        calc.get_hessian()
    with pytest.raises(ValueError, match="method must be"):
        calc.get_hessian(ethanol(), method="numerical")
    with pytest.raises(ValueError, match="displacement"):
        calc.get_hessian(ethanol(), displacement=0.0)
    with pytest.raises(ValueError, match="Si"):
        calc.get_hessian(bulk("Si"))
    ion = ethanol()
    ion.info["charge"] = 1
    for method in ("autograd", "differences"):
        with pytest.raises(ValueError, match="neutral structures only"):
            calc.get_hessian(ion, method=method)
