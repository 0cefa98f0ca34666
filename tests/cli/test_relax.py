"""attncalc relax: results, pictures, and what is kept when something stops it."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixScaled, FixSymmetry, Hookean
from ase.io import read, write
from ase.optimize import FIRE, LBFGS
from command_line import (
    COPPER,
    ETHANOL,
    attncalc,
    fails,
    files,
    fork_workers,
    labelled,
    succeeds,
)

from attncalc import AttnCalculator, plots
from attncalc.cli import relax as module
from attncalc.cli import relaxation
from attncalc.evaluator import Evaluator


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_relax(optimizer: str, ethanol_file: str) -> None:
    said = succeeds(
        *("relax", ethanol_file, "--model", ETHANOL, "--optimizer", optimizer, "-o", "out.xyz"),
        *("--fmax", 0.02),
    )
    model, course, *_, last = said.splitlines()
    assert model == "model: so3krates-ethanol (PBE+vdW-TS (MD17))"
    assert re.match(r"structure 0: converged in \d+ steps, largest force 0\.0[012]\d+ eV/Å", course)
    assert last == "wrote out.xyz, out.png"
    relaxed = read("out.xyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() <= 0.02
    again = AttnCalculator(ETHANOL)
    assert relaxed.get_potential_energy() == pytest.approx(again.get_potential_energy(relaxed))
    assert files() == {ethanol_file, "out.xyz", "out.png"}
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_relax_several_structures_and_their_cells() -> None:
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.7)]
    write("two.extxyz", frames)
    said = succeeds("relax", "two.extxyz", "--model", COPPER, "--cell", "--fmax", 0.005)
    ended = re.findall(r": converged in \d+ steps.*, largest stress (\S+) GPa, energy ", said)
    relaxed = read("two.relaxed.xyz", ":")
    volumes = [atoms.get_volume() for atoms in relaxed]
    assert volumes[0] == pytest.approx(volumes[1], rel=2e-3)
    assert 3.55**3 < volumes[0] < 3.65**3
    stresses = [np.abs(atoms.get_stress()).max() / units.GPa for atoms in relaxed]
    assert [float(stress) for stress in ended] == pytest.approx(stresses, abs=5e-5)


def rattled(n: int) -> list[Atoms]:
    frames = []
    for k in range(n):
        frames.append(bulk("Cu", a=3.6, cubic=True))
        frames[-1].rattle(0.1, seed=k)
    return frames


def test_relax_draws_every_course(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture shows what the optimizer did."""
    write("two.extxyz", rattled(2))
    drawn: list = []
    draw = plots.relax_summary

    def seen(courses, **options):
        drawn.append((courses, options))
        return draw(courses, **options)

    monkeypatch.setattr(plots, "relax_summary", seen)
    said = succeeds("relax", "two.extxyz", "--model", COPPER, "--fmax", 0.02)
    ((courses, options),) = drawn
    assert options == {
        "fmax": 0.02,
        "title": "two.extxyz, cu-emt (ASE EMT)",
        "outside": [False, False],
    }
    for k, (course, atoms) in enumerate(zip(courses, read("two.relaxed.xyz", ":"), strict=True)):
        assert f"structure {k}: converged in {len(course) - 1} steps" in said
        energy, largest = course[-1]
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        assert largest == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-6)
        assert course[0][0] > energy


