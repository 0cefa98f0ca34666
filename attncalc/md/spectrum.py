"""Vibrational spectra from trajectories: density of states and, from dipoles, infrared absorption.

By the Wiener-Khinchin theorem a power spectrum is the Fourier transform of an autocorrelation, here

    C(t) = sum_i m_i <v_i(0) . v_i(t)>        velocities, weighted by masses
    D(t) = <dM/dt(0) . dM/dt(t)>              time derivative of the dipole moment M

averaged over all time origins, for lags shorter than the correlation depth L, times Hann's window
cos²(pi t / 2L). A sharp line has the full width at half maximum 1 / L, which is the resolution. The
window's transform has side lobes of -2.7 %, so that values beside a strong line may be negative.

* The density of states is that of classical motion, the transform of C / (kB T): its integral is
  the number of degrees of freedom of the run.
* Infrared absorption needs a quantum correction of classical motion. With the harmonic one
  (Ramírez, López-Ciudad, Kumar & Marx, J. Chem. Phys. 121, 3973, 2004) it is proportional to
  D / (kB T), that is to omega² times the transform of <M(0) . M(t)>. Its integral over a line is
  the intensity N_A (dM / dQ)² / 12 epsilon_0 c² of the harmonic approximation.
* dM/dt is the difference of neighbouring frames. This damps high frequencies by (sin(x) / x)² with
  x = omega dt / 2, which is corrected.
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
from attncalc.options import positive

Floats = NDArray[np.float64]

# cm / fs
LIGHT = constants.c * 1e2 * 1e-15
# km/mol of (e Å)² / (amu Å²)
INTENSITY = (
    constants.N_A * constants.e**2 / (12 * constants.epsilon_0 * constants.c**2) / constants.u
) * 1e-3
# 1/cm: bonds with hydrogen, and bonds without, are slower
FASTEST_WITH_HYDROGEN, FASTEST = 4500.0, 2500.0
# of frames in memory at once
BLOCK_BYTES = 1 << 26
# points of the frequency axis within the width of a sharp line
POINTS = 8
# least height and prominence of a peak, as a fraction of the highest: a side lobe of the window has
# 0.8 %
PROMINENCE = 0.02


@dataclass(frozen=True)
class Spectrum:
    """Spectra of a trajectory; for a batch, their mean.

    Attributes:
        wavenumbers: [n] 1/cm, from 0 to the highest that the frames resolve.
        vdos: [n] degrees of freedom per 1/cm.
        infrared: [n] km/mol per 1/cm; None if the trajectory has no dipoles.
        resolution: 1/cm, full width at half maximum of a sharp line.
        highest: 1/cm, largest wavenumber at which motion is expected.
        spacing: fs between frames.
        depth: fs, of the correlation.
        temperature: K, mean over frames and systems.
        n_frames: number of frames of each system.
        n_systems: number of systems in the mean.
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
        """Return the integral of one of the spectra over all wavenumbers."""
        step = self.wavenumbers[1] - self.wavenumbers[0]
        # by the trapezoidal rule, which is exact for a sum of cosines
        return float(step * (values.sum() - (values[0] + values[-1]) / 2))

    def peaks(self, values: Floats, most: int = 10) -> list[tuple[float, float]]:
        """Return wavenumbers [1/cm] and heights of the strongest peaks, the highest first.

        Motion slower than the resolution is left out: drift, rotation and diffusion.

        Args:
            values: one of the spectra.
            most: largest number of peaks.
        """
        from scipy.signal import find_peaks  # slow to import, and rarely needed

        lowest = int(np.searchsorted(self.wavenumbers, self.resolution))
        end = int(np.searchsorted(self.wavenumbers, self.highest, side="right"))
        largest = values[lowest:end].max(initial=0.0)
        if not largest > 0:
            return []
        least = PROMINENCE * largest
        # in all values: a slope that goes on beyond the highest wavenumber is no peak
        found, _ = find_peaks(values[lowest:], height=least, prominence=least)
        step = self.wavenumbers[1] - self.wavenumbers[0]
        peaks = []
        for k in found[found + lowest < end] + lowest:
            left, middle, right = values[k - 1 : k + 2]
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
    """Return the vibrational density of states of a trajectory, and its infrared spectrum.

    The infrared spectrum needs dipoles in the trajectory. Frames are read in blocks of the
    correlation depth, for some atoms at a time, which bounds the memory.

    Args:
        path: H5MD trajectory that attncalc wrote, of one structure or of replicas, over which the
            mean is taken.
        resolution: 1/cm, full width at half maximum of a sharp line.
        highest: 1/cm, of the fastest motion that is expected. Faster motion would appear at lower
            frequencies. None: 4500 with hydrogen and 2500 without.
        system: number of a single system of a batch; None: all.
        progress: called repeatedly with the number of velocities (of an atom in a frame) processed
            so far, and of all.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: there is no such system.
        ValueError: it is not such a trajectory; its frames are too few, too far apart, or not
            equally spaced; systems of a batch have different elements, masses or charges; or
            nothing moves.
    """
    for name, value in (("resolution", resolution), ("highest", highest)):
        if value is not None:
            positive(name, value)
    with opened(path) as file:
        chosen = _chosen(described(file), system, path)
        steps, times = clock(file, chosen)
        frames, spacing = _equally_spaced(steps, times)
        if highest is None:
            has_hydrogen = any(1 in one.numbers for one in chosen)
            highest = FASTEST_WITH_HYDROGEN if has_hydrogen else FASTEST
        _require_dense(highest, spacing, int(steps[frames[1]] - steps[frames[0]]))
        n_lags = _lags(resolution, highest, spacing, len(frames))
        kelvin = [_mean(file[f"{one.observables}/temperature/value"], frames) for one in chosen]
        if not min(kelvin) > 0:
            raise ValueError("nothing moves, so there is no spectrum")
        has_dipoles = all(DIPOLE in dict(one.others) for one in chosen)
        of_velocities, of_dipoles = np.zeros(n_lags), np.zeros(n_lags)
        done, total = 0, len(frames) * sum(len(one.masses) for one in chosen)

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done, total)

        for one, temperature in zip(chosen, kelvin, strict=True):
            weight = 1 / (units.kB * temperature * len(chosen))
            of_velocities += weight * _of_velocities(file, one, frames, n_lags, count)
            if has_dipoles:
                of_dipoles += weight * _of_dipole(file, one, frames, n_lags, spacing)
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
        n_frames=len(frames),
        n_systems=len(chosen),
    )


