"""i-PI: a driver that evaluates all beads of a step in one batch.

The file is not called `ipi.py` because i-PI imports a driver by the name of its file, which would
hide i-PI itself.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.io import read
from numpy.typing import NDArray

from attncalc.evaluator import Evaluator
from attncalc.model_file import load
from attncalc.plugins.novelty_monitor import NoveltyMonitor
from attncalc.system import System
from attncalc.text import one_line

__DRIVER_NAME__, __DRIVER_CLASS__ = "attncalc", "Driver"

# energy, forces [n_atoms, 3], virial [3, 3] and a text, in atomic units
Found = tuple[float, NDArray[np.float64], NDArray[np.float64], str]


class Driver:
    """Energy, forces and virial, in atomic units, of one structure or of several in a batch.

    It is created by i-PI from the element `parameters` of its input, or by `i-pi-py_driver -o`.

    Args:
        model: name of a shipped model, or path of a model file.
        template: structure file that ASE can read. It gives elements, periodic directions and,
            optionally, `charge` and `spin`; its positions are not used.
        device: device, see `attncalc.load`.
        verbosity, verbose: passed by i-PI and ignored; nothing is printed.

    Raises:
        FileNotFoundError, ValueError: there is no such file or device, or the model does not know
            the template; see `attncalc.load` and `attncalc.Evaluator.check`.
        TypeError: there is another parameter.
    """

    def __init__(
        self,
        model: str,
        template: str,
        device: str = "auto",
        verbosity: Any = None,
        verbose: bool = False,
        **others: Any,
    ) -> None:
        try:
            if others:
                raise TypeError(
                    f"parameters are model, template and device, got {', '.join(sorted(others))}"
                )
            found = read(template, do_not_split_by_at_sign=True)
            self.atoms: Atoms = found if isinstance(found, Atoms) else found[-1]
            self.evaluator, self._monitor = Evaluator(load(model, device=device)), NoveltyMonitor()
            self._system = self._copies(1)
        except Exception as error:
            if _is_program_of_ipi():
                _end(error)
            raise

    def __call__(self, cell: Any, pos: Any) -> Any:
        """Evaluate one structure, or several in one batch.

        Args:
            cell: [3, 3] Bohr, whose columns are the cell vectors, or a list of such.
            pos: [n_atoms, 3] Bohr, or a list of such.

        Returns:
            Energy, Hartree; forces [n_atoms, 3], Hartree / Bohr; virial [3, 3], -dE / d strain,
            Hartree; and an empty text. For lists, a list of these.

        Raises:
            ValueError: the number of atoms is not that of the template, or a structure is
                impossible, see `attncalc.Evaluator`.
        """
        try:
            if isinstance(cell, list | tuple):
                return self._evaluate(cell, pos)
            return self._evaluate([cell], [pos])[0]
        except Exception as error:
            # in a thread of i-PI the error would be lost, and i-PI would wait forever
            if _is_program_of_ipi() or threading.current_thread() is not threading.main_thread():
                _end(error)
            raise

    def _copies(self, n: int) -> System:
        """Return a batch of n copies of the template."""
        return self.evaluator.take(System.from_ase([self.atoms] * n))

    def _evaluate(self, cells: Sequence[Any], positions: Sequence[Any]) -> list[Found]:
        n, m = len(positions), len(self.atoms)
        if self._system.n_systems != n:
            self._system = self._copies(n)
        now = np.stack([np.asarray(x, dtype=np.float64).reshape(-1, 3) for x in positions])
        if now.shape[1] != m:
            raise ValueError(f"the template has {m} atoms, i-PI sends {now.shape[1]}")
        device = self.evaluator.device
        system = self._system.with_positions(
            torch.from_numpy(now.reshape(-1, 3) * units.Bohr).to(device)
        )
        if self.atoms.pbc.any():
            rows = np.stack([np.reshape(h, (3, 3)).T for h in cells]) * units.Bohr
            system = replace(system, cell=torch.from_numpy(rows).to(device))
        result = self.evaluator(system)
        self._monitor(system, result)
        energy, _, forces, strain_gradient, *_ = result.arrays
        forces = (forces * (units.Bohr / units.Hartree)).reshape(n, m, 3)
        virial = -strain_gradient / units.Hartree
        return [(float(energy[k]) / units.Hartree, forces[k], virial[k], "") for k in range(n)]


def _is_program_of_ipi() -> bool:
    """Return True in i-PI and in its client, which would print a traceback of many lines."""
    return Path(sys.argv[0]).name in ("i-pi", "i-pi-py_driver")


def _end(error: Exception) -> None:
    """Print one line and end this process; i-PI's last restart file is kept."""
    print(f"Error: attncalc: {one_line(error, longest=1000)}", file=sys.stderr, flush=True)
    os._exit(1)
