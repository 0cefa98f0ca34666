"""Inputs of importers: parameters and hyper-parameters, all of which must be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from attncalc.files.reading import read_whole
from attncalc.options import finite_number, positive, whole_number
from attncalc.text import one_line

# bytes; published weights take megabytes, their hyper-parameters less than a page
LARGEST_WEIGHTS = 1 << 28
LARGEST_OPTIONS = 1 << 20


class Tree:
    """Parameter arrays by name; it records which were used, so that none is dropped silently.

    Args:
        file: file name for messages.
        arrays: NumPy or torch arrays of numbers.
    """

    def __init__(self, file: str, arrays: Mapping[str, Any]) -> None:
        self.file = file
        self.left = {name.removeprefix("params/"): array for name, array in arrays.items()}

    def take(self, name: str) -> Tensor:
        """Return a parameter, float64.

        Raises:
            ValueError: it is missing or already taken, or holds anything but finite numbers.
        """
        if name not in self.left:
            raise ValueError(
                f"{self.file}: array {name!r} is missing; do the hyper-parameters belong to it?"
            )
        stored = self.left.pop(name)
        if isinstance(stored, Tensor):
            is_real = not stored.is_complex() and stored.dtype != torch.bool
        else:
            stored = np.asarray(stored)
            is_real = stored.dtype.kind in "fiu"
        if not is_real:
            raise ValueError(
                f"{self.file}: array {name!r} must hold real numbers, is of the type {stored.dtype}"
            )
        if not isinstance(stored, Tensor):  # of any byte order
            stored = torch.from_numpy(stored.astype(np.float64))
        tensor = stored.double()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.file}: array {name!r} contains numbers that are not finite")
        return tensor

    def peek(self, name: str) -> Tensor:
        """Return a parameter like `take`, but do not count it as used."""
        stored = self.left.get(name)
        found = self.take(name)
        self.left[name] = stored
        return found

    def finish(self) -> None:
        """Refuse parameters that were not used.

        Raises:
            ValueError: a parameter was not used.
        """
        if self.left:
            raise ValueError(
                f"{self.file}: {len(self.left)} arrays have no place in this network, e.g. "
                f"{min(self.left)!r}; do the hyper-parameters belong to it?"
            )


class Options:
    """Hyper-parameters by name; an option that is not used is an error.

    Args:
        file: file name for messages.
        options: hyper-parameters as read from the file.
    """

    def __init__(self, file: str, options: dict[str, Any]) -> None:
        self.file, self.left = file, dict(options)

    def value(self, name: str, *default: Any) -> Any:
        """Return an option of any type; ValueError if it is missing and has no default."""
        if name not in self.left and not default:
            raise ValueError(f"{self.file}: hyper-parameter {name!r} is missing")
        return self.left.pop(name, *default)

    def integer(self, name: str) -> int:
        """Return an option that is an integer of 1 or more."""
        value = self.value(name)
        self._check(whole_number, name, value, 1)
        return int(value)

    def number(self, name: str) -> float:
        """Return an option that is a finite number."""
        value = self.value(name)
        self._check(finite_number, name, value)
        return float(value)

    def positive(self, name: str) -> float:
        """Return an option that is a finite number above zero."""
        value = self.value(name)
        self._check(positive, name, value)
        return float(value)

    def _check(self, rule: Callable[..., None], *arguments: Any) -> None:
        try:
            rule(*arguments)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from None

    def take(self, name: str, allowed: tuple) -> Any:
        """Return an option with an allowed value; ValueError for any other."""
        value = self.value(name)
        if value not in allowed:
            raise ValueError(
                f"{self.file}: {name} = {value!r} is not supported; "
                f"supported: {', '.join(map(repr, allowed))}"
            )
        return value

    def finish(self) -> None:
        """Raise ValueError for options that were not used."""
        if self.left:
            raise ValueError(f"{self.file}: unknown hyper-parameters {sorted(self.left)}")


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn errors of decoders inside into one line that starts with the file's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not of this kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        yield
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"{path.name}: not {kind} ({one_line(error)})") from None


def read_options(path: Path) -> dict[str, Any]:
    """Read hyper-parameters from a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one JSON object.
    """
    with decoding(path, "JSON"):
        options = json.loads(read_whole(path, LARGEST_OPTIONS))
    if not isinstance(options, dict):
        raise ValueError(f"{path.name}: expected one JSON object of hyper-parameters")
    return options


def species_of_table(species: Sequence[int] | None, n_rows: int) -> tuple[int, ...]:
    """Return the elements to keep of an embedding table with one row per atomic number.

    Raises:
        ValueError: the table has no row for one of them.
    """
    if species is None:
        return tuple(range(1, n_rows))
    if not species or not all(0 < z < n_rows for z in species):
        raise ValueError(f"elements must lie between 1 and {n_rows - 1}, got {list(species)}")
    return tuple(sorted(set(species)))


def fill(
    kind: Callable[[Any, int], nn.Module], config: Any, n_species: int, state: Mapping[str, Tensor]
) -> nn.Module:
    """Fill a network with these parameters, in float64.

    Args:
        kind: class of the network.
        config: its hyper-parameters.
        n_species: number of elements.
        state: its parameters by name.

    Raises:
        ValueError: a parameter does not have the shape that the hyper-parameters require.
    """
    n_weights = sum(tensor.numel() for tensor in state.values())
    if config.n_weights_at_least > n_weights:  # before memory is allocated
        raise ValueError(
            f"the hyper-parameters ask for {config.n_weights_at_least} weights or more, there are "
            f"{n_weights}: do they match?"
        )
    network = kind(config, n_species).double()
    expected = network.state_dict()
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, the hyper-parameters ask for "
                f"{list(expected[name].shape)}"
            )
    network.load_state_dict(state)
    return network
