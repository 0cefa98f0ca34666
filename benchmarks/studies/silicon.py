"""Silicon: lattice constant, bulk modulus and elastic constants of a model and of its data.

    python benchmarks/studies/silicon.py runs/mlearn_Si_mended.extxyz [--model so3krates-silicon]

The data (after mend_silicon.py) contain a cubic cell strained by known amounts, with DFT energies
and stresses. Elastic constants are computed from the stored stresses, and from the model's stresses
of the same structures:

* C11 and C12: central differences of the stress between the two smallest strains along x;
* C44: the same for a shear in the yz plane, with atoms moved by the strain and not relaxed;
* B = (C11 + 2 C12)/3.

For the model alone: the cell at zero stress, B from a Birch-Murnaghan fit of energies, the optical
phonon at the zone centre from forces, and the drift of dynamics at constant energy. Beyond the data:
the energy of an atom that is pulled off a surface, and the smallest crystal of which the energy
still rises when it is pressed. Results go to benchmarks/results/NAME-OF-THE-MODEL.md.
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
from attncalc.model_file import model_name

RESULTS = Path(__file__).parents[1] / "results"
GPA = units.GPa
Stress = Callable[[Atoms], np.ndarray]


def elastic(frames: list[Atoms], stress: Stress) -> dict[str, float]:
    """Return C11, C12, B and clamped C44, GPa; `stress` of a frame returns [6] eV/Å³."""
    cubic = cubic_cell(frames)
    axial, low = slope(frames, stress, cubic, (0, 0)), slope(frames, stress, cubic, (1, 2))
    c11, c12 = float(axial[0]), float((axial[1] + axial[2]) / 2)
    return {"C11": c11, "C12": c12, "B": (c11 + 2 * c12) / 3, "C44 (atoms clamped)": float(low[3])}


def cubic_cell(frames: list[Atoms]) -> Atoms:
    """Return the frame with a cubic cell."""
    return min(frames, key=lambda f: np.abs(f.cell.array - np.eye(3) * f.cell[0, 0]).max())


def slope(frames: list[Atoms], stress: Stress, cubic: Atoms, place: tuple[int, int]) -> np.ndarray:
    """Return the change of the stress with strain [6], GPa, between the two smallest strains.

    Only strains of the component `place` count: e_xx for (0, 0), 2 e_yz for (1, 2).
    """
    by_size = {}
    for frame in frames:
        strain = np.linalg.solve(cubic.cell.array, frame.cell.array)
        strain = (strain + strain.T) / 2 - np.eye(3)
        size = strain[place] * (1 if place[0] == place[1] else 2)
        strain[place] = strain[place[::-1]] = 0.0
        # a shear rotates the cell and shortens it slightly, in second order
        if abs(size) > 1e-3 and np.abs(strain).max() < max(1e-3, size**2):
            by_size[size] = frame
    low, high = max(e for e in by_size if e < 0), min(e for e in by_size if e > 0)
    return (stress(by_size[high]) - stress(by_size[low])) / (high - low) / GPA


def lattice(calculator: AttnCalculator) -> tuple[float, float]:
    """Return the lattice constant a [Å] at zero stress, and B [GPa].

    B is that of a Birch-Murnaghan fit of +-3 % in a.
    """
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


def optical_phonon(calculator: AttnCalculator, a: float) -> float:
    """Return the frequency at the zone centre, THz, from forces on the displaced sublattices."""
    pair = bulk("Si", "diamond", a=a)
    pair.calc = calculator
    step, forces = 0.01, []
    for sign in (-1, 1):
        moved = pair.copy()
        moved.calc = calculator
        moved.positions[:, 0] += sign * step / 2 * np.array([1.0, -1.0])
        forces.append(moved.get_forces()[0, 0])
    stiffness = -(forces[1] - forces[0]) / (2 * step)  # eV/Å²; the distance changes by 2 steps
    reduced = pair.get_masses()[0] / 2
    return float(np.sqrt(stiffness / reduced) * 1e-12 * units.second / (2 * np.pi))


def removal(calculator: AttnCalculator, a: float) -> list[float]:
    """Return energies, eV, of an atom pulled off a (100) surface, which is not relaxed, to 6 Å."""
    slab = bulk("Si", "diamond", a=a, cubic=True).repeat(2)
    slab.pbc = (True, True, False)
    slab.center(vacuum=12.0, axis=2)
    top, energies = int(slab.positions[:, 2].argmax()), []
    for lift in np.linspace(0.0, 6.0, 25):
        lifted = slab.copy()
        lifted.positions[top, 2] += lift
        lifted.calc = calculator
        energies.append(lifted.get_potential_energy())
    return [float(energy - energies[0]) for energy in energies]


def smallest_cell(calculator: AttnCalculator, a: float) -> float:
    """Return the lattice constant, Å, down to which the energy of a pressed crystal rises."""
    last = -np.inf
    for pressed in np.arange(a, 3.5, -0.05):
        cell = bulk("Si", "diamond", a=pressed)
        cell.calc = calculator
        if (energy := cell.get_potential_energy()) < last:
            return float(pressed + 0.05)
        last = energy
    return float(pressed)


def dynamics(calculator: AttnCalculator, a: float, ps: float) -> tuple[float, float]:
    """Return drift, meV/atom/ps, and mean temperature, K, at constant energy: 64 atoms, 1 fs."""
    atoms = bulk("Si", "diamond", a=a, cubic=True).repeat(2)
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=1200, rng=np.random.default_rng(0))
    Stationary(atoms)  # half of it becomes potential energy
    VelocityVerlet(atoms, units.fs).run(500)
    rows: list[tuple[float, float]] = []
    run = VelocityVerlet(atoms, units.fs)
    run.attach(
        lambda: rows.append((1e3 * atoms.get_total_energy() / len(atoms), atoms.get_temperature()))
    )
    run.run(round(1e3 * ps))
    energies, temperatures = np.array(rows).T
    drift = np.polyfit(1e-3 * np.arange(len(energies)), energies, 1)[0]
    return float(drift), float(temperatures.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="runs/mlearn_Si_mended.extxyz")
    parser.add_argument("--model", default="so3krates-silicon")
    parser.add_argument("--ps", type=float, default=10.0, help="of dynamics")
    arguments = parser.parse_args()
    frames = [f for f in read(arguments.data, ":") if f.info.get("group") == "Elastic"]
    calculator = AttnCalculator(arguments.model, dtype="float64")

    def predicted(atoms: Atoms) -> np.ndarray:
        other = atoms.copy()
        other.calc = calculator
        return other.get_stress()

    stored, ours = elastic(frames, lambda atoms: atoms.get_stress()), elastic(frames, predicted)
    a_data = float(cubic_cell(frames).cell[0, 0] / 2)  # 64 atoms: two cubic cells
    a, modulus = lattice(calculator)
    phonon = optical_phonon(calculator, a)
    lifted, smallest = removal(calculator, a), smallest_cell(calculator, a)
    drift, temperature = dynamics(calculator, a, arguments.ps)
    name = model_name(arguments.model)
    result = {"model": name, "data": {"a": a_data, **stored}, "same_structures": ours}
    result |= {"by_itself": {"a": a, "B": modulus, "optical_phonon_THz": phonon}}
    result |= {"removal_eV": lifted, "smallest_cell_A": smallest}
    result |= {"drift_meV_per_atom_ps": drift, "temperature_K": temperature}
    lines = ["| | data (PBE) | model | |", "|---|--:|--:|---|"]
    zero = "data: the cell without stress; model: relaxed"
    lines.append(f"| lattice constant, Å | {a_data:.4f} | {a:.4f} | {zero} |")
    for key in stored:
        how = "stresses of the same strained cells, of the training set"
        lines.append(f"| {key}, GPa | {stored[key]:.1f} | {ours[key]:.1f} | {how} |")
    lines.append(f"| B, GPa | | {modulus:.1f} | Birch-Murnaghan, ±3 % in a |")
    lines.append(f"| optical phonon at Γ, THz | | {phonon:.2f} | |")
    how = f"its energy is between {min(lifted):.2f} and {max(lifted):.2f} eV on the way"
    lines.append(f"| energy of an atom 6 Å above a surface, eV | | {lifted[-1]:.2f} | {how} |")
    how = "lattice constant to which the energy of a pressed crystal rises"
    lines.append(f"| smallest crystal, Å | | {smallest:.2f} | {how} |")
    how = f"64 atoms, {arguments.ps:g} ps, mean {temperature:.0f} K"
    lines.append(f"| drift, meV/atom/ps | | {drift:.4f} | {how} |")
    text = "\n".join([f"{name}, float64 (`python benchmarks/studies/silicon.py DATA`)", "", *lines])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
