"""Pictures: what stands in them, and that drawing leaves no trace in the process."""

import io
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from attncalc import plots


def columns(n: int) -> dict:
    losses = np.exp(-np.arange(n, dtype=float))
    return {
        "train_loss": 2 * losses,
        "validation_loss": losses,
        "energy_mae": 10 * losses,
        "force_mae": 30 * losses,
    }


@pytest.mark.parametrize("n", [1, 5])
def test_learning_curve(n):
    epochs = np.arange(1, n + 1)
    figure = plots.learning_curve(epochs, **columns(n), wall_time=90.0, title="a model")
    losses, errors = figure.axes
    for axes in (losses, errors):
        assert axes.get_yscale() == "log"
        assert axes.get_xlabel() == "epoch"
    assert np.array_equal(losses.lines[0].get_ydata(), columns(n)["train_loss"])
    labels = [text.get_text() for text in errors.get_legend().get_texts()]
    assert labels[0].startswith("energy, meV (best model ")
    assert labels[1].startswith("force, meV/Å (best model ")
    assert figure.get_suptitle() == f"a model: {n} epochs in 1.5 min"
    figure.savefig(io.BytesIO(), format="png")


def test_the_best_model_is_marked():
    values = columns(4) | {"validation_loss": [4.0, 1.0, float("nan"), 2.0]}
    losses = plots.learning_curve([1, 2, 3, 4], **values, wall_time=3 * 3600.0).axes[0]
    (circle,) = [line for line in losses.lines if line.get_marker() == "o"]
    assert list(circle.get_xdata()) == [2]
    assert list(circle.get_ydata()) == [1.0]


def test_pyplot_is_not_touched():
    assert "matplotlib.pyplot" not in sys.modules or plots.__dict__.get("pyplot") is None


# ------------------------------------------------------------------------ molecular dynamics


def test_bond_lengths_of_a_molecule():
    """Names as chemists write them, every bond in every frame."""
    first = molecule("CH3CH2OH")
    second = first.copy()
    second.positions *= 1.1
    lengths = plots.bond_lengths([first, second])
    assert {name: len(values) for name, values in lengths.items()} == {
        "C-C": 2,
        "C-H": 10,
        "C-O": 2,
        "O-H": 2,
    }
    for name, short, long in (
        ("C-C", 1.5, 1.55),
        ("C-H", 1.08, 1.12),
        ("C-O", 1.4, 1.45),
        ("O-H", 0.95, 1),
    ):
        assert short < lengths[name].min() < long
        assert lengths[name].max() / lengths[name].min() == pytest.approx(1.1, abs=0.02)
    oxygen, carbon = first.symbols.indices()["O"][0], first.symbols.indices()["C"]
    nearest = min(first.get_distance(oxygen, c) for c in carbon)
    assert lengths["C-O"] == pytest.approx([nearest, 1.1 * nearest])


def test_bonds_of_the_first_frame_are_followed():
    """A bond that breaks is still drawn: that is what one looks for."""
    frames = [Atoms("OH", positions=[[0, 0, 0], [0, 0, z]]) for z in (0.97, 3.0)]
    assert plots.bond_lengths(frames)["O-H"].tolist() == [0.97, 3.0]
    assert plots.bond_lengths(frames[::-1]) == {}


def test_bonds_across_the_cell_boundary():
    atoms = Atoms("OH", positions=[[0.2, 0, 0], [9.4, 0, 0]], cell=[10, 10, 10], pbc=True)
    assert plots.bond_lengths([atoms])["O-H"] == pytest.approx([0.8])
    atoms.pbc = False
    assert plots.bond_lengths([atoms]) == {}


def md_rows(n: int) -> list[dict[str, float]]:
    return [
        {
            "time_fs": 10.0 * k,
            "temperature_K": 290.0 + 10 * k,
            "potential_eV": -100.0 + 0.1 * k,
            "kinetic_eV": 0.3,
            "total_eV": -99.7 + 0.1 * k,
            "volume_A3": float("nan"),
        }
        for k in range(n)
    ]


@pytest.mark.parametrize("n", [1, 3])
def test_md_summary(n):
    frames = [molecule("CH3CH2OH")] * n
    figure = plots.md_summary(md_rows(n), frames, title="ethanol")
    picture, energy, temperature, bonds = figure.axes
    assert picture.get_title() == "last frame"
    assert len(picture.patches) >= 9, "all atoms"
    assert energy.get_xlabel() == temperature.get_xlabel() == "time, ps"
    assert energy.get_ylabel() == "energy above the lowest potential, eV"
    assert temperature.get_ylabel() == "temperature, K"
    assert bonds.get_xlabel() == "bond length, Å"
    total, potential = (line.get_ydata() for line in energy.lines)
    assert potential == pytest.approx(0.1 * np.arange(n), abs=1e-9)
    assert total == pytest.approx(0.3 + 0.1 * np.arange(n), abs=1e-9)
    assert energy.lines[0].get_xdata() == pytest.approx(0.01 * np.arange(n))
    (label,) = [text.get_text() for text in temperature.get_legend().get_texts()]
    assert label == f"mean {290 + 5 * (n - 1)} K"
    names = [text.get_text() for text in bonds.get_legend().get_texts()]
    assert names == ["C-C", "C-H", "C-O", "O-H"]
    assert figure.get_suptitle() == "ethanol"
    figure.savefig(io.BytesIO(), format="png")


def test_md_summary_without_a_bond():
    frames = [Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 9.0]])] * 2
    figure = plots.md_summary(md_rows(2), frames)
    assert figure.axes[3].get_legend() is None
    figure.savefig(io.BytesIO(), format="png")


def test_md_summary_of_a_crystal():
    figure = plots.md_summary(md_rows(2), [bulk("Cu", cubic=True)] * 2)
    assert [t.get_text() for t in figure.axes[3].get_legend().get_texts()] == ["Cu-Cu"]
