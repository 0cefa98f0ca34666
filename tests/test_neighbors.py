"""Every backend against an independent brute force, and the errors that all of them share."""

import builtins
import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from attncalc.graph import Edges, edge_vectors, one_per_pair
from attncalc.neighbors import (
    by_device,
    matscipy_list,
    neighbor_list,
    nvalchemi_list,
    torch_list,
)
from attncalc.neighbors.nvalchemi_list import has_nvalchemi
from attncalc.neighbors.search import MIN_DISTANCE, bounding_cell, complete_cell
from attncalc.system import System

needs_nvalchemi = pytest.mark.skipif(
    not has_nvalchemi(), reason="needs nvalchemi-toolkit-ops (pip install 'attncalc[cuda]')"
)
BACKENDS = [
    pytest.param(matscipy_list, id="matscipy"),
    pytest.param(torch_list, id="torch"),
    pytest.param(nvalchemi_list, id="nvalchemi", marks=needs_nvalchemi),
]


def brute_force(atoms: Atoms, cutoff: float) -> set[tuple[int, ...]]:
    """(i, j, shift) of every pair closer than the cutoff, by trying every image that may matter."""
    cell, pbc = atoms.cell.array, atoms.pbc
    pair_vectors = atoms.positions[None] - atoms.positions[:, None]
    farthest = np.linalg.norm(pair_vectors, axis=2).max() + cutoff
    depth = np.zeros(3, dtype=int)
    if pbc.any():
        # |shift| <= |image vector| * |its dual vector|: rows of the pseudo-inverse's transpose
        duals = np.zeros((3, 3))
        duals[pbc] = np.linalg.pinv(cell[pbc]).T
        depth = np.ceil(farthest * np.linalg.norm(duals, axis=1)).astype(int)
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in depth))))
    used = np.where(pbc[:, None], cell, 0.0)
    distances = np.linalg.norm(pair_vectors[:, :, None] + (shifts @ used)[None, None], axis=3)
    found = np.argwhere(distances < cutoff)
    return {
        (int(i), int(j), *map(int, shifts[k])) for i, j, k in found if i != j or shifts[k].any()
    }


def as_rows(edges: Edges) -> list[tuple[int, ...]]:
    columns = torch.cat((edges.receivers[:, None], edges.senders[:, None], edges.cell_shifts), 1)
    return [tuple(row) for row in columns.tolist()]


def expected_rows(structures: list[Atoms], cutoff: float) -> list[tuple[int, ...]]:
    rows, first = [], 0
    for atoms in structures:
        rows += [(i + first, j + first, *s) for i, j, *s in brute_force(atoms, cutoff)]
        first += len(atoms)
    return sorted(rows)


