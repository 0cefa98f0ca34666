"""Novelty: how far atoms are outside the environments that a model was trained on."""

from attncalc.novelty.environments import Environments, Surroundings
from attncalc.novelty.fit import Sample, fit, strays_of
from attncalc.novelty.messages import OUTSIDE, Outsider, outsider

__all__ = [
    "OUTSIDE",
    "Environments",
    "Outsider",
    "Sample",
    "Surroundings",
    "fit",
    "outsider",
    "strays_of",
]
