"""Runs: the same bytes whatever happens to them, and files that can be trained on."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from command_line import Forked, wait_until
from teachers import spheres, tiny_model

from attncalc import AttnCalculator, data, train
from attncalc.sampling.chunk import KINDS, LARGEST_FORCE, Chunk
from attncalc.sampling.geometry import refusal
from attncalc.sampling.molecules import is_held_out
from attncalc.sampling.oracles import Labels
from attncalc.sampling.run import Settings, Summary, chunk_folder, held_out_file, sample
from attncalc.sampling.stored import chunk_bytes, read_chunk, write_frames

SETTINGS = Settings("teachers:spheres", seed=1, relax_steps=2, chunk_molecules=5)
N = 15


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A run without interruption, by one process."""
    path = tmp_path_factory.mktemp("whole") / "data.h5"
    return path, sample(SETTINGS, path, N)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is a fork of this process: what is imported here is not imported again."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)


def frames(path: Path) -> list[tuple[str, str, Atoms, float, np.ndarray]]:
    """Kind, name, structure, energy, forces."""
    with h5py.File(path) as file:
        kinds = file.attrs["kinds"].decode().split()
        names = [name.decode() for name in file["molecule_smiles"]]
        dataset = data.read(path)
        return [
            (kinds[kind], names[molecule], atoms, energy, forces)
            for kind, molecule, atoms, energy, forces in zip(
                file["kind"],
                file["molecule"],
                dataset.structures,
                dataset.energies,
                dataset.forces,
                strict=True,
            )
        ]


def assert_same_files(ours: Path, theirs: Path) -> None:
    assert ours.read_bytes() == theirs.read_bytes()
    assert held_out_file(ours).read_bytes() == held_out_file(theirs).read_bytes()


@pytest.mark.slow
def test_two_workers_write_what_one_does(whole, tmp_path: Path) -> None:
    sample(SETTINGS, tmp_path / "two.h5", N, workers=2)
    assert_same_files(tmp_path / "two.h5", whole[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path: Path) -> None:
    output = tmp_path / "killed.h5"
    arguments = ("--molecules", N, "--oracle", "teachers:spheres", "--seed", 1, "--relax-steps", 2)
    killed = Forked(
        *("sample", "-q", "-o", output, *arguments),
        changed=lambda: setattr(Settings.__init__, "__defaults__", (1, 2, 5)),
    )
    wait_until((chunk_folder(output) / "000000.npz").exists, killed)
    killed.kill()
    killed.ended()
    assert not output.exists()
    assert not (chunk_folder(output) / "000002.npz").exists()
    sample(SETTINGS, output, N)
    assert_same_files(output, whole[0])


@pytest.mark.slow
def test_more_molecules_extend_the_data(whole, forked, tmp_path: Path) -> None:
    output = tmp_path / "longer.h5"
    first = sample(SETTINGS, output, 8)
    assert first.n_molecules == 8
    # without time for a longer last chunk, the shorter one stays
    before = data.read(output)
    again = sample(SETTINGS, output, N, minutes=0.0)
    assert (again.n_molecules, again.new_frames) == (8, 0)
    np.testing.assert_array_equal(data.read(output).energies, before.energies)
    done = sample(SETTINGS, output, N)
    assert_same_files(output, whole[0])
    assert done.n_molecules == N
    assert done.new_frames < done.train.frames + done.test.frames
    # fewer are written, in whole chunks, and none is lost
    fewer = sample(SETTINGS, output, 8)
    assert (fewer.n_molecules, fewer.new_frames) == (10, 0)
    assert len(list(chunk_folder(output).glob("*.npz"))) == 3
    sample(SETTINGS, output, N, minutes=0.0)
    assert_same_files(output, whole[0])


def test_the_time_is_over_at_once(tmp_path: Path) -> None:
    done = sample(SETTINGS, tmp_path / "none.h5", N, minutes=0.0)
    assert (done.n_molecules, done.train.frames) == (0, 0)
    assert not (tmp_path / "none.h5").exists()


def test_labels_are_those_of_the_teacher(whole) -> None:
    for _, _, atoms, energy, forces in frames(whole[0])[::7]:
        atoms.calc = spheres()
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-5)


