"""The benchmark scripts themselves: their arithmetic, their tables, and one real measurement."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

PEER = "so3krates-torch=PYTHON or mace-torch=PYTHON or nequip=PYTHON"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script of benchmarks/ under its plain name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in (
        "run",
        "engines",
        "structures",
        "tables",
        "mend_silicon",
        "train",
        "training_steps",
    ):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "study", sorted((BENCHMARKS / "studies").glob("*.py")), ids=lambda x: x.stem
)
def test_studies_find_what_they_import(study, load, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    runpy.run_path(str(study))


def row(atoms: int, network: list[float], **more) -> dict:
    times = {"forward": [0.4 * t for t in network], "calculate": [1.25 * t for t in network]}
    times |= {"list_reused": [0.05 * t for t in network], "list_rebuilt": [3.0], "plain": [9.0]}
    times |= {"ase_step": [2 * t for t in network]}
    return {"atoms": atoms, "edges": 40 * atoms, "imported_MiB": 200.0, "peak_MiB": 300.0} | (
        {"network": network, **times, **more}
    )


def test_structures_are_what_their_names_say(load):
    systems = load("structures").SYSTEMS
    sizes = {name: len(make()) for name, make in systems.items()}
    assert list(sizes.values()) == [9, 21, 42, 192, 1536, 6144]
    assert systems["peptide"]().get_chemical_formula() == "C12H22N4O4"
    for name in ("water-192", "water-6144"):
        box = systems[name]()
        mass = box.get_masses().sum() * 1.66053907e-24  # g
        assert mass / (box.get_volume() * 1e-24) == pytest.approx(0.997, abs=0.003)
        assert box.pbc.all()


def test_growth_is_the_exponent_with_what_rounds_leave_open(load):
    growth = load("run").growth
    sizes = (192, 1536, 6144)
    exact = [(n, 1e-3 * n**1.2) for n in sizes]
    np.testing.assert_allclose(growth([exact, exact]), 1.2, rtol=1e-12)
    exponent, low, high = growth([exact])
    assert exponent == pytest.approx(1.2)
    assert np.isnan(low)
    assert np.isnan(high)
    # what disturbs all calls of a box in a round: the interval holds the truth as often as it says
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        rounds = [[(n, n * rng.lognormal(sigma=0.03)) for n in sizes] for _ in range(3)]
        _, low, high = growth(rounds)
        hits.append(low < 1.0 < high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_rounds_are_joined_call_by_call(load):
    merged = load("run").merged
    key = ("attncalc", "ethanol", 1)
    first, second = row(9, [1.0, 2.0]), row(9, [30.0], peak_MiB=999.0)
    failed = {"failed": "killed"}
    joined = merged([{key: first}, {key: second}, {key: failed}])[key]
    assert joined["network"] == [1.0, 2.0, 30.0]
    assert joined["peak_MiB"] == 999.0
    assert first["network"] == [1.0, 2.0]  # what was measured stays as it was
    assert joined["failed_rounds"] == 1
    assert merged([{key: failed}, {key: first}])[key]["network"] == [1.0, 2.0]
    assert merged([{key: failed}, {key: failed}])[key] == failed


def test_tables(load):
    run = load("run")
    rows = {
        ("attncalc", "water-192", 1): row(192, [10.0, 10.0, 40.0]),
        ("mace-torch", "water-192", 1): {
            k: v for k, v in row(192, [55.0]).items() if k not in run.PARTS[2:]
        },
        ("attncalc", "water-1536", 1): row(1536, [80.0]),
        ("mace-torch", "water-1536", 1): {"failed": "more than 18 GiB"},
    }
    in_two = {("attncalc", "water-1536", 2): row(1536, [50.0])}
    of_two = run.markdown(run.summary(run.merged([rows | in_two])), [], "a machine", [])
    assert "| attncalc, 1 / 2 thr. |" in of_two
    assert "| water-192 | 192 | 10.00 | 55.00 |  | 5.50 |  |" in of_two
    assert "| water-1536 | 1536 | 80.00 | more than 18 GiB | 50.00 |  | 1.60 |" in of_two
    entries, exponents = run.summary(run.merged([rows])), run.growths([rows])
    text = run.markdown(entries, exponents, "a machine", ["notes"])
    assert "| water-192 | 192 | 10.00 | 55.00 | 5.50 |" in text
    assert "| water-1536 | 1536 | 80.00 | more than 18 GiB |  |" in text
    assert "| water-192 | 192 | 20.00 | 110.00 | 5.50 |" in text  # through ASE
    # 10 ms of 12.5 the network, of which 6 backward; 0.5 the list
    assert "| water-192 | 12.50 | 80.0 % | 48.0 % | 4.0 % | 16.0 % | 3.00 | 9.00 |" in text
    at_once = {key: {k: v for k, v in one.items() if k != "forward"} for key, one in rows.items()}
    text_of_engine = run.markdown(run.summary(run.merged([at_once])), [], "a machine", [])
    assert "| 12.50 | 80.0 % | - | 4.0 % | 16.0 % | 3.00 | 9.00 |" in text_of_engine
    assert "mace-torch (another network) / attncalc, 1 thr." in text
    assert "| attncalc | 1 | 2 | 1.000 | one round only |" in text
    assert [g["engine"] for g in exponents] == ["attncalc"]
    three = run.growths([rows, rows, rows])
    assert "1.000 to 1.000" in run.markdown(entries, three, "a machine", [])
    failed = {"failed": "killed"}
    often = run.summary(run.merged([rows, rows | {("attncalc", "water-192", 1): failed}]))
    assert "10.00 (failed in 1 rounds)" in run.markdown(often, [], "a machine", [])
    json.dumps([entries, exponents])


def test_the_edges_that_the_published_equiformer_gets(load):
    engines = load("engines")
    rng = np.random.default_rng(0)
    positions, batch = rng.uniform(0, 4, (12, 3)), np.repeat([0, 1], [5, 7])
    senders, receivers = engines._radius_graph(
        torch.tensor(positions), r=2.5, batch=torch.tensor(batch), max_num_neighbors=1000
    )
    expected = [
        (j, i)
        for i in range(12)
        for j in range(12)
        if i != j and batch[i] == batch[j] and np.linalg.norm(positions[i] - positions[j]) < 2.5
    ]
    assert 10 < len(expected) < 62
    assert list(zip(senders.tolist(), receivers.tolist(), strict=True)) == expected


def test_a_peer_without_a_calculator_is_compared_with_the_network_of_its_kind(load):
    run = load("run")
    known = row(9, [55.0])
    rows = {
        ("attncalc", "ethanol", 1): row(9, [1.0]),
        ("attncalc-equiformer-l2", "ethanol", 1): row(9, [10.0]),
        ("equiformer", "ethanol", 1): {
            k: v for k, v in known.items() if k == "network" or k not in run.PARTS
        },
    }
    text = run.markdown(run.summary(run.merged([rows])), [], "a machine", [])
    assert "equiformer / attncalc-equiformer-l2, 1 thr." in text
    assert "| ethanol | 9 | 1.00 | 10.00 | 55.00 | 5.50 |" in text
    assert "| ethanol | 9 | 2.00 | 20.00 |  |  |" in text  # a step through ASE


def test_one_real_measurement(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--engines", "attncalc"]
    command += ["--systems", "ethanol", "--threads", "1", "--rounds", "1", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert (entry["atoms"], entry["edges"]) == (9, 72)
    assert "forward_ms" not in entry, "forces come in the same call"
    assert entry["network_ms"] > 0
    assert entry["peak_MiB"] > entry["imported_MiB"] > 50
    text = (tmp_path / "cpu.md").read_text()
    assert "| ethanol | 9 |" in text
    assert re.search(
        r"- attncalc: So3krates .* \(attncalc .*, torch [\d.]+.*, Python [\d.]+\)", text
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu.json", "cpu.md"]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("raise MemoryError", "more than 18 GiB"),
        (
            "raise ValueError('could not allocate a label')",
            "ValueError: could not allocate a label",
        ),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('{not json'); raise SystemExit('no model')", "no model"),
        ("pass", "no output"),
    ],
)
def test_why_a_worker_failed(load, monkeypatch, tmp_path, script, told):
    run = load("run")
    (tmp_path / "run.py").write_text(script)
    monkeypatch.setattr(run, "HERE", tmp_path)
    assert run.run_worker(sys.executable, ("attncalc", "ethanol", 1), 0.1) == {"failed": told}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--peer", "mace=python"],
            "--peer must be so3krates-torch=PYTHON or mace-torch=PYTHON or nequip=PYTHON",
        ),
        (
            ["--peer", "mace-torch"],
            "--peer must be so3krates-torch=PYTHON or mace-torch=PYTHON or nequip=PYTHON",
        ),
        (["--device", "cuda"], "on a GPU run benchmarks/gpu.py"),
        (["--rounds", "0"], "--rounds and numbers of threads must be positive"),
    ],
)
def test_arguments_that_make_no_sense(load, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit):
        load("run").parsed()
    assert message in capsys.readouterr().err


def test_swapped_shears_are_found_and_mended(load):
    mend = load("mend_silicon")
    stress = np.arange(6.0)
    assert mend.swapped(stress).tolist() == [0, 1, 2, 4, 3, 5]
    assert mend.swapped(mend.swapped(stress)).tolist() == stress.tolist()
    frames = []
    for k in range(6):
        atoms = bulk("Cu", cubic=True)
        change = np.eye(3)
        change[1, 2] = 0.01 * (k + 1)
        atoms.set_cell(atoms.cell.array @ change, scale_atoms=True)
        atoms.calc = EMT()
        frames.append(atoms)
    (row,) = [line for line in mend.evidence(frames) if line.startswith("| yz")]
    change, stored, other = (float(cell) for cell in row.split("|")[2:5])
    assert stored == pytest.approx(change, rel=0.02)
    assert abs(other) < 0.2 * change


def test_a_worker_that_fails_is_told_in_one_line(load):
    failed = load("run").run_worker(sys.executable, ("mace-torch", "ethanol", 1), 0.1)
    assert list(failed) == ["failed"]
    assert "mace" in failed["failed"]
    assert "\n" not in failed["failed"]


def rmd17(folder, n: int) -> None:
    """A file laid out as rMD17's, of ethanol that is rattled."""
    from ase.build import molecule

    rng = np.random.default_rng(0)
    atoms = molecule("CH3CH2OH")
    positions = atoms.positions + rng.normal(scale=0.03, size=(n, len(atoms), 3))
    arrays = {"z": atoms.numbers, "R": positions, "units": "E: eV, R: Angstrom, F: eV/Angstrom"}
    arrays |= {"E": rng.normal(size=n), "F": rng.normal(size=positions.shape)}
    splits = {"train_01": np.arange(n - 10), "test_01": np.arange(n - 10, n)}
    np.savez(folder / "rmd17_ethanol.npz", **arrays, **splits)


