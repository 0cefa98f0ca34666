"""The GPU's half step in Triton's interpreter equals the elementary operations on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from in_triton import compiled_for_a_gpu, interpreted

pytest.importorskip("triton")

IN_THE_INTERPRETER = """
import math
import torch
from ase import units
from attncalc.md import gpu_fused_steps, splitting, fused_steps, noise
from attncalc.md.state import MDState
from attncalc.system import System

for module in (fused_steps, noise):
    module.cpu_loops = lambda _: None
torch.manual_seed(0)
sizes = torch.tensor([150, 7, 60])  # the first block lies within one system, the second in three
n, idx = int(sizes.sum()), torch.repeat_interleave(torch.arange(3), sizes)
number = torch.cat([torch.arange(k) for k in sizes.tolist()])
one, rows = torch.ones(3, dtype=torch.float64), lambda: torch.randn(n, 3, dtype=torch.float64)
system = System(rows(), idx, torch.zeros(3, 3, 3), torch.zeros(3, 3) > 0, idx, one, idx[:3])
masses, replicas = 1 + 20 * torch.rand(n, dtype=torch.float64), torch.tensor([3, 2**32 - 1, 0])
state = MDState(system, rows(), masses, None, one, rows(), one, one, replicas, number, None, 0, 0)
time, friction, compared = 0.3, 0.1, 0
kept = math.exp(-friction * time)
renewed = units.kB * (1 - kept * kept)
for fixed in (None, torch.rand(n) < 0.2):
    for step in (0, 2**40 + 3, torch.tensor(2**33 + 5)):
        start = state.replace(fixed=fixed, step=step, seed=2**32 - 1 if step else 1)
        if fixed is not None:
            start = start.replace(momenta=start.momenta * ~fixed.unsqueeze(1))
        half = splitting.drift(splitting.kick(start, time / 2), time / 2)
        for kelvin in ([300.0, 9000.0, 10.0], [300.0], None):
            bath = None if kelvin is None else torch.tensor(kelvin, dtype=torch.float64)
            if bath is None:
                expected = splitting.drift(splitting.kick(start, time / 2), time)
                found = gpu_fused_steps.moved(start, time, 1.0, 0.0, None)
            else:
                expected = splitting.thermalize(half, time, bath, friction)
                expected = splitting.drift(expected, time / 2)
                found = gpu_fused_steps.moved(start, time, kept, renewed, bath)
            for a, b in (
                (found.system.positions, expected.system.positions),
                (found.momenta, expected.momenta),
                (found.heat, expected.heat),
            ):
                assert (a - b).abs().amax() <= 1e-14 * b.abs().amax(), (kelvin, step, fixed)
                compared += 1
            assert torch.equal(found.heat, start.heat) == (bath is None)
print(compared)
"""


def compile_all(compile: Callable[..., None]) -> None:
    from attncalc.md import gpu_fused_steps

    kernel = gpu_fused_steps._kick_drift_thermalize_drift
    whole = {"system_idx", "atom_in_system", "replicas", "step"}
    types = {name: "*i64" if name in whole else "*fp64" for name in kernel.arg_names}
    types |= {"fixed": "*i8", "seed": "i64", "n_atoms": "i32", "temperature_stride": "i32"}
    for fixed in (True, False):
        for thermalizes in (True, False):
            flags = {"HAS_FIXED": fixed, "THERMALIZES": thermalizes}
            compile(kernel, types, **flags, BLOCK=gpu_fused_steps.ATOMS_PER_BLOCK)


def test_the_kernel_equals_the_elementary_operations(tmp_path: Path) -> None:
    assert interpreted(IN_THE_INTERPRETER, tmp_path) == str(2 * 3 * 3 * 3)


def test_it_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_for_a_gpu(compile_all, tmp_path, monkeypatch) == 4
