"""Disks that are full: one line, nothing half-written, and the same work done once there is space.

Root gets disks of any size in memory (tmpfs); for everybody else, and by turns, files may not grow
beyond a size (`ulimit -f`).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ase.io import read

from attncalc.md import read_h5md
from drill.files import COPPER, difference, hidden, write_inputs
from drill.forked import Ended, Forked
from drill.kills import weights
from drill.trial import Trial

MD = ("md", "copper.extxyz", "--model", COPPER, "--steps", 40, "--every", 2, "-o")
LARGE = ("md", "large.extxyz", "--model", COPPER, "--steps", 60, "--every", 1, "-o")
# command without its output, and the output
COMMANDS = {
    "md .h5md": (LARGE, "run.h5md"),
    "md .xyz": (MD, "run.xyz"),
    "md .traj": (MD, "run.traj"),
    "md by ASE, .xyz": ((*MD[:-1], "--integrator", "ase", "-o"), "run.xyz"),
    "md by ASE, .traj": ((*MD[:-1], "--integrator", "ase", "-o"), "run.traj"),
    "relax": (
        ("relax", "batch.extxyz", "--model", COPPER, "--steps", 3, "--fmax", 5, "-o"),
        "r.xyz",
    ),
    "train": (("train", "so3krates.yaml", "-o"), "run"),
}
# a run that goes on has most to lose
KINDS = ("md .h5md", "md .xyz", "md .h5md", "train", "md .h5md", "md .traj", "md .h5md", "relax")
KINDS = (*KINDS, "md .h5md", "md by ASE, .xyz", "md .h5md", "md by ASE, .traj")
LINE = re.compile(r"Error: .*no space left on the disk for \S+.*: .+")


def trials(count: int, seed: int) -> Iterator[Trial]:
    """Let commands run out of space at random points, and finish their work afterwards."""
    chance = random.Random(seed)
    write_inputs()
    whole = Path("whole")
    peaks: dict[str, int] = {}
    with Forked() as commands:
        for number in range(count):
            name = KINDS[number % len(KINDS)]
            command, output = COMMANDS[name]
            theirs = whole / name.replace(" ", "-")
            if name not in peaks:
                theirs.mkdir(parents=True)
                ended = commands.run(*command, theirs / output)
                if ended.status != 0:
                    yield Trial(f"{name}: full disk", f"not run at all: {ended.error}")
                    return
                peaks[name] = sum(file.stat().st_size for file in theirs.rglob("*"))
            with disk(number) as (folder, resize):
                # a running .h5md takes twice its size
                share = chance.uniform(0.0, 2.2 if name == "md .h5md" else 1.0)
                in_memory = resize(max(int(peaks[name] * share), 1 << 12))
                size = int(peaks[name] * min(share, share / 2.2 + 0.2))
                limit = {} if in_memory else {"limit": size}
                ended = commands.run(*command, folder / output, **limit)
                resize(64 << 20)
                failure = _failure(commands, name, ended, folder, theirs)
            kind = f"{name}: {'full disk' if in_memory else 'files of limited size'}"
            told = f" ({size} bytes, seed {seed}, trial {number})" if failure else ""
            yield Trial(kind, failure + told)


def _failure(commands: Forked, name: str, ended: Ended, folder: Path, theirs: Path) -> str:
    """What went wrong, if anything."""
    command, output = COMMANDS[name]
    target = folder / output
    if ended.status == 0:  # there was enough
        return _other(name, target, theirs / output) or hidden(folder)
    lines = ended.error.strip().splitlines()
    told = lines[-1] if lines else ""
    of_training = name == "train"  # which says more on the way
    if ended.status != 1 or not LINE.fullmatch(told) or (len(lines) > 1 and not of_training):
        return f"ended with {ended.status} and {len(lines)} lines: {ended.error[-300:]}"
    if "Traceback" in ended.error:
        return f"a traceback: {ended.error[-300:]}"
    if what := hidden(folder) or _half(folder):
        return what
    if "--resume" in told:
        again = commands.run("md", "--resume", target)
    elif target.exists() and not of_training:  # as far as the line says
        return ""
    else:
        again = commands.run(*command, target)
    if again.status != 0:
        return f"does not work with space either: {again.error.strip()[-300:]} (before: {told})"
    return _other(name, target, theirs / output) or hidden(folder)


def _half(folder: Path) -> str:
    """Which visible file is not whole."""
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".h5md":
                read_h5md(path)
            elif path.suffix in (".xyz", ".traj"):
                read(path, ":")
            elif path.suffix == ".csv" and not path.read_bytes().endswith(b"\n"):
                return f"{path.name} ends within a line"
            elif path.suffix == ".png" and not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
                return f"{path.name} is cut off"
        except (OSError, ValueError) as error:
            return f"{path.name} is not whole: {error}"
    return ""


def _other(name: str, ours: Path, theirs: Path) -> str:
    """What differs from the work that was never short of space."""
    if name == "train":
        file = "tiny.safetensors"
        return "" if weights(ours / file) == weights(theirs / file) else "the weights differ"
    if name == "md .h5md":
        return difference(ours, theirs)
    same = ours.read_bytes() == theirs.read_bytes()
    return "" if same else f"{ours.name} differs"


@contextmanager
def disk(number: int):
    """A folder, and what gives its disk a size [bytes] where that can be done."""
    folder = Path("disks") / str(number)
    folder.mkdir(parents=True)
    # by turns, so that both are tried; every second of every kind
    may = os.geteuid() == 0 and (number // len(KINDS) + number // 2) % 2 == 0
    mounted = may and _mount(folder, "size=64m")

    def resize(size: int) -> bool:
        return mounted and _mount(folder, f"remount,size={size}")

    try:
        yield folder, resize
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
    shutil.rmtree(folder)


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0
