"""Sums over edges chunk by chunk: the same numbers, derivatives and second derivatives."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attncalc.ops import segment_sum
from attncalc.recompute import Chunk, chunks_of, sum_in_chunks

RECEIVERS = torch.tensor([0, 0, 0, 2, 2, 3, 5, 5, 5, 5, 6])
SENDERS = torch.tensor([1, 2, 6, 0, 3, 5, 4, 0, 0, 6, 5])
MASK = torch.tensor([True] * 9 + [False, True])
N_ATOMS = 8  # two of them without edges, one at the end


def on_edges(sent, targets, data, weights, receivers, mask) -> Tensor:
    """Something that is nowhere linear, with a softmax over the edges of each receiver."""
    lengths, directions = data
    matrix, bias = weights
    message = torch.tanh((sent + targets[receivers]) @ matrix + bias * lengths)
    e = torch.exp(message.sum(1)) * mask
    share = e / (1e-3 + segment_sum(e, receivers, len(targets)))[receivers]
    return segment_sum(share.unsqueeze(1) * message * directions, receivers, len(targets))


def inputs() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(N_ATOMS, 3), (N_ATOMS, 3), (11, 1), (11, 2), (3, 2), (2,)]
    return [
        torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_(True)
        for shape in shapes
    ]


def at_once(sources, targets, lengths, directions, *weights) -> Tensor:
    data = (lengths, directions)
    return on_edges(sources[SENDERS], targets, data, weights, RECEIVERS, MASK)


def in_chunks(most: int):
    chunks = chunks_of(RECEIVERS, N_ATOMS, most)

    def run(sources, targets, lengths, directions, *weights) -> Tensor:
        edges, data = (RECEIVERS, SENDERS, MASK), (lengths, directions)
        return sum_in_chunks(on_edges, chunks, edges, sources, targets, data, weights)

    return run


def test_chunks_are_whole_receivers() -> None:
    assert chunks_of(RECEIVERS, N_ATOMS, 5) == [
        Chunk(0, 3, 0, 5),
        Chunk(3, 6, 5, 10),
        Chunk(6, 8, 10, 11),
    ]
    single = chunks_of(RECEIVERS, N_ATOMS, 1)
    assert [c.last_edge - c.first_edge for c in single if c.last_edge > c.first_edge] == [
        *(3, 2, 1, 4, 1)
    ], "an atom with more edges than a chunk has its own"
    for chunks in (single, chunks_of(RECEIVERS, N_ATOMS, 100)):
        assert (chunks[0].first, chunks[-1].last, chunks[-1].last_edge) == (0, N_ATOMS, 11)
        for one, after in pairwise(chunks):
            assert (one.last, one.last_edge) == (after.first, after.first_edge)
    empty = chunks_of(torch.zeros(0, dtype=torch.int64), 1, 5)
    assert empty == [Chunk(0, 1, 0, 0)]


@pytest.mark.parametrize("most", [1, 5, 100])
def test_values_and_derivatives(most: int) -> None:
    tensors = inputs()
    expected, actual = at_once(*tensors), in_chunks(most)(*tensors)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    outer = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    theirs = torch.autograd.grad(expected, tensors, outer, create_graph=True)
    ours = torch.autograd.grad(actual, tensors, outer, create_graph=True)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    # as a training step has it: a function of some first derivatives, by everything
    for used in ([2, 3], [0, 2, 4], range(6)):
        square = [sum((part[k] ** 2).sum() for k in used) for part in (ours, theirs)]
        second = [torch.autograd.grad(s, tensors, retain_graph=True) for s in square]
        for one, other in zip(*second, strict=True):
            assert other.abs().max() > 0.01
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_numerical_derivatives() -> None:
    assert torch.autograd.gradcheck(in_chunks(4), inputs())
    assert torch.autograd.gradgradcheck(in_chunks(4), inputs())


def test_only_what_is_asked_for() -> None:
    tensors = [t.detach() for t in inputs()]
    tensors[3].requires_grad_(True)
    found = torch.autograd.grad(in_chunks(4)(*tensors).sum(), [tensors[3]])
    expected = torch.autograd.grad(at_once(*tensors).sum(), [tensors[3]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
