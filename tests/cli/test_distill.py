"""`attncalc distill`: a whole run by EMT, killed anywhere, and one line for whatever is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from command_line import COPPER, Forked, attncalc, fails, import_again, wait_until
from pictures import draw_none_in_pages

from attncalc import AttnCalculator, data
from attncalc.cli.distill import _first_weights, _start
from attncalc.distill.training import CONFIG
from attncalc.model_file import DEFAULT_MODEL, shipped_models

pytest.importorskip("rdkit", reason="needs rdkit: pip install attncalc[distill]")
pytest.importorskip("lightning", reason="needs lightning: pip install attncalc[distill]")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EMT = ("--oracle", "ase.calculators.emt:EMT")
SMALL = ("--steps", 30, "--picoseconds", 0.04, "--timestep", 2)


@pytest.fixture
def cluster() -> str:
    tetrahedron = [[0, 0, 0], [2.3, 0, 0], [1.15, 2.0, 0], [1.15, 0.67, 1.9]]
    write("cu4.xyz", Atoms("Cu4", tetrahedron))
    return "cu4.xyz"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models without engines: compiling these takes minutes in a new clone.

    Their speed is measured in few steps.
    """
    monkeypatch.setattr("attncalc.evaluator.lower", lambda potential: potential)
    monkeypatch.setattr("attncalc.distill.training.STEPS_PER_EPOCH", 10)
    monkeypatch.setattr("attncalc.distill.report.STEPS", 10)
    monkeypatch.setattr("attncalc.distill.report.WARM_UP", 1)
    small = {"num_features": 16, "num_heads": 2, "degrees": (1, 2), "num_layers": 1, "num_basis": 8}
    monkeypatch.setattr("attncalc.distill.training.CONFIG", CONFIG | small)


