"""NVIDIA ALCHEMI Toolkit: a model as its `BaseModelMixin`, for its batched dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor, nn

from attncalc.plugins.batch_evaluator import BatchEvaluator
from attncalc.potential import Potential
from attncalc.system import System

try:
    from nvalchemi.data import AtomicData, Batch
    from nvalchemi.models.base import BaseModelMixin, ModelConfig
except ImportError:
    raise ImportError('needs nvalchemi-toolkit: pip install "attncalc[alchemi]"') from None


class AlchemiModel(nn.Module, BaseModelMixin):
    """Energy, forces and stress of the structures of a batch, in eV, Å and ASE's signs.

    Neighbour lists are built here; batches need none. Forces are not computed by autograd, so this
    model cannot be part of `PipelineGroup(use_autograd=True)`, but of `model + other`. The stress
    of a structure without three cell vectors is zero.

    Args:
        model: name of a shipped model, path of a model file, or a `Potential`, which is copied.
        device: "auto", "cpu", "cuda" ...; batches must be on this device.

    Raises:
        FileNotFoundError, ValueError: there is no such model or device, or the file is damaged, see
            `attncalc.load`.

    Attributes:
        model_config: inputs and outputs of the model, for ALCHEMI.
    """

    def __init__(
        self, model: str | Path | Potential, *, device: str | torch.device = "auto"
    ) -> None:
        super().__init__()
        # not registered as a submodule: `to` and `parameters` must not reach the model's
        self._batches = BatchEvaluator(model, device)
        self.model_config = ModelConfig(
            outputs=frozenset({"energy", "forces", "stress"}),
            optional_inputs=frozenset({"cell", "pbc", "charge", "spin"}),
            supports_pbc=True,
        )

    @property
    def device(self) -> torch.device:
        """Device of the potential."""
        return self._batches.device

    @property
    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {}: no embeddings are available."""
        return {}

    def compute_embeddings(self, data: AtomicData | Batch, **_: Any) -> AtomicData | Batch:
        """Refuse to add embeddings to a batch.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("attncalc hands out no embeddings")

    def forward(self, data: AtomicData | Batch, **_: Any) -> dict[str, Tensor | None]:
        """Return `energy` [n_systems, 1], `forces` [n_atoms, 3] and `stress` [n_systems, 3, 3].

        They have the dtype of the positions; those not in `model_config.active_outputs` are left
        out. Without `pbc`, no direction is periodic. `charge` and `spin` (2S+1) are [n_systems, 1];
        their defaults are 0 and the lowest.

        Raises:
            ValueError: a structure is impossible or not known to the model.
        """
        batch = data if isinstance(data, Batch) else Batch.from_data_list([data])
        given = BaseModelMixin.adapt_input(self, batch)
        n, positions = batch.num_graphs, given["positions"]
        charge, spin = given.get("charge"), given.get("spin")
        found = self._batches(
            positions=positions,
            atomic_numbers=given["atomic_numbers"],
            cell=given.get("cell", positions.new_zeros(n, 3, 3)),
            pbc=given.get("pbc", positions.new_zeros(n, 3, dtype=torch.bool)),
            system_idx=batch.batch_idx,
            charge=None if charge is None else charge.view(n),
            spin=None if spin is None else spin.view(n),
        )
        found = {name: values.to(positions) for name, values in found.items()}
        return BaseModelMixin.adapt_output(self, found, batch)


def to_batch(
    structures: Sequence[Atoms],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Return structures as a batch with room for results, ready for integrators and optimizers.

    `Batch.from_data_list` keeps only the fields of the first structure: if that has no cell, later
    crystals lose theirs. Here all structures have a cell, which is zero for molecules. Charge and
    spin are read from `atoms.info`, velocities from the momenta.

    Args:
        structures: molecules and crystals.
        device: device of the batch.
        dtype: dtype of its positions and results.

    Raises:
        ValueError: a structure is impossible, see `System.from_ase`.
    """
    system = System.from_ase(list(structures)).to(device)
    data = []
    for k, (atoms, positions) in enumerate(
        zip(structures, system.split(system.positions.to(dtype)), strict=True)
    ):
        masses, velocities = atoms.get_masses(), atoms.get_velocities()
        data.append(
            AtomicData(
                positions=positions,
                atomic_numbers=torch.as_tensor(atoms.numbers, device=device),
                atomic_masses=torch.as_tensor(masses, dtype=dtype, device=device),
                velocities=torch.as_tensor(velocities, dtype=dtype, device=device),
                forces=torch.zeros_like(positions),
                cell=system.cell[k : k + 1].to(dtype),
                pbc=system.pbc[k : k + 1],
                charge=system.charge[k].to(dtype).view(1, 1),
                spin=system.spin[k].to(dtype).view(1, 1),
                energy=positions.new_zeros(1, 1),
                stress=positions.new_zeros(1, 3, 3),
            )
        )
    return Batch.from_data_list(data)
