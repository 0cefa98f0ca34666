"""Langevin dynamics on a GPU: time, kernels and waits of a step, beside its lower bounds.

Part of `benchmarks/gpu.py`, which runs it as a process of its own; prints a line of JSON per row.

With shipped models, atoms have their usual masses, and times include the rebuilding of neighbour
lists. With random weights, atoms are so heavy that they hardly move and the lists stay valid (the
stage "speed" times the building of lists). Lower bounds of a step:

| limit      | is                                                                               |
|------------|----------------------------------------------------------------------------------|
| launches   | number of its kernels, times the time of an empty kernel of a captured graph     |
| traffic    | bytes that pairs must fetch, at the bandwidth of a large copy                    |
| arithmetic | operations of pairs and atoms, at the rate of a large float32 matrix product     |

Traffic and arithmetic are those of So3krates with tabulated radial filters and an explicit
gradient. For each directed pair and each layer after the first, the forward pass fetches keys,
values and Euclidean variables of the neighbour; the backward pass fetches queries, keys, values and
two gradients.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

HEAVY = 1e6  # amu
CHUNK = 50  # steps that are profiled
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")

# network or shipped model, structure, replicas in one batch
ROWS = [
    *(("so3krates-ethanol", "ethanol", n) for n in (1, 64, 1024)),
    *(("so3krates-aspirin", "aspirin", n) for n in (1,)),
    *(("so3krates-organic", "aspirin", n) for n in (1, 64)),
    *(("so3krates-organic", f"water-{n}", 1) for n in (192, 1536, 6144)),
    *(("so3krates", f"water-{n}", 1) for n in (192, 1536, 6144, 24576, 98304)),
    *(("so3krates", name, n) for name in ("aspirin", "ethanol") for n in (1, 16, 64, 256, 1024)),
    *(("equiformer-aspirin", "aspirin", n) for n in (1, 64)),
    *(("equiformer", "aspirin", n) for n in (1, 16, 64)),
    *(("equiformer", "water-192", 1),),
]
DRY_ROWS = [("so3krates-ethanol", "ethanol", 1), ("so3krates", "ethanol", 2)]


def structure(name: str) -> Any:
    """Return one of `structures.SYSTEMS`, or a larger box of water."""
    from structures import SYSTEMS, water_box

    boxes = {"water-24576": (16, 16, 32), "water-98304": (32, 32, 32)}
    return water_box(boxes[name]) if name in boxes else SYSTEMS[name]()


def networks() -> dict[str, Callable[[], Any]]:
    """Return functions that make potentials with random weights, by name."""
    from engines import equiformer, so3lr_sized

    return {"so3krates": so3lr_sized, "equiformer": lambda: equiformer("l2")}


def least_work(config: Any, n_atoms: int, n_edges: int) -> tuple[float, float]:
    """Return bytes that pairs must fetch, and floating-point operations, of energy and forces.

    Args:
        config: a `So3kratesConfig`.
        n_atoms: number of atoms.
        n_edges: number of directed pairs within the cutoff.
    """
    width, layers = config.num_features, config.num_layers
    orders, degrees = sum(2 * l + 1 for l in config.degrees), len(config.degrees)
    forward, reverse = 3 * width + orders, 6 * width + 3 * orders
    fetched = 4.0 * n_edges * (layers - 1) * (forward + reverse)
    # multiply-adds of one pass; both edges of a pair have the same filter
    of_pair = 8 * width + 2 * degrees * width // 4 + width * width // 2 + 5 * width + 2 * orders
    projections = 5 * width * width // config.num_heads
    of_atom = projections + 2 * width * width + (width + degrees) ** 2
    flops = 2.0 * 2 * (n_edges * (layers - 1) * of_pair / 2 + n_atoms * layers * of_atom)
    return fetched, flops


def limits_of_device(wait: Callable[[], None], device: str) -> dict[str, float]:
    """Return µs of an empty kernel in a captured graph, bytes and operations per second."""
    import torch

    small = device == "cpu"
    n = 512 if small else 8192
    a = torch.rand(n, n, device=device)
    out = torch.empty_like(a)
    product = seconds_of(lambda: torch.mm(a, a, out=out), wait)
    copy = seconds_of(lambda: out.copy_(a), wait)
    one = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    replay = launches
    if not small:
        graph = torch.cuda.CUDAGraph()
        launches()
        with torch.cuda.graph(graph):
            launches()
        replay = graph.replay
    return {
        "launch_us": 1e3 * seconds_of(replay, wait),
        "bytes_per_s": 2 * a.numel() * 4 / copy,
        "flops_per_s": 2.0 * n**3 / product,
    }


def seconds_of(call: Callable[[], Any], wait: Callable[[], None], n: int = 10) -> float:
    """Return seconds per call of n calls, after two warm-up calls."""
    for _ in range(2):
        call()
    wait()
    start = time.perf_counter()
    for _ in range(n):
        call()
    wait()
    return (time.perf_counter() - start) / n


def of_system(
    potential: Any, atoms: Any, replicas: int, device: str, seconds: float, *, heavy: bool
) -> dict:
    """Return the row of one structure, which is `replicas` times in a batch."""
    import torch
    from ase.units import fs

    from attncalc import Evaluator, System, md
    from attncalc.neighbors import fresh_graph

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    force = Evaluator(potential)
    langevin = md.Langevin(0.5 * fs, 300.0, 0.01 / fs)
    system = System.from_ase([atoms] * replicas)
    masses = torch.full((system.n_atoms,), HEAVY, dtype=torch.float64) if heavy else None
    state = langevin.init(force, system, masses=masses, seed=1)

    def advance(n: int) -> None:
        nonlocal state
        state = md.run(langevin, force, state, n)

    n = CHUNK if device == "cuda" else 2
    for _ in range(3):  # builds lists, captures graphs, and raises the clock rate
        advance(n)
    wait()
    start = time.perf_counter()
    advance(n)
    wait()
    # one run, which learns how long lists stay valid
    done = n * max(1, int(seconds / (time.perf_counter() - start)))
    made = force.neighbors.n_rebuilds
    start = time.perf_counter()
    advance(done)
    wait()
    step_us = 1e6 * (time.perf_counter() - start) / done
    made = force.neighbors.n_rebuilds - made
    with torch.profiler.profile() as profiled:
        advance(n)
        wait()
    events = list(profiled.events())
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    graph = fresh_graph(state.system, cutoff=potential.cutoff, species=potential.species)
    n_edges = int(graph.edge_mask.sum())
    row = {
        "atoms": system.n_atoms,
        "edges": n_edges,
        "step_us": step_us,
        "steps": done,
        "n_lists_made": made,
        "kernels_per_step": len(kernels) / n,
        "busy_us": sum(event.time_range.elapsed_us() for event in kernels) / n,
        "waits_per_chunk": sum(event.name in WAITS for event in events),
        "longest": longest(((k.name, k.time_range.elapsed_us()) for k in kernels), n),
    }
    if device == "cuda":
        row["peak_MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def longest(
    kernels: Iterable[tuple[str, float]], n_steps: int = 1, most: int = 16
) -> list[dict[str, Any]]:
    """Return the kernels that take most of the time: µs and launches per step.

    Args:
        kernels: name and µs of every launch.
        n_steps: number of steps that launched them.
        most: largest number of kernels.
    """
    times, counts = Counter(), Counter()
    for name, us in kernels:
        times[name] += us / n_steps
        counts[name] += 1
    return [
        {"kernel": name[:120], "us": us, "n": counts[name] / n_steps}
        for name, us in times.most_common(most)
    ]


def rows(device: str, *, dry_run: bool) -> Iterator[dict]:
    """Yield all rows; a row that fails has the reason, and the others continue."""
    import torch

    from attncalc import load
    from attncalc.nn.so3krates import So3kratesConfig

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    limits = limits_of_device(wait, device)
    made = networks()
    for network, name, replicas in DRY_ROWS if dry_run else ROWS:
        facts = {"network": network, "system": name, "replicas": replicas}
        try:
            is_random = network in made
            potential = made[network]().to(device) if is_random else load(network, device=device)
            seconds = 0.1 if dry_run else 1.0
            row = of_system(potential, structure(name), replicas, device, seconds, heavy=is_random)
        except Exception as error:
            yield facts | {"failed": f"{type(error).__name__}: {error}"[:200]}
            continue
        bound = {"launches_us": row["kernels_per_step"] * limits["launch_us"]}
        if isinstance(getattr(potential.network, "config", None), So3kratesConfig):
            fetched, flops = least_work(potential.network.config, row["atoms"], row["edges"])
            bound["traffic_us"] = 1e6 * fetched / limits["bytes_per_s"]
            bound["arithmetic_us"] = 1e6 * flops / limits["flops_per_s"]
        yield facts | row | limits | bound


def table_rows(found: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return head and body of the table."""
    head = ["network", "system", "replicas", "atoms", "µs per step", "per replica"]
    head += ["ns per atom", "kernels", "busy, µs", "waits per chunk"]
    head += ["limits (launches, traffic, arithmetic), µs", "largest limit / step"]
    body = []
    for row in found:
        start = [row["network"], row["system"], str(row["replicas"])]
        if "failed" in row:
            body.append([*start, row["failed"], *[""] * 8])
            continue
        names = ("launches_us", "traffic_us", "arithmetic_us")
        limits = [row[name] for name in names if name in row]
        body.append(
            [
                *start,
                f"{row['atoms']:,}",
                f"{row['step_us']:.1f}",
                f"{row['step_us'] / row['replicas']:.2f}",
                f"{1e3 * row['step_us'] / row['atoms']:.0f}",
                f"{row['kernels_per_step']:.0f}",
                f"{row['busy_us']:.1f}",
                str(row["waits_per_chunk"]),
                " / ".join(f"{limit:.1f}" for limit in limits),
                f"{100 * max(limits) / row['step_us']:.0f} %",
            ]
        )
    return head, body


def worker(*, dry_run: bool) -> None:
    """Print every row as soon as it is measured."""
    for row in rows("cpu" if dry_run else "cuda", dry_run=dry_run):
        print(json.dumps(row), flush=True)
