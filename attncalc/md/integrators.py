"""List of integrators. A new one needs a file like `attncalc.md.bussi` and a line here."""

from __future__ import annotations

from attncalc.md.bussi import Bussi
from attncalc.md.cell_rescaling import CellRescaling
from attncalc.md.integrator import Integrator
from attncalc.md.langevin import Langevin
from attncalc.md.settings import Settings
from attncalc.md.verlet import Verlet

# by their names in checkpoints
INTEGRATORS: dict[str, type[Integrator]] = {
    "verlet": Verlet,
    "langevin": Langevin,
    "bussi": Bussi,
    "cell_rescaling": CellRescaling,
}


# those of "nvt", the default first
THERMOSTATS = tuple(name for name, kind in INTEGRATORS.items() if kind.ensemble == "nvt")


def integrator_of(settings: Settings) -> Integrator:
    """Make the integrator of a run by `attncalc md`.

    Raises:
        ValueError: there is no such thermostat.
    """
    found = {name: kind for name, kind in INTEGRATORS.items() if kind.ensemble == settings.ensemble}
    name = settings.thermostat if settings.ensemble == "nvt" else next(iter(found))
    if name not in found:
        raise ValueError(f"thermostat must be {' or '.join(found)}, got {name!r}")
    return found[name].from_settings(settings)
