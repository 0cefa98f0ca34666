"""`distill`: rounds of training, dynamics and labels, until dynamics are right and stable.

Each round trains a committee on all labels so far, runs its dynamics, and asks the oracle about
frames of these, which the models have not seen: their errors are those of a user's own run. Then
these frames, and the most uncertain ones, are trained on too. All that costs time is on the disk as
soon as it is there, and every stage is a function of what is there: a run that was stopped anywhere
goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from attncalc.data import Dataset
from attncalc.data.errors import errors, predict
from attncalc.distill.explore import HEATS, Pool, explore, fair_sample, most_uncertain
from attncalc.distill.labels import LabelStore
from attncalc.distill.shapes import Shape
from attncalc.distill.start import displaced, relaxed
from attncalc.distill.training import member_file, train_committee
from attncalc.files import write_atomically
from attncalc.novelty import OUTSIDE
from attncalc.potential import Potential
from attncalc.sampling.oracles import Oracle
from attncalc.sampling.relaxation import rounded
from attncalc.text import one_line

log = logging.getLogger(__name__)

FORMAT = 2
# of the labels, that the first structures and each round ask for; and fewest of them
SHARE, FEWEST = 5, 20
# frames that errors are measured on, at most, and fewest
MOST_TESTED, FEWEST_TESTED = 100, 10
# of the frames at the temperature asked for, that may be outside what is known
MOST_OUTSIDE = 0.01
# one labelled structure in so many validates
VALIDATION_OF = 10

# progress of a stage: (number of steps, what one is) -> block with something to call with how many
Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Settings:
    """Settings that a folder is begun with.

    Attributes:
        temperature: K, of the dynamics that the potential is for.
        members: of the committee.
        seed: of all choices.
        timestep: fs.
        steps: of each training; None chooses by the number of structures.
        start_from: model file that all members start from; None for random weights.
    """

    temperature: float
    members: int = 2
    seed: int = 0
    timestep: float = 0.5
    steps: int | None = None
    start_from: str | None = None


@dataclass(frozen=True)
class Goal:
    """Goal and budget; the same folder goes on with others.

    Attributes:
        force_mae: eV/Å, mean absolute error of force components on new frames of the dynamics.
        picoseconds: of each replica of the dynamics, which must be stable for as long.
        labels: structures that the oracle may be asked about.
        minutes: of one call, after which no further round begins.
    """

    force_mae: float
    picoseconds: float = 10.0
    labels: int = 1000
    minutes: float = np.inf


@dataclass
class Round:
    """Numbers of a round; everything is of frames and replicas at the temperature asked for.

    Attributes:
        n_train, n_validation: structures of the training.
        force_mae, force_rmse: eV/Å, on frames of its dynamics that it was not trained on.
        energy_mae: eV per structure, likewise.
        test: numbers of these frames among the labels.
        outside: share of frames of the dynamics with an atom of novelty above 1.
        ended: why replicas ended before their time.
        hotter: why the hotter replicas did.
        picoseconds: that each replica was to run.
        train_seconds, md_seconds: that training and dynamics took, in all calls that were not
            killed meanwhile.
        learned: whether its frames are trained on by now.
    """

    n_train: int
    n_validation: int
    force_mae: float
    force_rmse: float
    energy_mae: float
    test: list[int]
    outside: float
    ended: list[str]
    hotter: list[str]
    picoseconds: float
    train_seconds: float
    md_seconds: float
    learned: bool = False

    def faults(self, goal: Goal) -> list[str]:
        """Return what keeps this round from being the last, one sentence each."""
        found = []
        if not self.force_mae <= goal.force_mae:
            found.append(
                f"force MAE {1e3 * self.force_mae:.1f} meV/Å, the goal is {1e3 * goal.force_mae:g}"
            )
        if self.ended:
            found.append(f"{len(self.ended)} replicas ended early ({self.ended[0]})")
        if self.outside > MOST_OUTSIDE:
            found.append(f"{100 * self.outside:.1f} % of the frames are outside the training")
        if self.picoseconds < goal.picoseconds:
            found.append(f"dynamics of {self.picoseconds:g} ps, not {goal.picoseconds:g}")
        return found


@dataclass
class State:
    """State of a run between two stages, in `state.json`.

    Attributes:
        settings: of the folder, the structure, and the teacher.
        path: numbers of labels on the way of the relaxation, the lowest one last.
        known: numbers of the labels that are trained and validated on.
        rounds: that are done.
        seconds: of all calls so far.
        spent: s, of the stages of the round that has begun, likewise.
    """

    settings: dict[str, Any]
    path: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    def split(self, n: int | None = None) -> tuple[list[int], list[int]]:
        """Return numbers of labels to train on, and to validate on: every tenth, as they came.

        Args:
            n: so many of the first labels are divided; None: all.
        """
        known = self.known[:n]
        training = [row for k, row in enumerate(known) if k % VALIDATION_OF]
        return training, known[::VALIDATION_OF]

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a state.

        Raises:
            ValueError: it is damaged.
        """
        try:
            content = json.loads(path.read_text())
            content["rounds"] = [Round(**one) for one in content["rounds"]]
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); remove its folder") from None