@pytest.mark.parametrize("cell", [(), ("--cell",), ("--workers", 1)], ids=["", "cell", "many"])
def test_relaxed_structures_are_at_rest(cell: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no velocities, and no step and novelty of the frame that they were."""
    fork_workers(monkeypatch)
    (atoms,) = rattled(1)
    atoms.set_momenta(np.ones((4, 3)))
    atoms.info |= {"step": 70, "novelty": 3.0, "charge": 0}
    write("frame.extxyz", atoms)
    succeeds("relax", "frame.extxyz", "--model", COPPER, "--fmax", 0.02, *cell, "-o", "out.extxyz")
    relaxed = read("out.extxyz")
    assert "momenta" not in relaxed.arrays
    assert {"step", "novelty", "charge"} & set(relaxed.info) == {"charge"}


def test_relax_that_needs_more_steps(ethanol_file: str) -> None:
    """What there is gets written; the exit status tells."""
    result = attncalc("relax", ethanol_file, "--model", ETHANOL, "--steps", 2, "-o", "out.xyz")
    assert result.exit_code == 1
    assert "structure 0: NOT converged in 2 steps" in result.stdout
    assert result.stderr == "Error: 1 of 1 structures did not converge: increase --steps\n"
    assert len(read("out.xyz")) == 9


def test_relax_writes_all_or_nothing(ethanol_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, frames: list[Atoms]) -> None:
        path.write_text("9\n")
        raise OSError("disk full")

    monkeypatch.setattr(module, "require_writable", lambda path, frames: None)
    monkeypatch.setattr("attncalc.cli.files.write", half)
    result = attncalc("relax", ethanol_file, "--model", ETHANOL, "--steps", 1, "-o", "out.xyz")
    assert result.stderr == "Error: disk full\n"
    assert files() == {ethanol_file}


def two(**second) -> list[Atoms]:
    """Ethanol, and something else that may be impossible."""
    first = molecule("CH3CH2OH")
    other = second.pop("atoms", first).copy()
    other.info.update(second)
    return [first, other]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            two(atoms=molecule("SiH4")),
            "structure 1: this model was not trained on Si; its elements are: ",
        ),
        (two(charge=1, spin=2), "structure 1: total charge +1 e: this model supports neutral"),
        (two(spin=3), "structure 1: multiplicity 3: this model supports only the lowest"),
        (two(spin=2), 'structure 1: atoms.info["spin"] = 2 is impossible for 26 electrons'),
    ],
)
def test_relax_checks_all_structures_first(frames, message: str, monkeypatch) -> None:
    write("two.extxyz", frames)
    monkeypatch.setattr(module, "relax_one", None)
    assert message in fails("relax", "two.extxyz", "--model", ETHANOL)
    assert files() == {"two.extxyz"}


def test_relax_checks_cells_first(monkeypatch: pytest.MonkeyPatch) -> None:
    write("two.extxyz", [bulk("Cu"), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])])
    monkeypatch.setattr(module, "relax_one", None)
    said = fails("relax", "two.extxyz", "--model", COPPER, "--cell")
    assert said.startswith("Error: structure 1: stress needs a volume")


def test_relax_asks_whether_the_format_takes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    write("two.extxyz", [bulk("Cu"), bulk("Cu", a=3.7)])
    monkeypatch.setattr(module, "AttnCalculator", None)
    said = fails("relax", "two.extxyz", "--model", COPPER, "-o", "POSCAR")
    assert said == ("Error: POSCAR: a file of this format holds one structure, got 2; use .xyz")


@pytest.mark.parametrize("name", ["POSCAR", "coord", "out.cif", "out.traj"])
def test_relax_writes_what_ase_writes(name: str) -> None:
    """Also formats that ASE knows by the whole name."""
    write("one.extxyz", bulk("Cu", a=3.65, cubic=True))
    succeeds("relax", "one.extxyz", "--model", COPPER, "-o", name)
    assert len(read(name)) == 4
    assert files() == {"one.extxyz", name, str(Path(name).with_suffix(".png"))}


@pytest.mark.parametrize("problem", [ValueError("it broke"), KeyboardInterrupt()])
def test_relax_keeps_what_is_done(problem: BaseException, monkeypatch) -> None:
    write("three.extxyz", [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.6, 3.7)])
    relax_one, calls = module.relax_one, []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise problem
        return relax_one(*arguments)

    monkeypatch.setattr(module, "relax_one", breaks)
    monkeypatch.setattr(module, "are_relaxed_together", lambda *_: False)
    common = ("relax", "three.extxyz", "--model", COPPER)
    result = attncalc(*common, "-o", "out.xyz")
    saved = "2 of 3 structures are written to out.xyz"
    left = {"three.extxyz", "out.xyz"}
    if isinstance(problem, KeyboardInterrupt):
        assert (result.exit_code, result.stderr) == (130, f"stopped: {saved}\n")
        left.add("out.png")
    else:
        assert result.stderr == f"Error: structure 2: it broke; {saved}\n"
    assert len(read("out.xyz", ":")) == 2
    assert read("out.xyz", 1).get_forces().shape == (4, 3)
    assert files() == left


@pytest.mark.parametrize("problem", [None, ValueError("it broke"), KeyboardInterrupt()])
def test_relax_writes_now_and_then(problem: BaseException | None, monkeypatch) -> None:
    """Writing all structures after each one would take longer than the relaxations."""
    write("some.extxyz", [bulk("Cu", a=3.6)] * 30)
    clock, relax_one, written = itertools.count(), module.relax_one, []

    def breaks(number, *others):
        if number == 28 and problem is not None:
            raise problem
        return relax_one(number, *others)

    def counts(path, frames):
        written.append(len(frames))
        write(path, frames)

    # 1 s for writing, and 1 s for each structure
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(module, "relax_one", breaks)
    monkeypatch.setattr(module, "write_structures", counts)
    monkeypatch.setattr(module, "are_relaxed_together", lambda *_: False)
    result = attncalc("relax", "some.extxyz", "--model", COPPER, "-o", "out.xyz")
    assert result.exit_code == {type(None): 0, ValueError: 1}.get(type(problem), 130)
    last = 30 if problem is None else 28
    assert written == [1, 21, last]
    assert len(read("out.xyz", ":")) == last
    if problem is not None:
        assert "28 of 30 structures are written to out.xyz" in result.stderr


@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_keeps_the_structure_at_hand(n: int, monkeypatch) -> None:
    write("some.extxyz", [bulk("Cu", a=3.6, cubic=True)] * (n - 1) + rattled(1))
    largest = relaxation._largest
    seen: list[float] = []

    def interrupted(vectors) -> float:
        if len(seen) == n + 3:  # the perfect crystal takes no step
            raise KeyboardInterrupt
        seen.append(largest(vectors))
        return seen[-1]

    monkeypatch.setattr(relaxation, "_largest", interrupted)
    monkeypatch.setattr(module, "are_relaxed_together", lambda *_: False)
    common = ("relax", "some.extxyz", "--model", COPPER)
    result = attncalc(*common, "-o", "out.xyz", "--fmax", 1e-4)
    course = f"after 3 steps, largest force {seen[-1]:.4f} eV/Å"
    if n == 1:
        said = f"stopped: the structure {course} is written to out.xyz\n"
    else:
        said = f"stopped: 1 of 2 structures are written to out.xyz, and structure 1 {course}\n"
    assert (result.exit_code, result.stderr) == (130, said)
    frames = read("out.xyz", ":")
    assert len(frames) == n
    assert np.linalg.norm(frames[-1].get_forces(), axis=1).max() == pytest.approx(seen[-1])
    forces = AttnCalculator(COPPER).get_forces(frames[-1])
    assert np.allclose(forces, frames[-1].get_forces(), atol=1e-3), "of these very positions"
    assert Path("out.png").is_file()


def test_relax_that_breaks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_):
        raise RuntimeError("it broke")

    write("two.extxyz", [bulk("Cu"), bulk("Cu", a=3.7)])
    monkeypatch.setattr(module, "relax_one", breaks)
    monkeypatch.setattr(module, "are_relaxed_together", lambda *_: False)
    said = fails("relax", "two.extxyz", "--model", COPPER)
    assert said == "Error: structure 0: it broke; 0 of 2 structures are written"
    assert files() == {"two.extxyz"}


def many() -> list[Atoms]:
    """Of different sizes; one is relaxed already, one has fixed atoms."""
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.7)] + [bulk("Cu", a=3.6)]
    for k, atoms in enumerate(frames[:2]):
        atoms.rattle(0.1, seed=k)
    frames[1].set_constraint(FixAtoms([0, 2]))
    return frames


def test_relax_of_several_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes the way it goes alone, with ASE's FIRE."""
    write("many.extxyz", many())
    common = ("relax", "many.extxyz", "--model", COPPER, "--optimizer", "fire")
    said = succeeds(*common, "-o", "out.xyz")
    relaxed, steps = read("out.xyz", ":"), re.findall(r"converged in (\d+) steps", said)
    assert len(steps) == 3
    assert steps[2] == "0"
    for k, atoms in enumerate(many()):
        atoms.calc = AttnCalculator(COPPER)
        with FIRE(atoms, logfile=None) as fire:
            fire.run(fmax=0.01)
        assert fire.nsteps == int(steps[k])
        assert np.allclose(relaxed[k].positions, atoms.positions, atol=1e-4)
        energy = relaxed[k].get_potential_energy()
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        assert relaxed[k].get_stress().shape == (6,)
    written = read("many.extxyz", 1).positions  # eight decimals
    assert np.array_equal(relaxed[1].positions[[0, 2]], written[[0, 2]])
    monkeypatch.setattr(module, "ATOMS_AT_ONCE", 1)
    assert succeeds(*common, "-o", "b.xyz").split("wrote")[0] == said.split("wrote")[0]
    for one, other in zip(relaxed, read("b.xyz", ":"), strict=True):
        assert np.allclose(one.positions, other.positions, atol=1e-6)


def test_relax_of_several_by_lbfgs() -> None:
    """To the same minima."""
    write("many.extxyz", many())
    common = ("relax", "many.extxyz", "--model", COPPER, "--fmax", 1e-3)
    succeeds(*common, "-o", "out.xyz")
    succeeds(*common, "-o", "slower.xyz", "--optimizer", "fire")
    for one, other in zip(read("out.xyz", ":"), read("slower.xyz", ":"), strict=True):
        assert np.allclose(one.positions, other.positions, atol=2e-3)
        assert one.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-5)


