"""Error messages for bad input: the list behind docs/bad_input.md, which is made from it.

python tests/test_bad_input.py      # writes the page anew
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import write
from click.testing import CliRunner
from damage import claim_to_unpack_to
from safetensors import safe_open
from safetensors.torch import save_file

from attncalc import AttnCalculator, Committee, System, data, load, md, save, train
from attncalc.cli import main
from attncalc.model_header import signature

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "bad_input.md"
COPPER = Path(__file__).parent / "models" / "cu-emt.safetensors"

RECIPE = """name: mine
data: mine.extxyz
split: {sizes: [8, 2]}
config: {cutoff: 4.0, num_features: 8, num_heads: 1, degrees: [1], num_layers: 1}
epochs: 1
"""


@dataclass(frozen=True)
class BadInput:
    """One line of the page.

    Attributes:
        what: is wrong, in the words of somebody who did it.
        use: does it, in an empty folder, and fails.
    """

    what: str
    use: Callable[[], object]


# --------------------------------------------------------------------------- structures to spoil


@cache
def calculator() -> AttnCalculator:
    return AttnCalculator(COPPER)


def energy_of(atoms: Atoms) -> float:
    """Of the small copper model of the tests."""
    atoms.calc = calculator()
    return atoms.get_potential_energy()


def copper(**changes: Any) -> Atoms:
    atoms = bulk("Cu", a=3.6, cubic=True)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def copper_at(atom: int, position: list[float]) -> Atoms:
    atoms = copper()
    atoms.positions[atom] = position
    return atoms


# ------------------------------------------------------------------------------- files to spoil


def copper_model(change: Callable[[dict, dict], object] | None = None) -> Path:
    """A copy of the small copper model, changed by somebody who knows how to sign it."""
    path = Path(shutil.copy(COPPER, "cu.safetensors"))
    if change is not None:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["attncalc"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(header, tensors)
        header["checks"] = {"sha256": signature(header, tensors)}
        save_file(tensors, path, metadata={"attncalc": json.dumps(header)})
    return path


def load_bytes(content: bytes, name: str = "cu.safetensors") -> object:
    Path(name).write_bytes(content)
    return load(name)


def with_a_changed_byte() -> bytes:
    content = bytearray(COPPER.read_bytes())
    content[-9] ^= 1
    return bytes(content)


def torch_checkpoint() -> object:
    torch.save({"weights": torch.ones(3)}, "model.pt")
    return load("model.pt")


def other_safetensors() -> object:
    save_file({"weight": torch.ones(3)}, "other.safetensors")
    return load("other.safetensors")


def copper_committee(changed: Callable[[Path], object]) -> Path:
    """Of two files, of which the second is changed afterwards."""
    for name, shift in (("one", 1e-3), ("two", 2e-3)):
        copper_model(lambda h, t, by=shift: t[first_tensor(t)].add_(by)).rename(
            f"{name}.safetensors"
        )
    names = ["one", "two"]
    members = [load(f"{name}.safetensors") for name in names]
    save(Committee(members), "committee.safetensors", refer_to=names)
    changed(Path("two.safetensors"))
    return Path("committee.safetensors")


def first_tensor(tensors: dict) -> str:
    return min(tensors)


def recipe(text: str) -> object:
    Path("recipe.yaml").write_text(text)
    return train.Recipe.from_yaml("recipe.yaml")


def frames(n: int = 10, **scale: float) -> list[Atoms]:
    """Shaken copper with the labels of ASE's EMT, multiplied as somebody did who mixed up units."""
    found = []
    for seed in range(n):
        atoms = copper()
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = None
        atoms.info["energy"] = labels["energy"] * scale.get("energy", 1)
        atoms.arrays["forces"] = labels["forces"] * scale.get("forces", 1)
        found.append(atoms)
    return found


def written_frames(changed: list[Atoms] | None = None) -> Path:
    write("mine.extxyz", frames() if changed is None else changed, format="extxyz")
    return Path("mine.extxyz")


def arrays(**changes: Any) -> Path:
    """An npz of ten frames of copper in eV."""
    good = frames()
    content = {
        "z": good[0].numbers,
        "R": np.stack([atoms.positions for atoms in good]),
        "E": np.array([atoms.info["energy"] for atoms in good]),
        "F": np.stack([atoms.arrays["forces"] for atoms in good]),
        "cell": good[0].cell.array,
        "units": "E: eV; F: eV/Angstrom; R: Angstrom",
    } | changes
    np.savez("mine.npz", **{name: value for name, value in content.items() if value is not None})
    return Path("mine.npz")


