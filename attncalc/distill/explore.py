"""Dynamics of a model that finds where it is uncertain, and choice of the frames to label."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import NDArray

from attncalc.distill.shapes import Floats, Shape, farthest_first, fingerprint
from attncalc.evaluator import Evaluator
from attncalc.files import write_atomically
from attncalc.md import Langevin, run
from attncalc.md.callback import Callback
from attncalc.md.state import MDState
from attncalc.potential import Potential
from attncalc.sampling.relaxation import rounded
from attncalc.system import System
from attncalc.text import one_line

log = logging.getLogger(__name__)

# fewest frames at the target temperature that errors are measured on
FEWEST_TESTED = 10
# temperatures of the replicas, relative to the target temperature
HEATS = (1.0, 1.0, 1.0, 1.0, 1.25, 1.5)
# 1/fs
FRICTION = 0.02
# fs between two frames, and fs of equilibration, whose frames are not counted
FRAME_EVERY, SETTLING = 20.0, 300.0
# novelty, and standard deviation of a force over the members [eV/Å], at which a replica ends
LARGEST_NOVELTY, LARGEST_SPREAD = 3.0, 1.5
# uncertain candidates per requested structure; distance of fingerprints below which one is a copy,
# over the square root of their length
CANDIDATES, COPY = 5, 0.002


@dataclass(frozen=True, eq=False)
class Pool:
    """Frames of the dynamics of a model, m of r replicas.

    Attributes:
        positions: [m, n_atoms, 3] Å.
        replica: [m], int64.
        times: [m] fs.
        spread: [m] eV/Å: largest value over the atoms of the length of the standard deviation of
            the force over the members.
        novelty: [m], largest value over the atoms.
        temperatures: [r] K.
        ended: [r]: reason why a replica ended early; "" if it did not.
        picoseconds: planned duration of each replica.
    """

    positions: Floats
    replica: NDArray[np.int64]
    times: Floats
    spread: Floats
    novelty: Floats
    temperatures: Floats
    ended: NDArray[np.str_]
    picoseconds: float

    def save(self, path: Path) -> None:
        """Write an .npz file atomically."""
        content = io.BytesIO()
        np.savez(
            content, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)}
        )
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Pool:
        """Read a file written by `save`.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {f.name: file[f.name] for f in fields(cls)}
            return cls(**content | {"picoseconds": float(content["picoseconds"])})
        except Exception as error:  # zip and numpy raise errors of many kinds
            raise ValueError(f"{path}: damaged ({one_line(error)}); remove it") from None

    @property
    def at_target(self) -> NDArray[np.bool_]:
        """Mask [m] of the frames at the target temperature, after equilibration."""
        cold = self.temperatures[self.replica] == self.temperatures.min()
        return cold & (self.times >= min(SETTLING, float(self.times.max()) / 2))


class _Recorder(Callback):
    """Keeps frames with spread and novelty, and ends a run that leaves the training data."""

    def __init__(self, evaluator: Evaluator, shape: Shape, every: int, timestep: float) -> None:
        self.every, self.ended = every, ""
        self.frames: list[tuple[Floats, float, float, float]] = []
        self._evaluator, self._shape, self._timestep = evaluator, shape, timestep

    def __call__(self, state: MDState) -> None:
        positions = state.system.positions.cpu().numpy().copy()
        time_fs = state.step * self._timestep
        if self.frames and self.frames[-1][1] == time_fs:  # called twice for the last state
            return
        result = self._evaluator(state.system)
        spread = 0.0
        if result.spread is not None:
            spread = float(torch.linalg.vector_norm(result.spread.forces, dim=1).max())
        novelty = 0.0 if result.novelty is None else float(result.novelty.max())
        self.frames.append((positions, time_fs, spread, novelty))
        if change := self._shape.change(positions):
            self.ended = change
        elif novelty > LARGEST_NOVELTY:
            self.ended = f"novelty {novelty:.1f}"
        elif spread > LARGEST_SPREAD:
            self.ended = f"members differ by {spread:.1f} eV/Å"
        self.stops = bool(self.ended)


