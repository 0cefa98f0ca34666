"""`initial_state`: first state of a run, with velocities and forces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from ase.constraints import FixAtoms
from ase.data import atomic_masses
from numpy.typing import ArrayLike
from torch import Tensor

from attncalc.md.force import Force, Function, force_of
from attncalc.md.inputs import Start, as_tensor, mask_of, of_shape, read_structures
from attncalc.md.integrator import Column, of_systems
from attncalc.md.noise import LOW_32_BITS, seed_of
from attncalc.md.state import MDState
from attncalc.md.velocities import Thermometer, runaway
from attncalc.options import whole_number
from attncalc.potential import Potential
from attncalc.system import System

State = TypeVar("State", bound=MDState)

# eV of an atom, far beyond any potential energy
LARGEST_KINETIC_ENERGY = 1e6


def initial_state(
    kind: type[State],
    given: Potential | Force | Function,
    structures: Start,
    temperature: float | Sequence[float],
    ensemble: str,
    *,
    seed: int | None = None,
    momenta: Tensor | ArrayLike | None = None,
    masses: Tensor | ArrayLike | None = None,
    fixed: Tensor | ArrayLike | None = None,
    replicas: Tensor | ArrayLike | None = None,
    new_velocities: bool = False,
    device: torch.device | str | None = None,
) -> State:
    """Make the first state of a run: draw velocities and compute forces.

    Args:
        kind: class of the state.
        given: the model, its force, or a function; the state is on its device.
        structures: of ASE, one or several; or the last state of another run; or a `System`, which
            has no momenta, masses and fixed atoms.
        temperature: K, of drawn velocities: one number, or one for each system.
        ensemble: "nve", "nvt" or "npt": it decides which motion counts as heat, see
            `attncalc.md.velocities`.
        seed: of drawn velocities, and of the noise; 0 .. 2^32 - 1. None: 0, or if the
            structures have momenta, used or not, a number made of them: else a run that continues
            another one would repeat its noise.
        momenta: [n_atoms, 3] amu Å / ASE time; if not given, those of the structures; if these have
            none, they are drawn at exactly this temperature.
        masses: [n_atoms] amu; if not given, those of the structures; for a `System`, those of the
            elements.
        fixed: [n_atoms], bool: True for fixed atoms; if not given, those that `FixAtoms` holds.
        replicas: [n_systems], int64, not negative: they identify the noise of each system; 0, 1,
            ... if not given.
        new_velocities: True: velocities are drawn even if the structures have some.
        device: of a function; if not given, that of a `System`, and the CPU for structures of ASE.
            Models stay on their device.

    Raises:
        ValueError: the structures are not known to the model, have another constraint than
            `FixAtoms`, or only some of them have velocities; in "npt", one is not periodic in all
            directions; a tensor has the wrong shape or values out of range; or nothing can move.
        TypeError: an argument is neither a tensor nor an array of numbers.
    """
    if seed is not None:
        whole_number("seed", seed, 0, LOW_32_BITS)
    own_velocities = momenta is None and not new_velocities
    system, said = read_structures(structures, velocities=own_velocities)
    if ensemble == "npt" and not system.pbc.all():
        raise ValueError('ensemble "npt" needs a structure that is periodic in all directions')
    momenta = said.get("momenta") if momenta is None else momenta
    masses = said.get("masses") if masses is None else masses
    fixed = said.get("fixed") if fixed is None else fixed
    replicas = said.get("replicas") if replicas is None else replicas
    force = force_of(given, system.device if device is None else torch.device(device))
    system = system.to("cpu")
    n = system.n_systems
    kelvin = of_systems(temperature, system).expand(n)
    if not (kelvin.isfinite() & (kelvin >= 0)).all():
        raise ValueError(f"temperature must be finite and not negative, got {temperature!r}")
    replicas = torch.arange(n) if replicas is None else as_tensor("replicas", replicas).long()
    if replicas.shape != (n,) or (replicas < 0).any() or (replicas > LOW_32_BITS).any():
        raise ValueError(f"replicas must be {n} numbers between 0 and 2^32 - 1")
    if masses is None:
        masses = torch.from_numpy(atomic_masses)[system.atomic_numbers]
    masses = of_shape("masses", masses, (system.n_atoms,)).double()
    if not (masses.isfinite() & (masses > 0)).all():
        raise ValueError("masses must be positive and finite")
    if fixed is not None:
        fixed = mask_of(fixed, system.n_atoms)
        fixed = fixed if fixed.any() else None
    if momenta is not None:
        momenta = of_shape("momenta", momenta, (system.n_atoms, 3)).double()
    if seed is None:
        earlier = said.get("earlier") if momenta is None else momenta
        seed = 0 if earlier is None else seed_of(as_tensor("momenta", earlier))
    drawn, n_dof = _drawn(system, kelvin, ensemble, seed, replicas, masses, fixed)
    drawn = drawn if momenta is None else momenta
    _check_momenta(drawn, masses)
    drawn = drawn if fixed is None else drawn.masked_fill(fixed.unsqueeze(1), 0.0)
    force.check(system)
    tensors: dict[str, Tensor | None] = {
        "momenta": drawn,
        "masses": masses,
        "fixed": fixed,
        "n_dof": n_dof,
        "heat": torch.zeros(n, dtype=torch.float64),
        "replicas": replicas,
        "atom_in_system": system.atom_in_system,
    }
    there: dict[str, Any] = {
        name: None if value is None else value.to(force.device) for name, value in tensors.items()
    }
    system = system.to(force.device)
    force.follow(system)  # chooses the skin for this system
    there |= kind.kept_of(force(system), system)
    if not system.pbc.all(1).any():
        there["strain_gradient"] = None
    return kind(system=system, step=0, seed=seed, **there)


class AtTemperature:
    """First state, and limit of temperature, of integrators with a thermostat."""

    temperature: float | tuple[float, ...]
    thermometer: ClassVar[str]
    state_type: ClassVar[type[MDState]] = MDState
    columns: ClassVar[tuple[Column, ...]] = ()

    def init(
        self,
        potential: Potential | Force | Function,
        structures: Start,
        *,
        seed: int | None = None,
        **given: Any,
    ) -> Any:
        """Make the first state, of `state_type`, at this temperature.

        Args:
            potential: the model, or a function `System -> Result`.
            structures: of ASE, one or several, with their masses, velocities and `FixAtoms`; or the
                state in which another run ended; or a `System`, which has none of these.
            seed: of initial velocities and of all random numbers of the run. None: 0, or if there
                are velocities, a number made of them.
            given: momenta, masses, fixed, replicas, new_velocities, device; see `initial_state`.
        """
        kind, kelvin = self.state_type, self.temperature
        return initial_state(
            kind, potential, structures, kelvin, self.thermometer, seed=seed, **given
        )

    def highest_temperature(self, first: MDState) -> Tensor:
        """Return the temperatures [n_systems] K beyond which a run from `first` has exploded."""
        kelvin = of_systems(self.temperature, first.system)
        return runaway(torch.maximum(first.temperature, kelvin))


def _drawn(
    system: System,
    kelvin: Tensor,
    ensemble: str,
    seed: int,
    replicas: Tensor,
    masses: Tensor,
    fixed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return momenta [n_atoms, 3] at exactly these temperatures, degrees of freedom [n_systems].

    Momenta of a system depend on seed and replica, but not on the rest of the batch.
    """
    held = torch.zeros(system.n_atoms, dtype=torch.bool) if fixed is None else fixed
    parts = zip(system.to_ase(), system.split(masses), system.split(held), strict=True)
    momenta, n_dof = [], []
    for k, (atoms, weights, still) in enumerate(parts):
        atoms.set_masses(weights.numpy())
        if still.any():
            atoms.set_constraint(FixAtoms(mask=still.numpy()))
        try:
            thermometer = Thermometer.for_run(atoms, ensemble)
        except ValueError as error:
            where = f"structure {k}: " if system.n_systems > 1 else ""
            raise ValueError(f"{where}{error}") from None
        if kelvin[k] > 0:  # else atoms start at rest
            rng = np.random.default_rng([seed, int(replicas[k])])
            thermometer.draw(atoms, float(kelvin[k]), rng)
        momenta.append(torch.from_numpy(atoms.get_momenta()))
        n_dof.append(float(thermometer.n_dof))
    return torch.cat(momenta), torch.tensor(n_dof, dtype=torch.float64)


def _check_momenta(momenta: Tensor, masses: Tensor) -> None:
    energies = 0.5 * (momenta * momenta).sum(1) / masses
    wrong = energies > LARGEST_KINETIC_ENERGY  # `run` finds those that are not finite
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"atom {first} has a kinetic energy of {float(energies[first]):.3g} eV, more than "
            f"{LARGEST_KINETIC_ENERGY:.0e} eV: are momenta in amu Å / ASE time, is the temperature "
            "in K?"
        )