@st.composite
def structures(draw: st.DrawFn, max_atoms: int = 6) -> Atoms:
    """Sheared and rotated cells down to 1.5 Å, every mix of pbc, atoms far outside the cell."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pbc = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    n_atoms = draw(st.integers(1, max_atoms))
    edge = draw(st.sampled_from([1.5, 3.0, 8.0]))
    lower = np.eye(3) + np.tril(random.uniform(-0.5, 0.5, (3, 3)), -1)
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    cell = edge * random.uniform(1.0, 1.5, 3)[:, None] * lower @ rotation
    if draw(st.booleans()):
        cell[~pbc] = 0.0
    spread = draw(st.sampled_from([1.0, 3.0]))
    positions = spread * random.uniform(-1, 1, (n_atoms, 3)) * max(edge, 4.0)
    return Atoms(numbers=[1] * n_atoms, positions=positions, cell=cell, pbc=pbc)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@settings(max_examples=60)
@given(batch=st.lists(structures(), min_size=1, max_size=3), cutoff=st.sampled_from([2.0, 4.3]))
def test_finds_what_brute_force_finds(backend, batch, cutoff):
    edges = backend(System.from_ase(batch), cutoff)
    assert as_rows(edges) == expected_rows(batch, cutoff)  # the order too


@needs_nvalchemi
@settings(max_examples=15)
@given(batch=st.lists(structures(), min_size=1, max_size=3), cutoff=st.sampled_from([2.0, 4.3]))
def test_nvalchemi_finds_what_brute_force_finds(batch, cutoff):
    assert as_rows(nvalchemi_list(System.from_ase(batch), cutoff)) == expected_rows(batch, cutoff)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_neighbors_than_nvalchemi_starts_with(backend):
    # 1.5 Å cubic cell: one atom has more images within 6 Å than the first guess of 64
    atoms = Atoms("H", cell=[1.5] * 3, pbc=True)
    edges = backend(System.from_ase(atoms), 6.1)
    assert edges.n_edges > 200
    assert as_rows(edges) == expected_rows([atoms], 6.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_water_box_in_which_bins_matter(backend):
    random = np.random.default_rng(3)
    atoms = Atoms("H90", positions=random.uniform(-5, 20, (90, 3)), cell=[12, 11, 10], pbc=True)
    atoms.positions[:, 2] *= 1.5
    assert as_rows(backend(System.from_ase(atoms), 3.0)) == expected_rows([atoms], 3.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pbc", [False, True])
def test_single_atom_without_edges(backend, pbc):
    edges = backend(System.from_ase(Atoms("He", cell=[9, 9, 9], pbc=pbc)), 4.0)
    assert edges.n_edges == 0
    assert edges.receivers.shape == edges.senders.shape == (0,)
    assert edges.cell_shifts.shape == (0, 3)
    for value in vars(edges).values():
        assert value.dtype == torch.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_member_of_a_batch_without_edges(backend):
    batch = [molecule("H2O"), Atoms("He"), molecule("CH4")]
    assert as_rows(backend(System.from_ase(batch), 4.0)) == expected_rows(batch, 4.0)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_fragments_that_flew_apart_need_no_memory_for_the_void(backend):
    # matscipy alone takes 4 GB for this
    atoms = Atoms("H4", positions=[[0, 0, 0], [1, 0, 0], [1e4, 1e4, 1e4], [1e4, 1e4, 1e4 + 1]])
    edges = backend(System.from_ase(atoms), 5.0)
    assert as_rows(edges) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0), (2, 3, 0, 0, 0), (3, 2, 0, 0, 0)]


def test_matscipy_counts_atoms_beyond_its_box(monkeypatch):
    module = matscipy_list.__globals__
    monkeypatch.setitem(module, "MAX_BINS_PER_DIRECTION", 2)
    random = np.random.default_rng(0)
    slab = Atoms("H80", positions=random.uniform(0, 25, (80, 3)), cell=[4, 4, 0], pbc=[1, 1, 0])
    cluster = Atoms("H80", positions=random.uniform(0, 20, (80, 3)))
    batch = [slab, cluster]
    assert as_rows(matscipy_list(System.from_ase(batch), 3.0)) == expected_rows(batch, 3.0)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_a_periodic_box_of_vacuum_needs_no_memory_for_it(backend):
    # matscipy alone takes 10 GB for this
    box = Atoms("H2", positions=[[-3e3, 0, 0], [1 - 3e3, 0, 0]], cell=[7e3] * 3, pbc=True)
    edges = backend(System.from_ase(box), 5.0)
    assert as_rows(edges) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]


@pytest.mark.parametrize("box", [None, [1e5] * 3])
def test_matscipy_gets_no_box_of_more_bins_than_fit_into_memory(box, monkeypatch):
    search, cells = matscipy_list.__globals__["neighbour_list"], []

    def watched(quantities, *, cell, **options):
        cells.append(cell)
        return search(quantities, cell=cell, **options)

    monkeypatch.setitem(matscipy_list.__globals__, "neighbour_list", watched)
    atoms = Atoms("H3", [[0, 0, 0], [1, 0, 0], [2e4] * 3], cell=box, pbc=box is not None)
    assert matscipy_list(System.from_ase(atoms), 5.0).n_edges == 2
    (cell,) = cells
    assert abs(np.linalg.det(cell)) < (64.1 * 5) ** 3


@pytest.mark.parametrize("by", [[0, 0, 0], [-0.5, -0.5, 0.2], [1500, 1500, -1500]])
def test_a_molecule_across_the_faces_of_a_large_box(by) -> None:
    molecules = [molecule(name) for name in ("CH3CH2OH", "H2O")]
    alone = System.from_ase(molecules)
    for atoms in molecules:
        atoms.set_cell([[3000, 0, 0], [500, 3000, 0], [0, 400, 3000]])
        atoms.pbc = True
        atoms.positions += by
        atoms.wrap()
        atoms.positions[::2] += 2 * atoms.cell[0] - atoms.cell[2]
    system = System.from_ase(molecules)
    ours, theirs = matscipy_list(system, 5.0), matscipy_list(alone, 5.0)
    assert torch.equal(ours.receivers, theirs.receivers)
    assert torch.equal(ours.senders, theirs.senders)
    vectors, expected = edge_vectors(system, ours), edge_vectors(alone, theirs)
    torch.testing.assert_close(vectors, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("gap", [0.7, 1.3, 1.9, 2.1])
def test_pairs_across_the_faces_of_a_long_box(monkeypatch, gap: float) -> None:
    monkeypatch.setitem(matscipy_list.__globals__, "MAX_BINS_PER_DIRECTION", 1)
    cell = np.array([[20, 0, 0], [7, 21, 0], [-6, 5, 22]])
    normal = np.cross(cell[0], cell[1]) / 420  # the pair is nearest through this face
    atoms = Atoms("H2", positions=[[0, 0, 0], cell[2] - gap * normal], cell=cell, pbc=True)
    expected = expected_rows([atoms], 2.0)
    assert len(expected) == (2 if gap < 2 else 0)
    assert as_rows(matscipy_list(System.from_ase(atoms), 2.0)) == expected


@settings(max_examples=60)
@given(batch=st.lists(structures(), min_size=1, max_size=3), cutoff=st.sampled_from([1.0, 2.0]))
def test_matscipy_list_of_boxes_that_are_partly_vacuum(batch, cutoff):
    """With short limits, boxes of random structures count as long, with and without vacuum."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(matscipy_list.__globals__, "MAX_BINS_PER_DIRECTION", 1)
        edges = matscipy_list(System.from_ase(batch), cutoff)
    assert as_rows(edges) == expected_rows(batch, cutoff)


