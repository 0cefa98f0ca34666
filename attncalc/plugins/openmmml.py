"""OpenMM-ML: a model as the potential "attncalc" of `openmmml.MLPotential`.

The entry point `openmmml.potentials` in setup.cfg names `Factory`, which OpenMM-ML loads when it is
imported. This file is not imported without OpenMM-ML, and PyTorch only when a potential is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Factory:
    """Factory of potentials for the registry of OpenMM-ML.

    It is defined above the import of OpenMM-ML, which loads it while being imported itself.
    """

    def createImpl(self, name: str, *, model: str | Path | None = None) -> ModelPotential:
        """Return the potential of a model.

        Args:
            name: always "attncalc".
            model: name of a shipped model, or path of a model file; None for the general model of
                molecules of H, C, N, O, F, P, S and Cl.

        Raises:
            FileNotFoundError: there is no such model.
        """
        from attncalc.model_file import DEFAULT_MODEL, find_model

        model = DEFAULT_MODEL if model is None else model
        find_model(model)  # raise an error here rather than when a system is made
        return ModelPotential(model)


try:
    from openmmml.mlpotential import MLPotentialImpl
except ImportError:
    raise ImportError('needs OpenMM-ML: pip install "attncalc[openmmml]"') from None

# options of the mechanical embedding that `createMixedSystem` passes on
OF_EMBEDDINGS = frozenset({"mlLongRange", "linkAtomDistances"})


class ModelPotential(MLPotentialImpl):
    """Potential of OpenMM-ML that adds a model to systems, by `attncalc.plugins.openmm`.

    Args:
        model: name of a shipped model, or path of a model file.
    """

    def __init__(self, model: str | Path) -> None:
        self._model = model

    def addForces(
        self,
        topology: Any,
        system: Any,
        atoms: Sequence[int] | None,
        forceGroup: int,
        *,
        charge: int = 0,
        multiplicity: int | None = None,
        device: Any = "auto",
        **others: Any,
    ) -> None:
        """Add the energy of the model to a system.

        Periodic images are included if the topology has box vectors or the system is periodic.

        Args:
            topology: gives the elements.
            system: system to change.
            atoms: indices of the model's atoms; None for all.
            forceGroup: group of the force.
            charge: total charge of the atoms, e.
            multiplicity: 2S+1; None is the lowest.
            device: a device of `attncalc.load`, or a `torch.device`.
            **others: options of the mechanical embedding, which are ignored.

        Raises:
            FileNotFoundError, ValueError: there is no such model or device, the model does not know
                the atoms, or an atom has no element; see `attncalc.plugins.openmm.add_force`.
            TypeError: an option is unknown.
        """
        from attncalc.plugins.openmm import add_force

        if unknown := sorted(others.keys() - OF_EMBEDDINGS):
            raise TypeError(
                f"attncalc knows charge, multiplicity and device, not {', '.join(unknown)}"
            )
        every = list(topology.atoms())
        mine = every if atoms is None else [every[int(k)] for k in atoms]
        for atom in mine:
            if atom.element is None:
                raise ValueError(f"atom {atom.index} ({atom.name}) of the topology has no element")
        periodic = topology.getPeriodicBoxVectors() is not None
        force = add_force(
            system,
            self._model,
            [atom.element.atomic_number for atom in mine],
            particles=atoms,
            periodic=periodic or system.usesPeriodicBoundaryConditions(),
            charge=charge,
            spin=multiplicity,
            device=str(device),
        )
        force.setForceGroup(forceGroup)

    def getMLLongRange(self) -> bool:
        """Return True if the model sums electrostatics over all images (`attncalc.physics.ewald`).

        If so, the mechanical embedding removes those of the force field.
        """
        from attncalc.model_file import load

        return load(self._model, device="cpu").reads_system
