"""Free energy of a torsion: unbiased, by umbrella sampling, by metadynamics. They must agree.

    python benchmarks/studies/free_energy.py        # two hours on a shared core

The torsion is C-C-O-H of ethanol at 300 K, with so3krates-ethanol. Langevin dynamics runs by
`attncalc.md.run` with a user-defined function System -> Result, which adds energy and forces of the
bias to those of the model, for many replicas in a batch. Umbrella sampling is evaluated by WHAM
(Kumar et al., J. Comput. Chem. 13, 1011, 1992). Metadynamics is well-tempered (Barducci et al.,
Phys. Rev. Lett. 100, 020603, 2008). Each replica has hills of its own, which gives the standard
errors.

Results: benchmarks/results/free_energy.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ase.build import molecule
from ase.units import fs, kB
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table
from result_files import write as write_result

from attncalc import Evaluator, Result, System, load, md
from attncalc.plots.style import BLUE, GREY, ORANGE, tidy

RESULTS = Path(__file__).resolve().parents[1] / "results"
MODEL, KELVIN = "so3krates-ethanol", 300.0
THERMAL = kB * KELVIN  # eV
BINS = 72
REPLICAS = 8
EVERY = 20  # steps between values of the torsion
EQUILIBRATION = 4_000  # steps
SPRING = 0.25  # eV, of the umbrella potential SPRING (1 - cos(angle - center))
# metadynamics: highest hill, eV; width, rad; bias factor; steps between hills
HEIGHT, WIDTH, FACTOR, PACE = 0.004, 0.25, 5.0, 100
PLACES = (180, 60, -60, 120, -120, 0)  # degrees: minima, then barriers

centers = 2 * math.pi * (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS - math.pi


def torsions(positions: Tensor) -> Tensor:
    """Return the torsion of atoms 0 to 3 (C-C-O-H in ASE's ethanol) of each replica [n], rad."""
    x = positions.view(-1, 9, 3)
    first, middle, last = (x[:, k + 1] - x[:, k] for k in range(3))
    left, right = torch.linalg.cross(first, middle), torch.linalg.cross(middle, last)
    return torch.atan2(middle.norm(dim=1) * (first * right).sum(1), (left * right).sum(1))


def with_bias(model: Evaluator, bias: Callable[[Tensor], Tensor]) -> Callable[[System], Result]:
    """Return the model plus a bias energy [n], a function of the torsions [n]."""

    def function(system: System) -> Result:
        result = model(system)
        positions = system.positions.clone().requires_grad_()
        energies = bias(torsions(positions))
        (slope,) = torch.autograd.grad(energies.sum(), positions)
        return Result(
            result.energy + energies.detach(),
            result.energies,
            result.forces - slope,
            result.strain_gradient,
        )

    return function


def sampled(function: Callable[[System], Result], start: System, n_steps: int, seed: int) -> Tensor:
    """Return torsions [frames, n] every 20 steps after the equilibration."""
    langevin = md.Langevin(timestep=0.5 * fs, temperature=KELVIN, friction=0.02 / fs)
    state = langevin.init(function, start, seed=seed)
    state = md.run(langevin, function, state, EQUILIBRATION)
    frames = []
    for _ in range(n_steps // EVERY):
        state = md.run(langevin, function, state, EVERY)
        frames.append(torsions(state.system.positions))
    return torch.stack(frames)


def counts(angles: Tensor) -> Tensor:
    """Return the number of angles in each bin."""
    return torch.histc(angles.flatten(), BINS, -math.pi, math.pi).double()


def free_energy(density: Tensor) -> Tensor:
    """Return -kT ln of a density, eV, with zero at the largest density."""
    energy = -THERMAL * density.log()
    return energy - energy[energy.isfinite()].min()


def mean_and_error(curves: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard error [bins] of curves [n, bins], shifted to a common mean."""
    curves = curves - curves.mean(1, keepdim=True)
    mean = curves.mean(0)
    return mean - mean.min(), curves.std(0) / math.sqrt(len(curves))


def unbiased(model: Evaluator, start: System, n_steps: int) -> Tensor:
    """Return free energies [replicas, bins] of dynamics without bias."""
    angles = sampled(model, start, n_steps, seed=1)
    return torch.stack([free_energy(counts(angles[:, k]).clamp(min=0.5)) for k in range(REPLICAS)])


def wham(histograms: Tensor, biases: Tensor) -> Tensor:
    """Return the unbiased density [bins] of histograms and biases (eV), both [windows, bins]."""
    weights, n = torch.exp(-biases / THERMAL), histograms.sum(1)
    shift = torch.ones_like(n)  # 1 / <exp(-bias / kT)>
    for _ in range(100_000):
        density = histograms.sum(0) / ((n * shift) @ weights)
        density /= density.sum()
        new = 1 / (weights @ density)
        if ((new - shift).abs() < 1e-10 * new).all():
            break
        shift = new
    return density


def umbrellas(model: Evaluator, one: System, n_windows: int, n_steps: int) -> Tensor:
    """Return free energies [blocks, bins] of umbrella sampling, with one replica per window."""
    windows = 2 * math.pi * torch.arange(n_windows, dtype=torch.float64) / n_windows
    start = System.from_ase(one.to_ase() * n_windows)
    biased = with_bias(model, lambda angle: SPRING * (1 - torch.cos(angle - windows)))
    angles = sampled(biased, start, n_steps, seed=2)
    biases = SPRING * (1 - torch.cos(centers - windows[:, None]))
    blocks = angles.chunk(4)
    return torch.stack(
        [free_energy(wham(torch.stack([counts(w) for w in b.T]), biases)) for b in blocks]
    )


def metadynamics(model: Evaluator, start: System, n_steps: int) -> Tensor:
    """Return free energies [replicas, bins] of well-tempered metadynamics, from its second half."""
    hills: list[Tensor] = []  # angles [n]
    heights: list[Tensor] = []  # eV [n]
    bias_of: list[Tensor] = [torch.zeros(0, REPLICAS), torch.zeros(0, REPLICAS)]

    def bias(angle: Tensor) -> Tensor:
        at, height = bias_of
        return (height * torch.exp((torch.cos(angle - at) - 1) / WIDTH**2)).sum(0)

    function = with_bias(model, bias)
    langevin = md.Langevin(timestep=0.5 * fs, temperature=KELVIN, friction=0.02 / fs)
    state = langevin.init(function, start, seed=3)
    curves = []
    for k in range(n_steps // PACE):
        state = md.run(langevin, function, state, PACE)
        angle = torsions(state.system.positions)
        hills.append(angle)
        heights.append(HEIGHT * torch.exp(-bias(angle) / (THERMAL * (FACTOR - 1))))
        bias_of[:] = torch.stack(hills), torch.stack(heights)
        if 2 * k >= n_steps // PACE and k % 50 == 0:
            on_grid = torch.stack([bias(c.expand(REPLICAS)) for c in centers], dim=1)
            curves.append(-FACTOR / (FACTOR - 1) * on_grid)
    return torch.stack(curves).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picoseconds", type=float, default=250, help="unbiased, a replica")
    parser.add_argument("--umbrella", type=float, default=40, help="ps a window")
    parser.add_argument("--metadynamics", type=float, default=200, help="ps a replica")
    parser.add_argument("--windows", type=int, default=18)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    model = Evaluator(load(MODEL, device="cpu"))
    atoms = molecule("CH3CH2OH")
    one, start = System.from_ase(atoms), System.from_ase([atoms] * REPLICAS)
    steps = {
        name: round(2000 * getattr(arguments, option))
        for name, option in (
            ("unbiased", "picoseconds"),
            ("umbrella sampling", "umbrella"),
            ("metadynamics", "metadynamics"),
        )
    }
    found, minutes = {}, {}
    for name, n_steps in steps.items():
        began = time.perf_counter()
        if name == "unbiased":
            curves = unbiased(model, start, n_steps)
        elif name == "umbrella sampling":
            curves = umbrellas(model, one, arguments.windows, n_steps)
        else:
            curves = metadynamics(model, start, n_steps)
        found[name] = mean_and_error(curves)
        minutes[name] = (time.perf_counter() - began) / 60
        print(f"{name}: {minutes[name]:.1f} minutes", flush=True)
    in_all = {
        "unbiased": REPLICAS * arguments.picoseconds,
        "umbrella sampling": arguments.windows * arguments.umbrella,
        "metadynamics": REPLICAS * arguments.metadynamics,
    }
    write_results(found, minutes, in_all, arguments.output)


def write_results(
    found: dict[str, tuple[Tensor, Tensor]],
    minutes: dict[str, float],
    in_all: dict[str, float],
    folder: Path,
) -> None:
    """Write numbers, table and figure."""
    reference = found["unbiased"][0]
    rows, content = [], {}
    for name, (curve, error) in found.items():
        relative = 1e3 * (curve - curve[bin_of(180)])
        cells = [f"{relative[bin_of(p)]:.1f} ± {1e3 * error[bin_of(p)]:.1f}" for p in PLACES[1:]]
        difference = curve - reference - (curve - reference).mean()
        rms = 1e3 * difference.square().mean().sqrt()
        rows.append(
            [name, f"{in_all[name] / 1e3:.2f}", f"{minutes[name]:.1f}", *cells, f"{rms:.1f}"]
        )
        content[name] = {
            "degrees": torch.rad2deg(centers).tolist(),
            "meV": (1e3 * curve).tolist(),
            "error": (1e3 * error).tolist(),
            "rms_to_unbiased_meV": float(rms),
            "ns": in_all[name] / 1e3,
            "minutes": minutes[name],
        }
    head = ["", "ns", "minutes", *(f"{p}°" for p in PLACES[1:]), "rms difference"]
    write_result(folder / "free_energy.json", json.dumps(content, indent=1) + "\n")
    lines = [
        "# Free energy of ethanol's C-C-O-H torsion, 300 K, so3krates-ethanol",
        "",
        "![Free energy](free_energy.png)",
        "",
        "meV above that at 180°; standard errors are those of replicas (umbrella sampling: of",
        f"four blocks of time). rms difference: to the unbiased curve, all {BINS} bins.",
        f"{machine_name()}.",
        "",
        *table(head, rows),
        "",
        "`python benchmarks/studies/free_energy.py`",
    ]
    write_result(folder / "free_energy.md", "\n".join(lines) + "\n")
    draw(found, folder / "free_energy.png")


def bin_of(degrees: float) -> int:
    """Return the bin that begins at an angle; 180 and -180 have the same bin."""
    return round((degrees + 180) / 360 * BINS) % BINS


def draw(found: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Draw the three curves; the unbiased one with twice its standard error."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    degrees = torch.rad2deg(centers)
    for (name, (curve, error)), color in zip(found.items(), (GREY, BLUE, ORANGE), strict=True):
        curve, error = 1e3 * curve, 1e3 * error
        if name == "unbiased":
            axes.fill_between(
                degrees, curve - 2 * error, curve + 2 * error, color=color, alpha=0.4, linewidth=0
            )
        axes.plot(degrees, curve, color=color, label=name)
    axes.set(xlabel="C-C-O-H torsion, °", ylabel="free energy, meV", xticks=range(-180, 181, 60))
    axes.legend(frameon=False)
    tidy(axes)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