def test_structures_are_sane(whole) -> None:
    found = frames(whole[0]) + frames(held_out_file(whole[0]))
    for _, name, atoms, _, forces in found:
        assert refusal(atoms.numbers, atoms.positions) == ""
        assert np.linalg.norm(forces, axis=1).max() <= LARGEST_FORCE
        assert (atoms.numbers.sum() - atoms.info["charge"]) % 2 == 0, name
        assert atoms.info["spin"] == 1
        assert abs(atoms.info["charge"]) <= 1
    kinds = Counter(kind for kind, *_ in found)
    assert {"relaxed", "hot", "displaced", "stretched", "scan", "cluster"} <= kinds.keys()
    assert kinds.keys() <= set(KINDS)
    assert 0.1 < kinds["cluster"] / len(found) < 0.3


def test_charges_are_those_of_the_molecules(whole) -> None:
    from rdkit import Chem

    for _, name, atoms, _, _ in frames(whole[0]):
        mol = Chem.AddHs(Chem.MolFromSmiles(name))
        assert Chem.GetFormalCharge(mol) == atoms.info["charge"]
        assert sorted(a.GetAtomicNum() for a in mol.GetAtoms()) == sorted(atoms.numbers)


def test_no_molecule_is_in_both_files(whole) -> None:
    trained = {name for _, name, *_ in frames(whole[0])}
    held = {name for _, name, *_ in frames(held_out_file(whole[0]))}
    assert held
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, held))
    parts = [{part for name in names for part in name.split(".")} for names in (trained, held)]
    assert not {part for part in parts[0] if is_held_out(part)} & parts[1]


def test_the_summary_counts_what_is_there(whole) -> None:
    path, done = whole
    found = frames(path)
    assert done.train.frames == len(found) == len(data.stream(path))
    assert done.train.kinds == Counter(kind for kind, *_ in found)
    assert done.train.charges == Counter(atoms.info["charge"] for _, _, atoms, *_ in found)
    assert done.train.elements == Counter(s for _, _, a, *_ in found for s in a.symbols)
    forces = np.concatenate([forces for *_, forces in found])
    assert done.train.rms_force == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-6)
    # structures of a molecule without a conformer were never asked for
    of_frames = sum(n for reason, n in done.refused.items() if "force" in reason)
    assert done.n_outside == 0
    assert done.n_labels >= done.train.frames + done.test.frames + of_frames
    with h5py.File(path) as file:
        assert file.attrs["level_of_theory"] == b"teachers:spheres"
        assert file.attrs["teacher"].startswith(b"teachers:spheres, SHA-256 of the module ")


@pytest.mark.slow
def test_a_model_as_teacher_and_a_training_on_its_labels(forked, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny.safetensors")
    settings = Settings(str(model), seed=1, relax_steps=1, chunk_molecules=6)
    sample(settings, tmp_path / "data.h5", 12)
    calculator = AttnCalculator(model)
    with h5py.File(tmp_path / "data.h5") as file:
        bounds, dipoles = file["offsets"][:], file["dipole"][:]
        charges, ratios = (file[name][:] for name in ("atomic_charges", "hirshfeld_ratios"))
    for k, (_, _, atoms, energy, forces) in enumerate(frames(tmp_path / "data.h5")):
        if k % 9:
            continue
        atoms.calc = calculator
        mine = slice(*bounds[k : k + 2])
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-4)
        np.testing.assert_allclose(charges[mine], atoms.get_charges(), atol=1e-5)
        np.testing.assert_allclose(ratios[mine], calculator.hirshfeld_ratios, atol=1e-5)
        np.testing.assert_allclose(dipoles[k], atoms.get_dipole_moment(), atol=1e-4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: general\ndata: data.h5\nstream: true\nsplit: {sizes: [60, 20]}\nepochs: 1\n"
        "compile: never\nconfig: {cutoff: 3.0, num_features: 8, num_heads: 1, degrees: [1], "
        "num_layers: 1, num_basis: 8, head_features: 8, embed_charge: true}\n"
    )
    done = train.run(train.Recipe.from_yaml(recipe), tmp_path / "run")
    assert np.isfinite(done.history[-1]["validation_loss"])


