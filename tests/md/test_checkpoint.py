"""Checkpoints: what is read is what was written, a run goes on bit for bit, damage is named."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from contract import ethanol
from damage import limits
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from states import assert_equal
from toys import zeros_of

from attncalc import System, load, md
from attncalc.md import checkpoint

FS = units.fs
COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
LANGEVIN = md.Langevin(timestep=0.5 * FS, temperature=(300.0, 400.0), friction=0.01 / FS)


@pytest.mark.parametrize("fixed", [None, torch.arange(64) < 5], ids=["free", "fixed"])
def test_a_run_that_was_interrupted_is_the_same_run(tmp_path: Path, fixed) -> None:
    potential = load(COPPER)
    crystal = bulk("Cu", cubic=True) * (2, 2, 2)
    batch = System.from_ase([crystal, crystal])
    first = LANGEVIN.init(potential, batch, seed=4, fixed=fixed)
    whole = md.run(LANGEVIN, potential, first, 60)
    file = tmp_path / "run.ckpt"
    saved = md.Checkpoint(file, every=20, info={"model": "copper"})
    md.run(LANGEVIN, potential, first, 37, callbacks=[saved])
    integrator, state, info = md.load_checkpoint(file)
    assert (integrator, state.step, info) == (LANGEVIN, 37, {"model": "copper"})
    assert_equal(md.run(integrator, potential, state, 23), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]


def test_verlet_too(tmp_path: Path) -> None:
    potential = load("so3krates-ethanol")
    verlet = md.Verlet(0.5 * FS)
    first = verlet.init(potential, System.from_ase(ethanol()))
    md.run(verlet, potential, first, 5, callbacks=[md.Checkpoint(tmp_path / "c", every=5)])
    integrator, state, _ = md.load_checkpoint(tmp_path / "c")
    assert integrator == verlet
    whole = md.run(verlet, potential, first, 12)
    assert_equal(md.run(verlet, potential, state, 7), whole)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Content of a checkpoint after one step."""
    potential = load("so3krates-ethanol")
    langevin = md.Langevin(0.5 * FS, 300.0, 0.01 / FS)
    state = langevin.init(potential, System.from_ase(ethanol()))
    file = tmp_path_factory.mktemp("run") / "run.ckpt"
    md.run(langevin, potential, state, 1, callbacks=[md.Checkpoint(file)])
    return file.read_bytes()


