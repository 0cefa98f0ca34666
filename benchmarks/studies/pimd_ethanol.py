"""Quantum kinetic energy of ethanol at 300 K by path-integral dynamics with i-PI.

    python benchmarks/studies/pimd_ethanol.py        # with the extra `ipi`; half an hour

32 beads with so3krates-ethanol, all beads in one batch. The centroid virial estimate is compared
with the kinetic energies of classical nuclei and of harmonic nuclei (by the model's Hessian).

Results: benchmarks/results/pimd_ethanol.json and pimd_ethanol.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.optimize import BFGS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table
from result_files import write as write_result

from attncalc import AttnCalculator
from attncalc.plugins import ipi_driver

RESULTS = Path(__file__).resolve().parents[1] / "results"
MODEL, KELVIN, TIMESTEP = "so3krates-ethanol", 300.0, 0.25  # K, fs
ELEMENTS = ("H", "C", "O")
EVERY = 20  # steps between values
BLOCKS = 10  # for the standard error
INPUT = """<simulation verbosity="low">
  <total_steps>{n_steps}</total_steps>
  <prng><seed>{seed}</seed></prng>
  <output prefix="run">
    <properties filename="out" stride="{every}"> [ kinetic_cv{{electronvolt}}, kinetic_cv(H){{electronvolt}},
      kinetic_cv(C){{electronvolt}}, kinetic_cv(O){{electronvolt}}, potential{{electronvolt}} ] </properties>
  </output>
  <ffdirect name="attncalc" pbc="false" threaded="true">
    <pes>custom</pes>
    <pes_path>{driver}</pes_path>
    <parameters>{{model: {model}, template: start.xyz}}</parameters>
    <batch_size>{beads}</batch_size>
  </ffdirect>
  <system>
    <initialize nbeads="{beads}">
      <file mode="ase">start.xyz</file>
      <velocities mode="thermal" units="kelvin">{kelvin}</velocities>
    </initialize>
    <forces><force forcefield="attncalc"/></forces>
    <ensemble><temperature units="kelvin">{kelvin}</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <timestep units="femtosecond">{timestep}</timestep>
        <thermostat mode="pile_g"><tau units="femtosecond">100</tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def relaxed() -> Atoms:
    """Return ethanol at a minimum of the model, in a box that i-PI needs."""
    atoms = molecule("CH3CH2OH", cell=[30, 30, 30])
    atoms.calc = AttnCalculator(MODEL, device="cpu", dtype="float64")
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    return atoms


def harmonic(atoms: Atoms) -> tuple[float, dict[str, float]]:
    """Return the harmonic quantum kinetic energy of all atoms and of each element, eV.

    A mode of frequency w has hbar w / 4 coth(hbar w / 2 kT); translations and rotations have
    kT / 2.
    """
    roots = np.sqrt(np.repeat(atoms.get_masses(), 3))
    hessian = atoms.calc.get_hessian(atoms)
    squares, modes = np.linalg.eigh(hessian / np.outer(roots, roots))
    thermal = units.kB * KELVIN
    hbar_w = units._hbar * units.m / np.sqrt(units._e * units._amu) * np.sqrt(np.abs(squares))
    kinetic = np.full(len(squares), thermal / 2)
    vibrations = np.argsort(hbar_w)[6:]
    kinetic[vibrations] = hbar_w[vibrations] / 4 / np.tanh(hbar_w[vibrations] / (2 * thermal))
    of_atoms = (modes**2 @ kinetic).reshape(-1, 3).sum(1)
    symbols = np.array(atoms.get_chemical_symbols())
    return kinetic.sum(), {name: of_atoms[symbols == name].sum() for name in ELEMENTS}


def run(atoms: Atoms, beads: int, n_steps: int, seed: int) -> tuple[np.ndarray, float]:
    """Return values [n, 5] along a run, and ms per step including the start of i-PI."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell)
        write(Path(folder, "start.xyz"), bare)
        Path(folder, "input.xml").write_text(
            INPUT.format(
                n_steps=n_steps,
                seed=seed,
                every=EVERY,
                driver=ipi_driver.__file__,
                model=MODEL,
                beads=beads,
                kelvin=KELVIN,
                timestep=TIMESTEP,
            )
        )
        began = time.perf_counter()
        program = Path(sys.executable).parent / "i-pi"
        subprocess.run(
            [sys.executable, program, "input.xml"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        milliseconds = 1e3 * (time.perf_counter() - began) / n_steps
        return np.loadtxt(Path(folder, "run.out")), milliseconds


def mean(values: np.ndarray) -> tuple[float, float]:
    """Return mean of a series without its first fifth, and the standard error by blocks."""
    blocks = [block.mean() for block in np.array_split(values[len(values) // 5 :], BLOCKS)]
    return float(np.mean(blocks)), float(np.std(blocks, ddof=1) / np.sqrt(BLOCKS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beads", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    atoms = relaxed()
    expected, of_elements = harmonic(atoms)
    values, milliseconds = run(atoms, arguments.beads, arguments.steps, arguments.seed)
    classical = 1.5 * units.kB * KELVIN
    symbols = atoms.get_chemical_symbols()
    rows = {"all": (expected, len(atoms))} | {
        name: (of_elements[name], symbols.count(name)) for name in ELEMENTS
    }
    lines, content = [], {}
    for column, (name, (of_modes, n)) in enumerate(rows.items()):
        value, error = mean(values[:, column])
        content[name] = {"pimd": value, "error": error, "harmonic": of_modes}
        content[name]["classical"] = n * classical
        numbers = (1e3 * value / n, 1e3 * error / n, 1e3 * of_modes / n, 1e3 * classical)
        lines.append([name, *(f"{number:.1f}" for number in numbers)])
    heads = ["element", "32 beads", "standard error", "harmonic", "classical"]
    heads[1] = f"{arguments.beads} beads"
    n_ps = 1e-3 * TIMESTEP * arguments.steps
    notes = [
        "# Quantum kinetic energy of ethanol at 300 K, meV per atom",
        "",
        f"{MODEL}, i-PI, {arguments.beads} beads, {n_ps:g} ps of {TIMESTEP} fs steps, PILE-G, the "
        f"first fifth left out, {BLOCKS} blocks. {milliseconds:.1f} ms per step of all beads. "
        f"{machine_name()}.",
        "",
    ]
    content |= {"beads": arguments.beads, "steps": arguments.steps, "ms": milliseconds}
    content["machine"] = machine_name()
    write_result(arguments.output / "pimd_ethanol.json", json.dumps(content, indent=1) + "\n")
    text = "\n".join([*notes, *table(heads, lines), ""])
    write_result(arguments.output / "pimd_ethanol.md", text)
    print(text)


if __name__ == "__main__":
    main()
