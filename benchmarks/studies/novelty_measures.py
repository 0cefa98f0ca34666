"""Measures of novelty, compared on the same features and the same structures.

    python benchmarks/studies/novelty_measures.py ../shared/data

All measures are fitted to the 1,000 training and validation frames of an ethanol model. Each is
divided by 1.2 times the distance that one structure in a thousand exceeds in five-fold
cross-validation, as in `attncalc.novelty.fit`. Writes novelty_measures.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from novelty import CASES, FAR_OFF, OTHER_LEVEL, OWN, RESULTS, auc, percent, read
from result_files import machine_name, table, write

from attncalc import data, load
from attncalc.novelty.fit import EDGE, FOLDS, HELD_INSIDE, LEAST_VARIANCE, largest_of
from attncalc.structures import evaluate_many
from attncalc.potential import Potential

Floats = NDArray[np.float64]
Distance = Callable[[Floats], Floats]  # [n, F] -> [n]
MODELS = ("so3krates-ethanol", "equiformer-ethanol")


@dataclass(frozen=True)
class Seen:
    """Atoms of structures: species, number of structure, features, hidden layer, force error."""

    species: NDArray[np.int64]
    structure: NDArray[np.int64]
    features: Floats
    hidden: Floats
    off: Floats


def update_novelty(potential: Potential, structures: Sequence[Atoms], forces: Sequence[Any]) -> Seen:
    """Return features, hidden layer and force errors of the plain network."""
    seen: list[Floats] = []
    network: Any = potential.network
    layer = network.hidden if hasattr(network, "hidden") else network.head.hidden

    def note(module: Any, given: Any, out: Any) -> None:
        del module, given
        out = out[0] if isinstance(out, list | tuple) else out
        seen.append(torch.nn.functional.silu(out).detach().flatten(1).double().numpy())

    handle = layer.register_forward_hook(note)
    found: list[list[Any]] = [[], [], [], []]
    n = 0
    for system, result in evaluate_many(potential, structures):
        theirs = np.concatenate(forces[n : n + system.n_systems])
        numbers = system.atomic_numbers.numpy()
        for column, value in zip(
            found,
            (
                np.searchsorted(potential.species, numbers),
                n + system.system_idx.numpy(),
                result.surroundings.features.double().numpy(),
                np.linalg.norm(result.forces.numpy() - theirs, axis=1),
            ),
            strict=True,
        ):
            column.append(value)
        n += system.n_systems
    handle.remove()
    species, structure, features, off = map(np.concatenate, found)
    return Seen(species, structure, features, np.concatenate(seen), off)


# ------------------------------------------------------------------------------------ measures


def gaussian(x: Floats, n: int = 32) -> Distance:
    """Fit the Mahalanobis distance in the first components, which attncalc uses."""
    centre = x.mean(0)
    variances, components = np.linalg.eigh((x - centre).T @ (x - centre) / len(x))
    first = np.maximum(variances[::-1][:n], LEAST_VARIANCE * variances.sum())
    whiten = components[:, ::-1][:, :n] / np.sqrt(first)
    return lambda y: np.linalg.norm((y - centre) @ whiten, axis=1)


def clusters(x: Floats, n: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return centres [n, k] and the cluster of each point, by Lloyd's algorithm.

    The initial centres are points far from each other.
    """
    chosen = [0]
    nearest = ((x - x[0]) ** 2).sum(1)
    for _ in range(n - 1):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((x - x[chosen[-1]]) ** 2).sum(1))
    centres = x[chosen]
    for _ in range(20):
        label = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.array([x[label == k].mean(0) if (label == k).any() else centres[k] for k in range(n)])
    return centres, label


def mixture(x: Floats, n: int = 8) -> Distance:
    """Fit the distance to the nearest of eight Gaussians of equal shape."""
    centre = x.mean(0)
    variances, components = np.linalg.eigh((x - centre).T @ (x - centre) / len(x))
    _, label = clusters((x - centre) @ components[:, -8:] / np.sqrt(variances[-8:]), n)
    centres = np.array([x[label == k].mean(0) for k in range(n) if (label == k).any()])
    label = np.unique(label, return_inverse=True)[1]
    shape = gaussian(x - centres[label])
    return lambda y: np.min([shape(y - one) for one in centres], axis=0)


def prototypes(x: Floats, n: int = 128) -> Distance:
    """Fit the distance to the nearest of 128 distant atoms, in 16 whitened components."""
    centre = x.mean(0)
    variances, components = np.linalg.eigh((x - centre).T @ (x - centre) / len(x))
    whiten = components[:, -16:] / np.sqrt(variances[-16:])
    points = (x - centre) @ whiten
    chosen, nearest = [0], ((points - points[0]) ** 2).sum(1)
    for _ in range(min(n, len(points)) - 1):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    kept = points[chosen]
    return lambda y: np.sqrt(((((y - centre) @ whiten)[:, None] - kept) ** 2).sum(2).min(1))


