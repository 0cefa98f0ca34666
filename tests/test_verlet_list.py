"""`VerletList`: never misses an edge, is really reused, in compact and in padded form."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from attncalc.graph import Graph, edge_vectors
from attncalc.neighbors import VerletList, matscipy_list, reuse
from attncalc.system import System

ELEMENTS = (1, 6, 8, 29)


LOOPS = reuse.cpu_loops  # what it is where the fixture has put nothing in its place


@pytest.fixture(scope="module", autouse=True, params=["compiled", "plain"])
def pass_over_the_list(request):
    """Every test here with and without the compiled pass of `attncalc.neighbors.reuse`."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(reuse, "cpu_loops", lambda *_: None)
        yield


def sheared_crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.set_cell(atoms.cell.array @ [[1, 0.1, 0], [0, 1, 0.2], [0, 0, 1]], scale_atoms=True)
    return atoms


def tiny_cell() -> Atoms:
    return Atoms("CO", positions=[[0, 0, 0], [0, 0.2, 1.1]], cell=[2.6, 2.5, 2.9], pbc=True)


def wire() -> Atoms:
    return Atoms("HCO", [[0, 0, 0], [1.1, 9, 0], [-4, 0, 1.5]], cell=[0, 0, 3.2], pbc=[0, 0, 1])


CASES = {
    "molecule": lambda: [molecule("CH3CH2OH")],
    "crystal": lambda: [sheared_crystal()],
    "slab": lambda: [fcc111("Cu", (2, 2, 2), vacuum=4.0)],
    "wire": lambda: [wire()],
    "batch": lambda: [molecule("H2O"), tiny_cell(), wire(), Atoms("H"), sheared_crystal()],
}


def empty_list(skin: float = 0.5, cutoff: float = 3.0, **options) -> VerletList:
    return VerletList.create(cutoff=cutoff, skin=skin, species=ELEMENTS, **options)


def shaken(system: System, random: np.random.Generator, step: float, strain: float) -> System:
    """Atoms moved at random, cells deformed at random, atoms carried along."""
    deform = torch.from_numpy(random.normal(size=(system.n_systems, 3, 3)) * strain)
    deform = torch.eye(3, dtype=torch.float64) + deform
    positions = torch.einsum("nk,nkc->nc", system.positions, deform[system.system_idx])
    positions = positions + torch.from_numpy(random.normal(size=positions.shape) * step)
    return replace(system, positions=positions, cell=system.cell @ deform)


def assert_same_edges(graph: Graph, system: System, cutoff: float) -> None:
    """The graph's real edges are those of a list that is built from nothing."""
    fresh = matscipy_list(system, cutoff)
    real = graph.edge_mask
    assert torch.equal(graph.receivers[real], fresh.receivers)
    assert torch.equal(graph.senders[real], fresh.senders)
    torch.testing.assert_close(graph.vectors[real], edge_vectors(system, fresh))


def assert_whole_pairs(graph: Graph) -> None:
    """Every real edge is in `pairs` itself or by its reverse, never both."""
    ends = torch.stack((graph.receivers, graph.senders), 1)
    keys = [
        (*end, *(round(x, 6) + 0.0 for x in vector))
        for end, vector in zip(ends.tolist(), graph.vectors.tolist(), strict=True)
    ]
    real = {keys[e] for e in graph.edge_mask.nonzero().squeeze(1).tolist()}
    chosen = [keys[e] for e in graph.pairs.tolist() if graph.edge_mask[e]]
    reverse = {(j, i, *(0.0 - x for x in vector)) for i, j, *vector in chosen}
    assert len(chosen) == len(set(chosen)) == len(reverse)
    assert set(chosen) | reverse == real
    assert not set(chosen) & reverse


