"""Training of the committee of a distillation; each member has a folder to resume from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ase import Atoms

from attncalc.calibrate import calibrate
from attncalc.data import Dataset
from attncalc.model_file import load, save
from attncalc.potential import Committee, Potential
from attncalc.train import Recipe, fit

# So3krates, small
CONFIG = {
    "cutoff": 5.0,
    "num_features": 64,
    "num_heads": 4,
    "degrees": (1, 2, 3, 4),
    "num_layers": 3,
    "radial_basis": "physnet",
    "num_basis": 32,
}
BATCH_SIZE = 5
# steps of a training per structure, and limits of their sum
STEPS_PER_STRUCTURE, FEWEST_STEPS, MOST_STEPS = 10, 1500, 8000
# an epoch ends with a validation; structures of a small set are repeated to fill it
STEPS_PER_EPOCH = 100
# also from a model's weights: labels of several temperatures teach more than fine-tuning does
LEARNING_RATE = 3e-3


def member_file(folder: Path, member: int) -> Path:
    """Return the model file of a member (counted from 1) in the folder of the trainings."""
    name = f"member-{member}"
    return folder / name / f"{name}.safetensors"


def train_committee(
    folder: Path,
    training: Dataset,
    validation: Dataset,
    starts: Sequence[Path | None],
    *,
    seed: int,
    n_steps: int | None = None,
) -> Potential:
    """Train one potential from each start, or resume a training that was stopped.

    Args:
        folder: folder of the trainings; the committee is written into it last.
        training, validation: labelled structures of one composition.
        starts: model file that each member starts from; None for random weights.
        seed: seed of the first member; the others have the next ones.
        n_steps: steps of each training; None chooses by the number of structures.

    Returns:
        The committee, or the only member, calibrated with its training data.

    Raises:
        ValueError: a training is not possible with these data, see `attncalc.train.fit`.
        KeyboardInterrupt: Ctrl-C.
    """
    model = folder / "model.safetensors"
    if model.exists():
        return load(model)
    members = []
    steps = n_steps or min(MOST_STEPS, max(FEWEST_STEPS, STEPS_PER_STRUCTURE * len(training)))
    for k, start in enumerate(starts, start=1):
        name = f"member-{k}"
        again = max(1, -(-STEPS_PER_EPOCH * BATCH_SIZE // len(training)))
        repeated = training[list(range(len(training))) * again]
        recipe = Recipe(
            name=name,
            data=training.source,
            split={},
            config={} if start else CONFIG | _electrons(training.structures[0]),
            start_from=str(start) if start else None,
            epochs=max(1, round(steps * BATCH_SIZE / len(repeated))),
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            warmup_steps=100,
            ema_decay=0.999,
            compile="never",  # compiling takes longer than it saves in such a training
            seed=seed + k - 1,
        )
        with _quiet_but_for_progress():
            members.append(fit(recipe, repeated, validation, folder / name).potential)
    committee = Committee(members) if len(members) > 1 else members[0]
    # without repetition, which would put copies on both sides of the cross-validation
    calibrate(committee, [*training.structures, *validation.structures])
    save(committee, model)
    return load(model)


def _electrons(atoms: Atoms) -> dict[str, bool]:
    """Return the options of the network that charge and spin of a structure require."""
    options = {}
    if atoms.info["charge"] != 0:
        options["embed_charge"] = True
    if atoms.info["spin"] > 2:
        options["embed_spin"] = True
    return options


@contextmanager
def _quiet_but_for_progress() -> Iterator[None]:
    """Log only the progress of a training; the rest is already known."""
    all_of_it = logging.getLogger("attncalc.train")
    progress = logging.getLogger("attncalc.train.callbacks")
    before = all_of_it.level, progress.level
    effective = all_of_it.getEffectiveLevel()
    all_of_it.setLevel(logging.WARNING)
    progress.setLevel(effective)
    try:
        yield
    finally:
        all_of_it.setLevel(before[0])
        progress.setLevel(before[1])
