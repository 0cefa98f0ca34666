"""Compiles every kernel of one evaluation as it is launched for published sizes, without a GPU.

    python compiling.py 90      # compute capability 9.0

prints one line of JSON per launch that needs a compilation of its own, and one with the launches.
"""

from __future__ import annotations

import collections
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from ase.build import molecule
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from attncalc.kernels.equiformer_gpu import block_steps, edge_steps, room
from attncalc.kernels.equiformer_gpu.engine import Engine
from attncalc.neighbors import VerletList
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.physics.zbl import COULOMB_CONSTANT, SWITCH_OFF, ZBLConfig, ZBLRepulsion
from attncalc.system import System

SPECIES = (1, 6, 8)
PUBLISHED = {"cutoff_function": "none", "paths": "all"}
NETWORKS: dict[str, dict[str, Any]] = {
    "published, lmax 2": PUBLISHED,
    "ours, lmax 2": {},
    "published, lmax 3": {"channels": (128, 64, 64, 32), **PUBLISHED},
    "linear, lmax 2": {"attention": "linear", **PUBLISHED},
}
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
# of PyTorch's operators these launch nothing
SILENT = ("empty", "detach", "unbind", "slice", "select", "split", "alias", "view")


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators that launch kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.").split(".")[0]
        if not name.startswith(SILENT):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def launches(
    options: dict[str, Any], programs: room.Programs
) -> tuple[list[tuple[Any, dict[str, Any]]], dict[str, int]]:
    """Kernels with all their arguments in the order of an evaluation, none of them run."""
    torch.manual_seed(0)
    network = Equiformer(EquiformerConfig(5.0, 15.58, **options), len(SPECIES))
    numbers = torch.ones(len(SPECIES), dtype=torch.float64)
    term = ZBLRepulsion(ZBLConfig(cutoff=5.0), SPECIES)
    constants = (COULOMB_CONSTANT, SWITCH_OFF)
    engine = Engine(network, numbers, numbers, 0.5, term, constants, programs=programs)
    verlet = VerletList.create(cutoff=5.0, skin=1.0, species=SPECIES, capacity=64)
    graph = verlet.update(System.from_ase(molecule("CH3CH2OH")))[1]
    found = []

    def note(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        del grid
        found.append((kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | constants))

    room.launch = edge_steps.launch = block_steps.launch = note
    with Operators() as operators:
        engine(graph)
    return found, dict(operators.counts)


def source_of(kernel: Any, given: dict[str, Any]) -> Any:
    """What Triton would compile for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for k, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (not isinstance(value, Tensor) and value == 1 and special):
            signature[parameter.name], constants[k,] = "constexpr", value
            continue
        divisible = value.data_ptr() if isinstance(value, Tensor) else value
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
        if divisible % 16 == 0 and special:
            attributes[k,] = [["tt.divisibility", 16]]
    return triton.compiler.ASTSource(kernel, signature, constants, attributes)


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Per thread: registers, and bytes of the stack, which hold what does not fit into them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return int(registers), int(stack)


def compiled(capability: int) -> Iterator[dict[str, Any]]:
    """One entry per compilation, and per network how often what is launched."""
    seen = set()
    for (name, options), tile in itertools.product(NETWORKS.items(), room.PROGRAMS.tiles):
        programs = room.PROGRAMS._replace(tiles=(tile._replace(least=0),))
        found, operators = launches(options, programs)
        counts = collections.Counter(kernel.__name__ for kernel, _ in found)
        yield {"network": name, "launches": dict(counts), "operators": operators}
        for kernel, given in found:
            source, warps = source_of(kernel, given), given["num_warps"]
            constants = {kernel.arg_names[k]: value for (k,), value in source.constants.items()}
            key = str((kernel.__name__, source.signature, constants, source.attrs, warps))
            if key in seen:
                continue
            seen.add(key)
            target = GPUTarget("cuda", capability, 32)
            made_for = {"num_warps": warps, "enable_fp_fusion": True}
            result = triton.compile(source, target=target, options=made_for)
            registers, stack = registers_and_stack(result.asm["cubin"])
            yield {
                "network": name,
                "kernel": kernel.__name__,
                "constants": constants,
                "warps": warps,
                "registers": registers,
                "stack": stack,
                "shared": result.metadata.shared,
                "tensor cores": "mma" in result.asm["ptx"],
            }


if __name__ == "__main__":
    for line in compiled(int(sys.argv[1])):
        print(json.dumps(line), flush=True)
