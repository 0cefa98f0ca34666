"""`LabelStore`: all labels of a distillation, on disk."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from attncalc.data import Dataset
from attncalc.files import replacing
from attncalc.files.hdf5_reading import LocalFile
from attncalc.files.hdf5_writing import new_hdf5
from attncalc.options import option_of
from attncalc.sampling.oracles import LARGEST_FORCE, Labels, Oracle
from attncalc.sampling.stored import UNITS
from attncalc.text import one_line

log = logging.getLogger(__name__)

# structures passed to the oracle at once, and s between two writes
AT_ONCE, WRITE_EVERY = 16, 10.0


class LabelStore:
    """Oracle that stores its labels, so that no structure is labelled twice.

    A stage that was killed is repeated, and finds its labels. All structures have the same atoms
    and cell. The file has `z`, `R`, `E`, `F`, `cell`, `pbc`, `charge` and `spin`, as
    `attncalc.data.read` reads them, and the structures that the oracle refused.

    Args:
        path: HDF5 file, read if it exists.
        oracle: labels new structures.
        like: a structure with these atoms, cell, total charge and multiplicity.

    Raises:
        ValueError: the file is damaged, or has labels of another oracle or other atoms.

    Attributes:
        teacher, level_of_theory, device, caution: those of the oracle.
        structures, labels: labelled structures and their labels, in the order of the requests.
        refused: bytes of the positions -> reason of the oracle.
        n_outside: number of labelled structures outside the training data of an oracle that is a
            model.
        seconds: time that the oracle has taken in total.
        usual: number of calls but the first ones of each process, which load programs and compile
            loops, and their time in s.
    """

    def __init__(self, path: Path, oracle: Oracle, like: Atoms) -> None:
        self.teacher, self.level_of_theory = oracle.teacher, oracle.level_of_theory
        self.device = oracle.device
        self.caution = oracle.caution
        self.structures: list[Atoms] = []
        self.labels: list[Labels] = []
        self.refused: dict[bytes, str] = {}
        self.n_outside, self.seconds, self.usual = 0, 0.0, (0, 0.0)
        self._is_begun = False
        self._path, self._oracle, self._like = path, oracle, like
        self._rows: dict[bytes, int] = {}
        self._is_written, self._written_at = True, time.monotonic()
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_calls(self) -> int:
        """Number of structures that were passed to the oracle."""
        return len(self.labels) + len(self.refused)

    @property
    def seconds_per_call(self) -> float:
        """Time of a call, without the first ones of each process if there were others."""
        n, seconds = self.usual
        return seconds / n if n else self.seconds / max(1, self.n_calls)

    @property
    def reasons(self) -> Counter[str]:
        """Reasons of the refused structures, counted."""
        return Counter(self.refused.values())

    def label(
        self, structures: Sequence[Atoms], tell: Callable[[int], None] = lambda n: None
    ) -> list[Labels | str]:
        """Return labels of structures, or the reason why one is refused; see `Oracle.label`.

        Args:
            structures: structures with positions in single precision.
            tell: called with the number of structures done since the last call.
        """
        at_once = 1
        first = 0
        while first < len(structures):
            part = structures[first : first + at_once]
            started = time.monotonic()
            new = [atoms for atoms in part if not self.knows(atoms)]
            if new:
                for atoms, found in zip(new, self._oracle.label(new), strict=True):
                    self._add(atoms, found)
                    if not isinstance(found, str) and found.is_outside:
                        self._count_outside()
                took = time.monotonic() - started
                self.seconds += took
                if self._is_begun:
                    self.usual = (self.usual[0] + len(new), self.usual[1] + took)
                self._is_begun = True
                if time.monotonic() - self._written_at > WRITE_EVERY:
                    self.write()
            # a slow oracle gets one structure at a time, so that a kill costs one label
            taken = (time.monotonic() - started) / max(1, len(new))
            at_once = AT_ONCE if taken * AT_ONCE < WRITE_EVERY else 1
            first += len(part)
            tell(len(part))
        self.write()
        return [self._found(atoms) for atoms in structures]

    def knows(self, atoms: Atoms) -> bool:
        """Return True if a structure was labelled or refused before."""
        key = _key(atoms)
        return key in self._rows or key in self.refused

    def row(self, atoms: Atoms) -> int | None:
        """Return the number of a structure among those labelled, or None."""
        return self._rows.get(_key(atoms))

    def rows(self, structures: Sequence[Atoms]) -> list[int]:
        """Return the numbers of those structures that have labels, each once."""
        found = dict.fromkeys(self.row(atoms) for atoms in structures)
        return [row for row in found if row is not None]

    def sane(self, rows: Sequence[int]) -> list[int]:
        """Return those of the numbers whose forces are small enough for training."""
        return [k for k in rows if np.abs(self.labels[k].forces).max() <= LARGEST_FORCE]

    def dataset(self, rows: Sequence[int]) -> Dataset:
        """Return some of the labelled structures as a data set."""
        return Dataset(
            structures=tuple(self.structures[k].copy() for k in rows),
            energies=np.array([self.labels[k].energy for k in rows]),
            forces=tuple(self.labels[k].forces for k in rows),
            source=self._path.name,
            level_of_theory=self.level_of_theory,
        )

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def write(self) -> None:
        """Write the file atomically, if there is something new."""
        if self._is_written:
            return
        shape = (-1, len(self._like), 3)
        refused = b"".join(self.refused)
        arrays = {
            **self._common,
            "R": np.reshape([atoms.positions for atoms in self.structures], shape),
            "E": np.array([one.energy for one in self.labels], dtype=np.float64),
            "F": np.reshape([one.forces for one in self.labels], shape),
            "refused": np.frombuffer(refused, np.float32).reshape(shape),
        }
        texts = {
            "units": UNITS,
            **self._source,
            "reasons": json.dumps(list(self.refused.values())),
        }
        with replacing(self._path) as new, new_hdf5(new) as (file, _):
            for name, array in arrays.items():
                file[name] = array
            for name, text in texts.items():
                file.attrs[name] = np.bytes_(text.encode())
            file.attrs["seconds"], file.attrs["usual"] = self.seconds, self.usual
            file.attrs["outside"] = self.n_outside
        self._is_written, self._written_at = True, time.monotonic()

    @property
    def _common(self) -> dict[str, np.ndarray]:
        """Return the arrays that all structures share, by the names of `attncalc.data.read`."""
        return {
            "z": self._like.numbers.astype(np.uint8),
            "cell": self._like.cell.array,
            "pbc": self._like.pbc.astype(np.uint8),
            **{key: np.array([self._like.info[key]]) for key in ("charge", "spin")},
        }

    @property
    def _source(self) -> dict[str, str]:
        return {"teacher": self.teacher, "level_of_theory": self.level_of_theory}

    def _read(self) -> None:
        mine = self._source | {key: array.tolist() for key, array in self._common.items()}
        theirs: dict[str, object] = {}
        try:
            with self._path.open("rb") as raw, LocalFile(raw) as file:
                theirs |= {key: bytes(file.attrs[key]).decode() for key in self._source}
                theirs |= {key: file[key][()].tolist() for key in self._common}
                positions, energies, forces = (file[name][()] for name in ("R", "E", "F"))
                refused = file["refused"][()].astype(np.float32)
                reasons = json.loads(bytes(file.attrs["reasons"]))
                self.seconds = float(file.attrs["seconds"])
                n, seconds = file.attrs.get("usual", (0, 0.0))  # earlier versions have none
                self.usual = (int(n), float(seconds))
                self.n_outside = int(file.attrs.get("outside", 0))
            if theirs == mine:
                for k, energy in enumerate(energies):
                    self._add(self._at(positions[k]), Labels(float(energy), forces[k]))
                for where, reason in zip(refused, reasons, strict=True):
                    self._add(self._at(where), str(reason))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{self._path}: damaged ({one_line(error)}): restore it, or begin again by "
                "--overwrite"
            ) from None
        for key, value in mine.items():
            if theirs[key] != value:
                raise ValueError(
                    f"{self._path} holds labels of {option_of(key)} "
                    f"{theirs[key]}, not {value}: choose another output, or use --overwrite"
                )
        self._is_written = True

    def _count_outside(self) -> None:
        if not self.n_outside:
            log.warning(
                "outside the training data of the oracle (%s): its labels may be wrong",
                self.teacher,
            )
        self.n_outside += 1

    def _at(self, positions: np.ndarray) -> Atoms:
        atoms = self._like.copy()
        atoms.positions = positions
        return atoms

    def _add(self, atoms: Atoms, found: Labels | str) -> None:
        key = _key(atoms)
        if not isinstance(found, str) and not (
            np.isfinite(found.energy) and np.isfinite(found.forces).all()
        ):
            found = "labels not finite"
        if isinstance(found, str):
            self.refused[key] = found
        elif key not in self._rows:
            self._rows[key] = len(self.labels)
            self.structures.append(atoms.copy())
            self.labels.append(found)
        self._is_written = False

    def _found(self, atoms: Atoms) -> Labels | str:
        key = _key(atoms)
        return self.labels[self._rows[key]] if key in self._rows else self.refused[key]


def _key(atoms: Atoms) -> bytes:
    return atoms.positions.astype(np.float32).tobytes()
