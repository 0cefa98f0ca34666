"""Rounds and budgets, with stand-ins for all that takes time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms

pytest.importorskip("rdkit", reason="needs rdkit: pip install attncalc[distill]")
pytest.importorskip("lightning", reason="needs lightning: pip install attncalc[distill]")

from attncalc.data.errors import Errors
from attncalc.distill import labels as stored_labels
from attncalc.distill import report, run
from attncalc.distill.explore import FEWEST_TESTED, HEATS, Pool, fair_sample, n_at_target
from attncalc.distill.report import Product, _best, _info, _lines
from attncalc.distill.run import Distilled, distill
from attncalc.distill.state import Goal, Settings, State
from attncalc.model_file import shipped_models
from attncalc.sampling.oracles import Labels

TRIPLE = Atoms("Cu3", [[0, 0, 0], [0, 0, 2.4], [2.2, 0, 1.1]], info={"charge": 0, "spin": 2})
SETTINGS = Settings(300.0)
NEVER, SOON = 0.0, 1.0  # goals of the errors, which are 0.5


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


class Springs:
    """Harmonic bonds; it is killed after some labels."""

    teacher = level_of_theory = "springs"
    device = caution = ""

    def __init__(self, lives: float = np.inf) -> None:
        self.asked, self.lives = 0, lives

    def label(self, structures) -> list[Labels | str]:
        return [self._label(atoms) for atoms in structures]

    def _label(self, atoms: Atoms) -> Labels | str:
        if self.asked == self.lives:
            raise Killed
        self.asked += 1
        between = atoms.positions[:, None] - atoms.positions
        lengths = np.linalg.norm(between, axis=-1) + np.eye(3)
        stretch = (lengths - 2.3) * (1 - np.eye(3))
        forces = -(stretch / lengths)[..., None] * between
        return Labels(float((stretch**2).sum() / 4), forces.sum(1))


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and dynamics of no time: frames are drawn at random around the first start."""

    def explore(potential, shape, starts, temperature, *, picoseconds, seed, **_: Any) -> Pool:
        rng = np.random.default_rng(seed)
        n_frames = 60
        m = n_frames * len(HEATS)
        moved = 0.1 * rng.standard_normal((m, *starts[0].positions.shape))
        return Pool(
            positions=starts[0].positions + moved,
            replica=np.repeat(np.arange(len(HEATS)), n_frames),
            times=np.tile(1e3 * picoseconds * np.linspace(0, 1, n_frames), len(HEATS)),
            spread=rng.uniform(size=m),
            novelty=rng.uniform(0, 0.9, size=m),
            temperatures=temperature * np.array(HEATS),
            ended=np.array([""] * len(HEATS)),
            picoseconds=picoseconds,
        )

    found = SimpleNamespace(force_mae=0.5, force_rmse=0.5, energy_mae=0.5)
    monkeypatch.setattr(run, "train_committee", lambda *_, **__: "potential")
    monkeypatch.setattr(run, "explore", explore)
    monkeypatch.setattr(run, "predict", lambda potential, data: data)
    monkeypatch.setattr(run, "errors", lambda predicted, data: found)


def go(folder: Path, oracle: Springs, goal: Goal, structure: Atoms = TRIPLE) -> Distilled:
    folder.mkdir(exist_ok=True)
    return distill(structure, oracle, SETTINGS, goal, folder)


def said_in_report(done: Distilled, text: str) -> bool:
    found = Errors(*[0.0] * 7, 1)
    product = Product(Path("cu.safetensors"), SimpleNamespace(networks=[]), found, 1.0)
    return text in "\n".join(_lines(done, [product], Goal(NEVER)))


def killed(folder: Path, lives: int, goal: Goal) -> None:
    with pytest.raises(Killed):
        go(folder, Springs(lives), goal)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda atoms: atoms.rattle(0.1), "positions"),
        (lambda atoms: atoms.set_cell([5, 5, 5]), "cell"),
        (lambda atoms: atoms.set_pbc(True), "pbc"),
        (lambda atoms: atoms.set_atomic_numbers([29, 29, 28]), "atoms"),
        (lambda atoms: atoms.info.update(charge=1, spin=1), "charge"),
    ],
)
def test_a_folder_is_of_one_structure(
    tmp_path: Path, change: Callable[[Atoms], None], says: str
) -> None:
    killed(tmp_path, 0, Goal(NEVER))  # before the first label
    assert not (tmp_path / "labels.h5").exists()
    other = TRIPLE.copy()
    change(other)
    with pytest.raises(ValueError, match=f"was begun with {says} .*: choose another output"):
        go(tmp_path, Springs(), Goal(NEVER), other)
    go(tmp_path, Springs(), Goal(NEVER, labels=60))


