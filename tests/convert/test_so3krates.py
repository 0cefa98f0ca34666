"""The importer of published So3krates parameters: energies in eV, and every refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from contract import assert_close, assert_same_result, build_graph, result_of

from attncalc.convert import so3krates
from attncalc.model_file import load, save
from attncalc.potential import evaluate
from attncalc.system import System

CASES = [
    ("euclidean_default", "aspirin"),
    ("euclidean_options", "ethanol"),
    ("sparse_options", "acetate_water"),
]


def files(shared: Path, weights: str) -> tuple[Path, Path]:
    base = shared / "reference" / "so3krates"
    return base / f"{weights}_params.npz", base / f"{weights}_hyperparameters.json"


def structure(shared: Path, weights: str, name: str) -> tuple[Atoms, dict[str, np.ndarray]]:
    reference = dict(np.load(shared / "reference" / "so3krates" / f"{weights}_{name}.npz"))
    atoms = Atoms(reference["numbers"], positions=reference["positions"])
    atoms.info["charge"] = int(reference.get("total_charge", 0))
    return atoms, reference


@pytest.mark.parametrize(("weights", "name"), CASES)
def test_converted_saved_and_loaded(shared: Path, weights: str, name: str, tmp_path: Path) -> None:
    atoms, reference = structure(shared, weights, name)
    path = tmp_path / "converted.safetensors"
    save(so3krates(*files(shared, weights)), path)
    double, single = load(path), load(path, dtype="float32")
    assert double.dtype == torch.float64
    result = result_of(double, atoms)
    scale = max(1.0, abs(float(reference["energy"])))
    assert abs(float(result.energy) - reference["energy"]) <= 1e-10 * scale  # eV
    assert_close(result.forces, reference["forces"], 1e-10)
    # float32: about 1e-7 of values that sum up to some tens of eV
    result = result_of(single, atoms)
    assert_close(result.energy, [float(reference["energy"])], 1e-5)
    assert_close(result.forces, reference["forces"], 1e-4)


@pytest.mark.parametrize(("weights", "name"), CASES)
def test_a_part_of_the_elements(shared: Path, weights: str, name: str) -> None:
    atoms, _ = structure(shared, weights, name)
    system = System.from_ase(atoms)
    every = so3krates(*files(shared, weights))
    some = so3krates(*files(shared, weights), species=[8, 1, 6, 17, 6])
    assert some.species == (1, 6, 8, 17), "sorted, once each"
    results = [evaluate(p, build_graph(p, system)) for p in (some, every)]
    # the same numbers in other rows: not even rounding differs
    assert_same_result(*results, 0.0)
    first, second = (p.network.embedding.element.shape[0] for p in (some, every))
    assert (first, second) == (4, len(every.species))


def test_scale_and_shift_of_the_hyper_parameters(shared: Path) -> None:
    potential = so3krates(*files(shared, "euclidean_options"), species=[1, 8])
    assert_close(potential.scale, [1.01, 1.08], 1e-15)
    assert_close(potential.reference_energies, [-0.5, -4.0], 1e-15)


def test_scale_and_shift_of_the_first_form(shared: Path, tmp_path: Path) -> None:
    scale, shift = [0.5 + 0.1 * z for z in range(10)], [-0.3 * z for z in range(10)]
    given = {"per_atom_scale": scale, "per_atom_shift": shift}
    paths = changed(shared, tmp_path, "sphc_local", options=lambda o: o.update(given))
    potential = so3krates(*paths, species=[1, 6, 8])
    bare = so3krates(*files(shared, "sphc_local"), species=[1, 6, 8])
    system = System.from_ase(molecule("CH3CH2OH"))
    energies, of_bare = (evaluate(p, build_graph(p, system)).energies for p in (potential, bare))
    z = system.atomic_numbers
    assert_close(energies, of_bare * torch.tensor(scale)[z] + torch.tensor(shift)[z], 1e-6)


def test_attention_that_is_not_divided(shared: Path, tmp_path: Path) -> None:
    """By 1 as a number of neighbours."""
    paths = {
        name: changed(shared, folder, "sparse_options", options=lambda o, new=new: o.update(new))
        for name, new in (
            ("identity", {"message_normalization": "identity"}),
            ("one", {"message_normalization": "avg_num_neighbors", "avg_num_neighbors": 1.0}),
        )
        if (folder := tmp_path / name).mkdir() is None
    }
    identity, one = (so3krates(*paths[name], species=[1, 6, 8]) for name in ("identity", "one"))
    assert identity.network.config == one.network.config
    assert identity.network.config.attention_norms == (1.0, 1.0)


# ------------------------------------------------------------------------------------- refusals

Arrays = dict[str, np.ndarray]


def changed(
    shared: Path,
    tmp_path: Path,
    weights: str,
    arrays: Callable[[Arrays], object] | None = None,
    options: Callable[[dict], object] | None = None,
) -> tuple[Path, Path]:
    """Copies of stored files in which something is wrong."""
    params, config = files(shared, weights)
    stored, published = dict(np.load(params)), json.loads(config.read_text())
    if arrays:
        arrays(stored)
    if options:
        options(published)
    np.savez(tmp_path / "params.npz", **stored)
    (tmp_path / "config.json").write_text(json.dumps(published))
    return tmp_path / "params.npz", tmp_path / "config.json"


def test_unchanged_copies_are_accepted(shared: Path, tmp_path: Path) -> None:
    for weights, _ in CASES:
        so3krates(*changed(shared, tmp_path, weights), species=[1])


def test_names_may_start_with_params(shared: Path, tmp_path: Path) -> None:
    def prefix(arrays: Arrays) -> None:
        for name in list(arrays):
            arrays[f"params/{name}"] = arrays.pop(name)

    so3krates(*changed(shared, tmp_path, "sparse_options", prefix), species=[1])


@pytest.mark.parametrize("weights", [weights for weights, _ in CASES])
def test_every_array_is_needed(shared: Path, tmp_path: Path, weights: str) -> None:
    names = np.load(files(shared, weights)[0]).files
    assert len(names) > 40
    for name in names[::5] + [n for n in names if "observables" in n]:
        paths = changed(shared, tmp_path, weights, lambda a, name=name: a.pop(name))
        with pytest.raises(ValueError, match=re.escape(f"array {name!r} is missing")):
            so3krates(*paths, species=[1, 6])


@pytest.mark.parametrize("weights", [weights for weights, _ in CASES])
def test_no_array_is_left_over(shared: Path, tmp_path: Path, weights: str) -> None:
    def add(arrays: Arrays) -> None:
        arrays["layers_9/more"] = np.zeros(3)

    message = "1 arrays have no place in this network, e.g. 'layers_9/more'"
    with pytest.raises(ValueError, match=message):
        so3krates(*changed(shared, tmp_path, weights, add), species=[1])


@pytest.mark.parametrize("weights", [weights for weights, _ in CASES])
def test_wrong_shapes_are_refused(shared: Path, tmp_path: Path, weights: str) -> None:
    stored = np.load(files(shared, weights)[0])
    names = [n for n in stored.files if "Embed" not in n and stored[n].size > 1]
    for name in names[::7]:
        for change in (lambda a: a[..., :-1], lambda a: a.ravel()[:1], lambda a: a[None]):

            def damage(arrays: Arrays, name=name, change=change) -> None:
                arrays[name] = change(arrays[name])

            paths = changed(shared, tmp_path, weights, damage)
            if np.array_equal(change(stored[name]).shape, stored[name].shape):
                continue
            with pytest.raises(ValueError):
                so3krates(*paths, species=[1, 6])


OPTION_ERRORS = [
    (
        "euclidean_default",
        {"form": "painn"},
        "form 'painn' is not one of 'euclidean', 'euclidean_sp",
    ),
    ("euclidean_default", {"form": None}, "form None is not one of"),
    ("euclidean_default", {"colour": "blue"}, r"unknown hyper-parameters \['colour'\]"),
    ("euclidean_default", {"chi_init": "random"}, "chi_init = 'random' is not supported"),
    ("euclidean_default", {"radial_basis": "gaussian"}, "radial_basis must be one of"),
    ("euclidean_default", {"cutoff_function": "step"}, "cutoff_function must be one of"),
    ("euclidean_default", {"heads": 5}, "divisible by num_heads = 5"),
    ("euclidean_options", {"per_atom_shift": [0.0] * 6}, "per_atom_shift has 6 entries, none for"),
    ("euclidean_options", {"feature_layer_norm": "post"}, "'post' is not supported"),
    ("sparse_options", {"cutoff_fn": "step"}, "cutoff_fn = 'step' is not supported"),
    ("sparse_options", {"activation_fn": "relu"}, "activation_fn = 'relu' is not supported"),
    ("sparse_options", {"qk_non_linearity": "relu"}, "qk_non_linearity = 'relu' is not supported"),
    ("sparse_options", {"electrostatic_energy_bool": True}, "unknown hyper-parameters"),
    (
        "sparse_options",
        {"message_normalization": "avg_num_neighbors"},
        "hyper-parameter 'avg_num_neighbors' is missing",
    ),
    ("sparse_options", {"energy_learn_atomic_type_scales": False}, "1 arrays have no place"),
    ("sparse_options", {"use_charge_embed": False}, "arrays have no place"),
    ("sparse_options", {"use_spin_embed": True}, "is missing"),
    ("sparse_options", {"num_layers": 1}, "arrays have no place"),
    ("sparse_options", {"num_layers": 3}, "is missing"),
    ("sphc_local", {"degrees": [1, 2, 4]}, "degrees above 3 with parity = false are not"),
]


@pytest.mark.parametrize(("weights", "options", "message"), OPTION_ERRORS)
def test_options_that_do_not_fit(
    shared: Path, tmp_path: Path, weights: str, options: dict, message: str
) -> None:
    paths = changed(shared, tmp_path, weights, options=lambda o: o.update(options))
    with pytest.raises(ValueError, match=message):
        so3krates(*paths, species=[1, 6, 8])


@pytest.mark.parametrize("weights", [weights for weights, _ in CASES])
def test_every_option_is_needed(shared: Path, tmp_path: Path, weights: str) -> None:
    """Without a default that could silently be another network's."""
    optional = {"zbl", "per_atom_scale", "per_atom_shift", "energy_regression_dim"}
    optional |= {"output_is_zero_at_init", "output_intermediate_quantities"}
    for name in json.loads(files(shared, weights)[1].read_text()):
        if name not in optional | {"chi_init_divisor"}:
            paths = changed(shared, tmp_path, weights, options=lambda o, name=name: o.pop(name))
            with pytest.raises(ValueError, match=name if name != "form" else "form None"):
                so3krates(*paths, species=[1])


