"""Chunks: the labelled frames of a few molecules and of their clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from attncalc.sampling import fragments
from attncalc.sampling.clusters import Part, random_cluster
from attncalc.sampling.conformers import Conformer, embedded, langevin
from attncalc.sampling.geometry import (
    Floats,
    Integers,
    displaced,
    jittered,
    overlaps,
    proton_transferred,
    refusal,
    stretched,
    torsions,
    turned,
)
from attncalc.sampling.molecules import Molecule
from attncalc.sampling.oracles import LARGEST_FORCE, Labels, Oracle
from attncalc.sampling.relaxation import relaxations, rounded

KINDS = ("relaxed", "hot", "displaced", "stretched", "turned", "scan", "transferred", "cluster")
# K, range of log-uniform temperatures of hot frames
COLDEST, HOTTEST = 200.0, 1400.0
# hot frames of a molecule, and fs between two of them
N_HOT, HOT_STRIDE = 2, 60
# one molecule in SCANNED_OF has a full scan of a torsion, of SCAN_FRAMES frames
SCANNED_OF, SCAN_FRAMES = 8, 12
# frames of clusters per frame of a single molecule: a fifth of all
CLUSTERS_PER_FRAME = 0.25
# small molecules, and cations and anions each, that the clusters of a chunk are made with
N_SOLVENTS, N_IONS = 5, 2


@dataclass
class Chunk:
    """Labelled frames, and numbers of refused ones.

    Attributes:
        frames: kind, name of the molecule or cluster, structure, labels.
        refused: number of refused frames or molecules, by reason.
        n_labels: number of labels requested from the oracle.
        n_outside: number of frames outside the training data of the oracle, a model.
    """

    frames: list[tuple[str, str, Atoms, Labels]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    n_labels: int = 0
    n_outside: int = 0

    def add(self, kind: str, name: str, atoms: Atoms, labels: Labels) -> None:
        """Keep a frame if its labels are finite and its forces are not too large."""
        if not labels.are_finite:
            self.refused["labels not finite"] += 1
        elif np.linalg.norm(labels.forces, axis=1).max() > LARGEST_FORCE:
            self.refused[f"force above {LARGEST_FORCE:g} eV/Å"] += 1
        elif reason := refusal(atoms.numbers, atoms.positions):  # after a relaxation
            self.refused[reason] += 1
        else:
            self.frames.append((kind, name, atoms, labels))
            self.n_outside += labels.is_outside


def make_chunk(
    oracle: Oracle, rng: np.random.Generator, molecules: Sequence[Molecule], relax_steps: int
) -> Chunk:
    """Sample and label the frames of some molecules; the result depends on the arguments only.

    Args:
        oracle: the teacher.
        rng: source of all random choices.
        molecules: molecules of this chunk.
        relax_steps: steps of relaxation by the oracle.
    """
    chunk = Chunk()
    built = list(_built(chunk, rng, molecules))
    solvents = list(_built(chunk, rng, _solvents(rng)))
    firsts = [conformers[0] for conformers in (*built, *solvents)]
    paths = _relaxed(chunk, oracle, [(_atoms(c), c.name) for c in firsts], "relaxed", relax_steps)
    parts = [
        Part(c.name, c.numbers, path[-1][0].positions, c.charge)
        for c, path in zip(firsts, paths, strict=True)
        if path
    ]
    waiting: list[tuple[str, str, Atoms]] = []
    for k, (conformers, path) in enumerate(zip(built, paths, strict=False)):
        if path:
            frames = _distorted(rng, conformers, path[-1][0].positions, scan=k % SCANNED_OF == 0)
            waiting += [
                (kind, conformers[0].name, rounded(path[-1][0], positions))
                for kind, positions in frames
            ]
    n_clusters = CLUSTERS_PER_FRAME * (len(chunk.frames) + len(waiting))
    n_drawn = sum(bool(path) for path in paths[: len(built)])
    if n_drawn:
        loose, relaxing = _clusters(rng, parts[:n_drawn], parts[n_drawn:], round(n_clusters))
        waiting += [("cluster", name, atoms) for atoms, name in loose]
        _relaxed(chunk, oracle, relaxing, "cluster", relax_steps)
    _label(chunk, oracle, waiting)
    return chunk


def _solvents(rng: np.random.Generator) -> list[Molecule]:
    numbers = {fragments.SOLVENTS: N_SOLVENTS, fragments.CATIONS: N_IONS, fragments.ANIONS: N_IONS}
    return [
        Molecule("solvent", str(smiles))
        for choices, n in numbers.items()
        for smiles in rng.choice(choices, n, replace=False)
    ]


def _built(
    chunk: Chunk, rng: np.random.Generator, molecules: Iterable[Molecule]
) -> Iterable[list[Conformer]]:
    """Yield two conformers of each molecule, or the lowest of an enol, with a shared proton."""
    for molecule in molecules:
        is_enol = molecule.family == "enol"
        found = embedded(rng, molecule.smiles, 6 if is_enol else 2, lowest=is_enol)
        if found:
            yield found
        else:
            chunk.refused["no conformer"] += 1


def _atoms(conformer: Conformer) -> Atoms:
    return _with_charge(conformer.numbers, conformer.positions, conformer.charge)


def _with_charge(numbers: Integers, positions: Floats, charge: int) -> Atoms:
    return Atoms(numbers=numbers, positions=positions, info={"charge": charge, "spin": 1})


def _relaxed(
    chunk: Chunk, oracle: Oracle, starts: Sequence[tuple[Atoms, str]], kind: str, n_steps: int
) -> list[list[tuple[Atoms, Labels]]]:
    """Relax named structures, keep the first and last frame of each, and return the paths."""
    reasons = [refusal(atoms.numbers, atoms.positions) for atoms, _ in starts]
    sane = [atoms for (atoms, _), reason in zip(starts, reasons, strict=True) if not reason]
    done = iter(relaxations(oracle, sane, n_steps))
    paths = []
    for (_, name), reason in zip(starts, reasons, strict=True):
        path, problem = ([], reason) if reason else next(done)
        chunk.n_labels += len(path)
        if problem:
            chunk.refused[problem] += 1
        for atoms, labels in [*path[:1], *path[1:][-1:]]:
            chunk.add(kind, name, atoms, labels)
        paths.append(path)
    return paths


def _distorted(
    rng: np.random.Generator, conformers: Sequence[Conformer], rest: Floats, *, scan: bool
) -> Iterable[tuple[str, Floats]]:
    """Yield kinds and frames of a molecule, from its relaxed positions and last conformer."""
    first, last = conformers[0], conformers[-1]
    mol, numbers = first.mol, first.numbers
    if len(numbers) == 1:
        return
    hindered, turning = torsions(mol)
    temperature = np.exp(rng.uniform(np.log(COLDEST), np.log(HOTTEST)))
    hot = langevin(rng, last, temperature, N_HOT, HOT_STRIDE)
    for positions in hot or [displaced(rng, mol, rest) for _ in range(N_HOT)]:
        yield ("hot" if hot else "displaced"), positions
    yield "displaced", displaced(rng, mol, rest)
    yield "stretched", stretched(rng, mol, rest)
    if len(numbers) < 9:
        yield "displaced", displaced(rng, mol, rest)
        yield "stretched", stretched(rng, mol, rest)
    shifted = proton_transferred(rng, numbers, rest)
    if shifted is not None:
        yield "transferred", shifted
    choices = hindered or turning
    if choices and scan:
        bond = choices[rng.integers(len(choices))]
        angles = 2 * np.pi / SCAN_FRAMES * (np.arange(SCAN_FRAMES) + rng.random())
        frames = [("scan", turned(mol, rest, bond, angle)) for angle in angles]
    elif turning:
        bonds = [turning[k] for k in rng.permutation(len(turning))[: rng.integers(1, 4)]]
        positions = rest
        for bond in bonds:
            positions = turned(mol, positions, bond, rng.uniform(-np.pi, np.pi))
        frames = [("turned", positions)]
    else:
        return
    for kind, positions in frames:
        if not overlaps(mol, numbers, positions):
            yield kind, jittered(rng, positions, 0.02)


def _clusters(
    rng: np.random.Generator, molecules: Sequence[Part], solvents: Sequence[Part], n_frames: int
) -> tuple[list[tuple[Atoms, str]], list[tuple[Atoms, str]]]:
    """Return clusters to label as they are, and others to relax, which give two frames each."""
    loose: list[tuple[Atoms, str]] = []
    relaxing: list[tuple[Atoms, str]] = []
    while len(loose) + 2 * len(relaxing) < n_frames:
        cluster = random_cluster(rng, molecules, solvents or molecules)
        if cluster is not None:
            atoms = _with_charge(cluster.numbers, cluster.positions, cluster.charge)
            if rng.random() < 0.3:
                shifted = proton_transferred(rng, cluster.numbers, cluster.positions)
                atoms.positions = cluster.positions if shifted is None else shifted
            (relaxing if rng.random() < 0.35 else loose).append((atoms, cluster.name))
    return loose, relaxing


def _label(chunk: Chunk, oracle: Oracle, frames: Sequence[tuple[str, str, Atoms]]) -> None:
    sane = []
    for kind, name, atoms in frames:
        if reason := refusal(atoms.numbers, atoms.positions):
            chunk.refused[reason] += 1
        else:
            sane.append((kind, name, rounded(atoms, atoms.positions)))
    chunk.n_labels += len(sane)
    found = oracle.label([atoms for _, _, atoms in sane])
    for (kind, name, atoms), labels in zip(sane, found, strict=True):
        if isinstance(labels, str):
            chunk.refused[labels] += 1
        else:
            chunk.add(kind, name, atoms, labels)
