"""Published errors on the data sets of benchmarks/accuracy.py, with their sources.

Energies are in meV for the whole structure, forces in meV/Å, as in the tables. Numbers that could
not be read in their source are omitted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Numbers of one model from one table.

    Attributes:
        model: name.
        source: paper and table.
        labels: kind of labels of training and test, if a data set has several.
        error: "MAE" or "RMSE".
        values: data set -> energy [meV], force [meV/Å].
    """

    model: str
    source: str
    labels: str
    error: str
    values: dict[str, tuple[float, float]]


DENS = "Liao, Smidt, Das, TMLR 2024 (DeNS), table of MD17"
MACE = "Batatia et al., NeurIPS 2022 (MACE)"
PUBLISHED = (
    Published(
        "Equiformer, lmax 2",
        f"{DENS}; 950 frames",
        "MD17",
        "MAE",
        {
            "aspirin": (5.3, 7.2),
            "benzene": (2.2, 6.6),
            "ethanol": (2.2, 3.1),
            "malonaldehyde": (3.3, 5.8),
            "naphthalene": (3.7, 2.1),
            "uracil": (4.3, 3.3),
        },
    ),
    Published(
        "Equiformer",
        f"{DENS}, lmax 3; 950 frames",
        "MD17",
        "MAE",
        {
            "aspirin": (5.3, 6.6),
            "benzene": (2.5, 8.1),
            "ethanol": (2.2, 2.9),
            "malonaldehyde": (3.2, 5.4),
            "naphthalene": (4.4, 2.0),
            "uracil": (4.3, 3.4),
        },
    ),
    Published(
        "Equiformer + DeNS",
        f"{DENS}, lmax 3; 950 frames",
        "MD17",
        "MAE",
        {
            "aspirin": (5.0, 5.2),
            "benzene": (2.3, 6.1),
            "ethanol": (2.2, 2.4),
            "malonaldehyde": (3.2, 4.1),
            "naphthalene": (3.7, 1.6),
            "uracil": (4.1, 2.9),
        },
    ),
    Published(
        "MACE",
        f"{MACE}, table 1; 950 frames",
        "rMD17",
        "MAE",
        {
            "aspirin": (2.2, 6.6),
            "benzene": (0.4, 0.3),
            "ethanol": (0.4, 2.1),
            "malonaldehyde": (0.8, 4.1),
            "naphthalene": (0.5, 1.6),
            "uracil": (0.5, 2.1),
        },
    ),
    Published(
        "MACE", f"{MACE}, tables 2 and 3", "", "RMSE", {"3bpa": (3.0, 8.8), "acac": (0.9, 5.1)}
    ),
    Published(
        "NequIP",
        f"{MACE}, table 1; 950 frames",
        "rMD17",
        "MAE",
        {
            "aspirin": (2.3, 8.2),
            "benzene": (0.04, 0.3),
            "ethanol": (0.4, 2.8),
            "malonaldehyde": (0.8, 5.1),
            "naphthalene": (0.9, 1.3),
            "uracil": (0.4, 3.1),
        },
    ),
    Published(
        "NequIP",
        f"{MACE}, tables 2 (code nequip) and 3",
        "",
        "RMSE",
        {"3bpa": (3.3, 10.8), "acac": (0.81, 5.90)},
    ),
)
# in the order of the table; So3krates has no number that could be read in its papers
MODELS = ("Equiformer, lmax 2", "Equiformer", "Equiformer + DeNS", "So3krates", "MACE", "NequIP")


def cell(model: str, data: str, labels: str) -> str:
    """Return "energy / force" of a model on a data set, or a dash if there are no numbers.

    Errors other than MAE and labels other than those of the row are named behind the numbers.

    Args:
        model: one of `MODELS`.
        data: name of the data set.
        labels: labels of the row of the table.
    """
    for one in PUBLISHED:
        if one.model == model and data in one.values:
            energy, force = one.values[data]
            others = [one.labels] if one.labels != labels else []
            others += [one.error] if one.error != "MAE" else []
            return f"{energy:g} / {force:g}" + (f" ({', '.join(others)})" if others else "")
    return "-"
