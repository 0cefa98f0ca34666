"""A step before the forces in one pass equals the elementary operations one by one."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from contract import assert_close, ethanol
from toys import zeros_of

from attncalc import System, load, md
from attncalc.evaluator import Evaluator
from attncalc.md import fused_steps, splitting
from attncalc.md.integrator import of_systems

FS = units.fs
TEMPERATURES = {"one": 300.0, "of each": (300.0, 900.0)}


@pytest.fixture(scope="module")
def forces() -> Evaluator:
    return Evaluator(load("so3krates-xtb-small-molecules"))


def moving(integrator: md.Verlet | md.Langevin, forces: Evaluator, *, fixed: bool) -> md.MDState:
    """A batch of two in motion, at a step that does not fit into 32 bits."""
    atoms = [ethanol(), ethanol()[:5]]
    held = torch.arange(14) % 4 == 1 if fixed else None
    options = {"seed": 2**32 - 1, "fixed": held, "replicas": torch.tensor([7, 2**32 - 1])}
    return integrator.init(forces, System.from_ase(atoms), **options).replace(step=2**40 + 3)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("integrator", ["verlet", *TEMPERATURES])
def test_one_pass_is_the_verbs(
    forces: Evaluator, integrator: str, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_kind = md.Verlet(0.5 * FS)
    if integrator in TEMPERATURES:
        of_kind = md.Langevin(0.5 * FS, TEMPERATURES[integrator], 0.02 / FS)
    first = moving(of_kind, forces, fixed=fixed)

    def force(system: System):
        seen.append(system.positions)
        return forces(system)

    seen: list[torch.Tensor] = []
    fast = of_kind.step(first, force)
    monkeypatch.setattr(fused_steps, "cpu_loops", lambda _: None)
    plain = of_kind.step(first, force)
    assert fast.step == plain.step == 2**40 + 4
    assert not torch.equal(seen[0], first.system.positions)
    assert_close(seen[0], seen[1], 1e-14)
    assert_close(fast.momenta, plain.momenta, 1e-13)
    assert_close(fast.heat, plain.heat, 1e-14)
    assert fast.heat.any() == (integrator in TEMPERATURES)


@pytest.mark.parametrize("kelvin", TEMPERATURES.values(), ids=TEMPERATURES)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("atoms", ["molecules", "linear", "crystals", "single atoms"])
def test_rescaling_in_one_pass_is_the_verb(kelvin, fixed: bool, atoms: str) -> None:
    water = Atoms("OH2", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.9, 0.1]])
    carbon = Atoms("CO2", [[0, 0, 0], [0.4, 0.5, 0.9], [-0.4, -0.5, -0.9]])
    of_kind = {
        "molecules": [ethanol(), water],
        "linear": [carbon, ethanol()],
        "crystals": [bulk("Cu", cubic=True), bulk("Si", cubic=True)],
        "single atoms": [Atoms("Ar"), carbon],
    }
    system = System.from_ase(of_kind[atoms])
    bussi = md.Bussi(0.5 * FS, kelvin, 20 * FS)
    noise = torch.randn(system.n_atoms, 3, generator=torch.manual_seed(1)).double()
    held = torch.arange(system.n_atoms) % 4 == 1 if fixed else None
    options = {"momenta": noise + 1.0, "fixed": held, "replicas": torch.tensor([7, 2**32 - 1])}
    first = bussi.init(zeros_of, system, seed=2**32 - 1, **options).replace(step=2**40 + 3)
    bath = (of_systems(bussi.temperature, system), bussi.relaxation)
    fast = fused_steps.rescale_at_once(first, 2.0, *bath)
    plain = splitting.rescale(first, 2.0, *bath)
    assert not torch.equal(plain.momenta, first.momenta)
    assert_close(fast.momenta, plain.momenta, 1e-11)
    assert_close(fast.heat, plain.heat, 1e-11)


def test_what_is_below_the_limit_with_all_motion_is_so_without() -> None:
    crystal = bulk("Cu", cubic=True)
    momenta = torch.tensor([3.0, 0.0, 1.0]) + torch.randn(4, 3, generator=torch.manual_seed(0))
    potential = load(__file__.replace("md/test_fused_steps.py", "models/cu-emt.safetensors"))
    verlet = md.Verlet(FS)
    state = verlet.init(potential, System.from_ase(crystal), momenta=momenta)
    assert state.temperature_of_all_motion > 1.2 * state.temperature
