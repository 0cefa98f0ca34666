"""1 ns at 500 K: stability of a molecule, its temperature, and its geometries beside its data.

    python benchmarks/nvt.py ../shared/data                # all models; goes on if stopped
    python benchmarks/nvt.py ../shared/data --ps 5 --models so3krates-ethanol --output /tmp

Langevin dynamics by attncalc's own loop with a shipped model starts from a frame of the data, and a
frame is stored every 4 fs. The script evaluates

* the bonds of the first frame: whether each stays within a band about its mean length in the data;
* the mean temperature, with its standard error;
* histograms of bond lengths and angles, beside those of the frames of rmd17_MOLECULE.npz;
* the velocity density of states.

Writes nvt.json, nvt.md and nvt-MODEL.png into benchmarks/results.

The vibrations of MD17 are hotter than its nominal 500 K, by 3N/(3N - 6), as if the thermostat had
counted drift and rotation of the molecule, which did not move. Therefore our frames are weighted by
exp(-(1/kT' - 1/kT) E), which is exact. T' is the temperature at which their mean energy is that of
the data.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms, units
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_files import machine_name, table, write
from scipy.optimize import brentq
from scipy.signal import welch

from attncalc import System, load, md
from attncalc.data import Dataset, read
from attncalc.evaluator import Evaluator
from attncalc.md.integrator import Integrator
from attncalc.names import pair_name
from attncalc.plots.structures import bonds
from attncalc.plots.style import ORANGE, SERIES, legend_above, running_mean, tidy

HERE = Path(__file__).resolve().parent
MODELS = {  # model -> molecule
    "so3krates-ethanol": "ethanol",
    "so3krates-ethanol-distilled": "ethanol",
    "equiformer-ethanol-distilled": "ethanol",
    "so3krates-aspirin": "aspirin",
    "so3krates-aspirin-distilled": "aspirin",
    "equiformer-aspirin-distilled": "aspirin",
}
TEMPERATURE = 500.0  # K, of MD17's trajectories
TIMESTEP, FRICTION = 0.5, 0.001  # fs; 1/fs, weak so that spectral lines stay narrow
EVERY = 8  # steps between frames: 4 fs, which resolves up to 4,170 cm⁻¹
LEFT_OUT = 0.01  # fraction of the run for equilibration
BAND = (0.75, 1.30)  # a bond is broken outside these multiples of its mean length in the data
SEGMENT_PS = 8.0  # segments of the spectrum: a resolution of 4 cm⁻¹
SPEED_OF_LIGHT = 2.99792458e-5  # cm/fs


@dataclass(frozen=True)
class Trajectory:
    """Frames of a run.

    Attributes:
        positions: [n, n_atoms, 3] Å.
        velocities: [n, n_atoms, 3] Å/fs.
        temperatures: [n] K.
        energies: [n] eV, potential.
        interval: time between frames, fs.
    """

    positions: np.ndarray
    velocities: np.ndarray
    temperatures: np.ndarray
    energies: np.ndarray
    interval: float


class Told(md.Callback):
    """Callback of a run that prints, once a minute, what is done and the time left."""

    every = 1000

    def __init__(self, model: str, n_steps: int) -> None:
        self._model, self._n_steps = model, n_steps
        self._first, self._began, self._said = 0, 0.0, 0.0

    def begin(self, state: md.MDState, integrator: Integrator) -> None:
        self._first, self._began = state.step, time.monotonic()

    def __call__(self, state: md.MDState) -> None:
        now = time.monotonic()
        if state.step == self._first or now - self._said < 60:
            return
        self._said = now
        per_step = (now - self._began) / (state.step - self._first)
        done, total = (TIMESTEP * n / 1000 for n in (state.step, self._n_steps))
        left = per_step * (self._n_steps - state.step) / 60
        print(
            f"{self._model}: {done:.1f} of {total:g} ps, {TIMESTEP * 0.06 / per_step:.2f} ps a "
            f"minute, {left:.0f} minutes left",
            flush=True,
        )


def run_until(first: Atoms, model: str, folder: Path, n_steps: int) -> None:
    """Start a run from a structure, or continue it, up to `n_steps` steps in total."""
    folder.mkdir(parents=True, exist_ok=True)
    trajectory, saved = folder / "run.h5md", folder / "run.ckpt"
    writer = md.H5MDWriter(trajectory, every=EVERY)
    files = [writer, md.Checkpoint(saved, every=1000 * EVERY, seconds=20, info={"model": model})]
    force = Evaluator(load(model))
    if saved.exists():
        langevin, state, info = md.load_checkpoint(saved)
        if info["model"] != model:
            raise SystemExit(f"{folder} holds a run of {info['model']}: remove it to start again")
    else:
        trajectory.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        langevin = md.Langevin(TIMESTEP * units.fs, TEMPERATURE, FRICTION / units.fs)
        state = langevin.init(force, System.from_ase(first), seed=0)
    if (left := n_steps - state.step) > 0:
        md.run(langevin, force, state, left, callbacks=[*files, Told(model, n_steps)])


def read_run(folder: Path) -> Trajectory:
    """Read all frames except those of the equilibration."""
    with h5py.File(folder / "run.h5md") as file:
        atoms = file["particles/atoms"]
        times = atoms["position/time"][:]
        # the last frame may be off the interval: it is also written at the end of a run
        n_frames = len(times) - int(atoms["position/step"][-1] % EVERY != 0)
        kept = slice(int(LEFT_OUT * n_frames), n_frames)
        return Trajectory(
            positions=atoms["position/value"][kept],
            velocities=atoms["velocity/value"][kept],
            temperatures=file["observables/temperature/value"][kept],
            energies=file["observables/potential_energy/value"][kept],
            interval=float(times[1] - times[0]),
        )


def angles(pairs: np.ndarray) -> np.ndarray:
    """Return end, middle and end atom of every two bonds that share an atom, [n_angles, 3]."""
    partners: dict[int, list[int]] = {}
    for i, j in pairs.tolist():
        partners.setdefault(i, []).append(j)
        partners.setdefault(j, []).append(i)
    found = [(i, j, k) for j, ends in partners.items() for i, k in combinations(sorted(ends), 2)]
    return np.array(found, dtype=int).reshape(-1, 3)


def lengths_of(positions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return bond lengths [n, n_bonds] Å."""
    return np.linalg.norm(positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]], axis=2)


