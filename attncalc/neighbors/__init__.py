"""Neighbour lists: pairs of atoms within the cutoff, and their reuse along a trajectory."""

from attncalc.neighbors.by_device import neighbor_list
from attncalc.neighbors.matscipy_list import matscipy_list
from attncalc.neighbors.nvalchemi_list import nvalchemi_list
from attncalc.neighbors.search import ImpossiblePositions
from attncalc.neighbors.torch_list import torch_list
from attncalc.neighbors.verlet import SKIN, VerletList, fresh_graph, skin_for

__all__ = [
    "SKIN",
    "ImpossiblePositions",
    "VerletList",
    "fresh_graph",
    "matscipy_list",
    "neighbor_list",
    "nvalchemi_list",
    "skin_for",
    "torch_list",
]
