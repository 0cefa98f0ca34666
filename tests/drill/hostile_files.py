"""Damaged files of every format: read rightly, or refused by one line that names them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import h5py
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from damage import damaged
from safetensors.torch import save as safetensors_bytes

from attncalc import convert, data, load, md
from attncalc.data import Dataset
from attncalc.evaluator import Evaluator
from attncalc.md.checkpoint import save_checkpoint
from attncalc.train import Recipe
from attncalc.train.loop import read_done
from drill.trial import Trial
from drill.workers import attempts, refusal

COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
RECIPE = """name: mine
data: mine.extxyz
split: {sizes: [8, 2]}
config: {cutoff: 4.0, num_features: 32, degrees: [1, 2]}
epochs: 100
learning_rate: 1e-3
schedule: cosine
denoising: {noise: 0.05}
"""


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        kind: row of the table.
        name: of the file.
        write: makes an intact one.
        read: what users call.
        told: of what was read, for the comparison with the intact file; raises AssertionError if it
            makes no sense.
        exact: whether every change of a number must be noticed: the file has a checksum.
        head: bytes at the beginning, where every second damage is done.
        beside: files that are read with it, which a message may name instead.
    """

    kind: str
    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    told: Callable[[Any], object]
    exact: bool = False
    head: int = 4096
    beside: tuple[str, ...] = ()


def trials(count: int, seed: int) -> Iterator[Trial]:
    """`count` files, of all formats in turn."""
    formats = FORMATS
    contents = []
    for one in formats:
        path = Path(one.name)
        one.write(path)
        contents.append(path.read_bytes())
    intact = {}
    for which, one in enumerate(formats):
        if one.exact:
            intact[which] = _read(one, Path(one.name))

    def attempt(number: int) -> str:
        which = number % len(formats)
        one, content = formats[which], contents[which]
        path = Path(one.name)
        damages = damaged(content, 2, seed=seed + number, part=slice(0, one.head))
        first, second = damages
        path.unlink(missing_ok=True)
        path.write_bytes(second if number // len(formats) % 2 else first)
        try:
            found = _read(one, path)
        except Exception as error:
            said = refusal(error, one.name, *one.beside)
        else:
            same = not one.exact or found == intact[which]
            said = "" if same else "a damaged file was read, and is not what it was"
        path.unlink()
        path.write_bytes(content)  # others are read with it
        return f"{said} (number {number}, seed {seed})" if said else ""

    for number, said in enumerate(attempts(count, attempt)):
        yield Trial(f"damaged {formats[number % len(formats)].kind}", said)


def _read(one: Format, path: Path) -> object:
    return one.told(one.read(path))


# ------------------------------------------------------------------------------- what is written


def structures(n: int = 4) -> list[Atoms]:
    found = []
    for k in range(n):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.05, seed=k)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * k, forces=np.full((4, 3), 0.1 * k))
        found.append(atoms)
    return found


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "z": np.array([8, 1, 1]),
        "R": rng.normal(size=(4, 3, 3)) + np.arange(3)[:, None],
        "E": rng.normal(size=4),
        "F": rng.normal(size=(4, 3, 3)),
        "units": np.array("E: eV; F: eV/angstrom; R: angstrom"),
    }


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for group in ("a", "b"):
            for name, array in arrays().items():
                if name != "units":
                    file[f"{group}/{name}"] = array
        file["a"]["smiles"], file["b/F2"] = ["O"], h5py.SoftLink("/b/F")
        file.attrs["units"] = str(arrays()["units"])


def write_rows(path: Path) -> None:
    data.write_hdf5([data.from_ase(structures())], path)


def _run(trajectory: Path, checkpoint: Path | None = None) -> None:
    force = Evaluator(load(COPPER))
    from attncalc import System

    integrator = md.Verlet(0.05)
    state = integrator.init(force, System.from_ase(structures(2)), temperature=10.0)
    if checkpoint is not None:
        save_checkpoint(checkpoint, integrator, state, {"a": 1})
        return
    md.run(integrator, force, state, 4, callbacks=[md.H5MDWriter(trajectory, every=1)])


