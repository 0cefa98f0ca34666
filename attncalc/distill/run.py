"""`distill`: rounds of training, dynamics and labels, until dynamics are right and stable.

Each round trains a committee on all labels so far, runs its dynamics, and labels frames of these
with the oracle. The models have not seen these frames, so their errors are those of a user's own
run. Then these frames and the most uncertain ones are added to the training data. Costly results
are written to disk at once, and every stage depends on them only, so a run that was stopped at any
point can be continued.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from attncalc.data import Dataset
from attncalc.data.errors import errors, predict
from attncalc.distill.explore import (
    FEWEST_TESTED,
    HEATS,
    Pool,
    explore,
    fair_sample,
    most_uncertain,
    n_at_target,
)
from attncalc.distill.labels import LabelStore
from attncalc.distill.shapes import Shape
from attncalc.distill.start import N_PROBES, displaced, probes, relaxed, stiffness_of
from attncalc.distill.state import Goal, Round, Settings, State
from attncalc.distill.training import member_file, train_committee
from attncalc.files import write_atomically
from attncalc.model_file import checksum
from attncalc.novelty import OUTSIDE
from attncalc.options import require_equal
from attncalc.potential import Potential
from attncalc.sampling.oracles import Oracle
from attncalc.sampling.relaxation import rounded
from attncalc.text import counted, one_line

log = logging.getLogger(__name__)

FORMAT = 2
# the first structures and each round use 1 / SHARE of the labels, but no fewer than FEWEST
SHARE, FEWEST = 5, 20
# most frames that errors are measured on
MOST_TESTED = 100

# progress bar of a stage: (total, name of the unit) -> block with a function that adds units done
Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Distilled:
    """Result of a run.

    Attributes:
        potential: potential of the last round.
        state: state with all rounds.
        store: store of all labels.
        faults: reasons why the goal is not reached; empty if it is.
        why: why the run ended without reaching the goal; "" if it is reached.
        rearranged: the first bond that the relaxation by the oracle changed, in words, or "".
    """

    potential: Potential
    state: State
    store: LabelStore
    faults: list[str]
    why: str
    rearranged: str


def distill(
    structure: Atoms,
    oracle: Oracle,
    settings: Settings,
    goal: Goal,
    folder: Path,
    *,
    bar: Bar = lambda n, unit: nullcontext(lambda n: None),
) -> Distilled:
    """Distill an oracle into a potential of one structure, or continue such a run.

    Args:
        structure: with total charge and multiplicity in `info["charge"]` and `info["spin"]`.
        oracle: the teacher.
        settings: settings of the folder.
        goal: errors to reach, and budget.
        folder: folder of all files; locked by the caller.
        bar: shows the progress of labels and replicas.

    Raises:
        ValueError: the folder belongs to other settings or another structure, a file in it is
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
        mine["start_checksum"] = checksum(settings.start_from) if settings.start_from else None
        self._state = State.load(self._file) if self._file.exists() else State(mine)
        known = self._state.settings
        if "start_checksum" not in known:  # of an earlier version
            known["start_checksum"] = mine["start_checksum"]
        elif mine["start_checksum"] == known["start_checksum"] is not None:
            known["start_from"] = settings.start_from  # wherever it is installed
        require_equal(mine, self._state.settings, folder)
        self._store = LabelStore(folder / "labels.h5", oracle, structure)
        if self._state.n_labels > len(self._store):
            raise ValueError(
                f"{folder}: labels.h5 lacks labels of this run: restore it, or begin again by "
                "--overwrite"
            )
        self._started, self._before = time.monotonic(), self._state.seconds
        self._save()  # before the first label, so that there are no labels without a state

    def to_its_end(self) -> Distilled:
        """Continue from the current state until the goal is reached or the budget is used up."""
        state = self._state
        self._forget_short_dynamics()
        if not state.rounds:
            self._require_labels_for_a_test()
        shape = Shape.of(self._first_structures())
        if rearranged := Shape.of(self._structure).change(shape.atoms.positions):
            log.warning("%s in the oracle's relaxation: the model is of its result", rearranged)
        while True:
            number = len(state.rounds)
            if number:
                last = state.rounds[-1]
                faults, why = last.faults(self._goal), ""
                if faults:
                    why = self._why_no_further_round(last)
                if not faults or why:
                    potential = self._trained(number - 1)
                    return Distilled(potential, state, self._store, faults, why, rearranged)
                log.info("not there yet: %s", "; ".join(faults))
                if not last.learned:
                    self._learn_from(last, number - 1, shape)
            else:
                self._require_labels_for_a_test()
            self._round(number, shape)

    def _first_structures(self) -> Atoms:
        """Return the relaxed structure, and label the first frames if that is not yet done."""
        state, store = self._state, self._store
        if not state.path:
            formula = self._structure.get_chemical_formula()
            log.info("relaxing %s by the oracle, %s", formula, store.teacher)
            try:
                path = relaxed(store, self._structure)
            except ValueError:
                if not len(store):  # nothing is lost, and the command may be corrected
                    store.remove()
                    self._file.unlink()
                raise
            state.path = store.rows(path)
            self._save()
        lowest = store.structures[state.path[-1]]
        if not state.known:
            shape = Shape.of(lowest)
            frames, stiffness = self._probed(shape)
            n = self._share - len(frames)
            more = self._chosen("first", 0, lambda: self._displaced(shape, n, stiffness))
            frames += self._label(more, "displaced structures", self._n_to_learn)
            self._learn([*(store.structures[k] for k in state.path), *frames])
        return lowest

    def _probed(self, shape: Shape) -> tuple[list[Atoms], float]:
        """Label a few displaced structures; return them and how stiff the relaxed one is."""
        state, store, settings = self._state, self._store, self._settings
        rng = np.random.default_rng([settings.seed, 0, 3])
        n = min(N_PROBES, self._n_to_learn)
        frames = self._chosen("probes", 0, lambda: probes(rng, shape, settings.temperature, n))
        what = "displaced structures, to see how stiff it is"
        rows = store.rows(self._label(frames, what, self._n_to_learn))
        lowest = store.labels[state.path[-1]].energy
        energies = [store.labels[row].energy - lowest for row in rows]
        return frames, stiffness_of(shape, [store.structures[row] for row in rows], energies)

    def _displaced(self, shape: Shape, n: int, stiffness: float) -> list[Atoms]:
        rng = np.random.default_rng([self._settings.seed, 0])
        n = min(n, self._n_to_learn)
        return displaced(rng, shape, self._settings.temperature, n, stiffness)

    def _round(self, number: int, shape: Shape) -> None:
        state, settings = self._state, self._settings
        training, validation = self._split()
        log.info(
            "round %d: training %s on %d structures",
            *(number + 1, counted(settings.members, "network"), len(training)),
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
            elsewhere=max(0, len(test) - n_at_target(pool, shape)),
        )
        state.rounds.append(done)
        state.spent = {}
        self._save()
        log.info(
            "round %d: force MAE %.1f meV/Å on %d new frames of its dynamics at %g K%s; "
            "%d of %d replicas ended early; %d labels",
            *(number + 1, 1e3 * done.force_mae, len(test), settings.temperature),
            f" and above ({done.elsewhere})" if done.elsewhere else "",
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
        # start below twice the mean thermal energy: straight displacements may be far above it
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
        """Remove dynamics of an earlier call that are shorter than this call requires."""
        number = len(self._state.rounds)  # completed rounds keep theirs
        path = self._folder / f"round-{number + 1}" / "dynamics.npz"
        if path.exists() and Pool.load(path).picoseconds < self._goal.picoseconds:
            self._choice("test", number).unlink(missing_ok=True)  # its frames
            path.unlink()

    def _learn_from(self, last: Round, number: int, shape: Shape) -> None:
        """Label the most uncertain frames of a round, and train on them and its test frames."""
        pool = Pool.load(self._round_folder(number) / "dynamics.npz")
        rows = [*self._state.known, *last.test]
        known = [self._store.structures[k] for k in rows]
        left = self._n_to_learn
        n = max(0, min(self._share - len(last.test), left))
        frames = self._chosen("learn", number, lambda: most_uncertain(pool, shape, n, known))
        frames = self._label(frames, "uncertain frames, to learn from", left)
        last.learned = True
        self._learn([*(self._store.structures[k] for k in last.test), *frames])

    def _why_no_further_round(self, last: Round) -> str:
        number = len(self._state.rounds)
        missing = 0 if last.learned else FEWEST - len(last.test)
        if self._choice("learn", number - 1).exists():  # an earlier call had enough
            missing = 0
        if self._n_testable(number) < FEWEST_TESTED + max(0, missing):
            used, labels = self._store.n_calls, self._goal.labels
            if used >= labels:
                return f"the {labels} labels are used up"
            return f"{used} of {labels} labels are used, too many for another round"
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
        """Return the number of frames that the next test may have; some may have labels already."""
        file = self._choice("test", number)
        if not file.exists():
            return self._n_left
        chosen = self._chosen("test", number, list)
        done = sum(self._store.knows(atoms) for atoms in chosen)
        # a choice that is labelled completely is enough, even if it is small
        return FEWEST_TESTED if done == len(chosen) else done + self._n_left

    def _choice(self, stage: str, number: int) -> Path:
        return self._folder / f"round-{number + 1}" / f"{stage}.npy"

    def _chosen(self, stage: str, number: int, choose: Callable[[], list[Atoms]]) -> list[Atoms]:
        """Return the frames that a stage labels, chosen once and written before they are labelled.

        Their number depends on the labels left, so another choice would differ.
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
        """Return training and validation set."""
        training, validation = self._state.split()
        return self._store.dataset(training), self._store.dataset(validation)

    def _label(self, structures: list[Atoms], what: str, n_most: int) -> list[Atoms]:
        """Label structures, at most `n_most` new ones; return those that were passed to the oracle.

        There may be more structures than that if they were chosen in a call with a larger budget.
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
        """Add structures with sane labels to the training data."""
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
        """Add the duration of a block to that of a stage, also after an error."""
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
    def _n_to_learn(self) -> int:
        """Labels left for training: a few are kept for a test."""
        return max(0, self._n_left - FEWEST_TESTED)

    @property
    def _n_left(self) -> int:
        return self._goal.labels - self._store.n_calls

    @property
    def _label_seconds(self) -> float:
        return self._store.seconds_per_call


def _digest(atoms: Atoms) -> str:
    """Return a short checksum of the positions in single precision."""
    return hashlib.sha256(atoms.positions.astype(np.float32).tobytes()).hexdigest()[:16]