def labelled(forces: np.ndarray, **changes: object) -> tuple[Atoms, Labels]:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], info={"charge": 0, "spin": 1})
    return atoms, Labels(**({"energy": -1.0, "forces": forces} | changes))


def test_bad_labels_are_refused() -> None:
    chunk, zeros = Chunk(), np.zeros((2, 3))
    chunk.add("hot", "[H][H]", *labelled(zeros))
    chunk.add("hot", "[H][H]", *labelled(zeros + 15.0))
    chunk.add("hot", "[H][H]", *labelled(zeros, energy=np.nan))
    chunk.add("hot", "[H][H]", *labelled(zeros, charges=np.array([np.inf, 0.0])))
    atoms, labels = labelled(zeros)
    atoms.positions[1, 2] = 0.5
    chunk.add("hot", "[H][H]", atoms, labels)
    assert len(chunk.frames) == 1
    assert chunk.refused == {
        "force above 25 eV/Å": 1,
        "labels not finite": 2,
        "atoms too close": 1,
    }


def test_a_chunk_without_frames(tmp_path: Path) -> None:
    (tmp_path / "0.npz").write_bytes(chunk_bytes(Chunk(), ["CC"]))
    contents = write_frames([tmp_path / "0.npz"], tmp_path / "x.h5", held_out=False, attributes={})
    assert contents.frames == 0
    assert not (tmp_path / "x.h5").exists()


def test_partial_charges_of_single_atoms_are_no_total_charges(tmp_path: Path) -> None:
    chunk = Chunk()
    for symbol, charge in (("F", -1), ("Na", 1), ("Ne", 0)):
        atoms = Atoms(symbol, info={"charge": charge, "spin": 1})
        labels = Labels(0.0, np.zeros((1, 3)), charges=np.array([charge + 0.25]))
        chunk.add("hot", f"[{symbol}]", atoms, labels)
    (tmp_path / "0.npz").write_bytes(chunk_bytes(chunk, ["F"]))
    path = tmp_path / "x.h5"
    write_frames([tmp_path / "0.npz"], path, held_out=False, attributes={})
    for dataset in (data.read(path), data.stream(path)):
        assert [atoms.info["charge"] for atoms in dataset.structures] == [-1, 1, 0]
        partial = np.concatenate([dataset.charges[k] for k in range(3)])
        np.testing.assert_array_equal(partial, [-0.75, 1.25, 0.25])


CHARGES = {"charges": np.array([0.1, -0.1])}
DIPOLE = {"dipole": np.array([0.0, 0.0, -0.3])}


def chunk_file(path: Path, *labels: dict) -> Path:
    """A chunk of hydrogen molecules that have these optional labels."""
    chunk = Chunk()
    for changes in labels:
        chunk.add("hot", "[H][H]", *labelled(np.zeros((2, 3)), **changes))
    path.write_bytes(chunk_bytes(chunk, ["[H][H]"]))
    return path


