"""Committees whose file names the files of their members, by checksum, instead of copying them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contract import ethanol, result_of
from networks import tiny_so3krates
from safetensors.torch import load_file

from attncalc import Committee, Potential, load, model_file, save
from attncalc.fast import lower
from attncalc.model_file import checksum, header, shipped_models
from attncalc.model_header import StoredModel, signature
from attncalc.nn.so3krates import So3krates


def member(seed: int) -> Potential:
    torch.manual_seed(seed)
    network = So3krates(tiny_so3krates(4.0), 3).double()
    return Potential(network, (1, 6, 8), reference_energies=[-1.0, -2.0, -float(seed)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Members a, b and c, `pair` of a and b, `all` of pair, c and one that has no other file."""
    monkeypatch.setattr(model_file, "shipped_models_directory", lambda: tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    members = [member(seed) for seed in range(4)]
    for name, potential in zip("abc", members, strict=False):
        save(potential, tmp_path / f"{name}.safetensors")
    pair, everyone = Committee(members[:2]), Committee(members, training={"data": "none"})
    save(pair, tmp_path / "pair.safetensors", refer_to=["a", "b"])
    save(everyone, tmp_path / "all.safetensors", refer_to=["c", "a", "pair"])
    save(everyone, tmp_path / "whole.safetensors")
    return tmp_path


def stored_header(path: Path) -> dict:
    with open(path, "rb") as file:
        return StoredModel(file).header


def assert_same_results(one: str | Path, other: str | Path) -> None:
    ours, theirs = (result_of(load(model), ethanol()) for model in (one, other))
    for name in ("energy", "energies", "forces", "strain_gradient"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.spread.energy, theirs.spread.energy)
    assert torch.equal(ours.spread.forces, theirs.spread.forces)


def test_weights_stand_in_one_file(folder):
    assert stored_header(folder / "pair.safetensors")["members"] == [
        {"name": name, "sha256": checksum(folder / f"{name}.safetensors")} for name in "ab"
    ]
    assert load_file(folder / "pair.safetensors") == {}
    entries = stored_header(folder / "all.safetensors")["members"]
    assert [entry.get("name", "its own") for entry in entries] == ["pair", "c", "its own"]
    assert {name[:10] for name in load_file(folder / "all.safetensors")} == {"members.2."}


def test_a_file_of_another_baseline_is_not_referred_to(folder):
    """The results of equal weights are then to be added to those of another method."""
    deltas = [member(seed) for seed in (0, 1)]
    for one in deltas:
        one.training_info = {"baseline": "GFN2-xTB"}
    save(deltas[1], folder / "delta.safetensors")
    save(Committee(deltas), folder / "both.safetensors", refer_to=["a", "b", "delta"])
    entries = stored_header(folder / "both.safetensors")["members"]
    assert [entry.get("name", "its own") for entry in entries] == ["its own", "delta"]
    assert load(folder / "both.safetensors").baseline == "GFN2-xTB"


def test_the_same_committee_to_the_bit(folder):
    again, whole = load(folder / "all.safetensors"), load(folder / "whole.safetensors")
    assert again.training_info == whole.training_info == {"data": "none"}
    assert again.checksum == checksum(folder / "all.safetensors") != whole.checksum
    assert again.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert_same_results(folder / "all.safetensors", folder / "whole.safetensors")
    assert load(folder / "all.safetensors", dtype="float32").dtype == torch.float32
    described = header(folder / "all.safetensors")
    assert described["members"] == header(folder / "whole.safetensors")["members"]


def test_what_is_saved_without_a_word_is_whole(folder, tmp_path):
    save(load(folder / "all.safetensors"), folder / "again.safetensors")
    assert (folder / "again.safetensors").read_bytes() == (
        folder / "whole.safetensors"
    ).read_bytes()


def test_what_members_were_trained_on_is_kept(folder):
    """Radicals and charges that one member does not know, the committee does not know either."""
    members = [member(0), member(1)]
    members[0].training_info = {"closed_shells": True, "total_charges": [-1, 2]}
    members[1].training_info = {"total_charges": [-2, 1], "multiplicities": [1, 3]}
    save(Committee(members), folder / "new.safetensors")
    of_itself = {"closed_shells": True, "total_charges": [-1, 1], "multiplicities": [1, 3]}
    for committee in (
        Committee(members),
        load(folder / "new.safetensors"),
        Committee([member(0), member(1)], training=of_itself),  # as trainings write it
        lower(load(folder / "new.safetensors", dtype="float32")),
        # members of a file, alone and in another committee
        *load(folder / "new.safetensors").members,
        Committee([load(folder / "new.safetensors"), member(2)]),
    ):
        assert committee.knows_closed_shells_only
        assert committee.known_charges == (-1, 1)
        assert committee.known_multiplicities == (1, 3)


def test_members_that_differ_are_written(folder):
    save(Committee([member(0), member(7)]), folder / "new.safetensors", refer_to=["b", "c", "a"])
    entries = stored_header(folder / "new.safetensors")["members"]
    assert [entry.get("name", "its own") for entry in entries] == ["a", "its own"]
    with pytest.raises(FileNotFoundError, match="member 'd' is missing"):
        save(load(folder / "pair.safetensors"), folder / "x.safetensors", refer_to=["d"])


def test_shipped_members_are_found_from_elsewhere(folder):
    for name in ("a", "b", "pair"):
        (folder / f"{name}.safetensors").rename(folder / "shipped" / f"{name}.safetensors")
    assert_same_results(folder / "all.safetensors", folder / "whole.safetensors")
    # another model of the same name beside the committee is not taken for it
    save(member(9), folder / "a.safetensors")
    (folder / "shipped" / "pair.safetensors").rename(folder / "pair.safetensors")
    assert_same_results(folder / "all.safetensors", folder / "whole.safetensors")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def change_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lead_away(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.safetensors"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def lead_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("read", [load, header])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (os.remove, r"member 'a' is missing: a\.safetensors must be in the folder of the com"),
        (lambda path: save(member(5), path), r"member 'a' has changed: the checksum of a\.saf"),
        (change_a_weight, r"a\.safetensors: the checksum does not match"),
        (cut_off, r"a\.safetensors: not a safetensors file, or a damaged one"),
        (lead_away, "member 'a' is missing"),
        (lead_to_itself, "member 'a' is missing"),
    ],
    ids=["missing", "another", "damaged", "cut off", "link", "circle"],
)
def test_what_is_wrong_with_a_member(folder, harm: Callable, message: str, read: Callable):
    work = folder / "work"
    work.mkdir()
    for name in ("a", "b", "pair"):
        (folder / f"{name}.safetensors").rename(work / f"{name}.safetensors")
    harm(work / "a.safetensors")
    with pytest.raises(ValueError, match=r"^pair\.safetensors: " + message) as told:
        read(work / "pair.safetensors")
    assert "\n" not in str(told.value)