def test_elements_that_are_not_in_the_table(shared: Path) -> None:
    for species in ([0, 1], [1, 100], [-1]):
        with pytest.raises(ValueError, match="elements must lie between 1 and 99"):
            so3krates(*files(shared, "euclidean_default"), species=species)


def test_files_that_cannot_be_read(shared: Path, tmp_path: Path) -> None:
    params, config = files(shared, "euclidean_default")
    with pytest.raises(FileNotFoundError, match="no such file"):
        so3krates(tmp_path / "none.npz", config)
    with pytest.raises(FileNotFoundError, match="no such file"):
        so3krates(params, tmp_path / "none.json")
    broken = tmp_path / "broken.npz"
    something_else = r"^broken\.npz: not a readable \.npz, or a damaged one: download"
    for content in (b"", b"no zip at all", params.read_bytes()[:5000]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=something_else):  # and no advice to unpickle it
            so3krates(broken, config)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(broken)
    with pytest.raises(ValueError, match=something_else):
        so3krates(broken, config)
    np.savez(broken, x=np.array([{"an": "object"}], dtype=object))  # a pickle inside
    with pytest.raises(ValueError, match=r"broken\.npz: not a readable \.npz"):
        so3krates(broken, config)
    for content, message in (("{", "not JSON"), ("[1]", "expected one JSON object")):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(ValueError, match=rf"broken\.json: {message}"):
            so3krates(params, tmp_path / "broken.json")
