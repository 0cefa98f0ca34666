"""`BatchEvaluator`: evaluation of batches that another program keeps and changes in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from attncalc.evaluator import Evaluator
from attncalc.model_file import load
from attncalc.neighbors.search import complete_cell
from attncalc.plugins.novelty_monitor import NoveltyMonitor
from attncalc.potential import Potential
from attncalc.result import SMALLEST_VOLUME, volumes
from attncalc.system import System


class BatchEvaluator:
    """Energy, forces and stress of the structures of a batch, in eV, Å and ASE's signs.

    Args:
        model: name of a shipped model, path of a model file, or a `Potential`, which is copied.
        device: device of a model that is loaded (errors: see `attncalc.load`) and of all batches.

    Attributes:
        device: device of the potential.
        evaluator: evaluator of the potential.
    """

    def __init__(self, model: str | Path | Potential, device: str | torch.device = "auto") -> None:
        potential = model if isinstance(model, Potential) else load(model, device=device)
        self.device = potential.device
        self.evaluator, self._monitor = Evaluator(potential), NoveltyMonitor()
        self._last: System | None = None

    def __call__(
        self,
        *,
        positions: Tensor,
        atomic_numbers: Tensor,
        cell: Tensor,
        pbc: Tensor,
        system_idx: Tensor,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `energy` [n_systems], `forces` [n_atoms, 3] and `stress` [n_systems, 3, 3].

        The stress of a structure without three cell vectors is zero.

        Args:
            positions: [n_atoms, 3] Å.
            atomic_numbers: [n_atoms].
            cell: [n_systems, 3, 3] Å, rows are the cell vectors.
            pbc: [3] or [n_systems, 3], bool.
            system_idx: [n_atoms], index of the structure of each atom, ascending.
            charge: [n_systems], total charges, e; None is 0.
            spin: [n_systems], multiplicities 2S+1; None is the lowest.

        Raises:
            ValueError: a structure is impossible or not known to the model.
        """
        numbers, n_systems = atomic_numbers.long(), cell.shape[0]
        electrons = numbers.new_zeros(n_systems).index_add(0, system_idx.long(), numbers)
        charge = torch.zeros_like(electrons) if charge is None else charge
        spin = 1 + (electrons - charge.long()) % 2 if spin is None else spin
        system = self._known(
            System(
                # a copy, as in `_known`: batches are changed in place, and the next call compares
                # with the old values
                positions=positions.detach().to(torch.float64, copy=True),
                atomic_numbers=numbers,
                cell=cell.detach().to(torch.float64).contiguous(),
                pbc=pbc.expand(n_systems, 3).contiguous(),
                system_idx=system_idx.long(),
                charge=charge.to(torch.float64),
                spin=spin.long(),
            )
        )
        result = self.evaluator(system)
        self._monitor(system, result)
        volume = volumes(system)[:, None, None]
        stress = result.strain_gradient / volume.clamp(min=SMALLEST_VOLUME)
        return {
            "energy": result.energy,
            "forces": result.forces,
            "stress": torch.where(volume > SMALLEST_VOLUME, stress, 0.0),
        }

    def _known(self, system: System) -> System:
        """Return the system as a continuation of the last batch, or checked if it is another."""
        last = self._last
        kept = ("atomic_numbers", "pbc", "system_idx", "charge", "spin")
        if last is not None and all(_same(getattr(last, n), getattr(system, n)) for n in kept):
            same = {name: getattr(last, name) for name in kept}
            same["cell"] = last.cell if _same(last.cell, system.cell) else system.cell.clone()
            system = _continued(replace(system, **same), last)
        else:
            self.evaluator.take(System.from_ase(system.to_ase()))  # checks a copy
            own = {name: getattr(system, name).clone() for name in (*kept, "cell")}
            system = replace(system, **own)
        self._last = system
        return system


def _continued(system: System, last: System) -> System:
    """Return the system with atoms in the periodic images nearest to their last positions.

    Other programs wrap atoms into the cell, and every crossing of a boundary would require a new
    neighbour list. Energy, forces and stress do not depend on the image.
    """
    if not system.pbc.any():
        return system
    cells = complete_cell(system)
    moved, inverse = system.positions - last.positions, torch.linalg.inv_ex(cells).inverse
    of_cells = torch.einsum("nk,nkc->nc", moved, inverse[system.system_idx])
    # numbers that are not finite, now or in the last system, are refused elsewhere
    shifts = (of_cells.round() * system.pbc[system.system_idx]).nan_to_num(0.0, 0.0, 0.0)
    if not shifts.any():
        return system
    wrapped = torch.einsum("nk,nkc->nc", shifts, cells[system.system_idx])
    return system.with_positions(system.positions - wrapped)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
