"""Labels are asked for once, are on disk, and damage is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

pytest.importorskip("rdkit", reason="needs rdkit: pip install attncalc[distill]")

from attncalc import data
from attncalc.distill import labels
from attncalc.distill.labels import LabelStore
from attncalc.sampling.oracles import Labels

PAIR = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]], info={"charge": 0, "spin": 1})


class Spring:
    """E = k (d - 2.3)² / 2 with k = 1 eV/Å²; a long one is refused, a short one nobody knows."""

    teacher = level_of_theory = "spring"
    device = caution = ""

    def __init__(self) -> None:
        self.asked = 0

    def label(self, structures) -> list[Labels | str]:
        self.asked += len(structures)
        return [self._label(atoms) for atoms in structures]

    def _label(self, atoms: Atoms) -> Labels | str:
        d = atoms.get_distance(0, 1)
        if d > 4:
            return "too long"
        f = np.array([[0, 0, d - 2.3], [0, 0, 2.3 - d]]) if d > 1 else np.full((2, 3), np.nan)
        return Labels((d - 2.3) ** 2 / 2, f)


def pairs(*lengths: float) -> list[Atoms]:
    found = []
    for length in lengths:
        atoms = PAIR.copy()
        atoms.positions[1, 2] = np.float32(length)
        found.append(atoms)
    return found


def test_what_was_labelled_is_not_asked_again(tmp_path: Path) -> None:
    oracle, file = Spring(), tmp_path / "labels.h5"
    store = LabelStore(file, oracle, PAIR)
    told: list[int] = []
    first = store.label(pairs(2.0, 5.0, 2.5, 0.9), told.append)
    assert sum(told) == oracle.asked == store.n_calls == 4
    assert first[1] == "too long"
    assert first[3] == "labels not finite"
    again = LabelStore(file, oracle, PAIR)
    second = again.label(pairs(2.5, 5.0, 0.9, 2.0, 3.0))
    assert oracle.asked == again.n_calls == 5
    assert second[1] == "too long"
    assert again.reasons == {"too long": 1, "labels not finite": 1}
    assert again.rows(pairs(2.5, 5.0, 2.0, 2.5)) == [1, 0]
    assert second[0].energy == first[2].energy
    np.testing.assert_array_equal(second[0].forces, first[2].forces)
    assert again.seconds > store.seconds > 0


def test_the_time_of_a_call_is_without_the_first_of_a_process(tmp_path: Path, monkeypatch) -> None:
    """Which loads programs and compiles loops."""
    now, took = [0.0], [10.0, 0.2, 0.2, 7.0, 0.2]

    class Slow(Spring):
        def label(self, structures):
            now[0] += took.pop(0) * len(structures)
            return super().label(structures)

    monkeypatch.setattr(labels.time, "monotonic", lambda: now[0])
    store = LabelStore(tmp_path / "labels.h5", Slow(), PAIR)
    assert store.seconds_per_call == 0
    for k, expected in enumerate((10.0, 0.2, 0.2)):
        store.label(pairs(2.0 + 0.1 * k))
        assert store.seconds_per_call == pytest.approx(expected)
    again = LabelStore(tmp_path / "labels.h5", Slow(), PAIR)
    again.label(pairs(3.0, 3.1))
    assert again.seconds == pytest.approx(17.6)
    assert again.seconds_per_call == pytest.approx(0.2)
    assert again.usual[0] == 3


def test_the_file_is_a_data_set(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.h5", Spring(), PAIR)
    store.label(pairs(2.0, 2.1, 5.0))
    found, known = data.read(tmp_path / "labels.h5"), store.dataset([0, 1])
    np.testing.assert_array_equal(found.energies, known.energies)
    np.testing.assert_array_equal(found.forces, known.forces)
    assert found.level_of_theory == "spring"


def test_a_crystal_keeps_its_cell_and_electrons(tmp_path: Path) -> None:
    like = PAIR.copy()
    like.cell, like.pbc = [4, 5, 6], [True, True, False]
    like.info = {"charge": -1, "spin": 2}
    LabelStore(tmp_path / "labels.h5", Spring(), like).label([like])
    (found,) = data.read(tmp_path / "labels.h5").structures
    np.testing.assert_array_equal(found.cell.array, like.cell.array)
    np.testing.assert_array_equal(found.pbc, like.pbc)
    assert found.info == like.info


def test_labels_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.h5"
    LabelStore(file, Spring(), PAIR).label(pairs(2.0))

    class Other(Spring):
        teacher = "another"

    class Level(Spring):
        level_of_theory = "another"

    changes = {
        "z": PAIR + PAIR,
        "cell": Atoms(PAIR, cell=[4, 5, 6]),
        "pbc": Atoms(PAIR, pbc=True),
        "charge": Atoms(PAIR, info={"charge": 2, "spin": 1}),
        "spin": Atoms(PAIR, info={"charge": 0, "spin": 3}),
    }
    for name, like in changes.items():
        like.info = PAIR.info | like.info
        with pytest.raises(ValueError, match=f"holds labels of {name} .* choose another output"):
            LabelStore(file, Spring(), like)
    for oracle, name in ((Other(), "oracle spring, not"), (Level(), "level_of_theory spring")):
        with pytest.raises(ValueError, match=f"holds labels of {name}"):
            LabelStore(file, oracle, PAIR)


def test_large_forces_are_not_learnt(tmp_path: Path) -> None:
    class Stiff(Spring):
        def _label(self, atoms: Atoms) -> Labels:
            return Labels(0.0, 1000 * super()._label(atoms).forces)

    store = LabelStore(tmp_path / "labels.h5", Stiff(), PAIR)
    store.label(pairs(2.31, 3.0))
    assert store.sane([0, 1]) == [0]


def test_an_oracle_that_is_asked_about_the_unknown(tmp_path: Path, caplog) -> None:
    class Model(Spring):
        def _label(self, atoms: Atoms) -> Labels:
            return replace(super()._label(atoms), is_outside=bool(atoms.positions[1, 2] > 2.2))

    file = tmp_path / "labels.h5"
    store = LabelStore(file, Model(), PAIR)
    store.label(pairs(2.0, 2.5, 3.0))
    assert store.n_outside == LabelStore(file, Model(), PAIR).n_outside == 2
    assert caplog.messages == [
        "outside the training data of the oracle (spring): its labels may be wrong"
    ]


def test_damage_is_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.h5"
    LabelStore(file, Spring(), PAIR).label(pairs(2.0))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(
        ValueError, match=r"labels\.h5: damaged .* restore it, or begin again by --over"
    ):
        LabelStore(file, Spring(), PAIR)
