"""TorchSim: a model as its `ModelInterface`, for batches of structures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attncalc.evaluator import Evaluator
from attncalc.model_file import load
from attncalc.neighbors.search import complete_cell
from attncalc.potential import Potential
from attncalc.result import SMALLEST_VOLUME, volumes
from attncalc.system import System

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError:
    raise ImportError('needs TorchSim: pip install "attncalc[torchsim]"') from None


class TorchSimModel(ModelInterface):
    """Energy, forces and stress of the structures of a state, in eV, Å and ASE's signs.

    Total charge and multiplicity 2S+1 are read from `charge` and `spin` [n_systems] of the state,
    where it has them; else they are 0 and the lowest. The stress of a structure without three cell
    vectors is zero, since optimizers ask for it.

    Args:
        model: name of a shipped model, path of a model file, or a `Potential`, which is copied.
        device: "auto", "cpu", "cuda" ...; where the states have to be.
        dtype: of what is returned; the network computes in its own.

    Raises:
        FileNotFoundError, ValueError: as `attncalc.load`.
    """

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        potential = model if isinstance(model, Potential) else load(model, device=device)
        # no Module is registered: `to` and `parameters` of this one must not reach the model's
        self._evaluator = Evaluator(potential)
        self._device, self._dtype = potential.device, dtype
        self._compute_forces = self._compute_stress = True
        self._memory_scales_with = "n_atoms_x_density"
        self._last: System | None = None

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Return `energy` [n_systems], `forces` [n_atoms, 3] and `stress` [n_systems, 3, 3].

        Args:
            state: of TorchSim, whose cells are columns, or what it is made of.

        Raises:
            ValueError: a structure is impossible or not known to the model.
        """
        state = SimState(**state) if isinstance(state, dict) else state
        system = self._system(state)
        result = self._evaluator(system)
        volume = volumes(system)[:, None, None]
        stress = result.strain_gradient / volume.clamp(min=SMALLEST_VOLUME)
        found = {
            "energy": result.energy,
            "forces": result.forces,
            "stress": torch.where(volume > SMALLEST_VOLUME, stress, 0.0),
        }
        return {name: values.to(self._device, self._dtype) for name, values in found.items()}

    def _system(self, state: SimState) -> System:
        """Converted; checked where the structures are others than those of the last call."""
        # a copy: states are changed in place, and the next call asks where atoms were
        positions = state.positions.detach().to(torch.float64, copy=True)
        cell = state.row_vector_cell.detach().to(torch.float64).contiguous()
        last, pbc = self._last, torch.as_tensor(state.pbc, device=self._device)
        numbers, n_systems = state.atomic_numbers.long(), cell.shape[0]
        electrons = numbers.new_zeros(n_systems).index_add(0, state.system_idx, numbers)
        charge = _of_systems(state, "charge", torch.zeros_like(electrons))
        spin = _of_systems(state, "spin", 1 + (electrons - charge.long()) % 2)
        system = System(
            positions=positions,
            atomic_numbers=numbers,
            cell=cell,
            pbc=pbc.expand(n_systems, 3).contiguous(),
            system_idx=state.system_idx,
            charge=charge.to(torch.float64),
            spin=spin.long(),
        )
        kept = ("atomic_numbers", "pbc", "system_idx", "charge", "spin")
        if last is not None and all(_same(getattr(last, n), getattr(system, n)) for n in kept):
            same = {name: getattr(last, name) for name in kept}
            system = replace(system, **same, cell=last.cell if _same(last.cell, cell) else cell)
            self._last = system = _continued(system, last)
            return system
        self._evaluator.take(System.from_ase(system.to_ase()))  # a copy, which is checked
        self._last = system
        return system


def _continued(system: System, last: System) -> System:
    """Return the system with atoms in those images that are nearest to where they were last.

    TorchSim wraps atoms into the cell, and whenever one crosses a boundary a list of neighbours
    would have to be made anew. Energy, forces and stress are those of any image.
    """
    if not system.pbc.any():
        return system
    cells = complete_cell(system)
    moved, inverse = system.positions - last.positions, torch.linalg.inv_ex(cells).inverse
    of_cells = torch.einsum("nk,nkc->nc", moved, inverse[system.system_idx])
    # what is impossible, now or the last time, is left for others to refuse
    shifts = (of_cells.round() * system.pbc[system.system_idx]).nan_to_num(0.0, 0.0, 0.0)
    if not shifts.any():
        return system
    wrapped = torch.einsum("nk,nkc->nc", shifts, cells[system.system_idx])
    return system.with_positions(system.positions - wrapped)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _of_systems(state: SimState, name: str, default: Tensor) -> Tensor:
    """[n_systems], a number of each structure, or what it is where the state has none."""
    values = getattr(state, name, None)
    return default if values is None else torch.as_tensor(values, device=default.device)