@pytest.fixture
def written(content: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "run.ckpt"
    file.write_bytes(content)
    return file


def test_nothing_is_overwritten(written: Path) -> None:
    content = written.read_bytes()
    potential = load("so3krates-ethanol")
    integrator, state, _ = md.load_checkpoint(written)
    with pytest.raises(FileExistsError, match=r"run\.ckpt exists"):
        md.run(integrator, potential, state.as_first(), 1, callbacks=[md.Checkpoint(written)])
    assert written.read_bytes() == content


@pytest.mark.parametrize("other", ["seed", "atoms", "integrator"])
def test_the_checkpoint_of_another_run_is_refused_and_stays(other: str, written: Path) -> None:
    content = written.read_bytes()
    integrator, state, _ = md.load_checkpoint(written)
    md.Checkpoint(written).resume(state, integrator)
    if other == "seed":
        state = state.replace(seed=state.seed + 1)
    elif other == "atoms":
        state = state.replace(masses=2 * state.masses)
    else:
        integrator = md.Verlet(0.5 * FS)
    with pytest.raises(ValueError, match=r"run\.ckpt: the checkpoint of another run"):
        md.Checkpoint(written).resume(state, integrator)
    assert written.read_bytes() == content


def test_seconds_between_two_checkpoints(tmp_path: Path, monkeypatch) -> None:
    """A run of few seconds saves its first and its last state only."""
    saved: list[int] = []
    keep = lambda path, integrator, state, info: saved.append(state.step)  # noqa: E731
    monkeypatch.setattr(checkpoint, "save_checkpoint", keep)
    verlet = md.Verlet(0.5 * FS)
    first = verlet.init(zeros_of, System.from_ase(ethanol()), temperature=300.0)
    for seconds, steps in ((0.0, [0, 2, 4, 5]), (1000.0, [0, 5])):
        saved.clear()
        callback = md.Checkpoint(tmp_path / "c", every=2, seconds=seconds)
        md.run(verlet, zeros_of, first, 5, callbacks=[callback])
        assert saved == steps


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        md.load_checkpoint(tmp_path / "none")


def test_damage_is_named(written: Path) -> None:
    """Cut off, or with bits turned: an error with the file's name, or the same state."""
    content = written.read_bytes()
    sound = md.load_checkpoint(written)
    chance = random.Random(0)
    for _ in range(300):
        broken = bytearray(content)
        if chance.random() < 0.3:
            broken = broken[: chance.randrange(len(broken))]
        else:
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        written.write_bytes(broken)
        message = ""
        try:
            found = md.load_checkpoint(written)
            assert (found.integrator, found.info) == (sound.integrator, sound.info)
            assert_equal(found.state, sound.state)
        except ValueError as error:
            message = str(error)
        named = f"{written}: not a checkpoint of a run, or damaged"
        assert not message or message.startswith(named)


def test_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a checkpoint of a run"):
        md.load_checkpoint(COPPER)


def test_a_file_without_end(tmp_path: Path) -> None:
    """Sparse: it takes no room on the disk, and must take none in memory."""
    path = tmp_path / "run.ckpt"
    path.touch()
    os.truncate(path, 1 << 40)
    with limits(), pytest.raises(ValueError, match=r"run.ckpt: .*1024 GiB is more than any such"):
        md.load_checkpoint(path)


# ------------------------------------------------------------- hostile, with a right checksum


def forged(
    path: Path, *, header: dict | None = None, tensors: dict | None = None, info: dict | None = None
) -> None:
    """Change what stands in a checkpoint, and sign it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    stored = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][checkpoint.KEY])
    values = tensors_of(content)
    for name, change in (tensors or {}).items():
        values[name] = change(values.get(name))
    stored |= header or {}
    if info is not None:
        stored["info"] |= info
    text = json.dumps(stored)
    signed = {checkpoint.KEY: text, "sha256": checkpoint._checksum(text, values)}
    path.write_bytes(bytes_of(values, signed))


def filled(value: float):
    return lambda tensor: torch.full_like(tensor, value)


LANGEVIN_OF_ONE = {"name": "langevin", "timestep": 0.05, "temperature": 300.0, "friction": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": {"step": -1}}, "step must be at least 0, got -1"),
        ({"header": {"step": 1.5}}, "step must be a whole number, got 1.5"),
        ({"header": {"step": float("nan")}}, "step must be a whole number, got nan"),
        ({"header": {"step": 2**70}}, "step must be at most"),
        ({"header": {"seed": -1}}, "seed must be at least 0, got -1"),
        ({"header": {"seed": True}}, "seed must be a whole number, got True"),
        ({"header": {"format": [1]}}, "format"),
        ({"header": {"info": [1]}}, "info is no dictionary"),
        ({"header": {"integrator": "langevin"}}, ""),
        ({"header": {"integrator": {"name": ["x"]}}}, ""),
        ({"header": {"integrator": LANGEVIN_OF_ONE | {"more": 1}}}, "other options of the integ"),
        *(
            ({"header": {"integrator": LANGEVIN_OF_ONE | {name: value}}}, name)
            for name in ("timestep", "friction", "temperature")
            for value in (0, -1.0, float("nan"), float("inf"))
        ),
        ({"header": {"integrator": LANGEVIN_OF_ONE | {"timestep": "1"}}}, "must be numbers"),
        ({"header": {"integrator": LANGEVIN_OF_ONE | {"timestep": True}}}, "must be numbers"),
        ({"header": {"integrator": LANGEVIN_OF_ONE | {"temperature": [1, 2]}}}, "2 temperatures"),
        ({"header": {"integrator": LANGEVIN_OF_ONE | {"temperature": [None]}}}, ""),
        ({"tensors": {"replicas": filled(-7)}}, "replicas holds -7, the least is 0"),
        ({"tensors": {"replicas": filled(2**40)}}, "replicas are beyond"),
        ({"tensors": {"masses": filled(0)}}, "masses holds 0"),
        ({"tensors": {"masses": filled(-1)}}, "masses holds -1"),
        ({"tensors": {"masses": filled(float("nan"))}}, "masses holds numbers that are not finite"),
        ({"tensors": {"masses": lambda t: t.float()}}, "masses must be"),
        ({"tensors": {"energy": filled(float("inf"))}}, "energy holds numbers"),
        ({"tensors": {"limit": filled(float("nan"))}}, "limit holds numbers"),
        ({"tensors": {"n_dof": filled(0)}}, "n_dof holds 0"),
        ({"tensors": {"system.system_idx": filled(10**12)}}, "order of their systems"),
        ({"tensors": {"system.system_idx": filled(-1)}}, "system_idx holds -1"),
        ({"tensors": {"atom_in_system": filled(10**12)}}, "atom_in_system does not count"),
        ({"tensors": {"system.atomic_numbers": filled(10**12)}}, "no known element"),
        ({"tensors": {"fixed": lambda _: torch.arange(9) == 4}}, "fixed atoms move"),
        ({"tensors": {"system.charge": filled(1e300)}}, "charge"),
        ({"tensors": {"system.charge": filled(0.5)}}, "charge"),
        ({"tensors": {"system.spin": filled(99)}}, "spin"),
        ({"tensors": {"system.pbc": filled(True)}}, "cell vectors"),
        ({"tensors": {"system.positions": lambda t: t[:0]}}, "no atoms"),
        ({"tensors": {"system.positions": lambda t: t.half()}}, "positions must be"),
    ],
)
def test_hostile_content_is_named(changes: dict, message: str, written: Path) -> None:
    forged(written, **changes)
    with pytest.raises(ValueError, match=r"run\.ckpt: not a checkpoint of a run, or damaged") as e:
        md.load_checkpoint(written)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_settings_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    potential = load("so3krates-ethanol")
    langevin = md.Langevin(np.float32(0.5 * FS), np.float32(300), np.float32(0.01 / FS))
    first = langevin.init(potential, System.from_ase(ethanol()))
    saved = md.Checkpoint(tmp_path / "c", every=5)
    md.run(langevin, potential, first, 5, callbacks=[saved])
    integrator, state, _ = md.load_checkpoint(tmp_path / "c")
    assert (integrator.timestep, integrator.friction) == (langevin.timestep, langevin.friction)
    whole = md.run(langevin, potential, first, 12)
    assert_equal(md.run(integrator, potential, state, 7), whole)