def _chosen(systems: list[StoredSystem], system: int | None, path: object) -> list[StoredSystem]:
    """Return one system of a batch, or all, which must be alike in all that frames share."""
    if system is not None:
        if not 0 <= system < len(systems):
            raise IndexError(f"{path} holds {len(systems)} systems, not number {system}")
        return [systems[system]]
    for k, one in enumerate(systems):
        if what := systems[0].difference(one):
            raise ValueError(f"systems 0 and {k} have different {what}: choose one of the batch")
    return systems


def _equally_spaced(steps: h5py.Dataset, times: h5py.Dataset) -> tuple[range, float]:
    """Return the frames and their spacing [fs].

    The first and the last one are left out if they are closer to the next: they are always written,
    whatever the interval.
    """
    apart = np.diff(steps[:])
    first, end = 0, len(apart) + 1
    if end > 2 and apart[0] < apart[1]:
        first = 1
    if end - first > 2 and apart[-1] < apart[first]:
        end -= 1
    if end - first < 3:
        raise ValueError(f"too few frames for a spectrum: {end - first}")
    others = apart[first : end - 1] != apart[first]
    if others.any():
        k = first + int(others.argmax())
        raise ValueError(
            f"frames {k} and {k + 1} are not as many steps apart as {first} and {first + 1}"
        )
    return range(first, end), float(times[end - 1] - times[first]) / (end - 1 - first)


def _require_dense(highest: float, spacing: float, every: int) -> None:
    """Refuse frames too far apart: motion beyond half their rate appears at lower frequencies."""
    if (nyquist := 0.5 / (LIGHT * spacing)) >= highest:
        return
    wanted = 0.5 / (LIGHT * highest)
    stride = math.floor(every * wanted / spacing)
    advice = f"write them every {stride} steps" if stride else "take a shorter timestep"
    raise ValueError(
        f"frames are {spacing:g} fs apart and show frequencies up to {nyquist:.0f} 1/cm; for "
        f"{highest:g} 1/cm they must be {wanted:.3g} fs apart or less: {advice}, or, if there is "
        "no faster motion, state a lower highest frequency (--highest)"
    )