@pytest.mark.parametrize("capacity", [None, 64], ids=["compact", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_random_walk_equals_a_fresh_list_at_every_step(case, capacity):
    random = np.random.default_rng(5)
    system = System.from_ase(CASES[case]())
    verlet = empty_list(capacity=capacity)
    for _ in range(40):
        verlet, graph = verlet.update(system)
        assert_same_edges(graph, system, verlet.cutoff)
        assert_whole_pairs(graph)
        system = shaken(system, random, step=0.03, strain=0.002)
    assert verlet.n_updates == 40
    assert 1 < verlet.n_rebuilds < 25


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    case=st.sampled_from(sorted(CASES)),
    step=st.sampled_from([0.0, 0.05, 0.2]),
    strain=st.sampled_from([0.0, 0.02, 0.1]),
)
def test_a_list_that_claims_to_hold_has_every_edge(seed, case, step, strain):
    random = np.random.default_rng(seed)
    system = System.from_ase(CASES[case]())
    verlet, _ = empty_list(skin=0.8).update(shaken(system, random, 0.1, 0.02))
    later = shaken(verlet.listed.reference, random, step, strain)
    if not verlet.needs_rebuild(later):
        assert_same_edges(verlet.graph(later), later, verlet.cutoff)


@pytest.mark.parametrize("by_pairs", [False, True])
def test_two_atoms_may_use_up_the_skin_but_no_more(by_pairs):
    system = System.from_ase(Atoms("H2", [[0, 0, 0], [3.5 + 2e-6, 0, 0]]))
    verlet, graph = empty_list(skin=0.5, by_pairs=by_pairs).update(system)
    assert verlet.listed.edges.n_edges == 0
    for approach, rebuild in ((0.2499, False), (0.2501, True)):
        closer = replace(system, positions=system.positions * 1.0)
        closer.positions[0, 0] += approach
        closer.positions[1, 0] -= approach
        assert verlet.needs_rebuild(closer).item() is rebuild
        updated, graph = verlet.update(closer)
        assert updated.n_rebuilds == 1 + rebuild
        assert graph.n_edges == 2 * rebuild


def test_a_cell_that_shrinks_may_use_up_the_skin_but_no_more():
    # u = 0: only ||F - I|| (cutoff + skin) <= skin counts, however far from the origin atoms lie
    atoms = bulk("Cu", cubic=True).repeat(4)
    atoms.positions += 100.0
    system = System.from_ase(atoms)
    verlet, _ = empty_list(skin=0.5).update(system)
    largest = 0.5 / 3.5 / np.sqrt(3)
    for strain, rebuild in ((0.999 * largest, False), (1.001 * largest, True)):
        smaller = replace(
            system, positions=system.positions * (1 - strain), cell=system.cell * (1 - strain)
        )
        assert verlet.needs_rebuild(smaller).item() is rebuild


def test_one_system_of_a_batch_decides_for_all():
    system = System.from_ase([tiny_cell(), bulk("Cu"), molecule("H2O")])
    verlet, _ = empty_list(skin=0.5).update(system)
    for k in range(2):
        cell = system.cell.clone()
        cell[k] *= 0.9
        assert verlet.needs_rebuild(replace(system, cell=cell))
    open_cell = system.cell.clone()
    open_cell[2] = torch.eye(3)  # the cell of a molecule means nothing
    assert not verlet.needs_rebuild(replace(system, cell=open_cell))


def test_vacuum_direction_of_a_slab_means_nothing():
    slab = fcc111("Cu", (2, 2, 2), vacuum=4.0)
    system = System.from_ase(slab)
    verlet, _ = empty_list().update(system)
    slab.cell[2] *= 3
    assert not verlet.needs_rebuild(System.from_ase(slab))


def test_without_skin_only_a_system_at_rest_is_reused():
    system = System.from_ase(CASES["batch"]())
    verlet, _ = empty_list(skin=0.0).update(system)
    verlet, _ = verlet.update(replace(system, positions=system.positions.clone()))
    assert verlet.n_rebuilds == 1
    moved = system.positions.clone()
    moved[0, 0] += 1e-12
    verlet, _ = verlet.update(replace(system, positions=moved))
    assert verlet.n_rebuilds == 2
    verlet, _ = verlet.update(replace(system, positions=moved, cell=system.cell * (1 + 1e-12)))
    assert verlet.n_rebuilds == 3


def test_atoms_moved_in_place_are_noticed():
    system = System.from_ase(molecule("CH3CH2OH"))
    verlet, _ = empty_list().update(system)
    system.positions[0] += 0.4
    verlet, graph = verlet.update(system)
    assert verlet.n_rebuilds == 2
    assert_same_edges(graph, system, 3.0)


def test_elements_and_directions_that_change_in_place_are_noticed():
    system = System.from_ase(Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], cell=[4, 4, 2.6], pbc=[0, 0, 1]))
    verlet, _ = empty_list().update(system)
    for _ in range(2):  # the second time, tensors are known to be equal
        verlet, graph = verlet.update(system)
    assert [ELEMENTS[s] for s in graph.species] == [6, 8]
    system.atomic_numbers.copy_(system.atomic_numbers.flip(0))
    for _ in range(2):
        verlet, graph = verlet.update(system)
        assert [ELEMENTS[s] for s in graph.species] == [8, 6]
    assert graph.n_edges > 2
    system.pbc[0, 2] = False
    assert verlet.update(system)[1].n_edges == 2