def cut_off(path: Path, kept: float = 0.66) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    return path


def without_last_number(path: Path, line: int) -> Path:
    lines = path.read_text().splitlines()
    lines[line] = lines[line].rsplit(maxsplit=1)[0]
    path.write_text("\n".join([*lines, ""]))
    return path


def without_energy() -> Path:
    changed = frames()
    del changed[3].info["energy"]
    return written_frames(changed)


def spoiled_array(name: str, value: float) -> Path:
    good = np.load(arrays())
    wrong = good[name].copy()
    wrong[4] = value
    return arrays(**{name: wrong})


def trained(*, more: str = "", **scale: float) -> object:
    """Stops before the training begins."""
    written_frames(frames(40, **scale))
    Path("recipe.yaml").write_text(RECIPE.replace("[8, 2]", "[30, 10]") + more)
    return train.run(train.Recipe.from_yaml("recipe.yaml"))


def strained_in_gpa() -> object:
    """Stops before the training begins."""
    strained = []
    for k in range(40):
        atoms = copper()
        atoms.set_cell(atoms.cell * (0.97 + 0.0015 * k), scale_atoms=True)
        atoms.calc = EMT()
        atoms.info["energy"] = atoms.get_potential_energy()
        atoms.arrays["forces"] = atoms.get_forces()
        atoms.info["stress"] = atoms.get_stress() / units.GPa
        atoms.calc = None
        strained.append(atoms)
    written_frames(strained)
    more = "stress_weight: 1.0\n"
    Path("recipe.yaml").write_text(RECIPE.replace("[8, 2]", "[30, 10]") + more)
    return train.run(train.Recipe.from_yaml("recipe.yaml"))


def pickled_checkpoint() -> object:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/last.ckpt").write_bytes(pickle.dumps(["anything"]))
    return trained()


def zip_bomb() -> object:
    np.savez_compressed("mine.npz", R=np.zeros(1 << 18))
    claim_to_unpack_to(3 << 30, Path("mine.npz"))
    return data.read("mine.npz", energy_unit="eV")


def linked_hdf5() -> object:
    with h5py.File("mine.h5", "w") as file:
        file["R"] = h5py.ExternalLink("/etc/passwd", "/R")
    return data.read("mine.h5")


def virtual_hdf5() -> object:
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "R", (2, 3))
    with h5py.File("mine.h5", "w") as file:
        file.create_virtual_dataset("R", layout)
    return data.read("mine.h5")


def nested_hdf5() -> object:
    with h5py.File("mine.h5", "w") as file:
        file.create_group("/".join("g" * 102))
    return data.read("mine.h5")


def pipe_for_data() -> object:
    os.mkfifo("mine.h5")
    return data.read("mine.h5")


def momenta_of_another_unit() -> object:
    integrator = md.Verlet(0.5 * units.fs)
    system = System.from_ase(copper())
    return integrator.init(load(COPPER), system, momenta=np.full((4, 3), 1e8))


