"""Structures that a model gets most wrong, and what is unusual about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from attncalc.data.contacts import BONDED, neighbors_of, reach_of, touching
from attncalc.data.dataset import Dataset, Integers
from attncalc.data.errors import Floats, Prediction, energy_errors, explained_by_composition
from attncalc.names import pair_name

# share of structures with extreme values that count as unusual; one structure always does
UNUSUAL = 0.01
# most remarks about one structure: with many features, some value is always a little extreme
MOST_REMARKS = 3


@dataclass(frozen=True)
class Outlier:
    """Structure with large errors.

    Attributes:
        index: index of the structure in the data set.
        formula: Hill notation.
        energy_error: eV per atom, with sign; as in `energy_errors`.
        force_rmse: eV/Å, over components; NaN without reference forces.
        force_error: eV/Å, largest |F - F_ref| of an atom; NaN without reference forces.
        atom: the index of that atom, or None.
        remarks: what is unusual about the structure within the data set.
    """

    index: int
    formula: str
    energy_error: float
    force_rmse: float
    force_error: float
    atom: int | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Feature:
    """Feature of every structure, and the words for its extremes.

    Attributes:
        values: [n]; a value that is not finite is never unusual.
        texts: [n], each value in words.
        high: word for the largest value, e.g. "largest"; "" if large values are not unusual.
        low: word for the smallest value, likewise.
    """

    values: Floats
    texts: list[str]
    high: str = ""
    low: str = ""


def outliers(
    prediction: Prediction,
    dataset: Dataset,
    *,
    by: str = "force",
    n: int = 10,
    features: Sequence[Feature] | None = None,
) -> list[Outlier]:
    """Return the structures with the largest errors, worst first.

    Args:
        prediction: predictions for this data set.
        dataset: structures with labels.
        by: "force" (largest error on an atom) or "energy" (`energy_errors`).
        n: number of structures.
        features: `features_of(dataset)`, if computed already.

    Raises:
        ValueError: `by` is something else, or "force" and the data set has no forces.
    """
    if by not in ("force", "energy"):
        raise ValueError(f'by must be "force" or "energy", got {by!r}')
    if by == "force" and dataset.forces is None:
        raise ValueError(f"{dataset.source}: the data set has no forces")
    energy_error, _ = energy_errors(prediction, dataset)
    on_atoms = _errors_on_atoms(prediction, dataset)
    if by == "force":
        score = np.array([error.max() for error in on_atoms])
    else:
        score = np.abs(energy_error)
    worst = np.argsort(-score, kind="stable")[:n]
    if features is None:
        features = features_of(dataset)
    found = []
    for k in worst.tolist():
        error = on_atoms[k]
        found.append(
            Outlier(
                index=k,
                formula=dataset.structures[k].get_chemical_formula(),
                energy_error=float(energy_error[k]),
                force_rmse=float(np.sqrt((error**2).mean() / 3)),
                force_error=float(error.max()),
                atom=None if dataset.forces is None else int(error.argmax()),
                remarks=tuple(_remarks(features, k)),
            )
        )
    return found


def _errors_on_atoms(prediction: Prediction, dataset: Dataset) -> list[Floats]:
    """Return |F - F_ref| [n_atoms] eV/Å for every structure; NaN without reference forces."""
    if dataset.forces is None:
        return [np.full(len(structure), np.nan) for structure in dataset.structures]
    return [
        np.linalg.norm(ours - theirs, axis=1)
        for ours, theirs in zip(prediction.forces, dataset.forces, strict=True)
    ]


def _remarks(features: Sequence[Feature], k: int) -> list[str]:
    """Return remarks on the extremes of structure k, the most extreme first."""
    found = []
    for feature in features:
        values = feature.values[np.isfinite(feature.values)]
        if not np.isfinite(feature.values[k]) or values.min() == values.max():
            continue
        mine = feature.values[k]
        for word, beyond, as_far in (
            (feature.high, (values > mine).sum(), (values >= mine).sum()),
            (feature.low, (values < mine).sum(), (values <= mine).sum()),
        ):
            # a value that many structures share is not unusual, even if it is the extreme
            if word and as_far <= max(1, UNUSUAL * len(values)):
                place = f"the {word}" if beyond == 0 else f"{_ordinal(int(beyond) + 1)} {word}"
                found.append((beyond, f"{feature.texts[k]}: {place} of {len(values)}"))
    return [text for _, text in sorted(found, key=lambda pair: pair[0])][:MOST_REMARKS]


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def features_of(dataset: Dataset) -> list[Feature]:
    """Return features by which a structure may be unusual: energy, forces, distances ..."""
    structures = dataset.structures
    n_atoms = np.array([len(structure) for structure in structures])
    energy = dataset.energies - explained_by_composition(dataset, dataset.energies)
    energy = energy / n_atoms
    features = [
        Feature(
            energy,
            [f"label {1e3 * e:+.0f} meV/atom relative to its composition" for e in energy],
            high="highest energy",
            low="lowest energy",
        ),
        Feature(n_atoms.astype(float), [f"{n} atoms" for n in n_atoms], high="largest"),
        _rare_elements(dataset),
        *_distances(dataset),
    ]
    if dataset.forces is not None:
        size = [np.linalg.norm(forces, axis=1) for forces in dataset.forces]
        texts = [
            f"reference force {s.max():.3g} eV/Å on {_atom(structure.numbers, int(s.argmax()))}"
            for s, structure in zip(size, structures, strict=True)
        ]
        features.append(Feature(np.array([s.max() for s in size]), texts, high="largest"))
    if all(structure.cell.rank == 3 for structure in structures):
        volume = np.array([s.get_volume() for s in structures]) / n_atoms
        texts = [f"{v:.3g} Å³ per atom" for v in volume]
        features.append(Feature(volume, texts, high="thinnest", low="densest"))
    return features


def _rare_elements(dataset: Dataset) -> Feature:
    """Return the share of structures with the rarest element of each structure, as a feature."""
    sets = [frozenset(structure.numbers.tolist()) for structure in dataset.structures]
    count: dict[int, int] = {}
    for elements in sets:
        for z in elements:
            count[z] = count.get(z, 0) + 1
    rarest = [min(elements, key=lambda z: (count[z], z)) for elements in sets]
    values = np.array([count[z] / len(sets) for z in rarest])
    texts = [f"{chemical_symbols[z]} in {count[z]} of {len(sets)} structures" for z in rarest]
    return Feature(values, texts, low="rarest element")


def _distances(dataset: Dataset) -> list[Feature]:
    """Return features of bonds and contacts, by pair of elements, and of atoms without bonds."""
    reach = reach_of(dataset)
    columns: dict[str, list[tuple[int, float, str]]] = {}  # name -> (structure, value, text)
    found = zip(dataset.structures, neighbors_of(dataset), strict=True)
    for k, (structure, neighbors) in enumerate(found):
        for name, value, text in _extremes(structure.numbers, *neighbors, reach):
            columns.setdefault(name, []).append((k, value, text))
    features = []
    for name, column in columns.items():
        values, texts = np.full(len(dataset), np.nan), [""] * len(dataset)
        for k, value, text in column:
            values[k], texts[k] = value, text
        small = name.startswith(("shortest", "closest"))
        features.append(Feature(values, texts, **{"low" if small else "high": name}))
    return features


def _extremes(
    numbers: Integers, i: Integers, j: Integers, lengths: Floats, reach: float
) -> Iterator[tuple[str, float, str]]:
    """Yield the extremes within one structure: name, value to compare, and description."""
    bonded = lengths < BONDED * touching(numbers, i, j)
    z, y = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
    for a, b in np.unique(np.stack([z, y], axis=1), axis=0):
        pair = pair_name(a, b)
        ours = (z == a) & (y == b)
        for name, which, pick in (
            (f"shortest {pair} bond", bonded, np.argmin),
            (f"longest {pair} bond", bonded, np.argmax),
            (f"closest {pair} contact without a bond", ~bonded, np.argmin),
        ):
            candidates = np.flatnonzero(ours & which)
            if len(candidates):
                e = candidates[pick(lengths[candidates])]
                ends = f"{_atom(numbers, int(i[e]))}, {_atom(numbers, int(j[e]))}"
                yield name, float(lengths[e]), f"{ends} at {lengths[e]:.3f} Å"
    nearest = np.full(len(numbers), np.inf)
    np.minimum.at(nearest, i, lengths)
    held = np.zeros(len(numbers), dtype=bool)
    held[i[bonded]] = True
    if len(numbers) > 1:
        # zero if all atoms have bonds, so that other structures are compared with this one too
        far = np.where(held, 0.0, np.minimum(nearest, 2 * reach))
        alone = int(far.argmax())
        where = f"{nearest[alone]:.2f}" if np.isfinite(nearest[alone]) else f"more than {reach:.1f}"
        text = f"{_atom(numbers, alone)} is {where} Å from its nearest neighbour"
        yield "most isolated atom", float(far[alone]), text


def _atom(numbers: Integers, k: int) -> str:
    """Return element and index of an atom, counted from 0 as in ASE."""
    return f"{chemical_symbols[int(numbers[k])]}{k}"
