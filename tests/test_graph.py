"""The sign of an edge vector, the choice of one edge per pair, and the species table."""

import copy
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list as ase_neighbor_list

from attncalc.graph import (
    Edges,
    Graph,
    GraphArrays,
    GraphOfArrays,
    edge_vectors,
    one_per_pair,
    species_of,
    sum_over_system,
)
from attncalc.neighbors import matscipy_list
from attncalc.system import System


def sheared() -> Atoms:
    return Atoms(
        "HCO",
        positions=[[0.1, 0, 0], [1, 9, -1], [2, 1, 1.3]],
        cell=[[3, 0.2, 0], [0.9, 2.8, 0.3], [0, 0.7, 3.3]],
        pbc=True,
    )


def graph_of(vectors: torch.Tensor, edges: Edges, system: System) -> Graph:
    return Graph(
        vectors=vectors,
        receivers=edges.receivers,
        senders=edges.senders,
        edge_mask=torch.ones(edges.n_edges, dtype=torch.bool),
        pairs=one_per_pair(edges).nonzero().squeeze(1),
        species=torch.zeros(system.n_atoms, dtype=torch.int64),
        system_idx=system.system_idx,
        charge=system.charge,
        spin=system.spin,
    )


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), sheared()], ids=["molecule", "periodic"])
def test_vectors_are_those_of_ase(atoms):
    i, j, shifts, expected = ase_neighbor_list("ijSD", atoms, 3.0)
    edges = Edges(torch.tensor(i), torch.tensor(j), torch.tensor(shifts))
    vectors = edge_vectors(System.from_ase(atoms), edges)
    assert vectors.dtype == torch.float64
    np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-12)


def test_vectors_of_a_batch_are_those_of_its_members():
    members = [molecule("H2O"), sheared(), Atoms("H"), bulk("Cu")]
    system = System.from_ase(members)
    alone = [System.from_ase(atoms) for atoms in members]
    expected = torch.cat([edge_vectors(s, matscipy_list(s, 3.0)) for s in alone])
    torch.testing.assert_close(edge_vectors(system, matscipy_list(system, 3.0)), expected)


def test_a_caller_who_knows_about_images_is_believed():
    system = System.from_ase(sheared())
    edges = matscipy_list(system, 3.0)
    plain = edge_vectors(system, edges)
    assert torch.equal(edge_vectors(system, edges, has_images=True), plain)
    without = system.positions[edges.senders] - system.positions[edges.receivers]
    assert torch.equal(edge_vectors(system, edges, has_images=False), without)
    assert not torch.equal(plain, without)


@pytest.mark.parametrize("n_systems", [1, 2])
def test_vectors_are_differentiable_by_positions_and_cell(n_systems):
    system = System.from_ase([sheared()] * n_systems)
    edges = matscipy_list(system, 2.5)

    def vectors(positions, cell):
        return edge_vectors(replace(system, positions=positions, cell=cell), edges)

    inputs = (system.positions.clone().requires_grad_(), system.cell.clone().requires_grad_())
    assert torch.autograd.gradcheck(vectors, inputs)


@pytest.mark.parametrize(
    "atoms",
    [molecule("CH4"), sheared(), Atoms("H", cell=[1.5, 1.6, 1.7], pbc=True), Atoms("H")],
    ids=["molecule", "periodic", "self-images", "single"],
)
def test_one_edge_of_every_pair(atoms):
    edges = matscipy_list(System.from_ase(atoms), 3.0)
    rows = torch.cat((edges.receivers[:, None], edges.senders[:, None], edges.cell_shifts), 1)
    chosen = one_per_pair(edges)
    first = {tuple(row) for row in rows[chosen].tolist()}
    second = {tuple(row) for row in rows[~chosen].tolist()}
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in first} == second
    assert 2 * len(first) == edges.n_edges