@pytest.mark.parametrize("n", [1, 7, 10**6])
def test_matscipy_list_in_parts(monkeypatch, n):
    monkeypatch.setitem(matscipy_list.__globals__, "CANDIDATES_AT_ONCE", n)
    random = np.random.default_rng(0)
    atoms = Atoms("H20", positions=random.uniform(0, 9, (20, 3)), cell=[9, 9, 9], pbc=True)
    batch = [atoms, Atoms("H"), atoms]
    assert as_rows(matscipy_list(System.from_ase(batch), 3.0)) == expected_rows(batch, 3.0)


def test_torch_list_in_chunks(monkeypatch):
    monkeypatch.setitem(torch_list.__wrapped__.__globals__, "CANDIDATES_AT_ONCE", 100)
    random = np.random.default_rng(0)
    atoms = Atoms("H50", positions=random.uniform(0, 9, (50, 3)), cell=[9, 9, 9], pbc=True)
    assert as_rows(torch_list(System.from_ase(atoms), 3.0)) == expected_rows([atoms], 3.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shells_exactly_at_the_cutoff_come_in_whole_pairs(backend):
    # rounding must not keep (i, j, S) and drop (j, i, -S)
    atoms = bulk("Cu", a=3.61, cubic=True)
    atoms.rotate(17, (1, 2, 3), rotate_cell=True)
    cutoff = 3.61
    edges = backend(System.from_ase(atoms), cutoff)
    rows = set(as_rows(edges))
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in rows} == rows
    assert 2 * int(one_per_pair(edges).sum()) == edges.n_edges


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_closer_than_the_cutoff_only(backend):
    """By less than the margin of the search too; a pair at the cutoff is none."""
    for distance, n_edges in ((3.0 - 2e-7, 2), (3.0, 0)):
        atoms = Atoms("H2", [[0, 0, 0], [0, distance, 0]])
        assert backend(System.from_ase(atoms), 3.0).n_edges == n_edges


def test_backends_agree_bit_for_bit_at_the_cutoff():
    system = System.from_ase(bulk("Cu", a=3.61, cubic=True))
    assert as_rows(matscipy_list(system, 3.61)) == as_rows(torch_list(system, 3.61))


def test_neighbor_list_chooses_matscipy_on_the_cpu(monkeypatch):
    monkeypatch.setattr(by_device, "matscipy_list", lambda system, cutoff: "matscipy")
    assert neighbor_list(System.from_ase(molecule("H2O")), 3.0) == "matscipy"


@pytest.mark.parametrize(
    ("n_atoms", "kernels", "installed", "choice"),
    [
        (8192, True, True, "kernel"),
        (8193, True, True, "nvalchemi"),
        (8193, True, False, "torch"),
        (9, False, True, "nvalchemi"),
        (9, False, False, "torch"),
    ],
)
def test_neighbor_list_chooses_by_size_and_what_is_installed_on_cuda(
    monkeypatch, n_atoms, kernels, installed, choice
):
    class OnCuda:
        device = torch.device("cuda")
        n_systems = 1

    class Kernels:
        @staticmethod
        def triton_list(system, cutoff):
            return "kernel"

    OnCuda.n_atoms = n_atoms
    monkeypatch.setattr(by_device, "_kernels", lambda device: Kernels if kernels else None)
    monkeypatch.setattr(by_device, "has_nvalchemi", lambda: installed)
    monkeypatch.setattr(by_device, "nvalchemi_list", lambda system, cutoff: "nvalchemi")
    monkeypatch.setattr(by_device, "torch_list", lambda system, cutoff: "torch")
    assert neighbor_list(OnCuda(), 3.0) == choice


