"""Base of the compiled engines: outputs and their gradient, workspaces, threads."""

from __future__ import annotations

import copy
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from attncalc.graph import (
    AtomOutputs,
    Graph,
    GraphArrays,
    Linearized,
    OutputArrays,
    OutputsOfArrays,
)
from attncalc.kernels.simd.atom_outputs import constrained
from attncalc.kernels.simd.barrier import Barrier, barriers
from attncalc.kernels.simd.partition import Part, partition
from attncalc.kernels.simd.threads import MORE_GHOSTS, Threads

# workspaces are larger than needed by this factor: a few more atoms or edges then need no new one
HEADROOM = 1.1
Workspace = TypeVar("Workspace")


class Workspaces(list[Workspace]):
    """Working space of every thread of one evaluation.

    Args:
        each: the workspace of each thread.
        features: [rows, F], features that the energies are computed from; rows of atoms are first.
        common: arrays that all threads share, if a `LayerExchange` needs them.
    """

    def __init__(
        self, each: Iterable[Workspace], features: NDArray[np.float32], common: Any = None
    ) -> None:
        super().__init__(each)
        self.features, self.common = features, common


class Lease(NamedTuple, Generic[Workspace]):
    """Memory and threads that one evaluation at a time uses.

    Attributes:
        sizes: how much there is room for: ghosts of a thread, then the sizes of `_needs`.
        n_rows: number of rows for atoms and the ghosts of all threads.
        barriers, workspaces: those of all threads.
        threads: None if the caller's is the only one.
    """

    sizes: tuple[int, ...]
    n_rows: int
    barriers: tuple[Barrier, ...]
    workspaces: Workspaces[Workspace]
    threads: Threads | None

    def suits(self, needs: tuple[int, ...]) -> bool:
        """Return True if there is room for these sizes, and the threads are in this process."""
        fits = not any(map(operator.lt, self.sizes, needs))
        return fits and (self.threads is None or self.threads.is_here)


