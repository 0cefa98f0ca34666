"""Energy + forces per call on the CPU, one thread, beside so3krates-torch, in one run.

    python benchmarks/so3krates_cpu.py --peer PEER/bin/python

Both run a network of SO3LR's size (128 features, 4 heads, degrees 1-4, 3 layers, 4.5 Å, charge and
spin embedding, ZBL repulsion; no long-range terms) in float32, neighbour lists outside the timing.
Ours has random weights, theirs the ones it ships: time does not depend on them. The two take turns,
`--rounds` times; quoted are medians over all calls. PEER is an environment of its own with
`pip install so3krates-torch`. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
SINGLE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
BUDGET = 4.0  # seconds per system and round


def timed(budget: float = BUDGET, **calls) -> dict[str, list[float]]:
    """Milliseconds of repeated calls that take turns, after two rounds that warm up."""
    for call in [*calls.values()] * 2:
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or time.perf_counter() - start < budget:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - before))
    return times


def measure_ours(names: list[str]) -> None:
    """One JSON line per system: the network, and what stands around it."""
    import torch

    torch.set_num_threads(1)
    from structures import systems

    from attncalc import AttnCalculator, Potential, System, evaluate
    from attncalc.nn.so3krates import So3krates, So3kratesConfig
    from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion

    torch.manual_seed(0)
    species = (1, 6, 7, 8, 9, 15, 16, 17)
    config = So3kratesConfig(
        cutoff=4.5, avg_num_neighbors=13.17, embed_charge=True, embed_spin=True
    )
    zbl = ZBLRepulsion(ZBLConfig(4.5), species)
    potential = Potential(So3krates(config, len(species)), species, pair_terms=[zbl])
    calculator = AttnCalculator(potential.requires_grad_(False), device="cpu")
    for name, atoms in systems().items():
        if name not in names:
            continue
        system = System.from_ase(atoms)
        calculator.neighbors, graph = calculator.neighbors.update(system)
        row = {"system": name, "atoms": len(atoms), "edges": graph.n_edges}
        row |= timed(
            network=lambda g=graph: evaluate(calculator._fast, g),
            calculate=lambda a=atoms: calculator.calculate(a, ["energy", "forces"], []),
            list_reused=lambda s=system: calculator.neighbors.update(s),
        )
        row |= timed(1.0, plain=lambda g=graph: evaluate(calculator.potential, g))
        row |= timed(0.5, list_rebuilt=lambda s=system: fresh_list(calculator, s))
        print(json.dumps(row), flush=True)


def fresh_list(calculator, system) -> None:
    from attncalc.neighbors import VerletList

    old = calculator.neighbors
    VerletList.create(cutoff=old.cutoff, skin=old.skin, species=old.species).update(system)


def measure_peer(names: list[str]) -> None:
    """One JSON line per system, from inside the peer's environment."""
    import glob

    import numpy as np
    import so3krates_torch
    import torch
    from so3krates_torch.calculator.so3 import TorchkratesCalculator
    from structures import systems

    torch.set_num_threads(1)
    root = Path(so3krates_torch.__file__).parent
    (weights,) = glob.glob(str(root / "pretrained" / "so3lr" / "so3lr.model"))
    calculator = TorchkratesCalculator(model_paths=weights, device="cpu", default_dtype="float32")
    model = calculator.models[0]
    for name in ("electrostatic_energy_bool", "dispersion_energy_bool", "use_lr"):
        if hasattr(model, name):
            setattr(model, name, False)
    for name, atoms in systems().items():
        if name not in names:
            continue
        atoms.info.update(charge=0, multiplicity=1)
        if not atoms.pbc.any():
            atoms.set_cell(np.eye(3) * 60.0)
        batch = calculator._atoms_to_batch(atoms).to_dict()

        def call(batch=batch) -> None:
            model(
                {
                    k: v.clone() if torch.is_tensor(v) and v.is_floating_point() else v
                    for k, v in batch.items()
                },
                compute_stress=False,
            )

        row = {"system": name, "atoms": len(atoms), "edges": int(batch["edge_index"].shape[1])}
        print(json.dumps(row | timed(network=call)), flush=True)


def run(python: str, mode: str, names: list[str]) -> list[dict]:
    """The JSON lines of one worker process."""
    environment = os.environ | SINGLE | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    command = [python, __file__, "--worker", mode, "--systems", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{mode}: {done.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def table(rows: list[dict]) -> str:
    """Markdown; `around` is what `AttnCalculator.calculate` adds to the network."""
    lines = [
        "| system | atoms | edges | so3krates-torch, ms | attncalc, ms | ratio | plain path, ms | "
        "`calculate`, ms | around the network | list reused, µs | list rebuilt, µs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        around = r["calculate"] / r["network"] - 1
        lines.append(
            f"| {r['system']} | {r['atoms']} | {r['edges']} | {r['peer']:.2f} | {r['network']:.2f} "
            f"| {r['peer'] / r['network']:.2f} | {r['plain']:.2f} | {r['calculate']:.2f} | "
            f"{100 * around:.0f} % | {1e3 * r['list_reused']:.0f} | {1e3 * r['list_rebuilt']:.0f} |"
        )
    return "\n".join(lines)


def growth(rows: list[dict]) -> float:
    """Exponent of time against atoms over the water boxes: slope of the logarithms."""
    import numpy as np

    water = [r for r in rows if r["system"].startswith("water")]
    atoms, times = (np.log([r[key] for r in water]) for key in ("atoms", "network"))
    return float(np.polyfit(atoms, times, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="python of an environment with so3krates-torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--systems",
        nargs="+",
        default=["ethanol", "aspirin", "water-192", "water-648", "water-1536"],
    )
    parser.add_argument("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": measure_ours, "peer": measure_peer}[arguments.worker](arguments.systems)
        return
    if arguments.peer is None:
        parser.error("--peer is needed: the python of an environment with so3krates-torch")
    times: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, dict] = {}
    for _ in range(arguments.rounds):
        for name in arguments.systems:  # by turns, so that a disturbance hits both
            for python, mode in ((sys.executable, "ours"), (arguments.peer, "peer")):
                (row,) = run(python, mode, [name])
                facts.setdefault(name, {k: row[k] for k in ("system", "atoms", "edges")})
                for key, values in row.items():
                    if isinstance(values, list):
                        key = "peer" if mode == "peer" else key
                        times.setdefault(name, {}).setdefault(key, []).extend(values)
    rows = [facts[n] | {k: median(v) for k, v in times[n].items()} for n in arguments.systems]
    import torch

    machine = (
        f"{cpu_name()}, 1 thread, torch {torch.__version__}, Python {platform.python_version()}"
    )
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    report = {"machine": machine, "rounds": arguments.rounds, "rows": rows}
    text = f"{machine}; medians, {arguments.rounds} rounds by turns\n\n{table(rows)}\n"
    if sum(r["system"].startswith("water") for r in rows) > 1:
        report["growth_exponent"] = growth(rows)
        text += f"\nTime grows as atoms^{growth(rows):.2f} over the water boxes.\n"
    (results / "so3krates_cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (results / "so3krates_cpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
