"""The list of integrators. A new one is a file like `attncalc.md.bussi` and a line here."""

from __future__ import annotations

from attncalc.md.bussi import Bussi
from attncalc.md.cell_rescaling import CellRescaling
from attncalc.md.integrator import Integrator
from attncalc.md.langevin import Langevin
from attncalc.md.settings import Settings
from attncalc.md.verlet import Verlet

# by the name that a checkpoint has for it
INTEGRATORS: dict[str, type[Integrator]] = {
    "verlet": Verlet,
    "langevin": Langevin,
    "bussi": Bussi,
    "cell_rescaling": CellRescaling,
}


def integrator_of(settings: Settings) -> Integrator:
    """Make the integrator of a run by `attncalc md`."""
    of_ensemble = {n: kind for n, kind in INTEGRATORS.items() if kind.ensemble == settings.ensemble}
    kind = of_ensemble.get(settings.thermostat) or next(iter(of_ensemble.values()))
    return kind.from_settings(settings)
