"""Model files: the same bits back, or an error that names the file; never any code."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import ethanol, randomise, result_of
from damage import damaged, limits, not_root, rewrite
from networks import tiny_so3krates
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from attncalc import model_file
from attncalc.calibrate import calibrate
from attncalc.fast import lower
from attncalc.model_file import checksum, header, load, save, shipped_models
from attncalc.model_header import StoredModel, signature
from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates import So3krates
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Committee, Potential, evaluate
from attncalc.structures import fresh_graphs
from attncalc.system import System

ELEMENTS = (1, 6, 8)
CONFIG = tiny_so3krates(4.0, avg_num_neighbors=7.3, num_basis=4, head_features=4)
TRAINING = {"data": "rMD17 ethanol", "errors": {"force": 3.1}, "elements": {17: 1, 6: 2, 1: 3}}


def small_potential(dtype: torch.dtype = torch.float32, *, zbl: bool = True) -> Potential:
    torch.manual_seed(0)
    network = So3krates(CONFIG, len(ELEMENTS)).double()
    randomise(network)
    terms = [ZBLRepulsion(ZBLConfig(4.0, "cosine"), ELEMENTS)] if zbl else []
    for term in terms:
        randomise(term)
    return Potential(
        network.to(dtype),
        ELEMENTS,
        reference_energies=[-13.6 / 3, -1035.1, math.pi],
        scale=[1.0, 0.1, 1 / 3],
        pair_terms=terms,
        training=TRAINING,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(small_potential(), path)
    return path


@pytest.fixture
def path_in_memory(path: Path) -> Iterator[Path]:
    """Where there is a file system in memory: for files that are written thousands of times."""
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else path.parent
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(shutil.copy(path, name))


def assert_same_bits(actual: Potential, expected: Potential) -> None:
    ours, theirs = result_of(actual, ethanol()), result_of(expected, ethanol())
    for name in ("energy", "energies", "forces", "strain_gradient"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


# ---------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("zbl", [False, True], ids=["network", "with ZBL"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_bit_equal(dtype: torch.dtype, zbl: bool, tmp_path: Path) -> None:
    original = small_potential(dtype, zbl=zbl)
    save(original, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.dtype == dtype
    assert loaded.species == ELEMENTS
    assert loaded.network.config == CONFIG
    assert loaded.cutoff == 4.0
    ours, theirs = loaded.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
        assert ours[name].dtype == tensor.dtype, name
    assert_same_bits(loaded, original)


def test_environments_of_the_training_come_back(tmp_path: Path) -> None:
    """With the same bits of forces; in another dtype too; of a committee, each member's."""
    bare, told = small_potential(), small_potential()
    frames = [ethanol() for _ in range(3)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.01, seed=seed)
    calibrate(told, frames)
    save(told, tmp_path / "model.safetensors")
    for dtype in ("float32", "float64"):
        found = load(tmp_path / "model.safetensors", dtype=dtype).environments
        assert found is not None
        assert not found.has_clusters
        for name in ("mean", "whiten", "centres", "closest"):
            ours, theirs = getattr(found, name), getattr(told.environments, name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), name
        assert found.n_atoms == (18, 6, 3)
    assert_same_bits(load(tmp_path / "model.safetensors"), bare)
    assert header(tmp_path / "model.safetensors")["novelty"]["n_structures"] == 3


def test_clusters_of_the_training_come_back(tmp_path: Path) -> None:
    told = clustered()
    save(told, tmp_path / "model.safetensors")
    found = load(tmp_path / "model.safetensors", dtype="float64").environments
    assert found is not None
    assert found.centres.dtype == np.float32
    assert np.array_equal(found.centres, told.environments.centres)
    assert header(tmp_path / "model.safetensors")["novelty"]["n_centres"] == 5


def clustered() -> Potential:
    """With clusters of any values."""
    potential = small_potential()
    calibrate(potential, [ethanol()] * 3)
    known = potential.environments
    assert known is not None
    shape = (3, known.whiten.shape[2], 5)
    centres = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    potential.environments = dataclasses.replace(known, centres=centres)
    return potential


def test_a_committee_takes_over_environments_of_its_members(tmp_path: Path) -> None:
    one, other = small_potential(), small_potential()
    other.scale += 1
    calibrate(other, [ethanol()])
    save(one, tmp_path / "one.safetensors")
    save(other, tmp_path / "other.safetensors")
    pair = Committee([load(tmp_path / f"{name}.safetensors") for name in ("one", "other")])
    save(pair, tmp_path / "pair.safetensors", refer_to=["other"])
    found = load(tmp_path / "pair.safetensors")
    assert [member.environments is not None for member in found.members] == [False, True]
    described = header(tmp_path / "pair.safetensors")["members"]
    assert ["novelty" in member for member in described] == [False, True]


