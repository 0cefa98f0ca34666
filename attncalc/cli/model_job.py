"""Work on many structures by one model, as it is sent to other processes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from attncalc import model_file
from attncalc.calculator import AttnCalculator


@dataclass(frozen=True)
class ModelJob:
    """Base class of work by a model.

    Attributes:
        model: name or path.
        options: options of `AttnCalculator`.
        threads: threads of each process.
    """

    model: str
    options: dict[str, Any]
    threads: int | None

    def identity(self) -> dict[str, Any]:
        """Return all that the results depend on, except for input and machine.

        Raises:
            FileNotFoundError, ValueError: there is no such model, or it is damaged.
        """
        options = {name: value for name, value in self.options.items() if name != "device"}
        return {"model": model_file.checksum(self.model), **options}

    def environment(self) -> dict[str, Any]:
        """Return the kind of device, which selects the algorithm, and the version of the program.

        Raises:
            FileNotFoundError, ValueError: the model or an option is invalid.
        """
        device = self._calculator().evaluator.device  # errors are reported here, once
        return {"device": device.type, "attncalc": version("attncalc")}

    def load(self) -> AttnCalculator:
        """Load the model in a process of its own."""
        torch.set_num_threads(self.threads or 1)  # a worker's share of the CPU
        warnings.filterwarnings("ignore", module=r"attncalc\.calculator")  # given in reports
        return self._calculator()

    def _calculator(self) -> AttnCalculator:
        return AttnCalculator(self.model, threads=self.threads, **self.options)
