"""Predictions for the shards of a data set, and for the whole data set from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attncalc.cli import shards
from attncalc.cli.evaluate import read_labelled
from attncalc.cli.model_job import ModelJob
from attncalc.cli.shards import Outcome, Solver, Work
from attncalc.data import Dataset
from attncalc.data.errors import BATCH_ATOMS, Prediction, predict
from attncalc.data.shards import Frame, Rows
from attncalc.potential import Potential
from attncalc.structures import batches
from attncalc.train.run_folder import checksum


def find_rows(dataset: Dataset, potential: Potential) -> Rows:
    """Find the shards of a data set: each begins where a batch of `predict` begins.

    Therefore batches, and all results bit by bit, are the same as without shards.
    """
    starts = [0]
    apart = potential.counts_all_pairs
    for first, _ in batches(dataset.structures, BATCH_ATOMS, apart=apart):
        if first >= starts[-1] + shards.STRUCTURES:
            starts.append(first)
    n, of_all = len(dataset), checksum(dataset)
    return Rows(Path(dataset.source), shards.STRUCTURES, n, (*starts, n), of_all)


@dataclass(frozen=True)
class EvalMany(ModelJob):
    """Job of predictions for a data set, which every process reads.

    Attributes:
        asked: arguments of `read_labelled`, with absolute paths.
        sha256: checksum of structures and labels.
    """

    asked: tuple[Any, ...]
    sha256: str

    def start(self) -> Solver:
        """Load the model and the data.

        Raises:
            OSError, ValueError: the data cannot be read, or differ from those of the first process.
        """
        dataset = read_labelled(*self.asked)[1]
        if checksum(dataset) != self.sha256:
            raise ValueError(f"{dataset.source}: the file has changed, or is another one here")
        potential = self.load().potential

        def solve(frames: Sequence[Frame], first: int) -> list[Outcome]:
            mine = dataset[first : first + len(frames)]
            try:
                found = predict(potential, mine, first_number=first)
            except ValueError as error:  # an error in the data: do not try again
                return [(None, {"error": str(error)}) for _ in frames]
            return [(None, row) for row in found.rows()]

        return solve


def joined(work: Work) -> Prediction:
    """Return the prediction for the whole data set.

    Raises:
        RuntimeError: a structure is impossible, or processes died while processing a shard.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for row in work.said():
            if error := row.get("error"):
                raise RuntimeError(f"{error} (remove {work.folder} to try again)")
            yield row

    return Prediction.of_rows(rows())