def step_row(step: list[float], **more) -> dict:
    times = {"step": step, "processor": [0.9 * t for t in step]}
    return times | {"versions": "v", "ready_s": 5.0, "held_MiB": 20.0, "peak_MiB": 500.0} | more


def test_training_steps_are_summed_up_over_rounds(load):
    train = load("train")
    ours, theirs = ("attncalc", "ethanol", 1), ("so3krates-torch", "ethanol", 1)
    rows = [
        (ours, step_row([10.0, 12.0], ready_s=90.0)),
        (theirs, step_row([60.0], held_MiB=60.0)),
        (ours, step_row([14.0], held_MiB=22.0)),
        (theirs, {"failed": "killed"}),
        (("mace-torch", "aspirin", 1), {"failed": "no model"}),
        (("attncalc-equiformer-l2", "aspirin", 1), step_row([100.0], held_MiB=100.0)),
        (("equiformer", "aspirin", 1), step_row([650.0], held_MiB=410.0)),
    ]
    entries = train.summary(rows)
    assert [e.get("step_ms") for e in entries] == [12.0, 60.0, None, 100.0, 650.0]
    assert entries[0]["epochs_per_hour"] == pytest.approx(3600 / (95 * 0.012))
    assert (entries[0]["ready_s"], entries[0]["rounds"], entries[0]["steps"]) == (90.0, 2, 3)
    text = train.markdown(entries, "a machine", ["notes"])
    assert "| ethanol | 10 | attncalc | 12.0 | 10.8 | 3,157.9 | 22 | 500 | 90 |" in text
    assert "| aspirin | 8 | mace-torch | no model |" in text
    assert "| so3krates-torch / attncalc | ethanol | 5.00 | 5.00 | 2.73 |" in text
    assert "| equiformer / attncalc-equiformer-l2 | aspirin | 6.50 | 6.50 | 4.10 |" in text
    json.dumps(entries)


