"""The importer of published Equiformer weights: energies, sign conventions, and every refusal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase import Atoms
from contract import assert_close, assert_same_result, build_graph, result_of
from e3nn import o3
from safetensors.torch import load_file, save_file
from torch import Tensor

from attncalc.convert import equiformer
from attncalc.model_file import load, save
from attncalc.potential import evaluate
from attncalc.system import System

NAMES = ("nonlinear", "linear", "dot")
CASES = [(name, molecule) for name in NAMES for molecule in ("ethanol", "aspirin")]


def files(shared: Path, name: str) -> tuple[Path, Path]:
    base = shared / "reference" / "equiformer"
    return base / f"{name}_l2.weights.safetensors", base / f"{name}_l2.config.json"


def structure(shared: Path, name: str, molecule: str) -> tuple[Atoms, dict[str, Tensor]]:
    path = shared / "reference" / "equiformer" / f"{name}_l2.{molecule}.safetensors"
    reference = load_file(path)
    numbers, positions = reference["atomic_numbers"].numpy(), reference["positions"].numpy()
    return Atoms(numbers, positions=positions), reference


Tensors = dict[str, Tensor]


def changed(
    shared: Path,
    tmp_path: Path,
    name: str,
    tensors: Callable[[Tensors], object] | None = None,
    options: Callable[[dict], object] | None = None,
) -> tuple[Path, Path]:
    """Copies of stored files in which something is different."""
    weights, config = files(shared, name)
    stored, published = load_file(weights), json.loads(config.read_text())
    if tensors:
        tensors(stored)
    if options:
        options(published)
    save_file(stored, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(published))
    return tmp_path / "weights.safetensors", tmp_path / "config.json"


@pytest.mark.parametrize(("name", "molecule"), CASES)
def test_converted_saved_and_loaded(shared: Path, name: str, molecule: str, tmp_path: Path) -> None:
    atoms, reference = structure(shared, name, molecule)
    path = tmp_path / "converted.safetensors"
    save(equiformer(*files(shared, name)), path)
    double, single = load(path), load(path, dtype="float32")
    assert double.dtype == torch.float64
    result = result_of(double, atoms)
    assert_close(result.energy, reference["energy"].reshape(1), 1e-11)
    assert_close(result.forces, reference["forces"], 1e-11)
    # float32 carries 6e-8, amplified by six blocks
    result = result_of(single, atoms)
    assert_close(result.energy, reference["energy"].reshape(1), 1e-5)
    assert_close(result.forces, reference["forces"], 1e-5)


@pytest.mark.parametrize(("name", "molecule"), CASES)
def test_weights_of_the_other_sign_convention(
    shared: Path, tmp_path: Path, name: str, molecule: str
) -> None:
    """The same numbers mean another function where they were trained with e3nn 0.4.4."""

    def old(options: dict) -> None:
        options["clebsch_gordan"] = "e3nn-0.4.4"

    atoms, reference = structure(shared, name, molecule)
    assert abs(reference["energy_e3nn_0.4.4"] - reference["energy"]) > 1e-3
    result = result_of(equiformer(*changed(shared, tmp_path, name, options=old)), atoms)
    assert_close(result.energy, reference["energy_e3nn_0.4.4"].reshape(1), 1e-11)
    assert_close(result.forces, reference["forces_e3nn_0.4.4"], 1e-11)


def test_a_part_of_the_elements(shared: Path) -> None:
    atoms, _ = structure(shared, "nonlinear", "ethanol")
    system = System.from_ase(atoms)
    every = equiformer(*files(shared, "nonlinear"))
    some = equiformer(*files(shared, "nonlinear"), species=[8, 1, 6, 17, 6])
    assert (every.species, some.species) == (tuple(range(1, 64)), (1, 6, 8, 17))
    # the same numbers in other rows: not even rounding differs
    assert_same_result(*(evaluate(p, build_graph(p, system)) for p in (some, every)), 0.0)
    assert every.n_parameters == 3_496_001 - 128  # the row that stands for no element


def test_standard_deviation_and_mean(shared: Path) -> None:
    atoms, reference = structure(shared, "dot", "ethanol")
    potential = equiformer(*files(shared, "dot"), std=0.25, mean=-4210.0, n_atoms=len(atoms))
    result = result_of(potential, atoms)
    assert_close(result.energy, [float(0.25 * reference["energy"]) - 4210.0], 1e-13)
    assert_close(result.forces, 0.25 * reference["forces"], 1e-11)
    for wrong, message in (
        ({"std": 0.0}, "std must be positive and mean finite, got 0.0"),
        ({"std": math.inf}, "std must be positive"),
        ({"mean": math.nan}, "mean finite"),
        ({"mean": 1.0}, "a mean energy needs n_atoms"),
        ({"mean": 1.0, "n_atoms": 0}, "a mean energy needs n_atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            equiformer(*files(shared, "dot"), **wrong)


CONVENTIONS = {"e3nn>=0.5": 1.0, "e3nn-0.4.4": -1.0}


@pytest.mark.parametrize("true", list(CONVENTIONS))
@pytest.mark.parametrize("told", list(CONVENTIONS))
def test_constants_of_e3nn_tell_the_signs(
    shared: Path, tmp_path: Path, true: str, told: str
) -> None:
    """The buffers of a state dict, as they are in either version of e3nn."""

    def add(tensors: Tensors) -> None:
        constant = CONVENTIONS[true] * o3.wigner_3j(1, 2, 2)
        tensors["blocks.0.ga.sep_act.dtp.tp._compiled_main_left_right._w3j_1_2_2"] = constant
        tensors["blocks.0.ga.sep_act.dtp.tp._compiled_main_left_right._w3j_2_2_2"] = (
            constant.clone()
        )
        tensors["blocks.0.ga.sep_act.dtp.tp.output_mask"] = torch.ones(3)
        tensors["blocks.0.ga.sep_act.dtp.tp.weight"] = torch.zeros(0)

    paths = changed(
        *(shared, tmp_path, "nonlinear", add), lambda options: options.update(clebsch_gordan=told)
    )
    if true == told:
        equiformer(*paths, species=[1])
    else:
        with pytest.raises(ValueError, match=rf"belong to the signs of {re.escape(true)} .* corr"):
            equiformer(*paths)


def test_a_constant_that_is_none(shared: Path, tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["blocks.0.x._w3j_1_2_2"] = torch.zeros(3, 5, 5)

    with pytest.raises(ValueError, match="_w3j_1_2_2 is no Wigner 3j tensor of e3nn"):
        equiformer(*changed(shared, tmp_path, "nonlinear", add))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(shared: Path, tmp_path: Path, value: float) -> None:
    name = "blocks.2.ga.proj.bias.0"

    def spoil(tensors: Tensors) -> None:
        tensors[name][3] = value

    with pytest.raises(ValueError, match=rf"array '{name}' contains numbers that are not finite"):
        equiformer(*changed(shared, tmp_path, "linear", spoil))


def test_half_precision_weights(shared: Path, tmp_path: Path) -> None:
    def halve(tensors: Tensors) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    assert equiformer(*changed(shared, tmp_path, "dot", halve), species=[1]).species == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_needed_and_none_left_over(shared: Path, tmp_path: Path, name: str) -> None:
    names = sorted(load_file(files(shared, name)[0]))
    assert len(names) > 100
    for gone in names[::11]:
        paths = changed(shared, tmp_path, name, lambda t, gone=gone: t.pop(gone))
        with pytest.raises(ValueError, match=re.escape(f"array {gone!r} is missing")):
            equiformer(*paths, species=[1])
    more = changed(shared, tmp_path, name, lambda t: t.update({"more": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"1 arrays have no place in this network, e\.g\. 'more'"):
        equiformer(*more)


def test_weights_with_denoising(shared: Path, tmp_path: Path) -> None:
    def denoise(tensors: Tensors) -> None:
        tensors["force_embed.bias.0"] = torch.zeros(128)
        for name in [name for name in tensors if name.startswith("head.")]:
            tensors[f"energy_{name}"] = tensors.pop(name)

    with pytest.raises(ValueError, match=r"trained with denoising \(DeNS\), .* not converted"):
        equiformer(*changed(shared, tmp_path, "nonlinear", denoise))


def test_wrong_shapes_are_refused(shared: Path, tmp_path: Path) -> None:
    names = sorted(load_file(files(shared, "nonlinear")[0]))
    for name in names[::13]:

        def cut(tensors: Tensors, name=name) -> None:
            tensors[name] = tensors[name].flatten()[:-1]

        with pytest.raises(ValueError, match=r"wrong shape|has shape|elements must lie"):
            equiformer(*changed(shared, tmp_path, "nonlinear", cut), species=[1])


OPTION_ERRORS = [
    ({"variant": "graph"}, "variant = 'graph' is not supported; supported: 'nonlinear', 'linear'"),
    ({"clebsch_gordan": "e3nn"}, "clebsch_gordan = 'e3nn' is not supported"),
    ({"irreps_node_embedding": "128x0e+64x1o+32x2e"}, "must read like 128x0e"),
    ({"irreps_node_embedding": 128}, "must read like 128x0e"),
    ({"irreps_head": "32x0e+16x1e"}, "irreps_head is not supported"),
    ({"irreps_mlp_mid": "384x0e+192x1e+90x2e"}, "irreps_mlp_mid is not supported"),
    ({"irreps_sh": "1x0e+1x1e"}, "irreps_sh is not supported"),
    ({"lmax": 3}, "lmax is not supported"),
    ({"radial_hidden": [64, 32]}, "radial_hidden must be two equal widths"),
    ({"alpha_drop": 0.2}, "alpha_drop is not supported"),
    ({"num_layers": 5}, "have no place|wrong shape|asks for|ask for"),
    ({"num_layers": 7}, "a tensor has a wrong shape"),
    ({"num_basis": 128}, "ask for"),
    ({"colour": "blue"}, r"unknown hyper-parameters \['colour'\]"),
    *(({"num_heads": v}, r"config\.json: num_heads must be") for v in (None, 0, [4], 4.7, True)),
    *(({"num_layers": v}, r"config\.json: num_layers must be") for v in (6.9, math.inf, "6")),
    *(({"cutoff": v}, r"config\.json: cutoff must be") for v in (None, "5", math.nan)),
    ({"cutoff": 4.0}, r"config\.json: cutoff = 4\.0 is not supported; supported: 5\.0"),
    *(({"avg_num_nodes": v}, r"avg_num_nodes must be") for v in (None, 0, -1, math.nan)),
    *(({"radial_hidden": v}, "radial_hidden must be two equal widths") for v in (64, [], [64])),
    *(({"irreps_node_embedding": v}, "must read like") for v in ("", "0x0e+64x1e", None)),
]


@pytest.mark.parametrize(("options", "message"), OPTION_ERRORS)
def test_options_that_do_not_fit(shared: Path, tmp_path: Path, options: dict, message: str) -> None:
    paths = changed(shared, tmp_path, "nonlinear", options=lambda o: o.update(options))
    with pytest.raises(ValueError, match=message):
        equiformer(*paths, species=[1, 6, 8])


def test_every_option_is_needed(shared: Path, tmp_path: Path) -> None:
    told = {"max_atomic_number", "num_parameters"}
    for name in set(json.loads(files(shared, "dot")[1].read_text())) - told:
        paths = changed(shared, tmp_path, "dot", options=lambda o, name=name: o.pop(name))
        with pytest.raises(ValueError, match=name):
            equiformer(*paths, species=[1])


def test_files_that_cannot_be_read(shared: Path, tmp_path: Path) -> None:
    weights, config = files(shared, "dot")
    with pytest.raises(FileNotFoundError, match="no such file"):
        equiformer(tmp_path / "none.safetensors", config)
    with pytest.raises(FileNotFoundError, match="no such file"):
        equiformer(weights, tmp_path / "none.json")
    broken = tmp_path / "broken.safetensors"
    for content in (b"", b"nothing of the kind", weights.read_bytes()[:5000], b"\x80\x04K."):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.safetensors: not a readable \.safeten"):
            equiformer(broken, config)
