"""Input scripts of LAMMPS in which two lines name a model.

    pair_style attncalc MODEL
    pair_coeff * * Si O

are an ordinary pair style to the user. LAMMPS gets a pair style without energy instead, and the
model is added by `attncalc.plugins.lammps.attach`. After
`pair_style hybrid/overlay attncalc MODEL lj/cut 10.0` the second line is
`pair_coeff * * attncalc Si NULL`.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from attncalc.domain import Integers
from attncalc.model_file import load
from attncalc.plugins.lammps import FIX, OF_PAIR_STYLES, WITHOUT_MODEL, AttnFix, attach

EXAMPLE = "pair_style attncalc MODEL and pair_coeff * * with the element of every atom type"

REFUSED = {
    "clear": "start a new run instead",
    "run_style": "only run_style verlet calls the model in every step",
    "pair_style": "a script has one model and one pair_style",
}
"""Commands after the two lines that would disable the model, and advice."""

PER_ATOM = ("pe/atom", "stress/atom", "centroid/stress/atom")
"""Styles of `compute` that read energies or virials of atoms, in any line of a script."""

OF_PAIRS = (
    *("group/group", "pair", "pair/local", "stress/mop", "stress/mop/profile"),
    *("stress/cartesian", "stress/cylinder", "stress/spherical", "pressure/cylinder"),
    *("hma", "fep", "fep/ta", "force/tally", "heat/flux/tally", "heat/flux/virial/tally"),
    *("pe/tally", "pe/mol/tally", "stress/tally"),
)
"""Styles of `compute` that read the pair style, which has no energy, instead of the model."""

HYBRIDS = ("attncalc", "hybrid", "hybrid/overlay")
"""First words of `pair_style` that apply the model as a whole."""

WITH_PAIRS = ("pe", "pressure", *PER_ATOM)
"""Styles of `compute` that read the pair style if they have the keyword `pair`."""

SHARED = ("neighbor", "neigh_modify", "comm_modify")
"""Commands after the two lines that would update ghosts too late if processes share a box."""


@dataclass(frozen=True)
class Script:
    """Lines of a script, divided at the two that name the model.

    Attributes:
        before, between, behind: lines before, between and after these two.
        style: `pair_style` line, without comment.
        coefficients: `pair_coeff` line of the model, without comment.
    """

    before: tuple[str, ...]
    style: str
    between: tuple[str, ...]
    coefficients: str
    behind: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a script.

        Raises:
            ValueError: one of the two lines is missing, or a command cannot be used with a model.
            OSError: the file cannot be read.
        """
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        lines = re.sub(r"&[ \t]*\n", " ", text).splitlines()
        styles = [k for k, line in enumerate(lines) if "attncalc" in _words(line, "pair_style")]
        if not styles:
            raise ValueError(f"{path}: no line names a model, it needs {EXAMPLE}")
        first = styles[0]
        is_hybrid = _words(lines[first], "pair_style")[0] != "attncalc"
        found = [
            k
            for k, line in enumerate(lines[first:], start=first)
            if (words := _words(line, "pair_coeff")) and ("attncalc" in words or not is_hybrid)
        ]
        if not found:
            raise ValueError(f"{path}: pair_coeff is missing, a model needs {EXAMPLE}")
        second = found[0]
        script = cls(
            before=tuple(lines[:first]),
            style=_without_comment(lines[first]),
            between=tuple(lines[first + 1 : second]),
            coefficients=_without_comment(lines[second]),
            behind=tuple(lines[second + 1 :]),
        )
        script._check(path)
        if not is_hybrid:  # in a hybrid, other styles may be meant
            script._refuse_pairs(path)
        return script

    @property
    def _others(self) -> list[str]:
        """All lines except those that name the model, without comments."""
        return [_without_comment(line) for line in (*self.before, *self.between, *self.behind)]

    @property
    def reads_atoms(self) -> bool:
        """Return True if a `compute` reads energies or virials of atoms, or may do so.

        The `compute` may be part of another command (`if`, `run ... every`), have a variable as its
        style, or come from another file.
        """
        # a jump within the script reads no other file
        lines = [line.replace("jump SELF", "") for line in self._others]
        words = {word for line in lines for word in re.split(r"[\s\"']+", line)}
        styles = {word for line in lines for word in _words(line, "compute")[2:3]}
        return not words.isdisjoint((*PER_ATOM, "include", "jump", "python")) or any(
            "$" in style for style in styles
        )

    def _check(self, path: str | Path) -> None:
        for line in (*self.between, *self.behind):
            word = (line.split() or [""])[0]
            if _words(line, "unfix") == [FIX]:
                raise ValueError(
                    f"{path}: unfix {FIX} would take the model away: {REFUSED['clear']}"
                )
            respa = word == "run_style" and "respa" in line
            if word in REFUSED and (respa or word != "run_style"):
                raise ValueError(
                    f"{path}: the command {word} behind the line of the model: {REFUSED[word]}"
                )

        for line in self._others:
            style = [*_words(line, "compute")[2:3], *_words(line, "fix")[2:3]]
            if style and style[0] in WITHOUT_MODEL:
                raise ValueError(f"{path}: {WITHOUT_MODEL[style[0]]}")
        self._refuse_energies_of_minimize(path)

    def _refuse_energies_of_minimize(self, path: str | Path) -> None:
        """Refuse `minimize` with energies of atoms unless `run 0` is the last run before it.

        Only a `run` tells LAMMPS' fix external that they are wanted; `minimize` keeps what the last
        step before it had.
        """
        if not any("pe/atom" in _words(line, "compute")[2:3] for line in self._others):
            return
        last: list[str] = []
        for line in self._others:
            words = line.split()
            if words[:1] == ["minimize"] and last != ["run", "0"]:
                raise ValueError(
                    f"{path}: compute pe/atom would be wrong in minimize: put `run 0` before it"
                )
            if words[:1] == ["run"]:
                last = words[:2]

    def _refuse_pairs(self, path: str | Path) -> None:
        for line in self._others:
            compute, fix = (_words(line, command)[2:] for command in ("compute", "fix"))
            if compute[:1] and (
                compute[0] in OF_PAIRS or (compute[0] in WITH_PAIRS and "pair" in compute)
            ):
                raise ValueError(
                    f"{path}: compute {' '.join(compute)} asks the pair style and would be 0: the "
                    "model's energy and virial count with all others, as those of a fix"
                )
            if "exclude" in _words(line, "neigh_modify") and "none" not in line:
                raise ValueError(
                    f"{path}: neigh_modify exclude: a network of many atoms cannot leave out pairs"
                )
            if fix[:1] and fix[0] in OF_PAIR_STYLES:
                raise ValueError(f"{path}: {OF_PAIR_STYLES[fix[0]]}")
            if fix[:1] == ["widom"] and "full_energy" not in fix:
                raise ValueError(
                    f"{path}: fix widom would see an ideal gas: add the keyword full_energy"
                )

    def refuse_shared(self, path: str | Path) -> None:
        """Refuse commands after the lines of the model that several processes cannot use.

        Raises:
            ValueError: there is such a command.
        """
        for line in self.behind:
            word = (line.split() or [""])[0]
            if word in SHARED:
                raise ValueError(
                    f"{path}: the command {word} behind the line of the model: several processes "
                    "need the settings that attncalc makes; remove it"
                )


