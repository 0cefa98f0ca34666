"""Silicon: lattice constant, bulk modulus and elastic constants of a model beside its own data.

    python benchmarks/silicon.py mlearn_Si.extxyz [--model so3krates-silicon]

The data hold a cubic cell strained along x (and along y, z by symmetry) by known amounts, with DFT
energies and stresses. Bulk modulus B = (C11 + 2 C12)/3 is taken from central differences of the
stress at the two smallest strains, once with the stored stresses and once with the model's on the
same structures; then the model by itself: cell relaxed to zero stress, B from a Birch-Murnaghan fit
of energies, and the drift of dynamics at constant energy. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from attncalc import AttnCalculator

RESULTS = Path(__file__).parent / "results"
GPA = units.GPa
Stress = Callable[[Atoms], np.ndarray]


def elastic(frames: list[Atoms], stress: Stress) -> dict[str, float]:
    """C11, C12 and B in GPa from cells strained along x; `stress` is of one frame, eV/Å³."""
    reference = min(frames, key=lambda f: np.ptp(f.cell.lengths()))  # the one that is cubic
    a = reference.cell.lengths()[0]
    uniaxial = [f for f in frames if is_strained_along_x(f, a)]
    strain = {round(f.cell.lengths()[0] / a - 1, 4): f for f in uniaxial}
    low = max(e for e in strain if e < 0)
    high = min(e for e in strain if e > 0)
    slope = (stress(strain[high]) - stress(strain[low])) / (high - low) / GPA
    c11, c12 = float(slope[0]), float((slope[1] + slope[2]) / 2)
    return {"C11": c11, "C12": c12, "B": (c11 + 2 * c12) / 3}


def is_strained_along_x(atoms: Atoms, a: float) -> bool:
    """Whether only the first cell vector differs from a cube of edge a, and not in direction."""
    change = atoms.cell.array - a * np.eye(3)
    change[0, 0] = 0.0
    return bool(np.abs(change).max() < 1e-3 and abs(atoms.cell[0, 0] - a) > 1e-3)


def lattice(calculator: AttnCalculator) -> tuple[float, float]:
    """Lattice constant [Å] at zero stress, and B [GPa] of a Birch-Murnaghan fit of +-3 % in a."""
    cell = bulk("Si", "diamond", a=5.4, cubic=True)
    cell.calc = calculator
    if not LBFGS(FrechetCellFilter(cell), logfile=None).run(fmax=1e-4, steps=200):
        raise SystemExit("the cell was not relaxed after 200 steps")
    a = float(cell.cell.lengths().mean())
    volumes, energies = [], []
    for stretch in np.linspace(0.97, 1.03, 13):
        cell.set_cell(np.eye(3) * a * stretch, scale_atoms=True)
        volumes.append(cell.get_volume())
        energies.append(cell.get_potential_energy())
    _, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return a, float(modulus / GPA)


def drift(calculator: AttnCalculator, a: float, ps: float) -> float:
    """meV/atom/ps at constant energy: 64 atoms, 600 K at the start, 1 fs."""
    atoms = bulk("Si", "diamond", a=a, cubic=True).repeat(2)
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(0))
    Stationary(atoms)
    VelocityVerlet(atoms, units.fs).run(200)
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, units.fs)
    dynamics.attach(lambda: energies.append(1e3 * atoms.get_total_energy() / len(atoms)))
    dynamics.run(round(1e3 * ps))
    return float(np.polyfit(1e-3 * np.arange(len(energies)), energies, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="mlearn_Si.extxyz")
    parser.add_argument("--model", default="so3krates-silicon")
    parser.add_argument("--ps", type=float, default=10.0, help="of dynamics")
    arguments = parser.parse_args()
    frames = [f for f in read(arguments.data, ":") if f.info.get("group") == "Elastic"]
    calculator = AttnCalculator(arguments.model, dtype="float64")

    def predicted(atoms: Atoms) -> np.ndarray:
        other = atoms.copy()
        other.calc = calculator
        return other.get_stress()

    stored = elastic(frames, lambda atoms: atoms.get_stress())
    ours = elastic(frames, predicted)
    unstrained = min(frames, key=lambda f: np.abs(f.get_stress()).max())
    a_data = float(unstrained.cell.lengths()[0] / 2)  # 64 atoms: two cubic cells
    a, modulus = lattice(calculator)
    result = {
        "model": arguments.model,
        "data": {"a": a_data, **stored},
        "same_structures": ours,
        "by_itself": {"a": a, "B": modulus},
        "drift_meV_per_atom_ps": drift(calculator, a, arguments.ps),
    }
    lines = ["| | data (PBE) | model | |", "|---|--:|--:|---|"]
    lines.append(f"| lattice constant, Å | {a_data:.4f} | {a:.4f} | cell relaxed |")
    for name in ("C11", "C12", "B"):
        how = "stresses of the same strained cells"
        lines.append(f"| {name}, GPa | {stored[name]:.1f} | {ours[name]:.1f} | {how} |")
    lines.append(f"| B, GPa | | {modulus:.1f} | Birch-Murnaghan, ±3 % in a |")
    change = result["drift_meV_per_atom_ps"]
    lines.append(
        f"| drift, meV/atom/ps | | {change:.4f} | 64 atoms, {arguments.ps:g} ps at 600 K |"
    )
    text = "\n".join([f"{arguments.model}, float64 (`python benchmarks/silicon.py`)", "", *lines])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "silicon.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "silicon.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
