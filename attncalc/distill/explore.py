"""Dynamics of a model that looks where it does not know, and the choice of what to label next."""

from __future__ import annotations

import io
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

# of the temperature asked for, of the replicas: most of them at it, the others hotter
HEATS = (1.0, 1.0, 1.0, 1.0, 1.25, 1.5)
# 1/fs
FRICTION = 0.02
# fs between two frames, and before the first that counts as one of the dynamics
FRAME_EVERY, SETTLING = 20.0, 300.0
# novelty, and standard deviation of a force over the members [eV/Å], where a replica ends
LARGEST_NOVELTY, LARGEST_SPREAD = 3.0, 1.5
# what is uncertain is looked at: so many times the structures wanted; distance of fingerprints of a
# copy, for each root of their length
CANDIDATES, COPY = 5, 0.002


@dataclass(frozen=True, eq=False)
class Pool:
    """Frames of the dynamics of a model, m of r replicas.

    Attributes:
        positions: [m, n_atoms, 3] Å.
        replica: [m], int64.
        times: [m] fs.
        spread: [m] eV/Å: largest of all atoms, of the length of the standard deviation of its
            force over the members.
        novelty: [m], largest of all atoms.
        temperatures: [r] K.
        ended: [r]: why a replica ended before its time; "" where it did not.
        picoseconds: that each replica was to run.
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
        """Write an .npz file, whole or not at all."""
        content = io.BytesIO()
        np.savez(
            content, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)}
        )
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Pool:
        """Read what `save` has written.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {f.name: file[f.name] for f in fields(cls)}
            return cls(**content | {"picoseconds": float(content["picoseconds"])})
        except Exception as error:  # whatever zip and numpy stumble over
            raise ValueError(f"{path}: damaged ({one_line(error)}); remove it") from None

    @property
    def at_target(self) -> NDArray[np.bool_]:
        """[m]: frames at the temperature asked for, after the first moments."""
        cold = self.temperatures[self.replica] == self.temperatures.min()
        return cold & (self.times >= min(SETTLING, float(self.times.max()) / 2))


class _Look(Callback):
    """Keeps frames with spread and novelty, and ends a run that leaves what is known."""

    def __init__(self, evaluator: Evaluator, shape: Shape, every: int, timestep: float) -> None:
        self.every, self.ended = every, ""
        self.frames: list[tuple[Floats, float, float, float]] = []
        self._evaluator, self._shape, self._timestep = evaluator, shape, timestep

    def __call__(self, state: MDState) -> None:
        positions = state.system.positions.cpu().numpy().copy()
        time_fs = state.step * self._timestep
        if self.frames and self.frames[-1][1] == time_fs:  # the last state comes twice
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
    """Run Langevin dynamics of replicas, each until its time is over or it leaves what is known.

    Four replicas have the temperature asked for, two are hotter, up to 1.5 times it. A replica
    ends where a bond breaks or forms, novelty exceeds 3, or members differ by 1.5 eV/Å.

    Args:
        potential: a committee that knows its training.
        shape: bonds of the molecule.
        starts: structures that replicas start from, one after the other.
        temperature: K.
        picoseconds: of every replica.
        timestep: fs.
        seed: of velocities and noise.
        tell: called with the number of replicas done since the last call.
    """
    evaluator = Evaluator(potential)
    n_steps = max(1, round(1000 * picoseconds / timestep))
    every = max(1, round(FRAME_EVERY / timestep))
    frames, ended = [], []
    for k, heat in enumerate(HEATS):
        langevin = Langevin(timestep * units.fs, heat * temperature, FRICTION / units.fs)
        look = _Look(evaluator, shape, every, timestep)
        system = System.from_ase(starts[k % len(starts)])
        try:
            first = langevin.init(evaluator, system, seed=seed * len(HEATS) + k)
            run(langevin, evaluator, first, n_steps, callbacks=[look])
        except FloatingPointError as error:
            look.ended = one_line(error).partition("; ")[0]
        frames += [(k, *frame) for frame in look.frames]
        ended.append(look.ended)
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
    """Choose frames at the temperature asked for by chance alone, to measure errors on.

    Where replicas ended before they had settled, frames of their first moments are taken.
    """
    sane = np.array([not shape.fault(one) for one in pool.positions])
    rows = np.flatnonzero(pool.at_target & sane)
    if len(rows) < n:
        rows = np.flatnonzero((pool.times > 0) & sane)
    chosen = np.sort(rng.permutation(rows)[:n])
    return [rounded(shape.atoms, pool.positions[k]) for k in chosen]


def most_uncertain(pool: Pool, shape: Shape, n: int, known: Sequence[Atoms]) -> list[Atoms]:
    """Choose frames to train on: uncertain ones, far from what is known and from each other.

    Args:
        pool: frames of all replicas.
        shape: what structures are worth a label.
        n: at most so many.
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
