"""Recipes: what is understood, what is refused and how."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from damage import damaged, limits

from attncalc.model_file import NETWORKS
from attncalc.train import Recipe
from attncalc.train.training import _read

MODELS = Path(__file__).resolve().parents[2] / "models"
RECIPES = MODELS.parent / "benchmarks" / "recipes"
LEAST = "name: a\ndata: a.npz\nsplit: {sizes: [1, 1]}\nconfig: {cutoff: 4.0}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text)
    return path


def test_without_yaml(tmp_path, monkeypatch):
    path = write(tmp_path, LEAST)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r'training needs: pip install "attncalc\[train\]"'):
        Recipe.from_yaml(path)


ALL = sorted([*MODELS.glob("*.yaml"), *RECIPES.rglob("*.yaml")])
# of the data sets: frames for training, validation, test
SIZES = {
    "rmd17_": (950, 50, 1000),
    "3bpa_": (450, 50, 1669),
    "acac_": (450, 50, 650),
    "water_": (300, 20, 80),
    "lips20_": (780, 20, 200),
    "mlearn_Mo": (180, 14, 23),
}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path):
    assert Recipe.from_yaml(path).name == path.stem


def test_data_labels_and_splits_of_the_shipped_recipes(shared):
    """All that train on one data set train on the same frames and labels."""
    seen = {}
    for path in ALL:
        recipe = dataclasses.replace(Recipe.from_yaml(path), folder=str(shared / "data"))
        kinds = [kind for kind in SIZES if recipe.data.startswith(kind)]
        if not kinds:  # generated, mended, or one's own
            continue
        told = (recipe.test_data, recipe.labels, recipe.level_of_theory, recipe.split, recipe.seed)
        if recipe.data not in seen:
            _, parts = _read(recipe)  # whether units match is asked by tests of the data
            assert tuple(len(part) for part in parts) == SIZES[kinds[0]]
            assert all(part.forces is not None for part in parts)
            seen[recipe.data] = (parts[0].stress is not None, told)
        assert (recipe.stress_weight > 0) == seen[recipe.data][0], path.stem
        named = "train" in recipe.split  # then the seed draws nothing
        assert told[: -1 if named else None] == seen[recipe.data][1][: -1 if named else None]
    assert len(seen) == 14


@pytest.mark.parametrize(
    ("name", "n_elements", "published"),
    [("so3krates-uracil-published", 100, 319_213), ("equiformer-uracil-l2", 64, 3_496_001)],
)
def test_published_recipes_have_the_published_number_of_parameters(name, n_elements, published):
    recipe = Recipe.from_yaml(RECIPES / f"{name}.yaml")
    network = NETWORKS[recipe.network][0](recipe.network_config(lambda: 1.0), n_elements)
    assert sum(p.numel() for p in network.parameters()) == published


def test_the_least_recipe(tmp_path):
    recipe = Recipe.from_yaml(write(tmp_path, LEAST))
    assert recipe.name == "a"
    assert recipe.network == "so3krates"
    assert recipe.folder == str(tmp_path)
    assert "folder" not in recipe.as_dict()


def test_keys_of_earlier_versions(tmp_path):
    recipe = Recipe.from_yaml(write(tmp_path, f"{LEAST}corrects: EMT\n"))
    assert recipe.baseline == recipe.as_dict()["baseline"] == "EMT"
    with pytest.raises(ValueError, match="'corrects' is the old name of 'baseline': give only one"):
        Recipe.from_yaml(write(tmp_path, f"{LEAST}corrects: EMT\nbaseline: EMT\n"))


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", "+1e-3", ".1e-2", "0.001"])
def test_a_number_with_an_exponent_is_a_number(tmp_path, text):
    recipe = Recipe.from_yaml(write(tmp_path, f"{LEAST}learning_rate: {text}\n"))
    assert recipe.learning_rate == 1e-3


def test_text_that_resembles_a_number_stays_text(tmp_path):
    recipe = Recipe.from_yaml(write(tmp_path, f"{LEAST}level_of_theory: 6-31e\n"))
    assert recipe.level_of_theory == "6-31e"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("epoch: 3", "a.yaml: unknown key 'epoch' in recipe; did you mean 'epochs'?"),
        ("xyzzy: 3", "a.yaml: unknown key 'xyzzy' in recipe"),
        ("config: {cutof: 4.0}", "unknown key 'cutof' in config; did you mean 'cutoff'?"),
        ("split: {trian: a}", "unknown key 'trian' in split; did you mean 'train'?"),
        ("config: 4", "config must hold keys and values, got 4"),
        ("config: {num_layers: 2}", "config needs a cutoff"),
        ("config: {cutoff: -1}", "config of so3krates: cutoff must be positive, got -1"),
        ("config: {cutoff: '5'}", "config of so3krates: cutoff must be a number, got '5'"),
        ("config: {cutoff: 5, num_layers: 0}", "so3krates: num_layers must be at least 1, got 0"),
        ("config: {cutoff: 5, degrees: 3}", "config of so3krates: degrees must be a list, got 3"),
        ("config: {cutoff: 4, num_features: 7}", "num_features must be divisible by num_heads"),
        ("split: {sizes: [1, 1, 1, 1]}", "split must be {sizes: [n_train, n_validation, n_test]}"),
        ("split: {sizes: [1, 1], test: a}", "split must be {sizes: "),
        ("batch_size: 5\nbatch_edges: 900", "give batch_size or batch_edges, not both"),
        (
            "split: {sizes: [1, 1, rest]}\ntest_data: b.extxyz",
            "give test_data or a test set of the split, not both",
        ),
        ("split: {test: a}\ntest_data: b.extxyz", "give test_data or a test set of the split"),
        ("epochs: 0", "epochs must be positive, got 0"),
        ("epochs: 1.5", "epochs must be a whole number, got 1.5"),
        ("batch_size: two", "batch_size must be a whole number, got 'two'"),
        ("learning_rate: fast", "learning_rate must be a number, got 'fast'"),
        ("pair_terms: [[zbl]]", "pair_terms must be of zbl"),
        (
            "learning_rate: 1e-6",
            "learning_rate must not be below final_learning_rate (1e-05), got 1e-06",
        ),
        ("energy_weight: 0\nforce_weight: 0", "one of energy_weight, force_weight, stress_weight"),
        ("learning_rate: .inf", "learning_rate must be finite, got inf"),
        ("clip_norm: -1", "clip_norm must be positive, got -1"),
        ("energy_weight: -1", "energy_weight must not be negative, got -1"),
        ("ema_decay: 1", r"ema_decay must lie in [0, 1), got 1"),
        ("network: mace", "network must be one of so3krates"),
        ("schedule: linear", "schedule must be one of exponential, cosine, got 'linear'"),
        ("dtype: float16", "dtype must be one of float32, float64, got 'float16'"),
        ("name: 5", "name must be text, got 5"),
        ("name: a/b", "name must be usable as a file name, got 'a/b'"),
        ("name: ..", "name must be usable as a file name, got '..'"),
        (r'name: "a\\b"', "name must be usable as a file name"),
        (r'name: "a\nb"', "name must be usable as a file name"),
        (r'name: "\e[2J"', "name must be usable as a file name"),
        (f"name: {'a' * 201}", "name must be usable as a file name"),
        (f"epochs: 1{'0' * 30}", "epochs must be below 2^63, got 1"),
        ("committee: 101", "committee must be at most 100, got 101"),
        ("config: {cutoff: 1e9}", "config of so3krates: cutoff must be at most 100 Å, got 1e"),
        ("config: {cutoff: 4, num_layers: 1000000000}", "weights or more, a model file holds"),
        ("config: {cutoff: 4, num_features: 1000000000}", "weights or more, a model file holds"),
        (f"learning_rate: 1{'0' * 400}", "learning_rate must be finite, got 1000"),
        (f"config: {{cutoff: 1{'0' * 400}}}", "config of so3krates: cutoff must be finite, got 10"),
        (f"seed: {2**63}", f"seed must be below 2^63, got {2**63}"),
        ("seed: 2024-11-20", "seed must be a whole number, got datetime.date(2024, 11, 20)"),
        ("name: yes", "name must be text, got True"),
        ("energy_unit: [eV]", "energy_unit must be text, got ['eV']"),
        ("test_data: !!binary YQ==", "test_data must be text, got b'a'"),
        ("level_of_theory: null", "level_of_theory must be text, got None"),
        ("split: {train: 5}", "train of split must be the name of a split in the file, got 5"),
        ("split: {n_validation: all}", "n_validation of split must be a whole number and not neg"),
        ("split: {n_validation: -1}", "n_validation of split must be a whole number and not negat"),
        ("split: {sizes: [1, 1], shuffle: 0}", "shuffle of split must be true or false, got 0"),
        ("split: {shuffle: 1}", "shuffle of split must be true or false, got 1"),
        (f"{'x' * 500}: 1", f"unknown key '{'x' * 100}"),
        (f"config: {['x' * 20] * 1000}", "config must hold keys and values, got ['xxxx"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, more, message):
    key = more.partition(":")[0]
    kept = [line for line in LEAST.splitlines() if not line.startswith(f"{key}:")]
    with pytest.raises(ValueError) as caught:
        Recipe.from_yaml(write(tmp_path, "\n".join([*kept, more])))
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.yaml: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "line 1: anchors and aliases (& and *) are"),
        (
            "a: *nothing",
            "line 1: anchors and aliases (& and *) are not used in recipes: write it o",
        ),
        ("a: {b: 1}\n<<: *a", "line 2: anchors and aliases (& and *) are not used in recipes"),
        ("epochs: 10\nseed: 1\nepochs: 1000", "line 3: 'epochs' appears twice"),
        ("config: {cutoff: 4, cutoff: 5}", "line 1: 'cutoff' appears twice"),
        ("a: !!python/object/apply:os.mkdir [executed]", "line 1: could not determine a construc"),
        ("a: !!python/name:os.system", "line 1: could not determine a constructor for the tag"),
        ("a: !mine 1", "line 1: could not determine a constructor for the tag '!mine'"),
        ("a: [1", "line 1: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- b", r"line 2: found character '\t' that cannot start any token"),
        ("a: 1\n---\na: 2", "line 2: but found another document"),
        ("? [1]\n: 2", "line 1: found unhashable key"),
        ("a: 2024-13-45", "month must be in 1..12"),
        (f"a: {'9' * 5000}", "Exceeds the limit (4300 digits)"),
        ("[" * 3000, "not a recipe (nested too deeply)"),
        ("{a: " * 3000, "not a recipe (nested too deeply)"),
        (f"a: {'x' * 100_000}", "more than 64 KiB, which no recipe has"),
        ("a: \0", "special characters are not allowed"),
        ("- 1", "expected keys and values, one per line, as in `epochs: 1000`"),
        ("", "expected keys and values, one per line, as in `epochs: 1000`"),
    ],
)
def test_yaml_that_is_no_recipe(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with limits(), pytest.raises(ValueError) as caught:
        Recipe.from_yaml(write(tmp_path, text))
    assert str(caught.value).startswith("a.yaml: ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 450
    assert not (tmp_path / "executed").exists()


def test_recipes_that_are_no_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ValueError, match=r"^a.yaml: not readable as YAML \('utf-8' codec can't"):
        Recipe.from_yaml(path)
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with limits(), pytest.raises(ValueError, match=r"^a.yaml: .*more than 64 KiB"):
        Recipe.from_yaml(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match=r"^no such recipe: .*a.yaml: it is a folder$"):
        Recipe.from_yaml(path)
    path.rmdir()
    os.mkfifo(path)
    with limits(), pytest.raises(FileNotFoundError, match=r"^no such recipe: .*a.yaml$"):
        Recipe.from_yaml(path)


def test_damaged_recipes(tmp_path):
    """A message that names the file, or another recipe that is a valid one."""
    content = (MODELS / "so3krates-ethanol.yaml").read_bytes()
    n_refused = 0
    with limits(seconds=120):
        for damage in damaged(content, 500, seed=0):
            (tmp_path / "a.yaml").write_bytes(damage)
            try:
                Recipe.from_yaml(tmp_path / "a.yaml")
            except ValueError as error:
                n_refused += 1
                message = str(error)
                assert message.startswith("a.yaml: ")
                assert message.isprintable()
    assert n_refused > 150


def test_a_missing_key_is_named_with_what_to_write(tmp_path):
    message = r"^a.yaml: missing 'config': write for instance `config: {cutoff: 5.0}`$"
    with pytest.raises(ValueError, match=message):
        Recipe.from_yaml(write(tmp_path, "name: a\ndata: a.npz\nsplit: {sizes: [1, 1]}\n"))
    message = r"^a.yaml: missing 'data', 'split', 'config': write for instance `data: mydata"
    with pytest.raises(ValueError, match=message):
        Recipe.from_yaml(write(tmp_path, "name: a\n"))


def test_a_byte_order_mark_is_no_key(tmp_path):
    assert Recipe.from_yaml(write(tmp_path, f"\ufeff{LEAST}")).name == "a"


def test_a_missing_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        Recipe.from_yaml(tmp_path / "b.yaml")


def test_data_are_looked_for_beside_the_recipe_then_here(tmp_path, monkeypatch):
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "a.npz").touch()
    monkeypatch.chdir(here)
    recipe = Recipe.from_yaml(write(beside, LEAST))
    assert recipe.find("a.npz") == beside / "a.npz"
    (beside / "a.npz").unlink()
    assert recipe.find("a.npz") == here / "a.npz"
    (here / "a.npz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        recipe.find("a.npz")
    assert str(caught.value) == f"data file a.npz is not in {beside} nor in {here}"


def test_a_recipe_is_checked_when_it_is_changed(recipe):
    with pytest.raises(ValueError, match="batch_size must be positive"):
        dataclasses.replace(recipe, batch_size=0)


@pytest.mark.parametrize("number", ["1:30", "017", "0x1F", "1_000", "0b11", "-1:30.5"])
def test_numbers_that_people_read_otherwise(tmp_path, number):
    path = write(tmp_path, LEAST + f"epochs: {number}\n")
    with pytest.raises(ValueError, match=rf"^a.yaml: .*line 5: '{number}' is an unusual number"):
        Recipe.from_yaml(path)


@pytest.mark.parametrize(
    ("structures", "atoms", "epochs", "batch"),
    [
        (950, 9, 1170, 5),
        (950, 21, 501, 5),
        (200, 54, 926, 2),
        (20, 100, 2000, 1),
        (10**6, 22, 10, 5),
    ],
)
def test_epochs_and_batches_suit_the_data(structures, atoms, epochs, batch, tmp_path):
    recipe = Recipe.from_yaml(write(tmp_path, LEAST)).suited_to(structures, structures * atoms)
    assert (recipe.epochs, recipe.batch_size) == (epochs, batch)
    given = dataclasses.replace(recipe, epochs=7, batch_size=3).suited_to(structures, 1)
    assert (given.epochs, given.batch_size) == (7, 3)


def test_several_processes_have_a_structure_each(tmp_path):
    recipe = Recipe.from_yaml(write(tmp_path, LEAST))
    assert recipe.suited_to(100, 100 * 54).batch_size == 2
    assert recipe.suited_to(100, 100 * 54, n_processes=4).batch_size == 4


def test_keys_that_are_null_are_not_given(tmp_path):
    text = LEAST.replace("split:", "test_data: null\nbatch_size: 5\nbatch_edges: null\nsplit:")
    recipe = Recipe.from_yaml(write(tmp_path, text))
    assert (recipe.test_data, recipe.batch_size, recipe.batch_edges) == (None, 5, None)
