"""attncalc eval: the table, the report, remarks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from command_line import COPPER, ETHANOL, attncalc, fails, files, import_again, labelled, succeeds

from attncalc import AttnCalculator, data, load, train
from attncalc.cli import evaluate as module
from attncalc.data.errors import predict
from attncalc.fast import lower


def table(text: str) -> dict[str, list[float]]:
    rows = (line.rsplit(maxsplit=2) for line in text.splitlines() if re.search(r"\d$", line))
    found: dict[str, list[float]] = {}
    for words in rows:
        numbers = [float(word) for word in words if re.fullmatch(r"[\d.]+", word)]
        label = " ".join(word for word in words if not re.fullmatch(r"[\d.]+", word))
        found[label] = numbers
    return found


def test_eval() -> None:
    frames = labelled(6)
    write("cu.extxyz", frames)
    said = succeeds("eval", COPPER, "cu.extxyz", "--dtype", "float64")
    assert said.startswith("6 structures of cu.extxyz, labels ")
    rows = table(said)
    assert set(rows) == {
        "energy, meV",
        "energy, meV/atom",
        "force, meV/Å",
        "stress, meV/Å³",
        "force on Cu, meV/Å",
    }
    assert rows["force on Cu, meV/Å"] == rows["force, meV/Å"]
    assert rows["energy, meV/atom"] == pytest.approx(np.array(rows["energy, meV"]) / 4, abs=1e-3)
    calculator = AttnCalculator(COPPER, dtype="float64")
    off = [calculator.get_forces(atoms) - atoms.get_forces() for atoms in frames]
    mae, rmse = rows["force, meV/Å"]
    assert mae == pytest.approx(1e3 * np.abs(off).mean(), abs=1e-3)
    assert rmse == pytest.approx(1e3 * np.sqrt(np.square(off).mean()), abs=1e-3)
    assert 0 < mae < 150, "the model knows EMT's copper"
    energies = [calculator.get_potential_energy(a) - a.get_potential_energy() for a in frames]
    assert rows["energy, meV"][0] == pytest.approx(1e3 * np.abs(energies).mean(), abs=1e-3)


def test_table_columns_never_run_together() -> None:
    rows = [("", "MAE", "RMSE"), ("energy, meV", "123456789.123", "1.000"), ("x", "2.5", "")]
    assert module._table(rows) == (
        "                       MAE   RMSE\n"
        "energy, meV  123456789.123  1.000\n"
        "x                      2.5"
    )


def test_eval_far_off() -> None:
    """Total energies of another method: numbers as long as they like."""
    (atoms,) = labelled(1)
    atoms.calc.results["energy"] -= 1e8
    write("cu.extxyz", atoms)
    mae, rmse = table(succeeds("eval", COPPER, "cu.extxyz"))["energy, meV"]
    assert mae == rmse == pytest.approx(1e11, rel=1e-3)


def test_eval_without_a_volume_leaves_the_stress_out() -> None:
    (crystal,) = labelled(1)
    alone = crystal.copy()
    alone.pbc, alone.cell = False, None
    alone.calc = SinglePointCalculator(alone, **crystal.calc.results)
    write("cu.extxyz", alone)
    said = attncalc("eval", COPPER, "cu.extxyz", "--no-report")
    assert said.exit_code == 0
    assert "stresses are ignored: structure 0 has no volume" in said.stderr
    assert "stress" not in said.stdout


def test_eval_of_a_split_that_is_not_there() -> None:
    write("cu.extxyz", labelled(2))
    said = fails("eval", COPPER, "cu.extxyz", "--split", "test_01")
    assert said == "Error: cu.extxyz: no split 'test_01'; stored splits: none"
    assert files() == {"cu.extxyz"}


def test_eval_leaves_a_report() -> None:
    """Unasked, and again and again; but nothing else is replaced."""
    write("cu.extxyz", labelled(2))
    for done in ("wrote", "replaced the older report"):
        said = succeeds("eval", COPPER, "cu.extxyz")
        assert said.splitlines()[-1] == f"{done} eval-cu-emt-cu.html"
        assert files() == {"cu.extxyz", "eval-cu-emt-cu.html"}
    page = Path("eval-cu-emt-cu.html").read_text()
    assert f'<data value="{1e3 * force_mae("cu.extxyz")!r}">' in page
    assert "<title>cu-emt on cu.extxyz</title>" in page
    assert succeeds("eval", COPPER, "cu.extxyz", "-o", "mine.html").endswith("wrote mine.html\n")
    Path("other.html").write_text("precious")
    said = fails("eval", COPPER, "cu.extxyz", "--report", "other.html")
    assert said == "Error: other.html exists: choose another name, or use --overwrite"
    assert Path("other.html").read_text() == "precious"


def force_mae(path: str) -> float:
    """eV/Å, in batches, as `attncalc eval` goes."""
    dataset = data.read(path)
    predicted = np.concatenate(predict(lower(load(COPPER)), dataset).forces)
    return float(np.abs(predicted - np.concatenate(dataset.forces)).mean())


def test_eval_warns_of_units_that_do_not_match() -> None:
    frames = labelled(30)
    for atoms in frames:
        atoms.calc.results["energy"] *= 23.0605
    write("cu.extxyz", frames)
    result = attncalc("eval", COPPER, "cu.extxyz", "--no-report")
    assert result.exit_code == 0
    assert re.match(
        "Warning: cu.extxyz: .* energies in kcal/mol beside forces in eV", result.stderr
    )


def test_eval_says_in_the_terminal_what_the_report_says() -> None:
    frames = labelled(8)
    for atoms in frames:
        atoms.calc.results["energy"] += 1000.0 * len(atoms)
    write("cu.extxyz", frames)
    said = succeeds("eval", COPPER, "cu.extxyz", "--no-report")
    assert re.search(r"Note: Energies are off by a constant per element: without it", said)


def test_eval_without_a_report() -> None:
    write("cu.extxyz", labelled(2))
    assert "wrote" not in succeeds("eval", COPPER, "cu.extxyz", "--no-report")
    assert files() == {"cu.extxyz"}


def test_eval_of_a_committee_tells_what_its_spread_is_worth(ethanol_file: str) -> None:
    atoms = read(ethanol_file)
    atoms.calc = AttnCalculator(ETHANOL)
    atoms.get_forces()
    write("labelled.extxyz", atoms)
    said = succeeds("eval", f"{ETHANOL}-committee", "labelled.extxyz")
    start = "spread of the committee: "
    lines = [line.removeprefix(start) for line in said.splitlines() if line.startswith(start)]
    assert [line.split(" errors are ")[0] for line in lines] == ["force", "energy per atom"]
    assert re.search(r"errors are \d+\.\d\d times as large in 9 cases: too few to tell", lines[0])
    (page,) = Path.cwd().glob("eval-*.html")
    assert "What the spread of the committee tells" in page.read_text()


def test_eval_asks_for_the_report_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AttnCalculator", None)
    said = fails("eval", COPPER, "cu.extxyz", "-o", "report.pdf")
    assert said == "Error: report.pdf: a report must end in .html"
    assert fails("eval", COPPER, "cu.extxyz", "-o", "no/a.html") == "Error: no such folder: no"


def test_the_name_of_a_report() -> None:
    """Model, data, labels and split; never a folder, whatever the split is called."""
    name = module._report_file(None, "runs/a.safetensors", "../b.npz", "md17", "../../c d")
    assert str(name) == "eval-a-b-md17-.._.._c_d.html"


def test_the_report_names_structures_as_the_file_does() -> None:
    frames = labelled(6)
    for k, atoms in enumerate(frames):
        atoms.info["split"] = "test" if k >= 4 else "train"
    frames[5].calc.results["forces"] = frames[5].get_forces() + 5.0
    write("cu.extxyz", frames)
    succeeds("eval", COPPER, "cu.extxyz", "--split", "test", "-o", "r.html")
    page = Path("r.html").read_text()
    worst = re.findall(r"<tr><td>(\d+)</td><td class=\"left\">Cu4", page)
    assert worst[0] == "5"
    assert set(worst) == {"4", "5"}
    assert "split test" in page


RECIPE = """name: mine
data: cu.extxyz
split: {sizes: [8, 2, rest]}
config: {cutoff: 4.0, num_features: 8, num_heads: 1, degrees: [1], num_layers: 1}
epochs: 1
seed: 3
"""


@pytest.fixture
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training on ten of fourteen structures."""
    write("cu.extxyz", labelled(14))
    Path("mine.yaml").write_text(RECIPE)
    assert attncalc("train", "mine.yaml").exit_code == 0
    return Path("runs/mine")