def test_species_are_rows_of_the_table():
    rows = species_of(torch.tensor([8, 1, 6, 1]), (1, 6, 8))
    assert rows.dtype == torch.int64
    assert rows.tolist() == [2, 0, 1, 0]
    assert species_of(torch.tensor([8, 1]), (8, 1)).tolist() == [0, 1]


def test_species_that_are_not_in_the_table_are_named():
    with pytest.raises(ValueError) as error:
        species_of(torch.tensor([26, 1, 7, 26]), (1, 6, 8))
    assert str(error.value) == (
        "this model was not trained on N Fe; its elements are: H C O; "
        "`attncalc models` lists others"
    )


def test_counts_and_other_vectors():
    system = System.from_ase([molecule("H2O"), molecule("CO")])
    edges = matscipy_list(system, 3.0)
    graph = graph_of(edge_vectors(system, edges), edges, system)
    assert (graph.n_atoms, graph.n_edges, graph.n_systems) == (5, 8, 2)
    other = graph.with_vectors(2 * graph.vectors)
    assert torch.equal(other.vectors, 2 * graph.vectors)
    assert other.receivers is graph.receivers


def test_sum_over_system():
    system = System.from_ase([molecule("H2O"), Atoms("H"), molecule("CO")])
    edges = matscipy_list(system, 3.0)
    graph = graph_of(edge_vectors(system, edges), edges, system)
    sums = sum_over_system(torch.arange(12.0).reshape(6, 2), graph)
    assert sums.tolist() == [[6.0, 9.0], [6.0, 7.0], [18.0, 20.0]]


def plain_and_of_arrays() -> tuple[Graph, GraphOfArrays]:
    system = System.from_ase(sheared())
    edges = matscipy_list(system, 3.0)
    plain = graph_of(edge_vectors(system, edges), edges, system)
    names = ("species", "system_idx", "charge", "spin")
    return plain, GraphOfArrays.of(plain.arrays, **{name: getattr(plain, name) for name in names})


def test_arrays_of_a_graph_share_its_memory():
    graph, _ = plain_and_of_arrays()
    graph.vectors[0, 0] = 7
    assert graph.arrays.vectors[0, 0] == 7
    for name in GraphArrays._fields:
        np.testing.assert_array_equal(getattr(graph.arrays, name), getattr(graph, name).numpy())
    differentiable = graph.with_vectors(graph.vectors.clone().requires_grad_(True))
    np.testing.assert_array_equal(differentiable.arrays.vectors, graph.arrays.vectors)


@pytest.mark.parametrize(
    "passed_on",
    [
        lambda graph: graph,
        lambda graph: replace(graph),
        copy.deepcopy,
        lambda graph: pickle.loads(pickle.dumps(graph)),
    ],
)
def test_a_graph_of_arrays_has_the_tensors_of_the_plain_one(passed_on):
    plain, graph = plain_and_of_arrays()
    graph = passed_on(graph)
    assert (graph.n_atoms, graph.n_edges, graph.n_systems) == (3, plain.n_edges, 1)
    for field in fields(Graph):
        ours, theirs = getattr(graph, field.name), getattr(plain, field.name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=field.name)
        assert getattr(graph, field.name) is ours  # made once
    graph.vectors.mul_(2)
    np.testing.assert_array_equal(graph.arrays.vectors, graph.vectors.numpy())


def test_a_graph_of_arrays_has_nothing_else():
    _, graph = plain_and_of_arrays()
    with pytest.raises(AttributeError, match="no attribute 'edges'"):
        graph.edges  # noqa: B018


def test_arrays_follow_where_a_graph_of_arrays_gets_other_vectors():
    plain, graph = plain_and_of_arrays()
    other = graph.with_vectors(2 * plain.vectors)
    np.testing.assert_array_equal(other.arrays.vectors, 2 * plain.vectors.numpy())
    np.testing.assert_array_equal(graph.arrays.vectors, plain.vectors.numpy())