def test_relax_of_one_is_that_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --workers too."""
    fork_workers(monkeypatch)
    write("many.extxyz", many())
    write("one.extxyz", many()[:1])
    succeeds("relax", "many.extxyz", "--model", COPPER, "-o", "several.xyz")
    said = succeeds("relax", "one.extxyz", "--model", COPPER, "-o", "alone.xyz")
    succeeds("relax", "one.extxyz", "--model", COPPER, "-o", "worker.xyz", "--workers", 1)
    alone = read("alone.xyz")
    assert np.array_equal(read("worker.xyz").positions, alone.positions)
    assert np.allclose(read("several.xyz", 0).positions, alone.positions, atol=1e-4)
    with LBFGS(many()[0], logfile=None) as ase:
        ase.atoms.calc = AttnCalculator(COPPER)
        ase.run(fmax=0.01)
    assert np.allclose(ase.atoms.positions, alone.positions, atol=5e-3)
    assert re.search(r"structure 0: converged in \d+ steps", said)


def interrupt(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Press Ctrl-C at this evaluation."""
    evaluate, calls = Evaluator.__call__, []

    def interrupted(self, system):
        calls.append(system)
        if len(calls) == call:
            raise KeyboardInterrupt
        return evaluate(self, system)

    monkeypatch.setattr(Evaluator, "__call__", interrupted)


