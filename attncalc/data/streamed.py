"""Data sets that stay in their file: structures are read on demand and not kept in memory."""

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

# structures of a sample for checks of units, in runs of successive ones, which are often similar
SAMPLE, RUN = 2000, 100
# structures that are evaluated at once
PART = 256


class _Column(Sequence[Any]):
    """Sequence of one quantity, whose structures are read from the file on each access."""

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
    """`Dataset` whose structures, forces and stresses are read from the file on each access.

    Energies are in memory. Errors in a structure are found when it is read.

    Attributes:
        structures, forces, stress, charges, hirshfeld_ratios, dipoles: as in `Dataset`, but read
            from the file on each access.
        energies, splits, source, level_of_theory, labels, isolated_energies: as in `Dataset`.
        rows: reader of one structure of the file.
        indices: [n], structures of the file that belong to this data set, in order.
    """

    rows: Rows = field(kw_only=True)
    indices: Integers = field(kw_only=True)

    def __post_init__(self) -> None:
        """Skip the checks of `Dataset`: structures are not read yet."""

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray) -> StreamedDataset:
        """Select structures as in a `Dataset`, without reading them."""
        chosen = self.chosen(index)
        left_out = {name: None for name in OPTIONAL if getattr(self, name) is None}
        return replace(
            self,
            **_columns(self.rows, self.indices[chosen]) | left_out,
            energies=self.energies[chosen],
            splits={},
        )

    def in_memory(self) -> Dataset:
        """Read and check the whole data set."""
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
    """Open an HDF5 file with all structures in a row, as written by `write_hdf5`.

    The numbers are those that `read` returns, but data per atom stay in the file, which may be
    larger than the memory. It must not change meanwhile.

    Args:
        path: the file.
        energy_unit, length_unit, labels: as in `attncalc.data.read`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the structures are not stored in a row, or the file's content, units or label
            sets are invalid, see `read`.
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
    """Return about 2,000 structures of a streamed data set; one in memory is returned unchanged.

    The sample consists of runs of 100 structures, spread over the file: successive frames of a
    trajectory are similar, as a check of units requires.
    """
    if not isinstance(dataset, StreamedDataset):
        return dataset
    if len(dataset) <= SAMPLE:
        return dataset.in_memory()
    in_file = np.argsort(dataset.indices)
    starts = np.linspace(0, len(dataset) - RUN, SAMPLE // RUN).astype(int)
    return dataset[np.concatenate([in_file[start : start + RUN] for start in starts])].in_memory()


def errors_of(potential: Potential, dataset: Dataset) -> Errors:
    """Compute the errors of a model on a data set; a streamed one is read in parts.

    Args:
        potential: the model.
        dataset: with the labels that it is compared with.

    Returns:
        MAE and RMSE of energies [eV], force components [eV/Å] and stress [eV/Å³], see `Errors`.
    """
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
