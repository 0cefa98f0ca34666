"""Pictures: what stands in them, and that drawing leaves no trace in the process."""

import io
import sys
import tracemalloc

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from PIL import Image

from attncalc import plots
from attncalc.plots import structures


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


def test_learning_curve_of_a_training_on_stresses():
    figure = plots.learning_curve([1, 2], **columns(2), stress_mae=[4.0, 2.0], wall_time=1.0)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels[2].startswith("stress, meV/Å³ (best model 2)")


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


def test_molecules_of_a_liquid_are_drawn_in_one_piece():
    """Wherever the boundary of a skewed cell cuts them; a crystal stays in its cell."""
    water = molecule("H2O")
    liquid = Atoms(cell=[[7, 0, 0], [2, 7, 0], [0, 1, 8]], pbc=True)
    for k, place in enumerate(np.ndindex(2, 2, 2)):
        one = water.copy()
        one.rotate(40 * k, "x")
        one.positions += np.array(place) / 2 @ liquid.cell.array
        liquid += one
    liquid.wrap()
    cut = liquid.copy()
    cut.pbc = False
    assert len(structures.bonds(cut)) < 16
    cut.positions = structures._in_one_piece(liquid)
    assert len(structures.bonds(cut)) == 16
    moved = liquid.cell.scaled_positions(cut.positions - liquid.positions)
    np.testing.assert_allclose(moved, moved.round(), atol=1e-9)
    crystal = bulk("Si", cubic=True)
    assert np.array_equal(structures._in_one_piece(crystal), crystal.positions)


def test_bonds_of_a_large_slab_take_no_square_of_memory():
    """Every bond in some of the frames; all distances of its atoms would be 0.8 GB."""
    slab = bulk("Si", cubic=True) * (16, 16, 5)
    slab.pbc = [True, True, False]
    tracemalloc.start()
    try:
        (lengths,) = plots.bond_lengths([slab] * 100).values()
        assert tracemalloc.get_traced_memory()[1] < 2e8
    finally:
        tracemalloc.stop()
    n_bonds = 2 * len(slab) - 2 * 16 * 16 * 2  # without two for each atom of a surface
    assert len(lengths) % n_bonds == 0
    assert lengths == pytest.approx(np.sqrt(3) / 4 * 5.43, rel=1e-6)


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


def panels(figure) -> dict:
    return {axes.get_label(): axes for axes in figure.axes}


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(figure) -> np.ndarray:
    """[height, width] of the picture in grey."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    content.seek(0)
    return np.asarray(Image.open(content).convert("L"))


@pytest.mark.parametrize("n", [1, 3])
def test_md_summary(n):
    frames = [molecule("CH3CH2OH")] * n
    figure = plots.md_summary(md_rows(n), frames, title="ethanol", target=300.0, n_dof=27)
    axes = panels(figure)
    assert list(axes) == ["frame", "energy", "structure", "heat"]
    assert axes["frame"].get_title() == f"last frame, {0.01 * (n - 1):g} ps"
    assert len(axes["frame"].patches) >= 9, "all atoms"
    assert axes["energy"].get_xlabel() == axes["heat"].get_xlabel() == "time, ps"
    assert axes["energy"].get_ylabel() == "energy above the lowest potential, eV"
    assert axes["heat"].get_ylabel() == "temperature, K"
    assert axes["structure"].get_xlabel() == "bond length, Å"
    total, potential = (line.get_ydata() for line in axes["energy"].lines)
    assert potential == pytest.approx(0.1 * np.arange(n), abs=1e-9)
    assert total == pytest.approx(0.3 + 0.1 * np.arange(n), abs=1e-9)
    assert axes["energy"].lines[0].get_xdata() == pytest.approx(0.01 * np.arange(n))
    second_half = np.mean([290 + 10 * k for k in range(n)][n // 2 :])
    assert legend(axes["heat"]) == [
        f"running mean (second half {second_half:.0f} K)",
        "target 300 K",
        f"canonical ±{300 * np.sqrt(2 / 27):.0f} K",
    ]
    assert [name.split()[0] for name in legend(axes["structure"])] == ["C-C", "C-H", "C-O", "O-H"]
    assert "O-H 0.971 Å" in legend(axes["structure"])
    assert figure.get_suptitle() == "ethanol"
    assert drawn(figure).std() > 10


def test_md_summary_of_a_batch():
    """The mean of all systems, and how far they are from each other."""
    hotter = [row | {"temperature_K": row["temperature_K"] + 40} for row in md_rows(3)]
    rows = [
        row | {"system": k}
        for pair in zip(md_rows(3), hotter, strict=True)
        for k, row in enumerate(pair)
    ]
    axes = panels(plots.md_summary(rows, [molecule("H2O")] * 6, target=300.0))
    assert axes["heat"].lines[0].get_ydata() == pytest.approx([310, 320, 330])
    band = axes["heat"].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((290, 350))
    assert axes["energy"].lines[1].get_ydata() == pytest.approx(0.1 * np.arange(3), abs=1e-9)


def test_md_summary_of_a_rigid_molecule():
    """Lengths that differ by rounding: numpy's histogram has no bins so narrow."""
    frames = [molecule("H2O") for _ in range(30)]
    for k, atoms in enumerate(frames):
        atoms.positions[1] *= 1 + 2e-16 * k
    axes = panels(plots.md_summary(md_rows(30), frames))
    assert legend(axes["structure"]) == ["O-H 0.969 Å"]