def test_relax_of_one_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    write("one.extxyz", rattled(1))
    interrupt(monkeypatch, 4)
    result = attncalc("relax", "one.extxyz", "--model", COPPER, "-o", "out.xyz")
    assert result.exit_code == 130
    (course,) = re.findall(r"NOT converged in (2 steps, largest force \S+ eV/Å)", result.stdout)
    assert result.stderr == f"stopped: the structure after {course} is written to out.xyz\n"
    assert len(read("out.xyz")) == 4
    assert files() == {"one.extxyz", "out.xyz", "out.png"}


def test_relax_of_several_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    write("many.extxyz", many())
    interrupt(monkeypatch, 6)
    result = attncalc("relax", "many.extxyz", "--model", COPPER, "-o", "out.xyz")
    assert result.exit_code == 130
    assert result.stderr == (
        "stopped: 1 of 3 structures are relaxed; 3 are written to out.xyz as they are\n"
    )
    assert "structure 0: NOT converged in 4 steps" in result.stdout
    assert len(read("out.xyz", ":")) == 3
    assert files() == {"many.extxyz", "out.xyz", "out.png"}


def test_relax_of_several_names_a_structure_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = many()
    frames[1].positions[3] = frames[1].positions[2]
    write("many.extxyz", frames)
    monkeypatch.setattr(module, "ATOMS_AT_ONCE", 4)
    said = fails("relax", "many.extxyz", "--model", COPPER)
    assert said.startswith("Error: structure 1: atom 2 (Cu) and atom 3 (Cu) are 0.0e+00 Å apart")


