"""Rules for the values of a recipe's keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from attncalc.model_file import NETWORKS
from attncalc.model_header import DTYPES, MOST_MEMBERS
from attncalc.options import is_finite

LONGEST_NAME = 200  # bytes; file systems allow 255, and files of a run have suffixes
# label of a data set -> key of the weight of its errors
OUTPUT_WEIGHTS = {
    "charges": "charge_weight",
    "hirshfeld_ratios": "hirshfeld_ratio_weight",
    "dipoles": "dipole_weight",
}


def check_values(recipe: Any) -> None:
    """Refuse a recipe with a value that its key cannot have, whatever the other values are.

    Raises:
        ValueError: with the key, its rule and its value.
    """
    for names, rule, holds in RULES:
        for name in names:
            value = getattr(recipe, name)
            if not (value is None and name in OPTIONAL) and not holds(value):
                raise ValueError(f"recipe: {name} must {rule}, got {value!r}")
    for name, allowed in ONE_OF.items():
        if getattr(recipe, name) not in tuple(allowed):
            raise ValueError(
                f"recipe: {name} must be one of {', '.join(allowed)}, got {getattr(recipe, name)!r}"
            )


def check_split(split: Any) -> None:
    """Refuse a split that is neither sizes nor names of splits in a file.

    Raises:
        ValueError: with the key, its rule and its value.
    """
    check_keys("split", split, ("train", "n_validation", "test", "shuffle", "sizes"))
    sizes, others = split.get("sizes"), {*split} - {"sizes", "shuffle"}
    if "sizes" in split and (others or not isinstance(sizes, Sequence) or len(sizes) not in (2, 3)):
        raise ValueError(
            "recipe: split must be {sizes: [n_train, n_validation, n_test]} (the last may be "
            f"left out), or the names of splits in the file; got {dict(split)}"
        )
    for name, rule, holds in SPLIT_RULES:
        if name in split and not holds(split[name]):
            raise ValueError(f"recipe: {name} of split must {rule}, got {split[name]!r}")


def check_keys(where: str, content: Any, known: Any) -> None:
    """Refuse keys that are not known, with the nearest one that is.

    Raises:
        ValueError: a key is unknown, or `content` is no mapping.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must hold keys and values, got {content!r}")
    for key in content:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"unknown key {key!r} in {where}{hint}")


def usable_as_file_name(name: str) -> bool:
    """Return True if files of any system can have this name and a terminal can show it."""
    short = 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
    return short and name.isprintable() and name not in (".", "..") and not set(name) & {*"/\\"}


def is_a(value: Any, kind: type) -> bool:
    """Return True for a number of this kind; unlike in Python, booleans are not numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


# keys that may be None, which means not given
OPTIONAL_TEXTS = ("test_data", "labels", "energy_unit", "length_unit", "baseline", "start_from")
_SIZES = ("epochs", "batch_size", "batch_edges")
OPTIONAL = (*OPTIONAL_TEXTS, *_SIZES, "learning_rate", "long_range_cutoff", "minutes")
_COUNTS = (*_SIZES, "warmup_steps", "seed")
_RATES = ("learning_rate", "final_learning_rate", "clip_norm", "long_range_cutoff", "minutes")
WEIGHTS = ("energy_weight", "force_weight", "stress_weight", *OUTPUT_WEIGHTS.values())
_NUMBERS = (*_RATES, *WEIGHTS, "ema_decay")

# keys of a recipe, the rule for their values, and a function that tests it
RULES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    ((*_COUNTS, "committee"), "be a whole number", lambda value: is_a(value, Integral)),
    (_NUMBERS, "be a number", lambda value: is_a(value, Real)),
    (_NUMBERS, "be finite", is_finite),
    ((*_SIZES, *_RATES, "committee"), "be positive", lambda value: value > 0),
    ((*WEIGHTS, "warmup_steps", "seed"), "not be negative", lambda value: value >= 0),
    (("stream",), "be true or false", lambda value: isinstance(value, bool)),
    (("ema_decay",), "lie in [0, 1)", lambda value: 0 <= value < 1),
    (_COUNTS, "be below 2^63", lambda value: value < 2**63),
    (("committee",), f"be at most {MOST_MEMBERS}", lambda value: value <= MOST_MEMBERS),
    (
        ("name", "data", "level_of_theory", *OPTIONAL_TEXTS),
        "be text",
        lambda value: isinstance(value, str),
    ),
    (("name",), "be usable as a file name", usable_as_file_name),
)
LEARNING_RATES = {"adam": 1e-3, "soap": 3e-3}
# with start_from: larger ones forget what the model knows
LEARNING_RATES_OF_STARTED = {"adam": 3e-4, "soap": 1e-3}
ONE_OF: dict[str, Collection[str]] = {
    "network": NETWORKS,
    "schedule": ("exponential", "cosine"),
    "optimizer": LEARNING_RATES,
    "penalty": ("norm", "square"),
    "compile": ("auto", "always", "never"),
    "dtype": DTYPES,
}
# the same for the keys of a split
SPLIT_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("train", "be the name of a split in the file", lambda value: isinstance(value, str)),
    (
        "test",
        "be the name of a split in the file, or null for no test set",
        lambda value: value is None or isinstance(value, str),
    ),
    (
        "n_validation",
        "be a whole number and not negative",
        lambda value: is_a(value, Integral) and value >= 0,
    ),
    ("shuffle", "be true or false", lambda value: isinstance(value, bool)),
)