def test_another_oracle_is_refused_after_a_few_labels(tmp_path: Path) -> None:
    killed(tmp_path, 3, Goal(NEVER))
    oracle = Springs()
    oracle.teacher = "another"
    with pytest.raises(ValueError, match="was begun with oracle springs, not another"):
        go(tmp_path, oracle, Goal(NEVER))
    assert oracle.asked == 0


def test_a_structure_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    """So that the same folder serves for the corrected command."""

    class Refusing(Springs):
        teacher = "refusing"

        def label(self, structures: Sequence[Atoms]) -> list[Labels | str]:
            return ["no such element" for _ in structures]

    with pytest.raises(ValueError, match="the oracle refuses the structure: no such element"):
        go(tmp_path, Refusing(), Goal(NEVER, labels=60))
    assert list(tmp_path.iterdir()) == []
    go(tmp_path, Springs(), Goal(NEVER, labels=60))


def test_longer_dynamics_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_first = go(tmp_path / "whole", Springs(), Goal(SOON, labels=100)).store.n_calls
    killed(tmp_path / "a", n_first - 5, Goal(SOON, picoseconds=1, labels=100))
    assert Pool.load(tmp_path / "a/round-1/dynamics.npz").picoseconds == 1
    done = go(tmp_path / "a", Springs(), Goal(SOON, picoseconds=2, labels=100))
    assert Pool.load(tmp_path / "a/round-1/dynamics.npz").picoseconds == 2
    assert done.state.rounds[0].picoseconds == 2
    # shorter ones are not
    killed(tmp_path / "b", n_first - 5, Goal(SOON, picoseconds=2, labels=100))
    monkeypatch.setattr(run, "explore", None)
    done = go(tmp_path / "b", Springs(), Goal(SOON, picoseconds=1, labels=100))
    assert done.state.rounds[0].picoseconds == 2


@pytest.mark.parametrize(("n_relaxed", "n_refused"), [(1, 0), (41, 5)])
@pytest.mark.no_cover
def test_every_budget_ends_with_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_relaxed: int, n_refused: int
) -> None:
    class Store:
        """Numbers for structures; of a hundred some are refused."""

        teacher = level_of_theory = "numbers"
        seconds_per_call = 0.0
        labels = [SimpleNamespace(energy=0.0)] * 10**4

        def __init__(self, *_: Any) -> None:
            self.structures, self.n_calls = range(10**4), 0

        def __len__(self) -> int:
            return self.n_calls

        def new(self, n: int) -> list[int]:
            return list(range(self.n_calls, self.n_calls + n))

        def knows(self, number: int) -> bool:
            return number < self.n_calls

        def label(self, numbers: list[int], tell: Any) -> None:
            self.n_calls += sum(number >= self.n_calls for number in numbers)

        def rows(self, numbers: list[int]) -> list[int]:
            return [k for k in numbers if k % 100 >= n_refused]

        def sane(self, rows: list[int]) -> list[int]:
            return rows

        dataset = rows

    stores: list[Store] = []

    def relaxed(store: Store, structure: Atoms) -> list[int]:
        stores.append(store)
        found = store.new(n_relaxed)
        store.label(found, None)
        return found[-8:]

    pool = SimpleNamespace(
        temperatures=np.ones(1),
        at_target=np.ones(1, bool),
        novelty=np.zeros(1),
        ended=np.array([""]),
        picoseconds=10.0,
    )
    monkeypatch.setattr(run, "LabelStore", Store)
    monkeypatch.setattr(run, "relaxed", relaxed)
    monkeypatch.setattr(run, "probes", lambda rng, shape, kelvin, n: stores[-1].new(n))
    monkeypatch.setattr(run, "stiffness_of", lambda shape, structures, energies: 1.0)
    monkeypatch.setattr(run, "displaced", lambda rng, shape, kelvin, n, stiff: stores[-1].new(n))
    monkeypatch.setattr(run, "fair_sample", lambda pool, shape, n, rng: stores[-1].new(n))
    monkeypatch.setattr(run, "most_uncertain", lambda pool, shape, n, known: stores[-1].new(n))
    monkeypatch.setattr(run, "Pool", SimpleNamespace(load=lambda path: pool))
    shape = SimpleNamespace(atoms=TRIPLE, change=lambda positions: "")
    monkeypatch.setattr(run, "Shape", SimpleNamespace(of=lambda atoms: shape))
    monkeypatch.setattr(run, "n_at_target", lambda pool, shape: 100)
    monkeypatch.setattr(State, "save", lambda state, path: None)
    monkeypatch.setattr(run._Run, "_explored", lambda *_: pool)
    monkeypatch.setattr(run._Run, "_chosen", lambda run, stage, number, choose: choose())
    for labels in range(60, 1501):
        done = go(tmp_path, Springs(), Goal(NEVER, labels=labels))
        assert done.why == no_more_labels(done, labels)
        assert labels - FEWEST_TESTED - 20 < done.store.n_calls <= labels
        for one in done.state.rounds:
            assert len(one.test) >= FEWEST_TESTED - n_refused


