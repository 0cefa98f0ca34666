"""Power cuts: every state that the files of a run may be in afterwards.

A file that was not on the disk yet is its old version, its new one, cut off anywhere, filled up
with zeros, empty or missing. What was on the disk is not damaged by a power cut; where something
else has damaged it, one line says so.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from drill.files import COPPER, difference, hidden, write_inputs
from drill.forked import Ended, Forked
from drill.kills import weights
from drill.trial import Trial

MD = ("md", "copper.extxyz", "--model", COPPER, "--every", 2)
N_STEPS = 40


def trials(count: int, seed: int) -> Iterator[Trial]:
    """Put the files of runs and trainings into such states, and go on."""
    chance = random.Random(seed)
    write_inputs()
    with Forked() as commands:
        states = _run_states(commands)
        epochs: list[Path] = []
        for number in range(count):
            of_training = number % 4 == 3
            if of_training and not epochs:
                epochs = _training_states(commands)
            folder = Path("trials") / str(number)
            shutil.copytree(chance.choice(epochs if of_training else states), folder)
            one = _training if of_training else _run
            kind, failure = one(commands, folder, chance, number)
            if failure:
                failure += f" (seed {seed}, trial {number})"
            yield Trial(kind, failure)


def _run_states(commands: Forked) -> list[Path]:
    """Folders with the files of a run as they are after some steps."""
    folders = []
    for n_steps in (2, 7, 20, 33, N_STEPS):
        folder = Path("states") / str(n_steps)
        folder.mkdir(parents=True)
        done = commands.run(*MD, "--steps", n_steps, "-o", folder / "run.h5md")
        assert done.status == 0, done.error
        (folder / "run.png").unlink()  # which is drawn at the end
        folders.append(folder)
    return folders


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _zeros_behind(content: bytes, chance: random.Random) -> bytes:
    return _cut(content, chance).ljust(len(content), b"\0")


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut off": _cut,
    "zeros at the end": _zeros_behind,
    "longer, with zeros": lambda content, chance: content + bytes(chance.randrange(1, 9000)),
    "empty": lambda content, chance: b"",
    "missing": lambda content, chance: None,
}


def _damage(path: Path, name: str, chance: random.Random) -> None:
    content = DAMAGES[name](path.read_bytes(), chance)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def _run(commands: Forked, folder: Path, chance: random.Random, number: int) -> tuple[str, str]:
    """One state of a run: what was tried, and what went wrong."""
    states = sorted(folder.parent.parent.joinpath("states").iterdir(), key=lambda p: int(p.name))
    whole, path = states[-1] / "run.h5md", folder / "run.h5md"
    what = ("log", "old checkpoint", "unfinished files", "first checkpoint only", "synced")[
        number % 5
    ]
    if what == "log":
        name = chance.choice(list(DAMAGES))
        _damage(path.with_suffix(".csv"), name, chance)
    elif what == "old checkpoint":
        older = chance.choice(states)
        shutil.copy(older / "run.ckpt", folder)
        newer = chance.choice([one for one in states if int(one.name) >= int(older.name)])
        shutil.copy(newer / "run.h5md", folder)
        shutil.copy(chance.choice(states) / "run.csv", folder)
        if chance.random() < 0.5:
            _damage(path.with_suffix(".csv"), chance.choice(list(DAMAGES)), chance)
    elif what == "unfinished files":
        for name in (".run.h5md.twin", ".run.h5md.spare", ".run.h5md.lock", ".run.csv.lock"):
            (folder / name).write_bytes(_zeros_behind(path.read_bytes(), chance))
        for name in ("run.ckpt", "run.png"):
            (folder / f".{name}.{_dead_owner()}.part").write_bytes(bytes(chance.randrange(3000)))
    elif what == "first checkpoint only":
        return "run: only the first checkpoint on disk", _only_first(
            commands, folder, whole, chance
        )
    else:
        return "run: a synced file damaged", _synced(commands, folder, whole, chance)
    ended = commands.run("md", "--resume", path, "--steps", N_STEPS)
    if ended.status != 0:
        return f"run: {what}", f"does not go on: {ended.error.strip()}"
    return f"run: {what}", difference(path, whole) or hidden(folder)


def _dead_owner() -> str:
    from attncalc.files import writing as files

    return f"{files._HOST}.4194304"  # beyond the largest number of a process


def _only_first(commands: Forked, folder: Path, whole: Path, chance: random.Random) -> str:
    """The checkpoint of step 0 is on the disk before anything else is there."""
    for file in folder.iterdir():
        file.unlink()
    path = folder / "run.h5md"
    began = commands.run(*MD, "--steps", N_STEPS, "-o", path, first_only=True)
    if not path.with_suffix(".ckpt").exists():
        return f"there is no first checkpoint: {began}"
    log = path.with_suffix(".csv")
    state = chance.choice(["missing", "empty", "cut off"])
    log.unlink(missing_ok=True)
    if state != "missing":
        log.write_bytes(b"" if state == "empty" else b"time_fs,temp")
    ended = commands.run("md", "--resume", path)
    if ended.status != 0:
        return f"does not go on: {ended.error.strip()}"
    return difference(path, whole) or hidden(folder)


def _synced(commands: Forked, folder: Path, whole: Path, chance: random.Random) -> str:
    """One line, or the whole run where the damage does not matter."""
    path = folder / chance.choice(["run.h5md", "run.ckpt"])
    name = chance.choice(list(DAMAGES))
    _damage(path, name, chance)
    ended = commands.run("md", "--resume", folder / "run.h5md", "--steps", N_STEPS)
    if ended.status == 0:
        return difference(folder / "run.h5md", whole)
    return _not_one_line(ended, path.stem)


def _not_one_line(ended: Ended, name: str) -> str:
    lines = ended.error.strip().splitlines()
    fine = ended.status == 1 and lines and lines[-1].startswith("Error: ") and name in lines[-1]
    if fine and "Traceback" not in ended.error:
        return ""
    return f"ended with {ended.status}: {ended.error[-400:]}"


def _training_states(commands: Forked) -> list[Path]:
    """Folders of a training after some epochs, the last of them complete."""
    whole = Path("epochs") / "whole"
    done = commands.run("train", "so3krates.yaml", "-o", whole)
    assert done.status == 0, done.error
    folders = []
    for k in range(3):
        folder = Path("epochs") / f"killed-{k}"
        commands.run(
            "train", "so3krates.yaml", "-o", folder, kill_after=done.seconds * (0.5 + 0.15 * k)
        )
        if (folder / "last.ckpt").exists():
            folders.append(folder)
    return [*folders, whole]


def _training(
    commands: Forked, folder: Path, chance: random.Random, number: int
) -> tuple[str, str]:
    """One state of a training: what was tried, and what went wrong."""
    name = ("metrics.csv", "learning_curve.png", "last.ckpt", "tiny.safetensors", "recipe.json")
    path = folder / name[number // 4 % len(name)]
    damage = chance.choice(list(DAMAGES))
    if path.exists():
        _damage(path, damage, chance)
    (folder / f".last.ckpt.{_dead_owner()}.part").write_bytes(b"half")
    ended = commands.run("train", "so3krates.yaml", "-o", folder)
    kind = f"training: {path.name}"
    if ended.status != 0:
        if path.name in ("metrics.csv", "learning_curve.png"):
            return kind, f"{damage}: does not go on: {ended.error[-300:]}"
        return kind, _not_one_line(ended, path.name)
    model = Path("epochs/whole/tiny.safetensors")
    if path.name != "tiny.safetensors" and weights(folder / model.name) != weights(model):
        return kind, f"{damage}: the weights differ"
    for file in ("metrics.csv", "learning_curve.png"):
        if not (folder / file).read_bytes().strip(b"\0"):
            return kind, f"{damage}: {file} is not there"
    return kind, hidden(folder)
