"""Vibrational spectra from trajectories: density of states, and infrared where there are dipoles.

By Wiener and Khinchin a power spectrum is the Fourier transform of an autocorrelation, here of

    C(t) = sum_i m_i <v_i(0) . v_i(t)>        velocities, weighted by masses
    D(t) = <dM/dt(0) . dM/dt(t)>              time derivative of the dipole moment M

averaged over all time origins, for lags shorter than the correlation depth L, times Hann's window
cos²(pi t / 2L). A sharp line gets the full width 1 / L at half of its height: the resolution. The
window's transform has side lobes of -2.7 %, so that values beside a strong line may be negative.

* The density of states is that of classical motion, C by kB T: its integral is the number of
  degrees of freedom of the run.
* Infrared absorption needs a quantum correction of classical motion. The harmonic one (Ramírez,
  López-Ciudad, Kumar & Marx, J. Chem. Phys. 121, 3973, 2004) makes it proportional to D by kB T,
  that is to omega² times the transform of <M(0) . M(t)>, and its integral over a line the intensity
  N_A (dM / dQ)² / 12 epsilon_0 c² of the harmonic approximation.
* dM/dt is the difference of neighbouring frames; what that takes from high frequencies,
  (sin(x) / x)² with x = omega dt / 2, is given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy import constants, fft

from attncalc.md.h5md import DIPOLE, VELOCITY, StoredSystem, clock, described, opened

Floats = NDArray[np.float64]

# cm / fs
LIGHT = constants.c * 1e2 * 1e-15
# km/mol of (e Å)² / (amu Å²)
INTENSITY = (
    constants.N_A * constants.e**2 / (12 * constants.epsilon_0 * constants.c**2) / constants.u
) * 1e-3
# 1/cm: no bond with hydrogen, and none without, is faster
FASTEST_WITH_HYDROGEN, FASTEST = 4500.0, 2500.0
# of frames that are held at once
BLOCK_BYTES = 1 << 26
# points of the frequency axis within the width of a sharp line
POINTS = 8
# share of the highest peak that others must have, above zero and above their surroundings: a side
# lobe of the window has 0.8 %
PROMINENCE = 0.02


@dataclass(frozen=True)
class Spectrum:
    """Spectra of a trajectory, of a batch their mean.

    Attributes:
        wavenumbers: [n] 1/cm, from 0 to the highest that the frames can show.
        vdos: [n] degrees of freedom per 1/cm.
        infrared: [n] km/mol per 1/cm; None where the trajectory has no dipoles.
        resolution: 1/cm, full width at half maximum of a sharp line.
        highest: 1/cm: beyond this, nothing is expected.
        spacing: fs between frames.
        depth: fs, of the correlation.
        temperature: K, mean over frames and systems.
        n_frames: of each system.
        n_systems: whose mean it is.
    """

    wavenumbers: Floats
    vdos: Floats
    infrared: Floats | None
    resolution: float
    highest: float
    spacing: float
    depth: float
    temperature: float
    n_frames: int
    n_systems: int

    def integral(self, values: Floats) -> float:
        """Integral of one of the spectra over all wavenumbers."""
        step = self.wavenumbers[1] - self.wavenumbers[0]
        # by the trapezoidal rule, which is exact for a sum of cosines
        return float(step * (values.sum() - (values[0] + values[-1]) / 2))

    def peaks(self, values: Floats, most: int = 10) -> list[tuple[float, float]]:
        """Wavenumbers [1/cm] and heights of the strongest peaks, the highest first.

        Motion slower than the resolution is left out: drift, rotation and diffusion.

        Args:
            values: one of the spectra.
            most: so many at most.
        """
        from scipy.signal import find_peaks  # slow to import, and `attncalc.md` is for more

        shown = np.where(self.wavenumbers <= self.highest, values, 0.0)
        lowest = int(np.searchsorted(self.wavenumbers, self.resolution))
        largest = shown[lowest:].max(initial=0.0)
        if not largest > 0:
            return []
        least = PROMINENCE * largest
        found, _ = find_peaks(shown[lowest:], height=least, prominence=least)
        step = self.wavenumbers[1] - self.wavenumbers[0]
        peaks = []
        for k in found + lowest:
            left, middle, right = shown[k - 1 : k + 2]
            curvature = left - 2 * middle + right
            shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
            height = middle - 0.25 * (left - right) * shift
            peaks.append((float(self.wavenumbers[k] + shift * step), float(height)))
        return sorted(peaks, key=lambda peak: -peak[1])[:most]


def spectrum_of(
    path: str | Path,
    *,
    resolution: float = 10.0,
    highest: float | None = None,
    system: int | None = None,
    progress: Callable[[int, int], None] = lambda *numbers: None,
) -> Spectrum:
    """Vibrational density of states of a trajectory and, where it has dipoles, infrared spectrum.

    Frames are read in blocks: memory is that of the correlation depth, for some atoms at a time.

    Args:
        path: H5MD trajectory that attncalc wrote, of one structure or of replicas, whose mean is
            taken.
        resolution: 1/cm: full width at half maximum of a sharp line.
        highest: 1/cm: the fastest motion that is expected. Faster motion would appear at lower
            frequencies. None is 4500 with hydrogen and 2500 without.
        system: which one of a batch, alone.
        progress: called again and again with the number of velocities (of an atom in a frame) that
            are worked on, and of all.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: there is no such system.
        ValueError: it is no such trajectory; its frames are too few, too far apart, or not equally
            far; systems of a batch have different atoms; or nothing moves.
    """
    for name, value in (("resolution", resolution), ("highest", highest)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value:g}")
    with opened(path) as file:
        chosen = _chosen(described(file), system, path)
        steps, times = clock(file, chosen)
        n_frames, spacing = _equally_spaced(steps, times)
        if highest is None:
            has_hydrogen = any(1 in one.numbers for one in chosen)
            highest = FASTEST_WITH_HYDROGEN if has_hydrogen else FASTEST
        _require_dense(highest, spacing, int(steps[1] - steps[0]))
        n_lags = _lags(resolution, highest, spacing, n_frames)
        kelvin = [_mean(file[f"{one.observables}/temperature/value"], n_frames) for one in chosen]
        if not min(kelvin) > 0:
            raise ValueError("nothing moves, so there is no spectrum")
        has_dipoles = all(DIPOLE in dict(one.others) for one in chosen)
        of_velocities, of_dipoles = np.zeros(n_lags), np.zeros(n_lags)
        done, total = 0, n_frames * sum(len(one.masses) for one in chosen)

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        for one, temperature in zip(chosen, kelvin, strict=True):
            weight = 1 / (units.kB * temperature * len(chosen))
            of_velocities += weight * _of_velocities(file, one, n_frames, n_lags, count)
            if has_dipoles:
                of_dipoles += weight * _of_dipole(file, one, n_frames, n_lags, spacing)
    wavenumbers, infrared = _wavenumbers(n_lags, spacing), None
    if has_dipoles:
        taken = np.sinc(LIGHT * wavenumbers * spacing) ** 2  # by the difference of two frames
        infrared = INTENSITY * _transform(of_dipoles, spacing) / taken
    return Spectrum(
        wavenumbers,
        vdos=_transform(of_velocities, spacing),
        infrared=infrared,
        resolution=1 / (LIGHT * n_lags * spacing),
        highest=highest,
        spacing=spacing,
        depth=n_lags * spacing,
        temperature=float(np.mean(kelvin)),
        n_frames=n_frames,
        n_systems=len(chosen),
    )


def _chosen(systems: list[StoredSystem], system: int | None, path: object) -> list[StoredSystem]:
    """One system of a batch, or all, which have the same atoms."""
    if system is not None:
        if not 0 <= system < len(systems):
            raise IndexError(f"{path} holds {len(systems)} systems, not number {system}")
        return [systems[system]]
    for k, one in enumerate(systems):
        if not np.array_equal(one.numbers, systems[0].numbers):
            raise ValueError(f"systems 0 and {k} have different atoms: choose one of the batch")
    return systems


def _equally_spaced(steps: h5py.Dataset, times: h5py.Dataset) -> tuple[int, float]:
    """Number of frames, and fs from one to the next; a last one that is closer does not count."""
    apart = np.diff(steps[:])
    n = len(apart) + 1
    if n > 2 and apart[-1] < apart[0]:  # the last step is always written
        n, apart = n - 1, apart[:-1]
    if n < 3:
        raise ValueError(f"too few frames for a spectrum: {n}")
    if (apart != apart[0]).any():
        k = int((apart != apart[0]).argmax())
        raise ValueError(f"frames {k} and {k + 1} are not as many steps apart as the first two")
    return n, float(times[n - 1] - times[0]) / (n - 1)


def _require_dense(highest: float, spacing: float, every: int) -> None:
    """Refuse frames too far apart: motion beyond half their rate appears where there is none."""
    if (nyquist := 0.5 / (LIGHT * spacing)) >= highest:
        return
    wanted = 0.5 / (LIGHT * highest)
    stride = math.floor(every * wanted / spacing)
    advice = f"write them every {stride} steps" if stride else "take a shorter timestep"
    raise ValueError(
        f"frames are {spacing:g} fs apart and show frequencies up to {nyquist:.0f} 1/cm; for "
        f"{highest:g} 1/cm they must be {wanted:.3g} fs apart or less: {advice}, or, if there is "
        "no faster motion, state a lower highest frequency"
    )


def _lags(resolution: float, highest: float, spacing: float, n_frames: int) -> int:
    """Number of lags of the correlation, half as many as frames at most."""
    if resolution >= highest:
        raise ValueError(
            f"a resolution of {resolution:g} 1/cm shows nothing below {highest:g} 1/cm"
        )
    n_lags = math.ceil(1 / (LIGHT * resolution * spacing))
    if 2 * n_lags > n_frames:
        best = math.ceil(1 / (LIGHT * spacing * (n_frames // 2)))
        instead = f", or take a resolution of {best} 1/cm or more" if best < highest else ""
        raise ValueError(
            f"too few frames: a resolution of {resolution:g} 1/cm needs {2 * n_lags}, "
            f"{2 * n_lags * spacing / 1000:.3g} ps, and there are {n_frames}: continue the run"
            f"{instead}"
        )
    return n_lags


def _of_velocities(
    file: h5py.File,
    one: StoredSystem,
    n_frames: int,
    n_lags: int,
    count: Callable[[int], None],
) -> Floats:
    """C(t) [n_lags] eV of a system."""
    velocities = file[f"{one.particles}/velocity/value"]
    roots = VELOCITY * np.sqrt(one.masses)[:, None]
    at_once = max(1, BLOCK_BYTES // (2 * _block(n_lags) * 24))  # atoms
    total = np.zeros(n_lags)
    for atom in range(0, len(roots), at_once):
        mine = slice(atom, atom + at_once)

        def read(first: int, last: int, mine: slice = mine) -> Floats:
            count(min(last - first, _block(n_lags)) * len(roots[mine]))  # later ones come again
            return (velocities[first:last, mine] * roots[mine]).reshape(last - first, -1)

        total += autocorrelation(read, n_frames, n_lags)
    if not np.isfinite(total).all():
        raise ValueError(f"{one.particles}/velocity holds numbers that are not finite")
    return total


def _of_dipole(
    file: h5py.File, one: StoredSystem, n_frames: int, n_lags: int, spacing: float
) -> Floats:
    """D(t) [n_lags] e² eV / amu of a system."""
    dipoles = file[f"{one.observables}/{DIPOLE}/value"]

    def read(first: int, last: int) -> Floats:
        return VELOCITY / spacing * np.diff(dipoles[first : last + 1], axis=0)

    found = autocorrelation(read, n_frames - 1, n_lags)
    if not np.isfinite(found).all():
        raise ValueError(f"{one.observables}/{DIPOLE} holds numbers that are not finite")
    return found


def autocorrelation(read: Callable[[int, int], Floats], n_frames: int, n_lags: int) -> Floats:
    """Autocorrelation [n_lags] of a series, summed over its columns, averaged over time origins.

    Args:
        read: rows `first` to `last` of the series, [last - first, n_columns].
        n_frames: rows in all, more than `n_lags`.
        n_lags: number of lags, from 0; two blocks of so many rows are held at once.
    """
    block = _block(n_lags)
    length = fft.next_fast_len(block + n_lags - 1, real=True)
    power = np.zeros(length // 2 + 1, dtype=complex)
    for first in range(0, n_frames, block):
        rows = read(first, min(first + block + n_lags - 1, n_frames))
        origins = fft.rfft(rows[:block], length, axis=0)
        power += (origins.conj() * fft.rfft(rows, length, axis=0)).sum(axis=1)
    # zeros behind the rows keep what is cyclic out of these lags
    sums: Floats = fft.irfft(power, length)[:n_lags]
    return sums / (n_frames - np.arange(n_lags))


def _block(n_lags: int) -> int:
    """Time origins that are read at once."""
    return max(n_lags, 256)


def _transform(correlation: Floats, spacing: float) -> Floats:
    """Fourier transform per 1/cm of positive frequency, with Hann's window."""
    n_lags = len(correlation)
    window = np.cos(np.pi * np.arange(n_lags) / (2 * n_lags)) ** 2
    once = fft.rfft(window * correlation, _length(n_lags)).real
    result: Floats = 2 * LIGHT * spacing * (2 * once - correlation[0])  # lags of both signs
    return result


def _wavenumbers(n_lags: int, spacing: float) -> Floats:
    length = _length(n_lags)
    found: Floats = fft.rfftfreq(length, LIGHT * spacing)
    return found


def _length(n_lags: int) -> int:
    """Even, so that the highest frequency is that of the frames."""
    return 2 * int(fft.next_fast_len(POINTS * n_lags // 2 + 1, real=True))


def _mean(values: h5py.Dataset, n_frames: int) -> float:
    return float(np.mean(values[:n_frames]))


def csv_of(spectrum: Spectrum) -> str:
    """Spectra as text: wavenumber and values, one line each, up to the highest wavenumber."""
    columns: dict[str, Sequence[float] | Floats] = {
        "wavenumber_per_cm": spectrum.wavenumbers,
        "vdos_cm": spectrum.vdos,
    }
    if spectrum.infrared is not None:
        columns["infrared_km_cm_per_mol"] = spectrum.infrared
    n = int(np.searchsorted(spectrum.wavenumbers, spectrum.highest, side="right"))
    rows = zip(*(values[:n] for values in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(f"{value:.9g}" for value in row) for row in rows)]
    return "\n".join(lines) + "\n"