def test_saving_again_gives_the_same_file(path: Path, tmp_path: Path) -> None:
    save(load(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_loaded_models_do_not_train(path: Path) -> None:
    loaded = load(path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_another_dtype_keeps_exact_constants(tmp_path: Path) -> None:
    """A float32 file in float64: float32's parameters, but cutoffs, centres, ... in float64."""
    save(small_potential(torch.float32), tmp_path / "single.safetensors")
    loaded = load(tmp_path / "single.safetensors", dtype="float64")
    exact = small_potential(torch.float64)
    with torch.no_grad():
        for parameter in exact.network.parameters():
            parameter.copy_(parameter.float())
    assert loaded.dtype == torch.float64
    for (name, ours), (_, theirs) in zip(
        loaded.named_buffers(), exact.named_buffers(), strict=True
    ):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs), name
    assert_same_bits(loaded, exact)
    rounded = small_potential(torch.float32)
    for module in rounded.modules():
        if hasattr(module, "_exact"):
            module._exact.clear()  # what a plain buffer would have become
    a, b = (result_of(p, ethanol()).energy for p in (rounded.double(), exact))
    assert not torch.equal(a, b)


def test_a_float64_file_in_float32(tmp_path: Path) -> None:
    save(small_potential(torch.float64), tmp_path / "double.safetensors")
    loaded = load(tmp_path / "double.safetensors", dtype="float32")
    assert loaded.dtype == torch.float32
    assert loaded.reference_energies.dtype == loaded.scale.dtype == torch.float64
    assert loaded.pair_terms[0].exponents.dtype == torch.float64
    assert_same_bits(loaded, small_potential(torch.float32))


def test_header(path: Path) -> None:
    found = header(path)
    digest = found.pop("checks")
    assert found == {
        "format": 1,
        "network": "so3krates",
        "config": json.loads(json.dumps(vars(CONFIG))),
        "pair_terms": [{"name": "zbl", "config": {"cutoff": 4.0, "cutoff_function": "cosine"}}],
        "species": [1, 6, 8],
        "reference_energies": [-13.6 / 3, -1035.1, math.pi],
        "scale": [1.0, 0.1, 1 / 3],
        "dtype": "float32",
        "units": {"energy": "eV", "length": "Angstrom"},
        "training": {
            "data": "rMD17 ethanol",
            "errors": {"force": 3.1},
            "elements": {"17": 1, "6": 2, "1": 3},
        },
    }
    assert list(digest) == ["sha256"]
    assert len(digest["sha256"]) == 64
    assert load(path).training_info == found["training"]


# ------------------------------------------------------------------------------ finding models


def test_shipped_models_are_found_by_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model_file, "shipped_models_directory", lambda: tmp_path)
    assert shipped_models() == {"model": path}
    assert_same_bits(load("model"), load(path))
    assert header("model") == header(str(path))
    with pytest.raises(
        FileNotFoundError, match=r"no shipped model 'modell'; shipped: model; did you mean model\?$"
    ):
        load("modell")


def test_the_folder_of_a_training_is_its_model(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    shutil.copy(path, run / "mine.safetensors")
    (run / "recipe.json").write_text("{}")
    assert_same_bits(load(run), load(path))
    assert checksum(str(run)) == checksum(str(path))
    shutil.copy(path, run / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"mine' \(a folder with 2 model files\)"):
        load(run)


def test_every_shipped_model_loads() -> None:
    folder = model_file.shipped_models_directory()
    assert folder.name == "models"
    for name, file in shipped_models().items():
        assert file.parent == folder
        potential = load(name)
        system = System.from_ase(Atoms([potential.species[0]]))
        energy = evaluate(potential, fresh_graphs(potential, system)).energy
        assert energy.isfinite().all(), name


def test_what_is_not_there(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.safetensors", tmp_path, "", "no such name"):
        with pytest.raises(FileNotFoundError, match="no model file and no shipped model"):
            load(missing)


def test_unknown_dtype(path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, float64, got 'float16'"):
        load(path, dtype="float16")


# ------------------------------------------------------------------------------- damaged files


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pkl"])
def test_a_pickle_is_never_executed(tmp_path: Path, suffix: str) -> None:
    target, path = tmp_path / "executed", tmp_path / f"model.{suffix}"
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb(target))), torch_bomb(path, target)):
        write()
        for read in (load, header):
            with pytest.raises(ValueError, match=f"model.{suffix}: not a safetensors file"):
                read(path)
        assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists(), "the bomb is a dud, the test above proves nothing"


def torch_bomb(path: Path, target: Path) -> Callable[[], None]:
    return lambda: torch.save({"state_dict": Bomb(target)}, path)


def test_truncated_anywhere(path_in_memory: Path) -> None:
    path = path_in_memory
    content = path.read_bytes()
    for changed in (*(content[:length] for length in range(0, len(content), 7)), content + b"\0"):
        path.write_bytes(changed)
        with pytest.raises(
            ValueError, match=r"^model\.safetensors: not a safetensors file, or a dam"
        ):
            load(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            b"PK\x03\x04" + bytes(100),
            " but a zip archive, as torch.save and numpy.savez write; only",
        ),
        (pickle.dumps([1.0] * 50), " but a Python pickle; only .safetensors is read, which cannot"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), " but HDF5; only"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), " but a picture; only"),
        (b'{"format": 1}' + bytes(100), " but JSON; only"),
        (b"version https://git-lfs.github.com/spec/v1\n", " but a pointer of Git LFS: fetch the "),
        (b"# text\n" * 9, ", or a damaged one: download it again"),
        (b"", ", or a damaged one (empty)"),
        (bytes(100), ", or a damaged one: download it again"),
    ],
    ids=["zip", "pickle", "HDF5", "picture", "JSON", "Git LFS", "text", "empty", "zeros"],
)
def test_other_files(path: Path, content: bytes, what: str) -> None:
    path.write_bytes(content)
    for read in (load, header):
        with pytest.raises(ValueError) as error:
            read(path)
        assert str(error.value).startswith(f"model.safetensors: not a safetensors file{what}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "places", [[(0, 8), (0, 8)], [(0, 4), (8, 12)], [(4, 8), (8, 12)], [(0, 8), (4, 12)]]
)
def test_tensors_that_share_bytes_or_leave_gaps(path: Path, places: list[tuple[int, int]]) -> None:
    """Small files could otherwise describe tensors that fill the memory."""
    tensors = {
        f"tensor {k}": {"dtype": "F32", "shape": [(end - at) // 4], "data_offsets": [at, end]}
        for k, (at, end) in enumerate(places)
    }
    text = json.dumps(tensors).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(places[-1][1]))
    for read in (load, header):
        with pytest.raises(ValueError, match="tensors overlap, or leave gaps"):
            read(path)


@pytest.mark.parametrize("length", [1 << 22, (1 << 22) + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_that_claims_more_than_there_is(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with (
        limits(),
        pytest.raises(ValueError, match=r"^model.safetensors: not a safetensors file, o"),
    ):
        load(path)


def test_files_larger_than_any_model(path: Path) -> None:
    """Sparse, so they take no room on the disk; they must take none in memory."""
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    with (
        limits(),
        pytest.raises(ValueError, match=r"^model.safetensors: 1024 GiB, larger than any"),
    ):
        load(path)
    path.write_bytes((1 << 28).to_bytes(8, "little") + content[8:])
    with open(path, "r+b") as file:
        file.truncate(1 << 29)
    with limits(), pytest.raises(ValueError, match="the header is damaged: it claims 268435456 by"):
        load(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, kind in (("folder", "a folder with 0 model files"), ("pipe", "not a regular file")):
        with limits(), pytest.raises(FileNotFoundError) as error:
            load(tmp_path / f"{name}.safetensors")
        assert f"{name}.safetensors' ({kind}); shipped: " in str(error.value)


def test_a_file_that_may_not_be_read(path: Path) -> None:
    path.chmod(0)
    for folder in (path.parent, *path.parent.parents[:2]):
        folder.chmod(0o755)
    with (
        not_root(),
        pytest.raises(PermissionError, match=r"Permission denied: .*model\.safetensors"),
    ):
        load(path)


def test_damaged_files(path_in_memory: Path) -> None:
    """Either an error that names the file, or no difference at all (e.g. 1e-5 for 1E-5)."""
    path = path_in_memory
    content, expected = path.read_bytes(), load(path)
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    n_unharmed = 0
    with limits(seconds=120):
        for damage in damaged(content, 2_000, seed=0, part=slice(end_of_header)):
            path.write_bytes(damage)
            try:
                loaded = load(path)
            except ValueError as error:
                message = str(error)
                assert message.startswith("model.safetensors: ")
                assert message.isprintable()
                assert len(message) < 450
            else:
                n_unharmed += 1
                assert damage[end_of_header:] == content[end_of_header:], "a tensor was changed"
                assert_same_model(loaded, expected)
    assert n_unharmed < 20, "among them copies onto the same bytes"


def assert_same_model(loaded: Potential, expected: Potential) -> None:
    assert loaded.training_info == expected.training_info
    assert loaded.species == expected.species
    assert loaded.network.config == expected.network.config
    ours, theirs = loaded.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_rewriting_alone_does_no_harm(path: Path) -> None:
    expected = load(path)
    rewrite(path, lambda h, t: None)
    assert_same_bits(load(path), expected)


def test_a_file_of_an_earlier_version_names_its_baseline(path: Path) -> None:
    rewrite(path, lambda header, _: header["training"].update(corrects="EMT"))
    assert load(path).baseline == "EMT"
    assert load(path).training_info["baseline"] == "EMT"
    assert "corrects" not in header(path)["training"]
    save(load(path), path)
    assert load(path).baseline == "EMT"


NOVELTY_ERRORS = {
    "no environments": (lambda h, t: h.pop("novelty"), r"unexpected tensor 'novelty\.closest'"),
    "no tensor": (lambda h, t: t.pop("novelty.mean"), r"tensor 'novelty\.mean' is missing"),
    "missing key": (lambda h, t: h["novelty"].pop("n_atoms"), "'n_atoms' is missing or not a list"),
    "unknown key": (lambda h, t: h["novelty"].update(k=1), r"unknown header entries \['k'\]"),
    "other shape": (
        lambda h, t: h["novelty"].update(n_components=2),
        r"tensor 'novelty\.whiten' has shape .* the header asks for \[3, 8, 2\]",
    ),
    "more than memory": (
        lambda h, t: h["novelty"].update(n_features=10**9, n_components=10**9),
        "novelty: 1000000000 components of 1000000000 features are too many",
    ),
    "a negative number": (lambda h, t: h["novelty"].update(n_structures=-1), "novelty: a number"),
    "elements": (lambda h, t: h["novelty"]["n_atoms"].pop(), "novelty: a number"),
    "not finite": (
        lambda h, t: t["novelty.closest"].fill_(math.inf),
        "holds numbers that are not finite floats",
    ),
}


CLUSTER_ERRORS = {
    "no centre": (lambda h, t: h["novelty"].update(n_centres=0), "novelty: 0 centres of clusters"),
    "more centres than memory": (
        lambda h, t: h["novelty"].update(n_centres=10**9),
        "novelty: 1000000000 centres of 8 components are too many",
    ),
    "other centres": (
        lambda h, t: h["novelty"].update(n_centres=4),
        r"tensor 'novelty\.centres' has shape .* the header asks for \[3, 8, 4\]",
    ),
    "no centres": (
        lambda h, t: h["novelty"].pop("n_centres"),
        r"unexpected tensor 'novelty\.centres'",
    ),
}


@pytest.mark.parametrize("damage", list(NOVELTY_ERRORS))
def test_damaged_environments_are_refused(tmp_path: Path, damage: str) -> None:
    path, (change, what) = tmp_path / "model.safetensors", NOVELTY_ERRORS[damage]
    potential = small_potential()
    calibrate(potential, [ethanol()])
    save(potential, path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=rf"^model\.safetensors: .*{what}"):
        load(path)


@pytest.mark.parametrize("damage", list(CLUSTER_ERRORS))
def test_damaged_clusters_are_refused(tmp_path: Path, damage: str) -> None:
    path, (change, what) = tmp_path / "model.safetensors", CLUSTER_ERRORS[damage]
    save(clustered(), path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=rf"^model\.safetensors: .*{what}"):
        load(path)


def test_checksum_covers_header_and_tensors(path: Path) -> None:
    original = path.read_bytes()

    def scale(h: dict, t: dict[str, torch.Tensor]) -> None:
        h["scale"][0] = 2.0

    def energies(h: dict, t: dict[str, torch.Tensor]) -> None:
        t["network.head.energy.bias"] += 1e-6

    for change in (scale, energies, lambda h, t: h["training"].update(data="other")):
        path.write_bytes(original)
        rewrite(path, change, sign=False)
        with pytest.raises(ValueError, match=r"model\.safetensors: the checksum does not match"):
            load(path)


SOME = "network.layers.0.exchange.linear.weight"


def nested(levels: int) -> list:
    return [nested(levels - 1)] if levels else []


FLOATS = "holds numbers that are not finite floats"
HEADER_ERRORS = {
    "unknown format": (lambda h, t: h.update(format=2), "file format 2 is not known; .* reads 1"),
    "no format": (lambda h, t: h.pop("format"), "file format None is not known"),
    "unknown key": (lambda h, t: h.update(run="rm"), r"unknown header entries \['run'\]"),
    "missing key": (lambda h, t: h.pop("species"), "'species' is missing or not a list"),
    "wrong type": (lambda h, t: h.update(scale={}), "'scale' is missing or not a list"),
    "unknown network": (lambda h, t: h.update(network="os"), "unknown 'os'; this version has: so3"),
    "unknown option": (
        lambda h, t: h["config"].update(colour=1),
        "config of 'so3krates': 'colour' is unknown; a newer attncalc may have written it",
    ),
    "missing option": (
        lambda h, t: h["config"].pop("cutoff"),
        "config of 'so3krates': 'cutoff' is missing",
    ),
    "impossible option": (
        lambda h, t: h["config"].update(num_heads=3),
        "config of 'so3krates': num_features must be divisible by num_heads = 3",
    ),
    "option of wrong type": (lambda h, t: h["config"].update(cutoff="4"), "config of 'so3krates'"),
    "option of no network": (
        lambda h, t: h["config"].update(num_layers="1"),
        "config of 'so3krates': num_layers must be a whole number, got '1'",
    ),
    "unknown pair term": (lambda h, t: h["pair_terms"][0].update(name="os"), "unknown 'os'"),
    "pair term of wrong type": (lambda h, t: h["pair_terms"][0].update(name=["zbl"]), "pair_terms"),
    "pair term without config": (lambda h, t: h["pair_terms"][0].pop("config"), "in pair_terms"),
    "pair term with more": (lambda h, t: h["pair_terms"][0].update(x=1), "in pair_terms"),
    "pair term with odd config": (
        lambda h, t: h["pair_terms"][0].update(config=[1]),
        "in pair_terms",
    ),
    "unknown cutoff of a pair term": (
        lambda h, t: h["pair_terms"][0]["config"].update(cutoff_function="step"),
        "config of 'zbl': cutoff_function must be one of 'physnet', .*, got 'step'",
    ),
    "other units": (lambda h, t: h["units"].update(energy="kcal/mol"), "units .* are not"),
    "unknown dtype": (lambda h, t: h.update(dtype="int8"), "unknown dtype 'int8'"),
    "no element": (lambda h, t: h.update(species=[1, 6, 119]), "species are not atomic numbers"),
    "element twice": (
        lambda h, t: h.update(species=[1, 6, 6]),
        "species contains an element twice",
    ),
    "no elements": (lambda h, t: h.update(species=[]), "species are not atomic numbers"),
    "elements as floats": (lambda h, t: h.update(species=[1.0, 6, 8]), "not atomic numbers"),
    "wrong number of scales": (lambda h, t: h["scale"].pop(), "header is damaged: one value per"),
    "NaN as energy": (
        lambda h, t: h["reference_energies"].__setitem__(0, math.nan),
        "not a finite",
    ),
    "infinite scale": (lambda h, t: h["scale"].__setitem__(0, math.inf), "not a finite"),
    "scale of text": (
        lambda h, t: h["scale"].__setitem__(0, "1.0"),
        "scale .* not a finite number",
    ),
    "no checksum": (lambda h, t: h.update(checks=[]), "'checks' is missing or not a dict"),
    "format as truth value": (lambda h, t: h.update(format=True), "'format' is missing or not a"),
    "elements as truth values": (lambda h, t: h.update(species=[True, 6, 8]), "not atomic numbers"),
    "scale beyond floats": (
        lambda h, t: h["scale"].__setitem__(0, 10**400),
        "scale contains a value that is not a finite number",
    ),
    "cutoff beyond floats": (
        lambda h, t: h["config"].update(cutoff=10**400),
        r"cutoff must be finite, got 1000.* \.\.\. .*000",
    ),
    "cutoff of a pair term beyond floats": (
        lambda h, t: h["pair_terms"][0]["config"].update(cutoff=10**400),
        "config of 'zbl': cutoff must be finite",
    ),
    "cutoff too small for the basis": (
        lambda h, t: h["config"].update(cutoff=1e-18, radial_basis="physnet"),
        "header is damaged: 0.0 cannot be raised to a negative power|float division by zero",
    ),
    "more features than weights": (
        lambda h, t: h["config"].update(num_features=10**9),
        r"its network has \d+ weights or more, the file holds \d+",
    ),
    "features beyond memory": (lambda h, t: h["config"].update(num_features=4 * 10**17), "weights"),
    "more layers than weights": (lambda h, t: h["config"].update(num_layers=10**9), "000 layers, "),
    "larger basis than weights": (lambda h, t: h["config"].update(num_basis=10**9), "weights or m"),
    "wider head than weights": (lambda h, t: h["config"].update(head_features=10**9), "weights or"),
    "degree of no use": (
        lambda h, t: h["config"].update(degrees=[10**6]),
        "degrees must be at mos",
    ),
    "pair terms without end": (
        lambda h, t: h["pair_terms"].extend(h["pair_terms"] * 200),
        "than 1",
    ),
    "line breaks in a key": (
        lambda h, t: h["config"].update({"a\nb\x1b[2J\ud800": 1}),
        r"config of 'so3krates': 'a\\nb\\x1b\[2J\\ud800' is unknown",
    ),
    "very long key": (
        lambda h, t: h.update({"x" * 100_000: 1}),
        r"unknown header entries .* \.\.\. ",
    ),
    "nested too deeply": (lambda h, t: h["training"].update(a=nested(40)), "nested deeper than 32"),
    "tensor missing": (lambda h, t: t.pop(SOME), rf"tensor '{SOME}' is missing \(1 in all\)"),
    "tensor too many": (lambda h, t: t.update(x=torch.ones(1)), "unexpected tensor 'x'"),
    "tensor of wrong shape": (
        lambda h, t: t.update({SOME: t[SOME][:-1].clone()}),
        rf"'{SOME}' has shape \[9, 10\], the header asks for \[10, 10\]",
    ),
    "tensor with NaN": (lambda h, t: t[SOME][0].fill_(math.nan), FLOATS),
    "tensor with infinity": (lambda h, t: t[SOME][0].fill_(-math.inf), FLOATS),
    "tensor of integers": (lambda h, t: t.update({SOME: t[SOME].int()}), FLOATS),
    "tensor of halves": (lambda h, t: t.update({SOME: t[SOME].half()}), FLOATS),
}


@pytest.mark.parametrize("case", HEADER_ERRORS)
def test_refused_with_the_name_of_the_file(path: Path, case: str) -> None:
    change, message = HEADER_ERRORS[case]
    rewrite(path, change)
    with limits(), pytest.raises(ValueError, match=rf"^model\.safetensors: .*({message})") as error:
        load(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 450


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 2_000_000, "nested deeper than 32 levels"),
        ('{"a":' * 500_000, "nested deeper than 32 levels"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper than 32 levels"),
        ('{"format": 1, "format": 1}', "'format' appears twice"),
        ('{"training": {"a": 1, "b": 2, "a": 3}}', "'a' appears twice"),
        ('{"format": NaN}', "NaN is not a finite number"),
        ('{"training": [-Infinity]}', "-Infinity is not a finite number"),
        ('{"format": ' + "9" * 5000 + "}", "the header is damaged: Exceeds the limit"),
        ('{"format": 1', "it is not valid JSON"),
        ("[" + "[]," * 300_000 + "1]", "file format None is not known"),
        ('{"format": "' + "x" * 3_000_000 + '"}', "format 'xxx"),
    ],
    ids=lambda text: text[:20],
)
def test_json_that_wants_too_much(path: Path, text: str, message: str) -> None:
    save_file({"x": torch.ones(1)}, path, metadata={"attncalc": text})
    with limits(), pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith("model.safetensors: ")
    assert message in str(error.value)
    assert len(str(error.value)) < 450


def test_a_number_that_is_json_but_beyond_floats(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["attncalc"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    unsigned = json.loads(text) | {"scale": [math.inf, 1.0, 1.0]}
    unsigned["checks"]["sha256"] = signature(unsigned, tensors)
    text = json.dumps(unsigned).replace("Infinity", "1e999")
    save_file(tensors, path, metadata={"attncalc": text})
    with pytest.raises(ValueError, match=r"^model.safetensors: scale contains a value that is not"):
        load(path)


def test_every_network_knows_its_least_size() -> None:
    """Else a header could ask the loader for any memory: a new config needs the property."""
    for network, config_class in model_file.NETWORKS.values():
        known = {field.name for field in dataclasses.fields(config_class)}
        given = {"cutoff": 4.0, "avg_num_neighbors": 10.0}
        config = config_class(**{name: given[name] for name in known & given.keys()})
        n_weights = sum(p.numel() for p in network(config, 1).parameters())
        assert 0.2 * n_weights < config.n_weights_at_least <= n_weights


def test_a_header_that_is_none(path: Path) -> None:
    tensors = {"x": torch.ones(1)}
    cases = [
        (None, "a safetensors file, but not a model of attncalc"),
        ({"other": "1"}, "a safetensors file, but not a model of attncalc"),
        ({"attncalc": "{"}, "the header is damaged: it is not valid JSON"),
        ({"attncalc": "[1]"}, "file format None is not known"),
        ({"attncalc": "{}"}, "file format None is not known"),
    ]
    for metadata, message in cases:
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ValueError, match=rf"^model\.safetensors: {message}"):
            load(path)


# -------------------------------------------------------------------------------------- writing


def test_saving_replaces_the_old_file_or_leaves_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = path.read_bytes()

    def full_disk(*_: object) -> None:
        assert path.read_bytes() == old, "written in place"
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full_disk)
            with pytest.raises(
                OSError, match=r"no space left on the disk for .*model\.safetensors"
            ):
                save(small_potential(torch.float64), path)
        assert path.read_bytes() == old
        assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    save(small_potential(torch.float64), path)
    assert load(path).dtype == torch.float64
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    """An error that came out as NaN must not make the weights beside it unreadable."""
    potential = small_potential()
    potential.training_info = {"errors": {"force": math.nan}, "history": [1.0, -math.inf]}
    save(potential, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.training_info == {"errors": {"force": None}, "history": [1.0, None]}
    potential.scale[0] = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(potential, tmp_path / "other.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_nothing_is_written_where_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(small_potential(), tmp_path / "none" / "model.safetensors")
    unknown = small_potential()
    unknown.network = nn.Linear(1, 1)
    unknown.network.config = CONFIG
    with pytest.raises(TypeError, match="Linear has no name in the table of model files"):
        save(unknown, tmp_path / "model.safetensors")
    folded = lower(load("equiformer-ethanol", device="cpu", dtype="float64"))
    for compiled in (folded, lower(load("so3krates-ethanol", device="cpu"))):
        with pytest.raises(
            TypeError, match=r"save the one that .*, as calculator\.evaluator\.plain"
        ):
            save(compiled, tmp_path / "model.safetensors")
    odd = small_potential()
    odd.training_info = {"device": object()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(odd, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_written(path: Path) -> None:
    before = path.read_bytes()
    potential = copy.deepcopy(load(path))
    next(potential.network.parameters()).data.view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=r"^tensor 'network\..*' is not finite: this model is not"):
        save(potential, path)
    assert path.read_bytes() == before
    potential = load(path)
    potential.training_info["n"] = np.float32(3)
    save(potential, path)
    assert load(path).training_info["n"] == 3


def test_saving_leaves_the_potential_as_it_is(tmp_path: Path) -> None:
    potential = small_potential()
    before = copy.deepcopy(potential.state_dict())
    save(potential, tmp_path / "model.safetensors")
    assert all(parameter.requires_grad for parameter in potential.parameters())
    for name, tensor in potential.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert potential.training_info == TRAINING


# ---------------------------------------------------------------------------------- equiformer


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, bytes]:
    """Contents of files of the other networks."""
    torch.manual_seed(0)
    config = EquiformerConfig(3.5, 8.0, channels=(8, 4), num_layers=2, head_features=6)
    sphc = So3kratesSphcConfig(3.5, num_features=12, num_layers=2)
    made = {"equiformer": Equiformer(config, len(ELEMENTS))}
    made["so3krates-sphc"] = So3kratesSphc(sphc, len(ELEMENTS))
    target = tmp_path_factory.mktemp("others") / "model.safetensors"
    found = {}
    for name, network in made.items():
        save(Potential(network, ELEMENTS), target)
        found[name] = target.read_bytes()
    return found


ABSURD = {
    "channels": [[1 << 20, 4], [8, 1 << 20], [8] * 4, [8, 4, 4, 4, 4, 4, 4, 4], [], "8", [8.0, 4]],
    **{
        name: [1 << 30, 0, -1, 2.0, "2", None, True]
        for name in ("num_layers", "attention_features", "feed_forward_factor", "num_basis")
    },
    **{name: [1 << 30, 0, 3.0] for name in ("radial_features", "head_features", "num_heads")},
    "cutoff": [0.0, -1.0, "5"],
    "attention": ["dot", "none", 3],
    "paths": ["some", None],
    "norm": ["batch", 1],
    "cutoff_function": ["cosine", None],
}


def test_many_small_layers_take_no_memory() -> None:
    """Products of coordinates are the largest constant of a small network: one for all layers."""
    config = So3kratesSphcConfig(
        *(3.0, 6, 1, (1, 2, 3, 4, 5, 6), 300),
        **{"num_basis": 2, "radial_features": 1, "spherical_features": 1},
    )
    network = So3kratesSphc(config, 1)
    weights = sum(p.numel() for p in network.parameters())
    constants = sum(b.numel() for b in network.buffers())
    assert constants < 5 * weights


ABSURD_SPHC = {
    **{
        name: [1 << 30, 0, -1, 2.0, "2", None, True]
        for name in ("num_layers", "num_features", "num_basis", "radial_features", "num_heads")
    },
    "spherical_features": [1 << 30, 0, 3.0],
    "degrees": [[1, 7], [], "12", [1 << 30], [1.0, 2], [2, 1], 3],
    **{name: [0.0, -1.0, "5", None] for name in ("cutoff", "nonlocal_cutoff", "sphc_cutoff")},
    **{
        name: ["other", None, 3]
        for name in ("form", "nonlocal_attention", "feature_norm", "sphc_norm", "paths")
    },
    "cutoff_function": ["none", None],
    "radial_basis": ["expnormal", None],
    "embed_charge": [1, "no"],
}


@pytest.mark.parametrize(
    ("network", "name", "values"),
    [
        *(("equiformer", name, values) for name, values in ABSURD.items()),
        *(("so3krates-sphc", name, values) for name, values in ABSURD_SPHC.items()),
    ],
)
def test_absurd_values(others, tmp_path: Path, network: str, name: str, values: list) -> None:
    """Refused before memory is taken for them."""
    target = tmp_path / "model.safetensors"
    for value in values:
        target.write_bytes(others[network])
        rewrite(target, lambda h, t, value=value: h["config"].update({name: value}))
        with limits(), pytest.raises(ValueError, match=r"^model\.safetensors: ") as error:
            load(target)
        assert "\n" not in str(error.value)


def test_every_tensor_of_an_equiformer_is_checked(others, tmp_path: Path) -> None:
    equiformer_path = tmp_path / "model.safetensors"
    equiformer_path.write_bytes(others["equiformer"])
    names = sorted(safe_open(equiformer_path, framework="pt").keys())
    assert len(names) > 60
    for name in names[::9]:
        for change in (
            lambda h, t, name=name: t.pop(name),
            lambda h, t, name=name: t.update({name: t[name].flatten()[:-1].clone()}),
            lambda h, t, name=name: t.update({name: torch.full_like(t[name], math.nan)}),
        ):
            equiformer_path.write_bytes(others["equiformer"])
            rewrite(equiformer_path, change)
            with pytest.raises(ValueError, match=r"^model\.safetensors: .*tensor"):
                load(equiformer_path)


def test_networks_of_earlier_files_keep_their_norm(others, tmp_path: Path) -> None:
    """Equiformers had no other than that of each degree, and their files do not say so."""
    target = tmp_path / "model.safetensors"
    target.write_bytes(others["equiformer"])
    assert load(target).network.config.norm == "joint"
    rewrite(target, lambda h, t: h["config"].pop("norm"))
    assert load(target).network.config.norm == "degree"


def test_a_file_that_is_cut_off_while_it_is_read(path: Path) -> None:
    """Mapped, it would end the process by a signal."""
    with open(path, "rb") as file:
        stored = StoredModel(file)
        os.truncate(path, path.stat().st_size - 1000)
        with pytest.raises(ValueError, match="the file was cut off while it was read"):
            list(stored.tensors())


@pytest.mark.parametrize("read", [load, header])
def test_the_network_is_compared_before_a_tensor_is_read(path: Path, read: Callable) -> None:
    """A file that takes no room on the disk, and 400 MB in memory."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + length])
    last = max(described, key=lambda k: described[k].get("data_offsets", [0, 0])[1])
    first, end = described[last]["data_offsets"]
    n = 100_000_000
    described[last] |= {"dtype": "F32", "shape": [n], "data_offsets": [first, first + 4 * n]}
    text = json.dumps(described).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :][:end])
    os.truncate(path, 8 + len(text) + first + 4 * n)
    megabytes = 300 if read is load else 600  # a header is asked for with its checksum
    with limits(megabytes=megabytes), pytest.raises(ValueError, match=r"^model.safetensors: "):
        read(path)


@pytest.mark.parametrize(
    "device", ["gpu", "", "cuda:99", torch.device("mps"), torch.device("cuda:99"), -1, None]
)
def test_devices_that_are_none(path: Path, device: object) -> None:
    with pytest.raises(ValueError, match="device"):
        load(path, device=device)


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**30, True, 1.5, "2"])
def test_numbers_of_threads_that_are_none(path: Path, threads: object) -> None:
    with pytest.raises(ValueError, match="threads must be a whole number from 1 to 1024, got "):
        load(path, threads=threads)


def test_origin_is_what_a_training_keeps_of_its_start() -> None:
    info = header("so3krates-ethanol")["training"]
    assert info["structures"]
    told = {key: info[key] for key in ("data", "labels", "structures")}
    assert model_file.origin("so3krates-ethanol") == {"name": "so3krates-ethanol"} | told
    nothing = {"data": "", "labels": "", "structures": ""}
    assert model_file.origin("gone/a.safetensors") == {"name": "a"} | nothing
