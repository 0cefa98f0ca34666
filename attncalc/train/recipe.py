"""`Recipe`: everything that defines a training run, one flat YAML file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attncalc.model_file import NETWORKS, PAIR_TERMS, find_model, header, model_name
from attncalc.model_header import LARGEST_FILE, RENAMED_IN_TRAINING
from attncalc.options import is_finite
from attncalc.physics.long_range import LongRangeConfig
from attncalc.text import one_line
from attncalc.train.plain_yaml import read_yaml
from attncalc.train.recipe_rules import (
    LEARNING_RATES,
    LEARNING_RATES_OF_STARTED,
    OUTPUT_WEIGHTS,
    WEIGHTS,
    check_keys,
    check_split,
    check_values,
    is_a,
)

LARGEST_NOISE = 0.5  # Å
# atoms that a training processes in all, and in a step, if its recipe does not say
ATOMS_IN_ALL, ATOMS_OF_A_STEP = 10_000_000, 100
FEWEST_EPOCHS, MOST_EPOCHS, LARGEST_BATCH = 10, 2000, 5
LONG_RANGE = 12.0  # Å, cutoff of long-range pair terms in periodic structures by default


# values of the keys that every recipe needs
EXAMPLES = {
    "name": "mine",
    "data": "mydata.extxyz",
    "split": "{sizes: [900, 50, rest]}",
    "config": "{cutoff: 5.0}",
}


@dataclass(frozen=True)
class Denoising:
    """Displacements of atoms in a training (DeNS, TMLR 2024).

    Noise and probabilities are the published ones for MD17. The published weight is 5, with a
    weight of 80 for forces that are divided by the standard deviation of the energies, some 0.2 eV.
    With a weight of 1 for forces in eV/Å, this is 0.014.

    Attributes:
        weight: weight of the errors of the displacements in units of `noise`; it decreases linearly
            to zero during the run.
        noise: standard deviation of each component of a displacement, Å; at most 0.5.
        structures: probability that a structure is chosen.
        atoms: probability that an atom of a chosen structure is displaced.

    Raises:
        ValueError: a value is impossible; the message names it.
    """

    weight: float = 0.014
    noise: float = 0.05
    structures: float = 0.25
    atoms: float = 0.25

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not is_a(value, Real) or not is_finite(value) or not value > 0:
                raise ValueError(f"recipe: {name} of denoising must be positive, got {value!r}")
            if name in ("structures", "atoms") and value > 1:
                raise ValueError(f"recipe: {name} of denoising is a probability, got {value}")
        if self.noise > LARGEST_NOISE:  # neighbour lists have ten times this margin
            raise ValueError(
                f"recipe: noise of denoising must be at most {LARGEST_NOISE} Å, got {self.noise}"
            )


@dataclass(frozen=True)
class Recipe:
    """Definition of a training run. In YAML every field is one key; `config` holds nested keys.

    Attributes:
        name: name of the model and of its files.
        data: file that `data.read` can read; searched beside the recipe, then relative to the
            working directory.
        split: {train: NAME, n_validation: N, test: NAME} for splits stored in the file; the last N
            structures of the training split are for validation, or N random ones with
            `shuffle: true`. Or {sizes: [n_train, n_validation, n_test]}, drawn at random with
            `seed`, or with `shuffle: false` taken one after the other in the order of the file, as
            frames of one trajectory require; a size may be "rest".
        config: hyper-parameters of the network; avg_num_neighbors is measured if not given. With
            `start_from` it may be left out; network, hyper-parameters and pair terms are then those
            of the model.
        network: a name in the table in `attncalc.model_file`.
        pair_terms: names of closed-form terms beside the network (table in `attncalc.model_file`);
            their parameters are trained too. With electrostatics and dispersion the network
            predicts charges and Hirshfeld ratios. They are trained through the energies, and on
            labels where `charge_weight` and `hirshfeld_ratio_weight` ask for it.
        long_range_cutoff: cutoff of long-range terms in all structures, Å. None: 12 Å in structures
            with a periodic direction and no cutoff in molecules; the data must not contain both.
        test_data: separate test file; then `split` needs no test set.
        stream: whether to read structures from the data file when they are needed, for data sets
            larger than memory; needs an HDF5 file written by `attncalc convert data`.
        labels, energy_unit, length_unit: see `data.read`.
        level_of_theory: text for the card; if empty, that of the data file.
        baseline: cheaper method to which a delta model is to be added; the labels are differences
            from it. Such a model refuses to move atoms alone.
        start_from: model whose weights the training starts from instead of random ones (for another
            level of theory or another molecule): a file, searched like `data`, or the name of a
            shipped model. Its hyper-parameters must be those of the recipe. Elements that are not
            in the training set are dropped.
        epochs: passes over the training set. None: as many as process ten million atoms, between
            10 and 2000, which takes two to four hours on one core for the default network; see
            `suited_to`.
        minutes: approximate duration of the training, of all members of a committee together,
            instead of `epochs`. Steps are timed first, then each epoch; the number of epochs, and
            with it the schedule, is adapted to the time left. The first epoch is always finished.
            Such a run is not reproducible to the last bit.
        batch_size: structures per step, of all processes together. None: as many as have a hundred
            atoms together, between 1 and 5, and at least one per process.
        batch_edges: largest number of edges (pairs of an atom and a neighbour) per step, instead of
            `batch_size`, for structures of unequal sizes. A step has as many structures as fit; no
            structure may have more edges.
        optimizer: "soap" (`attncalc.train.soap`), which gets further in the same number of steps,
            or "adam".
        learning_rate: highest learning rate. None: 3e-3 for SOAP, 1e-3 for Adam; with `start_from`
            a third of these.
        final_learning_rate: learning rate at the end of the schedule.
        schedule: "cosine" or "exponential" (equal factors per step).
        warmup_steps: number of steps in which the learning rate rises linearly, at most a tenth of
            the run.
        ema_decay: decay of the exponential moving average of the weights, which is validated and
            saved; after n steps at most (1 + n)/(10 + n).
        clip_norm: largest norm of the gradient.
        energy_weight, force_weight, stress_weight: weights of the errors of the energy per atom
            [eV], the forces [eV/Å] and the stress [eV/Å³].
        charge_weight, hirshfeld_ratio_weight, dipole_weight: weights of the errors of partial
            charges [e], Hirshfeld volume ratios and dipole moments [e Å]; dipole moments are
            computed from the partial charges.
        penalty: "norm", the mean length of an error vector, or "square", the mean square.
        compile: whether to compile the training step. "auto" compiles in the background, while the
            first steps run uncompiled, if the run is long enough to pay for it; "always" compiles
            before the first epoch, so that two runs round alike; "never".
        seed: random seed of the order of the data, and of initial weights without `start_from`.
        committee: number of networks, trained one after the other with seeds seed, seed + 1, ...
            With two or more the model is their mean, and their spread serves as a warning.
        denoising: {} or any of the attributes of `Denoising`: displace some atoms of the training
            structures and let the network learn the displacements too. Steps are then not compiled.
        dtype: dtype of the network, "float32" or "float64".
        folder: folder in which data files are searched first, that of the YAML file.

    Raises:
        ValueError: a value is impossible; the message names it.
    """

    name: str
    data: str
    split: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    network: str = "so3krates"
    test_data: str | None = None
    stream: bool = False
    labels: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    level_of_theory: str = ""
    baseline: str | None = None
    start_from: str | None = None
    epochs: Any = None  # a number once the data are known; batch_size likewise
    minutes: float | None = None
    batch_size: Any = None
    batch_edges: int | None = None
    optimizer: Literal["adam", "soap"] = "soap"
    learning_rate: float | None = None
    final_learning_rate: float = 1e-5
    schedule: Literal["exponential", "cosine"] = "cosine"
    warmup_steps: int = 200
    ema_decay: float = 0.999
    clip_norm: float = 10.0
    energy_weight: float = 1.0
    force_weight: float = 1.0
    stress_weight: float = 0.0
    charge_weight: float = 0.0
    hirshfeld_ratio_weight: float = 0.0
    dipole_weight: float = 0.0
    penalty: Literal["norm", "square"] = "norm"
    compile: Literal["auto", "always", "never"] = "auto"
    seed: int = 0
    committee: int = 1
    pair_terms: Sequence[str] = ()
    long_range_cutoff: float | None = None
    denoising: Any = None  # a mapping or a `Denoising`, to which a mapping is converted
    dtype: str = "float32"
    folder: str = field(default=".", repr=False)

    def __post_init__(self) -> None:
        for name in (f.name for f in dataclasses.fields(self)):
            object.__setattr__(self, name, _without_numpy(getattr(self, name)))
        check_values(self)
        if self.start_from is not None and self.committee > 1:
            raise ValueError(
                "recipe: committee must be 1 with start_from: members that start at the same "
                "weights are no independent estimates"
            )
        if self.highest_learning_rate < self.final_learning_rate:
            raise ValueError(
                f"recipe: learning_rate must not be below final_learning_rate "
                f"({self.final_learning_rate:g}), got {self.highest_learning_rate:g}"
            )
        if not any(getattr(self, name) for name in WEIGHTS):
            raise ValueError(f"recipe: one of {', '.join(WEIGHTS)} must be positive")
        check_split(self.split)
        self._check_pair_terms()
        self._check_config()
        self._check_denoising()

    def network_config(self, avg_num_neighbors: Callable[[], float]) -> Any:
        """Return the hyper-parameters of the network.

        Args:
            avg_num_neighbors: function that measures it on the data; called if the network has this
                hyper-parameter and the recipe does not give it.

        Raises:
            ValueError: a pair term or a weight needs an output that the network does not have.
        """
        kind, config = NETWORKS[self.network][1], dict(self.config)
        known = {field.name for field in dataclasses.fields(kind)}
        name = "avg_num_neighbors"
        if name not in config and name in known:
            config[name] = avg_num_neighbors()
        for option, reason in self._outputs_needed().items():
            if option not in known:
                raise ValueError(f"{reason} needs an output that only So3krates has: {option}")
            if config.setdefault(option, True) is not True:
                raise ValueError(f"{option} must be true: {reason} needs it")
        return kind(**config)

    @property
    def output_labels(self) -> tuple[str, ...]:
        """Labels that are trained on in addition to energies, forces and stress."""
        return tuple(label for label, weight in OUTPUT_WEIGHTS.items() if getattr(self, weight))

    @property
    def highest_learning_rate(self) -> float:
        """Learning rate after the warmup steps."""
        by_default = LEARNING_RATES if self.start_from is None else LEARNING_RATES_OF_STARTED
        return self.learning_rate or by_default[self.optimizer]

    def _outputs_needed(self) -> dict[str, str]:
        """Return {option of the network: key or pair term that needs it}."""
        needed = {}
        for option, reasons in (
            ("predict_charges", ("electrostatics", "ewald", "charge_weight", "dipole_weight")),
            ("predict_hirshfeld_ratios", ("dispersion", "hirshfeld_ratio_weight")),
        ):
            for reason in reasons:
                if reason in self.pair_terms or getattr(self, reason, False):
                    needed[option] = reason
        return needed

    def _check_config(self) -> None:
        kind = NETWORKS[self.network][1]
        known = [f.name for f in dataclasses.fields(kind)]
        check_keys("config", self.config, known)
        if self.start_from is not None and not self.config:
            return  # that of the model, see `with_start`
        if "cutoff" not in self.config:
            raise ValueError("recipe: config needs a cutoff [Å]")
        try:
            config = self.network_config(lambda: 1.0)
            if 4 * config.n_weights_at_least > LARGEST_FILE:
                raise ValueError(
                    f"it has {config.n_weights_at_least:.3g} weights or more, a model file holds "
                    f"{LARGEST_FILE // 4:.3g}"
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f"config of {self.network}: {error}") from None

    def _check_pair_terms(self) -> None:
        names = self.pair_terms
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError(f"recipe: pair_terms must be a list of names, got {names!r}")
        for name in names:
            if not isinstance(name, str) or name not in PAIR_TERMS:
                known = ", ".join(PAIR_TERMS)
                raise ValueError(f"recipe: pair_terms must be of {known}, got {name!r}")
            config = inspect.signature(PAIR_TERMS[name][1]).parameters.values()
            others = [p.name for p in config if p.default is p.empty and p.name != "cutoff"]
            if others:
                raise ValueError(
                    f"recipe: pair_terms: {name} needs {', '.join(others)}, for which a recipe has "
                    "no keys; give its config defaults"
                )
        if len(set(names)) < len(names):
            raise ValueError("recipe: pair_terms has a name twice")
        if "self_energy" in names and "electrostatics" not in names:
            raise ValueError(
                "recipe: self_energy of pair_terms belongs to electrostatics with a cutoff: add "
                "electrostatics, or remove self_energy"
            )
        if {"electrostatics", "ewald"} <= set(names):
            raise ValueError(
                "recipe: electrostatics and ewald of pair_terms are the same energy, within a "
                "cutoff and of all images: take one of them"
            )
        ends = any(issubclass(PAIR_TERMS[name][1], LongRangeConfig) for name in names)
        theirs = self.start_from is not None and not self.config  # of the model, see `with_start`
        if self.long_range_cutoff is not None and not ends and not theirs:
            raise ValueError("recipe: long_range_cutoff: no term of pair_terms has a longer range")
        object.__setattr__(self, "pair_terms", tuple(names))

    def pair_term_modules(self, elements: Sequence[int]) -> list[Any]:
        """Return the untrained pair terms for these elements.

        Raises:
            ValueError: a term has no parameters for an element.
        """
        terms = []
        for name in self.pair_terms:
            kind, config = PAIR_TERMS[name]
            options: dict[str, Any] = {}
            if issubclass(config, LongRangeConfig):
                options = {"cutoff": LONG_RANGE, "all_pairs_in_molecules": True}
                if self.long_range_cutoff is not None:
                    options = {"cutoff": self.long_range_cutoff}
            elif "cutoff" in inspect.signature(config).parameters:
                options = {"cutoff": float(self.config["cutoff"])}
            terms.append(kind(config(**options), tuple(elements)))
        return terms

    def _check_denoising(self) -> None:
        if self.denoising is None:
            return
        if not isinstance(self.denoising, Denoising):
            known = [f.name for f in dataclasses.fields(Denoising)]
            check_keys("denoising", self.denoising, known)
            object.__setattr__(self, "denoising", Denoising(**self.denoising))
        degrees = self.config.get("degrees", (1,))
        for wrong, why in (
            (1 not in degrees, f"needs vectors: degrees must hold 1, got {degrees}"),
            (self.start_from is not None, "needs weights that no model has: without start_from"),
            (self.compile == "always", "is not compiled: compile must be auto or never"),
            (self.stress_weight > 0, "knows no stress of displaced atoms: stress_weight must be 0"),
            (bool(self._outputs_needed()), "knows no charges or Hirshfeld ratios"),
            (bool(self.pair_terms), "knows no pair terms: pair_terms must be empty"),
        ):
            if wrong:
                raise ValueError(f"recipe: denoising {why}")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not YAML, a key is unknown or missing, or a value is impossible.
        """
        path = Path(path)
        content = read_yaml(path)
        known = [f for f in dataclasses.fields(cls) if f.name != "folder"]
        try:
            content = with_current_names(content)
            check_keys("recipe", content, [f.name for f in known])
            given = {key for key, value in content.items() if value is not None}
            for one, other in (("epochs", "minutes"), ("batch_size", "batch_edges")):
                if {one, other} <= given:
                    raise ValueError(f"give {one} or {other}, not both")
            split = content.get("split")
            if "test_data" in given and isinstance(split, Mapping):
                sizes = split.get("sizes")
                if "test" in split or (isinstance(sizes, Sequence) and any(sizes[2:])):
                    raise ValueError(
                        "give test_data or a test set of the split, not both: leave out the third "
                        "of its sizes, or `test`"
                    )
            needed = [f.name for f in known if f.default is f.default_factory]  # both are MISSING
            needed += [] if "start_from" in content else ["config"]
            if missing := [name for name in needed if name not in content]:
                lines = ", ".join(f"`{name}: {EXAMPLES[name]}`" for name in missing)
                names = ", ".join(map(repr, missing))
                raise ValueError(f"missing {names}: write for instance {lines}")
            return cls(**content, folder=str(path.parent))
        except ValueError as error:
            remark = str(error).removeprefix("recipe: ")
            raise ValueError(one_line(f"{path.name}: {remark}")) from None

    def suited_to(self, n_structures: int, n_atoms: int, *, n_processes: int = 1) -> Recipe:
        """Return the recipe with epochs and batch size for the data where it gives none.

        Args:
            n_structures, n_atoms: total numbers of the training set.
            n_processes: number of processes that share a batch; each has at least one structure.
        """
        n_structures, n_atoms = max(1, n_structures), max(1, n_atoms)
        size, epochs = self.batch_size, self.epochs
        if size is None:
            fit = round(ATOMS_OF_A_STEP * n_structures / n_atoms)
            size = max(min(max(fit, 1), LARGEST_BATCH), n_processes)
        if epochs is None:
            epochs = min(max(round(ATOMS_IN_ALL / n_atoms), FEWEST_EPOCHS), MOST_EPOCHS)
        return dataclasses.replace(self, batch_size=size, epochs=epochs)

    def member(self, k: int) -> Recipe:
        """Return the recipe of one member of the committee, counted from 1.

        Raises:
            ValueError: there is no such member.
        """
        if self.committee == 1:
            raise ValueError("recipe: it trains one network, so there is no member to choose")
        if not 1 <= k <= self.committee:
            raise ValueError(f"recipe: there are members 1 to {self.committee}, not {k}")
        name, seed = f"{self.name}-{k}", self.seed + k - 1
        minutes = None if self.minutes is None else self.minutes / self.committee
        return dataclasses.replace(self, name=name, seed=seed, committee=1, minutes=minutes)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as a dictionary, without the folder that it was read from."""
        content = dataclasses.asdict(self)
        del content["folder"]
        return content

    def with_start(self) -> Recipe:
        """Return the recipe, completed by the settings of its starting model if it has no config.

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: the model is a committee or damaged, or has another network or pair terms.
        """
        if self.start_from is None or self.config:
            return self
        found = header(self.find_start())
        if "members" in found:
            name = f"start_from: {model_name(self.start_from)}"
            raise ValueError(f"{name} is a committee: start from one of its members")
        terms = tuple(term["name"] for term in found["pair_terms"])
        if self.pair_terms and self.pair_terms != terms:
            raise ValueError(
                f"recipe: pair_terms must be those of the model it starts from, {list(terms)}, or "
                f"be left out; got {list(self.pair_terms)}"
            )
        kind = found["network"]
        if self.network not in (kind, Recipe.network):
            raise ValueError(f"recipe: the model it starts from is a {kind}, not a {self.network}")
        return dataclasses.replace(self, network=kind, config=found["config"], pair_terms=terms)

    def find_start(self) -> Path:
        """Return the model file that `start_from` names.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the recipe starts from random weights.
        """
        if self.start_from is None:
            raise ValueError("recipe: start_from is not given")
        beside = Path(self.folder) / self.start_from
        return find_model(beside if beside.is_file() else self.start_from)

    def find(self, file: str) -> Path:
        """Return the path of a data file: beside the recipe, else from the working directory.

        Raises:
            FileNotFoundError: it is in neither place.
        """
        places = list(dict.fromkeys([(Path(self.folder) / file).absolute(), Path(file).absolute()]))
        for place in places:
            if place.is_file():
                return place
        folders = " nor in ".join(str(place.parent) for place in places)
        raise FileNotFoundError(f"data file {Path(file).name} is not in {folders}")


def with_current_names(content: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys and values with keys of earlier versions renamed.

    Raises:
        ValueError: a key is given by its old and by its present name.
    """
    for old, new in RENAMED_IN_TRAINING.items():
        if old in content and new in content:
            raise ValueError(f"{old!r} is the old name of {new!r}: give only one of them")
    return {RENAMED_IN_TRAINING.get(key, key): value for key, value in content.items()}


def _without_numpy(value: Any) -> Any:
    """Return a value with NumPy's numbers replaced by Python's, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _without_numpy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_numpy(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
