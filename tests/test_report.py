"""The report of `attncalc eval`: numbers as numpy has them, a page that stands alone, any names."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from matplotlib.figure import Figure
from networks import tiny_so3krates

from attncalc import Potential, data
from attncalc.data.contacts import closest_contacts
from attncalc.data.errors import Prediction
from attncalc.nn.so3krates import So3krates
from attncalc.report import Subject, evaluation
from attncalc.report.evaluation import about_model, model_name, number, percent, remarks
from attncalc.report.inline_svg import inline_svg

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = """<script>alert("x")</script><img src='http://evil/'>&amp;'" $\\frac$ ☃"""


class Page(HTMLParser):
    """What a page holds; fails on tags that are not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.values: list[float] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "data":
            self.values.append(float(dict(attrs)["value"]))

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text) -> None:
        self.text += text
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += text

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    return Potential(So3krates(tiny_so3krates(4.0), 3), (1, 6, 8)).requires_grad_(False)


def molecules(n: int, **labels) -> tuple[data.Dataset, Prediction]:
    """Ethanol and formaldehyde by turns, with random labels and errors of a tenth of them."""
    rng = np.random.default_rng(n)
    structures = []
    for k in range(n):
        structures.append(molecule("H2CO" if k % 3 == 2 else "CH3CH2OH"))
        structures[-1].rattle(0.05, seed=k)
    forces = [rng.normal(size=(len(s), 3)) for s in structures]
    dataset = data.Dataset(
        structures=tuple(structures),
        energies=rng.normal(size=n),
        forces=tuple(forces),
        source=labels.pop("source", "test.extxyz"),
        **labels,
    )
    ours = tuple(f + 0.1 * rng.normal(size=f.shape) for f in forces)
    return dataset, Prediction(dataset.energies + 0.1 * rng.normal(size=n), ours, None)


@pytest.fixture(scope="module")
def thirty(potential) -> tuple[data.Dataset, Prediction, str, Page]:
    """Thirty molecules, and the page about them."""
    dataset, prediction = molecules(30)
    return dataset, prediction, *report(potential, dataset, prediction)


def report(potential, dataset, prediction, **subject) -> tuple[str, Page]:
    page = evaluation(potential, prediction, dataset, Subject(subject.pop("model", "m"), **subject))
    return page, Page(page)


def row(page: Page, label: str) -> list[float]:
    """Numbers of the first row that starts with this."""
    (found, *_) = [cells for cells in page.rows if cells and cells[0] == label]
    cells = [cell.replace("−", "-").replace(",", "") for cell in found[1:]]
    return [float(cell) for cell in cells if re.fullmatch(r"[+-]?[\d.]+(e-?\d+)?", cell)]


# --------------------------------------------------------------------------------------- numbers


def test_numbers_are_those_of_numpy(thirty):
    dataset, prediction, _, page = thirty
    error = 1e3 * (np.concatenate(prediction.forces) - np.concatenate(dataset.forces))
    labels = 1e3 * np.concatenate(dataset.forces)
    expected = [
        np.abs(error).mean(),
        np.sqrt((error**2).mean()),
        error.mean(),
        np.percentile(np.abs(error), 95),
        np.abs(error).max(),
        labels.std(),
    ]
    assert row(page, "force") == pytest.approx(expected, abs=0.5)
    energy = 1e3 * (prediction.energies - dataset.energies)
    assert row(page, "energy")[:2] == pytest.approx(
        [np.abs(energy).mean(), np.sqrt((energy**2).mean())], abs=0.06
    )
    per_atom = energy / [len(s) for s in dataset.structures]
    assert row(page, "energy per atom")[0] == pytest.approx(np.abs(per_atom).mean(), abs=0.0006)
    for exact in (*expected, np.abs(per_atom).mean()):
        assert np.isclose(page.values, exact, rtol=1e-12).any(), "with all digits in the markup"


def test_elements_sizes_and_compositions(thirty):
    dataset, prediction, _, page = thirty
    numbers = np.concatenate([s.numbers for s in dataset.structures])
    error = 1e3 * (np.concatenate(prediction.forces) - np.concatenate(dataset.forces))
    for symbol, z in (("H", 1), ("C", 6), ("O", 8)):
        mae = np.abs(error[numbers == z]).mean()
        assert row(page, symbol)[:2] == pytest.approx([(numbers == z).sum(), mae], abs=0.06)
    size = np.linalg.norm(np.concatenate(dataset.forces), axis=1)
    bounds = np.quantile(size, [0, 0.25])
    found = row(page, f"{bounds[0]:.3g} – {bounds[1]:.3g}")
    mine = size < bounds[1]
    assert found[:2] == pytest.approx([mine.sum(), np.abs(error[mine]).mean()], abs=0.06)
    contacts = closest_contacts(dataset)
    assert "By the distance of the nearest neighbour" in page.text
    found = row(page, f"{contacts.min():.3g} – {np.quantile(contacts, 0.01):.3g}")
    mine = contacts < np.quantile(contacts, 0.01)
    assert found[:2] == pytest.approx([mine.sum(), np.abs(error[mine]).mean()], abs=0.06)
    of_formaldehyde = [k for k, s in enumerate(dataset.structures) if len(s) == 4]
    energy = 1e3 * (prediction.energies - dataset.energies)[of_formaldehyde] / 4
    assert row(page, "CH2O")[:2] == pytest.approx([10, np.abs(energy).mean()], abs=0.06)


def test_spread_of_a_committee(potential, thirty):
    dataset, prediction, _, without = thirty
    assert "committee" not in without.text
    halves = tuple(np.full(f.shape, 0.05) for f in prediction.forces)  # of errors of 0.1
    halves[0][:] = 0.04
    of_energy = np.linspace(0.05, 0.2, 30)
    ours = dataclasses.replace(prediction, forces_spread=halves, energies_spread=of_energy)
    page = report(potential, dataset, ours)[1]
    (bins,) = [k for k, cells in enumerate(page.rows) if cells and cells[0] == "spread"]
    n_atoms, spread, rmse, ratio = (
        float(cell.replace(",", "")) for cell in page.rows[bins + 1][1:]
    )
    assert n_atoms == sum(map(len, dataset.structures))
    assert 40 <= spread <= 50
    assert rmse == pytest.approx(100, rel=0.2)
    assert ratio == pytest.approx(rmse / spread, abs=0.01)
    n, factor, *_ = row(page, "spread of the force")
    assert (n, factor) == (n_atoms, pytest.approx(rmse / spread, rel=0.1))
    assert row(page, "spread of the energy per atom")[0] == 30
    drawn = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert sum("against the spread of the committee" in label for label in drawn) == 2
    assert "95 % interval" in page.text


def test_worst_structures(potential):
    """By the index in the file, and with the atom."""
    dataset, prediction = molecules(12)
    prediction.forces[4][2] += [0.0, 3.0, 4.0]
    dataset = dataclasses.replace(dataset, indices=np.arange(100, 112))
    _, page = report(potential, dataset, prediction)
    worst = np.argsort(
        [
            -np.linalg.norm(p - f, axis=1).max()
            for p, f in zip(prediction.forces, dataset.forces, strict=True)
        ]
    )
    starts = [cells[0] for cells in page.rows]
    listed = starts[starts.index("index") + 1 :][:10]
    assert listed == [str(100 + k) for k in worst[:10]]
    assert listed[0] == "104"
    (first, *_) = [cells for cells in page.rows if cells[0] == "104"]
    assert first[1] == "C2H6O"
    assert first[5] == "O2"
    largest = np.linalg.norm(prediction.forces[4] - dataset.forces[4], axis=1).max()
    assert float(first[4].replace(",", "")) == pytest.approx(1e3 * largest, abs=0.6)


def test_stress_in_both_units(potential):
    dataset = data.Dataset(
        structures=[bulk("C", "diamond", a=3.6)] * 3,
        energies=np.zeros(3),
        forces=[np.ones((2, 3))] * 3,
        stress=np.ones((3, 3, 3)),
    )
    prediction = Prediction(np.zeros(3), dataset.forces, dataset.stress + 0.01)
    _, page = report(potential, dataset, prediction)
    rows = [cells for cells in page.rows if cells and cells[0] == "stress"]
    assert [cells[1:3] for cells in rows] == [["meV/Å³", "10.000"], ["GPa", "1.602"]]
    assert page.count("svg") == 10


# ------------------------------------------------------------------------------------- the page


def test_it_stands_alone(thirty):
    *_, text, page = thirty
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name)
            assert not name.startswith("on"), "a script"
    assert "http" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert text.startswith("<!DOCTYPE html>")


def test_pictures_exist_and_have_names_of_their_own(thirty):
    *_, page = thirty
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 9
    assert all(p["role"] == "img" and len(p["aria-label"]) > 10 for p in pictures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids), "what a reference points to is unique"
    referred = {
        value.removeprefix("#")
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name == "xlink:href" and value.startswith("#")
    }
    assert referred <= set(ids)
    assert page.count("path") > 150
    for words in ("label: force component, eV/Å", "index in the file", "error of the force, eV/Å"):
        assert words in page.text, "text stays text"


def test_any_name_is_text(potential):
    dataset, prediction = molecules(
        9, source=HOSTILE, labels=HOSTILE, level_of_theory=HOSTILE + "b", splits={HOSTILE: [0]}
    )
    potential.training_info = {"data": HOSTILE, "level_of_theory": HOSTILE + "a", "labels": HOSTILE}
    subject = {"model": HOSTILE, "split": None, "command": HOSTILE, "device": HOSTILE}
    try:
        text, page = report(potential, dataset, prediction, **subject)
    finally:
        potential.training_info = {}
    assert page.count("script") == page.count("img") == 0
    assert "<script" not in text
    assert page.text.count(HOSTILE) >= 6, "as it is, wherever it is shown"
    assert page.count("svg") == 9


def test_a_header_may_hold_anything(potential):
    dataset, prediction = molecules(9)
    potential.training_info = {
        "data": 3,
        "level_of_theory": [1],
        "test_errors": "none",
        "n_train": {},
    }
    try:
        list(remarks(potential, prediction, dataset, Subject("m")))
        assert ("level of theory", "[1]") in about_model(potential, Subject("m"))
    finally:
        potential.training_info = {}


def test_where_it_comes_from(potential):
    dataset, prediction = molecules(9, labels="md17", level_of_theory="PBE")
    command = "attncalc eval 'a b' test.extxyz"
    _, page = report(
        potential,
        dataset,
        prediction,
        model="runs/a b.safetensors",
        split="test_01",
        command=command,
        seconds=2.0,
    )
    told = {cells[0]: cells[1] for cells in page.rows if len(cells) == 2}
    assert told["model"] == "runs/a b.safetensors"
    assert (told["data"], told["labels"], told["split"]) == ("test.extxyz", "md17", "test_01")
    assert told["command"] == command
    assert told["computed"] == "in float32 on cpu, 2 s, 4.5 structures/s"
    assert told["elements"] == "H C O"
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d", told["date"])
    for package in ("attncalc ", "torch ", "numpy ", "ase ", "Python "):
        assert package in told["versions"]
    assert "a b on test.extxyz" in page.text


# ---------------------------------------------------------------------------------- odd data sets


def test_energies_only(potential):
    dataset, prediction = molecules(9)
    _, page = report(potential, dataclasses.replace(dataset, forces=None), prediction)
    assert "only energies are compared" in page.text
    assert page.count("svg") == 3
    assert "meV/Å" not in page.text


def test_one_structure(potential):
    _, page = report(potential, *molecules(1))
    assert page.count("svg") == 9


def test_a_perfect_model(potential):
    dataset, _ = molecules(6)
    exact = Prediction(dataset.energies, dataset.forces, None)
    _, page = report(potential, dataset, exact)
    assert row(page, "force")[:2] == [0, 0]


def test_many_compositions(potential):
    rng = np.random.default_rng(0)
    chains = ["".join(["C"] * k) for k in range(1, 31)]
    structures = []
    for chain in chains:
        atoms = bulk("C", "diamond", a=3.6)
        structures.append(atoms.repeat((len(chain), 1, 1)))
    forces = [rng.normal(size=(len(s), 3)) for s in structures]
    dataset = data.Dataset(structures=structures, energies=np.arange(30.0), forces=forces)
    _, page = report(potential, dataset, Prediction(dataset.energies, tuple(forces), None))
    assert row(page, "5 more") == [5]


# --------------------------------------------------------------------------------------- remarks


@pytest.mark.parametrize(
    ("info", "split", "expected"),
    [
        ({"data": "test.extxyz"}, None, "this is all of it"),
        ({"data": "test.extxyz"}, "train_01", "say little about structures that it has not seen"),
        ({"data": "test.extxyz"}, "test_01", ""),
        ({"data": "other.npz"}, None, ""),
        ({"level_of_theory": "PBE"}, None, "trained on PBE, these labels are GFN2-xTB. "),
        ({"level_of_theory": "GFN2-xTB (tblite), 500 K"}, None, ""),
        ({"test_errors": {"force_mae": 0.01}}, None, "times that on the model's own test set"),
        ({"test_errors": {"force_mae": 0.07}}, None, ""),
    ],
)
def test_remarks(potential, info, split, expected):
    dataset, prediction = molecules(12, level_of_theory="GFN2-xTB")
    potential.training_info = info
    try:
        said = list(remarks(potential, prediction, dataset, Subject("m", split)))
    finally:
        potential.training_info = {}
    assert len(said) == (1 if expected else 0)
    assert expected in "".join(said)


def test_another_zero_of_energy_is_said_and_taken_off(potential):
    dataset, prediction = molecules(30)
    prediction = dataclasses.replace(prediction, energies=prediction.energies + 5000.0)
    _, page = report(potential, dataset, prediction)
    assert "Energies are off by a constant per element" in page.text
    assert page.count("ul") == 1
    shifted = row(page, "energy per atom, less a constant per element")[0]
    assert shifted < 50 < row(page, "energy per atom")[0]
    assert row(page, "CH2O")[1] < 100


def test_few_wild_atoms_are_said(potential):
    dataset, prediction = molecules(30)
    prediction.forces[3][0] += 10.0
    (said,) = remarks(potential, prediction, dataset, Subject("m"))
    assert "a few atoms are far off" in said


def test_structures_with_wild_stress_are_named(potential):
    """Such as those whose shear components are in another order than that of the file."""
    stress = np.zeros((30, 3, 3))
    stress[12, 0, 1] = stress[12, 1, 0] = 0.1
    dataset = data.Dataset(
        structures=[bulk("C", "diamond", a=3.6)] * 30,
        energies=np.zeros(30),
        forces=[np.zeros((2, 3))] * 30,
        stress=stress,
    )
    prediction = Prediction(np.zeros(30), dataset.forces, np.full((30, 3, 3), 1e-4))
    (said,) = remarks(potential, prediction, dataset, Subject("m"))
    assert "a few structures are far off. Worst are numbers 12 (16 GPa), 0 (0.016 GPa)" in said
    part = dataset[10:]
    assert part.indices is not None
    prediction = Prediction(np.zeros(20), part.forces, np.full((20, 3, 3), 1e-4))
    (said,) = remarks(potential, prediction, part, Subject("m"))
    assert "Worst are numbers 12 (16 GPa), 10 (0.016 GPa)" in said


# --------------------------------------------------------------------------------------- details


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.0, {}, "0.000"),
        (1.23456, {}, "1.235"),
        (-1.5, {}, "−1.500"),
        (0.5, {"signed": True}, "+0.500"),
        (123.45, {}, "123.5"),
        (123456.7, {}, "123,457"),
        (2.34e-5, {}, "2.3e−05"),
        (-1e-17, {}, "0.000"),
        (1e-6, {"beside": 1.0}, "0"),
        (1e-3, {"scale": 1e3}, "1.000"),
        (float("nan"), {}, "–"),
        (None, {}, "–"),
    ],
)
def test_number(value, options, text):
    assert re.sub("<[^>]*>", "", number(value, **options)) == text


def test_percent_and_names():
    assert percent(0.01234) == "1.23 %"
    assert percent(float("nan")) == "–"
    assert percent(32.3) == "3,230 %"
    assert model_name("runs/mine/a.safetensors") == "a"
    assert model_name("C:\\models\\a.safetensors") == "a"
    assert model_name("so3krates-ethanol") == "so3krates-ethanol"


def test_inline_svg():
    figure = Figure()
    figure.subplots().plot([0, 1], color="black")
    svg = inline_svg(figure, name="one", description='a "line" & <more>')
    assert svg == inline_svg(figure, name="one", description='a "line" & <more>')
    assert "http" not in svg
    assert "#000000" not in svg
    assert "currentColor" in svg
    assert 'aria-label="a &#34;line&#34; &amp; &lt;more&gt;"' in svg
    assert re.search(r'<svg viewBox="0 0 [\d.]+ [\d.]+"', svg)
    assert 'id="one-' in svg
    plain = io.BytesIO()
    figure.savefig(plain, format="svg")
    assert b"http" in plain.getvalue(), "matplotlib's settings are as before"