def no_more_labels(done: Distilled, labels: int) -> str:
    used = done.store.n_calls
    if used >= labels:
        return f"the {labels} labels are used up"
    return f"{used} of {labels} labels are used, too many for another round"


def test_more_labels_go_on(tmp_path: Path) -> None:
    rounds = 0
    for labels in (60, 100, 130, 165):
        done = go(tmp_path, Springs(), Goal(NEVER, labels=labels))
        assert done.why == no_more_labels(done, labels)
        assert len(done.state.rounds) > rounds
        assert done.store.n_calls <= labels
        rounds = len(done.state.rounds)


def test_a_run_without_its_labels_is_refused(tmp_path: Path) -> None:
    go(tmp_path, Springs(), Goal(NEVER, labels=60))
    (tmp_path / "labels.h5").unlink()
    with pytest.raises(ValueError, match=r"labels\.h5 lacks labels of this run: restore it, or"):
        go(tmp_path, Springs(), Goal(NEVER, labels=60))


def test_a_start_model_may_be_installed_elsewhere(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("one.safetensors", "other.safetensors"))
    one.write_bytes(shipped_models()["so3krates-ethanol"].read_bytes())
    goal, folder = Goal(NEVER, labels=60), tmp_path / "run"
    folder.mkdir()
    done = distill(TRIPLE, Springs(), replace(SETTINGS, start_from=str(one)), goal, folder)
    one.rename(other)
    moved = replace(SETTINGS, start_from=str(other))
    again = distill(TRIPLE, Springs(), moved, goal, folder)
    assert again.state.rounds == done.state.rounds
    state = json.loads((folder / "state.json").read_text())
    del state["settings"]["start_checksum"]  # as earlier versions wrote it
    (folder / "state.json").write_text(json.dumps(state))
    assert distill(TRIPLE, Springs(), moved, goal, folder).state.rounds == done.state.rounds
    another = replace(SETTINGS, start_from=str(shipped_models()["so3krates-aspirin"]))
    with pytest.raises(ValueError, match=r"was begun with start_from .*other"):
        distill(TRIPLE, Springs(), another, goal, folder)


def test_killed_after_every_fourth_label_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_labels, "WRITE_EVERY", 0.0)
    goal = Goal(NEVER, labels=100)
    whole = go(tmp_path / "whole", Springs(), goal)
    measured, killed_before = run.errors, set()

    def errors(predicted, data):
        if len(killed_before) != len(whole.state.rounds) and data.energies[0] not in killed_before:
            killed_before.add(data.energies[0])  # all test frames have labels, nothing notes it
            raise Killed
        return measured(predicted, data)

    monkeypatch.setattr(run, "errors", errors)
    done, n_kills = None, 0
    while done is None:
        try:
            done = go(tmp_path / "killed", Springs(4), goal)
        except Killed:
            n_kills += 1
    assert n_kills > whole.store.n_calls // 4
    assert len(killed_before) == len(whole.state.rounds) > 1
    assert done.store.n_calls == whole.store.n_calls
    ours, theirs = done.state, whole.state
    assert (ours.path, ours.known) == (theirs.path, theirs.known)
    assert [one.test for one in ours.rounds] == [one.test for one in theirs.rounds]
    assert done.why == whole.why


@pytest.mark.parametrize("lives", [130, 180, 230, 280, 330])
def test_fewer_labels_after_a_kill(tmp_path: Path, lives: int) -> None:
    """Killed among the first structures, in a test, and in a set to learn from."""
    killed(tmp_path, lives, Goal(NEVER, labels=600))
    n_known = len(run.LabelStore(tmp_path / "labels.h5", Springs(), TRIPLE))
    rounds = json.loads((tmp_path / "state.json").read_text())["rounds"]
    for labels in (60, n_known + 15):
        oracle = Springs()
        if labels == 60 and not rounds:
            with pytest.raises(ValueError, match=r"of 60 labels are used already, before the"):
                go(tmp_path, oracle, Goal(NEVER, labels=labels))
        else:
            done = go(tmp_path, oracle, Goal(NEVER, labels=labels))
            assert done.why == no_more_labels(done, labels)
        assert oracle.asked <= max(0, labels - n_known)


