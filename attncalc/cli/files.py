"""Files that the commands read and write: structures, of any format of ASE, and pictures."""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat, string2index

from attncalc.files import refuse_existing, replacing, write_atomically
from attncalc.md.h5md_reader import read_h5md
from attncalc.md.log_file import NOVELTY, SPREAD
from attncalc.md.velocities import holding
from attncalc.model_file import shipped_models
from attncalc.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# names of labels in lower case, with and without prefix or suffix, but no initial charges of atoms,
# and no weights and masks that other programs read
_LABEL = re.compile(
    r"(?!.*[_.](weights?|mask)$)"
    r"(.*[_.])?(energ(y|ies)|forces?|gradients?|stress|virials?|dipoles?|hirsh(feld)?_ratios)"
    r"([_.].*)?"
    r"|(atomic|partial|mbis|mulliken|hirshfeld)_charges|charges|charge_mbis"
)
# what a file states of its labels, in `Atoms.info`
_OF_LABELS = ("units", "level_of_theory")
# of a frame of a run, or of a relaxation, in `Atoms.info`
OF_FRAMES = ("step", "time_fs", NOVELTY, SPREAD, "pressure_GPa", "broken_bonds")
# names of velocities in other programs' files, in lower case; ASE has momenta
_VELOCITIES = ("vel", "velo", "velocity", "velocities")


def refuse_input(target: Path, source: Path) -> None:
    """Refuse to replace the file that is read.

    Raises:
        ValueError: both are the same file.
    """
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the input: name another output with -o")


def existing_file(path: str) -> Path:
    """Return the path of a file that exists; checked before outputs are named after it.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError, ValueError: it is a folder, or a pipe, which cannot be read twice.
    """
    if path and (Path(path).is_fifo() or Path(path).is_char_device()):
        raise ValueError(f"{path} is a pipe or device: write its content to a file first")
    if path and Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path or repr(path)}")
    return Path(path)


def require_angstrom(path: str | Path) -> None:
    """Refuse an extended XYZ file whose first structure states another unit of lengths than Å.

    Data sets with such a unit are converted when they are read to train on; structures are not.

    Raises:
        ValueError: positions are in another unit.
    """
    from ase.io.extxyz import key_val_str_to_dict

    from attncalc.data.extxyz import delimited
    from attncalc.data.units import named_units, parse_entry, size_of

    if Path(path).suffix not in (".xyz", ".extxyz"):
        return
    try:
        with open(path, encoding="utf-8") as file:
            comment = next(delimited(file))[1]  # its atoms, which may be many, are not parsed
        stored = parse_entry(key_val_str_to_dict(comment)["units"])
        unit = stored[named_units(stored)["length"]]
        in_angstrom = size_of("length", unit, "")
    except Exception:  # none, or no units that we know; ASE's parser raises errors of any kind
        return
    if abs(in_angstrom - 1) > 1e-9:
        raise ValueError(f"{path} states that its positions are in {unit}: convert them to Å")


def is_folder_of_run(name: str) -> bool:
    """Return True for a folder, unless a shipped model has this name: ./NAME is the folder then."""
    return name not in shipped_models() and Path(name).is_dir()


def from_anywhere(name: str) -> str:
    """Return the absolute path of a file or folder, for processes elsewhere; else the name."""
    path = Path(name)
    return str(path.absolute()) if path.is_file() or is_folder_of_run(name) else name


def read_structures(path: str, index: str = ":") -> list[Atoms]:
    """Read structures; of an .h5md of several systems, those of all systems, one after the other.

    Labels, and what a run has noted of its frames, are left out: they do not apply to what is made
    of them.

    Args:
        path: the file.
        index: as ASE reads it; "-1": the last structure, of an .h5md the last of every system.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no structures, cannot be read, or has positions in another unit than Å.
    """
    existing_file(path)
    try:
        if Path(path).suffix in (".xyz", ".extxyz"):  # ASE's reader may never end
            from attncalc.data.extxyz import read_frames

            frames = read_frames(Path(path), _slice(index))
        elif Path(path).suffix == ".h5md":
            frames = read_h5md(path, _slice(index), system=None)
        else:
            found = read(path, index, do_not_split_by_at_sign=True)  # else "a@2.cif" is file "a"
            frames = found if isinstance(found, list) else [found]
    except Exception as error:  # ASE's readers raise errors of any kind
        remark = one_line(error)
        raise ValueError(f"{path}: not a structure file that ASE can read ({remark})") from None
    if not frames:
        raise ValueError(
            f"{path}: not a structure file that ASE can read (it contains no structures)"
        )
    require_angstrom(path)
    for atoms in frames:
        forget_results(atoms)
    return frames


def forget_results(atoms: Atoms) -> None:
    """Remove what applies to these positions only, in place.

    That is what a run has noted of a frame (step, time, novelty, spread, pressure), and labels such
    as "REF_energy", "dft_forces" or "mbis_charges", with their units and level of theory.
    """
    for kept in (atoms.info, atoms.arrays):
        for name in [name for name in kept if _applies_to_positions(name)]:
            del kept[name]