def rigidity(x: Floats) -> Distance:
    """Fit the last-layer prediction rigidity: the root of h^T (H^T H / n + c)^-1 h."""
    gram = x.T @ x / len(x)
    inverse = np.linalg.inv(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram)))
    return lambda y: np.sqrt(np.einsum("ia,ab,ib->i", y, inverse, y))


MEASURES: dict[str, tuple[Callable[[Floats], Distance], str, bool]] = {
    "one Gaussian per element (chosen)": (gaussian, "features", True),
    "eight Gaussians per element": (mixture, "features", True),
    "nearest of 128 prototypes per element": (prototypes, "features", True),
    "one Gaussian per element, hidden layer of the head": (gaussian, "hidden", True),
    "last-layer prediction rigidity": (rigidity, "hidden", False),
}


class Measure:
    """A fitted measure in units of its edge."""

    def __init__(self, known: Seen, kind: Callable[[Floats], Distance], field: str, apart: bool):
        self.field, self.apart = field, apart
        kinds = known.species if apart else np.zeros_like(known.species)
        x, fold = getattr(known, field), np.random.default_rng(0).permutation(known.structure.max() + 1)
        fold = fold[known.structure] % FOLDS
        held = np.zeros(len(x))
        self.distances, self.edges = {}, {}
        for s in np.unique(kinds):
            of_kind = kinds == s
            for k in range(FOLDS):
                out = of_kind & (fold == k)
                held[out] = kind(x[of_kind & (fold != k)])(x[out])
            self.distances[s] = kind(x[of_kind])
        for s in np.unique(known.species):
            of_kind = known.species == s
            largest = largest_of(held[of_kind], known.structure[of_kind])
            self.edges[s] = EDGE * np.quantile(largest, HELD_INSIDE)

    def __call__(self, atoms: Seen) -> Floats:
        x, novelty = getattr(atoms, self.field), np.zeros(len(atoms.species))
        for s, edge in self.edges.items():
            of_kind = atoms.species == s
            if of_kind.any():
                distance = self.distances[s if self.apart else 0]
                novelty[of_kind] = distance(x[of_kind]) / edge
        return novelty


def rows_of(name: str, folder: Path) -> list[list[str]]:
    """Return a row for each measure of one model."""
    potential = load(name, device="cpu")
    dataset = data.read(folder / "rmd17_ethanol.npz", labels="md17")
    dataset = dataset[dataset.splits["train_01"]]
    known = look(potential, dataset.structures, dataset.forces)
    cases = CASES["so3krates-ethanol-committee"]
    seen = [look(potential, *read(case, folder)) for case in cases]
    mean = float(seen[0].off.mean())
    limits = [max(FAR_OFF * mean, 0 if one.same_level else OTHER_LEVEL) for one in cases]
    bad = [one.off > limit for one, limit in zip(seen, limits, strict=True)]
    rows = []
    for words, (kind, field, apart) in MEASURES.items():
        measure = Measure(known, kind, field, apart)
        novelty = [measure(one) for one in seen]
        false = np.mean(largest_of(novelty[0], seen[0].structure) > 1)
        others = slice(1, None)
        caught = np.mean(np.concatenate(novelty[others])[np.concatenate(bad[others])] > 1)
        together = auc(np.concatenate(novelty), np.concatenate(bad))
        own = auc(novelty[0], bad[0])
        rows.append(
            [f"{name}: {words}", percent(float(false)), percent(float(caught)), f"{own:.3f}", f"{together:.3f}"]
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="with the data")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [row for name in MODELS for row in rows_of(name, options.folder)]
    head = ["measure", "false alarms", "caught elsewhere", "AUC, test set", "AUC, all"]
    cases = ", ".join(case.words for case in CASES["so3krates-ethanol-committee"] if case.words != OWN)
    lines = [
        *(machine_name(), "", f"`python benchmarks/studies/{Path(__file__).name} {options.folder}`"),
        "",
        "False alarms: structures of the test set with an atom above 1. Caught elsewhere: atoms whose "
        f"force is far off (as in novelty.md), of other structures: {cases}. AUC: the chance that an "
        "atom far off has the larger value than one that is not, on the test set and of all. Distances "
        "alone, without contacts.",
        "",
        *table(head, rows),
        "",
    ]
    write(options.output / "novelty_measures.md", "\n".join(lines))


if __name__ == "__main__":
    main()