def test_eval_of_a_training_by_its_own_split(trained: Path) -> None:
    said = succeeds("eval", trained, "--split", "test", "--no-report")
    assert said.startswith("4 structures of cu.extxyz")
    assert "trained on" not in said
    assert succeeds("eval", trained, "--no-report") == said, "the test set, unasked"
    card = Path("runs/mine/mine.md").read_text()
    mae, rmse = table(said)["force, meV/Å"]
    of_card = re.search(r"\| force \| ([\d.]+) \| ([\d.]+) \|", card)
    assert of_card
    assert [float(x) for x in of_card.groups()] == pytest.approx([mae, rmse], abs=0.051)
    seen = succeeds("eval", trained, "--split", "training", "--no-report")
    assert seen.startswith("8 structures")
    assert "8 of these 8 structures are among those that the model was trained on" in seen
    succeeds("eval", trained, "cu.extxyz", "--split", "validation", "--no-report")


@pytest.mark.parametrize("stream", [False, True])
def test_the_page_of_a_training_has_indices_of_its_file(trained: Path, stream: bool) -> None:
    """Where a wrong label can be found, though the split is drawn at random."""
    if stream:
        succeeds("convert", "data", "cu.extxyz", "-o", "cu.h5")
        recipe = RECIPE.replace("mine", "streamed").replace("cu.extxyz", "cu.h5") + "stream: true\n"
        Path("mine.yaml").write_text(recipe)
        succeeds("train", "mine.yaml", "--quiet")
        trained = Path("runs/streamed")
    succeeds("eval", trained, "-o", "r.html")
    page = Path("r.html").read_text()
    listed = [int(k) for k in re.findall(r"<tr><td>(\d+)</td><td class=\"left\">Cu4", page)]
    test = train.read_run(trained)[1]["test"]
    assert set(listed) == set(test.indices.tolist()) != {0, 1, 2, 3}
    whole = data.read("cu.extxyz")
    for k, atoms in zip(test.indices, test.structures, strict=True):
        assert np.array_equal(whole.structures[k].positions, atoms.positions)