def explore(
    potential: Potential,
    shape: Shape,
    starts: Sequence[Atoms],
    temperature: float,
    *,
    picoseconds: float,
    timestep: float,
    seed: int,
    tell: Callable[[int], None] = lambda n: None,
) -> Pool:
    """Run Langevin dynamics of replicas; each ends early if it leaves the training data.

    Four replicas have the target temperature, two are hotter, up to 1.5 times it. A replica ends
    early if a bond breaks or forms, novelty exceeds 3, or members differ by 1.5 eV/Å.

    Args:
        potential: a committee, calibrated with its training data.
        shape: bonds of the molecule.
        starts: structures that replicas start from, in turn.
        temperature: target temperature, K.
        picoseconds: duration of every replica.
        timestep: fs.
        seed: seed of velocities and noise.
        tell: called with the number of replicas done since the last call.
    """
    evaluator = Evaluator(potential)
    n_steps = max(1, round(1000 * picoseconds / timestep))
    every = max(1, round(FRAME_EVERY / timestep))
    frames, ended = [], []
    for k, heat in enumerate(HEATS):
        langevin = Langevin(timestep * units.fs, heat * temperature, FRICTION / units.fs)
        recorder = _Recorder(evaluator, shape, every, timestep)
        system = System.from_ase(starts[k % len(starts)])
        try:
            first = langevin.init(evaluator, system, seed=seed * len(HEATS) + k)
            run(langevin, evaluator, first, n_steps, callbacks=[recorder])
        except FloatingPointError as error:
            recorder.ended = one_line(error).partition("; ")[0]
        frames += [(k, *frame) for frame in recorder.frames]
        ended.append(recorder.ended)
        tell(1)
    replica, positions, times, spread, novelty = zip(*frames, strict=True)
    return Pool(
        positions=np.array(positions),
        replica=np.array(replica),
        times=np.array(times),
        spread=np.array(spread),
        novelty=np.array(novelty),
        temperatures=temperature * np.array(HEATS),
        ended=np.array(ended, dtype=np.str_),
        picoseconds=picoseconds,
    )


def fair_sample(pool: Pool, shape: Shape, n: int, rng: np.random.Generator) -> list[Atoms]:
    """Choose up to n frames at the target temperature at random, to measure errors on.

    If there are fewer than `FEWEST_TESTED`, because replicas ended early, frames of all replicas
    and of the equilibration are used too, with a warning.
    """
    sane = _sane(pool, shape)
    rows = rng.permutation(np.flatnonzero(pool.at_target & sane))[:n]
    if len(rows) < min(n, FEWEST_TESTED):
        log.warning(
            "the dynamics gave only %d frames at %g K: errors are also those of frames of hotter "
            "replicas and of the equilibration",
            *(len(rows), pool.temperatures.min()),
        )
        others = rng.permutation(np.flatnonzero((pool.times > 0) & ~pool.at_target & sane))
        rows = np.concatenate([rows, others])[:n]
    chosen = np.sort(rows)
    return [rounded(shape.atoms, pool.positions[k]) for k in chosen]


def n_at_target(pool: Pool, shape: Shape) -> int:
    """Return the number of frames at the target temperature that errors can be measured on."""
    return int((pool.at_target & _sane(pool, shape)).sum())


def _sane(pool: Pool, shape: Shape) -> NDArray[np.bool_]:
    return np.array([not shape.fault(one) for one in pool.positions])


def most_uncertain(pool: Pool, shape: Shape, n: int, known: Sequence[Atoms]) -> list[Atoms]:
    """Choose frames to train on: uncertain ones, far from what is known and from each other.

    Args:
        pool: frames of all replicas.
        shape: decides which structures can be labelled.
        n: largest number of frames.
        known: structures that have labels, at least one.
    """
    uncertainty = np.maximum(pool.spread / LARGEST_SPREAD, pool.novelty / LARGEST_NOVELTY)
    rows = [k for k in np.argsort(-uncertainty) if not shape.fault(pool.positions[k])]
    rows = rows[: CANDIDATES * n]
    prints = [fingerprint(shape.atoms, pool.positions[k]) for k in rows]
    theirs = np.array([fingerprint(shape.atoms, atoms.positions) for atoms in known])
    if not rows:
        return []
    least = COPY * np.sqrt(theirs.shape[1])
    chosen = farthest_first(np.array(prints), theirs, n, least)
    return [rounded(shape.atoms, pool.positions[rows[k]]) for k in chosen]
