"""The benchmark scripts themselves: their arithmetic, their tables, and one real measurement."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a script of benchmarks/ under its plain name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in ("run", "engines", "structures", "make_peptide", "silicon"):
        sys.modules.pop(name, None)


def row(atoms: int, network: list[float], **more) -> dict:
    times = {"forward": [0.4 * t for t in network], "calculate": [1.25 * t for t in network]}
    times |= {"list_reused": [0.05 * t for t in network], "list_rebuilt": [3.0], "plain": [9.0]}
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


def test_the_peptide_is_built_with_its_bonds(load):
    from ase.neighborlist import natural_cutoffs, neighbor_list

    atoms = load("make_peptide").ac_ala3_nhme()
    bonds = np.bincount(neighbor_list("i", atoms, natural_cutoffs(atoms, 1.15)))
    valence = {"H": {1}, "O": {1}, "N": {3}, "C": {3, 4}}
    assert all(n in valence[s] for s, n in zip(atoms.symbols, bonds, strict=True))
    assert bonds.sum() == 2 * 41  # a chain without rings


def test_growth_is_the_exponent_and_its_noise(load):
    growth = load("run").growth
    rng = np.random.default_rng(0)
    sizes = (192, 1536, 6144)
    exact = [(n, [1e-3 * n**1.2] * 5) for n in sizes]
    np.testing.assert_allclose(growth(exact), 1.2, rtol=1e-12)
    noisy = [(n, list(n * rng.lognormal(sigma=0.1, size=20))) for n in sizes]
    exponent, low, high = growth(noisy)
    assert low < exponent < high
    assert low < 1.0 < high
    assert 0.01 < high - low < 0.1


def test_rounds_are_joined_call_by_call(load):
    merged = load("run").merged
    key = ("attncalc", "ethanol", 1)
    first, second = row(9, [1.0, 2.0]), row(9, [30.0], peak_MiB=999.0)
    failed = {"failed": "killed"}
    joined = merged([{key: first}, {key: second}, {key: failed}])[key]
    assert joined["network"] == [1.0, 2.0, 30.0]
    assert joined["peak_MiB"] == 999.0
    assert first["network"] == [1.0, 2.0]  # what was measured stays as it was
    assert merged([{key: failed}, {key: first}])[key]["network"] == [1.0, 2.0]
    assert merged([{key: failed}, {key: failed}])[key] == failed


def test_tables(load):
    run = load("run")
    rows = {
        ("attncalc", "water-192", 1): row(192, [10.0, 10.0, 40.0]),
        ("mace-torch", "water-192", 1): {
            k: v for k, v in row(192, [55.0]).items() if k not in run.PARTS[1:]
        },
        ("attncalc", "water-1536", 1): row(1536, [80.0]),
        ("mace-torch", "water-1536", 1): {"failed": "more than 18 GiB"},
    }
    entries, exponents = run.summary(rows), run.growths(rows)
    text = run.markdown(entries, exponents, "a machine", ["notes"])
    assert "| water-192 | 192 | 10.00 | 55.00 | 5.50 |" in text
    assert "| water-1536 | 1536 | 80.00 | more than 18 GiB |  |" in text
    # 10 ms of 12.5: 4 forward, 6 backward, 0.5 the list
    assert "| water-192 | 12.50 | 32.0 % | 48.0 % | 4.0 % | 16.0 % | 3.00 | 9.00 |" in text
    assert "| attncalc | 1 | 2 | 1.000 | " in text
    assert [g["engine"] for g in exponents] == ["attncalc"]
    json.dumps([entries, exponents])


def test_one_real_measurement(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--engines", "attncalc"]
    command += ["--systems", "ethanol", "--threads", "1", "--rounds", "1", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert (entry["atoms"], entry["edges"]) == (9, 72)
    assert 0 < entry["forward_ms"] < entry["network_ms"] < 1000
    assert entry["peak_MiB"] > entry["imported_MiB"] > 50
    assert "| ethanol | 9 |" in (tmp_path / "cpu.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu.json", "cpu.md"]


def test_a_worker_that_fails_is_told_in_one_line(load):
    failed = load("run").run_worker(sys.executable, ("mace-torch", "ethanol", 1), 0.1)
    assert list(failed) == ["failed"]
    assert "mace" in failed["failed"]
    assert "\n" not in failed["failed"]