def test_a_folder_does_not_hide_a_shipped_model(trained: Path) -> None:
    """As in `attncalc.load`; ./NAME is the folder."""
    name = "so3krates-silicon"
    trained.rename(name)
    crystal = bulk("Si", cubic=True)
    crystal.calc = SinglePointCalculator(crystal, energy=1.0, forces=np.zeros((8, 3)))
    write("si.extxyz", crystal)
    said = succeeds("eval", name, "si.extxyz", "--no-report")
    assert said.startswith("1 structure of si.extxyz")
    assert succeeds("eval", f"./{name}", "--no-report").startswith("4 structures of cu.extxyz")
    assert "is no folder of a training" in attncalc("calibrate", name, "-o", "n.safetensors").stderr
    assert attncalc("calibrate", f"./{name}", "-o", "new.safetensors").exit_code == 0


def test_eval_knows_training_structures_in_other_files(trained: Path) -> None:
    """Whatever they are called, and with fewer digits."""
    frames = read("cu.extxyz", ":")
    for atoms in frames:
        atoms.positions = atoms.positions.round(7)
    write("others.extxyz", frames)
    said = succeeds("eval", "runs/mine/mine.safetensors", "others.extxyz", "--no-report")
    assert "8 of these 14 structures are among those" in said


def test_eval_of_a_training_says_what_is_wrong(trained: Path) -> None:
    assert fails("eval", trained, "--split", "test_01") == (
        "Error: runs/mine: no split 'test_01'; this training has: training, validation, test"
    )
    assert "labels and units are those of the training" in fails("eval", trained, "--labels", "x")
    write("other.extxyz", labelled(15)[1:])
    said = fails("eval", trained, "other.extxyz")
    assert said == (
        "Error: other.extxyz: not the training set that runs/mine was trained on; for other data "
        "name the model file, runs/mine/mine.safetensors"
    )
    write("few.extxyz", labelled(3))
    said = fails("eval", trained, "few.extxyz")
    assert said.startswith("Error: few.extxyz: sizes [")
    assert said.endswith(
        "; runs/mine was trained on other data: name the model file, runs/mine/mine.safetensors"
    )
    Path("cu.extxyz").rename("gone.extxyz")
    assert "name the file that runs/mine was trained on" in fails("eval", trained)
    Path("empty").mkdir()
    assert fails("eval", "empty").startswith("Error: empty: no training has begun in this folder")
    (trained / "recipe.json").write_text("{}")
    assert fails("eval", trained).startswith("Error: runs/mine/recipe.json: damaged (")