def attncalc(*arguments: str) -> object:
    """The command line; what it says on stderr is raised."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    raise RuntimeError(result.stderr.rstrip("\n"))


def command(text: str, *prepare: Callable[[], object]) -> BadInput:
    """A command line that fails, after what it needs has been put into the folder."""

    def use() -> object:
        for step in prepare:
            step()
        return attncalc(*text.split())

    return BadInput(f"`attncalc {text}`", use)


def one_cell() -> None:
    write("cu.extxyz", copper())


def a_molecule() -> None:
    write("ethanol.xyz", molecule("CH3CH2OH"))


def earlier_results() -> None:
    Path("relaxed.xyz").touch()


def a_text() -> None:
    Path("notes.xyz").write_text("buy milk\n")


BAD_INPUTS: dict[str, list[BadInput]] = {
    "Structures": [
        BadInput("no atoms", lambda: energy_of(Atoms())),
        BadInput(
            "a position that is not a number",
            lambda: energy_of(copper_at(1, [0.0, float("nan"), 0.0])),
        ),
        BadInput("two atoms in one place", lambda: energy_of(copper_at(1, [0.0, 0.0, 0.0]))),
        BadInput("an element that does not exist", lambda: energy_of(Atoms("X"))),
        BadInput("an element that the model was not trained on", lambda: energy_of(bulk("Au"))),
        BadInput(
            "periodic, but no cell",
            lambda: energy_of(Atoms("Cu", pbc=True)),
        ),
        BadInput(
            "a cell with `inf` in it",
            lambda: energy_of(Atoms("Cu", cell=[4, 4, float("inf")], pbc=True)),
        ),
        BadInput(
            "a cell in metres",
            lambda: energy_of(Atoms("Cu", cell=[3.6e-10] * 3, pbc=True)),
        ),
        BadInput(
            "a cell of another unit than the positions",
            lambda: energy_of(Atoms("Cu4", copper().positions, cell=[0.36] * 3, pbc=True)),
        ),
        BadInput(
            "an atom that has gone far away", lambda: energy_of(copper_at(1, [1e10, 0.0, 0.0]))
        ),
        BadInput(
            "a cell of a kilometre", lambda: energy_of(Atoms("Cu", cell=[1e13] * 3, pbc=True))
        ),
        BadInput("momenta of another unit", momenta_of_another_unit),
        BadInput("half a charge", lambda: energy_of(copper(info={"charge": 0.5}))),
        BadInput(
            "a charge, and a model without charges", lambda: energy_of(copper(info={"charge": 1}))
        ),
        BadInput(
            "a charge larger than all electrons",
            lambda: energy_of(copper(info={"charge": 200})),
        ),
        BadInput("an impossible multiplicity", lambda: energy_of(copper(info={"spin": 2}))),
        BadInput(
            "stress of a molecule",
            lambda: calculator().get_property("stress", Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])),
        ),
        BadInput(
            "one structure where a list is expected",
            lambda: calculator().calculate_many(copper()),
        ),
    ],
    "Calculator": [
        BadInput(
            "a model that is not there", lambda: AttnCalculator("so3krates-etanol", device="cpu")
        ),
        BadInput("a device of another name", lambda: AttnCalculator(COPPER, device="gpu")),
        BadInput("an unknown precision", lambda: AttnCalculator(COPPER, dtype="float16")),
        BadInput("a negative skin", lambda: AttnCalculator(COPPER, skin=-0.5)),
        BadInput("a skin of another unit", lambda: AttnCalculator(COPPER, skin=1e9)),
        BadInput("more threads than any machine has", lambda: load(COPPER, threads=10**6)),
        BadInput("something else than a model", lambda: AttnCalculator(42)),
    ],
    "Model files": [
        BadInput("a PyTorch checkpoint", torch_checkpoint),
        BadInput("a pickle", lambda: load_bytes(pickle.dumps([1.0] * 99), "model.pkl")),
        BadInput("HDF5", lambda: load_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99), "model.h5")),
        BadInput("a text", lambda: load_bytes(b"some remarks\n" * 9, "model.txt")),
        BadInput(
            "a file of Git LFS that was not fetched",
            lambda: load_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        ),
        BadInput("an empty file", lambda: load_bytes(b"")),
        BadInput("a file that was cut off", lambda: load_bytes(COPPER.read_bytes()[:-1000])),
        BadInput(
            "a header that claims to be longer than the file",
            lambda: load_bytes((1 << 62).to_bytes(8, "little") + bytes(100)),
        ),
        BadInput("one bit of one weight changed", lambda: load_bytes(with_a_changed_byte())),
        BadInput("weights of another program", other_safetensors),
        BadInput(
            "a format of the future", lambda: load(copper_model(lambda h, t: h.update(format=9)))
        ),
        BadInput(
            "an unknown network", lambda: load(copper_model(lambda h, t: h.update(network="mace")))
        ),
        BadInput(
            "an unknown hyper-parameter",
            lambda: load(copper_model(lambda h, t: h["config"].update(width=64))),
        ),
        BadInput(
            "a network that is larger than the file",
            lambda: load(copper_model(lambda h, t: h["config"].update(num_features=10**6))),
        ),
        BadInput(
            "a weight that is NaN",
            lambda: load(copper_model(lambda h, t: t[first_tensor(t)].fill_(float("nan")))),
        ),
        BadInput(
            "a tensor missing",
            lambda: load(copper_model(lambda h, t: t.pop(first_tensor(t)))),
        ),
        BadInput(
            "a tensor too many",
            lambda: load(copper_model(lambda h, t: t.update(extra=torch.ones(1)))),
        ),
        BadInput("a member of a committee gone", lambda: load(copper_committee(os.remove))),
        BadInput(
            "a member of a committee replaced",
            lambda: load(copper_committee(lambda two: copper_model().rename(two))),
        ),
        BadInput("a folder", lambda: (os.mkdir("models"), load("models"))),
    ],
    "Recipes": [
        BadInput("a recipe that is not there", lambda: train.Recipe.from_yaml("recipe.yml")),
        BadInput("a misspelt key", lambda: recipe(RECIPE + "epoch: 5\n")),
        BadInput("a key twice", lambda: recipe(RECIPE + "epochs: 500\n")),
        BadInput("a key missing", lambda: recipe(RECIPE.replace("data: mine.extxyz\n", ""))),
        BadInput("text for a number", lambda: recipe(RECIPE + "learning_rate: fast\n")),
        BadInput("half an epoch", lambda: recipe(RECIPE.replace("epochs: 1", "epochs: 0.5"))),
        BadInput("a learning rate without end", lambda: recipe(RECIPE + "learning_rate: .inf\n")),
        BadInput("an unknown choice", lambda: recipe(RECIPE + "schedule: linear\n")),
        BadInput(
            "an impossible hyper-parameter",
            lambda: recipe(RECIPE.replace("cutoff: 4.0", "cutoff: 0")),
        ),
        BadInput(
            "a misspelt hyper-parameter",
            lambda: recipe(RECIPE.replace("cutoff: 4.0", "cuttoff: 4.0")),
        ),
        BadInput("broken YAML", lambda: recipe(RECIPE.replace("[8, 2]}", "[8, 2}"))),
        BadInput("YAML with a tab", lambda: recipe("config:\n\tcutoff: 4.0\n")),
        BadInput("anchors and aliases", lambda: recipe(RECIPE + "test_data: &a x\nlabels: *a\n")),
        BadInput(
            "YAML that would run Python",
            lambda: recipe(RECIPE + "labels: !!python/object/apply:os.getcwd []\n"),
        ),
        BadInput(
            "a number of minutes", lambda: recipe(RECIPE.replace("epochs: 1", "epochs: 1:30"))
        ),
        BadInput(
            "a name that is a folder", lambda: recipe(RECIPE.replace("name: mine", "name: .."))
        ),
        BadInput(
            "a name with a line break",
            lambda: recipe(RECIPE.replace("name: mine", r'name: "mi\nne"')),
        ),
        BadInput(
            "a network larger than any file",
            lambda: recipe(RECIPE.replace("num_features: 8", "num_features: 32000000")),
        ),
        BadInput("a list", lambda: recipe("- epochs\n- seed\n")),
        BadInput(
            "a start from a network of another size",
            lambda: (copper_model(), trained(more="start_from: cu.safetensors\n")),
        ),
        BadInput(
            "a start from a model that is not there",
            lambda: trained(more="start_from: so3krates-etanol\n"),
        ),
        BadInput("a pickle for the checkpoint of a training", pickled_checkpoint),
    ],
    "Data": [
        BadInput("a file that is not there", lambda: data.read("other.npz")),
        BadInput("an unknown extension", lambda: (Path("mine.csv").touch(), data.read("mine.csv"))),
        BadInput("no unit of energy", lambda: data.read(arrays(units=None))),
        BadInput("an unknown unit", lambda: data.read(arrays(units=None), energy_unit="cal")),
        BadInput(
            "a unit that contradicts the file", lambda: data.read(arrays(), energy_unit="kcal/mol")
        ),
        BadInput(
            "energies in kcal/mol beside forces in eV/Å, taken for eV",
            lambda: trained(energy=23.0605),
        ),
        BadInput(
            "forces in Hartree/Bohr beside energies in eV",
            lambda: trained(forces=0.529177 / 27.2114),
        ),
        BadInput("gradients for forces", lambda: trained(forces=-1)),
        BadInput("energies per atom", lambda: trained(energy=1 / 4)),
        BadInput("stresses in GPa, taken for eV/Å³", strained_in_gpa),
        BadInput("an unknown label set", lambda: data.read(arrays(), labels="md17")),
        BadInput("no energies", lambda: data.read(arrays(E=None))),
        BadInput("an energy that is NaN", lambda: data.read(spoiled_array("E", np.nan))),
        BadInput("forces of another shape", lambda: data.read(arrays(F=np.zeros((10, 3))))),
        BadInput("a charge for every second electron", lambda: data.read(arrays(charge=0.5))),
        BadInput("an `.npz` that was cut off", lambda: data.read(cut_off(arrays()))),
        BadInput("an `.npz` that unpacks to a million times its size", zip_bomb),
        BadInput(
            "a pickle called `.npz`",
            lambda: (Path("mine.npz").write_bytes(pickle.dumps([1])), data.read("mine.npz")),
        ),
        BadInput("an extended XYZ that was cut off", lambda: data.read(cut_off(written_frames()))),
        BadInput(
            "a number lost in extended XYZ",
            lambda: data.read(without_last_number(written_frames(), 3)),
        ),
        BadInput("one structure without energy", lambda: data.read(without_energy())),
        BadInput(
            "plain XYZ",
            lambda: (write("plain.xyz", copper(), format="xyz"), data.read("plain.xyz")),
        ),
        BadInput(
            "more structures in the split than in the file",
            lambda: data.split(data.read(written_frames()), [950, 50], seed=0),
        ),
        BadInput(
            "a split that the file does not store",
            lambda: data.official_split(data.read(written_frames())),
        ),
        BadInput(
            "an HDF5 file that is none",
            lambda: (Path("mine.h5").write_text("text"), data.read("mine.h5")),
        ),
        BadInput("an HDF5 file with a link to another file", linked_hdf5),
        BadInput("an HDF5 file with a virtual dataset", virtual_hdf5),
        BadInput("an HDF5 file of nested groups", nested_hdf5),
        BadInput("a pipe", pipe_for_data),
        BadInput(
            "a database that is none",
            lambda: (Path("mine.db").write_text("text"), data.read("mine.db")),
        ),
    ],
    "Command line": [
        command("relax no.xyz --model cu.safetensors"),
        command("relax notes.xyz --model cu.safetensors", a_text),
        command(
            "relax cu.extxyz --model cu.safetensors -o relaxed.xyz",
            one_cell,
            copper_model,
            earlier_results,
        ),
        command("relax cu.extxyz --model cu.safetensors -o no/relaxed.xyz", one_cell, copper_model),
        command("relax cu.extxyz --model cu.safetensors -o relaxed.doc", one_cell, copper_model),
        command("relax cu.extxyz --model cu.safetensors -o relaxed.png", one_cell, copper_model),
        command("relax cu.extxyz --model cu.safetensors -o relaxed.xtl", one_cell, copper_model),
        command("relax ethanol.xyz --model cu.safetensors", a_molecule, copper_model),
        command("md cu.extxyz --model cu.safetensors --temperature -5", one_cell, copper_model),
        command("md cu.extxyz --model cu.safetensors --steps 0", one_cell, copper_model),
        command("md cu.extxyz --model cu.safetensors --pressure 3", one_cell, copper_model),
        command("md cu.extxyz --model cu.safetensors -o run.dat", one_cell, copper_model),
        command("train no.yaml"),
        command("eval cu.safetensors mine.extxyz --split test", copper_model, written_frames),
        command("eval cu.safetensors no.extxyz", copper_model),
        command("convert so3krates no.npz --config no.json -o new.safetensors"),
        command("convert so3krates notes.xyz --config no.json -o new.safetensors", a_text),
    ],
}
CASES = [(section, case) for section, cases in BAD_INPUTS.items() for case in cases]


def message_of(case: BadInput) -> str:
    """What is said, without what differs from one machine and release to the next."""
    with tempfile.TemporaryDirectory() as name, chdir(name):
        folder = os.getcwd()
        try:
            case.use()
        except Exception as error:
            text = str(error)
        else:
            raise AssertionError(f"nothing is said about: {case.what}")
    text = text.replace(folder, "/home/me").replace(str(COPPER.parent), "/home/me")
    return re.sub(r"shipped: .*", "shipped: ...", text)


def page(messages: Iterator[str]) -> str:
    lines = [
        "# Error messages for bad input",
        "",
        "A message is one line: what is wrong and how to correct it. The command line shows the "
        "same line and exits with status 1; an unknown or missing option gives the usage and "
        "status 2.",
        "Messages about a file begin with its name. Nothing in a file is ever executed.",
        "",
        "This page is written by `python tests/test_bad_input.py`, which tries every input below "
        "and records the message.",
    ]
    for section, cases in BAD_INPUTS.items():
        lines += ["", f"## {section}", "", "| input | message |", "|---|---|"]
        for case in cases:
            text = next(messages).replace("|", "\\|")
            lines.append(f"| {case.what} | {text} |")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """The messages on the page, by what is wrong."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(), flags=re.MULTILINE)
    return {what: message.replace("\\|", "|") for what, message in rows}


@pytest.mark.parametrize(("section", "case"), CASES, ids=[case.what for _, case in CASES])
def test_message(section: str, case: BadInput, told: dict[str, str]) -> None:
    message = message_of(case)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 450
    assert told.get(case.what) == message, f"{PAGE.name} is out of date: run {Path(__file__).name}"


def test_the_page_has_the_list_and_nothing_else(told: dict[str, str]) -> None:
    assert len(CASES) == len({case.what for _, case in CASES}) >= 30
    assert page(told[case.what] for _, case in CASES) == PAGE.read_text()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.reconfigure(errors="replace")
    found = [message_of(case) for _, case in CASES]
    PAGE.write_text(page(iter(found)))
    print(f"wrote {PAGE}: {len(found)} bad inputs")