class CompiledEngine(ABC, Generic[Workspace]):
    """A network as compiled loops: its outputs, and their gradient with respect to edge vectors.

    Equal numbers of threads give equal bits; different ones differ by rounding.

    Attributes:
        names: fields of `AtomOutputs` that it fills.
        by_pairs: whether work is measured by the number of pairs instead of edges.
        exchanges: whether it supports `GhostLayers.exchange`.
        fewest: smallest number of pairs (or edges) that a thread is worthwhile for.
        threads: largest number of threads that share an evaluation.
    """

    by_pairs: ClassVar[bool]
    defers: ClassVar = False
    exchanges: ClassVar = False
    fewest: int
    names: tuple[str, ...] = ("energies",)

    def __init__(self) -> None:
        self.threads = 1
        self._free: dict[int, list[Lease[Workspace]]] = {}  # by number of threads

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_free": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # its arrays do not change, and a workspace is lent to one evaluation at a time

    def shared_by(self, threads: int, *, fewest: int | None = None) -> Self:
        """Return the same engine with another number of threads.

        Args:
            threads: largest number of threads that share an evaluation.
            fewest: smallest number of pairs (or edges) of a thread; None: as measured.
        """
        twin = copy.copy(self)
        twin.threads = threads
        if fewest is not None:
            twin.fewest = fewest
        return twin

    def linearize(self, graph: Graph) -> Linearized | None:
        """Return outputs of a graph on the CPU and their gradient; None if two atoms are too close.

        The workspace is given back when the gradient has been pulled, or can no longer be pulled.
        """
        arrays = graph.arrays
        work = len(arrays.pairs if self.by_pairs else arrays.receivers)
        size = max(1, min(self.threads, work // self.fewest))
        evaluation = _Evaluation(self, graph, arrays, size)
        if not evaluation.forward():
            return None
        if len(self.names) == 1:
            raw = OutputArrays(evaluation.outputs[0])
            outputs = OutputsOfArrays.of(raw, feature_array=evaluation.features())
            return Linearized(outputs, evaluation.pull)
        raw = OutputArrays(**dict(zip(self.names, evaluation.outputs, strict=True)))
        constrained_outputs, transpose = constrained(raw, graph)
        outputs = OutputsOfArrays.of(constrained_outputs, feature_array=evaluation.features())

        def pull(d_outputs: AtomOutputs) -> Any:
            return evaluation.pull(d_outputs, transpose)

        return Linearized(outputs, pull)

    def lease(self, size: int, needs: tuple[int, ...]) -> Lease[Workspace]:
        """Take memory that no other evaluation uses, with room for these sizes.

        Args:
            size: number of threads.
            needs: ghosts of a thread, then the sizes of `_needs`.
        """
        try:
            lease = self._free[size].pop()
        except (KeyError, IndexError):
            lease = None
        if lease is None or not lease.suits(needs):
            lease = None  # frees its memory before the new one is allocated
            sizes = tuple(math.ceil(n * HEADROOM) for n in needs)
            most, n_atoms = sizes[:2]
            threads = Threads(size) if size > 1 else None
            arrivals = np.zeros(1, np.int64) if threads is None else threads.arrivals
            of_all = barriers(arrivals, size, most, n_atoms)
            workspaces = self._workspaces(of_all, *sizes[1:])
            lease = Lease(sizes, of_all[0].n_rows, of_all, workspaces, threads)
        return lease

    def give_back(self, size: int, lease: Lease[Workspace]) -> None:
        """Make a lease available to the next evaluation with this number of threads."""
        self._free.setdefault(size, []).append(lease)

    @abstractmethod
    def _needs(self, parts: Sequence[Part]) -> tuple[int, ...]:
        """Return the sizes to make room for: number of atoms, then of edges and the like."""

    @abstractmethod
    def _workspaces(self, barriers: Sequence[Barrier], *sizes: int) -> Workspaces[Workspace]:
        """Return new workspaces for the threads of these barriers, with room for `_needs`."""

    def _features(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of the features, as the network defines them.

        Args:
            rows: [n_atoms, F] of the working space, which the next evaluation overwrites.
        """
        return rows.copy()

    @abstractmethod
    def _inputs(
        self, graph: Graph, arrays: GraphArrays, n_rows: int, workspaces: Workspaces[Workspace]
    ) -> Any:
        """Return the inputs of a graph that all threads share.

        Args:
            graph: the whole graph.
            arrays: its arrays, or those of a part, which has all atoms.
            n_rows: number of rows for atoms and the ghosts of all threads.
            workspaces: those of all threads.
        """

    @abstractmethod
    def _forward(
        self,
        part: Part,
        inputs: Any,
        workspace: Workspace,
        outputs: NDArray[np.float64],
    ) -> int:
        """Add one thread's contribution to outputs [n_outputs, n_atoms].

        Returns:
            The number of pairs (or edges) that count; negative if two atoms are too close.
        """

    @abstractmethod
    def _reverse(
        self,
        part: Part,
        n: int,
        inputs: Any,
        workspace: Workspace,
        d_outputs: NDArray[np.float64],
        d_vectors: NDArray[np.float64],
    ) -> None:
        """Add to dE / d vectors of the part's edges, from dE / d outputs.

        Args:
            part .. workspace: as in the forward pass.
            n: result of the forward pass.
            d_outputs: [n_outputs, n_atoms].
            d_vectors: [n_edges of the part, 3].
        """


def _rows(each: list[Any]) -> NDArray[np.float64]:
    """Return arrays as the rows of one, in C order; a single one is not copied, if it can be."""
    if len(each) == 1:
        return np.ascontiguousarray(each[0], np.float64)[None]
    return np.array(each, np.float64)


class _Evaluation:
    """One forward pass, and the reverse pass that may follow."""

    __slots__ = ("counts", "engine", "inputs", "lease", "n_edges", "outputs", "parts", "size")

    def __init__(
        self, engine: CompiledEngine[Any], graph: Graph, arrays: GraphArrays, size: int
    ) -> None:
        self.engine, self.size = engine, size
        self.lease: Lease[Any] | None = None
        n_atoms, self.n_edges = graph.n_atoms, len(arrays.receivers)
        if size == 1:
            self.parts = [Part((0, n_atoms), (0, n_atoms), 0, arrays)]
        else:
            self.parts = partition(arrays, size, by_pairs=engine.by_pairs)
        self.inputs: Any = graph  # replaced by inputs made from it once there is room
        self.counts: list[int] = []

    def forward(self) -> bool:
        """Run the forward pass; return False if two atoms are too close."""
        engine, size = self.engine, self.size
        graph, arrays = self.inputs, self.parts[0].arrays
        needs, most = engine._needs(self.parts), 0
        while True:
            self.lease = lease = engine.lease(size, (most, *needs))
            self.inputs = engine._inputs(graph, arrays, lease.n_rows, lease.workspaces)
            self.outputs = np.zeros((len(engine.names), graph.n_atoms))
            if size > 1:
                lease.barriers[0].n_ghosts[:] = 0  # of all threads
                for barrier, part in zip(lease.barriers, self.parts, strict=True):
                    barrier.own[:] = *part.atoms, *part.owned
            self.counts = self._run(self._forward)
            if self.counts[0] >= 0:
                return True
            most = int(lease.barriers[0].n_ghosts.max())
            self.close()
            if self.counts[0] != MORE_GHOSTS:
                return False

    def features(self) -> NDArray[np.float32]:
        """Return the features [n_atoms, F] after the forward pass."""
        assert self.lease is not None
        return self.engine._features(self.lease.workspaces.features[: self.outputs.shape[1]])

    def pull(
        self,
        d_outputs: AtomOutputs,
        transpose: Callable[[OutputArrays], OutputArrays] = lambda arrays: arrays,
    ) -> Any:
        """dE / d outputs -> dE / d vectors [n_edges, 3], once; arrays give an array.

        Args:
            d_outputs: gradient with respect to each output of the network.
            transpose: map from these to gradients with respect to the outputs of the loops.

        Raises:
            RuntimeError: the gradient has been pulled already.
        """
        engine, lease = self.engine, self.lease
        if lease is None:
            raise RuntimeError("the gradient of this evaluation has been taken already")
        arrays = d_outputs.arrays
        if (given := arrays) is None:
            given = OutputArrays(
                **{name: getattr(d_outputs, name).numpy() for name in engine.names}
            )
        rows = transpose(given)
        each = [getattr(rows, name) for name in engine.names]
        d_found = _rows(each)
        d_vectors = np.zeros((self.n_edges, 3))
        self._run(lambda rank: self._reverse(rank, d_found, d_vectors))
        self.close()
        return torch.from_numpy(d_vectors) if arrays is None else d_vectors

    def close(self) -> None:
        """Give the workspace back."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self.engine.give_back(self.size, lease)

    __del__ = close

    def _forward(self, rank: int) -> int:
        assert self.lease is not None
        part, workspace = self.parts[rank], self.lease.workspaces[rank]
        return self.engine._forward(part, self.inputs, workspace, self.outputs)

    def _reverse(
        self, rank: int, d_outputs: NDArray[np.float64], d_vectors: NDArray[np.float64]
    ) -> int:
        assert self.lease is not None
        part, workspace = self.parts[rank], self.lease.workspaces[rank]
        mine = d_vectors[part.first_edge : part.first_edge + len(part.arrays.receivers)]
        n = self.counts[rank]
        self.engine._reverse(part, n, self.inputs, workspace, d_outputs, mine)
        return n

    def _run(self, work: Callable[[int], int]) -> list[int]:
        """Run `work(rank)` in every thread and return the results."""
        lease = self.lease
        assert lease is not None
        if lease.threads is None:
            return [work(0)]
        for barrier in lease.barriers:
            barrier.due[0] = 0
        return lease.threads.run(work)