def test_md_summary_without_a_bond():
    frames = [Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 9.0]])] * 2
    figure = plots.md_summary(md_rows(2), frames)
    assert panels(figure)["structure"].get_legend() is None
    assert drawn(figure).std() > 10


def test_md_summary_at_constant_energy():
    """No target; instead, whether the energy is constant."""
    rows = md_rows(5)
    for k, row in enumerate(rows):
        row["total_eV"] = -99.7 + 4e-6 * k
    axes = panels(plots.md_summary(rows, [molecule("H2O")] * 5, ensemble="nve"))
    assert len(legend(axes["heat"])) == 1
    # 4e-6 eV in 0.01 ps, of three atoms
    assert legend(axes["drift"]) == ["drift +0.13 meV/atom/ps"]
    assert axes["drift"].lines[0].get_ydata() == pytest.approx(4e-3 * np.arange(5) / 3, abs=1e-6)


def test_md_summary_at_constant_pressure():
    rows = md_rows(6)
    for k, row in enumerate(rows):
        row["volume_A3"] = 40.0 + 4 * k
    frames = [bulk("Cu", cubic=True)] * 6
    axes = panels(plots.md_summary(rows, frames, ensemble="npt", target=300.0))
    assert axes["volume"].lines[0].get_ydata() == pytest.approx(10.0 + np.arange(6))
    assert legend(axes["volume"]) == ["mean of the second half 14 Å³"]
    assert axes["structure"].get_ylabel().startswith("g(r)")
    assert legend(axes["structure"]) == ["Cu-Cu"]


def test_the_measured_temperatures_stand_beside_the_canonical_ones():
    rows = [md_rows(1)[0] | {"time_fs": 10.0 * k, "temperature_K": 300 + k % 7} for k in range(60)]
    figure = plots.md_summary(rows, [molecule("H2O")] * 2, target=300.0, n_dof=9)
    (side,) = panels(figure)["heat"].child_axes
    (curve,) = side.lines
    density, temperature = curve.get_xdata(), curve.get_ydata()
    mean = np.trapezoid(density * temperature, temperature) / np.trapezoid(density, temperature)
    assert mean == pytest.approx(300, rel=0.05), "cut off at both ends"


# ------------------------------------------------------------------------- radial distribution


