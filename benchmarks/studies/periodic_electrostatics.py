#!/usr/bin/env python
"""Electrostatics of a model in periodic structures: cutoff, self-energy, all images.

    python benchmarks/studies/periodic_electrostatics.py MODEL water.extxyz

The same network with electrostatics that end at a cutoff, with `SelfEnergy` beside them, and with
an Ewald sum. Molecules in an empty periodic box are compared with molecules alone; liquid water
(a periodic structure, as of studies/water.py) with the Ewald sum. In float64. Results:
benchmarks/results/periodic-electrostatics-MODEL.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from result_files import machine_name, table, write

from attncalc import AttnCalculator, Potential, load
from attncalc.physics.electrostatics import DampedElectrostatics
from attncalc.physics.ewald import Ewald, EwaldConfig
from attncalc.physics.self_energy import SelfEnergy, SelfEnergyConfig

RESULTS = Path(__file__).resolve().parents[1] / "results"
KINDS = ("cutoff", "cutoff and self-energy", "Ewald sum")
CUTOFFS = (12.0, 18.0)  # Å


def potential(model: str, kind: str, cutoff: float) -> Potential:
    """Return the model with these electrostatics."""
    found = load(model, dtype="float64", device="cpu")
    terms = [term for term in found.pair_terms if not isinstance(term, SelfEnergy)]
    (electric,) = (term for term in terms if isinstance(term, DampedElectrostatics))
    sigma = electric.config.damping_length
    if kind == "Ewald sum":
        terms[terms.index(electric)] = Ewald(EwaldConfig(sigma), found.species)
    elif kind == "cutoff and self-energy":
        config = SelfEnergyConfig(12.0, all_pairs_in_molecules=True, damping_length=sigma)
        terms.append(SelfEnergy(config, found.species))
    del found.pair_terms[:]
    found.pair_terms.extend(
        term.with_cutoff(cutoff) if hasattr(term, "with_cutoff") else term for term in terms
    )
    return found


def evaluated(calculator: AttnCalculator, atoms: Atoms) -> dict[str, np.ndarray]:
    """Return energy, forces, and pressure in GPa."""
    atoms = atoms.copy()
    atoms.calc = calculator
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        found["pressure"] = -atoms.get_stress()[:3].mean() / units.GPa
    return found


def molecules(model: str) -> dict[str, tuple[Atoms, dict[str, np.ndarray]]]:
    """Return molecules with their energies and forces without a cutoff."""
    alone = AttnCalculator(load(model, dtype="float64", device="cpu"))
    found = {
        "water": molecule("H2O"),
        "benzene": molecule("C6H6"),
        "aspirin": read(RESULTS.parent / "aspirin.xyz"),
    }
    return {name: (atoms, evaluated(alone, atoms)) for name, atoms in found.items()}


def in_box(
    cut: AttnCalculator, cutoff: float, of_molecules: dict[str, tuple[Atoms, dict[str, np.ndarray]]]
) -> dict[str, list[float]]:
    """Return what a box adds to the energy of molecules [eV], and the largest force [eV/Å]."""
    found = {}
    for name, (atoms, alone) in of_molecules.items():
        boxed = atoms.copy()
        boxed.set_cell(np.ptp(atoms.positions, axis=0) + 2 * cutoff)
        boxed.pbc = True
        inside = evaluated(cut, boxed)
        off = np.abs(inside["forces"] - alone["forces"]).max()
        found[name] = [float(inside["energy"] - alone["energy"]), float(off)]
    return found


def liquid(model: str, atoms: Atoms) -> list[dict]:
    """Return differences from the Ewald sum for every kind and cutoff."""
    n = len(atoms) // 3
    exact = evaluated(AttnCalculator(potential(model, "Ewald sum", CUTOFFS[0])), atoms)
    of_molecules, rows = molecules(model), []
    for cutoff in CUTOFFS:
        for kind in KINDS[:2]:
            calculator = AttnCalculator(potential(model, kind, cutoff))
            found = evaluated(calculator, atoms)
            off = found["forces"] - exact["forces"]
            rows.append(
                {
                    "kind": kind,
                    "cutoff": cutoff,
                    "energy": 1e3 * float(found["energy"] - exact["energy"]) / n,
                    "forces": 1e3 * float(np.abs(off).mean()),
                    "molecules": 1e3 * float(np.abs(off.reshape(n, 3, 3).sum(1)).mean()),
                    "pressure": float(found["pressure"] - exact["pressure"]),
                    "boxes": in_box(calculator, cutoff, of_molecules),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("water", type=Path)
    asked = parser.parse_args()
    atoms = read(asked.water)
    name = Path(asked.model).stem
    rows = liquid(asked.model, atoms)
    machine = machine_name()
    content = {"model": name, "atoms": len(atoms), "rows": rows, "machine": machine}
    path = RESULTS / f"periodic-electrostatics-{name}"
    write(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    head = ["electrostatics", "cutoff, Å", "energy, meV", "force MAE", "of molecules", "pressure"]
    names = list(rows[0]["boxes"])
    lines = [
        f"# Electrostatics of {name} in periodic structures",
        "",
        f"{len(atoms) // 3} molecules of water, differences from an Ewald sum: energy per molecule,"
        " meV/Å of force components of atoms and of whole molecules, GPa. Behind: energy and"
        " largest force component that a periodic box adds to a molecule, eV and eV/Å.",
        "",
        *table(
            head + [f"{one} in a box" for one in names],
            [
                [
                    row["kind"],
                    f"{row['cutoff']:g}",
                    f"{row['energy']:.0f}",
                    f"{row['forces']:.0f}",
                    f"{row['molecules']:.0f}",
                    f"{row['pressure']:+.2f}",
                    *("{:+.3f}, {:.3f}".format(*row["boxes"][one]) for one in names),
                ]
                for row in rows
            ],
        ),
        "",
        f"{machine}. `python benchmarks/studies/periodic_electrostatics.py {asked.model} "
        f"{asked.water.name}`",
        "",
    ]
    write(path.with_suffix(".md"), "\n".join(lines))


if __name__ == "__main__":
    main()
