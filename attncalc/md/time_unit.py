"""Checks of the unit of time of `attncalc.md`: ASE's, in which 1 fs is 0.0982."""

from __future__ import annotations

from ase import units

from attncalc.options import positive

# timesteps from ROUND on with at most DIGITS decimals are taken for numbers of fs
ROUND, DIGITS = 0.1, 3
# fs, limits of timesteps: much longer than any vibration, and too short for any run
LONGEST, SHORTEST = 1000.0, 0.005
# smaller numbers are taken for timesteps in ps, and in s
LONGEST_PS, LONGEST_S = 0.01, 1e-9


def check_timestep(timestep: float) -> None:
    """Refuse a timestep that is not in ASE's unit of time, and name the unit.

    A product with `ase.units.fs` is not round, so round numbers such as 0.5 were meant in fs.

    Raises:
        ValueError: it is not positive and finite, or in another unit.
    """
    positive("timestep", timestep)
    in_fs = float(timestep) / units.fs
    is_round = timestep >= ROUND and round(float(timestep), DIGITS) == float(timestep)
    if is_round or in_fs > LONGEST:
        raise ValueError(
            f"timestep {timestep:g} is {in_fs:.3g} fs: times are in ASE's unit, write "
            f"{timestep:g} * ase.units.fs for {timestep:g} fs"
        )
    # a number of ps or s: bare, or times `ase.units.fs`
    is_bare = timestep < LONGEST_PS and float(f"{timestep:.{DIGITS}g}") == float(timestep)
    if is_bare or in_fs < SHORTEST:
        meant, its_fs = in_longer_unit(float(timestep) if is_bare else in_fs)
        raise ValueError(
            f"timestep {timestep:g} is {in_fs:.3g} fs, too short for a run: times are in ASE's "
            f"unit, write {its_fs:g} * ase.units.fs for {meant}"
        )


def in_longer_unit(number: float) -> tuple[str, float]:
    """Read a number far too small for fs as ps or s; return that time in words, and in fs."""
    unit, in_fs = ("s", 1e15 * number) if number < LONGEST_S else ("ps", 1e3 * number)
    return f"{number:g} {unit}", in_fs


def check_friction(friction: float) -> None:
    """Refuse a round friction, meant in 1/fs, and name the unit.

    A quotient by `ase.units.fs` is not round.

    Raises:
        ValueError: it is not positive and finite, or in another unit.
    """
    positive("friction", friction)
    if round(float(friction), DIGITS) == float(friction):
        raise ValueError(
            f"friction {friction:g} is {float(friction) * units.fs:.3g} per fs: times are in ASE's "
            f"unit, write {friction:g} / ase.units.fs for {friction:g} per fs"
        )


def check_relaxation(name: str, time: float) -> None:
    """Refuse a round relaxation time, meant in fs; it may be longer than a timestep.

    Raises:
        ValueError: it is not positive and finite, or in another unit.
    """
    positive(name, time)
    if round(float(time), DIGITS) == float(time):
        raise ValueError(
            f"{name} {time:g} is {float(time) / units.fs:.3g} fs: times are in ASE's unit, write "
            f"{time:g} * ase.units.fs for {time:g} fs"
        )
