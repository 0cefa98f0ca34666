"""kill -9 at random moments; what goes on must end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from drill.files import COPPER, difference, hidden, write_inputs
from drill.forked import Forked
from drill.trial import Trial

MD = {
    "md, copper": ("copper.extxyz", "--model", COPPER, "--steps", 60),
    "md, fixed atoms": ("fixed.extxyz", "--model", COPPER, "--steps", 60),
    "md, float64": ("copper.extxyz", "--model", COPPER, "--dtype", "float64", "--steps", 60),
    "md, constant energy": ("copper.extxyz", "--model", COPPER, "--ensemble", "nve", "--steps", 60),
    "md, silicon": ("silicon.extxyz", "--model", "so3krates-silicon", "--steps", 1000),
    "md, Equiformer": ("ethanol.extxyz", "--model", "equiformer-ethanol", "--steps", 200),
    "md, committee": ("ethanol.extxyz", "--model", "so3krates-ethanol-committee", "--steps", 400),
}
BATCH = "md, batch by the Python interface"
TRAIN = {
    "training, So3krates": "so3krates.yaml",
    "training, Equiformer": "equiformer.yaml",
    "training, committee": "committee.yaml",
}
# the cheap ones more often
KINDS = (*MD, BATCH, *TRAIN, "md, copper", BATCH, "training, So3krates", "md, fixed atoms")
# kills in a row of one run, at most
KILLS = 3


def trials(count: int, seed: int) -> Iterator[Trial]:
    """Kill runs and trainings, and compare what goes on with one that was never stopped."""
    chance = random.Random(seed)
    write_inputs()
    whole: dict[str, float] = {}  # kind: s of an uninterrupted run
    with Forked() as commands:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            if kind not in whole:
                folder = Path("whole") / kind
                folder.mkdir(parents=True)
                ended = commands.run(*_begin(kind, folder))
                if ended.status != 0:
                    yield Trial(f"{kind}: killed and resumed", f"not run at all: {ended.error}")
                    return
                whole[kind] = ended.seconds
            folder = Path("trials") / str(number)
            folder.mkdir(parents=True)
            moments: list[float] = []
            failure = _killed(commands, kind, folder, whole[kind], chance, moments)
            if failure:
                told = ", ".join(f"{moment:.3f}" for moment in moments)
                failure += f" (seed {seed}, trial {number}, killed after {told} s)"
            else:
                shutil.rmtree(folder)
            yield Trial(f"{kind}: killed and resumed", failure)


def _begin(kind: str, folder: Path) -> list[object]:
    if kind in TRAIN:
        return ["train", TRAIN[kind], "-o", folder / "run"]
    if kind == BATCH:
        return ["batch", "batch.extxyz", COPPER, 60, folder / "run.h5md"]
    return ["md", *MD[kind], "--every", 5, "-o", folder / "run.h5md"]


def _next(kind: str, folder: Path) -> list[object]:
    """What a user would type: a run with a checkpoint goes on, another one begins."""
    if kind in MD and (folder / "run.ckpt").exists():
        return ["md", "--resume", folder / "run.h5md"]
    return _begin(kind, folder)


def _killed(
    commands: Forked,
    kind: str,
    folder: Path,
    seconds: float,
    chance: random.Random,
    moments: list[float],
) -> str:
    """What went wrong, if anything."""
    for _ in range(chance.randint(1, KILLS)):
        moments.append(chance.uniform(0.0, seconds))
        ended = commands.run(*_next(kind, folder), kill_after=moments[-1])
        if ended.status not in (0, -9):
            return f"ended with {ended.status}: {ended.error.strip()}"
    ended = commands.run(*_next(kind, folder))
    if ended.status != 0:
        return f"does not go on: {ended.error.strip()}"
    theirs = Path("whole") / kind
    if kind in TRAIN:
        name = "run/tiny.safetensors"
        if weights(folder / name) != weights(theirs / name):
            return "the weights differ"
    elif what := difference(folder / "run.h5md", theirs / "run.h5md"):
        return what
    return hidden(folder)


def weights(path: Path) -> bytes:
    """All tensors, without the header, which knows how long a training took."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
