"""Training data: readers, units, statistics, splits."""

from attncalc.data.dataset import Dataset, concatenate
from attncalc.data.extxyz import from_ase
from attncalc.data.readers import read
from attncalc.data.split import official_split, split
from attncalc.data.statistics import avg_num_neighbors, reference_energies, shortest_distance

__all__ = [
    "Dataset",
    "avg_num_neighbors",
    "concatenate",
    "from_ase",
    "official_split",
    "read",
    "reference_energies",
    "shortest_distance",
    "split",
]