def test_relax_of_several_by_the_default_model() -> None:
    """Which predicts charges, and Hirshfeld ratios, that ASE does not know."""
    write("many.extxyz", [molecule("H2O"), molecule("CH4")])
    succeeds("relax", "many.extxyz", "-o", "out.xyz")
    water, methane = read("out.xyz", ":")
    assert water.get_charges()[0] < -0.1 < 0.1 < water.get_charges()[1]
    assert water.get_forces().shape == (3, 3)
    assert np.abs(methane.get_forces()).max() <= 0.01


def test_relax_of_several_that_does_not_converge() -> None:
    write("many.extxyz", many())
    said = fails("relax", "many.extxyz", "--model", COPPER, "--steps", 2)
    assert said == "Error: 2 of 3 structures did not converge: increase --steps"


def test_relax_refuses_before_it_works(ethanol_file: str, monkeypatch) -> None:
    """A name that cannot be written is no surprise for after the relaxation."""
    monkeypatch.setattr(module, "AttnCalculator", None)
    Path("there.xyz").write_text("precious")
    common = ("relax", ethanol_file, "--model", ETHANOL, "-o")
    assert fails(*common, "there.xyz") == (
        "Error: there.xyz exists: choose another name, or use --overwrite"
    )
    assert Path("there.xyz").read_text() == "precious"
    Path("there.png").write_text("of an earlier run")
    assert fails(*common, "there.traj") == (
        "Error: there.png (the picture for there.traj) exists: choose another name, or use "
        "--overwrite"
    )
    assert fails(*common, "no/out.xyz") == "Error: no such folder: no"
    assert "out.foo: ASE cannot write structures to files of this type" in fails(*common, "out.foo")
    assert "out: ASE cannot write structures to files of this type" in fails(*common, "out")
    for name in ("out.png", "out.eps", "out.pov", "POSCAR.png"):  # .png is where the picture goes
        assert fails(*common, name) == (
            f"Error: {name}: structures cannot be read back from a file of this type; use .xyz or "
            ".extxyz"
        )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("out.poscar", "Lattice vectors must be finite"),
        ("out.vasp", "Lattice vectors must be finite"),
        ("out.xtl", "XtlmuSTEMWriter.__init__() missing"),
        ("out.geom", "You have 0 lattice vectors"),  # only with energy and forces
    ],
)
def test_relax_tries_the_format_first(
    name: str, why: str, ethanol_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "relax_one", None)
    said = fails("relax", ethanol_file, "--model", ETHANOL, "-o", name)
    ending = Path(name).suffix
    assert said.startswith(f"Error: {name}: ASE cannot write this structure as {ending} ({why}")
    assert said.endswith("); use .xyz")
    assert files() == {ethanol_file}


def test_relax_of_several_tries_the_format_first(monkeypatch: pytest.MonkeyPatch) -> None:
    write("two.extxyz", [bulk("Cu"), bulk("Cu", a=3.7, cubic=True)])
    monkeypatch.setattr(module, "_relax_together", None)
    said = fails("relax", "two.extxyz", "--model", COPPER, "-o", "out.xsf")
    assert said.startswith("Error: out.xsf: ASE cannot write these structures as .xsf (index 1 is")
    assert files() == {"two.extxyz"}


def test_stress_of_a_molecule_is_one_line(ethanol_file: str) -> None:
    said = fails("relax", ethanol_file, "--model", ETHANOL, "--cell")
    assert said == "Error: stress needs a volume: this structure does not have three cell vectors"


