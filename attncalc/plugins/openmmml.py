"""OpenMM-ML: a model as the potential "attncalc" of `openmmml.MLPotential`.

The entry point `openmmml.potentials` in setup.cfg names `Factory`, which OpenMM-ML loads at its own
start. Without OpenMM-ML nobody reads this file, and with it PyTorch is imported no earlier than a
potential is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Factory:
    """Maker of potentials, as OpenMM-ML's registry holds it.

    It stands above the import of OpenMM-ML, which asks for it while it is itself imported.
    """

    def createImpl(self, name: str, *, model: str | Path | None = None) -> ModelPotential:
        """Return the potential of a model.

        Args:
            name: is "attncalc".
            model: name of a shipped model, or path of a model file; None: the general model of
                molecules of H, C, N, O, F, P, S and Cl.

        Raises:
            FileNotFoundError: there is no such model.
        """
        from attncalc.model_file import DEFAULT_MODEL, find_model

        model = DEFAULT_MODEL if model is None else model
        find_model(model)  # refused here rather than when a system is made
        return ModelPotential(model)


try:
    from openmmml.mlpotential import MLPotentialImpl
except ImportError:
    raise ImportError('needs OpenMM-ML: pip install "attncalc[openmmml]"') from None

# what `createMixedSystem` hands on, meant for the mechanical embedding
OF_EMBEDDINGS = frozenset({"mlLongRange", "linkAtomDistances"})


class ModelPotential(MLPotentialImpl):
    """Model that adds its force to the systems of OpenMM-ML, by `attncalc.plugins.openmm`.

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

        Periodic images are counted where the topology has box vectors, or the system is periodic.

        Args:
            topology: says the elements.
            system: is changed.
            atoms: indices of the model's atoms; None: all.
            forceGroup: group of the force.
            charge: total charge of the atoms, e.
            multiplicity: 2S+1; None is the lowest.
            device: as of `attncalc.load`, or a `torch.device`.
            **others: those of the mechanical embedding, which are not read.

        Raises:
            FileNotFoundError, ValueError: as `attncalc.plugins.openmm.add_force`, or an atom has no
                element.
            TypeError: there is no such option.
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

        Where it does, the mechanical embedding takes out those of the force field.
        """
        from attncalc.model_file import load

        return load(self._model, device="cpu").reads_system
