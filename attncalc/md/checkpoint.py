"""Checkpoints: the whole state of a run in one file, from which it goes on bit for bit.

A safetensors file with a JSON header: reading one executes nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from attncalc.files import refuse_existing, write_atomically
from attncalc.md.integrators import Integrator, Langevin, Verlet
from attncalc.md.state import MDState
from attncalc.model_header import digest_of
from attncalc.opening import read_whole
from attncalc.system import System

FORMAT = 1
LARGEST = 1 << 31  # bytes; those of ten million atoms
KEY = "attncalc_md"
INTEGRATORS: dict[str, type[Integrator]] = {"verlet": Verlet, "langevin": Langevin}
_SYSTEM = {field.name for field in fields(System)}
_STATE = {field.name for field in fields(MDState)} - {"system", "step", "seed"}
_OPTIONAL = {"fixed", "spread", "limit"}


class Restart(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        integrator: of the run.
        state: to go on from.
        info: what was given to the `Checkpoint`.
    """

    integrator: Integrator
    state: MDState
    info: dict[str, Any]


class Checkpoint:
    """Saves the state of a run every so many steps, and at its end; each replaces the last.

    The file is complete at any moment. Trajectories and logs of the same run are brought up to
    date first, so a run that is resumed finds in them at least what it needs.

    Args:
        path: new file.
        every: steps.
        seconds: at least so long after the last one; 0 saves whenever `every` says so.
        info: what else to remember, as JSON.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int = 1000,
        seconds: float = 0.0,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.every, self.seconds = Path(path), every, seconds
        self.info = dict(info or {})
        self._integrator: Integrator | None = None
        self._saved_at = -math.inf

    def begin(self, state: MDState, integrator: Integrator) -> None:
        """Refuse to overwrite.

        Raises:
            FileExistsError: the file exists.
        """
        refuse_existing(self.path)
        self.resume(state, integrator)

    def resume(self, state: MDState, integrator: Integrator) -> None:
        """Go on with a file that is there."""
        del state
        self._integrator = integrator

    @property
    def waits(self) -> bool:
        """Whether the last one is not old enough yet."""
        return time.monotonic() - self._saved_at < self.seconds

    def __call__(self, state: MDState) -> None:
        """Save."""
        if self._integrator is None:
            raise ValueError("a Checkpoint belongs to a run: give it to md.run as a callback")
        save_checkpoint(self.path, self._integrator, state, self.info)
        self._saved_at = time.monotonic()

    def flush(self) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Nothing is left to do."""


def save_checkpoint(
    path: str | Path, integrator: Integrator, state: MDState, info: Mapping[str, Any]
) -> None:
    """Write a state and the integrator that moves it, atomically."""
    (name,) = (name for name, kind in INTEGRATORS.items() if type(integrator) is kind)
    header = {
        "format": FORMAT,
        "integrator": {"name": name, **asdict(integrator)},
        "step": state.step,
        "seed": state.seed,
        "info": dict(info),
    }
    tensors = {
        **{f"system.{name}": value for name, value in vars(state.system).items()},
        **{name: getattr(state, name) for name in _STATE},
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
    """Read what `Checkpoint` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or damaged; the message names the file.
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
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of a run, or damaged ({error})") from None


def _restart(header: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Restart:
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
    expected = {f"system.{name}" for name in _SYSTEM} | _STATE
    if not expected - _OPTIONAL <= set(tensors) <= expected:
        raise ValueError(f"other tensors than expected: {sorted(set(tensors) ^ expected)}")
    system = System(**{name: tensors[f"system.{name}"] for name in _SYSTEM})
    state = MDState(
        system=system,
        step=int(header["step"]),
        seed=int(header["seed"]),
        **{name: tensors.get(name) for name in _STATE},  # type: ignore[arg-type]
    )
    n_atoms, n_systems = system.atomic_numbers.shape[0], system.cell.shape[0]
    for name in ("momenta", "forces", "system.positions"):
        if tensors[name].shape != (n_atoms, 3) or not tensors[name].isfinite().all():
            raise ValueError(f"{name} must be [{n_atoms}, 3] finite numbers")
    for name in ("masses", "system.system_idx", "atom_in_system"):
        if tensors[name].shape != (n_atoms,):
            raise ValueError(f"{name} must be [{n_atoms}]")
    for name in ("energy", "n_dof", "heat", "replicas", "limit"):
        if name in tensors and tensors[name].shape != (n_systems,):
            raise ValueError(f"{name} must be [{n_systems}]")
    options = dict(header["integrator"])
    kind = INTEGRATORS[options.pop("name")]
    if isinstance(options.get("temperature"), list):
        options["temperature"] = tuple(options["temperature"])
    return Restart(kind(**options), state.to(device), header["info"])
