"""Oracles, which label structures: a name on the command line selects one.

Oracles are model files, GFN2-xTB, and any ASE calculator that `module:callable` returns.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from attncalc.text import one_line

Floats = NDArray[np.float64]
GFN2 = "gfn2"
# iterations in which the charges of GFN2 must converge
SCC_ITERATIONS = 150
# electrons in fractional orbitals at 300 K above which a molecule is in no single state
MOST_FRACTIONAL = 0.05
# errors that may be due to a single structure: it is unknown, or too large for the memory
_OF_ONE = (ValueError, RuntimeError, MemoryError)
# eV/Å; structures with larger forces are not used for training
LARGEST_FORCE = 25.0
# electrons that a calculator assumes by default
_DEFAULTS = {"charge": 0, "multiplicity": 1}


@dataclass(frozen=True)
class Labels:
    """Labels of one structure.

    Attributes:
        energy: eV.
        forces: [n_atoms, 3] eV/Å.
        charges: [n_atoms] e, or None.
        hirshfeld_ratios: [n_atoms], see `attncalc.graph.AtomOutputs`, or None.
        dipole: [3] e Å, at the structure's coordinates, or None.
        stress: [6] eV/Å³, in ASE's sign and order, for periodic structures with a volume, or None.
        is_outside: True if the oracle is a model and the structure is outside its training data.
    """

    energy: float
    forces: Floats
    charges: Floats | None = None
    hirshfeld_ratios: Floats | None = None
    dipole: Floats | None = None
    stress: Floats | None = None
    is_outside: bool = False

    @property
    def arrays(self) -> dict[str, Floats]:
        """Labels that are not None, by name, including the energy."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        del found["is_outside"]
        return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}

    @property
    def are_finite(self) -> bool:
        """Return True if all labels are finite numbers."""
        return all(np.isfinite(array).all() for array in self.arrays.values())


class Oracle(Protocol):
    """Teacher: structures in, labels out.

    Attributes:
        teacher: name and version, or name and checksum.
        level_of_theory: level of theory of its labels.
        device: kind of device of a model, "cpu" or "cuda"; "" for other oracles.
        caution: warning for users before a long run, one sentence, or "".
    """

    teacher: str
    level_of_theory: str
    device: str
    caution: str

    def label(self, structures: Sequence[Atoms]) -> list[Labels | str]:
        """Return the labels of each structure, or the reason why it has none.

        Total charge and multiplicity are in `info["charge"]` and `info["spin"]`.
        """


