"""Data sets that stay in their file: structures are read when they are asked for, and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncalc.data.dataset import OF_STRUCTURES, OPTIONAL, Dataset, Integers, check_split
from attncalc.data.errors import Errors, errors, predict
from attncalc.data.hdf5_rows import Rows
from attncalc.data.units import ReadOptions
from attncalc.potential import Potential

# structures of which units are checked: in runs of neighbours, which are often close to each other
SAMPLE, RUN = 2000, 100
# structures that are predicted and compared at once
PART = 256


class _Column(Sequence[Any]):
    """One quantity of structures that are read one by one."""

    def __init__(self, read: Callable[[int], Any], indices: Integers) -> None:
        self._read, self._indices = read, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self._read(int(index)) for index in self._indices[k]]
        return self._read(int(self._indices[k]))


@dataclass(frozen=True, eq=False)
class StreamedDataset(Dataset):
    """`Dataset` whose structures, forces and stresses are read whenever they are asked for.

    Energies are in memory. What is wrong with a structure is found when it is read.

    Attributes:
        structures, forces, stress, charges, hirshfeld_ratios, dipoles: as of a `Dataset`, by index;
            nothing is kept.
        energies, splits, source, level_of_theory, labels, isolated_energies: as of a `Dataset`.
        rows: reads one structure of the file.
        indices: [n] which ones, in order.
    """

    rows: Rows = field(kw_only=True)
    indices: Integers = field(kw_only=True)

    def __post_init__(self) -> None:
        """Skip the checks of `Dataset`: structures are not read yet."""

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray) -> StreamedDataset:
        """Select structures as of a `Dataset`; nothing is read."""
        chosen = self.chosen(index)
        return replace(
            self,
            **_columns(self.rows, self.indices[chosen]),
            energies=self.energies[chosen],
            splits={},
        )

    def in_memory(self) -> Dataset:
        """Return the whole data set, read and checked."""
        columns = {field.name: getattr(self, field.name) for field in fields(Dataset)}
        for name, values in columns.items():
            if isinstance(values, _Column):
                columns[name] = np.stack(values) if name in OF_STRUCTURES else tuple(values)
        return Dataset(**columns)


def stream(
    path: str | PathLike[str],
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labels: str | None = None,
) -> StreamedDataset:
    """Open an HDF5 file with all structures in a row, as `write_hdf5` makes them.

    The same numbers as by `read`, for files larger than the memory: what is per atom stays in the
    file, which must not change meanwhile.

    Args:
        path: the file.
        energy_unit, length_unit, labels: as in `attncalc.data.read`.

    Raises:
        OSError: the system refuses to read the file.
        ValueError: the structures do not stand in a row, or as for `read`.
    """
    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(
            f"{path.name}: only HDF5 can be left in the file: "
            f"`attncalc convert data {path.name} -o NEW.h5` makes it"
        )
    rows = Rows(path, ReadOptions(energy_unit, length_unit, labels))
    first = rows(0)
    for name, indices in rows.splits.items():
        check_split(name, indices, len(rows.energies))
    everything = np.arange(len(rows.energies))
    return StreamedDataset(
        **_columns(rows, everything),
        energies=rows.energies,
        splits=rows.splits,
        source=rows.source,
        level_of_theory=first.level_of_theory,
        labels=first.labels,
        isolated_energies=first.isolated_energies,
    )


def _columns(rows: Rows, indices: Integers) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "structures": _Column(lambda k: rows(k).structures[0], indices),
        **dict.fromkeys(OPTIONAL),
    }
    for label in rows.labels:
        read = partial(_label, rows, label)
        columns[label] = _Column(read, indices)
    return columns | {"rows": rows, "indices": indices}


def _label(rows: Rows, label: str, k: int) -> Any:
    return getattr(rows(k), label)[0]


def sample(dataset: Dataset) -> Dataset:
    """Return a data set in memory as it is; of a streamed one, about 2,000 structures.

    They are taken in runs of 100, spread over the file: frames of a trajectory are close to their
    neighbours, which is what a check of units looks for.
    """
    if not isinstance(dataset, StreamedDataset):
        return dataset
    if len(dataset) <= SAMPLE:
        return dataset.in_memory()
    in_file = np.argsort(dataset.indices)
    starts = np.linspace(0, len(dataset) - RUN, SAMPLE // RUN).astype(int)
    return dataset[np.concatenate([in_file[start : start + RUN] for start in starts])].in_memory()


def errors_of(potential: Potential, dataset: Dataset) -> Errors:
    """Return the errors of a model on a data set; a streamed one is read in parts."""
    if not isinstance(dataset, StreamedDataset):
        return errors(predict(potential, dataset), dataset)
    found, n_atoms = [], []
    for k in range(0, len(dataset), PART):
        part = dataset[k : k + PART].in_memory()
        found.append(errors(predict(potential, part), part))
        n_atoms.append(sum(map(len, part.structures)))
    means: dict[str, Any] = {"n_structures": len(dataset)}
    for name in vars(found[0]).keys() - means.keys():
        values = [getattr(one, name) for one in found]
        weights = n_atoms if name.startswith("force") else [one.n_structures for one in found]
        power = 2 if name.endswith("rmse") else 1
        means[name] = None
        if values[0] is not None:
            mean = np.average(np.power(values, power), weights=weights)
            means[name] = float(mean ** (1 / power))
    return Errors(**means)