def test_eval_takes_the_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    taken = "attncalc.evaluator.lower"
    monkeypatch.setattr(taken, lambda potential: asked.append(potential) or potential)
    write("cu.extxyz", labelled(2))
    succeeds("eval", COPPER, "cu.extxyz", "--no-report")
    assert len(asked) == 1


def test_eval_as_json_and_quietly() -> None:
    write("cu.extxyz", labelled(2))
    result = attncalc("eval", COPPER, "cu.extxyz", "--json")
    found = json.loads(result.stdout)
    assert found["errors"]["n_structures"] == 2
    assert found["report"] == "eval-cu-emt-cu.html"
    assert "force on Cu" in result.stderr
    assert succeeds("eval", COPPER, "cu.extxyz", "--quiet") == ""


def test_eval_replaces_another_file_only_if_told() -> None:
    write("cu.extxyz", labelled(2))
    Path("page.html").write_text("mine")
    assert "page.html exists" in fails("eval", COPPER, "cu.extxyz", "-o", "page.html")
    succeeds("eval", COPPER, "cu.extxyz", "-o", "page.html", "--overwrite")
    assert Path("page.html").read_text()[:4] != "mine"


def test_eval_of_trainings_of_all_kinds(tmp_path: Path) -> None:
    """A streamed one, a committee and its members, and a recipe in another folder than its run."""
    Path("recipes").mkdir()
    write("recipes/cu.extxyz", labelled(14))
    Path("recipes/mine.yaml").write_text(RECIPE + "committee: 2\n")
    assert attncalc("train", "recipes/mine.yaml").exit_code == 0
    for folder in ("runs/mine", "runs/mine/member-1", "runs/mine/member-2"):
        said = succeeds("eval", folder, "--split", "training", "--no-report")
        assert said.startswith("8 structures of cu.extxyz")
    succeeds("convert", "data", "recipes/cu.extxyz", "-o", "all.h5")
    streamed = RECIPE.replace("cu.extxyz", "all.h5").replace("mine", "other") + "stream: true\n"
    Path("other.yaml").write_text(streamed)
    assert attncalc("train", "other.yaml").exit_code == 0
    assert succeeds("eval", "runs/other", "--no-report").startswith("4 structures of all.h5")


def test_the_folder_of_a_training_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    import_again(monkeypatch, "attncalc.train")
    monkeypatch.delattr("attncalc.train", raising=False)
    monkeypatch.setitem(sys.modules, "lightning", None)
    Path("out").mkdir()
    assert 'training needs: pip install "attncalc[train]"' in fails("eval", "out")