def test_the_time_of_a_stage_is_that_of_all_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        time.sleep(0.3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "train_committee", stopped)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                go(tmp_path, Springs(), Goal(NEVER, labels=100))
    done = go(tmp_path, Springs(), Goal(NEVER, labels=100, minutes=0.5 / 60))
    assert done.state.rounds[0].train_seconds > 0.6
    assert done.why == "another round does not fit into 0.00833333 minutes"
    assert len(done.state.rounds) == 1


def test_frames_outside_are_counted_at_the_target_temperature(tmp_path: Path, monkeypatch) -> None:
    """Hotter replicas and the equilibration may leave the training data."""
    explore = run.explore

    def explored(*args: Any, **options: Any) -> Pool:
        pool = explore(*args, **options)
        pool.novelty[~pool.at_target] = 2.0
        pool.novelty[np.flatnonzero(pool.at_target)[::4]] = 1.5
        return pool

    monkeypatch.setattr(run, "explore", explored)
    done = go(tmp_path, Springs(), Goal(SOON, labels=60))
    assert done.state.rounds[0].outside == pytest.approx(0.25, abs=0.01)
    assert len(done.faults) == 1
    assert done.faults[0].endswith("% of the frames are outside the training")


def test_the_shape_is_that_of_the_lowest_energy(tmp_path: Path) -> None:
    far = TRIPLE.copy()
    far.positions[2, 0] = 3.0
    done = go(tmp_path, Springs(), Goal(NEVER, labels=60), far)
    energies = [done.store.labels[row].energy for row in done.state.path]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.01 < 0.3 < energies[0]


def test_models_know_the_electrons_that_they_were_made_for(tmp_path: Path) -> None:
    done = go(tmp_path, Springs(), Goal(NEVER, labels=60))
    done = replace(done, potential=SimpleNamespace(members=[None]))
    state = done.state
    sets = {role: done.store.dataset(state.known) for role in ("train", "validation", "test")}
    info = _info(done, sets, Errors(*[0.0] * 7, 1), "attncalc distill")
    assert (info["closed_shells"], info["total_charges"]) == (False, [0, 0])


def test_bonds_that_change_in_the_relaxation_are_said(tmp_path: Path, caplog) -> None:
    """As a proton that moves in glycine; the model is not of the structure given."""
    far = TRIPLE.copy()
    far.positions[2, 0] = 3.8
    done = go(tmp_path, Springs(), Goal(NEVER, labels=60), far)
    assert done.rearranged == "bond Cu0-Cu2 formed"
    said = "bond Cu0-Cu2 formed in the oracle's relaxation: the model is of its result"
    assert caplog.messages.count(said) == 1
    assert said_in_report(done, "**In the oracle's relaxation, bond Cu0-Cu2 formed**")


@pytest.mark.parametrize(("at_target", "warns"), [(36, False), (4, True)])
def test_frames_at_the_target_temperature_come_first(at_target, warns, caplog) -> None:
    """Hotter ones are drawn only if there are hardly any, and it is said."""
    n = 120
    pool = Pool(
        positions=TRIPLE.positions + 1e-3 * np.arange(n)[:, None, None],
        replica=np.repeat([0, 1], [at_target, n - at_target]),
        times=np.full(n, 1000.0),
        spread=np.zeros(n),
        novelty=np.zeros(n),
        temperatures=np.array([300.0, 450.0]),
        ended=np.array(["", ""]),
        picoseconds=1.0,
    )
    sane = SimpleNamespace(fault=lambda positions: "", atoms=TRIPLE)
    chosen = fair_sample(pool, sane, 50, np.random.default_rng(0))
    first = [round(float((one.positions - TRIPLE.positions)[0, 0]) / 1e-3) for one in chosen]
    assert len(first) == (50 if warns else at_target)
    assert first[:at_target] == list(range(at_target))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    if warns:
        assert caplog.messages[0].startswith("the dynamics gave only 4 frames at 300 K: ")
    assert n_at_target(pool, sane) == at_target


def test_the_report_says_where_test_frames_are_from(tmp_path: Path, monkeypatch) -> None:
    """Where few replicas stay at the target temperature, others are tested on."""
    monkeypatch.setattr(run, "n_at_target", lambda pool, shape: 3)
    done = go(tmp_path, Springs(), Goal(NEVER, labels=60))
    others = len(done.state.rounds[-1].test) - 3
    assert others > 0
    said = f"at 300 K ({others} of them from hotter replicas and the equilibration), chosen by"
    assert said_in_report(done, said)


def test_the_fast_model_is_the_member_with_the_smallest_error(monkeypatch) -> None:
    maes = {"first": 0.3, "second": 0.1, "third": 0.2}
    monkeypatch.setattr(report, "predict", lambda member, data: member)
    monkeypatch.setattr(report, "errors", lambda of, data: SimpleNamespace(force_mae=maes[of]))
    assert _best(SimpleNamespace(members=[*maes]), None) == "second"
