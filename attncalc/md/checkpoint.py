"""Checkpoints: the whole state of a run in one file, from which it continues bit for bit.

A checkpoint is a safetensors file with a JSON header; reading it executes no code.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ase import units
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from attncalc.files import refuse_existing, write_atomically
from attncalc.files.reading import read_whole
from attncalc.md.callback import Callback
from attncalc.md.integrator import Integrator
from attncalc.md.integrators import INTEGRATORS
from attncalc.md.noise import LOW_32_BITS
from attncalc.md.state import FLAGS, FLOATS, WHOLE, MDState, Stored
from attncalc.model_header import digest_of
from attncalc.options import positive, whole_number
from attncalc.system import System, charge_and_spin, check_structure
from attncalc.text import one_line

FORMAT = 1
LARGEST = 1 << 31  # bytes; those of ten million atoms
KEY = "attncalc_md"
_SYSTEM = {field.name for field in fields(System)}
# noise uses so many bits of it
LARGEST_STEP = 2**63 - 1
# of any state, before those of `MDState.stored`
TENSORS = (
    Stored("system.positions", FLOATS[:1], ("atoms", 3)),
    Stored("system.atomic_numbers", WHOLE, ("atoms",), 1),
    Stored("system.cell", FLOATS[:1], ("systems", 3, 3)),
    Stored("system.pbc", FLAGS, ("systems", 3)),
    Stored("system.system_idx", WHOLE, ("atoms",), 0),
    Stored("system.charge", FLOATS[:1], ("systems",)),
    Stored("system.spin", WHOLE, ("systems",), 1),
)
# errors of readers at invalid content
UNREADABLE = (
    *(SafetensorError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(RuntimeError, RecursionError),
)


class Restart(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        integrator: of the run.
        state: from this state `md.run` continues the run and its files; from `state.as_first()` it
            begins a new run.
        info: `info` of the `Checkpoint`.
    """

    integrator: Integrator
    state: MDState
    info: dict[str, Any]


