"""TorchSim: a model as its `ModelInterface`, for batches of structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attncalc.plugins.batch_evaluator import BatchEvaluator
from attncalc.potential import Potential

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError:
    raise ImportError('needs TorchSim: pip install "attncalc[torchsim]"') from None


class TorchSimModel(ModelInterface):
    """Energy, forces and stress of the structures of a state, in eV, Å and ASE's signs.

    Total charge and multiplicity 2S+1 are read from `charge` and `spin` [n_systems] of the state;
    the defaults are 0 and the lowest. The stress of a structure without three cell vectors is zero,
    because optimizers request a stress.

    Args:
        model: name of a shipped model, path of a model file, or a `Potential`, which is copied.
        device: "auto", "cpu", "cuda" ...; states must be on this device.
        dtype: dtype of the results; the network computes in its own.

    Raises:
        FileNotFoundError, ValueError: there is no such model or device, or the file is damaged, see
            `attncalc.load`.
    """

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        # not registered as a submodule: `to` and `parameters` must not reach the model's
        self._batches = BatchEvaluator(model, device)
        self._device, self._dtype = self._batches.device, dtype
        self._compute_forces = self._compute_stress = True
        self._memory_scales_with = "n_atoms_x_density"

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Return `energy` [n_systems], `forces` [n_atoms, 3] and `stress` [n_systems, 3, 3].

        Args:
            state: state of TorchSim, with cell vectors as columns, or a dictionary of its fields.

        Raises:
            ValueError: a structure is impossible or not known to the model.
        """
        state = SimState(**state) if isinstance(state, dict) else state
        found = self._batches(
            positions=state.positions,
            atomic_numbers=state.atomic_numbers,
            cell=state.row_vector_cell,
            pbc=torch.as_tensor(state.pbc, device=self._device),
            system_idx=state.system_idx,
            charge=self._of_systems(state, "charge"),
            spin=self._of_systems(state, "spin"),
        )
        return {name: values.to(self._device, self._dtype) for name, values in found.items()}

    def _of_systems(self, state: SimState, name: str) -> Tensor | None:
        """Return a number [n_systems] per structure; None if the state has none."""
        values = getattr(state, name, None)
        return None if values is None else torch.as_tensor(values, device=self._device)