def test_a_cell_that_changes_through_numpy_is_noticed():
    system = System.from_ase(CASES["crystal"]())
    verlet, _ = empty_list().update(system)
    for _ in range(2):  # the second time, tensors are known to be equal
        verlet, _ = verlet.update(system)
    system.cell.numpy()[:] *= 1.3
    verlet, graph = verlet.update(system)
    assert_same_edges(graph, system, 3.0)


@pytest.mark.parametrize("case", [name for name in CASES if name != "batch"])
def test_compiled_pass_gives_the_plain_graph(case, monkeypatch):
    monkeypatch.setattr(reuse, "cpu_loops", LOOPS)
    random = np.random.default_rng(2)
    verlet, _ = empty_list(skin=2.0).update(System.from_ase(CASES[case]()))
    for _ in range(5):
        system = shaken(verlet.listed.reference, random, step=0.1, strain=0.0)
        compiled = verlet._reused_graph(system, verlet.listed)
        with monkeypatch.context() as patch:
            patch.setattr(reuse, "cpu_loops", lambda *_: None)
            assert verlet._reused_graph(system, verlet.listed) is None
            updated, plain = verlet.update(system)
        assert updated.n_rebuilds == 1
        for name in [field.name for field in fields(Graph)]:
            ours, theirs = getattr(compiled, name), getattr(plain, name)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14, msg=name)
    cell = system.cell.clone()
    cell[0, 2, 2] += 1e-9
    changed = (
        {"cell": cell},
        {"pbc": ~system.pbc},
        {"atomic_numbers": system.atomic_numbers + 1},
        {"positions": system.positions.clone().requires_grad_(True)},
    )
    for other in changed:
        assert verlet._reused_graph(replace(system, **other), verlet.listed) is None, other


