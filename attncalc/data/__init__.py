"""Training data: readers, units, statistics, splits."""

from attncalc.data.ase_frames import from_ase
from attncalc.data.dataset import Dataset, concatenate
from attncalc.data.hdf5_rows import write_hdf5
from attncalc.data.readers import read, read_parts
from attncalc.data.split import near_copies, official_split, split
from attncalc.data.statistics import avg_num_neighbors, reference_energies, shortest_distance
from attncalc.data.streamed import StreamedDataset, errors_of, sample, stream
from attncalc.data.stress_checks import stress_mismatch
from attncalc.data.unit_checks import WorkRatio, label_mismatch, unit_mismatch, work_ratio

__all__ = [
    "Dataset",
    "StreamedDataset",
    "WorkRatio",
    "avg_num_neighbors",
    "concatenate",
    "errors_of",
    "from_ase",
    "label_mismatch",
    "near_copies",
    "official_split",
    "read",
    "read_parts",
    "reference_energies",
    "sample",
    "shortest_distance",
    "split",
    "stream",
    "stress_mismatch",
    "unit_mismatch",
    "work_ratio",
    "write_hdf5",
]
