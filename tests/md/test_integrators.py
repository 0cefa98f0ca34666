"""A new integrator is one class and one line in the list: here from outside the package."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase import units
from states import assert_equal
from torch import Tensor
from toys import gas, zeros_of

from attncalc import System, md
from attncalc.md.integrator import Column, Integrator
from attncalc.md.integrators import INTEGRATORS, integrator_of
from attncalc.md.splitting import drift, kick
from attncalc.md.start import initial_state
from attncalc.md.state import FLOATS, Stored

FS = units.fs


@dataclass(frozen=True)
class PathState(md.MDState):
    """Atoms in motion that know how far they went."""

    path: Tensor = field(kw_only=True)  # [n_systems] Å

    stored: ClassVar[tuple[Stored, ...]] = (
        *md.MDState.stored,
        Stored("path", FLOATS[:1], ("systems",), 0),
    )

    @classmethod
    def kept_of(cls, result: Any, system: System) -> dict[str, Any]:
        """Of a state to start from; steps keep what they have."""
        return super().kept_of(result, system) | {"path": torch.zeros_like(result.energy)}


@dataclass(frozen=True)
class Leapfrog:
    """B A, and the length of the path."""

    ensemble: ClassVar[str] = "nve"
    thermometer: ClassVar[str] = "nve"
    times: ClassVar[tuple[str, ...]] = ("timestep",)
    state_type: ClassVar[type[md.MDState]] = PathState
    columns: ClassVar[tuple[Column, ...]] = (
        Column("path_A", "path", "Angstrom", lambda state: state.path),
    )

    timestep: float

    @classmethod
    def from_settings(cls, settings: md.Settings) -> Leapfrog:
        return cls(settings.timestep)

    def init(self, potential: Any, system: System, **given: Any) -> md.MDState:
        return initial_state(PathState, potential, system, 300.0, "nve", **given)

    def step(self, state: PathState, force: Any) -> PathState:
        result, path = force(state.system), state.path
        moved = drift(kick(state.with_forces(result), self.timestep), self.timestep)
        way = torch.linalg.vector_norm(moved.system.positions - state.system.positions, dim=1)
        return moved.replace(path=path + state.per_system(way), step=state.step + 1)

    def highest_temperature(self, first: md.MDState) -> Tensor:
        return 1e4 * torch.ones_like(first.energy)


def test_an_integrator_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(INTEGRATORS, "leapfrog", Leapfrog)
    leapfrog: Integrator = Leapfrog(0.5 * FS)
    system = System.from_ase(gas(3, np.tile(9 * np.eye(3), (2, 1, 1))))
    first = leapfrog.init(zeros_of, system)
    whole = md.run(leapfrog, zeros_of, first, 20)

    def files() -> list:
        trajectory = tmp_path / "a.h5md"
        log = md.Log(tmp_path / "a.csv", every=5, trajectory=trajectory)
        return [md.H5MDWriter(trajectory, every=5), log, md.Checkpoint(tmp_path / "a.ckpt")]

    md.run(leapfrog, zeros_of, first, 8, callbacks=files())
    integrator, state, _ = md.load_checkpoint(tmp_path / "a.ckpt")
    assert integrator == leapfrog
    last = md.run(integrator, zeros_of, state, 12, callbacks=files())
    assert_equal(last, whole)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["path_A"]) for row in rows[-2:]] == last.path.tolist()
    (frame,) = md.read_h5md(tmp_path / "a.h5md", -1)
    assert frame.info["path_Angstrom"] == float(last.path[0])


@pytest.mark.parametrize(
    ("chosen", "integrator"),
    [
        ({"ensemble": "nve"}, md.Verlet(0.7 * FS)),
        ({"ensemble": "nvt"}, md.Langevin(0.7 * FS, 290.0, 0.02 / FS)),
        ({"ensemble": "nvt", "thermostat": "bussi"}, md.Bussi(0.7 * FS, 290.0, 30 * FS)),
        (
            {"ensemble": "npt", "isotropic": False},
            md.CellRescaling(
                *(0.7 * FS, 290.0, 5 * units.GPa, 30 * FS, 700 * FS, 0.2 / units.GPa, False)
            ),
        ),
    ],
    ids=["nve", "nvt", "bussi", "npt"],
)
def test_settings_name_their_integrator(chosen: dict[str, Any], integrator: Integrator) -> None:
    """No two of the numbers are equal."""
    numbers = {"timestep": 0.7 * FS, "temperature": 290.0, "friction": 0.02 / FS, "pressure": 5.0}
    numbers |= {"relaxation": 30 * FS, "cell_relaxation": 700 * FS, "compressibility": 0.2}
    settings = md.Settings(**chosen, **numbers)
    assert integrator_of(settings) == integrator
    assert md.Settings.from_stored(settings.stored()) == settings


def test_thermostats_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="thermostat must be langevin or bussi, got 'nose'"):
        integrator_of(md.Settings(thermostat="nose"))
    with pytest.raises(ValueError, match=r"thermostat must be a name, got \['bussi'\]"):
        md.Settings(thermostat=["bussi"])