def load_oracle(name: str, folder: str | None = None) -> Oracle:
    """Return the oracle with a given name.

    Args:
        name: "gfn2", name or path of a model, or "module:callable", see `CalculatorOracle`;
            modules are searched in the working directory too.
        folder: folder in which modules are searched instead of the working directory.

    Raises:
        ImportError: a package or the module is missing.
        OSError, ValueError: there is no such model, or it is damaged.
        ValueError: there is no callable, it needs other arguments, or it returns no calculator.
    """
    if name == GFN2:
        return GFN2Oracle()
    module, colon, attribute = name.partition(":")
    if colon and not Path(name).exists() and module.replace(".", "").isidentifier():
        return CalculatorOracle(module, attribute, folder)
    try:
        return ModelOracle(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; other oracles: {GFN2} and MODULE:CALLABLE") from None


class GFN2Oracle:
    """GFN2-xTB (Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652, 2019) by tblite.

    Raises:
        ImportError: tblite is not installed.
    """

    level_of_theory = "GFN2-xTB"
    device = caution = ""

    def __init__(self) -> None:
        try:
            from tblite.interface import Calculator
        except ImportError:
            raise ImportError('--oracle gfn2 needs tblite: pip install "attncalc[xtb]"') from None
        from importlib.metadata import version

        self._calculator = Calculator
        self.teacher = f"GFN2-xTB, tblite {version('tblite')}"

    def label(self, structures: Sequence[Atoms]) -> list[Labels | str]:
        """Return labels, or reasons: charges not converged, or electrons in fractional orbitals."""
        return [self._label(atoms) for atoms in structures]

    def _label(self, atoms: Atoms) -> Labels | str:
        if atoms.pbc.any():  # the cell is not passed to tblite
            return "periodic structure: gfn2 labels molecules"
        try:
            calculator = self._calculator(
                "GFN2-xTB",
                atoms.numbers,
                atoms.positions / units.Bohr,
                charge=atoms.info["charge"],
                uhf=atoms.info["spin"] - 1,
            )
            calculator.set("verbosity", 0)
            calculator.set("max-iter", SCC_ITERATIONS)
            result = calculator.singlepoint()
        except Exception as error:  # tblite's own kinds, for charges and for matrices
            is_usual = "converge" in str(error).lower()
            return "SCC not converged" if is_usual else one_line(error, longest=60)
        if _are_fractional(np.asarray(result.get("orbital-occupations")), atoms.info["spin"] - 1):
            return "electrons in fractional orbitals"
        return Labels(
            energy=float(result.get("energy")) * units.Hartree,
            forces=-np.asarray(result.get("gradient")) * (units.Hartree / units.Bohr),
            charges=np.asarray(result.get("charges")),
            dipole=np.asarray(result.get("dipole")) * units.Bohr,
        )


def _are_fractional(occupations: Floats, unpaired: int) -> bool:
    """Return True if orbitals do not hold whole electrons, or others are unpaired than asked for.

    Args:
        occupations: two rows, one per spin, or one row for both.
        unpaired: number of unpaired electrons.
    """
    whole = np.rint(occupations)
    if np.abs(occupations - whole).sum() > MOST_FRACTIONAL:
        return True
    return occupations.ndim == 1 and int((whole == 1).sum()) != unpaired


class ModelOracle:
    """Model of attncalc, which evaluates structures in batches.

    Args:
        name: name of a shipped model, or path of a model file.

    Raises:
        OSError, ValueError: there is no such model, or it is damaged, see `attncalc.load`.
    """

    caution = ""

    def __init__(self, name: str) -> None:
        # imported here: torch takes seconds, and the other oracles do not need it
        from attncalc.evaluator import Evaluator
        from attncalc.model_file import load, model_name

        potential = load(name)
        self._evaluator = Evaluator(potential)
        self.device = potential.device.type
        self.teacher = f"{model_name(name)}, SHA-256 {potential.checksum}"
        self.level_of_theory = str(potential.training_info.get("level_of_theory") or "unknown")

    def label(self, structures: Sequence[Atoms]) -> list[Labels | str]:
        """Return labels, or the reason why the model refuses: an unknown element or charge."""
        from attncalc.system import System

        # this depends only on elements, electrons and periodicity: frames of a molecule are alike
        keys = [
            (atoms.numbers.tobytes(), atoms.info["charge"], atoms.info["spin"], *atoms.pbc)
            for atoms in structures
        ]
        refused: dict[Any, str] = {}
        for key, atoms in dict(zip(keys, structures, strict=True)).items():
            try:
                system = System.from_ase(atoms)
            except ValueError:
                continue  # of this structure alone: `_label` says why
            try:
                self._evaluator.check(system)
            except ValueError as error:
                refused[key] = _reason(error)
        known = [atoms for key, atoms in zip(keys, structures, strict=True) if key not in refused]
        try:
            found: Iterator[Labels | str] = iter(self._labels(known))
        except _OF_ONE:  # due to one structure, which is not known
            found = iter([self._label(atoms) for atoms in known])
        return [refused[key] if key in refused else next(found) for key in keys]

    def _label(self, atoms: Atoms) -> Labels | str:
        try:
            return self._labels([atoms])[0]
        except _OF_ONE as error:
            return _reason(error)

    def _labels(self, structures: Sequence[Atoms]) -> list[Labels]:
        from attncalc.novelty import OUTSIDE

        found: list[Labels] = []
        for system, result in self._evaluator.many(structures):
            bounds = system.first_atoms[1:].cpu().numpy()
            forces = np.split(result.forces.cpu().numpy(), bounds)
            charges = _split(result.charges, bounds)
            ratios = _split(result.hirshfeld_ratios, bounds)
            novelty = None if result.novelty is None else np.split(result.novelty, bounds)
            strain_gradient = result.strain_gradient.cpu().numpy()
            for k, energy in enumerate(result.energy.tolist()):
                atoms = structures[len(found)]
                q = None if charges is None else charges[k]
                dipole = None if q is None or atoms.pbc.any() else q @ atoms.positions
                of_ratios = None if ratios is None else ratios[k]
                stress = None
                if atoms.pbc.any() and atoms.cell.rank == 3:
                    stress = full_3x3_to_voigt_6_stress(strain_gradient[k] / atoms.get_volume())
                outside = novelty is not None and bool((novelty[k] > OUTSIDE).any())
                found.append(Labels(energy, forces[k], q, of_ratios, dipole, stress, outside))
        return found


def _reason(error: Exception) -> str:
    """Return the beginning of a message, without numbers and advice, so that it can be counted."""
    if isinstance(error, MemoryError) or "alloc" in str(error):
        return "not enough memory"
    return one_line(re.split(r"[:;] ", str(error).removeprefix("structure 0: "))[0])


def _split(values: Any, bounds: Any) -> list[Floats] | None:
    return None if values is None else np.split(values.cpu().numpy().astype(np.float64), bounds)


class CalculatorOracle:
    """Any ASE calculator, which a callable makes for a total charge and a multiplicity.

    Constraints of a structure do not affect its labels: forces are those of the calculator. If it
    has a `free_energy`, as with smeared occupations, that is the energy, since forces are its
    derivatives.

    ASE has no single place from which calculators read the total charge, and most do not read
    `atoms.info`. Therefore the callable is called once per charge and multiplicity, with the
    arguments `charge` and `multiplicity`. If it does not have these parameters, structures other
    than neutral closed shells are refused.

    Args:
        module: dotted name of the module.
        attribute: name of the callable in the module.
        folder: folder that is searched first for the module; None for the working directory.

    Raises:
        ImportError: the module is not found, or has no such name.
        ValueError: the name is not callable, needs other arguments, returns no calculator, or there
            is an error in the module.
    """

    device = ""

    def __init__(self, module: str, attribute: str, folder: str | None = None) -> None:
        name = f"{module}:{attribute}"
        self._calculators: dict[tuple[int, ...], Any] = {}
        folder = folder or os.getcwd()  # a command installed by pip does not look for modules here
        sys.path.insert(0, folder)
        try:
            found = importlib.import_module(module)
            self._make: Callable[..., Any] = getattr(found, attribute)
            self._settable = _settable(self._make)
            neutral = self._calculator(_DEFAULTS)
        except (AttributeError, ImportError) as error:
            raise ImportError(f"--oracle {name}: {error}") from None
        except TypeError as error:  # not callable, or other arguments are needed
            raise ValueError(f"--oracle {name}: {error}") from None
        except Exception as error:  # of the module or the callable, of any kind
            raise ValueError(f"--oracle {name}: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(folder)
        if not hasattr(neutral, "calculate"):
            raise ValueError(f"--oracle {name} must return an ASE calculator")
        self.level_of_theory = name
        # after an edit of the module it counts as another oracle
        source = getattr(found, "__file__", None)
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else "unknown"
        self.teacher = f"{name}, SHA-256 of the module {digest}"
        self.caution = (
            ""
            if "charge" in self._settable
            else f"{name} has no parameter `charge`: charged structures will be refused"
        )

    def label(self, structures: Sequence[Atoms]) -> list[Labels | str]:
        """Return labels, or a reason: a charge that cannot be passed on, or the kind of error."""
        return [self._label(atoms.copy()) for atoms in structures]

    def _label(self, atoms: Atoms) -> Labels | str:
        electrons = {"charge": atoms.info["charge"], "multiplicity": atoms.info["spin"]}
        for name, value in electrons.items():
            if value != _DEFAULTS[name] and name not in self._settable:
                return f"{name} not told to the calculator"
        try:
            atoms.set_constraint()  # otherwise forces on fixed atoms would be zero
            atoms.calc = self._calculator(electrons)
            # labels must not depend on the structure before, whose density may be the first guess
            if hasattr(atoms.calc, "reset"):
                atoms.calc.reset()
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            if atoms.pbc.any() and atoms.cell.rank == 3:
                with suppress(NotImplementedError):
                    atoms.get_stress()  # adds it to the results
            return _labels_of(atoms, float(np.asarray(energy).item()), forces)
        # calculators raise errors of any kind, end the process, and return anything
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {one_line(error, longest=60)}"

    def _calculator(self, electrons: Mapping[str, int]) -> Any:
        """Return the calculator for a charge and a multiplicity, made when it is first needed."""
        told = {name: electrons[name] for name in self._settable}
        key = tuple(told.values())
        if key not in self._calculators:
            self._calculators[key] = self._make(**told)
        return self._calculators[key]


def _labels_of(atoms: Atoms, energy: float, forces: Any) -> Labels:
    """Return copies: a calculator may write its next results into the same arrays."""
    results = atoms.calc.results
    free = results.get("free_energy")
    if isinstance(free, float | np.floating) and np.isfinite(energy) and np.isfinite(free):
        energy = float(free)  # forces derive from it
    names = ("charges", "stress") if atoms.pbc.any() else ("charges", "dipole")
    others: dict[str, Any] = {
        name: np.array(value, dtype=np.float64)
        for name in names
        if (value := results.get(name)) is not None
    }
    forces = np.array(forces, dtype=np.float64)
    if forces.shape != (len(atoms), 3):
        raise ValueError(f"forces have shape {list(forces.shape)}, not [{len(atoms)}, 3]")
    return Labels(energy, forces, **others)


def _settable(make: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of charge and multiplicity are parameters of a callable, `**kwargs` excluded."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(make).parameters
    return tuple(k for k in _DEFAULTS if k in parameters and parameters[k].kind in by_name)
