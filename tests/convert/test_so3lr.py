"""SO3LR as published: every stored number, what its files may hold, and what is refused."""

from __future__ import annotations

import builtins
import json
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import fs
from command_line import fails, succeeds
from contract import assert_close

from attncalc import AttnCalculator, Evaluator, load, md
from attncalc.convert import so3lr
from attncalc.convert.inputs import Tree
from attncalc.convert.pickled_arrays import read_pickled_arrays
from attncalc.graph import AtomOutputs
from attncalc.model_file import save
from attncalc.potential import Potential, evaluate
from attncalc.structures import fresh_graphs
from attncalc.system import System

ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17)
STRUCTURES = ("ethanol", "aspirin", "ammonium", "acetate_water", "water_64")
RANGES = {"lr12_": 12.0, "lr1000_": 1000.0, "lrinf_": math.inf}


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "reference" / "so3lr"


@pytest.fixture(scope="module")
def potential(published: Path) -> Potential:
    return so3lr(published / "params.pkl", published / "hyperparameters.json")


@pytest.fixture(scope="module")
def model(potential: Potential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("so3lr") / "so3lr.safetensors"
    save(potential, path)
    return path


def structure(published: Path, name: str) -> tuple[Atoms, dict[str, np.ndarray]]:
    stored = dict(np.load(published / f"{name}.npz"))
    atoms = Atoms(stored["numbers"], stored["positions"], pbc=stored["pbc"])
    if "cell" in stored:
        atoms.cell = stored["cell"]
    atoms.info = {"charge": int(stored["total_charge"]), "spin": int(stored["multiplicity"])}
    return atoms, stored


# -------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_published_numbers(published: Path, model: Path, name: str, key: str) -> None:
    """Total, every term, forces, charges, ratios and stress, in float64."""
    atoms, stored = structure(published, name)
    if f"{key}energy" not in stored:
        pytest.skip("this range is stored for molecules only")
    whole = load(model, dtype="float64", long_range_cutoff=RANGES[key])
    system = System.from_ase(atoms)
    graphs = fresh_graphs(whole, system)
    result = evaluate(whole, graphs)
    for ours, theirs in (
        (result.energy[0], "energy"),
        (result.forces, "forces"),
        (result.charges, "partial_charges"),
        (result.hirshfeld_ratios, "hirshfeld_ratios"),
        (result.energies, "atomic_energies"),
    ):
        assert_close(ours, stored[key + theirs], 1e-11, theirs)
    outputs = AtomOutputs(result.energies, result.charges, result.hirshfeld_ratios)
    names = ("zbl", "electrostatic", "dispersion")
    for term, theirs in zip(whole.pair_terms, names, strict=True):
        graph = graphs.of_range(getattr(term, "long_range", None))
        ours = term(graph, outputs).detach()
        assert_close(ours, stored[f"{key}atomic_{theirs}"], 1e-11, theirs)
    if f"{key}stress" in stored:
        assert_close(result.stress(system)[0], stored[f"{key}stress"], 1e-12, "stress")


@pytest.mark.parametrize("name", STRUCTURES)
def test_as_users_run_it(published: Path, model: Path, name: str) -> None:
    """Float32, by the compiled loops, with the range that periodicity chooses."""
    atoms, stored = structure(published, name)
    key = "lr12_" if atoms.pbc.any() else "lrinf_"
    atoms.calc = AttnCalculator(model, dtype="float32", device="cpu")
    assert_close(atoms.get_forces(), stored[f"{key}forces"], 1e-4, "forces")
    energy = float(stored[f"{key}energy"])
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=2e-5 * len(atoms))
    assert_close(atoms.get_charges(), stored[f"{key}partial_charges"], 2e-6, "charges")
    assert_close(atoms.calc.hirshfeld_ratios, stored[f"{key}hirshfeld_ratios"], 2e-6, "ratios")
    assert atoms.get_charges().sum() == pytest.approx(atoms.info["charge"], abs=1e-12)
    if atoms.pbc.any():
        with pytest.raises(PropertyNotImplementedError, match="given for molecules only"):
            atoms.get_dipole_moment()
        (many,) = atoms.calc.calculate_many([atoms])
        assert "dipole" not in many
        voigt = stored[f"{key}stress"][(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
        assert_close(atoms.get_stress(), voigt, 1e-6, "stress")
    else:
        assert_close(atoms.get_dipole_moment(), stored[f"{key}dipole"], 1e-5, "dipole")


def test_dynamics_by_the_compiled_loops_conserve_the_energy(published: Path, model: Path) -> None:
    """Acetate and water without a cutoff, as users run them: float32, lists that are kept."""
    atoms, _ = structure(published, "acetate_water")
    fluctuations = []
    for timestep in (0.5, 0.25):
        verlet, potential = md.Verlet(timestep * fs), Evaluator(load(model))
        state = verlet.init(potential, System.from_ase(atoms), temperature=300.0, seed=0)
        energies = []
        for _ in range(round(25 / timestep)):
            state = md.run(verlet, potential, state, 1)
            energies.append(float(state.conserved))
        fluctuations.append(np.std(energies))
    assert fluctuations[0] < 2e-3  # eV, of some 0.4 eV of kinetic energy
    assert fluctuations[0] / fluctuations[1] == pytest.approx(4, rel=0.3)


def test_an_npz_is_the_same(published: Path, potential: Potential) -> None:
    other = so3lr(published / "so3lr_params.npz", published / "so3lr_hyperparameters.json")
    assert other.species == potential.species == ELEMENTS
    ours, theirs = other.state_dict(), potential.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_committee_has_mean_charges(published: Path, potential: Potential) -> None:
    atoms, _ = structure(published, "acetate_water")
    other = so3lr(published / "params.pkl", published / "hyperparameters.json")
    with torch.no_grad():
        other.network.charge_head.of_species += torch.linspace(-0.1, 0.1, len(ELEMENTS))
    alone = [AttnCalculator(one) for one in (potential, other)]
    both = AttnCalculator([potential, other])
    mean = sum(calc.get_property("charges", atoms) for calc in alone) / 2
    assert_close(both.get_property("charges", atoms), mean, 1e-12)
    assert_close(both.hirshfeld_ratios, alone[0].hirshfeld_ratios, 1e-12)
    assert both.spread is not None


# ---------------------------------------------------------------------------- command and model


def test_command(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = (published / "params.pkl", "--config", published / "hyperparameters.json")
    said = succeeds("convert", "so3lr", *files, "-o", "out.safetensors")
    assert said.splitlines()[0] == "wrote out.safetensors: 481,294 parameters, 8 elements"
    assert "comparable: energies of structures of equal composition, total charge" in said
    assert "citation: J. Am. Chem. Soc. 147, 33723 (2025), doi 10.1021/jacs.5c09558" in said
    described = AttnCalculator("out.safetensors").todict()
    assert described["long_range_cutoff"] == "12 Å, all pairs of molecules"
    said = succeeds(
        *("convert", "so3lr", *files, "--elements", "H,O", "--long-range-cutoff", 10),
        *("-o", "water.safetensors"),
    )
    assert "long range cutoff: 10 Å" in said
    assert load("water.safetensors").species == (1, 8)
    assert AttnCalculator("water.safetensors").todict()["long_range_cutoff"] == "10 Å"
    assert fails("convert", "so3lr", *files, "--elements", "H,Si", "-o", "si.safetensors") == (
        "Error: params.pkl: not trained on Si; its elements are: H C N O F P S Cl"
    )


def test_what_it_does_not_know_is_refused(model: Path) -> None:
    calculator = AttnCalculator(model)
    with pytest.raises(ValueError, match="not trained on Si; its elements are: H C N O F P S Cl"):
        calculator.get_potential_energy(Atoms("SiH4", np.eye(5, 3) * 1.5))
    hydroxyl = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], info={"spin": 1})
    with pytest.raises(ValueError, match="is impossible for 9 electrons"):
        calculator.get_potential_energy(hydroxyl)
    hydroxyl.info = {}  # a radical: the lowest state of nine electrons is a doublet
    doublet = calculator.get_potential_energy(hydroxyl)
    hydroxyl.info = {"spin": 4}
    assert abs(calculator.get_potential_energy(hydroxyl) - doublet) > 1e-3


# ------------------------------------------------------------------------------- hostile files


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def state(*, shape: Any = (2,), kind: str = "f4", content: Any = bytes(8)) -> bytes:
    """A pickle of {"a": array} whose array claims what it is told."""

    class Array:
        def __reduce__(self) -> Any:
            make = np.zeros(0).__reduce__()[0]
            return make, (np.ndarray, (0,), b"b"), (1, shape, np.dtype(kind), False, content)

    return pickle.dumps({"a": Array()}, protocol=4)


HOSTILE = {
    "os.system": (
        pickle.dumps({"a": Runs(os.system, "echo run > RUN")}),
        r"asks for (posix|nt|os)\.system, which is refused; nothing was run",
    ),
    "eval": (
        pickle.dumps(Runs(builtins.eval, "open('RUN', 'w')"), protocol=4),
        r"asks for builtins\.eval, which is refused; nothing was run",
    ),
    "protocol 0": (
        b"cos\nsystem\n(S'echo run > RUN'\ntR.",
        r"asks for os\.system, which is refused",
    ),
    "numpy.load": (
        pickle.dumps({"a": Runs(np.load, "x.npy")}, protocol=4),
        r"asks for numpy\.load, which is refused",
    ),
    "a huge array made by its class": (
        pickle.dumps({"a": Runs(np.ndarray, (1 << 40,))}, protocol=4),
        "it calls something else than arrays are made of",
    ),
    "a huge shape": (
        state(shape=(1 << 40,)),
        r"an array of shape \[1099511627776\] has 8 bytes",
    ),
    "a negative shape": (state(shape=(-2, -1)), "impossible shape"),
    "objects": (state(kind="O", content=[1, 2]), "an array of 'O8', not of plain numbers"),
    "text": (state(kind="U2"), "an array of 'U2', not of plain numbers"),
    "no dictionary": (pickle.dumps([1, 2]), "instruction EMPTY_LIST has no place"),
    "a number": (pickle.dumps({"a": 3}), "'a' is no array of numbers"),
    "names that are numbers": (pickle.dumps({1: {}}), "a name is int, no text"),
    "an instruction of objects": (
        pickle.dumps(Path("x"), protocol=2).replace(b"\x80\x02", b"\x80\x04"),
        "which is refused|has no place",
    ),
    "nothing": (b"", "exhausted"),
    "something else": (b"PK\x03\x04 and so on", "damaged|has no place|not|unknown"),
    "huge bytes": (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "remain|damaged"),
    "a huge place in the memo": (b"\x80\x04}r\xff\xff\xff\x7f.", ""),  # of a dictionary: no harm
}


@pytest.mark.parametrize("content", HOSTILE, ids=str)
def test_hostile_pickles(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, and nothing is run."""
    monkeypatch.chdir(tmp_path)
    written, message = HOSTILE[content]
    path = tmp_path / "params.pkl"
    path.write_bytes(written)
    if message:
        with pytest.raises(ValueError, match=message) as raised:
            read_pickled_arrays(path, 1 << 20)
        assert "\n" not in str(raised.value)
        assert str(raised.value).startswith("params.pkl: not a readable pickle (")
    else:
        assert read_pickled_arrays(path, 1 << 20) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["params.pkl"]


def test_deep_and_wide_pickles(tmp_path: Path) -> None:
    path = tmp_path / "params.pkl"
    array = np.zeros(1, np.float32)
    deep: Any = array
    for _ in range(40):
        deep = {"a": deep}
    shared: Any = {"x": array}
    for _ in range(25):  # 33 million names from a few bytes
        shared = {"a": shared, "b": shared}
    for tree, message in ((deep, "too deep"), (shared, "more than 100000 arrays")):
        path.write_bytes(pickle.dumps(tree, protocol=4))
        with pytest.raises(ValueError, match=message):
            read_pickled_arrays(path, 1 << 20)
    path.write_bytes(bytes(100))
    with pytest.raises(ValueError, match="is more than any such file has"):
        read_pickled_arrays(path, 99)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_pickled_arrays(tmp_path / "none.pkl", 99)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_of_arrays(protocol: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tree = {
        "a": {"b": generator.normal(size=(2, 3)).astype(np.float32), "c": np.arange(3)},
        "d": np.asfortranarray(generator.normal(size=(2, 3))),
        "e": generator.normal(size=4).astype(">f8"),
    }
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    if protocol == 5:  # numpy's arrays in another form, which the authors' file has not
        with pytest.raises(ValueError, match="_frombuffer, which is refused"):
            read_pickled_arrays(path, 1 << 20)
        return
    found = read_pickled_arrays(path, 1 << 20)
    assert sorted(found) == ["a/b", "a/c", "d", "e"]
    for name, expected in (("a/b", tree["a"]["b"]), ("d", tree["d"]), ("e", tree["e"])):
        assert np.array_equal(found[name], expected)
        assert found[name].dtype.isnative


def test_truncated_at_every_length(published: Path, tmp_path: Path) -> None:
    content = (published / "params.pkl").read_bytes()
    path = tmp_path / "params.pkl"
    for length in (*range(0, 400, 7), len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a readable pickle") as raised:
            so3lr(path, published / "hyperparameters.json")
        assert "\n" not in str(raised.value)


def test_the_published_pickle_has_no_other_names(published: Path) -> None:
    content = (published / "params.pkl").read_bytes()
    names = [argument for _, argument, _ in pickletools.genops(content) if argument is not None]
    assert {"_reconstruct", "ndarray", "dtype"} < {name for name in names if type(name) is str}


# ----------------------------------------------------------------------------- damaged contents


def damaged(published: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    arrays = dict(np.load(published / "so3lr_params.npz"))
    change(arrays)
    np.savez(folder / "params.npz", **arrays)
    return folder / "params.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.pop("observables_2/Embed_1/embedding"),
            "'observables_2/Embed_1/embedding' is m",
        ),
        (
            lambda a: a.update(more=np.zeros(2)),
            "1 arrays have no place in this network, e.g. 'more'",
        ),
        (
            lambda a: a.update({"observables_2/Embed_1/embedding": np.zeros((100, 63))}),
            r"directions has shape \[8, 63\], the hyper-parameters ask for \[8, 64\]",
        ),
        (
            lambda a: a.update({"observables_2/Embed_0/embedding": np.zeros((9, 1))}),
            "an array has a wrong shape",
        ),
        (
            lambda a: a.update({"observables_0/atomic_scales": np.ones(119)}),
            "not one element was trained",
        ),
        (
            lambda a: a.update({"observables_0/zbl_repulsion/p": np.array([np.nan])}),
            "contains numbers that are not finite",
        ),
        *(
            (
                lambda a, other=other: a.update({"observables_0/zbl_repulsion/p": other}),
                f"zbl_repulsion/p' must hold real numbers, is of the type {other.dtype}",
            )
            for other in (np.array([1j]), np.array([True]), np.array(["one"]))
        ),
    ],
)
def test_damaged_arrays(published: Path, tmp_path: Path, change: Callable, message: str) -> None:
    params = damaged(published, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        so3lr(params, published / "hyperparameters.json")


@pytest.mark.parametrize("kind", [">f4", ">f8", "longdouble", "int32"])
def test_real_numbers_of_any_kind(kind: str) -> None:
    found = Tree("weights.npz", {"one": np.array([1, 2, 3], dtype=kind)}).take("one")
    assert found.dtype == torch.float64
    assert found.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "model", None, "no entry 'model'; are these the hyper-parameters of SO3LR?"),
        ("model", "cutoff_lr", 9.0, "cutoff_lr = 9.0 is not supported; supported: None"),
        ("model", "electrostatic_energy_bool", False, "electrostatic_energy_bool = False is not"),
        ("model", "electrostatic_energy_scale", -4, "electrostatic_energy_scale must be positive"),
        ("model", "dispersion_energy_scale", None, "dispersion_energy_scale must be a number"),
        (
            "model",
            "energy_activation_fn",
            "identity",
            "'identity' is not supported; supported: 'sil",
        ),
        ("model", "energy_regression_dim", 64, "64 is not supported; supported: 128"),
        ("model", "new", 1, "unknown hyper-parameters ['new']"),
        ("data", "avg_num_neighbors", None, "avg_num_neighbors must be a finite number, got None"),
    ],
)
def test_unsupported_options(
    published: Path, tmp_path: Path, section: str | None, key: str, value: Any, message: str
) -> None:
    options = json.loads((published / "hyperparameters.json").read_text())
    (options if section is None else options[section])[key] = value
    path = tmp_path / "hyperparameters.json"
    path.write_text(json.dumps(options))
    with pytest.raises(ValueError, match=re.escape(message)):
        so3lr(published / "params.pkl", path)