def labels(folder: str) -> dict[str, np.ndarray]:
    with h5py.File(f"{folder}/labels.h5") as file:
        return {name: file[name][()] for name in ("R", "E", "F")}


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_a_run_to_the_end_of_its_labels(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("distill", cluster, *EMT, *SMALL, "--labels", 100, "--force-mae", 1e-6, "--json")
    result = attncalc(*command)
    assert result.exit_code == 2, result.output
    told, folder = json.loads(result.stdout), Path("cu4-distilled")
    assert not told["converged"]
    used = told["labels"]  # less than all: the rest is too few for another round
    assert told["why"] == f"{used} of 100 labels are used, too many for another round"
    assert told["faults"][0].startswith("force MAE ")
    assert 70 < told["labels"] <= 100
    assert told["labels"] == len(labels(str(folder))["E"]) + sum(told["refused"].values())
    assert told["rounds"] > 1
    sets = {role: data.read(folder / f"{role}.h5") for role in ("train", "validation", "test")}
    seen = {
        role: {atoms.positions.astype(np.float32).tobytes() for atoms in one.structures}
        for role, one in sets.items()
    }
    assert not seen["test"] & (seen["train"] | seen["validation"])
    assert not seen["train"] & seen["validation"]
    models = {Path(name).stem: numbers for name, numbers in told["models"].items()}
    assert [*models] == ["cu4", "cu4-fast"]
    for name, numbers in models.items():
        calc = AttnCalculator(folder / f"{name}.safetensors")
        off = []
        for k, atoms in enumerate(sets["test"].structures):
            atoms.calc = calc
            off.append(np.abs(atoms.get_forces() - sets["test"].forces[k]).mean())
        assert np.mean(off) == pytest.approx(numbers["force_mae"], rel=1e-3)
        assert calc.novelty is not None
    report = (folder / "report.md").read_text()
    assert "**The goal is not reached**" in report
    assert f"{told['labels']} calls of the oracle" in report
    assert (
        "Settings: seed 0, charge 0 e, multiplicity 1, timestep 2 fs, first round from " in report
    )
    assert (folder / "errors.html").stat().st_size > 10_000
    # nothing is done again; a looser goal needs no label
    draw_none_in_pages(monkeypatch)
    again = json.loads(attncalc(*command).stdout)
    assert (again["labels"], again["rounds"]) == (told["labels"], told["rounds"])
    assert "was begun with temperature 300.0, not 400.0" in fails(*command, "--temperature", 400)


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_killed_anywhere_it_ends_as_if_it_had_not_been(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_none_in_pages(monkeypatch)
    command = ("distill", cluster, *EMT, *SMALL, "--labels", 80, "--members", 1, "-q")
    for place in (
        ".lock",  # before the first label
        "state.json",
        "labels.h5",
        "round-1/member-1/last.ckpt",
        "round-1/model.safetensors",
        "round-1/dynamics.npz",
    ):
        process = Forked(*command, "-o", "killed", "--force-mae", 1e-6)
        wait_until(Path("killed", place).exists, process)
        process.kill()
        process.ended()
    for folder in ("killed", "whole"):
        assert attncalc(*command, "-o", folder, "--force-mae", 1e-6).exit_code == 2
    ours, theirs = labels("killed"), labels("whole")
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    states = [json.loads(Path(one, "state.json").read_text()) for one in ("killed", "whole")]
    assert states[0]["known"] == states[1]["known"]
    assert [one["force_mae"] for one in states[0]["rounds"]] == [
        one["force_mae"] for one in states[1]["rounds"]
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_density_functional_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyscf", reason="needs pyscf: pip install pyscf")
    monkeypatch.syspath_prepend(EXAMPLES)
    from pyscf_oracle import pbe

    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], calculator=pbe(0, 1))
    force = atoms.get_forces()[1, 2]
    energies = []
    for length in (0.801, 0.799):
        atoms.positions[1, 2] = length
        energies.append(atoms.get_potential_energy())
    assert force == pytest.approx((energies[1] - energies[0]) / 0.002, abs=1e-4)
    write("h2.xyz", atoms)
    Path("fast.py").write_text(
        "from pyscf_oracle import PySCF\n\n"
        "def lda(charge, multiplicity):\n"
        "    return PySCF('lda,vwn', 'sto-3g', charge, multiplicity)\n"
    )
    command = ("distill", "h2.xyz", "--oracle", "fast:lda", *SMALL, "--labels", 60)
    result = attncalc(*command, "--timestep", 0.5, "--members", 1, "--json")
    assert result.exit_code in (0, 2), result.output
    told = json.loads(result.stdout)
    assert told["refused"] == {}
    assert 30 < told["labels"] <= 60


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("no.xyz",), "no such file: no.xyz"),
        (("cu4.xyz", "--oracle", "no:thing"), "No module named 'no'"),
        (("cu4.xyz", "--oracle", "no.safetensors"), "no.safetensors"),
        (("cu4.xyz", "--start-from", "so3krates-ethanol-committee"), "is a committee"),
        (("cu4.xyz", "--multiplicity", "2", *EMT), "multiplicity"),
        (("cu4.xyz", "--force-mae", "nan", *EMT), "--force-mae must be positive, got nan"),
        (("cu4.xyz", "-o", "cu4.xyz", *EMT), "cu4.xyz exists and is no folder"),
        (("cu4.xyz", "-o", ".", *EMT), "holds something else"),
    ],
)
def test_bad_input(cluster: str, arguments: tuple[str, ...], says: str) -> None:
    assert says in fails("distill", *arguments)
    assert {path.name for path in Path.cwd().iterdir()} == {cluster}


@pytest.mark.parametrize(
    ("atoms", "knows"),
    [
        (molecule("CH3CH2OH"), True),
        (Atoms("NH4", molecule("CH4").positions, info={"charge": 1}), True),
        (molecule("CH3"), False),  # a radical
        (Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]), False),
    ],
)
def test_trainings_start_from_the_default_model_where_it_knows_the_structure(
    atoms: Atoms, knows: bool
) -> None:
    default = str(shipped_models()[DEFAULT_MODEL])
    assert _first_weights(None, atoms) == (default if knows else None)
    assert _first_weights("none", atoms) is None
    for name in ("so3krates-silicon", "equiformer-ethanol-correction"):
        with pytest.raises(ValueError, match=rf"--start-from {name} (cannot be|is a delta)"):
            _first_weights(name, atoms)