def degrees_of(positions: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """Return bond angles [n, n_angles] in degrees."""
    a, b = (positions[:, triples[:, end]] - positions[:, triples[:, 1]] for end in (0, 2))
    sizes = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    return np.degrees(np.arccos(np.clip((a * b).sum(2) / sizes, -1, 1)))


@dataclass(frozen=True)
class Sample:
    """Values with their weights, [n] each."""

    values: np.ndarray
    weights: np.ndarray

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))

    @property
    def std(self) -> float:
        return float(np.sqrt(np.average((self.values - self.mean) ** 2, weights=self.weights)))

    def shares(self, n_bins: int, ends: tuple[float, float]) -> np.ndarray:
        """Return the histogram [n_bins], normalised to a sum of one."""
        counts = np.histogram(self.values, n_bins, ends, weights=self.weights)[0]
        return counts / self.weights.sum()


def by_kind(values: np.ndarray, weights: np.ndarray, names: list[str]) -> dict[str, Sample]:
    """Join columns of `values` [n, k] with the same name; `weights` [n] are those of the frames."""
    places = {name: [k for k, other in enumerate(names) if other == name] for name in sorted(names)}
    return {
        name: Sample(values[:, columns].ravel(), np.repeat(weights, len(columns)))
        for name, columns in places.items()
    }


