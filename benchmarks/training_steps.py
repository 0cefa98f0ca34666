"""Whole training steps of one engine, timed in a process of its own.

This module runs in the environment of each engine (`benchmarks/train.py --worker ENGINE`). All
engines take the same kind of step: the next batch of the loader, energies and forces, a loss of
both (mean squares, equal weights), its gradient by double backward or an equivalent, clipping and
Adam, in float32.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from platform import python_version
from typing import Any

import engines
import numpy as np
import torch
from ase import Atoms
from engines import (
    EQUIFORMER_OF_PAPER,
    MACE_OFF23_S,
    PUBLISHED,
    SO3LR,
    equiformer,
    installed,
    peak_mib,
    so3lr_sized,
)

N_WARM = 3
LEARNING_RATE, LARGEST_NORM = 1e-4, 10.0

# (loader, step): each iteration over the loader gives the batches of another epoch
Trained = tuple[Iterable[Any], Callable[[Any], object]]


def attncalc(
    frames: list[Atoms], size: int, potential: Callable[[], Any], *, compiled: bool
) -> Trained:
    """Return the steps of `attncalc train`, without Lightning and moving averages."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm
    from torch.utils.data import DataLoader

    from attncalc.data import Dataset, shortest_distance
    from attncalc.train.batches import join, samples
    from attncalc.train.recipe import Recipe
    from attncalc.train.select_step import select_step
    from attncalc.train.step import Loss, mean_square, trainable

    model = potential().requires_grad_(True)
    dataset = Dataset(
        structures=frames,
        energies=np.array([atoms.info["REF_energy"] for atoms in frames]),
        forces=[atoms.arrays["REF_forces"] for atoms in frames],
        source="frames",
    )
    parts = samples(dataset, model.cutoff, model.species)
    recipe = Recipe(
        name="benchmark",
        data="",
        split={"sizes": ["rest", 1]},
        config={"cutoff": model.cutoff},
        batch_size=size,
        compile="always" if compiled else "never",
    )
    told = _Told()
    log = logging.getLogger("attncalc.train.select_step")
    log.addHandler(told)
    log.setLevel(logging.INFO)
    gradient, compilation = select_step(
        model,
        Loss(1.0, 1.0, 0.0, mean_square),
        parts,
        recipe,
        shortest=shortest_distance(dataset),
        n_steps=1,
    )
    if compilation is not None:
        gradient = compilation.make() or gradient
    if told.warnings:
        raise RuntimeError(told.warnings[0])
    parameters = list(trainable(model).values())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step(batch: Any) -> None:
        _, gradients = gradient(batch)
        norm = get_total_norm(gradients)
        for parameter, values in zip(parameters, gradients, strict=True):
            parameter.grad = values
        if norm.item() > LARGEST_NORM:
            clip_grads_with_norm_(parameters, LARGEST_NORM, norm)
        optimizer.step()

    loader: Any = DataLoader(parts, size, shuffle=True, drop_last=True, collate_fn=join)
    return loader, step


class _Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())


def so3krates_torch(frames: list[Atoms], size: int) -> Trained:
    """Return the training steps of SO3LR in so3krates-torch."""
    from so3krates_torch.data.atomic_data import AtomicData
    from so3krates_torch.data.utils import KeySpecification, config_from_atoms
    from so3krates_torch.modules.loss import WeightedEnergyForcesLoss
    from so3krates_torch.tools.torch_geometric.dataloader import DataLoader

    torch.set_default_dtype(torch.float32)
    calculator = engines.so3lr_of_torch("cpu")
    keys = KeySpecification.from_defaults()
    graphs = []
    for atoms in frames:
        if not atoms.pbc.any():
            atoms.set_cell(np.eye(3) * 60.0)
        config = config_from_atoms(atoms, key_specification=keys)
        graphs.append(
            AtomicData.from_config(config, z_table=calculator.z_table, cutoff=calculator.r_max)
        )
    loader = DataLoader(graphs, batch_size=size, shuffle=True, drop_last=True)
    return loader, _step_of_peer(calculator.models[0], WeightedEnergyForcesLoss(1.0, 1.0))