def _without_comment(line: str) -> str:
    return line.split("#")[0].strip()


def _words(line: str, command: str) -> list[str]:
    """Return the arguments of a command; none if the line has another command."""
    words = _without_comment(line).split()
    return words[1:] if words[:1] == [command] else []


def run(lmp: Any, path: str | Path, script: Script, **options: Any) -> AttnFix:
    """Run a script.

    Args:
        lmp: a `lammps.lammps`.
        path: path of the script, for messages.
        script: script that was read from `path`.
        options: options of `attncalc.plugins.lammps.attach`.

    Raises:
        ValueError: the lines of the model are wrong, or the instance or the model is not suitable,
            see `attach`.
    """
    comm = lmp.get_mpi_comm()
    where = options.pop("device", "auto")
    if comm is not None and comm.size > 1:
        script.refuse_shared(path)
        where = "cpu" if where == "auto" else where
    _run_lines(lmp, script.before)
    style = shlex.split(lmp.expand(script.style))[1:]  # a path may have spaces
    if style[0] not in HYBRIDS:
        raise ValueError(f"{path}: pair_style {style[0]} would not be applied to the model")
    place = style.index("attncalc")
    if len(style) == place + 1:
        raise ValueError(f"{path}: pair_style attncalc needs the name or file of a model")
    attached = ("charge", "spin")
    loaded = {name: value for name, value in options.items() if name not in attached}
    potential = load(style[place + 1], device=where, **loaded)
    if place == 0 and len(style) > 2:
        raise ValueError(f"{path}: pair_style attncalc takes one model, got {' '.join(style[1:])}")
    if "zero" in style:
        raise ValueError(
            f"{path}: a hybrid of attncalc has no other style zero: LAMMPS gets one in the place "
            "of the model, for whose NULL types it may stand as well"
        )
    style[place : place + 2] = ["zero", f"{potential.cutoff:.6f}", "nocoeff"]
    _run_lines(lmp, [" ".join(["pair_style", *style]), *script.between])
    elements = _elements(path, shlex.split(lmp.expand(script.coefficients))[1:], place > 0)
    electrons = {name: options[name] for name in attached if name in options}
    fix = attach(lmp, potential, elements, **electrons, per_atom=script.reads_atoms)
    _run_lines(lmp, _coefficients(fix.numbers) if place else ["pair_coeff * *"])
    _run_lines(lmp, script.behind)
    if not lmp.has_id("fix", FIX):
        raise ValueError(f"{path}: clear or unfix has removed the model: {REFUSED['clear']}")
    return fix


def _coefficients(numbers: Integers) -> list[str]:
    """Return lines for pairs of the model's types; NULL types may have their own already."""
    ours = np.flatnonzero(numbers)
    return [f"pair_coeff {i} {j} zero" for i in ours for j in ours if i <= j]


def _elements(path: str | Path, words: Sequence[str], is_hybrid: bool) -> Sequence[str]:
    expected = ["*", "*", "attncalc"] if is_hybrid else ["*", "*"]
    if list(words[: len(expected)]) != expected:
        raise ValueError(
            f"{path}: pair_coeff of a model is: pair_coeff {' '.join(expected)} and the element of "
            "every atom type"
        )
    return words[len(expected) :]


def _run_lines(lmp: Any, lines: Sequence[str]) -> None:
    """Run lines from a file, so that labels and `jump SELF` among them work."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "in.part"
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lmp.file(str(part))
