"""Novelty: how far atoms are outside the environments that a model was trained on."""

from attncalc.novelty.environments import Environments, NoveltyInputs
from attncalc.novelty.fit import Sample, fit, outliers_of
from attncalc.novelty.messages import OUTSIDE, OutsideAtom, outside_atom

__all__ = [
    "OUTSIDE",
    "Environments",
    "NoveltyInputs",
    "OutsideAtom",
    "Sample",
    "fit",
    "outliers_of",
    "outside_atom",
]