def test_all_pairs_are_tried_in_batches_of_small_structures():
    many = System.from_ase([Atoms("H")] * 9000)
    assert by_device.size_of_largest(many) == 1
    assert by_device.size_of_largest(System.from_ase([Atoms("H"), Atoms("H5"), Atoms("H2")])) == 5


def test_missing_nvalchemi_is_named_with_the_pip_line(monkeypatch):
    plain_import = builtins.__import__

    def without_nvalchemi(name, *args, **kwargs):
        if name.startswith("nvalchemiops"):
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_nvalchemi)
    with pytest.raises(ImportError, match=r"pip install 'attncalc\[cuda\]'"):
        nvalchemi_list(System.from_ase(molecule("H2O")), 3.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_cutoff_that_is_none(backend, cutoff):
    with pytest.raises(ValueError, match="cutoff must be a positive number of Å, got"):
        backend(System.from_ase(molecule("H2O")), cutoff)


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_atoms_on_top_of_each_other(backend):
    double = molecule("H2O")
    double.positions[2] = double.positions[1] + [0, 0, 4e-4]
    with pytest.raises(ValueError) as error:
        backend(System.from_ase([molecule("CH4"), double]), 4.0)
    assert str(error.value) == (
        "atom 1 (H) and atom 2 (H) are 4.0e-04 Å apart in structure 1: remove one of the two or "
        "move them apart (in a periodic cell one may be the image of the other)"
    )
    double.positions[2] = double.positions[1] + [0, 0, 1.01 * MIN_DISTANCE]
    assert backend(System.from_ase(double), 4.0).n_edges == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_an_atom_that_is_doubled_by_the_cell(backend):
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 5.0]], cell=[5, 5, 5], pbc=True)
    with pytest.raises(ValueError, match=r"atom 0 \(C\) and atom 1 \(O\) are 0\.0e\+00 Å apart: "):
        backend(System.from_ase(atoms), 3.0)


def test_names_an_atom_on_its_own_image():
    system = System.from_ase(Atoms("C", cell=[20, 20, 5], pbc=True))
    system.cell[0, 2, 2] = 5e-4
    with pytest.raises(ValueError, match=r"^atom 0 \(C\) and its own periodic image are 5.0e-04 Å"):
        matscipy_list(system, 0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_an_atom_that_is_nowhere(backend):
    system = System.from_ase([molecule("CH4"), molecule("H2O")])
    system.positions[6, 1] = float("nan")
    with pytest.raises(ValueError, match=r"position of atom 1 \(H\) in structure 1 is not finite"):
        backend(system, 4.0)


def test_names_a_cell_that_is_not_finite():
    system = System.from_ase([molecule("CH4"), molecule("H2O")])
    system.cell[1, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="the cell of structure 1 is not finite"):
        torch_list(system, 4.0)


def test_lists_do_not_touch_gradients():
    system = System.from_ase(bulk("Cu", cubic=True))
    system.positions.requires_grad_()
    system.cell.requires_grad_()
    for backend in (matscipy_list, torch_list):
        edges = backend(system, 3.0)
        assert edge_vectors(system, edges).requires_grad


@settings(max_examples=60)
@given(atoms=structures())
def test_complete_cell_keeps_periodic_vectors_and_adds_normals(atoms):
    system = System.from_ase(atoms)
    cell = complete_cell(system)[0].numpy()
    assert (cell[atoms.pbc] == atoms.cell.array[atoms.pbc]).all()
    normals = cell[~atoms.pbc]
    np.testing.assert_allclose(normals @ normals.T, np.eye(len(normals)), atol=1e-12)
    np.testing.assert_allclose(normals @ atoms.cell.array[atoms.pbc].T, 0, atol=1e-9)
    box, origin = bounding_cell(system)
    inside = np.linalg.solve(box[0].numpy().T, (atoms.positions - origin[0].numpy()).T).T
    assert ((inside > 0) & (inside < 1))[:, ~atoms.pbc].all()