def write_training(path: Path) -> None:
    history = [{"epoch": 1.0, "loss": 0.5}]
    torch.save({"history": history, "state_dict": {"a": torch.ones(100)}, "epoch": 1}, path)


def write_params(path: Path) -> None:
    np.savez(path, **{"params/feature_embeddings_0/Embed_0/embedding": np.ones((10, 8))})
    Path("hyper.json").write_text(
        json.dumps({"form": "sphc", "features": 8, "chi_cut_dynamic": False})
    )


def write_hyper(path: Path) -> None:
    write_params(Path("params.npz"))
    path.write_text(Path("hyper.json").read_text())


def write_weights(path: Path) -> None:
    path.write_bytes(safetensors_bytes({"a": torch.ones(50), "b.c": torch.zeros(2, 3)}))
    Path("config.json").write_text(json.dumps({"clebsch_gordan": "e3nn>=0.5"}))


# ---------------------------------------------------------------------------------- what is read


def of_potential(potential: Any) -> object:
    return [tensor.double().sum().item() for tensor in potential.state_dict().values()]


def of_dataset(dataset: Dataset) -> object:
    dataset = dataset.in_memory() if isinstance(dataset, data.StreamedDataset) else dataset
    assert len(dataset) > 0
    assert np.isfinite(dataset.energies).all()
    for k, atoms in enumerate(dataset.structures):
        assert np.isfinite(atoms.positions).all()
        assert dataset.forces is None or np.isfinite(dataset.forces[k]).all()
    return dataset.energies.tolist()


def of_frames(frames: list[Atoms]) -> object:
    return [frame.get_potential_energy() for frame in frames]


def of_restart(restart: Any) -> object:
    return [restart.state.step, restart.state.momenta.tolist(), restart.info]


def of_history(done: Any) -> object:
    assert all(isinstance(row, dict) for row in done.history)
    return done.history


def of_recipe(recipe: Recipe) -> object:
    assert recipe.epochs > 0
    assert ".." not in Path(recipe.name).parts
    return recipe.as_dict()


def refused_anyway(_: Any) -> object:
    raise AssertionError("it was read, though hyper-parameters are missing")


FORMATS = (
    Format("model file", "a.safetensors", lambda p: p.write_bytes(COPPER.read_bytes()), load,
           of_potential, exact=True, head=8000),
    Format("checkpoint of dynamics", "a.ckpt", lambda p: _run(p, p), md.load_checkpoint, of_restart,
           exact=True),
    Format("checkpoint of a training", "last.ckpt", write_training, read_done, of_history),
    Format(".npz data", "a.npz", lambda p: np.savez(p, **arrays()), data.read, of_dataset),
    Format("compressed .npz data", "b.npz", lambda p: np.savez_compressed(p, **arrays()), data.read,
           of_dataset),
    Format("extended XYZ data", "a.extxyz", lambda p: ase.io.write(p, structures()), data.read,
           of_dataset),
    Format("HDF5 data", "a.h5", write_hdf5, data.read, of_dataset),
    Format("HDF5 data, streamed", "b.h5", write_rows, data.stream, of_dataset),
    Format("ASE database", "a.db", lambda p: ase.io.write(p, structures()), data.read, of_dataset),
    Format("ASE .traj data", "a.traj", lambda p: ase.io.write(p, structures()), data.read,
           of_dataset),
    Format("H5MD trajectory", "a.h5md", _run, md.read_h5md, of_frames),
    Format("recipe", "a.yaml", lambda p: p.write_text(RECIPE), Recipe.from_yaml, of_recipe),
    Format("weights for `convert so3krates`", "params.npz", write_params,
           lambda p: convert.so3krates(p, "hyper.json"), refused_anyway, beside=("hyper.json",)),
    Format("hyper-parameters for `convert`", "hyper.json", write_hyper,
           lambda p: convert.so3krates("params.npz", p), refused_anyway, beside=("params.npz",)),
    Format("weights for `convert equiformer`", "w.safetensors", write_weights,
           lambda p: convert.equiformer(p, "config.json"), refused_anyway,
           beside=("config.json",)),
)  # fmt: skip