def test_a_real_training_step(tmp_path):
    rmd17(tmp_path, n=140)
    command = [sys.executable, str(BENCHMARKS / "train.py"), str(tmp_path), "--rounds", "1"]
    command += ["--engines", "attncalc-eager", "--systems", "ethanol", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "out" / "train.json").read_text())["rows"]
    assert "failed" not in entry, entry
    assert entry["step_ms"] > 0
    assert entry["peak_MiB"] > 100 > entry["held_MiB"] > 1
    text = (tmp_path / "out" / "train.md").read_text()
    assert re.search(r"\| ethanol \| 10 \| attncalc-eager \| [\d.,]+ \|", text)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.json", "train.md"]


def test_data_that_are_not_there(load, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), "--systems", "aspirin"])
    with pytest.raises(SystemExit):
        load("train").parsed()
    assert f"there is no rmd17_aspirin.npz in {tmp_path}" in capsys.readouterr().err


def test_joined_models_tell_what_each_was_trained_on(load, tmp_path, monkeypatch):
    from ase.build import molecule

    from attncalc import AttnCalculator
    from attncalc import load as load_model

    ethanol, rng = molecule("CH3CH2OH"), np.random.default_rng(0)
    frames = ethanol.positions + 0.03 * rng.normal(size=(4, 9, 3))
    labels = {"E": rng.normal(size=4), "F": rng.normal(size=(4, 9, 3))}
    data = {"R": frames, "z": ethanol.numbers, **labels, "units": "eV, eV/angstrom"}
    np.savez(tmp_path / "ethanol.npz", **data, test=np.array([3, 1, 0]))
    # a committee that one recipe has trained, from random weights, and a model that had a start
    members = ["so3krates-ethanol-committee", "equiformer-ethanol"]
    words = [*members, "--data", tmp_path / "ethanol.npz", "--split", "test"]
    output = tmp_path / "joined.safetensors"
    monkeypatch.setattr(sys, "argv", ["join_models.py", *map(str, words), "-o", str(output)])
    load("join_models").main()

    joined = load_model(output)
    told = joined.training_info["members"]
    assert [told[name]["start_from"] for name in members] == [
        "random weights",
        load_model("equiformer-ethanol").training_info["start_from"]["name"],
    ]
    ethanol.calc = AttnCalculator(output)
    errors = []
    for index in [3, 1, 0]:
        ethanol.positions = frames[index]
        errors.append(np.abs(ethanol.get_forces() - labels["F"][index]).mean())
    mean = joined.training_info["test_errors"]["force_mae"]
    assert mean == pytest.approx(np.mean(errors), abs=1e-6)
    card = output.with_suffix(".md").read_text()
    assert "validation, 3 test |" in card
    assert all(f"| {name} | {told[name]['start_from']} |" in card for name in members)