@pytest.mark.parametrize(
    ("chunks", "left_out", "written"),
    [
        ([[CHARGES, {}], [CHARGES, CHARGES]], ("atomic_charges",), set()),
        ([[CHARGES | DIPOLE], [DIPOLE]], ("atomic_charges",), {"dipole"}),
        ([[DIPOLE], [CHARGES | DIPOLE], []], ("atomic_charges",), {"dipole"}),
        ([[CHARGES, DIPOLE]], ("atomic_charges", "dipole"), set()),
        ([[DIPOLE, CHARGES], [{}]], ("atomic_charges", "dipole"), set()),
        ([[CHARGES | DIPOLE], [], [CHARGES | DIPOLE]], (), {"atomic_charges", "dipole"}),
        ([[{}], [{}]], (), set()),
    ],
)
def test_only_labels_of_all_frames_are_written(
    tmp_path: Path, chunks: list[list[dict]], left_out: tuple[str, ...], written: set[str]
) -> None:
    files = [chunk_file(tmp_path / f"{k}.npz", *labels) for k, labels in enumerate(chunks)]
    path = tmp_path / "x.h5"
    contents = write_frames(files, path, held_out=False, attributes={})
    assert contents.frames == sum(map(len, chunks))
    assert contents.left_out == left_out
    with h5py.File(path) as file:
        assert file.keys() & {"atomic_charges", "hirshfeld_ratios", "dipole"} == written
        assert all(len(file[name]) == len(file["R" if name[0] == "a" else "E"]) for name in written)
    assert len(data.read(path)) == contents.frames
    # both files of a run have the same labels
    assert write_frames(files, path, held_out=True, attributes={}).left_out == left_out


def test_chunks_with_too_few_labels_go_on(tmp_path: Path) -> None:
    old = chunk_file(tmp_path / "0.npz", {}, {})
    with np.load(old) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    about.pop("incomplete", None)
    np.savez(old, **(arrays | CHARGES | {"about": np.array(json.dumps(about))}))
    path = tmp_path / "x.h5"
    contents = write_frames([old], path, held_out=False, attributes={})
    assert (contents.frames, contents.left_out) == (2, ("atomic_charges",))
    assert data.read(path).charges is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"seed": 2}, "begun with seed 1, not 2"), ({"relax_steps": 3}, "steps 2")],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict, says: str) -> None:
    output = tmp_path / "data.h5"
    sample(SETTINGS, output, N, minutes=0.0)
    other = Settings(**(vars(SETTINGS) | changes))
    with pytest.raises(ValueError, match=says):
        sample(other, output, N, minutes=0.0)
    sample(other, output, N, minutes=0.0, overwrite=True)
    stored = json.loads((chunk_folder(output) / "settings.json").read_text())
    assert stored["seed"] == other.seed


def test_labels_are_kept_if_the_oracle_is_misspelt(tmp_path: Path) -> None:
    output = tmp_path / "data.h5"
    sample(SETTINGS, output, N, minutes=0.0)
    kept = sorted(path.name for path in chunk_folder(output).iterdir())
    other = Settings(**(vars(SETTINGS) | {"oracle": "gfn"}))
    with pytest.raises((OSError, ValueError), match="gfn"):
        sample(other, output, N, overwrite=True)
    assert sorted(path.name for path in chunk_folder(output).iterdir()) == kept


def test_an_output_without_chunks_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data.h5").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        sample(SETTINGS, tmp_path / "data.h5", N)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    output = tmp_path / "data.h5"
    sample(SETTINGS, output, N, minutes=0.0)
    (chunk_folder(output) / "000000.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"000000\.npz: damaged"):
        sample(SETTINGS, output, N)


def test_frames_outside_the_training_of_the_oracle_are_counted(tmp_path: Path) -> None:
    chunk, zeros = Chunk(), np.zeros((2, 3))
    chunk.add("hot", "[H][H]", *labelled(zeros))
    chunk.add("hot", "[H][H]", *labelled(zeros, is_outside=True))
    (tmp_path / "0.npz").write_bytes(chunk_bytes(chunk, ["[H][H]"]))
    assert json.loads(str(read_chunk(tmp_path / "0.npz")["about"]))["n_outside"] == 1