def weights_at(energies: np.ndarray, kelvin: float) -> np.ndarray:
    """Return weights [n], of mean one, that turn frames at 500 K into a sample at `kelvin`."""
    change = 1 / (units.kB * kelvin) - 1 / (units.kB * TEMPERATURE)
    exponents = -change * energies
    weights = np.exp(exponents - exponents.max())
    return weights / weights.mean()


def temperature_of(mean_energy: float, energies: np.ndarray) -> float:
    """Return the temperature, K, at which a run at 500 K would have this mean energy.

    Args:
        mean_energy: potential energy, eV.
        energies: [n], potential energies of the run at 500 K, eV.

    Raises:
        ValueError: the energies of the run do not reach this mean energy.
    """

    def too_much(kelvin: float) -> float:
        return Sample(energies, weights_at(energies, kelvin)).mean - mean_energy

    try:
        return float(brentq(too_much, 300.0, 1200.0))
    except ValueError:
        raise ValueError(
            "the run is too short, or too cold, to be compared with the data"
        ) from None


def error_of_temperature(n_atoms: int, ps: float) -> float:
    """Return the standard error [K] of the mean temperature of a Langevin run.

    The thermostat takes 2γ(K - 3NkT/2) of heat per unit of time, plus noise with the variance
    4γkTK. As the energy is bounded, the two cancel in a long run of length t, so that the mean
    temperature has the variance 2T²/(3Nγt) whatever the forces are.
    """
    return TEMPERATURE * float(np.sqrt(2 / (3 * n_atoms * 1e3 * FRICTION * ps)))


def overlap(ours: Sample, data: Sample, n_bins: int = 40) -> float:
    """Return the common area of two normalised histograms: 1 if they are equal."""
    both = np.concatenate([ours.values, data.values])
    ends = (float(both.min()), float(both.max()))
    return float(np.minimum(ours.shares(n_bins, ends), data.shares(n_bins, ends)).sum())