def remove_other_velocities(atoms: Atoms) -> str:
    """Remove velocities that ASE does not know as such, in place, and return their name, or ""."""
    names = [name for name in atoms.arrays if name.lower() in _VELOCITIES]
    for name in names:
        del atoms.arrays[name]
    return names[0] if names else ""


def _applies_to_positions(name: object) -> bool:
    if not isinstance(name, str):  # keys of `Atoms.info` may be numbers
        return False
    return name in (*OF_FRAMES, *_OF_LABELS) or _LABEL.fullmatch(name.lower()) is not None


def _slice(index: str) -> slice:
    wanted = slice(-1, None) if index == "-1" else string2index(index)
    assert isinstance(wanted, slice)
    return wanted


def new_file(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return an output path that is writable and, unless `overwrite`, does not exist.

    Raises:
        FileExistsError: the file exists.
        FileNotFoundError, PermissionError: its folder cannot be written to.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    elif path.exists() and not path.is_file():
        raise FileExistsError(f"{path} exists and is not a file: choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write to {path.parent.resolve()}")
    return path


def new_structure_file(path: str | Path) -> Path:
    path = new_file(path, overwrite=True)
    try:
        known = get_ioformat(filetype(str(path), read=False))
    except UnknownFileTypeError:
        known = None
    if known is None or not known.can_write:
        raise ValueError(
            f"{path.name}: ASE cannot write structures to files of this type; use .xyz"
        )
    # ASE would write POSCAR.png as a POSCAR, and the picture of the same name would replace it
    if not known.can_read or path.suffix.lower() == ".png":
        raise ValueError(
            f"{path.name}: structures cannot be read back from a file of this type; use .xyz or "
            ".extxyz"
        )
    return path


def require_room(path: Path, n_structures: int) -> None:
    if n_structures > 1 and get_ioformat(filetype(str(path), read=False)).single:
        raise ValueError(
            f"{path.name}: a file of this format holds one structure, got {n_structures}; use .xyz"
        )


def require_writable(path: Path, frames: list[Atoms]) -> str:
    """Refuse structures that ASE cannot write to this file with results; called before the work.

    Returns:
        A warning of constraints that a file of this type does not keep, or "".
    """
    from attncalc.data.extxyz import read_frames

    trial = []
    for atoms in frames:
        n = len(atoms)
        # all results of the calculator: some writers fail only if there is a free energy
        results = {"energies": np.zeros(n), "forces": np.zeros((n, 3))}
        if atoms.cell.rank == 3:
            results["stress"] = np.zeros(6)
        trial.append(atoms.copy())
        trial[-1].calc = SinglePointCalculator(trial[-1], energy=0.0, free_energy=0.0, **results)
    is_xyz = path.suffix in (".xyz", ".extxyz")
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / path.name, trial)
            if is_xyz:  # a line break in `info` breaks the file, which ASE does not notice
                read_frames(Path(folder) / path.name)
            lost = _lost_constraints(Path(folder) / path.name, trial)
    except Exception as error:  # ASE's writers raise errors of any kind
        if isinstance(error, OSError) and error.errno is not None:  # from the disk, not the format
            raise
        what = "this structure" if len(frames) == 1 else "these structures"
        raise ValueError(
            f"{path.name}: ASE cannot write {what} as {path.suffix or path.name} "
            f"({one_line(error)}); use {'.traj' if is_xyz else '.xyz'}"
        ) from None
    if not lost:
        return ""
    return f"{path.name} will not keep {', '.join(lost)}: files of this type have none; use .traj"


def _lost_constraints(path: Path, frames: list[Atoms]) -> list[str]:
    """Return kinds of constraints that are not in a file to which the structures were written."""
    if not any(holding(atoms) for atoms in frames):
        return []
    try:
        back = read(path, ":", do_not_split_by_at_sign=True)
    except Exception:  # ASE's readers raise errors of any kind
        return ["constraints"]
    lost: set[str] = set()
    for before, after in zip(frames, back, strict=True):
        # a file may keep the same under another name: FixAtoms as FixScaled, say
        if _strength(after) < _strength(before):
            kept = {type(one).__name__ for one in after.constraints}
            lost |= {type(one).__name__ for one in holding(before)} - kept or {"constraints"}
    return sorted(lost)


def _strength(atoms: Atoms) -> tuple[int, int]:
    """Return removed degrees of freedom, and the number of constraints that remove none."""
    removed = []
    for one in holding(atoms):
        try:
            removed.append(one.get_removed_dof(atoms))
        except NotImplementedError:  # of FixSymmetry, for instance
            removed.append(0)
    return sum(removed), removed.count(0)


def write_structures(path: Path, frames: list[Atoms]) -> None:
    """Write structures to a file atomically."""
    with replacing(path, in_folder=True) as new:  # ASE chooses the format by the name
        write(new, frames)


def save_picture(figure: Figure, path: Path) -> None:
    """Save a picture atomically, in the format given by the file's extension."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix("."))
    write_atomically(path, content.getvalue())
