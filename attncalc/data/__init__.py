"""Training data: readers, units, statistics, splits."""

from attncalc.data.dataset import Dataset, concatenate
from attncalc.data.extxyz import from_ase
from attncalc.data.readers import read
from attncalc.data.split import official_split, split
from attncalc.data.statistics import avg_num_neighbors, reference_energies, shortest_distance
from attncalc.data.strain_work import stress_mismatch
from attncalc.data.work import WorkRatio, unit_mismatch, work_ratio

__all__ = [
    "Dataset",
    "WorkRatio",
    "avg_num_neighbors",
    "concatenate",
    "from_ase",
    "official_split",
    "read",
    "reference_energies",
    "shortest_distance",
    "split",
    "stress_mismatch",
    "unit_mismatch",
    "work_ratio",
]
