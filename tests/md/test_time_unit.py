"""One unit of time, and what is meant in another one."""

import numpy as np
import pytest
from ase.units import fs

from attncalc import md
from attncalc.md import checkpoint
from attncalc.md.time_unit import check_friction, check_timestep


@pytest.mark.parametrize("in_fs", [0.01, 0.1, 0.25, 0.5, 1, 1.5, 2, 5, 10, 20])
def test_products_with_fs_are_taken(in_fs):
    check_timestep(in_fs * fs)
    check_timestep(np.float64(in_fs * fs))


@pytest.mark.parametrize("value", [0.1, 0.25, 0.5, 1, 1.0, 2, 5, np.float32(0.5), np.float64(2)])
def test_what_was_meant_in_fs_is_refused_with_the_unit(value):
    with pytest.raises(ValueError, match=rf"write {value:g} \* ase.units.fs for {value:g} fs"):
        check_timestep(value)


@pytest.mark.parametrize("value", [0.0001, 0.0005, 0.001, 0.002, 5e-16, 1e-15])
def test_what_was_meant_in_ps_or_s_is_refused_with_the_unit(value):
    unit, in_fs = ("s", value * 1e15) if value < 1e-9 else ("ps", value * 1e3)
    for given in (value, value * fs):
        with pytest.raises(ValueError, match=rf"write {in_fs:g} \* ase.units.fs for .* {unit}$"):
            check_timestep(given)


@pytest.mark.parametrize("kind", [md.Verlet, lambda h: md.Langevin(h, 300, 0.01 / fs), md.Settings])
def test_all_integrators_ask(kind):
    with pytest.raises(ValueError, match="times are in ASE's unit"):
        kind(timestep=0.5) if kind is md.Settings else kind(0.5)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "0.5", None])
def test_no_timesteps(value):
    with pytest.raises(ValueError, match="timestep must be"):
        check_timestep(value)


@pytest.mark.parametrize("value", [0.01, 0.02, 1, 0.001])
def test_frictions_that_were_meant_per_fs(value):
    check_friction(value / fs)
    with pytest.raises(ValueError, match=rf"write {value:g} / ase.units.fs for {value:g} per fs"):
        check_friction(value)


def test_stored_integrators_have_no_unit_to_mistake(tmp_path):
    """Such as were legal before."""
    emt = md.Verlet(fs)
    object.__setattr__(emt, "timestep", 0.1)
    header = {"name": "verlet", "timestep": 0.1}
    assert checkpoint._integrator(header) == emt