def gas(n: int, edge: float, seed: int) -> Atoms:
    positions = np.random.default_rng(seed).uniform(size=(n, 3)) * edge
    numbers = np.where(np.arange(n) < n // 4, 18, 10)
    return Atoms(numbers=numbers, positions=positions, cell=[edge] * 3, pbc=True)


def test_an_ideal_gas_has_no_structure():
    """g = 1 at any distance, also beyond half of the cell."""
    frames = [gas(200, 9.0, seed) for seed in range(40)]
    found = plots.radial_distribution(frames, r_max=8.0, n_bins=8)
    assert list(found) == ["Ar-Ar", "Ar-Ne", "Ne-Ne"]
    for r, g in found.values():
        assert r.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
        assert g[3:] == pytest.approx(1, abs=0.05)


def test_the_integral_of_g_counts_neighbours():
    crystal = bulk("Cu", a=3.6, cubic=True)
    ((r, g),) = plots.radial_distribution([crystal], r_max=4.0, n_bins=400).values()
    shells = 4 * np.pi * r**2 * g * (r[1] - r[0]) * 4 / 3.6**3
    assert shells[r < 3].sum() == pytest.approx(12, rel=1e-3)
    assert shells.sum() == pytest.approx(18, rel=1e-3)


def test_the_second_half_of_a_run_is_counted():
    frames = [bulk("Cu", a=3.0, cubic=True)] * 3 + [bulk("Cu", a=3.6, cubic=True)] * 3
    ((r, g),) = plots.radial_distribution(frames).values()
    assert r[g.argmax()] == pytest.approx(3.6 / np.sqrt(2), abs=0.05)
    assert r[-1] == pytest.approx(5.0, abs=0.05), "more than half of a tiny cell"


# ------------------------------------------------------------------------------- structures


@pytest.mark.parametrize(
    "atoms",
    [molecule("CH3CH2OH"), Atoms("H"), bulk("Cu", cubic=True), molecule("H2O", cell=[9] * 3)],
    ids=str,
)
def test_draw_structure(atoms):
    figure = Figure()
    axes = figure.subplots()
    before = atoms.copy()
    plots.draw_structure(axes, atoms)
    balls = [p for p in axes.patches if isinstance(p, Circle) and p.get_edgecolor()[3] > 0.9]
    assert len(balls) == len(atoms)
    assert drawn(figure).std() > 5
    assert before == atoms


def test_a_bond_goes_in_front_of_the_farther_ball():
    figure = Figure()
    axes = figure.subplots()
    plots.draw_structure(axes, molecule("CH3CH2OH"))
    sticks = [p for p in axes.patches if isinstance(p, Polygon)]
    assert len(sticks) == 8


def test_colours_and_symbols():
    figure = Figure()
    axes = figure.subplots()
    red = (1.0, 0.0, 0.0)
    plots.draw_structure(axes, molecule("H2O"), colors=[red] * 3, symbols=True)
    assert sorted(text.get_text() for text in axes.texts) == ["H", "H", "O"]
    balls = [p for p in axes.patches if isinstance(p, Circle)]
    assert {p.get_facecolor()[:3] for p in balls} == {red}


# ------------------------------------------------------------------------------- relaxation


def test_relax_summary():
    course = [(-1.0, 0.5), (-1.2, 0.1), (-1.25, 0.009)]
    figure = plots.relax_summary([course], fmax=0.01, title="ethanol")
    energy, force = figure.axes
    assert energy.lines[0].get_ydata() == pytest.approx([250.0, 50.0, 0.0])
    assert force.lines[0].get_ydata() == pytest.approx([0.5, 0.1, 0.009])
    assert force.get_yscale() == "log"
    assert legend(force) == ["goal 0.01 eV/Å"]
    assert legend(energy) == ["last: -1.2500 eV"]
    assert (energy.get_ylabel(), force.get_ylabel()) == (
        "energy above the last, meV",
        "largest force, eV/Å",
    )
    assert figure.get_suptitle() == "ethanol: converged"
    assert drawn(figure).std() > 5


@pytest.mark.parametrize(
    ("courses", "said"),
    [
        ([[(-1.0, 0.5)]], "NOT converged"),
        ([[(-1.0, 0.0)]], "converged"),
        ([[(-1.0, 0.5), (-1.1, 0.001)], [(-2.0, 0.3)]], "1 of 2 converged"),
        ([[(-1.0, 0.5), (-1.1, 0.001)]] * 30, "30 of 30 converged"),
    ],
)
def test_relax_summary_says_what_converged(courses, said):
    figure = plots.relax_summary(courses, fmax=0.01)
    assert figure.get_suptitle() == said
    assert drawn(figure).std() > 5


# ----------------------------------------------------------------------- a model and its labels

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("n", [1, 30, 5000], ids=["one", "points", "cloud"])
def test_pictures_of_errors(n):
    labels = RNG.normal(size=n)
    error = 0.1 * RNG.normal(size=n)
    names = {"quantity": "force", "unit": "eV/Å"}
    for figure, x_label in (
        (plots.parity(labels + error, labels, **names), "label: force, eV/Å"),
        (plots.error_histogram(error, **names), "error of force, eV/Å"),
        (plots.share_below({"H": error, "C": labels}, **names), "absolute error of force, eV/Å"),
        (
            plots.error_against_size(np.abs(labels), np.abs(error), **names),
            "label: force, eV/Å",
        ),
        (plots.along_the_file(np.arange(n), error, **names), "index in the file"),
        (plots.error_along(labels, np.abs(error), label="x, Å", quantity="force"), "x, Å"),
        (
            plots.calibration(
                np.abs(labels), np.abs(error), [(0.5, 0.1, 0.02)], factor=0.1, **names
            ),
            "spread of force, eV/Å",
        ),
    ):
        assert figure.axes[0].get_xlabel() == x_label
        assert drawn(figure).std() > 3


def test_pictures_of_a_perfect_model():
    """Also of one that is right to the last bit, for labels that are all the same."""
    zero, names = np.zeros(40), {"quantity": "force", "unit": "eV/Å"}
    for figure in (
        plots.parity(zero, zero, **names),
        plots.error_histogram(zero, **names),
        plots.share_below({"H": zero}, **names),
        plots.error_against_size(zero, zero, **names),
        plots.along_the_file(np.arange(40), zero, **names),
        plots.error_along(zero, zero, label="x, Å", quantity="force"),
        plots.error_along(zero, zero + 1, label="x, Å", quantity="force"),
        plots.calibration(zero, zero, [(0, 0, 0)], factor=np.nan, **names),
        plots.calibration(zero + 1, zero + 1, [(1, 1, 0.1)], factor=np.nan, **names),
    ):
        assert drawn(figure).std() > 1


def test_parity_tells_errors_in_their_own_unit():
    names = {"quantity": "force", "unit": "eV/Å", "error_unit": (1e3, "meV/Å")}
    axes = plots.parity([1.0, 2.003], [1.001, 2.0], **names).axes[0]
    assert axes.get_title(loc="left") == f"MAE 2, RMSE {np.sqrt(5):.3g} meV/Å"
    assert axes.get_xlim() == axes.get_ylim()


def test_the_share_below():
    error = np.concatenate([np.full(70, 1.0), np.full(30, -10.0)])
    (curve,) = plots.share_below({"H": error}, quantity="force", unit="eV/Å").axes[0].lines
    assert np.interp(5.0, curve.get_xdata(), curve.get_ydata()) == pytest.approx(70, abs=1)


def test_gallery():
    structures = [molecule("H2O"), molecule("CH4")]
    errors = [np.array([0.1, 0.2, 0.3]), np.zeros(5)]
    figure = plots.force_error_gallery(structures, errors, ["0: H2O", "1: CH4"])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["0: H2O", "1: CH4"]
    assert figure.axes[2].get_ylabel() == "error of the force, eV/Å"
    assert drawn(figure).std() > 5


@pytest.mark.parametrize("name", ["$x$", "a$\\frac$b", "\udcff", "<b>&", "a_{b}"])
def test_any_name_can_be_a_title(name):
    """File names go into titles, and are no formulas."""
    for figure in (
        plots.relax_summary([[(0.0, 1.0)]], fmax=0.1, title=name),
        plots.md_summary(md_rows(2), [molecule("H2O")] * 2, title=name),
    ):
        assert drawn(figure).std() > 1


# ---------------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("has_infrared", [False, True])
def test_spectrum_summary(has_infrared):
    wavenumbers = np.linspace(0, 5000, 501)
    line = np.exp(-(((wavenumbers - 1000) / 20) ** 2))
    infrared = 40 * line if has_infrared else None
    peaks = [[(1000.4, 1.0)], [(1000.4, 40.0)]]
    figure = plots.spectrum_summary(
        wavenumbers, line, infrared, highest=4000, peaks=peaks, title="a run"
    )
    assert len(figure.axes) == 1 + has_infrared
    for axes in figure.axes:
        assert axes.get_xlim() == (0, 4000)
        assert axes.lines[0].get_xdata().max() == 4000
        assert [text.get_text() for text in axes.texts] == ["1000"]
        assert axes.get_ylim()[1] > axes.lines[0].get_ydata().max(), "room for the numbers"
    assert figure.get_suptitle() == "a run"
    figure.savefig(io.BytesIO(), format="png")