def _lags(resolution: float, highest: float, spacing: float, n_frames: int) -> int:
    """Return the number of lags of the correlation, at most half of the number of frames."""
    if resolution >= highest:
        raise ValueError(
            f"a resolution of {resolution:g} 1/cm shows nothing below {highest:g} 1/cm"
        )
    n_lags = math.ceil(1 / (LIGHT * resolution * spacing))
    if 2 * n_lags > n_frames:
        best = math.ceil(1 / (LIGHT * spacing * (n_frames // 2)))
        instead = (
            f", or take a resolution (--resolution) of {best} 1/cm or more"
            if best < highest
            else ""
        )
        raise ValueError(
            f"too few frames: a resolution of {resolution:g} 1/cm needs {2 * n_lags}, "
            f"{2 * n_lags * spacing / 1000:.3g} ps, and there are {n_frames}: continue the run"
            f"{instead}"
        )
    return n_lags


def _of_velocities(
    file: h5py.File,
    one: StoredSystem,
    frames: range,
    n_lags: int,
    count: Callable[[int], None],
) -> Floats:
    """Return C(t) [n_lags] eV of a system."""
    velocities = file[f"{one.particles}/velocity/value"]
    roots = VELOCITY * np.sqrt(one.masses)[:, None]
    at_once = max(1, BLOCK_BYTES // (2 * _block(n_lags) * 24))  # atoms
    total = np.zeros(n_lags)
    for atom in range(0, len(roots), at_once):
        mine = slice(atom, atom + at_once)

        def read(first: int, last: int, mine: slice = mine) -> Floats:
            count(min(last - first, _block(n_lags)) * len(roots[mine]))  # others are read again
            rows = slice(frames.start + first, frames.start + last)
            return (velocities[rows, mine] * roots[mine]).reshape(last - first, -1)

        total += autocorrelation(read, len(frames), n_lags)
    if not np.isfinite(total).all():
        raise ValueError(f"{one.particles}/velocity holds numbers that are not finite")
    return total


def _of_dipole(
    file: h5py.File, one: StoredSystem, frames: range, n_lags: int, spacing: float
) -> Floats:
    """Return D(t) [n_lags] e² eV / amu of a system, of its dipole about the centre of mass.

    The dipole of an ion about any other origin changes as the ion drifts, which is no vibration.
    """
    dipoles = file[f"{one.observables}/{DIPOLE}/value"]

    def read(first: int, last: int) -> Floats:
        rows = range(frames.start + first, frames.start + last + 1)
        moments = dipoles[rows.start : rows.stop]
        if one.charge:
            moments = moments - one.charge * _centres_of_mass(file, one, rows)
        return VELOCITY / spacing * np.diff(moments, axis=0)

    found = autocorrelation(read, len(frames) - 1, n_lags)
    if not np.isfinite(found).all():
        raise ValueError(f"{one.observables}/{DIPOLE} holds numbers that are not finite")
    return found


def _centres_of_mass(file: h5py.File, one: StoredSystem, rows: range) -> Floats:
    """Return the centres of mass [n, 3] Å of a system in some rows of the file."""
    positions, weights = file[f"{one.particles}/position/value"], one.masses / one.masses.sum()
    at_once = max(1, BLOCK_BYTES // (24 * len(weights)))  # frames
    return np.concatenate(
        [
            weights @ positions[first : min(first + at_once, rows.stop)]
            for first in range(rows.start, rows.stop, at_once)
        ]
    )


def autocorrelation(read: Callable[[int, int], Floats], n_frames: int, n_lags: int) -> Floats:
    """Return the autocorrelation [n_lags] of a series, summed over columns, mean of time origins.

    Args:
        read: returns rows `first` to `last` of the series, [last - first, n_columns].
        n_frames: number of all rows, more than `n_lags`.
        n_lags: number of lags, from 0; two blocks of so many rows are in memory at once.
    """
    block = _block(n_lags)
    length = fft.next_fast_len(block + n_lags - 1, real=True)
    power = np.zeros(length // 2 + 1, dtype=complex)
    for first in range(0, n_frames, block):
        rows = read(first, min(first + block + n_lags - 1, n_frames))
        origins = fft.rfft(rows[:block], length, axis=0)
        power += (origins.conj() * fft.rfft(rows, length, axis=0)).sum(axis=1)
    # zero padding keeps these lags free of cyclic terms
    sums: Floats = fft.irfft(power, length)[:n_lags]
    return sums / (n_frames - np.arange(n_lags))


def _block(n_lags: int) -> int:
    """Return the number of time origins that are read at once."""
    return max(n_lags, 256)


def _transform(correlation: Floats, spacing: float) -> Floats:
    """Return the Fourier transform per 1/cm of positive frequency, with Hann's window."""
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
    """Return an even length, so that the highest frequency is the Nyquist frequency of frames."""
    return 2 * int(fft.next_fast_len(POINTS * n_lags // 2 + 1, real=True))


def _mean(values: h5py.Dataset, frames: range) -> float:
    return float(np.mean(values[frames.start : frames.stop]))


def csv_of(spectrum: Spectrum) -> str:
    """Return spectra as text: lines of wavenumber and values, up to the highest wavenumber."""
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