def test_a_compiler_that_fails_does_not_end_the_simulation(monkeypatch, caplog):
    from attncalc.neighbors import reuse_loop

    def fail(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(reuse_loop, "near_edges", fail)
    monkeypatch.setattr(reuse, "cpu_loops", LOOPS)
    LOOPS.cache_clear()
    try:
        system = System.from_ase(molecule("CH3CH2OH"))
        verlet, built = empty_list().update(system)
        for _ in range(2):
            verlet, graph = verlet.update(system)
        assert (verlet.n_updates, verlet.n_rebuilds) == (3, 1)
        torch.testing.assert_close(graph.vectors, built.vectors)
        assert caplog.text.count("does not run here (no compiler here)") == 1
    finally:
        LOOPS.cache_clear()


def test_wrapping_atoms_into_the_cell_mid_run():
    atoms = sheared_crystal()
    atoms.positions += 2.9
    verlet, _ = empty_list().update(System.from_ase(atoms))
    before = atoms.positions.copy()
    atoms.wrap()
    assert abs(atoms.positions - before).max() > 1
    verlet, graph = verlet.update(System.from_ase(atoms))
    assert_same_edges(graph, System.from_ase(atoms), 3.0)


def test_update_leaves_the_old_list_alone():
    system = System.from_ase(molecule("CH4"))
    start = empty_list()
    first, _ = start.update(system)
    second, _ = first.update(replace(system, positions=system.positions * 1.5))
    assert (start.n_updates, start.n_rebuilds, start.listed) == (0, 0, None)
    assert (first.n_updates, first.n_rebuilds) == (1, 1)
    assert (second.n_updates, second.n_rebuilds) == (2, 2)
    torch.testing.assert_close(first.listed.reference.positions, system.positions)


def test_other_pbc_atoms_or_split_build_a_new_list():
    # two atoms each, so that only `system_idx` or only `pbc` changes
    pair = Atoms("H2", [[0, 0, 0], [0, 0, 1.5]], cell=[4, 4, 4], pbc=[1, 1, 0])
    moved = pair.copy()
    moved.positions += [2, 0.5, 0]
    system = System.from_ase([pair, moved])
    verlet, _ = empty_list().update(system)
    assert not verlet.needs_rebuild(system)
    changes = (
        replace(system, pbc=~system.pbc),
        replace(system, system_idx=torch.tensor([0, 0, 0, 1])),
        System.from_ase([pair, pair, pair]),
        System.from_ase(pair),
        System.from_ase([molecule("H2O"), Atoms("H")]),
        System.from_ase([Atoms("H")] * 4),
    )
    for changed in changes:
        assert verlet.needs_rebuild(changed)
        updated, graph = verlet.update(replace(changed, positions=changed.positions + 0.0))
        assert updated.n_rebuilds == 2
        assert_same_edges(graph, changed, 3.0)


def test_another_device_needs_a_new_list():
    system = System.from_ase(molecule("H2O"))
    verlet, _ = empty_list().update(system)
    answer = verlet.needs_rebuild(system.to("meta"))
    # the answer of the meta device has no value; an answer at all means that nothing was compared
    assert answer.device.type == "meta"
    assert answer.dtype == torch.bool


def on_meta(value):
    """The same object with its tensors on the meta device, where nothing can be read back."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, tuple):
        return tuple(map(on_meta, value))
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: on_meta(getattr(value, name)) for name in names})
    return value


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_an_accelerator_waits_for_nothing(case):
    system = System.from_ase(CASES[case]())
    verlet, expected = empty_list(capacity=64).update(system)
    elsewhere = on_meta(verlet)
    # a read-back (`if`, `.item()`, `nonzero`) raises on the meta device
    assert elsewhere.needs_rebuild(on_meta(system)).shape == ()
    graph = elsewhere.graph(on_meta(system))
    assert graph.vectors.shape == expected.vectors.shape


def test_other_elements_at_the_same_places():
    system = System.from_ase(molecule("CO"))
    verlet, graph = empty_list().update(system)
    assert [ELEMENTS[s] for s in graph.species] == [8, 6]
    swapped = replace(system, atomic_numbers=system.atomic_numbers.flip(0))
    verlet, graph = verlet.update(swapped)
    assert [ELEMENTS[s] for s in graph.species] == [6, 8]
    verlet, graph = verlet.update(swapped)
    assert [ELEMENTS[s] for s in graph.species] == [6, 8]
    verlet, graph = verlet.update(system)
    assert [ELEMENTS[s] for s in graph.species] == [8, 6]


@pytest.mark.parametrize("when", ["first", "later"])
def test_unknown_element_is_refused(when):
    verlet = empty_list()
    system = System.from_ase(molecule("CO"))
    if when == "later":
        verlet, _ = verlet.update(system)
    with pytest.raises(
        ValueError, match="this model was not trained on N; its elements are: H C O Cu"
    ):
        verlet.update(replace(system, atomic_numbers=torch.tensor([7, 6])))


@pytest.mark.parametrize("capacity", [None, 64])
def test_charge_and_spin_are_those_of_this_update(capacity):
    system = System.from_ase(molecule("H2O"))
    verlet, _ = empty_list(capacity=capacity).update(system)
    ion = replace(system, charge=torch.tensor([-1.0]), spin=torch.tensor([2]))
    verlet, graph = verlet.update(ion)
    assert graph.charge is ion.charge
    assert graph.spin is ion.spin
    assert verlet.n_rebuilds == 1


@pytest.mark.parametrize("case", CASES)
def test_padded_form_has_the_edges_of_the_compact_one(case):
    random = np.random.default_rng(1)
    system = System.from_ase(CASES[case]())
    compact, padded = empty_list(), empty_list(capacity=1)
    for _ in range(4):
        compact, short = compact.update(system)
        padded, long = padded.update(system)
        real = long.edge_mask
        assert short.edge_mask.all()
        for name in ("vectors", "receivers", "senders"):
            assert torch.equal(getattr(long, name)[real], getattr(short, name))
        assert torch.equal(long.vectors[long.pairs][real[long.pairs]], short.vectors[short.pairs])
        assert 2 * len(short.pairs) == short.n_edges
        system = shaken(system, random, step=0.05, strain=0.002)
    assert compact.capacity is None


def test_layout_of_the_padding():
    system = System.from_ase(CASES["batch"]())
    verlet, graph = empty_list(capacity=1).update(system)
    n_listed = matscipy_list(system, 3.5).n_edges
    assert graph.n_edges == verlet.capacity >= n_listed + 1
    assert verlet.capacity % 64 == 0
    assert (graph.receivers.diff() >= 0).all()
    assert (graph.receivers[n_listed:] == system.n_atoms - 1).all()
    assert (graph.senders[n_listed:] == system.n_atoms - 1).all()
    lengths = graph.vectors.norm(dim=1)
    assert (lengths[n_listed:] == 7.0).all()
    assert torch.equal(graph.edge_mask, lengths < 3.0)
    assert graph.pairs.shape == (verlet.capacity // 2,)
    assert (graph.pairs[n_listed // 2 :] == verlet.capacity - 1).all()


def test_places_of_the_edges_of_every_atom():
    system = System.from_ase(CASES["batch"]())
    _, graph = empty_list(capacity=1).update(system)
    n_listed = matscipy_list(system, 3.5).n_edges
    rows, by_sender, sent_rows = graph.order
    assert sorted(by_sender.tolist()) == list(range(graph.n_edges))
    for atom in range(system.n_atoms):
        received = (graph.receivers[:n_listed] == atom).nonzero().flatten().tolist()
        assert list(range(rows[atom], rows[atom + 1])) == received
        sent = (graph.senders[:n_listed] == atom).nonzero().flatten().tolist()
        assert by_sender[sent_rows[atom] : sent_rows[atom + 1]].tolist() == sent
    assert rows[-1] == sent_rows[-1] == n_listed


def test_a_list_in_the_arrays_of_another():
    """Recorded steps that read these arrays then see the new structure, and when its list ends."""
    system = System.from_ase(Atoms("CO", [[0, 0, 0], [0, 0.2, 1.1]], cell=[2.8] * 3, pbc=True))
    other = replace(
        system,
        atomic_numbers=system.atomic_numbers.flip(0),
        positions=1.3 * system.positions,
        cell=1.3 * system.cell,
    )
    old, before = empty_list(capacity=2048).update(system)
    new, expected = empty_list(capacity=2048).update(other)
    found = new.in_the_arrays_of(old)
    assert found.listed is old.listed
    graph = found.graph(other)
    assert graph.species.data_ptr() == before.species.data_ptr()
    for name in ("species", "receivers", "senders", "edge_mask", "pairs", "vectors"):
        assert torch.equal(getattr(graph, name), getattr(expected, name)), name
    assert all(map(torch.equal, graph.order, expected.order))
    largest = 0.5 / 3.5 / np.sqrt(3)
    for strain, rebuild in ((0.99 * largest, False), (1.01 * largest, True)):
        smaller = replace(
            other, positions=other.positions * (1 - strain), cell=other.cell * (1 - strain)
        )
        assert found.needs_rebuild(smaller).item() is rebuild
    for one in (
        empty_list(capacity=1024).update(other)[0],
        empty_list(capacity=2048, skin=0.4).update(other)[0],
        empty_list(capacity=2048).update(replace(other, pbc=~other.pbc))[0],
    ):
        assert one.in_the_arrays_of(old) is one


def test_a_list_without_edges_is_all_padding():
    system = System.from_ase(Atoms("H"))
    _, graph = empty_list(capacity=64).update(system)
    assert graph.n_edges == 64
    assert not graph.edge_mask.any()
    _, graph = empty_list().update(system)
    assert graph.n_edges == len(graph.pairs) == 0


def test_capacity_grows_without_losing_an_edge_and_never_shrinks():
    system = System.from_ase(sheared_crystal())
    wide = replace(system, positions=system.positions * 3, cell=system.cell * 3)
    verlet, graph = empty_list(capacity=64).update(wide)
    assert verlet.capacity == 64
    verlet, graph = verlet.update(system)
    grown = verlet.capacity
    n_listed = matscipy_list(system, 3.5).n_edges
    assert grown >= 1.25 * n_listed > 64
    assert_same_edges(graph, system, 3.0)
    verlet, graph = verlet.update(wide)
    assert verlet.capacity == graph.n_edges == grown
    assert_same_edges(graph, wide, 3.0)


@pytest.mark.parametrize(("n_atoms", "capacity"), [(8, 64), (9, 128)])
def test_one_padding_edge_always_remains(n_atoms, capacity):
    # all-to-all: 8 atoms have 56 edges; 9 have 72, more than the 64 there are
    positions = np.random.default_rng(0).uniform(0, 1, (n_atoms, 3))
    verlet, graph = empty_list(capacity=64).update(System.from_ase(Atoms(f"H{n_atoms}", positions)))
    assert graph.n_edges == verlet.capacity == capacity
    assert not graph.edge_mask[-1]


def test_capacity_that_is_filled_to_the_last_edge_grows():
    # 64 edges are 32 pairs of atoms far from each other: no room for the padding edge
    positions = np.array([[10.0 * k, 0, z] for k in range(32) for z in (0, 1)])
    verlet, graph = empty_list(capacity=64).update(System.from_ase(Atoms("H64", positions)))
    assert verlet.capacity == 128
    assert int(graph.edge_mask.sum()) == 64


@pytest.mark.parametrize("capacity", [None, 64], ids=["compact", "padded"])
@pytest.mark.parametrize("case", ["molecule", "wire", "batch"])
def test_vectors_are_differentiable_by_positions_and_cell(case, capacity):
    system = System.from_ase(CASES[case]())
    verlet, _ = empty_list(capacity=capacity).update(system)
    positions = (system.positions + 0.01).requires_grad_()
    cell = (system.cell * 1.001).requires_grad_()
    updated, graph = verlet.update(replace(system, positions=positions, cell=cell))
    assert updated.n_rebuilds == 1
    assert graph.vectors.dtype == torch.float64
    # singular at length 0, over padding too: nothing may become NaN there
    (1 / graph.vectors.norm(dim=1)).sum().backward()
    assert positions.grad.isfinite().all()
    # against a plain gather from the fresh list
    fresh = matscipy_list(system, 3.0)
    weight = torch.randn(graph.n_edges, 3, dtype=torch.float64)
    gradient = torch.autograd.grad(
        (verlet.graph(replace(system, positions=positions, cell=cell)).vectors * weight).sum(),
        (positions, cell),
        allow_unused=True,
    )
    forward = torch.zeros_like(positions).index_add(0, graph.senders, weight)
    expected = forward.index_add(0, graph.receivers, -weight)
    torch.testing.assert_close(gradient[0], expected)
    if case != "molecule":
        shifts = fresh.cell_shifts.double()
        real = weight[graph.edge_mask]
        by_edge = shifts[:, :, None] * real[:, None, :]
        expected = torch.zeros_like(cell).index_add(0, system.system_idx[fresh.receivers], by_edge)
        if capacity is None:  # padded form also sums over the skin
            torch.testing.assert_close(gradient[1], expected)


@pytest.mark.parametrize("capacity", [None, 64])
def test_arrays_are_kept_row_after_row(capacity):
    """Kernels read them so, however a system has them."""
    system = System.from_ase(sheared_crystal())
    columns = {name: getattr(system, name).mT.contiguous().mT for name in ("positions", "cell")}
    assert not any(tensor.is_contiguous() for tensor in columns.values())
    verlet, _ = empty_list(capacity=capacity).update(replace(system, **columns))
    assert all(tensor.is_contiguous() for tensor in vars(verlet.listed.reference).values())
    assert not verlet.needs_rebuild(system)


def test_displacement_test_keeps_no_gradient():
    system = System.from_ase(sheared_crystal())
    verlet, _ = empty_list().update(system)
    system.positions.requires_grad_()
    system.cell.requires_grad_()
    verlet, _ = verlet.update(system)
    assert not verlet.needs_rebuild(system).requires_grad
    verlet, _ = empty_list().update(system)
    assert not verlet.listed.reference.positions.requires_grad
    assert not verlet.listed.inverse_cell.requires_grad


def test_atoms_on_top_of_each_other_are_noticed_on_reuse():
    atoms = Atoms("HCO", [[0, 0, 0], [0, 0, 0.1], [0, 2, 0]])
    verlet, _ = empty_list().update(System.from_ase(atoms))
    padded, _ = empty_list(capacity=64).update(System.from_ase(atoms))
    atoms.positions[1, 2] = 1e-4
    with pytest.raises(ValueError, match=r"^atom 0 \(H\) and atom 1 \(C\) are 1.0e-04 Å apart: "):
        verlet.update(System.from_ase(atoms))
    # as documented, the padded form looks only when it builds
    assert padded.update(System.from_ase(atoms))[0].n_rebuilds == 1


@pytest.mark.parametrize("periodic", [False, True])
def test_a_simulation_that_explodes_is_named(periodic):
    atoms = molecule("H2O", cell=[9, 9, 9], pbc=periodic)
    system = System.from_ase(atoms)
    verlet, _ = empty_list().update(system)
    system.positions[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the position of atom 1 \(H\) is not finite: .*exploded"):
        verlet.update(system)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be a positive number of Å, got 0.0"),
        ({"cutoff": float("inf")}, "cutoff must be a positive number of Å, got inf"),
        ({"skin": -0.1}, "skin must be a number of Å >= 0, got -0.1"),
        ({"skin": float("nan")}, "skin must be a number of Å >= 0, got nan"),
        ({"capacity": 0}, "capacity must be a number of edges >= 1, got 0"),
        ({"species": ()}, "species must name at least one atomic number"),
    ],
)
def test_create_refuses(options, message):
    with pytest.raises(ValueError) as error:
        VerletList.create(**{"cutoff": 4.0, "skin": 0.5, "species": (1,), **options})
    assert str(error.value) == message


def test_graph_before_the_first_update_is_refused():
    system = System.from_ase(molecule("H2O"))
    with pytest.raises(ValueError, match=r"has not seen a system yet: call update\(system\) first"):
        empty_list().graph(system)
    assert empty_list().needs_rebuild(system)
