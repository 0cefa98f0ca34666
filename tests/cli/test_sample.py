"""`attncalc sample`: what it writes and says, and one line for whatever is wrong."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path

import pytest
from command_line import attncalc, fails, files, import_again, succeeds

from attncalc import data

pytest.importorskip("rdkit", reason="needs rdkit: pip install attncalc[sample]")
SAMPLE = ("sample", "-o", "data.h5", "--oracle", "teachers:spheres", "--relax-steps", 1)


def test_it_writes_data_and_says_what_was_refused() -> None:
    said = succeeds(*SAMPLE, "--molecules", 4)
    (first, *_) = said.splitlines()
    dataset = data.read("data.h5")
    assert first.startswith(f"wrote data.h5: {len(dataset)} structures of ")
    assert "4 molecules, " in said
    assert {"data.h5", "data.h5.chunks"} <= files()
    again = json.loads(attncalc(*SAMPLE, "--molecules", 4, "--json").stdout)
    assert again["new_structures"] == 0
    assert again["files"]["data.h5"]["frames"] == len(dataset)
    assert again["files"]["data.h5"]["kinds"]["relaxed"] > 4
    # the teacher's seed and steps are part of the data
    assert "choose another output, or use --overwrite" in fails(
        *SAMPLE, "--molecules", 4, "--seed", 9
    )


def test_refused_ions_are_announced() -> None:
    result = attncalc(*SAMPLE, "--molecules", 2, "--oracle", "teachers:deaf")
    assert result.stderr.splitlines() == [
        "teachers:deaf has no parameter `charge`: charged structures will be refused"
    ]
    refused = r"^refused: \d+ charge not told to the calculator$"
    assert re.search(refused, result.stdout, re.MULTILINE)
    assert {atoms.info["charge"] for atoms in data.read("data.h5").structures} == {0}
    assert "without charge, ions are refused" in " ".join(succeeds("sample", "--help").split())


def test_labels_of_some_structures_are_left_out() -> None:
    said = succeeds(*SAMPLE, "--molecules", 2, "--oracle", "teachers:half_charged")
    assert "left out: atomic_charges, which only some structures have" in said.splitlines()
    assert data.read("data.h5").charges is None


def test_nothing_in_no_time() -> None:
    said = succeeds(*SAMPLE, "--molecules", 100, "--minutes", 0)
    assert said.splitlines() == [
        "no structures for data.h5 yet",
        "no structures for data-test.h5 yet",
        "0 molecules, 0 labels; 0 new structures",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "data.xyz"), "--output must end in .h5 or .hdf5, got data.xyz"),
        (("-o", "no/data.h5"), "no such folder: no"),
        (("--oracle", "teachers:nothing"), "has no attribute 'nothing'"),
        (("--oracle", "mine.safetensors"), "mine.safetensors"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], says: str) -> None:
    assert says in fails(*SAMPLE, "--molecules", 4, *arguments)
    assert not [name for name in files() if name.startswith("data")]


def test_nothing_is_overwritten() -> None:
    Path("data.h5").write_text("mine")
    assert "data.h5 exists: choose another name, or use --overwrite" in fails(
        *SAMPLE, "--molecules", 4
    )
    Path("data.h5").unlink()
    Path("data-test.h5").write_text("mine")
    assert "data-test.h5 exists" in fails(*SAMPLE, "--molecules", 4)


def test_without_rdkit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without_rdkit(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "rdkit":
            raise ImportError("No module named 'rdkit'")
        return usual(name, *rest)

    import_again(monkeypatch, "rdkit", "attncalc.sampling")
    monkeypatch.setattr(builtins, "__import__", without_rdkit)
    line = fails(*SAMPLE, "--molecules", 4)
    assert line == 'Error: sampling needs rdkit: pip install "attncalc[sample]"'
