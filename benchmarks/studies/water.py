"""Liquid water: radial distribution functions and density of runs of `attncalc md`.

    python benchmarks/studies/water.py --start water.extxyz
    attncalc relax water.extxyz --model so3lr.safetensors --steps 30 -o start.extxyz
    attncalc md start.extxyz --model so3lr.safetensors --thermostat bussi --timestep 1 \
        --steps 52500 --every 20 --seed 1 -o nvt.h5md
    attncalc md nvt.h5md --model so3lr.safetensors --ensemble npt --compressibility 0.45 \
        --timestep 1.5 --steps 20000 --every 20 --seed 2 -o npt.h5md
    python benchmarks/studies/water.py --name water-so3lr --nvt nvt.h5md --npt npt.h5md --skip-npt 6

216 molecules at 0.998 g/cm³. Hydrogen atoms have a mass of 3.024 amu, and oxygen atoms lose the
added mass. The distribution of the positions of classical nuclei does not depend on their masses,
and the time step may be twice as long (Feenstra et al., J. Comput. Chem. 20, 786, 1999).

Results: benchmarks/results/NAME.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import write
from matplotlib.figure import Figure
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table
from result_files import write as write_result
from structures import water_box

from attncalc import md
from attncalc.plots.style import BLUE, GREY, tidy

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAIRS = (("O", "O"), ("O", "H"))
WIDTH = 0.05  # Å
BLOCKS = 5  # for standard errors
HEAVIER = 2.016  # mass moved from the oxygen atom to each hydrogen atom, amu
# X-ray diffraction, 295 K: first maximum of g_OO
MEASURED = (2.80, 2.57)
SOURCE = "Skinner et al., J. Chem. Phys. 138, 074506 (2013)"


def rdf(frames: list[Atoms], first: str, second: str) -> tuple[NDArray, NDArray]:
    """Return distances [n] Å and g [blocks, n], without pairs within a molecule.

    Distances extend to half the edge of the cubic box.
    """
    half = frames[0].cell.lengths().min() / 2
    edges = np.arange(0, half, WIDTH)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    symbols = np.array(frames[0].get_chemical_symbols())
    a, b = np.flatnonzero(symbols == first), np.flatnonzero(symbols == second)
    counted = np.zeros((BLOCKS, len(edges) - 1))
    n_frames = np.zeros(BLOCKS)
    for k, atoms in enumerate(frames):
        block = k * BLOCKS // len(frames)
        apart = (atoms.positions[a][:, None] - atoms.positions[b]) @ np.linalg.inv(atoms.cell)
        lengths = np.linalg.norm((apart - apart.round()) @ atoms.cell.array, axis=2)
        lengths[a[:, None] // 3 == b[None] // 3] = np.inf  # three successive atoms are a molecule
        counted[block] += np.histogram(lengths, edges)[0]
        n_frames[block] += 1
    density = len(b) / frames[0].get_volume()
    g = counted / n_frames[:, None] / len(a) / shells / density
    return (edges[1:] + edges[:-1]) / 2, g


def extrema(r: NDArray, g: NDArray) -> dict[str, tuple[float, float]]:
    """Return position (Å) and height of the first maximum, the next minimum and maximum."""
    top = int(g[r < 3.2].argmax())
    low = top + int(g[top : np.searchsorted(r, 4.0)].argmin())
    second = low + int(g[low : np.searchsorted(r, 5.5)].argmax())
    names = ("first maximum", "first minimum", "second maximum")
    return {n: (float(r[k]), float(g[k])) for n, k in zip(names, (top, low, second), strict=True)}


def start() -> Atoms:
    """Return the box of water with heavy hydrogen atoms."""
    atoms = water_box((6, 6, 6), seed=1)
    atoms.pbc = True
    oxygen = atoms.numbers == 8
    atoms.set_masses(np.where(oxygen, 15.999 - 2 * HEAVIER, 1.008 + HEAVIER))
    return atoms


def density(atoms: Atoms) -> float:
    """Return the density, g/cm³."""
    return atoms.get_masses().sum() / units.kg * 1e3 / (atoms.get_volume() * 1e-24)


def behind(run: Path, picoseconds: float) -> list[Atoms]:
    """Return the frames of a trajectory after the first `picoseconds`."""
    frames = md.read_h5md(run)
    return [atoms for atoms in frames if atoms.info["time_fs"] > 1e3 * picoseconds]


def with_error(values: NDArray) -> tuple[NDArray, NDArray]:
    """Return the mean over the first axis, which is that of blocks, and its standard error."""
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def length(frames: list[Atoms]) -> str:
    """Return the simulation time of the frames, as text for the table."""
    return f"{(frames[-1].info['time_fs'] - frames[0].info['time_fs']) / 1e3:.0f} ps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, help="write the first structure, and nothing else")
    parser.add_argument("--nvt", type=Path, help=".h5md of attncalc md at constant volume")
    parser.add_argument("--npt", type=Path, help="and at constant pressure")
    parser.add_argument("--skip", type=float, default=2.5, help="ps left out of nvt")
    parser.add_argument("--skip-npt", type=float, default=10, help="ps left out of npt")
    parser.add_argument("--name", default="water", help="of the result files")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    if arguments.start:
        write(arguments.start, start())
        return
    frames = behind(arguments.nvt, arguments.skip)
    kelvin = float(np.mean([atoms.get_temperature() for atoms in frames]))
    content: dict = {"frames": len(frames), "time": length(frames), "temperature": kelvin}
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for (first, second), colour in zip(PAIRS, (BLUE, GREY), strict=True):
        r, g = rdf(frames, first, second)
        mean, error = with_error(g)
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
    notes = [
        f"# {arguments.name}: {len(frames[0]) // 3} molecules of water",
        "",
        f"{length(frames)} at {density(frames[0]):.3f} g/cm³ behind the first "
        f"{arguments.skip:g} ps, mean temperature {kelvin:.0f} K; errors: of {BLOCKS} blocks. "
        f"{machine_name()}.",
        "",
        f"X-ray diffraction at 295 K: {SOURCE}.",
        "",
    ]
    if arguments.npt:
        frames = behind(arguments.npt, arguments.skip_npt)
        values = np.array([density(atoms) for atoms in frames])
        blocks = np.array([block.mean() for block in np.array_split(values, BLOCKS)])
        mean, error = with_error(blocks)
        content |= {"density": float(mean), "density_error": float(error)}
        content["npt_time"] = length(frames)
        notes += [
            f"Density at 0 GPa, {length(frames)} behind the first {arguments.skip_npt:g} ps: "
            f"**{mean:.3f} ± {error:.3f} g/cm³**; water at 300 K and 1 bar has 0.997.",
            "",
        ]
    notes += [f"![Radial distribution functions]({arguments.name}.png)", ""]
    text = "\n".join([*notes, *table(["g(O-O)", "distance, Å", "height"], lines), ""])
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output / f"{arguments.name}.png", dpi=150)
    write_result(arguments.output / f"{arguments.name}.json", json.dumps(content, indent=1) + "\n")
    write_result(arguments.output / f"{arguments.name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