def write_header(path: Path, content: dict) -> None:
    """A file without tensors."""
    content["checks"] = {"sha256": signature(content, {})}
    text = json.dumps({"__metadata__": {"attncalc": json.dumps(content)}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


NO_NAMES = ["", ".", "..", "../a", "a/../a", "/a", "\\a", "C:a", ".a", "a\0", "a\n", "\ud800"]


@pytest.mark.parametrize("name", [*NO_NAMES, "a" * 201, "ä" * 101])
def test_names_that_lead_elsewhere(folder, name):
    content = stored_header(folder / "pair.safetensors")
    content["members"][0]["name"] = name
    write_header(folder / "bad.safetensors", content)
    with pytest.raises(ValueError, match=r"^bad\.safetensors: a member is called .* no name of"):
        load(folder / "bad.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a", "sha256": "00"}, "the checksum of member 'a' is none"),
        ({"name": "a", "sha256": 1}, "header entry 'sha256' is missing or not a str"),
        ({"sha256": 64 * "0"}, "header entry 'name' is missing"),
        ({"name": "a", "sha256": 64 * "0", "path": "a"}, "unknown header entries"),
        ({"name": "a", "sha256": 64 * "0"}, "member 'a' has changed"),
        ({"name": "a" * 200, "sha256": 64 * "0"}, "member 'aaa"),
    ],
)
def test_damaged_references(folder, entry, message):
    content = stored_header(folder / "pair.safetensors")
    content["members"][0] = entry
    write_header(folder / "bad.safetensors", content)
    with pytest.raises(ValueError, match=r"^bad\.safetensors: .*" + message):
        load(folder / "bad.safetensors")


@pytest.mark.parametrize("read", [load, header])
def test_files_that_refer_without_end(folder, read):
    """Each refers twice to the one before: read as often as asked for, it would take 2^20 loads."""
    content = stored_header(folder / "pair.safetensors")
    for level in range(20):
        entry = {"name": f"{level - 1}" if level else "pair"}
        entry["sha256"] = checksum_of_header(folder / f"{entry['name']}.safetensors")
        content["members"] = [entry, entry]
        write_header(folder / f"{level}.safetensors", content)
    with pytest.raises(ValueError, match="the same model is twice in a committee"):
        read(folder / "19.safetensors")


def test_more_files_than_a_committee_may_have(folder, monkeypatch):
    monkeypatch.setattr(model_file, "MOST_MEMBERS", 4)
    with pytest.raises(ValueError, match="a committee of more than 4 files"):
        load(folder / "all.safetensors")  # itself, pair, a, b, c
    content = stored_header(folder / "pair.safetensors")
    content["members"] *= 51
    write_header(folder / "bad.safetensors", content)
    with pytest.raises(ValueError, match="a committee has 100 members or fewer"):
        load(folder / "bad.safetensors")


def checksum_of_header(path: Path) -> str:
    return stored_header(path)["checks"]["sha256"]


def test_no_weights_are_shipped_twice():
    seen: dict[str, str] = {}
    for name, path in shipped_models().items():
        by_member: dict[str, list[bytes]] = {}
        for key, tensor in sorted(load_file(path).items()):
            parts = key.split(".")
            which = parts[1] if parts[0] == "members" else ""
            by_member.setdefault(which, []).append(tensor.numpy().tobytes())
        for which, content in by_member.items():
            digest = hashlib.sha256(b"".join(content)).hexdigest()
            assert digest not in seen, f"member {which} of {name} is {seen[digest]}"
            seen[digest] = name


@pytest.mark.parametrize("name", [name for name in shipped_models() if "committee" in name])
def test_a_shipped_committee_is_that_of_its_copy(name, tmp_path):
    save(load(name), tmp_path / "copy.safetensors")
    assert any("sha256" in entry for entry in stored_header(shipped_models()[name])["members"])
    assert_same_results(name, tmp_path / "copy.safetensors")