def test_one_system_has_the_edges_of_the_batch(load):
    from ase.build import molecule

    from attncalc import System
    from attncalc.neighbors import fresh_graph

    script, water = load("batching"), molecule("H2O")
    together = script.in_one_system(water)
    assert len(together) == 3 * script.N_MOLECULES
    batch, one = (
        fresh_graph(System.from_ase(structures), cutoff=4.5, species=(1, 8))
        for structures in ([water] * script.N_MOLECULES, [together])
    )
    assert one.n_edges == batch.n_edges == 6 * script.N_MOLECULES
    for ends in ("receivers", "senders"):
        np.testing.assert_array_equal(getattr(one, ends), getattr(batch, ends))


def test_stretched_water_is_the_same_molecules_further_apart(load):
    script, box = load("batching"), load("structures").water_box((3, 3, 3))
    thin = script.stretched(box, 1.5)
    np.testing.assert_allclose(thin.cell, 1.5 * box.cell)
    molecules = zip(*(x.positions.reshape(-1, 3, 3) for x in (box, thin)), strict=True)
    for before, after in molecules:
        np.testing.assert_allclose(after - after.mean(0), before - before.mean(0), atol=1e-12)
        np.testing.assert_allclose(after.mean(0), 1.5 * before.mean(0))


def test_growth_of_boxes_is_told_with_its_interval(load, monkeypatch):
    script, asked = load("dynamics"), []

    def measured(kind, n_atoms):
        asked.append(int(n_atoms))
        exponent = 1.02 + 0.01 * ((len(asked) - 1) // len(script.BOXES))  # 0.01 more every round
        row = {"atoms": int(n_atoms), "edges": 40 * int(n_atoms), "peak_MiB": 600}
        return row | {"ms": 1e-2 * int(n_atoms) ** exponent, "rise_MiB": 100}

    monkeypatch.setattr(script, "measured", measured)
    boxes = script.boxes_in_rounds()
    assert asked == list(script.BOXES) * script.BOX_ROUNDS
    text = script.markdown({"machine": "a machine", "models": [], "batches": [], "boxes": boxes})
    assert "Time grows as atoms^1.030 (95 % interval over the rounds: 1.005 to 1.055)" in text
    middle = sorted(boxes[0]["ms"])[1]
    assert f"| 1,536 | 61,440 | {middle:.0f} | {1e3 * middle / 1536:.1f} | 600 |" in text
