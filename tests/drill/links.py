"""Every way in which a file could lead its reader elsewhere, or keep it waiting.

Elsewhere lie a pipe, which whoever opens it waits for, and a secret, which must not be told.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from attncalc import AttnCalculator, convert, data, load, md
from attncalc.model_file import checksum
from attncalc.train import Recipe
from attncalc.train.loop import read_done
from drill.trial import Trial
from drill.workers import attempts

SECRET = "XsecretX"
PIPE, OTHER, RAW, CANARY = "pipe", "other.h5", "numbers.raw", "executed"


class Way(NamedTuple):
    """A file that leads elsewhere, and who reads it."""

    kind: str
    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]


def trials(count: int, seed: int) -> Iterator[Trial]:
    """All ways, each once; for a count of less than six, 26 times as many of them."""
    del seed  # nothing is drawn by lot
    ways = list(WAYS)
    for what, name, read in READERS:
        ways += [
            Way(f"{kind} instead of {what}", name, make, read) for kind, make in PLACES.items()
        ]
    n = min(len(ways), 26 * count) if count <= 5 else max(count, len(ways))
    elsewhere()

    def attempt(number: int) -> str:
        way = ways[number % len(ways)]
        path = Path(way.name)
        try:
            way.make(path)
            return _attempt(way, path)
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    for number, said in enumerate(attempts(n, attempt)):
        yield Trial(ways[number % len(ways)].kind, said)


def _attempt(way: Way, path: Path) -> str:
    try:
        found = repr(way.read(path))
    except (ValueError, OSError) as error:
        found = str(error)
        if not found.isprintable() or len(found) > 700:
            return f"not one short line: {found[:300]!r}"
    else:
        return f"it was read: {found[:300]}"
    if Path(CANARY).exists():
        return "it was executed"
    return f"the secret is told: {found[:300]}" if SECRET in found else ""


def elsewhere() -> None:
    os.mkfifo(PIPE)
    Path("secret.txt").write_text(SECRET)
    with h5py.File(OTHER, "w") as file:
        file["text"], file["R"] = SECRET, np.ones((2, 3))
    Path(RAW).write_bytes(SECRET.encode() * 6)


# -------------------------------------------------------------- what stands in the place of a file


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "a link to a pipe": lambda path: os.symlink(PIPE, path),
    "a link to itself": lambda path: os.symlink(path.name, path),
    "a link to a secret": lambda path: os.symlink("secret.txt", path),
}
READERS: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("a model", "m.safetensors", load),
    ("a model (checksum)", "m.safetensors", checksum),
    ("a model (calculator)", "m.safetensors", lambda path: AttnCalculator(path, device="cpu")),
    ("a checkpoint of dynamics", "a.ckpt", md.load_checkpoint),
    ("a checkpoint of a training", "last.ckpt", read_done),
    ("a trajectory", "a.h5md", md.read_h5md),
    ("a recipe", "a.yaml", Recipe.from_yaml),
    ("streamed data", "b.h5", data.stream),
    *(
        (f"{suffix} data", f"a{suffix}", data.read)
        for suffix in (".npz", ".extxyz", ".db", ".traj", ".h5")
    ),
    ("weights of So3krates", "a.npz", lambda path: convert.so3krates(path, "none.json")),
    ("weights of Equiformer", "w.safetensors", lambda path: convert.equiformer(path, "none.json")),
]


# ------------------------------------------------------------------------ what leads away by itself


def hdf5(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.attrs["units"] = "E: eV"
            file["z"], file["E"], file["offsets"] = [1, 1], [-31.0], [0, 2]
            file["R"] = np.array([[0.0, 0, 0], [0, 0, 0.74]])
            change(file)

    return make


def link(file: h5py.File, source: str, name: str = "level_of_theory") -> None:
    file[name] = h5py.ExternalLink(source, "/text")


def over(file: h5py.File) -> None:
    file["away"] = h5py.ExternalLink(OTHER, "/")
    file["level_of_theory"] = h5py.SoftLink("/away/text")


def virtual(file: h5py.File, source: str) -> None:
    del file["R"]
    layout = h5py.VirtualLayout((2, 3), "f8", maxshape=(None, 3))
    layout[:] = h5py.VirtualSource(source, "R", (2, 3), maxshape=(None, 3))
    file.create_virtual_dataset("R", layout)


def external(file: h5py.File, source: str) -> None:
    file.create_dataset("level_of_theory", (1,), "S8", external=[(source, 0, 8)])


def filtered(file: h5py.File) -> None:
    del file["R"]
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((2, 3))
    created.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(file.id, b"R", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((2, 3)), created)


def nested(file: h5py.File) -> None:
    group = file["/"]
    for _ in range(3000):
        group = group.create_group("g")


def path_for_a_name(path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["away"], file["awayZtext"] = h5py.ExternalLink(OTHER, "/"), 1.0

    hdf5(change)(path)
    path.write_bytes(path.read_bytes().replace(b"awayZtext", b"away/text"))


def zip_with_paths(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in (f"../{CANARY}.npy", f"/tmp/{CANARY}.npy", f"{CANARY}.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00")


class Executes:
    def __reduce__(self) -> tuple:
        return os.mkdir, (CANARY,)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"history": [Executes()]}))


def pickled_array(path: Path) -> None:
    np.savez(path, R=np.array([Executes()], dtype=object), E=np.zeros(1))


def recipe(line: str) -> Callable[[Path], object]:
    text = "name: a\ndata: b.h5\nsplit: {sizes: [8, 2]}\nconfig: {cutoff: 4.0}\n"
    key = line.partition(":")[0]
    kept = "".join(old for old in text.splitlines(True) if not old.startswith(f"{key}:"))
    return lambda path: path.write_text(f"{kept}{line}\n")


_HDF5: dict[str, Callable[[Path], object]] = {
    "external link": hdf5(lambda file: link(file, OTHER)),
    "external link to a pipe": hdf5(lambda file: link(file, PIPE)),
    "external link nobody asks for": hdf5(lambda file: link(file, OTHER, "remark")),
    "soft link over an external one": hdf5(over),
    "virtual dataset": hdf5(lambda file: virtual(file, OTHER)),
    "virtual dataset of a pipe": hdf5(lambda file: virtual(file, PIPE)),
    "external storage": hdf5(lambda file: external(file, RAW)),
    "external storage in a pipe": hdf5(lambda file: external(file, PIPE)),
    "filter that would be loaded": hdf5(filtered),
    "3,000 nested groups": hdf5(nested),
    "link called like a path": path_for_a_name,
}
WAYS: list[Way] = [
    *(Way(f"HDF5: {kind}", "a.h5", make, data.read) for kind, make in _HDF5.items()),
    *(Way(f"HDF5, streamed: {kind}", "b.h5", make, data.stream) for kind, make in _HDF5.items()),
    *(Way(f"H5MD: {kind}", "a.h5md", make, md.read_h5md) for kind, make in _HDF5.items()),
    Way("zip with paths for names", "a.npz", zip_with_paths, data.read),
    Way("pickle for a checkpoint", "last.ckpt", pickled, read_done),
    Way("pickle for a model", "m.safetensors", pickled, load),
    Way("pickled array", "a.npz", pickled_array, lambda path: data.read(path, energy_unit="eV")),
    *(
        Way(f"recipe with {line}", "a.yaml", recipe(line), Recipe.from_yaml)
        for line in (
            *("name: ..", "name: a/b", r'name: "a\nb"', r'name: "\e[2J"', "epochs: 1:30"),
            *("epochs: 017", "labels: !!python/object/apply:os.mkdir [executed]"),
        )
    ),
]
