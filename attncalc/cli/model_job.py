"""Work on many structures by one model, as it travels to other processes."""

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
    """Work by a model; what it is, subclasses say.

    Attributes:
        model: name or path.
        options: of `AttnCalculator`.
        threads: of each process.
    """

    model: str
    options: dict[str, Any]
    threads: int | None

    def identity(self) -> dict[str, Any]:
        """All that the results depend on, the input and the machine aside.

        Raises:
            FileNotFoundError, ValueError: the model is none.
        """
        options = {name: value for name, value in self.options.items() if name != "device"}
        return {"model": model_file.checksum(self.model), **options}

    def place(self) -> dict[str, Any]:
        """Kind of the device, by which the algorithm is chosen, and version of the program.

        Raises:
            FileNotFoundError, ValueError: the model or an option is impossible.
        """
        device = self._calculator().evaluator.device  # what is wrong is said here, once
        return {"device": device.type, "attncalc": version("attncalc")}

    def load(self) -> AttnCalculator:
        """Load the model in a process of its own."""
        torch.set_num_threads(self.threads or 1)  # a worker's share of the CPU
        warnings.filterwarnings("ignore", module=r"attncalc\.calculator")  # reports say it
        return self._calculator()

    def _calculator(self) -> AttnCalculator:
        return AttnCalculator(self.model, threads=self.threads, **self.options)
