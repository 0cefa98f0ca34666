"""Damage to files, and limits under which a reader has to notice it."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attncalc.model_header import signature


def damaged(content: bytes, n: int, *, seed: int, part: slice = slice(None)) -> Iterator[bytes]:
    """`n` damaged copies: flipped bits, overwritten, lost, doubled, moved and cut off bytes.

    Args:
        content: of an intact file.
        n: how many copies.
        seed: the same seed gives the same damage.
        part: where every second damage begins; the others may begin anywhere.
    """
    rng = np.random.default_rng(seed)
    first, last, _ = part.indices(len(content))
    for k in range(n):
        where = (first, last) if k % 2 else (0, len(content))
        copy = bytearray(content)
        at = int(rng.integers(*where))
        length = int(rng.integers(1, 64))
        match rng.integers(7):
            case 0 | 1:
                copy[at] ^= 1 << int(rng.integers(8))
            case 2:
                for place in rng.integers(*where, size=rng.integers(2, 10)):
                    copy[place] = int(rng.integers(256))
            case 3:
                copy[at : at + length] = rng.bytes(int(rng.integers(64)))
            case 4:
                del copy[at : at + length]
            case 5:
                other = int(rng.integers(len(content)))
                copy[at : at + length] = content[other : other + length]
            case 6:
                copy = copy[:at] if rng.integers(2) else copy + copy[at:]
        yield bytes(copy)


def rewrite(
    path: Path, change: Callable[[dict, dict[str, Tensor]], object], *, sign: bool = True
) -> None:
    """Change a model file as someone with an editor could, and give it a valid checksum again."""
    with safe_open(path, framework="pt") as file:
        found = json.loads(file.metadata()["attncalc"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(found, tensors)
    if sign and isinstance(found.get("checks"), dict):
        found["checks"] = {"sha256": signature(found, tensors)}
    save_file(tensors, path, metadata={"attncalc": json.dumps(found)})


def claim_to_unpack_to(size: int, archive: Path) -> None:
    """Let the directory of a zip file state another size of its first member, below 4 GiB.

    So does a bomb, whose content would have to be compressed first.
    """
    content = bytearray(archive.read_bytes())
    entry = content.find(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    archive.write_bytes(content)


@contextmanager
def limits(*, megabytes: int = 512, seconds: int = 20) -> Iterator[None]:
    """No more memory than now plus so much, and no more time: an explosion becomes an error."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)

    def too_long(*_: object) -> None:
        raise AssertionError(f"still reading after {seconds} s")

    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    bound = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def not_root() -> Iterator[None]:
    """As a user to whom file permissions apply."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