@pytest.mark.parametrize("value", ["-1", "0", "inf", "nan"])
def test_relax_to_less_than_nothing(value: str) -> None:
    said = fails("relax", "no.xyz", "--model", ETHANOL, "--fmax", value)
    assert said == f"Error: --fmax must be above 0 eV/Å and finite, got {value}"


@pytest.mark.parametrize("value", [0, -3])
def test_relax_in_no_steps(value: int) -> None:
    """However many structures there are."""
    said = fails("relax", "no.xyz", "--model", ETHANOL, "--steps", value)
    assert said == f"Error: --steps must be a positive integer, got {value}"


def test_relax_tells_the_spread_of_a_committee(ethanol_file: str) -> None:
    """Alone and in a batch."""
    model = ("--model", "so3krates-ethanol-committee", "--fmax", "0.1")
    pattern = r"committee's spread (0\.\d{4}) eV/Å"
    (told,) = re.findall(pattern, succeeds("relax", ethanol_file, *model, "-o", "one.xyz"))
    calculator = AttnCalculator("so3krates-ethanol-committee", device="cpu")
    calculator.get_forces(read("one.xyz"))
    largest = np.linalg.norm(calculator.spread["forces"], axis=1).max()
    assert float(told) == pytest.approx(largest, abs=2e-4)
    assert largest > 0.003
    frames = read(ethanol_file, ":") * 2
    write("two.xyz", frames)
    said = succeeds("relax", "two.xyz", *model, "-o", "both.xyz")
    assert len(re.findall(pattern, said)) == 2
    assert "spread" not in succeeds("relax", ethanol_file, "--model", ETHANOL, "-o", "other.xyz")


