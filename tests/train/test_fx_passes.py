"""Rewritten traces give the same numbers, without what they are rewritten for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from attncalc.train.fx_passes import DECOMPOSITIONS, TINY, simplify, tiny_products

aten = torch.ops.aten
PADDED = (aten.slice_backward.default, aten.select_backward.default)


def simplified(function: Callable[..., Tensor], *example: Tensor) -> torch.fx.GraphModule:
    graph = make_fx(function, decomposition_table=DECOMPOSITIONS, tracing_mode="symbolic")(*example)
    simplify(graph)
    return graph


def count(graph: torch.fx.GraphModule, *targets: object) -> int:
    return sum(node.target in targets for node in graph.graph.nodes)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def in_slice(values: Tensor, width: int, start: int) -> Tensor:
    """[n, k] as columns of [n, width], zeros beside them, as autograd leaves it."""
    sizes = [values.shape[0], width]
    return aten.slice_backward(values, sizes, 1, start, start + values.shape[1], 1)


def in_row(values: Tensor, rows: int, index: int) -> Tensor:
    """[n, k] as row `index` of [n, rows, k]."""
    return aten.select_backward(values, [values.shape[0], rows, values.shape[1]], 1, index)


def test_parts_of_a_range_are_put_side_by_side() -> None:
    def function(a: Tensor, b: Tensor, rest: Tensor) -> Tensor:
        a, b = a.view(-1, 2), b.view(-1, 3)  # in a trace, only these widths are numbers
        return in_slice(b, 5, 2) + rest + in_slice(a, 5, 0) + in_slice(2 * b, 5, 2)

    a, b, rest = random(4, 2), random(4, 3), random(4, 5)
    graph = simplified(function, a, b, rest)
    assert_close(graph(a, b, rest), torch.cat([a, 3 * b], dim=1) + rest)
    assert count(graph, *PADDED) == 0
    a, b, rest = random(7, 2), random(7, 3), random(7, 5)  # of another length than traced
    assert_close(graph(a, b, rest), torch.cat([a, 3 * b], dim=1) + rest)


def test_rows_are_put_side_by_side() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return in_row(a, 2, 1) + in_row(b, 2, 0)

    a, b = random(6, 3), random(6, 3) + 1
    graph = simplified(function, a, b)
    assert_close(graph(a, b), torch.stack([b, a], dim=1))
    assert count(graph, *PADDED) == 0


@pytest.mark.parametrize(
    ("width", "second"),
    [(6, 2), (6, 3), (4, 1)],
    ids=["nothing at the end", "a gap", "both at one place"],
)
def test_what_does_not_fill_a_range_stays(width: int, second: int) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return in_slice(a.view(-1, 2), width, 0) + in_slice(b.view(-1, 3), width, second)

    a, b = random(4, 2), random(4, 3)
    expected = torch.zeros(4, width, dtype=torch.float64)
    expected[:, :2] += a
    expected[:, second : second + 3] += b
    graph = simplified(function, a, b)
    assert_close(graph(a, b), expected)
    assert count(graph, *PADDED) == 2


def every_other(values: Tensor) -> Tensor:
    """[n, 2] as columns 0 and 2 of [n, 4]."""
    return aten.slice_backward(values, [values.shape[0], 4], 1, 0, 4, 2)


def counted_from_the_end(values: Tensor) -> Tensor:
    """[n, 2] as the last columns of [n, 4], in words that are not rewritten."""
    return aten.slice_backward(values, [values.shape[0], 4], -1, -2, 4, 1)


@pytest.mark.parametrize("other", [every_other, counted_from_the_end])
def test_slices_of_other_kinds_stay(other: Callable[[Tensor], Tensor]) -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        a, b, c = (x.view(-1, 2) for x in (a, b, c))
        return in_slice(a, 4, 0) + other(b) + in_slice(c, 4, 2)

    arguments = random(6, 2), random(6, 2) + 1, random(6, 2) + 2
    graph = simplified(function, *arguments)
    assert_close(graph(*arguments), function(*arguments))
    assert count(graph, *PADDED) == 1


def test_a_row_whose_number_is_left_open_stays() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        rows = b.shape[0]
        last = aten.select_backward(a.view(-1), [rows, 3], 0, rows - 1)
        return last + aten.select_backward(a.view(-1), [rows, 3], 0, 0) + b

    a, b = random(3), random(4, 3)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), function(a, b))


def test_different_dimensions_are_not_mixed() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.view(4, 2), b.view(2, 4)
        return in_slice(a, 4, 0) + aten.slice_backward(b, [4, 4], 0, 2, 4, 1)

    a, b = random(4, 2), random(2, 4)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), function(a, b))
    assert count(graph, *PADDED) == 2


def test_sums_that_others_read_stay() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.view(-1, 2), b.view(-1, 3)
        first = in_slice(a, 5, 0) + in_slice(b, 5, 2)
        return first * (first + in_slice(a, 5, 0) + in_slice(b, 5, 2))

    a, b = random(4, 2), random(4, 3)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), 2 * torch.cat([a, b], dim=1) ** 2)
    assert count(graph, *PADDED) == 0
    assert count(graph, aten.cat.default) == 2  # the first is read twice, and not made again


def test_a_factor_in_a_sum_is_kept() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return torch.add(in_slice(a.view(-1, 2), 5, 0), in_slice(b.view(-1, 3), 5, 2), alpha=3)

    a, b = random(4, 2), random(4, 3)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), torch.cat([a, 3 * b], dim=1))


def test_numbers_are_terms_too() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return in_slice(a.view(-1, 2), 5, 0) + 0.1 + in_slice(b.view(-1, 3), 5, 2) + 0.2

    a, b = random(4, 2), random(4, 3)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), torch.cat([a, b], dim=1) + 0.1 + 0.2, rtol=1e-15, atol=1e-15)
    assert count(graph, *PADDED) == 0


def test_parts_that_change_after_they_were_padded_stay() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        part = 2 * a.view(-1, 2)
        padded = in_slice(part, 5, 0)
        part.add_(1)
        return padded + in_slice(b.view(-1, 3), 5, 2)

    a, b = random(4, 2), random(4, 3)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), torch.cat([2 * a, b], dim=1))


def in_rows(values: Tensor, at: list[int], n: int = 6) -> Tensor:
    """[k, m] added into rows of zeros [n, m]."""
    return aten.index_add(values.new_zeros([n, 5]), 0, torch.tensor(at), values)


def test_rows_that_are_added_into_zeros_are_added_at_once() -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        a, b = a.view(-1, 5), b.view(-1, 5)  # in a trace, only this width is a number
        return in_rows(a, [0, 2]) + c + in_rows(b, [2, 5, 2]) + in_rows(2 * a, [1, 1])

    a, b, c = random(2, 5), random(3, 5), random(6, 5)
    graph = simplified(function, a, b, c)
    assert_close(graph(a, b, c), function(a, b, c))
    assert count(graph, aten.index_add.default) == 1


def test_rows_of_other_kinds_stay() -> None:
    """Along another dimension, into something else than zeros, or with a factor."""

    def function(a: Tensor, b: Tensor) -> Tensor:
        a = a.view(-1, 5)
        zeros, at = a.new_zeros([6, 5]), torch.tensor([0, 2])
        columns = aten.index_add(zeros, 1, at, b.view(6, -1)[:, :2])
        return (
            in_rows(a, [0, 2])
            + columns
            + aten.index_add(zeros + 1, 0, at, a)
            + aten.index_add(a.new_zeros([6, 5]), 0, at, a, alpha=2)
        )

    a, b = random(2, 5), random(6, 4)
    graph = simplified(function, a, b)
    assert_close(graph(a, b), function(a, b))
    assert count(graph, aten.index_add.default) == 4


def test_numbers_of_elements_are_products_of_sizes() -> None:
    def function(a: Tensor) -> Tensor:
        return a.sum() / a.numel() + a.new_zeros(a.numel()).sum()

    a = random(4, 3, 5)
    graph = simplified(function, a)
    assert count(graph, aten.sym_numel.default) == 0
    assert_close(graph(random(2, 3, 5)), random(2, 3, 5).mean())


def test_second_derivatives_of_joined_tensors() -> None:
    """As autograd itself makes them: a gradient of a gradient through cat, split and rotations."""

    def function(x: Tensor, y: Tensor, turn: Tensor) -> Tensor:
        x, y = x.view(-1, 3, 2).requires_grad_(True), y.view(-1, 3, 4).requires_grad_(True)
        turned = torch.bmm(turn.view(-1, 3, 3), torch.cat([x, y], dim=2))
        one, other = (turned**3).split([4, 2], dim=2)
        energy = (torch.cat([other, one], dim=2) * torch.arange(6)).sum() + (one**2).sum()
        of_x, of_y = torch.autograd.grad(energy, [x, y], create_graph=True)
        return torch.cat(torch.autograd.grad((of_x**2).sum() + of_y.sum(), [x, y]), dim=2)

    arguments = random(5, 3, 2), random(5, 3, 4), random(5, 3, 3)
    as_it_is = make_fx(function, tracing_mode="symbolic")(*arguments)
    assert count(as_it_is, *PADDED) > 0
    assert count(as_it_is, aten.bmm.default) > 0
    graph = simplified(function, *arguments)
    assert_close(graph(*arguments), function(*arguments))
    assert count(graph, *PADDED, aten.bmm.default) == 0


def test_rotations_are_written_out_and_others_are_not() -> None:
    for rows, inner, columns in ((3, 3, 64), (TINY, TINY, 1), (64, 3, 3), (5, 32, 5)):
        one, other = random(10, rows, inner), random(10, inner, columns)
        assert_close(tiny_products(one, other), torch.bmm(one, other))
    assert tiny_products(random(2, 128, 16), random(2, 16, 64)) is NotImplemented
    assert tiny_products(random(2, 128, 3), random(2, 3, 64)) is NotImplemented
