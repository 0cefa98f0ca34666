"""NVE and Langevin dynamics of ethanol: drift, fluctuation against time step, mean temperature.

python benchmarks/nve_ethanol.py [ps of the long runs, 20 if not given]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from attncalc import AttnCalculator

RESULTS = Path(__file__).parent / "results" / "nve_ethanol.json"
MODEL, TARGET, RUNS = "so3krates-ethanol", 300.0, 8


def start(dtype: str, seed: int, temperature: float) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = AttnCalculator(MODEL, dtype=dtype)
    LBFGS(atoms, logfile=None).run(fmax=1e-3, steps=500)
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(seed))
    return atoms


def nve(dtype: str, timestep: float, ps: float) -> dict:
    atoms = start(dtype, 0, 2 * TARGET)  # half of it becomes potential energy
    Stationary(atoms), ZeroRotation(atoms)
    VelocityVerlet(atoms, 0.5 * units.fs).run(1000)
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.attach(lambda: energies.append(1e3 * atoms.get_total_energy() / len(atoms)))
    dynamics.run(round(1e3 * ps / timestep))
    time = 1e-3 * timestep * np.arange(len(energies))
    drift, middle = np.polyfit(time, energies, 1)
    fluctuation = float((energies - (drift * time + middle)).std())
    print(f"{dtype} {timestep:.2f} fs {ps:6.2f} ps: drift {drift:8.4f} meV/atom/ps, ", end="")
    print(f"fluctuation {fluctuation:.4f} meV/atom", flush=True)
    return {"dtype": dtype, "fs": timestep, "ps": ps, "drift": drift, "fluctuation": fluctuation}


def langevin(seed: int, ps: float) -> float:
    atoms = start("float32", seed, TARGET)
    tau, rng, seen = 50 * units.fs, np.random.default_rng(1000 + seed), []
    dynamics = LangevinBAOAB(atoms, 0.5 * units.fs, temperature_K=TARGET, T_tau=tau, rng=rng)
    dynamics.run(1000)
    dynamics.attach(lambda: seen.append(atoms.get_temperature()))
    dynamics.run(round(2000 * ps))
    return float(np.mean(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    long = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    runs = [nve(dtype, 0.5, long) for dtype in ("float64", "float32")]
    three = [nve("float64", timestep, long / 10) for timestep in (0.25, 0.5, 1.0)]
    exponent = np.polyfit(*np.log([[r["fs"], r["fluctuation"]] for r in three]).T, 1)[0]
    means = [langevin(seed, long / 2) for seed in range(RUNS)]
    mean, error = np.mean(means), np.std(means, ddof=1) / np.sqrt(RUNS)
    print(f"fluctuation grows with timestep^{exponent:.3f}")
    print(f"Langevin: {mean:.2f} +- {error:.2f} K, {(mean - TARGET) / error:+.1f} standard errors")
    found = {"nve": runs + three, "exponent": exponent, "langevin": means, "standard_error": error}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"model": MODEL, **found}, indent=1) + "\n")
