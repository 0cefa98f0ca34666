"""Model files: the same bits back, or an error that names the file; never any code."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from contract import ethanol, randomise, result_of
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attncalc import model_file
from attncalc.model_file import header, load, save, shipped_models
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential

ELEMENTS = (1, 6, 8)
CONFIG = So3kratesConfig(
    cutoff=4.0,
    avg_num_neighbors=7.3,
    num_features=8,
    num_heads=2,
    degrees=(1, 2),
    num_layers=1,
    num_basis=4,
    head_features=4,
)
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


def assert_same_bits(actual: Potential, expected: Potential) -> None:
    ours, theirs = result_of(actual, ethanol()), result_of(expected, ethanol())
    for name, value in vars(theirs).items():
        assert torch.equal(getattr(ours, name), value), name


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
        FileNotFoundError, match="no model file and no shipped model 'modell'; shipped: model"
    ):
        load("modell")


def test_every_shipped_model_loads() -> None:
    folder = model_file.shipped_models_directory()
    assert folder.name == "models"
    for name, file in shipped_models().items():
        assert file.parent == folder
        potential = load(name)
        energy = result_of(potential, Atoms([potential.species[0]])).energy
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


def test_truncated(path: Path) -> None:
    content = path.read_bytes()
    # all of the first bytes, where lengths stand, and some of every later part
    for length in [*range(20), *range(20, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"^model\.safetensors: "):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"^model\.safetensors: "):
        load(path)


def test_other_files(path: Path) -> None:
    for content in (b"PK\x03\x04" + bytes(100), b"\x89HDF\r\n\x1a\n" + bytes(100), b"# text\n" * 9):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^model\.safetensors: not a safetensors file"):
            load(path)


def test_flipped_bits(path: Path) -> None:
    """Either an error that names the file, or no difference at all (e.g. 1e-5 for 1E-5)."""
    content = path.read_bytes()
    expected = load(path)
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    random = np.random.default_rng(0)
    bits = [*range(64), *random.integers(64, 8 * end_of_header, 500)]
    bits += [*random.integers(8 * end_of_header, 8 * len(content), 150)]
    n_refused = n_unharmed = 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except ValueError as error:
            n_refused += str(error).startswith("model.safetensors: ")
        else:
            n_unharmed += 1
            assert bit < 8 * end_of_header, "damage of a tensor went unnoticed"
            assert loaded.training_info == expected.training_info
            assert_same_bits(loaded, expected)
    assert n_refused + n_unharmed == len(bits), "an error without the name of the file"
    assert n_unharmed < 0.02 * len(bits)


Header = dict
Tensors = dict[str, Tensor]


def rewrite(path: Path, change: Callable[[Header, Tensors], object], *, sign: bool = True) -> None:
    """Change a file as someone with an editor could, and give it a valid checksum again."""
    with safe_open(path, framework="pt") as file:
        found = json.loads(file.metadata()["attncalc"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(found, tensors)
    if sign and isinstance(found.get("checks"), dict):
        found["checks"] = {"sha256": model_file._checksum(found, tensors)}
    save_file(tensors, path, metadata={"attncalc": json.dumps(found)})


def test_rewriting_alone_does_no_harm(path: Path) -> None:
    expected = load(path)
    rewrite(path, lambda h, t: None)
    assert_same_bits(load(path), expected)


def test_checksum_covers_header_and_tensors(path: Path) -> None:
    original = path.read_bytes()

    def scale(h: Header, t: Tensors) -> None:
        h["scale"][0] = 2.0

    def energies(h: Header, t: Tensors) -> None:
        t["network.head.energy.bias"] += 1e-6

    for change in (scale, energies, lambda h, t: h["training"].update(data="other")):
        path.write_bytes(original)
        rewrite(path, change, sign=False)
        with pytest.raises(ValueError, match=r"model\.safetensors: the checksum does not match"):
            load(path)


SOME = "network.layers.0.exchange.linear.weight"
FLOATS = "holds numbers that are not finite floats"
HEADER_ERRORS = {
    "unknown format": (lambda h, t: h.update(format=2), "format 2 is not known; .* reads 1"),
    "no format": (lambda h, t: h.pop("format"), "format None is not known"),
    "unknown key": (lambda h, t: h.update(run="rm"), r"unknown header entries \['run'\]"),
    "missing key": (lambda h, t: h.pop("species"), "'species' is missing or not a list"),
    "wrong type": (lambda h, t: h.update(scale={}), "'scale' is missing or not a list"),
    "unknown network": (lambda h, t: h.update(network="os"), "'os' is not known here; known: so3"),
    "unknown option": (
        lambda h, t: h["config"].update(colour=1),
        "config of 'so3krates': .*unexpected keyword argument 'colour'",
    ),
    "missing option": (lambda h, t: h["config"].pop("cutoff"), "missing 1 required .*'cutoff'"),
    "impossible option": (
        lambda h, t: h["config"].update(num_heads=3),
        "config of 'so3krates': num_features must be divisible by num_heads = 3",
    ),
    "option of wrong type": (lambda h, t: h["config"].update(cutoff="4"), "config of 'so3krates'"),
    "option of no network": (
        lambda h, t: h["config"].update(num_layers="1"),
        "config of 'so3krates': num_layers must be a whole number, got '1'",
    ),
    "unknown pair term": (lambda h, t: h["pair_terms"][0].update(name="os"), "'os' is not known"),
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
    "element twice": (lambda h, t: h.update(species=[1, 6, 6]), "element stands twice in species"),
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
    "tensor missing": (lambda h, t: t.pop(SOME), rf"tensor '{SOME}' is missing \(1 in all\)"),
    "tensor too many": (lambda h, t: t.update(x=torch.ones(1)), "tensor 'x' is not known"),
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
    with pytest.raises(ValueError, match=rf"^model\.safetensors: .*({message})"):
        load(path)


def test_a_header_that_is_none(path: Path) -> None:
    tensors = {"x": torch.ones(1)}
    cases = [
        (None, "a safetensors file, but not a model of attncalc"),
        ({"other": "1"}, "a safetensors file, but not a model of attncalc"),
        ({"attncalc": "{"}, "the header is damaged: it is not JSON"),
        ({"attncalc": "[1]"}, "format None is not known"),
        ({"attncalc": "{}"}, "format None is not known"),
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
            with pytest.raises(OSError, match="No space left"):
                save(small_potential(torch.float64), path)
        assert path.read_bytes() == old
        assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    save(small_potential(torch.float64), path)
    assert load(path).dtype == torch.float64
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_nothing_is_written_where_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(small_potential(), tmp_path / "none" / "model.safetensors")
    unknown = small_potential()
    unknown.network = nn.Linear(1, 1)
    unknown.network.config = CONFIG
    with pytest.raises(TypeError, match="Linear has no name in the table of model files"):
        save(unknown, tmp_path / "model.safetensors")
    odd = small_potential()
    odd.training_info = {"device": object()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(odd, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_saving_leaves_the_potential_as_it_is(tmp_path: Path) -> None:
    potential = small_potential()
    before = copy.deepcopy(potential.state_dict())
    save(potential, tmp_path / "model.safetensors")
    assert all(parameter.requires_grad for parameter in potential.parameters())
    for name, tensor in potential.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert potential.training_info == TRAINING