def test_trainings_start_from_a_model_that_knows_the_structure() -> None:
    ethanol = str(shipped_models()["so3krates-ethanol"])
    assert _first_weights("so3krates-ethanol", molecule("CH3CH2OH")) == ethanol


def test_one_atom_is_too_few() -> None:
    write("atom.xyz", Atoms("Cu"))
    assert "two atoms or more are needed" in fails("distill", "atom.xyz", *EMT)


def test_an_oracle_that_refuses_everything(cluster: str) -> None:
    line = fails("distill", cluster, "--charge", 1, "-q", *EMT)
    assert "the oracle refuses the structure: charge not told to the calculator" in line


@pytest.mark.parametrize("left", [(".lock",), (".lock", ".state.json.host.1.part")])
def test_a_folder_of_a_run_that_was_killed_at_once_is_taken(
    cluster: str, left: tuple[str, ...]
) -> None:
    Path("cu4-distilled").mkdir()
    for name in left:
        Path("cu4-distilled", name).touch()
    for options in ((), ("--overwrite",)):
        line = fails("distill", cluster, "--charge", 1, "-q", *EMT, *options)
        assert "the oracle refuses the structure" in line


def test_overwriting_keeps_what_is_not_its_own(cluster: str) -> None:
    folder = Path("cu4-distilled")
    (folder / "round-1").mkdir(parents=True)
    (folder / "round-table").mkdir()
    own = ["state.json", "labels.h5", "test.h5", "report.md", "cu4.safetensors"]
    others = ["notes.md", "mine.h5", "settings.json", "teacher.safetensors", "round-2"]
    for name in own + others:
        (folder / name).write_text("old")
    fails("distill", cluster, "--charge", 1, "-q", *EMT, "--overwrite")
    assert {path.name for path in folder.iterdir() if path.is_file()} >= set(others)
    left = {path.name for path in folder.iterdir()} - set(others)
    assert left == {"round-table"}  # the oracle refuses the ion, so there is nothing new


def test_overwriting_refuses_inputs_that_it_would_remove(cluster: str) -> None:
    folder = Path("cu4-distilled")
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    model = folder / "cu4.safetensors"
    shutil.copy(COPPER, model)
    for options in (("--start-from", model, *EMT), ("--oracle", model)):
        line = fails("distill", cluster, *options, "--overwrite")
        assert "lies in cu4-distilled, which --overwrite empties" in line
    assert model.stat().st_size == Path(COPPER).stat().st_size


def test_a_multiplicity_under_another_name_is_read() -> None:
    write("o2.xyz", Atoms("O2", [[0, 0, 0], [0, 0, 1.2]], info={"multiplicity": 3}))
    said = fails("distill", "o2.xyz", *EMT, "--charge", 1)
    assert 'atoms.info["multiplicity"] = 3 is impossible for 15 electrons' in said


def test_an_assumed_radical_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    ammonium = Atoms("NH4", molecule("CH4").positions)
    write("silent.xyz", ammonium)
    ammonium.info["charge"] = 1
    write("ion.xyz", ammonium)
    write("methane.xyz", molecule("CH4"))
    said = "Warning: charge 0 e and multiplicity 2 are assumed"
    assert _start("silent.xyz", None, None).info == {"charge": 0, "spin": 2}
    assert said in capsys.readouterr().err
    for file, charge, multiplicity in (
        *(("silent.xyz", 1, None), ("silent.xyz", 0, None), ("silent.xyz", None, 2)),
        *(("ion.xyz", None, None), ("methane.xyz", None, None)),
    ):
        _start(file, charge, multiplicity)
        assert said not in capsys.readouterr().err


def test_without_lightning_it_says_what_is_missing(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_again(monkeypatch, "attncalc.distill", "attncalc.sampling")
    monkeypatch.setitem(sys.modules, "rdkit", None)
    assert 'pip install "attncalc[distill]"' in fails("distill", cluster, *EMT)