def mace_torch(frames: list[Atoms], size: int) -> Trained:
    """Return the training steps of a MACE in mace-torch."""
    from mace import data, tools
    from mace.modules.loss import WeightedEnergyForcesLoss
    from mace.tools.torch_geometric.dataloader import DataLoader

    model = engines.mace_off_sized("cpu")
    table = tools.AtomicNumberTable(list(engines.MACE_ELEMENTS))
    keys = data.KeySpecification(
        info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"}
    )
    configs = [data.config_from_atoms(atoms, key_specification=keys) for atoms in frames]
    graphs = [data.AtomicData.from_config(c, z_table=table, cutoff=4.5) for c in configs]
    loader = DataLoader(graphs, batch_size=size, shuffle=True, drop_last=True)
    return loader, _step_of_peer(model, WeightedEnergyForcesLoss(1.0, 1.0))


def equiformer_of_paper(frames: list[Atoms], size: int) -> Trained:
    """Return steps of the published network and loader, with the common loss, Adam and clipping."""
    from torch.nn.functional import mse_loss
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    model = engines.equiformer_of_paper("l2")
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    graphs = [
        Data(
            z=torch.as_tensor(atoms.numbers),
            pos=torch.as_tensor(atoms.positions, dtype=torch.float32),
            y=torch.tensor([[atoms.info["REF_energy"]]], dtype=torch.float32),
            dy=torch.as_tensor(atoms.arrays["REF_forces"], dtype=torch.float32),
        )
        for atoms in frames
    ]

    def step(batch: Any) -> None:
        energies, forces = model(node_atom=batch.z, pos=batch.pos, batch=batch.batch)
        loss = mse_loss(energies, batch.y) + mse_loss(forces, batch.dy)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=LARGEST_NORM)
        optimizer.step()

    return DataLoader(graphs, batch_size=size, shuffle=True, drop_last=True), step


def _step_of_peer(model: Any, loss: Any) -> Callable[[Any], object]:
    """Return the step of `take_step` in mace.tools.train, which so3krates-torch copies.

    It is written out here, because importing so3krates-torch's copy needs packages that
    so3krates-torch does not install.
    """
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(
            batch.to_dict(),
            training=True,
            compute_force=True,
            compute_virials=False,
            compute_stress=False,
        )
        loss(pred=output, ref=batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=LARGEST_NORM)
        optimizer.step()

    return step


published = partial(equiformer, "l2", **PUBLISHED)
ours = partial(equiformer, "l2")

# name -> function that prepares it, and its hyper-parameters in words
ENGINES: dict[str, tuple[Callable[[list[Atoms], int], Trained], str]] = {
    "attncalc": (partial(attncalc, potential=so3lr_sized, compiled=True), SO3LR),
    "attncalc-eager": (
        partial(attncalc, potential=so3lr_sized, compiled=False),
        f"{SO3LR}, not compiled",
    ),
    "attncalc-equiformer-l2": (
        partial(attncalc, potential=published, compiled=True),
        "the published Equiformer, lmax 2, 3.5 M parameters",
    ),
    "attncalc-equiformer-l2-eager": (
        partial(attncalc, potential=published, compiled=False),
        "the published Equiformer, lmax 2, not compiled",
    ),
    "attncalc-equiformer": (
        partial(attncalc, potential=ours, compiled=True),
        "our smooth Equiformer, 6 blocks, lmax 2, 5 Å",
    ),
    "so3krates-torch": (so3krates_torch, SO3LR),
    "mace-torch": (mace_torch, MACE_OFF23_S),
    "equiformer": (equiformer_of_paper, EQUIFORMER_OF_PAPER),
}


def measure(engine: str, frames: list[Atoms], size: int, *, threads: int, budget: float) -> dict:
    """Return one row: wall time and processor time of steps in ms, and memory in MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    loader, step = ENGINES[engine][0](frames, size)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    step(next(batches))
    ready = time.perf_counter() - start
    for _ in range(N_WARM):
        step(next(batches))
    wall, processor = [], []
    start = time.perf_counter()
    while len(wall) < 3 or time.perf_counter() - start < budget:
        before = time.perf_counter(), time.process_time()
        step(next(batches))
        wall.append(1e3 * (time.perf_counter() - before[0]))
        processor.append(1e3 * (time.process_time() - before[1]))
    peak = peak_mib("cpu")  # before profiling, which needs memory itself
    package = "attncalc" if engine.startswith("attncalc") else engine
    versions = f"{package} {installed(package)}, torch {torch.__version__}"
    return {
        "engine": engine,
        "versions": f"{versions}, Python {python_version()}",
        "step": wall,
        "processor": processor,
        "ready_s": ready,
        "held_MiB": held_mib(lambda: step(next(batches))),
        "peak_MiB": peak,
    }


def held_mib(run: Callable[[], object]) -> float:
    """Return the peak memory, MiB, of tensors that a call makes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return float(max(0, *held)) / 2**20
