"""Passes over the FX graph of a training step, so that the compiler makes faster code of it.

A trace of autograd is correct, but two patterns in it cost a compiled step a tenth of its time and
more: gradients of parts, each padded with zeros to the size of the whole and added up, and
thousands of three by three matrices that go to a matrix library. A third pattern, rows that are
added into zeros several times, may be compiled to wrong code.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
TINY = 7  # rows or columns: rotations of features up to degree 3


def tiny_products(one: Tensor, other: Tensor) -> Tensor:
    """`torch.bmm` of matrices so small that calling a library costs more than multiplying them.

    Such products rotate features into the frames of edges and back. Written out, they are compiled
    into the loops before and after them. Two of the three sizes are at most TINY.

    Returns:
        [n, rows, columns], or NotImplemented where the library is the better choice.
    """
    sizes = (*one.shape[1:], other.shape[2])
    if sum(isinstance(n, int) and n <= TINY for n in sizes) < 2:
        return NotImplemented
    return (one.unsqueeze(3) * other.unsqueeze(1)).sum(2)


# for `make_fx`: operation -> its replacement in the trace
DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {aten.bmm.default: tiny_products}


def simplify(module: GraphModule) -> None:
    """Rewrite a trace in place."""
    graph = module.graph
    for node in list(graph.nodes):
        # remains of the autograd engine without a result, which the compiler does not know
        if node.target in (aten.is_same_size.default, aten._has_same_storage_numel.default):
            graph.erase_node(node)
        elif node.target is aten.sym_numel.default:
            _replace_by_sizes(graph, node)
    for node in reversed(list(graph.nodes)):
        if _is_sum(node) and not (len(node.users) == 1 and _is_sum(next(iter(node.users)))):
            _shorten(graph, node)
    graph.eliminate_dead_code()
    module.recompile()


def _replace_by_sizes(graph: Graph, count: Node) -> None:
    """Replace the number of elements by the product of the sizes.

    For a batch of one structure it is a constant, which the compiler accepts only from a size
    operation.
    """
    tensor: Any = count.args[0]
    with graph.inserting_before(count):
        sizes = [
            graph.call_function(aten.sym_size.int, (tensor, dim))
            for dim in range(tensor.meta["val"].ndim)
        ]
        count.replace_all_uses_with(
            reduce(lambda a, b: graph.call_function(operator.mul, (a, b)), sizes)
        )
    graph.erase_node(count)


def _shorten(graph: Graph, total: Node) -> None:
    """Join terms of a sum, if that reduces their number."""
    terms = list(_terms(total))
    with graph.inserting_before(total):
        fewer = _join_scattered(graph, _join_padded(graph, terms))
        if len(fewer) < len(terms):
            total.replace_all_uses_with(_added(graph, fewer))


# joined terms come first: numbers that are added before a tensor are added in the default dtype


def _join_padded(graph: Graph, terms: list[Any]) -> list[Any]:
    """Join padded parts of a sum that fill a range without a gap.

    For example, zeros with a at 0..2 plus zeros with b at 2..5 is the concatenation of a and b.
    """
    groups: dict[Any, dict[tuple[int, int], list[Any]]] = defaultdict(lambda: defaultdict(list))
    for term in terms:
        if (found := _place(term)) is not None:
            dim, shape, start, end = found
            groups[dim, shape][start, end].append(term)
    for (dim, shape), parts in groups.items():
        places = sorted(parts)
        ends = [0, *(end for _, end in places)]
        if len(places) < 2 or [start for start, _ in places] != ends[:-1] or ends[-1] != shape[dim]:
            continue
        joined = [term for same in parts.values() for term in same]
        pieces = []
        for place in places:
            unpadded = [_unpadded(graph, term, dim) for term in parts[place]]
            pieces.append(_added(graph, unpadded))
        whole = graph.call_function(aten.cat.default, (pieces, dim))
        terms = [whole, *(term for term in terms if term not in joined)]
    return terms


def _join_scattered(graph: Graph, terms: list[Any]) -> list[Any]:
    """Join rows that are added into zeros several times into one addition."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for term in terms:
        if (found := _scattered(term)) is not None:
            groups[found].append(term)
    for (dim, _), same in groups.items():
        if len(same) < 2:
            continue
        indices, rows = ([term.args[k] for term in same] for k in (2, 3))
        at = graph.call_function(aten.cat.default, (indices, 0))
        values = graph.call_function(aten.cat.default, (rows, dim))
        zeros = same[0].args[0]
        whole = graph.call_function(aten.index_add.default, (zeros, dim, at, values))
        terms = [whole, *(term for term in terms if term not in same)]
    return terms


def _scattered(term: Any) -> tuple[int, tuple[int, ...]] | None:
    """Return (dimension, shape) of rows that were added into zeros; None for anything else."""
    if getattr(term, "target", None) is not aten.index_add.default or len(term.args) != 4:
        return None
    zeros, dim, _, rows = term.args
    if zeros.target is not aten.new_zeros.default or len(zeros.users) > 1 or term.kwargs:
        return None
    shape = tuple(zeros.args[1])
    known = dim >= 0 and all(isinstance(n, int) for n in shape)
    return (dim, shape) if known and not _changes(term) and not _changes(rows) else None


def _is_sum(node: Any) -> bool:
    return getattr(node, "target", None) is aten.add.Tensor and not node.kwargs


def _terms(total: Any) -> Iterator[Any]:
    """Yield the terms of a tree of sums that are used nowhere else."""
    for term in total.args:
        if _is_sum(term) and len(term.users) == 1:
            yield from _terms(term)
        else:
            yield term


def _place(term: Any) -> tuple[int, tuple[int | None, ...], int, int] | None:
    """Return (dimension, shape, start, end) of a padded part; None for anything else.

    Symbolic sizes are None in the shape.
    """
    target = getattr(term, "target", None)
    if target is aten.slice_backward.default:
        part, sizes, dim, start, end, step = term.args
    elif target is aten.select_backward.default:
        part, sizes, dim, start = term.args
        end, step = start + 1 if isinstance(start, int) else None, 1
    else:
        return None
    shape = tuple(n if isinstance(n, int) else None for n in sizes)
    known = all(isinstance(n, int) for n in (start, end, shape[dim]))
    if not known or step != 1 or min(dim, start) < 0 or _changes(part):
        return None
    return dim, shape, start, min(end, sizes[dim])


def _changes(part: Any) -> bool:
    """Return True if an operation may write into `part` between its padding and its addition."""
    schemas = (getattr(user.target, "_schema", None) for user in part.users)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _unpadded(graph: Graph, term: Any, dim: int) -> Any:
    part = term.args[0]
    if term.target is aten.select_backward.default:
        return graph.call_function(aten.unsqueeze.default, (part, dim))
    return part


def _added(graph: Graph, terms: list[Any]) -> Any:
    return reduce(lambda a, b: graph.call_function(aten.add.Tensor, (a, b)), terms)