@dataclass(frozen=True)
class Distilled:
    """End of a run.

    Attributes:
        potential: of the last round.
        state: with its rounds.
        store: with all labels.
        faults: what is missing to the goal; empty where it is reached.
        why: why the run ended without reaching it; "" where it did.
    """

    potential: Potential
    state: State
    store: LabelStore
    faults: list[str]
    why: str


def distill(
    structure: Atoms,
    oracle: Oracle,
    settings: Settings,
    goal: Goal,
    folder: Path,
    *,
    bar: Bar = lambda n, unit: nullcontext(lambda n: None),
) -> Distilled:
    """Make a potential of one structure from the labels of an oracle, or go on with that.

    Args:
        structure: with total charge and multiplicity in `info["charge"]` and `info["spin"]`.
        oracle: the teacher.
        settings: of the folder.
        goal: errors to reach, and what it may cost.
        folder: of everything; locked by the caller.
        bar: shows the progress of labels and replicas.

    Raises:
        ValueError: the folder was begun with other settings or another structure, a file in it is
            damaged, the labels were used up before the first round, or the oracle refuses the
            structure or nearly everything else.
        KeyboardInterrupt: Ctrl-C.
    """
    return _Run(structure, oracle, settings, goal, folder, bar).to_its_end()


class _Run:
    def __init__(
        self,
        structure: Atoms,
        oracle: Oracle,
        settings: Settings,
        goal: Goal,
        folder: Path,
        bar: Bar,
    ) -> None:
        self._structure, self._settings, self._goal = structure, settings, goal
        self._folder, self._bar = folder, bar
        self._file = folder / "state.json"
        mine = {
            "format": FORMAT,
            "teacher": oracle.teacher,
            "atoms": structure.get_chemical_formula(mode="reduce"),  # in their order
            "cell": structure.cell.array.tolist(),
            "pbc": structure.pbc.tolist(),
            "positions": _digest(structure),
            **asdict(settings),
        }
        mine |= {key: structure.info[key] for key in ("charge", "spin")}
        self._state = State.load(self._file) if self._file.exists() else State(mine)
        theirs = self._state.settings
        for key in mine | theirs:
            if mine.get(key) != theirs.get(key):
                raise ValueError(
                    f"{folder} was begun with {key} {theirs.get(key)}, not {mine.get(key)}: choose "
                    "another output, or use --overwrite"
                )
        self._store = LabelStore(folder / "labels.h5", oracle, structure)
        self._started, self._before = time.monotonic(), self._state.seconds
        self._save()  # before the first label, so that labels never are without it

    def to_its_end(self) -> Distilled:
        """Go on with what is there until the goal or the end of the budget."""
        state = self._state
        self._forget_short_dynamics()
        if not state.rounds:
            self._require_labels_for_a_test()
        shape = Shape.of(self._first_structures())
        while True:
            number = len(state.rounds)
            if number:
                last = state.rounds[-1]
                faults, why = last.faults(self._goal), ""
                if faults:
                    why = self._why_no_further_round(last)
                if not faults or why:
                    return Distilled(self._trained(number - 1), state, self._store, faults, why)
                log.info("not there yet: %s", "; ".join(faults))
                if not last.learned:
                    self._learn_from(last, number - 1, shape)
            else:
                self._require_labels_for_a_test()
            self._round(number, shape)

    def _first_structures(self) -> Atoms:
        """The relaxed structure; labels of the first frames, where there are none yet."""
        state, store = self._state, self._store
        if not state.path:
            log.info("relaxing the structure by the oracle, %s", store.teacher)
            state.path = store.rows(relaxed(store, self._structure))
            self._save()
        lowest = store.structures[state.path[-1]]
        if not state.known:
            frames = self._chosen("first", 0, lambda: self._displaced(lowest))
            frames = self._label(frames, "displaced structures", self._n_left - FEWEST_TESTED)
            self._learn([*(store.structures[k] for k in state.path), *frames])
        return lowest

    def _displaced(self, lowest: Atoms) -> list[Atoms]:
        rng = np.random.default_rng([self._settings.seed, 0])
        n = max(0, min(self._share, self._n_left - FEWEST_TESTED))
        return displaced(rng, Shape.of(lowest), self._settings.temperature, n)

    def _round(self, number: int, shape: Shape) -> None:
        state, settings = self._state, self._settings
        training, validation = self._split()
        log.info(
            "round %d: training %d networks on %d structures",
            *(number + 1, settings.members, len(training)),
        )
        with self._stage("training"):
            potential = self._trained(number)
        with self._stage("dynamics"):
            pool = self._explored(number, potential, shape)
        frames = self._chosen("test", number, lambda: self._fair_sample(number, pool, shape))
        frames = self._label(frames, "frames of the dynamics, to measure errors on", self._n_left)
        test = self._store.rows(frames)
        if not test:
            raise ValueError(
                "the oracle labelled no frame of the dynamics: "
                f"{self._store.reasons.most_common(1) or 'all have atoms too close'}"
            )
        data = self._store.dataset(test)
        found = errors(predict(potential, data), data)
        assert found.force_mae is not None
        assert found.force_rmse is not None
        cold = pool.temperatures == pool.temperatures.min()
        done = Round(
            n_train=len(training),
            n_validation=len(validation),
            force_mae=found.force_mae,
            force_rmse=found.force_rmse,
            energy_mae=found.energy_mae,
            test=test,
            outside=float((pool.novelty[pool.at_target] > OUTSIDE).mean())
            if pool.at_target.any()
            else 1.0,
            ended=[str(why) for why in pool.ended[cold] if why],
            hotter=[str(why) for why in pool.ended[~cold] if why],
            picoseconds=pool.picoseconds,
            train_seconds=state.spent.get("training", 0.0),
            md_seconds=state.spent.get("dynamics", 0.0),
        )
        state.rounds.append(done)
        state.spent = {}
        self._save()
        log.info(
            "round %d: force MAE %.1f meV/Å on %d new frames of its dynamics at %g K; "
            "%d of %d replicas ended early; %d labels",
            *(number + 1, 1e3 * done.force_mae, len(test), settings.temperature),
            *(len(done.ended), int(cold.sum()), self._store.n_calls),
        )

    def _fair_sample(self, number: int, pool: Pool, shape: Shape) -> list[Atoms]:
        rng = np.random.default_rng([self._settings.seed, number, 1])
        n = max(0, min(MOST_TESTED, self._share // 2, self._n_left))
        return fair_sample(pool, shape, n, rng)

    def _trained(self, number: int) -> Potential:
        settings = self._settings
        starts: list[Path | None] = [None] * settings.members
        if number:
            last = self._round_folder(number - 1)
            starts = [member_file(last, k + 1) for k in range(settings.members)]
        elif settings.start_from:
            starts = [Path(settings.start_from)] * settings.members
        training, validation = self._split()
        return train_committee(
            self._round_folder(number),
            training,
            validation,
            starts,
            seed=settings.seed + number * settings.members,
            n_steps=settings.steps,
        )

    def _explored(self, number: int, potential: Potential, shape: Shape) -> Pool:
        path, goal, settings = (
            self._round_folder(number) / "dynamics.npz",
            self._goal,
            self._settings,
        )
        if path.exists():
            return Pool.load(path)
        log.info(
            "dynamics of %d replicas, %g ps at %g K and above",
            *(len(HEATS), goal.picoseconds, settings.temperature),
        )
        rng = np.random.default_rng([settings.seed, number, 2])
        energies = np.array([self._store.labels[k].energy for k in self._state.known])
        # what heat alone may reach, twice over: displacements along straight lines may be far above
        n_modes = 3 * len(shape.atoms)
        low = energies - energies.min() < n_modes * 8.6e-5 * settings.temperature
        rows = rng.permutation(np.array(self._state.known)[low])
        starts = [self._store.structures[k] for k in rows[: len(HEATS)]]
        with self._bar(len(HEATS), "replica") as tell:
            pool = explore(
                *(potential, shape, starts, settings.temperature),
                picoseconds=goal.picoseconds,
                timestep=settings.timestep,
                seed=settings.seed + number,
                tell=tell,
            )
        pool.save(path)
        return pool

    def _forget_short_dynamics(self) -> None:
        """Remove dynamics that another call has ended earlier than this one asks for."""
        number = len(self._state.rounds)  # those of rounds that are done have been reported
        path = self._folder / f"round-{number + 1}" / "dynamics.npz"
        if path.exists() and Pool.load(path).picoseconds < self._goal.picoseconds:
            self._choice("test", number).unlink(missing_ok=True)  # its frames
            path.unlink()

    def _learn_from(self, last: Round, number: int, shape: Shape) -> None:
        """Label the most uncertain frames of a round, and train on them and its test frames."""
        pool = Pool.load(self._round_folder(number) / "dynamics.npz")
        rows = [*self._state.known, *last.test]
        known = [self._store.structures[k] for k in rows]
        left = self._n_left - FEWEST_TESTED
        n = max(0, min(self._share - len(last.test), left))
        frames = self._chosen("learn", number, lambda: most_uncertain(pool, shape, n, known))
        frames = self._label(frames, "uncertain frames, to learn from", left)
        last.learned = True
        self._learn([*(self._store.structures[k] for k in last.test), *frames])

    def _why_no_further_round(self, last: Round) -> str:
        number = len(self._state.rounds)
        missing = 0 if last.learned else FEWEST - len(last.test)
        if self._choice("learn", number - 1).exists():  # a run that was stopped had enough
            missing = 0
        if self._n_testable(number) < FEWEST_TESTED + max(0, missing):
            return f"the {self._goal.labels} labels are used up"
        seconds = last.train_seconds + last.md_seconds + self._share * self._label_seconds
        seconds = max(0.0, seconds - sum(self._state.spent.values()))
        if time.monotonic() - self._started + seconds > 60 * self._goal.minutes:
            return f"another round does not fit into {self._goal.minutes:g} minutes"
        return ""

    def _require_labels_for_a_test(self) -> None:
        if self._n_testable(0) < FEWEST_TESTED:
            raise ValueError(
                f"{self._store.n_calls} of {self._goal.labels} labels are used already, before the "
                "first round: allow more"
            )

    def _n_testable(self, number: int) -> int:
        """Number of frames that the next test may have: chosen ones may have labels already."""
        file = self._choice("test", number)
        if not file.exists():
            return self._n_left
        chosen = self._chosen("test", number, list)
        done = sum(self._store.knows(atoms) for atoms in chosen)
        # all of a choice that is smaller than the fewest are enough
        return FEWEST_TESTED if done == len(chosen) else done + self._n_left

    def _choice(self, stage: str, number: int) -> Path:
        return self._folder / f"round-{number + 1}" / f"{stage}.npy"

    def _chosen(self, stage: str, number: int, choose: Callable[[], list[Atoms]]) -> list[Atoms]:
        """Frames that a stage labels: how many depends on the labels left, so they are chosen once.

        They are on the disk before the first of them is labelled.
        """
        path = self._choice(stage, number)
        if path.exists():
            try:
                found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
                return [
                    rounded(self._structure, one)
                    for one in found.reshape(-1, len(self._structure), 3)
                ]
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path}: damaged ({one_line(error)}); remove it") from None
        frames = choose()
        self._round_folder(number)
        content = io.BytesIO()
        np.save(content, np.array([atoms.positions for atoms in frames], dtype=np.float32))
        write_atomically(path, content.getvalue())
        return frames

    def _split(self) -> tuple[Dataset, Dataset]:
        """Training and validation set."""
        training, validation = self._state.split()
        return self._store.dataset(training), self._store.dataset(validation)

    def _label(self, structures: list[Atoms], what: str, n_most: int) -> list[Atoms]:
        """Label structures, at most so many that have no label; return those that were asked for.

        There are more where they were chosen in a call with a larger budget.
        """
        asked: list[Atoms] = []
        for atoms in structures:
            if not self._store.knows(atoms):
                n_most -= 1
                if n_most < 0:
                    continue
            asked.append(atoms)
        log.info("labels of %d %s", len(asked), what)
        with self._bar(len(asked), "label") as tell:
            self._store.label(asked, tell)
        return asked

    def _learn(self, structures: list[Atoms]) -> None:
        """Note that these are trained on from now on, as far as they have sane labels."""
        rows = self._store.sane(self._store.rows(structures))
        known = set(self._state.known)
        new = [row for row in rows if row not in known]
        if not self._state.known and len(new) < FEWEST // 2:
            reason = self._store.reasons.most_common(1)
            raise ValueError(f"the oracle labelled only {len(new)} structures: {reason}")
        self._state.known += new
        self._save()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to that of a stage, whatever ends it."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = self._state.spent
            spent[name] = spent.get(name, 0.0) + time.monotonic() - started
            self._save()

    def _save(self) -> None:
        self._state.seconds = self._before + time.monotonic() - self._started
        self._state.save(self._file)

    def _round_folder(self, number: int) -> Path:
        folder = self._folder / f"round-{number + 1}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def _share(self) -> int:
        return max(FEWEST, self._goal.labels // SHARE)

    @property
    def _n_left(self) -> int:
        return self._goal.labels - self._store.n_calls

    @property
    def _label_seconds(self) -> float:
        return self._store.seconds / max(1, self._store.n_calls)


def _digest(atoms: Atoms) -> str:
    """Short checksum of the positions in single precision."""
    return hashlib.sha256(atoms.positions.astype(np.float32).tobytes()).hexdigest()[:16]
