"""Summary picture of a run of `attncalc md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from ase import Atoms
from tqdm import tqdm

from attncalc.bonds import NONMETALS, Bonds
from attncalc.cli.files import read_structures, save_picture
from attncalc.cli.output import warn
from attncalc.md import Settings, read_h5md, read_log
from attncalc.md.log_file import NOVELTY, count_rows
from attncalc.novelty import OUTSIDE
from attncalc.novelty.messages import OUTSIDE_TEXT
from attncalc.system import System

# limits of what is drawn: most frames, most lines of the log (but at least FEWEST_TIMES times), and
# most systems of a batch
MOST_FRAMES, MOST_ROWS, FEWEST_TIMES, MOST_SYSTEMS = 400, 10_000, 200, 20


@dataclass(frozen=True)
class Picture:
    """Summary of a run, drawn from its log and some of its frames.

    Attributes:
        target: the trajectory.
        settings: settings of the run.
        title: title of the picture.
        n_dof: degrees of freedom for the temperature.
        structures: structures of the batch; those with the same atoms and bonds as the first are
            drawn.
        warnings: warnings during the run; the title mentions those about the training data.
    """

    target: Path
    settings: Settings
    title: str
    n_dof: int
    structures: Sequence[Atoms]
    warnings: list[str] = field(default_factory=list)

    @property
    def n_systems(self) -> int:
        """Number of structures in the batch."""
        return len(self.structures)

    def warn(self, text: str) -> None:
        """Write a warning above the progress bar, and store it for the title."""
        self.warnings.append(text)
        with tqdm.external_write_mode():
            warn(text)

    def draw(self) -> None:
        """Draw and save the picture; its last frame is the last one of the first structure."""
        from attncalc import plots

        log = self.target.with_suffix(".csv")
        firsts = read_structures(str(self.target), index="0:1")
        bonds = [Bonds.of(System.from_ase(one), NONMETALS) for one in firsts]
        molecules = [_molecule(*pair) for pair in zip(firsts, bonds, strict=True)]
        alike = [k for k, one in enumerate(molecules) if one == molecules[0]]
        rows = read_log(
            log, at_most=max(FEWEST_TIMES, MOST_ROWS // len(alike)), n_systems=self.n_systems
        )
        some = alike[:: -(-len(alike) // MOST_SYSTEMS)]
        n_frames = count_rows(log) // self.n_systems
        stride = -(-n_frames * len(some) // MOST_FRAMES)
        chosen = slice((n_frames - 1) % stride, None, stride)
        if self.n_systems == 1:
            frames = read_structures(str(self.target), index=f"{chosen.start}::{stride}")
        else:
            of_systems = [read_h5md(self.target, chosen, k) for k in reversed(some)]
            frames = [frame for at_once in zip(*of_systems, strict=True) for frame in at_once]
        of_all = "" if len(alike) == self.n_systems else f" of {self.n_systems}"
        title = self.title + (f" ({len(alike)}{of_all} systems)" if self.n_systems > 1 else "")
        # a continued run may have been outside before
        remarks, warned_of = [], "\n".join(self.warnings)
        if OUTSIDE_TEXT in warned_of or any(row.get(NOVELTY, 0.0) > OUTSIDE for row in rows):
            remarks.append(OUTSIDE_TEXT)
        if _bonds_broke([bonds[k] for k in reversed(some)], frames):
            remarks.append("bonds broke")
        title += f": {', '.join(remarks)}" if remarks else ""
        figure = plots.md_summary(
            [row for row in rows if int(row.get("system", 0)) in alike],
            frames,
            title=title,
            ensemble=self.settings.ensemble,
            target=None if self.settings.ensemble == "nve" else self.settings.temperature,
            n_dof=self.n_dof,
        )
        save_picture(figure, self.target.with_suffix(".png"))


def _molecule(atoms: Atoms, bonds: Bonds) -> tuple[bytes, frozenset[tuple[int, int]]]:
    """Return the elements and the bonds of a structure: isomers have others."""
    edges = bonds.edges
    pairs = zip(edges.receivers.tolist(), edges.senders.tolist(), strict=True)
    return atoms.numbers.tobytes(), frozenset((min(pair), max(pair)) for pair in pairs)


def _bonds_broke(of_systems: Sequence[Bonds], frames: Sequence[Atoms]) -> bool:
    """Return True if a bond of a first frame is broken in one of the frames.

    Args:
        of_systems: bonds of the first frame of each system.
        frames: one of each system in turn.
    """
    return any(
        bonds.broken(System.from_ase(frame))
        for bonds, frame in zip(cycle(of_systems), frames, strict=False)
    )
