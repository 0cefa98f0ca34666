"""Radial distribution functions of liquid water along a run of `attncalc md`, drawn and tabulated.

    attncalc md water.xyz --model so3lr.safetensors --thermostat bussi --temperature 300 \
        --steps 40000 --every 20 --seed 1 -o nvt.h5md
    python benchmarks/studies/water_rdf.py nvt.h5md --skip 2.5

water.xyz is `water_box((6, 6, 6), seed=1)` of `benchmarks/structures.py`: 216 molecules at
0.998 g/cm³, after some steps of `attncalc relax`. Results: benchmarks/results/water_rdf.json, .md
and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.geometry import get_distances
from ase.io import iread
from matplotlib.figure import Figure
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table
from result_files import write as write_result

from attncalc.plots.style import BLUE, GREY, tidy

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAIRS = (("O", "O"), ("O", "H"))
WIDTH = 0.05  # Å
BLOCKS = 5  # of which standard errors are made
# X-ray diffraction, 295 K: first maximum of g_OO
MEASURED = (2.80, 2.57)
SOURCE = "Skinner et al., J. Chem. Phys. 138, 074506 (2013)"


def rdf(frames: list[Atoms], first: str, second: str) -> tuple[NDArray, NDArray]:
    """Distances [n] Å and g [blocks, n] up to half of the box, without pairs of one molecule."""
    half = frames[0].cell.lengths().min() / 2
    edges = np.arange(0, half, WIDTH)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    symbols = np.array(frames[0].get_chemical_symbols())
    a, b = np.flatnonzero(symbols == first), np.flatnonzero(symbols == second)
    counted = np.zeros((BLOCKS, len(edges) - 1))
    n_frames = np.zeros(BLOCKS)
    for k, atoms in enumerate(frames):
        block = k * BLOCKS // len(frames)
        lengths = get_distances(
            atoms.positions[a], atoms.positions[b], cell=atoms.cell, pbc=True
        )[1]
        lengths[a[:, None] // 3 == b[None] // 3] = np.inf  # molecules are three atoms in order
        counted[block] += np.histogram(lengths, edges)[0]
        n_frames[block] += 1
    density = len(b) / frames[0].get_volume()
    g = counted / n_frames[:, None] / len(a) / shells / density
    return (edges[1:] + edges[:-1]) / 2, g


def extrema(r: NDArray, g: NDArray) -> dict[str, tuple[float, float]]:
    """First maximum, first minimum behind it, second maximum: place in Å, and height."""
    top = int(g[r < 3.2].argmax())
    low = top + int(g[top : np.searchsorted(r, 4.0)].argmin())
    second = low + int(g[low : np.searchsorted(r, 5.5)].argmax())
    names = ("first maximum", "first minimum", "second maximum")
    return {n: (float(r[k]), float(g[k])) for n, k in zip(names, (top, low, second), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help=".h5md of attncalc md")
    parser.add_argument("--skip", type=float, default=2.5, help="ps that are left out")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--every", type=int, default=20, help="steps between frames")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    per_ps = 1e3 / (arguments.timestep * arguments.every)
    frames = list(iread(arguments.run, index=f"{round(arguments.skip * per_ps)}:"))
    kelvin = [atoms.get_temperature() for atoms in frames]
    mass = frames[0].get_masses().sum() / units.kg * 1e3
    density = mass / (frames[0].get_volume() * 1e-24)
    content: dict = {"frames": len(frames), "ps": len(frames) / per_ps, "density": density}
    content["temperature"] = float(np.mean(kelvin))
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for (first, second), colour in zip(PAIRS, (BLUE, GREY), strict=True):
        r, g = rdf(frames, first, second)
        mean, error = g.mean(0), g.std(0, ddof=1) / np.sqrt(BLOCKS)
        axes.plot(r, mean, color=colour, label=f"{first}-{second}")
        axes.fill_between(r, mean - error, mean + error, color=colour, alpha=0.3)
        content[f"{first}{second}"] = {"r": r.tolist(), "g": mean.tolist(), "error": error.tolist()}
        if first == second:
            for name, (place, height) in extrema(r, mean).items():
                of_blocks = error[int(np.argmin(abs(r - place)))]
                lines.append([name, f"{place:.2f}", f"{height:.2f} ± {of_blocks:.2f}"])
    lines.append(["first maximum, X-ray diffraction", f"{MEASURED[0]:.2f}", f"{MEASURED[1]:.2f}"])
    axes.plot(*MEASURED, "k+", markersize=10, label="O-O, X-ray diffraction, first maximum")
    axes.set_xlim(1.5, None)
    axes.set_ylim(0, None)
    axes.set_xlabel("distance, Å")
    axes.set_ylabel("g")
    axes.legend(frameon=False)
    tidy(axes)
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output / "water_rdf.png", dpi=150)
    notes = [
        f"# Liquid water, {len(frames[0]) // 3} molecules, {density:.3f} g/cm³",
        "",
        f"{content['ps']:.1f} ps behind the first {arguments.skip:g} ps, mean temperature "
        f"{content['temperature']:.0f} K; errors are those of {BLOCKS} blocks. {machine_name()}.",
        "",
        f"X-ray diffraction at 295 K: {SOURCE}.",
        "",
        "![Radial distribution functions](water_rdf.png)",
        "",
    ]
    text = "\n".join([*notes, *table(["g(O-O)", "distance, Å", "height"], lines), ""])
    write_result(arguments.output / "water_rdf.json", json.dumps(content, indent=1) + "\n")
    write_result(arguments.output / "water_rdf.md", text)
    print(text)


if __name__ == "__main__":
    main()