class Checkpoint(Callback):
    """Callback that saves the state of a run at regular intervals and at its end, in one file.

    The file is complete at any moment. Trajectories and logs of the same run are brought to disk
    first, so that a resumed run finds all that it needs in them.

    Args:
        path: new file.
        every: steps.
        seconds: least time between two checkpoints; 0: only `every` counts.
        info: further data to store, as JSON.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int = 1000,
        seconds: float = 0.0,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        # the current folder may change before and during a run
        self.path, self.every, self.seconds = Path(path).absolute(), every, seconds
        self.info = dict(info or {})
        self._integrator: Integrator | None = None
        self._saved_at = -math.inf

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Refuse to overwrite a file.

        Raises:
            FileExistsError: the file exists.
        """
        refuse_existing(self.path)
        self.resume(state, integrator)
        self._is_new = True

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Continue with an existing file, if there is one.

        Raises:
            ValueError: it is not the checkpoint of this run, or one of a later step; it is not
                changed.
        """
        if self.path.exists():
            there = load_checkpoint(self.path)
            same = (
                there.integrator == integrator
                and there.state.seed == state.seed
                and torch.equal(there.state.masses, state.masses.cpu())
                and torch.equal(
                    there.state.system.atomic_numbers, state.system.atomic_numbers.cpu()
                )
            )
            if not same:
                raise ValueError(
                    f"{self.path}: the checkpoint of another run (of other atoms, integrator or "
                    "seed): name a new file"
                )
            if there.state.step > state.step:  # what lies between would be lost
                raise ValueError(
                    f"{self.path}: it is of step {there.state.step}, this state of step "
                    f"{state.step}: load the checkpoint again to continue from there, or remove "
                    "it to discard the later steps"
                )
        self._integrator = integrator

    @property
    def waits(self) -> bool:
        """True if the last checkpoint is younger than `seconds`."""
        return time.monotonic() - self._saved_at < self.seconds

    def __call__(self, state: MDState) -> None:
        """Save a state."""
        if self._integrator is None:
            raise ValueError("a Checkpoint belongs to a run: give it to md.run as a callback")
        save_checkpoint(self.path, self._integrator, state, self.info)
        self._saved_at = time.monotonic()


def save_checkpoint(
    path: str | Path, integrator: Integrator, state: MDState, info: Mapping[str, Any]
) -> None:
    """Write a state and the integrator that moves it, atomically."""
    (name,) = (name for name, kind in INTEGRATORS.items() if type(integrator) is kind)
    header = {
        "format": FORMAT,
        "integrator": {"name": name, **vars(integrator)},
        "step": state.step,
        "seed": state.seed,
        "info": dict(info),
    }
    tensors = {
        **{f"system.{name}": value for name, value in vars(state.system).items()},
        **{one.name: getattr(state, one.name) for one in state.stored},
    }
    on_host = {
        name: value.detach().cpu().contiguous()
        for name, value in tensors.items()
        if value is not None
    }
    text = json.dumps(header)
    metadata = {KEY: text, "sha256": _checksum(text, on_host)}
    write_atomically(Path(path), bytes_of(on_host, metadata))


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    described = {f"{name} {t.dtype} {list(t.shape)}": t for name, t in tensors.items()}
    return digest_of(header, described)


def load_checkpoint(path: str | Path, *, device: torch.device | str = "cpu") -> Restart:
    """Read a file that `Checkpoint` wrote.

    Args:
        path: the file.
        device: of the state's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or damaged; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = read_whole(path, LARGEST)
        tensors = tensors_of(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if metadata["sha256"] != _checksum(metadata[KEY], tensors):
            raise ValueError("its checksum does not match")
        return _restart(json.loads(metadata[KEY]), tensors, torch.device(device))
    except UNREADABLE as error:
        raise ValueError(
            one_line(f"{path}: not a checkpoint of a run, or damaged ({error})")
        ) from None


def _restart(header: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Restart:
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, this version reads {FORMAT}")
    if not isinstance(header["info"], dict):
        raise ValueError("info is no dictionary")
    integrator = _integrator(header["integrator"])
    kind = integrator.state_type
    stored = (*TENSORS, *kind.stored)
    expected = {one.name for one in stored}
    if not expected - {one.name for one in stored if one.optional} <= set(tensors) <= expected:
        raise ValueError(f"other tensors than expected: {sorted(set(tensors) ^ expected)}")
    _check_numbers(tensors, stored)
    system = System(**{name: tensors[f"system.{name}"] for name in _SYSTEM})
    of_state: dict[str, Any] = {one.name: tensors.get(one.name) for one in kind.stored}
    step, seed = header["step"], header["seed"]
    whole_number("step", step, 0, LARGEST_STEP)
    whole_number("seed", seed, 0, LOW_32_BITS)
    state = kind(system=system, step=step, seed=seed, **of_state)
    _check_atoms(state)
    several = getattr(integrator, "temperature", None)
    if isinstance(several, tuple) and len(several) != system.n_systems:
        raise ValueError(f"{len(several)} temperatures for {system.n_systems} systems")
    if state.limit is None:  # version 0.1 did not save it
        state = state.replace(limit=integrator.highest_temperature(state))
    return Restart(integrator, state.to(device), header["info"])


def _check_numbers(tensors: dict[str, Tensor], stored: Sequence[Stored]) -> None:
    """Check dtypes, shapes and ranges of all tensors."""
    n_atoms, n_systems = len(tensors["system.positions"]), len(tensors["system.cell"])
    if n_atoms == 0 or n_systems == 0:
        raise ValueError("it holds no atoms")
    for name, kinds, shape, least, _ in stored:
        if name not in tensors:
            continue
        tensor = tensors[name]
        wanted = [{"atoms": n_atoms, "systems": n_systems}.get(str(n), n) for n in shape]
        if tensor.dtype not in kinds or list(tensor.shape) != wanted:
            raise ValueError(
                f"{name} must be {wanted} of {kinds[0]}, is {list(tensor.shape)} of {tensor.dtype}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
        if least is not None and bool((tensor < least).any()):
            raise ValueError(f"{name} holds {tensor.min().item():g}, the least is {least:g}")
    if bool((tensors["replicas"] > LOW_32_BITS).any()):
        raise ValueError("replicas are beyond 2^32 - 1")


def _check_atoms(state: MDState) -> None:
    """Check conditions that involve several tensors."""
    system = state.system
    idx = system.system_idx
    counts = torch.bincount(idx.clamp(max=system.n_systems), minlength=system.n_systems)
    if len(counts) > system.n_systems or not bool((counts > 0).all()) or (idx.diff() < 0).any():
        raise ValueError("atoms do not stand in the order of their systems")
    if not torch.equal(state.atom_in_system, system.atom_in_system):
        raise ValueError("atom_in_system does not count the atoms of every system")
    for k, atoms in enumerate(system.to_ase()):
        where = f"system {k}: " if system.n_systems > 1 else ""
        check_structure(atoms, where)
        charge_and_spin(atoms, where)
    if bool((system.charge != system.charge.round()).any()):
        raise ValueError("charge holds numbers that are not whole")
    if state.fixed is not None and bool(state.momenta[state.fixed].any()):
        raise ValueError("fixed atoms move")


def _integrator(header: dict[str, Any]) -> Integrator:
    options = dict(header)
    kind: Any = INTEGRATORS[options.pop("name")]
    flags = {field.name: field.type == "bool" for field in fields(kind)}
    if set(options) != set(flags):
        raise ValueError(f"other options of the integrator than expected: {sorted(options)}")
    if isinstance(several := options.get("temperature"), list):
        options["temperature"] = tuple(several)
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, int | float) or isinstance(one, bool) != flags[name]:
                raise ValueError(f"options of the integrator must be numbers, got {one!r}")
    # round numbers, which constructors take for other units, are right in a file
    times = {name: options[name] for name in kind.times}
    integrator = kind(**(options | dict.fromkeys(times, units.fs)))
    for name, value in times.items():
        positive(name, value)
        object.__setattr__(integrator, name, value)
    return integrator