def test_relax_of_a_cell_without_remarks_of_libraries() -> None:
    write("cu.extxyz", labelled(1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        succeeds("relax", "cu.extxyz", "--model", COPPER, "--cell")
    of_libraries = [w for w in seen if "ase" in w.filename or "scipy" in w.filename]
    assert not of_libraries


def test_relax_names_bonds_that_broke() -> None:
    """As with its teacher, two atoms of phosphorus fly apart; a molecule of water does not."""
    frames = [molecule("H2O"), Atoms("P2", [[0, 0, 0], [0, 0, 1.9]])]
    write("both.xyz", frames)
    done = attncalc("relax", "both.xyz", "--json")
    whole, apart = json.loads(done.stdout)["structures"]
    assert (whole["broken_bonds"], apart["broken_bonds"]) == ([], [[0, 1]])
    said = done.stderr.splitlines()
    (line,) = (line for line in said if line.startswith("structure 1: "))
    assert re.search(r"; 1 bond broke: P-P of atoms 0 and 1 \(1\.90 -> \d\.\d\d Å\)$", line)
    assert not any("broke" in line for line in said if line.startswith("structure 0"))


def test_relax_as_json_quietly_and_again(ethanol_file: str) -> None:
    arguments = ("relax", ethanol_file, "--model", ETHANOL, "--fmax", "0.1", "-o", "out.xyz")
    found = json.loads(attncalc(*arguments, "--json").stdout)
    (structure,) = found["structures"]
    assert structure["converged"]
    assert structure["largest_force_eV_A"] <= 0.1
    assert structure["energy_eV"] == pytest.approx(read("out.xyz").get_potential_energy(), abs=1e-6)
    assert "out.xyz exists" in fails(*arguments)
    assert succeeds(*arguments, "--overwrite", "--quiet") == ""
    same = ("relax", ethanol_file, "--model", ETHANOL, "-o", ethanol_file, "--overwrite")
    assert "is the input" in fails(*same)


def test_relax_says_which_constraints_are_not_kept() -> None:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.02, seed=1)
    atoms.set_constraint([FixAtoms([6]), FixScaled([0], [True, True, False])])
    write("si.traj", atoms)
    common = ("relax", "si.traj", "--model", "so3krates-silicon", "--fmax", 0.5)
    warned = "si.xyz will not keep FixScaled: files of this type have none; use .traj"
    assert warned in attncalc(*common, "-o", "si.xyz").stderr
    for kept in ("out.traj", "CONTCAR"):
        assert succeeds(*common, "-o", kept)  # without a warning
    atoms.set_constraint(FixAtoms([6]))
    write("si.traj", atoms)
    assert succeeds(*common, "-o", "si2.xyz")
    assert "b.cif will not keep FixAtoms" in attncalc(*common, "-o", "b.cif").stderr


def test_relax_reads_a_file_with_an_at_sign() -> None:
    atoms = bulk("Si", cubic=True)
    write("si@2.cif", atoms)
    Path("si").write_text("another file")
    succeeds("relax", "si@2.cif", "--model", "so3krates-silicon", "-o", "relaxed@3.traj")
    assert "converged" in succeeds("relax", "relaxed@3.traj", "--model", "so3krates-silicon")


def slab() -> Atoms:
    """Stretched in the plane, with vacuum and a fixed layer."""
    atoms = fcc111("Cu", (2, 2, 3), a=3.75, vacuum=6.0)
    atoms.pbc = (True, True, False)
    atoms.set_constraint(FixAtoms(range(4)))
    atoms.rattle(0.03, seed=1)
    return atoms


def test_relax_leaves_vacuum_as_it_is() -> None:
    before = slab()
    write("slab.traj", before)
    said = succeeds("relax", "slab.traj", "--model", COPPER, "--cell", "-o", "out.traj")
    assert "cells relax along periodic directions only" in said
    assert "fixed atoms move with the cell" in said
    after = read("out.traj")
    assert after.cell[2].tolist() == before.cell[2].tolist()
    assert (after.cell[:2, 2] == 0).all()
    assert after.cell.lengths()[0] < before.cell.lengths()[0] - 0.05
    stress = after.get_stress(voigt=False)
    assert np.abs(stress[:2, :2]).max() < 1e-3 < before.get_volume()
    shifts = (after.positions - before.positions)[:4, 2]
    assert np.abs(shifts).max() < 1e-12, "fixed atoms keep their height"


def test_relax_refuses_cells_that_cannot_relax(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    forgotten, tilted = bulk("Cu", cubic=True), slab()
    forgotten.pbc = False
    tilted.rotate(20, "x", rotate_cell=True)
    for atoms, message in (
        (forgotten, "its cell cannot relax: no direction is periodic; set pbc if it is a crystal"),
        (tilted, "its cell cannot relax: periodic cell vectors must be perpendicular to the axes"),
    ):
        write("a.traj", atoms)
        assert message in fails("relax", "a.traj", "--model", COPPER, "--cell")
        write("a.xyz", atoms)
        many = attncalc(
            *("relax", "a.xyz", "--model", COPPER, "--cell", "--workers", 1, "-o", "b.xyz"),
            "--overwrite",
        )
        assert many.exit_code == 1
        assert message.split(";")[0] in Path("b.failed.xyz").read_text()


def test_relax_keeps_symmetry_and_keys_that_are_numbers() -> None:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.set_constraint([FixSymmetry(atoms), FixAtoms([])])
    atoms.info[1] = "first"
    write("sym.traj", atoms)
    common = ("relax", "sym.traj", "--model", COPPER, "--cell")
    assert "converged" in succeeds(*common, "-o", "out.traj")
    del atoms.info[1]  # ASE cannot write it
    write("sym.traj", atoms)
    assert "a.xyz will not keep FixSymmetry" in attncalc(*common, "-o", "a.xyz").stderr


def test_relax_without_cell_needs_no_aligned_one() -> None:
    """Structures with other constraints are relaxed one after the other, as with --cell."""
    tilted = slab()
    tilted.set_constraint(Hookean(0, 1, rt=2.0, k=1.0))
    tilted.rotate(20, "x", rotate_cell=True)
    write("a.traj", tilted)
    said = succeeds("relax", "a.traj", "--model", COPPER, "-o", "out.traj")
    assert "converged" in said
    assert "energies are those of the model, without the energy of springs (Hookean)" in said
    relaxed = read("out.traj")
    alone = relaxed.get_potential_energy(apply_constraint=False)
    assert f"-> {alone:.4f} eV" in said
    assert relaxed.get_potential_energy() > alone + 0.01
