"""Calibrate the novelty of shipped models on the structures of their training.

    python benchmarks/studies/calibrate_models.py ../shared/data runs

The files get atomic environments and new checksums; weights and everything else do not change.
Committees, which name their members by checksum, are written again.

The first folder contains the files of molecules that models were trained on. The second folder
contains the frames at GFN2-xTB that this project made with the commands in the recipes. The
beginnings of those trajectories suffice (fewer frames by --n-train), because at most 3000
structures are used.

The distilled models were also trained on structures from dynamics, which are not kept. They are
calibrated on the labelled frames alone, so environments that only those structures contain count
as outside.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms

from attncalc import data, load
from attncalc.calibrate import calibrate
from attncalc.model_file import save, shipped_models
from attncalc.model_header import StoredModel, digest_of, is_reference
from attncalc.potential import Committee, Potential
from attncalc.train.card import NOVELTY

CARD = "| novelty | {} |"


@dataclass(frozen=True)
class Known:
    """Structures of a training.

    Attributes:
        file: name of the file in one of the two folders.
        split: split of the file; None is all structures.
        labels: any labels of the file, because they are not used.
        remark: remark for the card.
    """

    file: str
    split: str | None = None
    labels: str | None = None
    remark: str = ""


ETHANOL = Known("rmd17_ethanol.npz", "train_01", "md17")
ASPIRIN = Known("rmd17_aspirin.npz", "train_01", "md17")
LABELLED = ", of which the labelled frames are looked at, not those from dynamics"
TRAINED_ON = {
    "so3krates-ethanol": ETHANOL,
    "so3krates-ethanol-committee": ETHANOL,
    "equiformer-ethanol": ETHANOL,
    "equiformer-ethanol-correction": ETHANOL,
    "equiformer-ethanol-distilled": Known(*("rmd17_ethanol.npz", "train_01", "md17"), LABELLED),
    "ethanol-committee": ETHANOL,
    "so3krates-aspirin": ASPIRIN,
    "so3krates-aspirin-committee": ASPIRIN,
    "so3krates-aspirin-distilled": Known(*("rmd17_aspirin.npz", "train_01", "md17"), LABELLED),
    "equiformer-aspirin-correction": ASPIRIN,
    "equiformer-aspirin-distilled": Known(*("rmd17_aspirin.npz", "train_01", "md17"), LABELLED),
    "aspirin-committee": Known(*("rmd17_aspirin.npz", "train_01", "md17"), LABELLED),
    "so3krates-silicon": Known("mlearn_Si.extxyz", "training"),
    "so3krates-xtb-small-molecules": Known("xtb_small_molecules_train.extxyz"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="with the data")
    parser.add_argument("--only", nargs="+", choices=list(TRAINED_ON), help="these single models")
    options = parser.parse_args()
    # load all of them first, because members change and committees name them by checksum
    before = {name: load(path, device="cpu") for name, path in shipped_models().items()}
    refers_to = {name: references(path) for name, path in shipped_models().items()}
    by_size = sorted(before, key=lambda name: len(before[name].members))
    for name in by_size:
        is_single = len(before[name].members) == 1
        if is_single and options.only and name not in options.only:
            continue
        tell(name, before[name], refers_to[name], options.folders)


def references(path: Path) -> list[str]:
    """Return the names of the models to which a committee's file refers."""
    with path.open("rb") as file:
        entries = StoredModel(file).header.get("members", [])
    return [entry["name"] for entry in entries if is_reference(entry)]


def tell(name: str, before: Potential, refers_to: list[str], folders: list[Path]) -> None:
    """Write one model again, with the atomic environments of its training."""
    path, known = shipped_models()[name], TRAINED_ON[name]
    told = {content(one): one for other in refers_to for one in load(other, device="cpu").members}
    members = [told.get(content(one), one) for one in before.members]
    structures = read(known, folders)
    for member in members:
        if member not in told.values():
            member.environments = None
            calibrate(member, structures)
    info = before.training_info
    potential = members[0] if len(members) == 1 else Committee(members, training=info)
    save(potential, path, refer_to=refers_to)
    after = load(path, device="cpu")
    assert [content(one) for one in after.members] == [content(one) for one in before.members]
    card = path.with_suffix(".md")
    text = re.sub(r"^\| novelty .*\n", "", card.read_text(), flags=re.MULTILINE)
    line = CARD.format(NOVELTY + known.remark)
    card.write_text(re.sub(r"^(\| structures .*\n)", rf"\1{line}\n", text, flags=re.MULTILINE))
    print(f"{name}: {after.members[0].environments.n_structures} structures", flush=True)


def content(potential: Potential) -> str:
    """Return a checksum of the weights alone, without the environments of the training."""
    return digest_of("", {name: one.contiguous() for name, one in potential.state_dict().items()})


def read(known: Known, folders: list[Path]) -> list[Atoms]:
    """Return the structures of a training, without labels."""
    file = next(folder / known.file for folder in folders if (folder / known.file).is_file())
    dataset = data.read(file, labels=known.labels)
    if known.split is None:
        return list(dataset.structures)
    return [dataset.structures[k] for k in dataset.splits[known.split]]


if __name__ == "__main__":
    main()
