"""Kernels of neighbour lists in Triton's interpreter: the tensor operations' numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from in_triton import compiled_for_a_gpu, interpreted

pytest.importorskip("triton")

IN_THE_INTERPRETER = """
from dataclasses import replace
import torch
from contract import ethanol
from attncalc.neighbors import VerletList, gpu_padded
from attncalc.system import System

crystal, slab = ethanol(), ethanol()
for atoms, pbc in ((crystal, True), (slab, [True, False, True])):
    atoms.set_cell([[5.6, 0.2, 0.0], [0.9, 5.1, 0.0], [-0.4, 0.7, 4.9]])
    atoms.pbc = pbc
random = torch.Generator().manual_seed(0)
answers = set()
for structures in ([ethanol()], [crystal], [ethanol(), ethanol()], [crystal, slab]):
    system = System.from_ase(structures)
    options = {"species": (1, 6, 8), "capacity": 64}
    verlet, _ = VerletList.create(cutoff=4.0, skin=0.4, **options).update(system)
    listed = verlet.listed
    assert listed.has_images == listed.is_periodic == bool(system.pbc.any())

    def stale(now):
        return gpu_padded.stale(
            now,
            listed.reference,
            listed.inverse_cell,
            is_periodic=listed.is_periodic,
            cutoff=verlet.cutoff,
            skin=verlet.skin,
        )

    trials = [(move, 0.0, 0.0) for move in (0.0, 0.03, 0.06, 0.1)]
    trials += [(0.03, 1e-3, 0.0), (0.06, 1e-3, 0.0), (0.0, 0.02, 0.0), (0.03, 0.0, torch.nan)]
    for move, strain, broken in trials:
        noise = torch.randn(system.positions.shape, generator=random, dtype=torch.float64)
        noise[3, 1] += broken
        now = replace(system, positions=system.positions + move * noise)
        now = replace(now, cell=system.cell * (1 + strain))
        expected = verlet.graph(now)
        vectors, edge_mask = gpu_padded.edges(
            now,
            listed.edges,
            listed.padding.vectors,
            has_images=listed.has_images,
            cutoff=verlet.cutoff,
        )
        assert torch.equal(edge_mask, expected.edge_mask)
        assert torch.equal(vectors.isnan(), expected.vectors.isnan())
        assert (vectors - expected.vectors).nan_to_num().abs().amax() < 1e-14
        found = bool(stale(now))
        assert found == bool(verlet.needs_rebuild(now)), (move, strain, broken)
        answers.add((bool(system.pbc.any()), found))
    assert not stale(system)
    assert stale(replace(system, pbc=~system.pbc))
    if len(structures) > 1:
        assert stale(replace(system, system_idx=system.system_idx * 0))
print(sorted(answers))
"""

SEARCH = """
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from contract import ethanol
from test_cuda import PERIODIC, assert_lists_of_random_cells
from attncalc.graph import one_per_pair
from attncalc.neighbors import gpu_list, matscipy_list
from attncalc.neighbors.gpu_list import triton_list
from attncalc.system import System

assert_lists_of_random_cells("cpu", triton_list, 1.9, PERIODIC[:3])  # the interpreter is slow

many = bulk("Cu", cubic=True) * (1, 2, 2)  # more atoms than a block has
many.rattle(0.1, seed=0)
far = ethanol()
far.positions += 1e4
sheet = Atoms("CO", [[0, 0, 0], [1.1, 0.2, 4.0]], cell=[[2.2, 0.3, 0], [-0.5, 2.4, 0], [0, 0, 9]])
sheet.pbc = [True, True, False]
wire = Atoms("H3", [[0, 0, 0], [0.3, 0.5, 5.2], [4, 4, 1]], cell=[9, 9, 2.0], pbc=[0, 0, 1])
moved = bulk("Cu", cubic=True)
moved.positions += 7.3 * moved.cell[0] - 2.6 * moved.cell[2]
for block, structures in (
    (8, [many]),
    (128, [far, Atoms("H"), many, moved]),
    (128, [Atoms("H")]),
    (128, [bulk("Cu")]),
    (4, [sheet, wire, sheet]),
):
    gpu_list.BLOCK = block
    system = System.from_ase(structures)
    found, expected = triton_list(system, 2.7), matscipy_list(system, 2.7)
    assert expected.n_edges > 0 or len(structures[0]) == 1
    for name in ("receivers", "senders", "cell_shifts"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name

shells = bulk("Cu", a=3.61, cubic=True)
shells.rotate(17, (1, 2, 3), rotate_cell=True)
edges = triton_list(System.from_ase(shells), 3.61)
assert 2 * int(one_per_pair(edges).sum()) == edges.n_edges > 0

for fault, words in ((0.0, "atom 1 (C) and atom 2 (O) are 0.0e+00 Å apart"), (np.nan, "is not f")):
    broken = ethanol()
    broken.positions[2] = broken.positions[1] + fault
    try:
        triton_list(System.from_ase([ethanol(), broken]), 4.0)
    except ValueError as error:
        assert words in str(error) and "structure 1" in str(error), error
    else:
        raise AssertionError(fault)
print("equal")
"""


def compile_all(compile: Callable[..., None]) -> None:
    from attncalc.neighbors import gpu_list, gpu_padded

    def types(kernel, whole):
        return {name: "*i64" if name in whole else "*fp64" for name in kernel.arg_names}

    indices = {"system_idx", "old_system_idx", "receivers", "senders", "cell_shifts"}
    for chosen in (True, False):
        edges, stale = gpu_padded._edges, gpu_padded._stale
        compile(
            edges,
            types(edges, indices) | {"edge_mask": "*i8", "n_edges": "i32"},
            HAS_IMAGES=chosen,
            BLOCK=gpu_padded.EDGES_PER_BLOCK,
        )
        bits = dict.fromkeys(("pbc", "old_pbc", "stale"), "*i8")
        compile(
            stale,
            types(stale, indices) | bits | {"n_atoms": "i32"},
            IS_PERIODIC=chosen,
            BLOCK=gpu_padded.ATOMS_PER_BLOCK,
        )
        search = gpu_list._search
        whole = {"system_idx", "first_atoms", "starts", "receivers", "senders", "cell_shifts"}
        short = dict.fromkeys(("n_shifts", "counts"), "*i32")
        compile(search, types(search, whole) | short, STORES=chosen, B=gpu_list.BLOCK)


def test_the_kernels_are_the_tensor_operations(tmp_path: Path) -> None:
    answers = [(False, False), (False, True), (True, False), (True, True)]
    assert interpreted(IN_THE_INTERPRETER, tmp_path) == str(answers)


def test_all_pairs_are_those_of_the_cpu(tmp_path: Path) -> None:
    assert interpreted(SEARCH, tmp_path) == "equal"


def test_they_compile_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_for_a_gpu(compile_all, tmp_path, monkeypatch) == 6