def density_of_states(run: Trajectory, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectrum of mass-weighted velocities.

    The drift of the whole molecule is subtracted, its rotation is not.

    Returns:
        Wavenumbers [cm⁻¹], and density [cm] of area one.
    """
    weights = masses[None, :, None]
    drift = (weights * run.velocities).sum(1, keepdims=True) / masses.sum()
    weighted = np.sqrt(weights) * (run.velocities - drift)
    n = min(round(1e3 * SEGMENT_PS / run.interval), len(weighted))
    frequency, power = welch(
        weighted.reshape(len(weighted), -1), 1 / run.interval, nperseg=n, axis=0
    )
    wavenumber, total = frequency / SPEED_OF_LIGHT, power.sum(axis=1)
    return wavenumber, total / np.trapezoid(total, wavenumber)


def expected_shift(wavenumber: np.ndarray, density: np.ndarray) -> float:
    """Return the shift, K, of the kinetic temperature of harmonic modes in BAOAB by the time step.

    A mode of frequency ω has 1 - (ω h)²/4 of the temperature (Leimkuhler & Matthews, J. Chem. Phys.
    138, 174102, 2013); positions are sampled without such an error.
    """
    omega = 2 * np.pi * SPEED_OF_LIGHT * wavenumber
    return -TEMPERATURE * float(np.trapezoid((omega * TIMESTEP) ** 2 / 4 * density, wavenumber))


def examined(run: Trajectory, first: Atoms, data: Dataset) -> tuple[dict, Figure]:
    """Return numbers and figure of a run, compared with the frames of the data."""
    pairs = bonds(first)
    triples = angles(pairs)
    reference = np.stack([atoms.positions for atoms in data.structures])
    symbols, numbers, n = first.get_chemical_symbols(), first.numbers, len(first)
    kinds = {
        "bond": [pair_name(numbers[i], numbers[j]) for i, j in pairs],
        "angle": ["-".join(min(t, t[::-1])) for t in ([symbols[k] for k in x] for x in triples)],
    }
    measured = {
        "bond": (lengths_of(run.positions, pairs), lengths_of(reference, pairs)),
        "angle": (degrees_of(run.positions, triples), degrees_of(reference, triples)),
    }
    stretch = measured["bond"][0] / measured["bond"][1].mean(axis=0)
    broken = (stretch < BAND[0]) | (stretch > BAND[1])
    ps = len(run.positions) * run.interval / 1e3
    mean, error = float(run.temperatures.mean()), error_of_temperature(n, ps)
    spectrum = density_of_states(run, first.get_masses())
    hotter = temperature_of(data.energies.mean(), run.energies)
    weights = weights_at(run.energies, hotter)
    row = {
        "frames": len(run.positions),
        "ps": ps,
        "bonds": len(pairs),
        "broken_frames": int(broken.any(axis=1).sum()),
        "shortest": float(stretch.min()),
        "longest": float(stretch.max()),
        "temperature": mean,
        "standard_error": error,
        "expected_shift": expected_shift(*spectrum),
        "data_temperature": hotter,
        "with_3N": TEMPERATURE * 3 * n / (3 * n - 6),
        "effective_share": float(1 / (weights**2).mean()),
        "shapes": [],
    }
    figure = Figure(figsize=(11.5, 7.6), dpi=110, layout="constrained")
    axes = figure.subplot_mosaic([["bond", "angle"], ["heat", "spectrum"]])
    for what, (ours, theirs) in measured.items():
        cold = by_kind(ours, np.ones(len(ours)), kinds[what])
        warm = by_kind(ours, weights, kinds[what])
        seen = by_kind(theirs, np.ones(len(theirs)), kinds[what])
        for name, sample in seen.items():
            told = {"at_500": cold[name], "at_data": warm[name], "data": sample}
            row["shapes"].append(
                {"what": what, "name": name, "overlap": overlap(warm[name], sample)}
                | {f"{key}_mean": one.mean for key, one in told.items()}
                | {f"{key}_std": one.std for key, one in told.items()}
            )
        _histograms(axes[what], warm, seen)
    axes["bond"].set_xlabel(f"bond length at {hotter:.0f} K, Å (lines: the data)")
    axes["angle"].set_xlabel(f"angle at {hotter:.0f} K, degrees (lines: the data)")
    time = (1 + np.arange(len(run.temperatures))) * run.interval / 1e3
    width = max(1, len(time) // 50)
    axes["heat"].plot(time, running_mean(run.temperatures, width), color=ORANGE, linewidth=1.2)
    label = f"{TEMPERATURE:g} K; mean {mean:.1f} ± {error:.1f} K"
    axes["heat"].axhline(TEMPERATURE, color="black", linewidth=1, linestyle="--", label=label)
    axes["heat"].set(xlabel="time, ps", ylabel="temperature, running mean, K")
    axes["spectrum"].plot(*spectrum, color=SERIES[0], linewidth=0.8)
    axes["spectrum"].set(xlabel="wavenumber, cm⁻¹", ylabel="velocity density of states, cm")
    axes["spectrum"].set(xlim=(0, 4000), ylim=(0, None))
    for one in axes.values():
        tidy(one)
        legend_above(one, columns=4)
    return row, figure


def _histograms(axes: Axes, ours: dict[str, Sample], data: dict[str, Sample]) -> None:
    for color, (name, seen) in zip(SERIES * 3, data.items(), strict=False):
        values = seen.values
        bins = np.histogram_bin_edges(values, int(np.clip(np.sqrt(len(values)), 20, 60)))
        axes.hist(
            ours[name].values,
            bins,
            weights=ours[name].weights,
            density=True,
            color=color,
            alpha=0.4,
            label=name,
        )
        axes.hist(values, bins, density=True, color=color, histtype="step", linewidth=1.1)
    axes.set_ylabel("density")


def markdown(rows: dict[str, dict]) -> str:
    """Return the tables in Markdown."""
    notes = (
        f"Langevin dynamics at {TEMPERATURE:g} K (BAOAB, {TIMESTEP} fs, friction "
        f"{1e3 * FRICTION:g} 1/ps), float32, a frame every {TIMESTEP * EVERY:g} fs; the first "
        f"{100 * LEFT_OUT:g} % are left out. A bond counts as broken where it is not between "
        f"{BAND[0]} and {BAND[1]} times its mean length in the data. The "
        "standard error of the mean temperature is T√(2/(3Nγt)) for N atoms, friction γ and "
        f"length t; beside it what a timestep of {TIMESTEP} fs is expected to take from the mean, "
        "from (ωh)²/4 over the density of states."
    )
    lines = ["# Nanoseconds at 500 K", "", notes, ""]
    head = ["model", "ps", "frames", "bonds", "frames with a broken bond", "shortest, longest"]
    head += ["mean temperature, K", "standard errors off 500 K (4 at most)", "expected shift, K"]
    head += ["machine"]
    cells = []
    for model, row in rows.items():
        off = (row["temperature"] - TEMPERATURE) / row["standard_error"]
        cells.append(
            [
                *(model, f"{row['ps']:.0f}", f"{row['frames']:,}", str(row["bonds"])),
                *(str(row["broken_frames"]), f"{row['shortest']:.3f}, {row['longest']:.3f}"),
                f"{row['temperature']:.1f} ± {row['standard_error']:.1f}",
                *(f"{off:+.1f}", f"{row['expected_shift']:.1f}", row["machine"]),
            ]
        )
    lines += [*table(head, cells), "", SHAPES]
    for model, row in rows.items():
        lines += [
            *("", f"## {model}", "", f"![{model}](nvt-{model}.png)", ""),
            f"The data's energies are those of {row['data_temperature']:.0f} K (500 K times "
            f"3N/(3N - 6): {row['with_3N']:.0f} K); weighted frames are worth "
            f"{100 * row['effective_share']:.0f} % of ours.",
            "",
        ]
        cells = [
            [
                shape["name"],
                *(f"{shape[key]:.{3 if shape['what'] == 'bond' else 1}f}" for key in KEYS),
                f"{100 * shape['overlap']:.1f} %",
            ]
            for shape in row["shapes"]
        ]
        lines += table(SHAPE_HEAD, cells)
    return "\n".join([*lines, ""])


SHAPES = (
    "Bond lengths (Å) and angles (degrees) beside the 5,902 frames of rmd17_MOLECULE.npz, whose "
    "energies are those of a higher temperature than 500 K: as if the thermostat of MD17 had "
    "counted drift and rotation of the molecule, which did not move. For the comparison our frames "
    "are weighted to that temperature, by exp(-(1/kT' - 1/kT) E). Frames of the data are not "
    "consecutive, so there is no reference for the density of states."
)
KEYS = ("at_500_mean", "at_data_mean", "data_mean", "at_500_std", "at_data_std", "data_std")
SHAPE_HEAD = ["bond or angle", "mean at 500 K", "weighted", "in the data"]
SHAPE_HEAD += ["standard deviation at 500 K", "weighted", "in the data", "overlap with the data"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of rmd17_MOLECULE.npz")
    parser.add_argument("--ps", type=float, default=1000.0, help="length of the runs")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "nvt", help="folder")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="of the tables")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)  # before days of dynamics, not after them
    results = options.output / "nvt.json"
    rows = json.loads(results.read_text())["rows"] if results.exists() else {}
    for model in options.models:
        dataset = read(options.data / f"rmd17_{MODELS[model]}.npz", labels="md17")
        first = dataset.structures[dataset.splits["test_01"][0]]
        folder = options.runs / model
        run_until(first, model, folder, round(1e3 * options.ps / TIMESTEP))
        row, figure = examined(read_run(folder), first, dataset)
        rows[model] = {"machine": machine_name()} | row
        rows = {name: rows[name] for name in MODELS if name in rows}
        figure.savefig(options.output / f"nvt-{model}.png")
        write(results, json.dumps({"rows": rows}, indent=1) + "\n")
        write(options.output / "nvt.md", markdown(rows))


if __name__ == "__main__":
    main()
