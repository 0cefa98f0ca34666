"""Dynamics: energy is conserved, temperature right, and a run the same run however it is cut."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength
from ase.md.verlet import VelocityVerlet
from contract import ethanol
from states import assert_equal
from torch import Tensor
from toys import gas, zeros_of

from attncalc import AttnCalculator, System, load, md
from attncalc.evaluator import Evaluator
from attncalc.md import simulation
from attncalc.md.callback import Callback
from attncalc.md.force import ForceOfFunction
from attncalc.md.watch import Watch
from attncalc.neighbors import ImpossiblePositions
from attncalc.result import Result

FS = units.fs
COPPER = Path(__file__).parents[1] / "models" / "cu-emt.safetensors"
LANGEVIN = md.Langevin(timestep=0.5 * FS, temperature=300, friction=0.01 / FS)
VERLET = md.Verlet(timestep=0.5 * FS)


@pytest.fixture(scope="module")
def forces() -> Evaluator:
    return Evaluator(load("so3krates-ethanol"))


def start(
    forces: Evaluator | Callable[[System], Result],
    *structures: Atoms,
    integrator=LANGEVIN,
    **options,
) -> md.MDState:
    system = System.from_ase(list(structures) or [ethanol()])
    return integrator.init(forces, system, **options)


def springs(strength: float) -> Callable[[System], Result]:
    """Atoms on springs at the origin, of so many eV/Å²."""

    def force(system: System) -> Result:
        x, n = system.positions, system.n_systems
        energies = 0.5 * strength * (x * x).sum(1)
        energy = torch.zeros(n, dtype=torch.float64).index_add_(0, system.system_idx, energies)
        return Result(energy, energies, -strength * x, torch.zeros(n, 3, 3))

    return force


# ------------------------------------------------------------------------------------- physics


def test_verlet_is_ases(forces: Evaluator) -> None:
    atoms = ethanol()
    first = start(forces, atoms, integrator=VERLET, temperature=300.0, seed=3)
    last = md.run(VERLET, forces, first, 100)
    atoms.calc = AttnCalculator("so3krates-ethanol")
    atoms.set_momenta(first.momenta.numpy())
    VelocityVerlet(atoms, 0.5 * FS).run(100)
    np.testing.assert_allclose(atoms.positions, last.system.positions, atol=1e-9)


def test_energy_fluctuates_as_the_square_of_the_timestep() -> None:
    spread = []
    timesteps = (0.25, 0.5, 1.0)
    force = springs(5.0)
    for timestep in timesteps:
        verlet = md.Verlet(timestep * FS)
        state = start(force, integrator=verlet, temperature=300.0)
        totals = []
        for _ in range(int(200 / timestep)):
            state = verlet.step(state, force)
            totals.append(float(state.conserved))
        spread.append(np.std(totals))
    orders = [np.log2(spread[1] / spread[0]), np.log2(spread[2] / spread[1])]
    assert all(1.9 < order < 2.1 for order in orders)


def test_langevin_samples_the_temperature_asked_for_in_momenta_and_positions() -> None:
    """Each system its own; BAOAB is exact for positions in a harmonic well."""
    temperatures, n_atoms = (100.0, 800.0), 400
    langevin = md.Langevin(2 * FS, temperatures, 0.05 / FS)
    force = springs(2.0)
    atoms = Atoms("H" * n_atoms, positions=np.zeros((n_atoms, 3)))
    atoms.set_masses([12.0] * n_atoms)
    masses = torch.full((2 * n_atoms,), 12.0)
    system = System.from_ase([atoms, atoms])
    state = langevin.init(force, system, masses=masses)
    kinetic, potential = [], []
    for step in range(2000):
        state = langevin.step(state, force)
        if step >= 500:
            kinetic.append(state.temperature.numpy())
            potential.append((2 * state.energy / (state.n_dof * units.kB)).numpy())
    for measured, tolerance in ((potential, 0.02), (kinetic, 0.02)):
        # 1,200 oscillators over 3 ps, correlated for 20 fs to 100 fs: 1 % is two deviations
        np.testing.assert_allclose(np.mean(measured, axis=0), temperatures, rtol=tolerance)


def test_velocities_decay_by_the_friction() -> None:
    """Of free atoms: the mean momentum goes as exp(-friction time)."""
    system = System.from_ase(gas(1000, 100 * np.eye(3)[None]))
    masses = np.full(1000, 40.0)
    thermal = float(np.sqrt(40 * units.kB * 300))
    momenta = np.tile([5 * thermal, 0, 0], (1000, 1))
    langevin = replace(LANGEVIN, friction=0.02 / FS)
    first = langevin.init(zeros_of, system, masses=masses, momenta=momenta)
    for n_steps in (50, 100):
        last = md.run(langevin, zeros_of, first, n_steps)
        expected = 5 * np.exp(-0.02 * 0.5 * n_steps)
        found = last.momenta[:, 0].mean().item() / thermal
        assert found == pytest.approx(expected, abs=4 / np.sqrt(1000))


def test_conserved_quantity_of_langevin_dynamics(forces: Evaluator) -> None:
    """Energy less heat moves only by the error of the timestep, while energy itself wanders."""
    first = start(forces, seed=1)
    energies, conserved = [], []
    state = first
    for _ in range(20):
        state = md.run(LANGEVIN, forces, state, 50)
        energies.append(float(state.energy + state.kinetic_energy))
        conserved.append(float(state.conserved))
    assert np.ptp(energies) > 0.05
    assert np.ptp(conserved) < 0.05 * np.ptp(energies)


def test_fixed_atoms_stay(forces: Evaluator) -> None:
    fixed = torch.tensor([True, True, *[False] * 7])
    for integrator in (VERLET, LANGEVIN):
        first = start(forces, integrator=integrator, fixed=fixed)
        assert float(first.n_dof) == 21
        last = md.run(integrator, forces, first, 30)
        moved = (last.system.positions != first.system.positions).any(1)
        assert torch.equal(moved, ~fixed)
        assert not last.momenta[fixed].any()
        assert last.forces[fixed].any()


def heavy_ethanol() -> Atoms:
    """Deuterated at two atoms, one atom fixed, in motion."""
    atoms = ethanol()
    masses = atoms.get_masses()
    masses[[3, 4]] = 2.014
    atoms.set_masses(masses)
    atoms.set_constraint(FixAtoms([0]))
    atoms.set_momenta(np.random.default_rng(0).normal(size=(9, 3)))
    return atoms


def test_velocities_are_drawn_for_the_masses_that_are_given() -> None:
    first = LANGEVIN.init(zeros_of, ethanol(), masses=np.linspace(2.0, 40.0, 9))
    assert float(first.temperature) == pytest.approx(LANGEVIN.temperature, rel=1e-10)


@pytest.mark.parametrize("integrator", [VERLET, LANGEVIN, md.Bussi(0.5 * FS, 300, 100 * FS)])
def test_structures_of_ase_bring_masses_velocities_and_fixed_atoms(
    forces: Evaluator, integrator
) -> None:
    atoms = heavy_ethanol()
    first = integrator.init(forces, [atoms, atoms], seed=0)
    assert torch.equal(first.masses, torch.from_numpy(np.tile(atoms.get_masses(), 2)))
    assert first.fixed.tolist() == [True, *[False] * 8] * 2
    assert torch.equal(first.momenta, torch.from_numpy(np.tile(atoms.get_momenta(), (2, 1))))
    assert not first.momenta[0].any()
    one = integrator.init(forces, atoms, seed=0)
    assert torch.equal(one.momenta, first.momenta[:9])


def test_arguments_go_before_what_structures_say(forces: Evaluator) -> None:
    given = {"masses": np.full(9, 3.0), "momenta": np.ones((9, 3)), "fixed": np.zeros(9, bool)}
    state = LANGEVIN.init(forces, heavy_ethanol(), **given)
    assert (state.masses == 3).all()
    assert (state.momenta == 1).all()
    assert state.fixed is None


def test_fixed_atoms_of_one_structure_out_of_an_iterator(forces: Evaluator) -> None:
    held = ethanol()
    held.set_constraint(FixAtoms([2]))
    state = LANGEVIN.init(forces, (atoms for atoms in (ethanol(), held)))
    assert state.fixed.nonzero().flatten().tolist() == [11]


def test_velocities_are_drawn_on_request(forces: Evaluator) -> None:
    frames = [heavy_ethanol()] * 3
    drawn = VERLET.init(forces, frames, temperature=[100.0, 300.0, 600.0])
    for number in (np.array(300.0), torch.tensor(300.0)):
        same = VERLET.init(forces, frames, temperature=number).momenta
        assert torch.equal(same, VERLET.init(forces, frames, temperature=300.0).momenta)
    np.testing.assert_allclose(drawn.temperature, [100, 300, 600], rtol=1e-12)
    np.testing.assert_allclose(LANGEVIN.init(forces, frames, new_velocities=True).temperature, 300)
    assert not torch.equal(drawn.momenta[:9], drawn.momenta[9:18])
    kept = VERLET.init(forces, frames)
    assert torch.equal(kept.momenta[:9], torch.from_numpy(frames[0].get_momenta()))


def test_velocities_of_fixed_atoms_are_none(forces: Evaluator) -> None:
    pushed = ethanol()
    pushed.set_momenta(np.eye(9, 3))
    pushed.set_constraint(FixAtoms([0, 1, 2]))
    np.testing.assert_allclose(LANGEVIN.init(forces, pushed).temperature, 300)


def test_given_velocities_go_before_those_of_some_structures(forces: Evaluator) -> None:
    frames = [heavy_ethanol(), ethanol()]
    state = LANGEVIN.init(forces, frames, momenta=np.ones((18, 3)))
    assert (state.momenta[1:] == 1).all()


def test_a_system_says_nothing_of_masses_and_velocities(forces: Evaluator) -> None:
    atoms = heavy_ethanol()
    bare, plain = start(forces, atoms, seed=1), LANGEVIN.init(forces, ethanol(), seed=1)
    for name in ("masses", "momenta"):
        assert torch.equal(getattr(bare, name), getattr(plain, name)), name
    assert bare.fixed is None


def test_structures_that_cannot_start_together(forces: Evaluator) -> None:
    message = r"structure 1 has no velocities but others have: set them for all or for none \(in Py"
    with pytest.raises(ValueError, match=message):
        LANGEVIN.init(forces, [heavy_ethanol(), ethanol()])
    held, still, absent = ethanol(), ethanol(), ethanol()
    held.set_constraint(FixBondLength(0, 1))
    still.set_constraint(FixAtoms(range(9)))
    absent.set_constraint(FixAtoms([20]))
    with pytest.raises(ValueError, match=r"^the constraint FixBondLengths needs ASE's integrators"):
        LANGEVIN.init(forces, held)
    for wrong, message in (
        (held, "the constraint FixBondLengths needs"),
        (still, "no atom can move"),
        (absent, "FixAtoms holds atom 20, but there are 9 atoms"),
    ):
        with pytest.raises(ValueError, match=f"^structure 1: {message}"):
            LANGEVIN.init(forces, [ethanol(), wrong])
    with pytest.raises(ValueError, match="fixed must be True or False for each atom"):
        LANGEVIN.init(forces, ethanol(), fixed=range(9))


def test_initial_velocities() -> None:
    force = springs(1.0)
    molecule, crystal = ethanol(), bulk("Cu", cubic=True)
    state = start(force, molecule, crystal, integrator=VERLET, temperature=[200.0, 500.0])
    assert state.n_dof.tolist() == [3 * 9 - 6, 3 * 4 - 3]
    np.testing.assert_allclose(state.temperature, [200, 500], rtol=1e-12)
    arms = state.system.positions[:9] - torch.tensor(molecule.get_center_of_mass())
    assert state.momenta[:9].sum(0).abs().amax() < 1e-12
    assert torch.linalg.cross(arms, state.momenta[:9]).sum(0).abs().amax() < 1e-12
    given = torch.ones(13, 3)
    assert torch.equal(start(force, molecule, crystal, momenta=given).momenta, given.double())
    alone = start(force, crystal, replicas=torch.tensor([1]), integrator=VERLET, temperature=500.0)
    assert torch.equal(alone.momenta, state.momenta[9:])


# ---------------------------------------------------------------------- the same run, however cut


@pytest.mark.parametrize("periodic", [False, True])
def test_drift_and_rotation_are_no_heat(periodic: bool) -> None:
    """Given velocities, as from a Langevin run: temperature is the Thermometer's."""
    atoms = bulk("Cu", cubic=True) if periodic else ethanol()
    linear, alone = Atoms("CO", [[0, 0, 0], [0.3, 0.4, 1.0]]), Atoms("Ar")
    rng = np.random.default_rng(0)
    frames = [atoms, linear, alone]
    for frame in frames:
        frame.set_momenta(rng.normal(loc=[3.0, 0.0, 1.0], size=(len(frame), 3)))
    momenta = torch.from_numpy(np.concatenate([frame.get_momenta() for frame in frames]))
    for integrator, ensemble in ((VERLET, "nve"), (LANGEVIN, "nvt")):
        state = start(springs(1.0), *frames, integrator=integrator, momenta=momenta)
        expected = [md.Thermometer.for_run(f, ensemble).temperature(f) for f in frames]
        np.testing.assert_allclose(state.temperature, expected, rtol=1e-10)


def test_chunks_do_not_matter(forces: Evaluator) -> None:
    first = start(forces)
    whole = md.run(LANGEVIN, forces, first, 60, chunk=60)
    assert_equal(md.run(LANGEVIN, forces, first, 60, chunk=1), whole)
    assert_equal(md.run(LANGEVIN, forces, first, 60, chunk=7), whole)
    part = md.run(LANGEVIN, forces, first, 25)
    assert_equal(md.run(LANGEVIN, forces, part, 35), whole)
    assert first.step == 0


def test_batching_does_not_matter(forces: Evaluator) -> None:
    warm = ethanol()
    warm.positions *= 1.02
    together = start(forces, ethanol(), warm)
    last = md.run(LANGEVIN, forces, together, 40)
    alone = start(forces, warm, replicas=torch.tensor([1]))
    mine = md.run(LANGEVIN, forces, alone, 40)
    # rounding of float32 forces depends on what shares a block of pairs
    assert (last.system.positions[9:] - mine.system.positions).abs().amax() < 1e-5
    assert (last.momenta[9:] - mine.momenta).abs().amax() < 1e-3


@pytest.fixture
def blind(forces: Evaluator) -> Iterator[Evaluator]:
    """As on a GPU: within a chunk nobody asks whether the list still holds."""
    forces.checks_list_every_step = False
    yield forces
    forces.checks_list_every_step = True


def test_steps_after_an_atom_moved_too_far_are_done_again(
    blind: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = replace(LANGEVIN, temperature=2000)
    first = start(blind, integrator=hot, seed=2)
    cut_short = []
    take_steps = simulation._steps

    def counting(integrator, force, state, n):
        after = take_steps(integrator, force, state, n)
        cut_short.append(0 < after.step - state.step < n)
        return after

    monkeypatch.setattr(simulation, "_steps", counting)
    last = md.run(hot, blind, first, 200, chunk=100)
    assert sum(cut_short) >= 2
    blind.checks_list_every_step = True
    assert_equal(md.run(hot, blind, first, 200), last)


def test_all_valid_steps_are_kept(blind: Evaluator) -> None:
    hot = replace(LANGEVIN, temperature=2000)
    first = start(blind, integrator=hot, seed=2)
    kept = simulation._steps(hot, blind, first, 120)
    assert 0 < kept.step < 120
    n_valid, state = 0, first
    while not blind.neighbors.needs_rebuild(state.system):  # its forces are those of this list
        n_valid, state = n_valid + 1, hot.step(state, lambda system: blind.without_check(system)[0])
    assert kept.step == n_valid - 1
    assert simulation._steps(hot, blind, kept, 5) is kept


def test_no_step_counts_after_a_list_has_ended() -> None:
    """Though it would hold again, because the atom came back."""
    asked: list[int] = []

    class Ends(ForceOfFunction):
        checks_list_every_step = False

        def without_check(self, system: System) -> tuple[Result, torch.Tensor]:
            asked.append(len(asked))
            return self(system), torch.tensor(len(asked) == 3)

    force = Ends(springs(1.0), torch.device("cpu"))
    first = start(force, integrator=VERLET)
    asked.clear()
    found = simulation._steps(VERLET, force, first, 5)
    assert len(asked) == 5
    assert found.step == 2
    assert_equal(found, VERLET.step(VERLET.step(first, force), force))


def test_chunks_follow_the_life_of_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hot atoms that are cooled: lists then last longer than before."""
    forces = Evaluator(load("so3krates-ethanol"), skin=0.3)
    forces.checks_list_every_step = False
    tried = []
    take_steps = simulation._steps

    def counting(integrator, force, state, n):
        tried.append(n)
        return take_steps(integrator, force, state, n)

    monkeypatch.setattr(simulation, "_steps", counting)
    hot = replace(LANGEVIN, temperature=1000)
    state = start(forces, integrator=hot, seed=2)
    cold = replace(LANGEVIN, temperature=0.5, friction=0.5 / FS)
    md.run(cold, forces, state, 600, chunk=50)
    assert len(tried) < 60
    assert 600 <= sum(tried) < 750


def test_lists_without_a_skin() -> None:
    """No list lasts for a step: about two lists for each."""
    forces = Evaluator(load("so3krates-ethanol"), skin=0.0)
    forces.checks_list_every_step = False
    first = start(forces)
    made = forces.neighbors.n_rebuilds
    last = md.run(LANGEVIN, forces, first, 40, chunk=20)
    assert forces.neighbors.n_rebuilds - made <= 90
    forces.checks_list_every_step = True
    assert_equal(md.run(LANGEVIN, forces, first, 40), last)


def test_a_crystal_with_images_likewise(blind: Evaluator) -> None:
    copper = Evaluator(load(COPPER), skin=0.1)
    crystal = bulk("Cu", cubic=True) * (2, 2, 2)
    hot = replace(LANGEVIN, temperature=1500, timestep=2 * FS)
    first = start(copper, crystal, integrator=hot)
    checked = md.run(hot, copper, first, 40)
    copper.checks_list_every_step = False
    assert_equal(md.run(hot, copper, first, 40, chunk=20), checked)


# --------------------------------------------------------------------------------------- callbacks


class Recorder(md.Callback):
    """A callback that remembers what it was told."""

    def __init__(self, every: int) -> None:
        self.every, self.events = every, []

    def begin(self, state: md.MDState, integrator: object) -> None:
        self.events.append(("begin", state.step))

    def resume(self, state: md.MDState, integrator: object) -> None:
        self.events.append(("resume", state.step))

    def __call__(self, state: md.MDState) -> None:
        self.events.append(("call", state.step))

    def flush(self) -> None:
        self.events.append(("flush", -1))

    def end(self) -> None:
        self.events.append(("end", -1))


def calls(recorder: Recorder) -> list[int]:
    return [step for what, step in recorder.events if what == "call"]


def test_callbacks_are_called_when_it_is_their_turn() -> None:
    force = springs(1.0)
    one, other = Recorder(3), Recorder(5)
    state = md.run(VERLET, force, start(force, integrator=VERLET), 11, callbacks=[one, other])
    assert calls(one) == [0, 3, 6, 9, 11]
    assert calls(other) == [0, 5, 10, 11]
    assert one.events[0] == ("begin", 0)
    assert one.events[-1] == ("end", -1)
    again = Recorder(4)
    md.run(VERLET, force, state, 5, callbacks=[again])
    assert again.events[:2] == [("begin", 11), ("call", 11)]
    again = Recorder(4)
    of_a_run = state.replace(limit=torch.tensor([1e4]))  # as in a checkpoint
    md.run(VERLET, force, of_a_run, 5, callbacks=[again])
    assert again.events[0] == ("resume", 11)
    assert calls(again) == [12, 16]


def test_only_the_first_state_is_saved_before_others_have_seen_it(tmp_path: Path) -> None:
    """And they see it in the run that goes on, if the first one was killed in between."""

    class Noted(md.Checkpoint):
        def __call__(self, state: md.MDState) -> None:
            recorder.events.append(("saved", state.step))
            super().__call__(state)

    force, file, recorder = springs(1.0), tmp_path / "run.ckpt", Recorder(2)
    first = start(force, integrator=VERLET)
    md.run(VERLET, force, first, 4, callbacks=[Noted(file, every=2), recorder])
    order = [event for event in recorder.events if event[0] in ("call", "saved")]
    assert order[:2] == [("saved", 0), ("call", 0)]
    assert order[2:] == [(what, step) for step in (2, 4) for what in ("call", "saved")]
    killed, again = tmp_path / "killed.ckpt", Recorder(1)
    md.run(VERLET, force, first, 0, callbacks=[md.Checkpoint(killed, every=2)])
    md.run(VERLET, force, md.load_checkpoint(killed).state, 2, callbacks=[again])
    assert calls(again) == [0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: md.Checkpoint(folder / "run.ckpt", every=2),
        lambda folder: md.Log(folder / "run.csv", every=1),
        lambda folder: md.H5MDWriter(folder / "run.h5md", every=1),
    ],
    ids=["checkpoint", "log", "trajectory"],
)
def test_files_of_a_finished_run_survive_another_with_the_same_callbacks(
    make, tmp_path: Path
) -> None:
    """As where a cell of a notebook is run again."""
    force, callback = springs(1.0), make(tmp_path)
    last = md.run(VERLET, force, start(force, integrator=VERLET), 4, callbacks=[callback])
    written = callback.path.read_bytes()
    for _ in range(2):
        new = Recorder(1)
        with pytest.raises(FileExistsError, match="exists: choose another name"):
            md.run(VERLET, force, last, 4, callbacks=[new, callback])
        assert callback.path.read_bytes() == written


def test_a_state_of_an_earlier_step_does_not_cut_the_files_of_its_run(tmp_path: Path) -> None:
    """As where the cell of a notebook that resumes a run is executed twice."""
    force = springs(1.0)
    callbacks = [
        md.H5MDWriter(tmp_path / "run.h5md", every=1),
        md.Log(tmp_path / "run.csv", every=1),
        md.Checkpoint(tmp_path / "run.ckpt", every=1),
    ]
    md.run(VERLET, force, start(force, integrator=VERLET), 2, callbacks=callbacks)
    restart = md.load_checkpoint(tmp_path / "run.ckpt")
    md.run(restart.integrator, force, restart.state, 4, callbacks=callbacks)
    written = {one.path: one.path.read_bytes() for one in callbacks}
    with pytest.raises(ValueError, match=r"run\.ckpt: it is of step 6, this state of step 2: load"):
        md.run(restart.integrator, force, restart.state, 1, callbacks=callbacks)
    assert {one.path: one.path.read_bytes() for one in callbacks} == written
    (tmp_path / "run.ckpt").unlink()
    md.run(restart.integrator, force, restart.state, 1, callbacks=callbacks)
    assert len(md.read_h5md(tmp_path / "run.h5md")) == 4


def test_files_stay_in_one_folder_where_the_current_one_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaves(Callback):
        every = 2

        def __call__(self, state: md.MDState) -> None:
            monkeypatch.chdir(tmp_path / ("b" if state.step < 2 else "c"))

    for name in "abc":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    files = [md.Log("run.csv", every=1, trajectory="run.h5md"), md.Checkpoint("run.ckpt", every=1)]
    callbacks = [md.H5MDWriter("run.h5md", every=1), *files, Leaves()]
    monkeypatch.chdir(tmp_path)
    force = springs(1.0)
    last = md.run(VERLET, force, start(force, integrator=VERLET), 4, callbacks=callbacks)
    written = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.glob("*/*"))
    assert written == ["a/run.ckpt", "a/run.csv", "a/run.h5md"]
    assert len(md.read_log(tmp_path / "a" / "run.csv")) == 5
    assert md.load_checkpoint(tmp_path / "a" / "run.ckpt").state.step == last.step


def test_a_watch_begins_anew_with_every_run() -> None:
    """One that has stopped a run must not stop the next one at its first state."""
    ethanol_forces, told = Evaluator(load("so3krates-ethanol")), []
    watch = Watch(ethanol_forces, told.append, every=1, stop=True)
    outside = ethanol()
    outside.rattle(0.3, seed=1)
    for atoms, n_steps, n_told in ((outside, 0, 1), (ethanol(), 3, 1), (outside, 0, 2)):
        first = start(ethanol_forces, atoms, integrator=VERLET, temperature=1.0)
        assert md.run(VERLET, ethanol_forces, first, 3, callbacks=[watch]).step == n_steps
        assert len(told) == n_told


def test_callbacks_end_after_an_error() -> None:
    class Broken(Recorder):
        def __call__(self, state: md.MDState) -> None:
            raise OSError("disk full")

    force = springs(1.0)
    first, broken = Recorder(1), Broken(1)
    with pytest.raises(OSError, match="disk full"):
        md.run(VERLET, force, start(force, integrator=VERLET), 5, callbacks=[first, broken])
    assert first.events[-1] == broken.events[-1] == ("end", -1)


def test_every_callback_ends_whatever_happens_to_one() -> None:
    class Broken(Recorder):
        def end(self) -> None:
            raise OSError("disk full")

    force = springs(1.0)
    first, last = Recorder(1), Recorder(1)
    with pytest.raises(OSError, match="disk full"):
        md.run(
            VERLET, force, start(force, integrator=VERLET), 2, callbacks=[first, Broken(1), last]
        )
    assert first.events[-1] == last.events[-1] == ("end", -1)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_twice_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Recorder):
        def __call__(self, state: md.MDState) -> None:
            super().__call__(state)
            if state.step == 4:  # the second one, while what is done is written
                signal.raise_signal(signal.SIGINT)
            self.events.append(("written", state.step))

    steps = []
    step = md.Verlet.step

    def interrupted(self, state, force):
        steps.append(state.step)
        if state.step == 4 and len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, state, force)

    monkeypatch.setattr(md.Verlet, "step", interrupted)
    force = springs(1.0)
    slow, other = Slow(100), Recorder(100)
    with pytest.raises(KeyboardInterrupt):
        md.run(VERLET, force, start(force, integrator=VERLET), 9, callbacks=[slow, other], chunk=1)
    assert slow.events[-2:] == [("written", 4), ("end", -1)]
    assert other.events[-2:] == [("call", 4), ("end", -1)]


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_while_a_compiled_loop_returns_loses_nothing() -> None:
    """Numba makes a SystemError of what is raised while arrays are handed over."""
    force, recorder = springs(1.0), Recorder(100)
    first, asked = start(force, integrator=VERLET), []

    def interrupted(system: System) -> Result:
        asked.append(system)
        if len(asked) == 6:  # the first is for the state that the run begins with
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise SystemError("a function returned a result with an exception set") from error
        return force(system)

    with pytest.raises(KeyboardInterrupt):
        md.run(VERLET, interrupted, first, 9, callbacks=[recorder], chunk=1)
    assert recorder.events[-2:] == [("call", 4), ("end", -1)]


def test_the_first_state_is_looked_at() -> None:
    force, recorder = springs(1.0), Recorder(1)
    first = start(force, integrator=VERLET)
    broken = first.replace(forces=torch.full_like(first.forces, torch.nan))
    with pytest.raises(FloatingPointError, match="the run cannot start from this state: en"):
        md.run(VERLET, force, broken, 3, callbacks=[recorder])
    assert not recorder.events


def test_a_state_of_a_checkpoint_goes_to_the_device_of_the_model(tmp_path: Path) -> None:
    """Checkpoints are loaded on the CPU; the meta device stands for a GPU."""

    class Stop(Exception):
        pass

    class Elsewhere(ForceOfFunction):
        def follow(self, system: System) -> None:
            seen.append(system.device)
            raise Stop

    seen: list[torch.device] = []
    force, file = springs(1.0), md.Checkpoint(tmp_path / "run.ckpt", every=1)
    md.run(VERLET, force, start(force, integrator=VERLET), 1, callbacks=[file])
    _, state, _ = md.load_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(Stop):
        md.run(VERLET, Elsewhere(force, torch.device("meta")), state, 1)
    assert seen == [torch.device("meta")]


def test_a_mistake_in_a_program_is_no_explosion() -> None:
    def wrong(system: System) -> Result:
        raise ValueError("shapes do not fit")

    with pytest.raises(ValueError, match="shapes do not fit"):
        md.run(VERLET, wrong, start(springs(1.0), integrator=VERLET), 3)


def test_what_is_no_force() -> None:
    first = start(springs(1.0), integrator=VERLET)
    with pytest.raises(TypeError, match=r"or a function System -> Result, got str"):
        md.run(VERLET, "so3krates-ethanol", first, 3)
    with pytest.raises(TypeError, match=r"must return an attncalc\.Result, got float"):
        md.run(VERLET, lambda system: 0.0, first, 3)

    def in_place(system: System) -> Result:
        system.positions.requires_grad_()
        return springs(1.0)(system)

    with pytest.raises(TypeError, match=r"differentiate by a copy, system\.positions\.clone"):
        md.run(VERLET, in_place, first, 3)


@pytest.mark.parametrize("given", [ethanol(), [ethanol()], None])
def test_what_is_no_state(given: object) -> None:
    said = rf"^state must be one that integrator\.init\(.*\) returns, got {type(given).__name__}$"
    with pytest.raises(TypeError, match=said):
        md.run(VERLET, springs(1.0), given, 3)


@pytest.mark.parametrize("given", [None, md.Callback(), "run.h5md", [print], [md.Callback(), 3]])
def test_what_are_no_callbacks(given: object) -> None:
    first = start(springs(1.0), integrator=VERLET)
    wrong = given[-1] if isinstance(given, list) else given
    said = rf"^callbacks must be a list of md\.Callback, got {type(wrong).__name__}$"
    with pytest.raises(TypeError, match=said):
        md.run(VERLET, springs(1.0), first, 3, callbacks=given)


def test_callbacks_of_a_generator_are_called() -> None:
    seen: list[int] = []

    class Seen(Callback):
        every = 1

        def __call__(self, state: md.MDState) -> None:
            seen.append(state.step)

    first = start(springs(1.0), integrator=VERLET)
    md.run(VERLET, springs(1.0), first, 2, callbacks=(Seen() for _ in range(1)))
    assert seen == [0, 1, 2]


def test_an_integrator_without_parameters_and_a_calculator() -> None:
    first = start(springs(1.0), integrator=VERLET)
    with pytest.raises(TypeError, match="integrator is the class Verlet, not one with"):
        md.run(type(VERLET), springs(1.0), first, 3)
    with pytest.raises(TypeError, match=r"got AttnCalculator: `calculator\.evaluator` is one$"):
        md.run(VERLET, AttnCalculator("so3krates-ethanol"), first, 3)


def test_a_function_of_a_model_is_as_good_as_its_forces(forces: Evaluator) -> None:
    """A bias on top of a model, here of nothing."""

    def biased(system: System) -> Result:
        result = forces(system)
        return replace(result, forces=result.forces + 0.0)

    first = start(forces)
    assert_equal(start(biased), first)
    assert_equal(md.run(LANGEVIN, biased, first, 20), md.run(LANGEVIN, forces, first, 20))


def test_temperatures_of_any_kind() -> None:
    force = springs(1.0)
    for given in (np.float64(300), torch.tensor(300.0), [300.0], np.array([300.0])):
        langevin = md.Langevin(0.5 * FS, given, 0.01 / FS)
        np.testing.assert_allclose(start(force, integrator=langevin).temperature, [300])
    assert md.Langevin(FS, np.array([1.0, 2.0]), 1 / FS).temperature == (1.0, 2.0)
    assert not start(force, integrator=VERLET, temperature=0.0).momenta.any()


@pytest.mark.parametrize("integrator", [VERLET, LANGEVIN], ids=["nve", "nvt"])
def test_arrays_are_as_good_as_tensors(integrator) -> None:
    tensors = {
        "momenta": torch.linspace(-1, 1, 27, dtype=torch.float64).reshape(9, 3),
        "masses": torch.arange(1.0, 10.0, dtype=torch.float64),
        "fixed": torch.arange(9) == 2,
        "replicas": torch.tensor([5]),
    }
    force = springs(1.0)
    expected = start(force, integrator=integrator, **tensors)
    arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    first = start(force, integrator=integrator, **arrays)
    arrays["momenta"][:] = 0  # the state keeps a copy
    assert_equal(first, expected)
    lists = {name: tensor.tolist() for name, tensor in tensors.items()}
    assert_equal(start(force, integrator=integrator, **lists), expected)


@pytest.mark.parametrize("given", ["fast", [[1.0], [1.0, 2.0]], object()])
def test_momenta_that_are_no_numbers(given: object) -> None:
    kind = type(given).__name__
    said = f"^momenta must be a tensor or an array of numbers, got {kind}$"
    with pytest.raises(TypeError, match=said):
        start(springs(1.0), momenta=given)


def test_lists_suit_the_structure_that_a_run_begins_with() -> None:
    """Whatever was evaluated before: a skin for molecules would fill the memory for a crystal."""
    forces = Evaluator(load("so3krates-silicon"))
    molecule = System.from_ase(Atoms("Si2", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.3]]))
    LANGEVIN.init(forces, molecule)
    assert (forces.neighbors.skin, forces.neighbors.n_rebuilds) == (2.0, 1)
    LANGEVIN.init(forces, System.from_ase(bulk("Si", cubic=True)))
    assert (forces.neighbors.skin, forces.neighbors.n_rebuilds) == (0.5, 2)


def test_a_list_that_cannot_be_made_in_time_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    forces = Evaluator(load("so3krates-ethanol"))
    forces.checks_list_every_step = False
    first = start(forces)

    def prepare(self, force, system) -> None:
        if self.age == 4:
            raise ImpossiblePositions("two atoms lie on top of each other")

    monkeypatch.setattr(simulation._ListLifetime, "prepare", prepare)
    recorder = Recorder(1000)
    with pytest.raises(FloatingPointError, match=r"^stopped at 2\.0 fs: two atoms lie on top of"):
        md.run(LANGEVIN, forces, first, 100, callbacks=[recorder], chunk=2)
    assert recorder.events[-2:] == [("call", 4), ("end", -1)]


@pytest.mark.parametrize("chunk", [1, 16])
def test_an_explosion_stops_at_the_last_valid_state(forces: Evaluator, chunk: int) -> None:
    wild = md.Verlet(timestep=12 * FS)
    first = start(forces, integrator=wild, temperature=3000.0)
    seen: list[md.MDState] = []

    class Keeper(Recorder):
        def __call__(self, state: md.MDState) -> None:
            super().__call__(state)
            seen.append(state)

    keeper = Keeper(1000)
    with pytest.raises(FloatingPointError, match=r"^stopped at [\d.]+ fs: .* shorter timestep"):
        md.run(wild, forces, first, 2000, callbacks=[keeper], chunk=chunk)
    last = seen[-1]
    limit = wild.highest_temperature(first)
    assert not simulation._divergence(last, limit, last)
    assert simulation._advance(wild, forces, last, 1, limit, simulation._ListLifetime())[1]
    assert keeper.events[-1] == ("end", -1)


def test_all_callbacks_see_the_last_valid_state_of_an_explosion() -> None:
    """Also those that are not due with it, while another is."""
    force, calls_of_force = springs(1.0), []

    def breaks(system: System) -> Result:
        calls_of_force.append(system)
        result = force(system)
        broken = torch.full_like(result.forces, torch.nan)
        return replace(result, forces=broken) if len(calls_of_force) > 5 else result

    first, due, other = start(force, integrator=VERLET), Recorder(4), Recorder(1000)
    with pytest.raises(FloatingPointError, match=r"^stopped at 2\.0 fs"):
        md.run(VERLET, breaks, first, 9, callbacks=[due, other], chunk=1)
    assert calls(due)[-1] == calls(other)[-1] == 4


@pytest.mark.parametrize("timestep", [20, 40, 100])
def test_a_molecule_that_is_gone_and_cold_is_noticed(forces: Evaluator, timestep: float) -> None:
    """Atoms that left each other within a step feel nothing more, and the bath cools them."""
    wild = md.Langevin(timestep * FS, temperature=300, friction=0.01 / FS)
    first = start(forces, integrator=wild)
    with pytest.raises(FloatingPointError, match=r"^stopped at 0\.0 fs"):
        md.run(wild, forces, first, 100, chunk=50)


def test_a_molecule_that_flies_as_a_whole_is_not_hot() -> None:
    state = start(springs(1.0), integrator=VERLET, temperature=300)
    limit = VERLET.highest_temperature(state)
    momenta = state.momenta + state.masses[:, None] * torch.tensor([0.0, 2.0, 0.0])
    flying = state.replace(momenta=momenta)
    assert (flying.temperature_of_all_motion > 2 * limit).all()
    assert simulation._divergence(flying, limit, flying) == ""


def test_energy_that_leaps_is_noticed() -> None:
    force = springs(1.0)
    state = start(force, integrator=VERLET)
    limit = VERLET.highest_temperature(state)
    most = float(units.kB * limit * state.n_dof.sqrt())
    for leap, noticed in ((0.9 * most, False), (1.1 * most, True), (-1.1 * most, True)):
        found = simulation._divergence(state.replace(energy=state.energy + leap), limit, state)
        assert found == (f"energy is not conserved, it changed by {leap:+.1f} eV" * noticed)


@pytest.mark.parametrize("integrator", [VERLET, LANGEVIN], ids=["nve", "nvt"])
def test_what_is_too_hot_stays_so_when_a_run_goes_on(integrator, tmp_path: Path) -> None:
    """Atoms that a centre repels are hotter at every step, and hot where they were interrupted."""
    force, file = springs(-0.05), tmp_path / "run.ckpt"

    def stop(state: md.MDState, **options) -> str:
        with pytest.raises(FloatingPointError) as stopped:
            md.run(integrator, force, state, 1000, **options)
        return str(stopped.value)

    first = start(force, integrator=integrator)
    undisturbed = stop(first)
    assert "the temperature reached" in undisturbed
    md.run(integrator, force, first, 30, callbacks=[md.Checkpoint(file, every=10)])
    state = md.load_checkpoint(file).state
    assert stop(state.as_first()) != undisturbed  # it begins anew, and is hot from the start
    again = md.Checkpoint(file, every=10)
    assert stop(state, callbacks=[again]) == undisturbed
    last = md.load_checkpoint(file).state
    assert last.step > 30
    assert stop(last) == undisturbed


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: md.Verlet(0.0), "timestep must be positive, got 0.0"),
        (lambda: md.Langevin(FS, -3.0, 1 / FS), "temperature must be positive, got -3.0"),
        (lambda: md.Langevin(FS, (300.0, np.nan), 1 / FS), "temperature must be positive"),
        (lambda: md.Langevin(FS, 300.0, np.inf), "friction must be finite, got inf"),
        (
            lambda: start(springs(1.0), integrator=VERLET, temperature=-5.0),
            "temperature must be finite and not negative, got -5.0",
        ),
        (
            lambda: md.run(
                VERLET, springs(1.0), start(springs(1.0), integrator=VERLET), 1, chunk=0
            ),
            "chunk must be at least 1, got 0",
        ),
        (
            lambda: md.run(
                VERLET,
                springs(1.0),
                start(springs(1.0), integrator=VERLET),
                1,
                callbacks=[Recorder(-3)],
            ),
            "every must be at least 1, got -3",
        ),
        (lambda: start(springs(1.0), seed=-1), "seed must be at least 0, got -1"),
        (
            lambda: start(springs(1.0), integrator=md.Langevin(FS, (1.0, 2.0), 1 / FS)),
            "one number or one for each of the 1 systems, got 2",
        ),
        (
            lambda: start(springs(1.0), momenta=torch.zeros(8, 3)),
            r"momenta must have shape \[9, 3\], got \[8, 3\]",
        ),
        (lambda: start(springs(1.0), masses=torch.zeros(9)), "masses must be positive"),
        (lambda: start(springs(1.0), fixed=torch.ones(9)), "no atom can move"),
        (lambda: start(springs(1.0), replicas=torch.tensor([-1])), "replicas must be 1 numbers"),
        (
            lambda: md.run(VERLET, springs(1.0), start(springs(1.0), integrator=VERLET), -1),
            "n_steps must be at least 0, got -1",
        ),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_the_model_does_not_know_is_refused(forces: Evaluator) -> None:
    ion = ethanol()
    ion.info["charge"] = 1
    with pytest.raises(ValueError, match="total charge"):
        start(forces, ion)


def test_a_state_has_the_forces_of_its_positions(forces: Evaluator) -> None:
    state = md.run(LANGEVIN, forces, start(forces), 13)
    expected: Tensor = forces(state.system).forces
    assert torch.equal(state.forces, expected)


@pytest.mark.parametrize("n_steps", [float("nan"), 1.5, True, None, 10**30, "1"])
def test_numbers_of_steps_that_are_none(n_steps: object) -> None:
    force = springs(1.0)
    with pytest.raises(ValueError, match="n_steps must be "):
        md.run(VERLET, force, start(force, integrator=VERLET), n_steps)


@pytest.mark.parametrize("momentum", [float("inf"), 1e8, 1e300])
def test_momenta_beyond_reason(momentum: float) -> None:
    momenta = np.zeros((9, 3))
    momenta[2] = momentum
    with pytest.raises(
        ValueError, match=r"atom 2 has a kinetic energy of \S+ eV, more than 1e\+06 eV"
    ):
        start(springs(1.0), momenta=momenta)


@pytest.mark.parametrize("temperature", [(), "300", True, [True], ["1"]])
def test_temperatures_that_are_none(temperature: object) -> None:
    with pytest.raises(ValueError, match="temperature must be a number or numbers"):
        md.Langevin(0.5 * units.fs, temperature, 0.01 / units.fs)


# ----------------------------------------------------------------- runs that follow each other


def test_a_run_that_continues_another_has_other_noise(forces: Evaluator) -> None:
    first = LANGEVIN.init(forces, ethanol())
    last = md.run(LANGEVIN, forces, first, 20)
    assert first.seed == 0
    for given in (last, last.system.to_ase()[0]):
        if isinstance(given, Atoms):
            given.set_momenta(last.momenta.numpy())
        state = LANGEVIN.init(forces, given)
        assert (state.step, state.seed == 0) == (0, False)
        assert state.seed == LANGEVIN.init(forces, given).seed, "reproducible"
        assert LANGEVIN.init(forces, given, seed=0).seed == 0, "as asked for"
        assert LANGEVIN.init(forces, given, new_velocities=True).seed == state.seed
    assert LANGEVIN.init(forces, md.run(LANGEVIN, forces, last, 1)).seed != state.seed


@pytest.mark.parametrize("kind", ["verlet", "bussi", "langevin"])
def test_a_state_starts_a_run_of_another_integrator(forces: Evaluator, kind: str) -> None:
    integrator = {"verlet": VERLET, "bussi": md.Bussi(FS / 2, 300, 20 * FS), "langevin": LANGEVIN}
    free, held = heavy_ethanol(), heavy_ethanol()
    free.set_constraint()
    held.set_constraint(FixAtoms([4]))
    first = LANGEVIN.init(forces, [free, held], replicas=[5, 7])
    equilibrated = md.run(LANGEVIN, forces, first, 5)
    state = integrator[kind].init(forces, equilibrated)
    for name in ("momenta", "masses", "fixed", "replicas"):
        assert torch.equal(getattr(state, name), getattr(equilibrated, name)), name
    assert torch.equal(state.system.positions, equilibrated.system.positions)
    assert state.n_dof.tolist() == [27 if kind == "langevin" else 21, 24]
    md.run(integrator[kind], forces, state, 2)
    if kind != "langevin":
        with pytest.raises(ValueError, match="this state is of another integrator or ensemble: b"):
            md.run(integrator[kind], forces, equilibrated, 2)


def test_a_state_without_a_cell_is_none_of_npt() -> None:
    crystal, copper = bulk("Cu", cubic=True), Evaluator(load(COPPER))
    equilibrated = LANGEVIN.init(copper, crystal)
    npt = md.CellRescaling(FS, 300, 0.0, 100 * FS, 1000 * FS, 0.007)
    with pytest.raises(ValueError, match="this state is of another integrator or ensemble"):
        md.run(npt, copper, equilibrated, 2)
    assert md.run(npt, copper, npt.init(copper, equilibrated), 2).step == 2
    with pytest.raises(ValueError, match='"npt" needs a structure that is periodic in all direc'):
        npt.init(copper, LANGEVIN.init(copper, Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])))


@pytest.mark.parametrize("what", ["energy", "charges"])
def test_a_state_gets_what_another_force_adds_to_it(what: str) -> None:
    """Of equal forces."""

    def other(system: System) -> Result:
        result = springs(1.0)(system)
        if what == "energy":
            return replace(result, energy=result.energy + 1.0)
        return replace(result, charges=0.1 * system.positions[:, 0])

    first = start(springs(1.0), integrator=VERLET)
    last, expected = md.run(VERLET, other, first, 0), other(first.system)
    assert torch.equal(last.energy, expected.energy)
    assert what == "energy" or torch.equal(last.charges, expected.charges)


def test_a_checkpoint_goes_on_with_its_model_only(forces: Evaluator, tmp_path: Path) -> None:
    md.run(
        *(LANGEVIN, forces, LANGEVIN.init(forces, ethanol()), 10),
        callbacks=[md.Checkpoint(tmp_path / "run.ckpt")],
    )
    restart = md.load_checkpoint(tmp_path / "run.ckpt")
    other = load("so3krates-ethanol-distilled")
    with pytest.raises(ValueError, match=r"differ by 0\.\d+ eV/Å from those of this model or func"):
        md.run(restart.integrator, other, restart.state, 5)
    assert md.run(restart.integrator, forces, restart.state, 5).step == 15


def test_a_finished_run_keeps_its_last_frame(forces: Evaluator, tmp_path: Path) -> None:
    """A script that is started again has no steps left."""

    def callbacks() -> list[md.Callback]:
        return [
            md.H5MDWriter(tmp_path / "run.h5md", every=10),
            md.Log(tmp_path / "run.csv", every=10),
            md.Checkpoint(tmp_path / "run.ckpt", every=10),
        ]

    md.run(LANGEVIN, forces, LANGEVIN.init(forces, ethanol()), 25, callbacks=callbacks())
    log = (tmp_path / "run.csv").read_text()
    _, state, _ = md.load_checkpoint(tmp_path / "run.ckpt")
    md.run(LANGEVIN, forces, state, 25 - state.step, callbacks=callbacks())
    frames = md.read_h5md(tmp_path / "run.h5md")
    assert [frame.info["step"] for frame in frames] == [0, 10, 20, 25]
    assert (tmp_path / "run.csv").read_text() == log


def test_what_is_wrong_with_one_system_of_many_is_said_of_it(forces: Evaluator) -> None:
    frames = [ethanol() for _ in range(6)]
    frames[4].positions[2] += 0.25
    torn = md.Verlet(0.5 * FS).init(forces, frames, seed=1)
    torn.forces[40] = 2000.0
    with pytest.raises(FloatingPointError, match="a force of system 4 reached 2000 eV/Å"):
        md.run(VERLET, forces, torn, 5)
    torn.forces[40] = torch.nan
    with pytest.raises(FloatingPointError, match="velocities or forces of system 4 are no longer"):
        md.run(VERLET, forces, torn, 5)
    torn.forces[40], torn.momenta[12] = 0.0, torch.nan
    with pytest.raises(FloatingPointError, match="velocities or forces of system 1 are no longer"):
        md.run(VERLET, forces, torn, 5)
    hot = VERLET.init(forces, frames[:3], temperature=[300.0, 300.0, 300.0])
    momenta = hot.momenta.clone()
    momenta[9:18] *= 100.0
    with pytest.raises(FloatingPointError, match="the temperature of system 1 reached 3000"):
        md.run(VERLET, forces, hot.replace(momenta=momenta, limit=torch.full((3,), 9e3)), 5)


def test_a_constraint_that_holds_nothing_is_none(forces: Evaluator) -> None:
    atoms = ethanol()
    atoms.set_constraint(FixAtoms([]))
    assert md.Thermometer.for_run(atoms, "nve").n_dof == 21
    assert VERLET.init(forces, atoms).n_dof.tolist() == [21]


def test_arrays_of_a_changed_result_are_its_own(forces: Evaluator) -> None:
    system = System.from_ase(ethanol())
    result = forces(system)
    changed = replace(result, forces=2 * result.forces)
    np.testing.assert_array_equal(changed.arrays.forces, 2 * result.forces.numpy())
    np.testing.assert_array_equal(changed.arrays.energies, result.energies.numpy())


@pytest.mark.parametrize("integrator", [VERLET, LANGEVIN], ids=["nve", "nvt"])
def test_a_run_may_go_on_with_another_model(forces: Evaluator, integrator) -> None:
    """As after an equilibration: from its own forces and energy, like a run that begins there."""
    other = Evaluator(load("so3krates-ethanol-committee"))
    first = integrator.init(forces, System.from_ase(ethanol()), seed=1)
    end = md.run(integrator, forces, first, 5)
    seen = []

    class Keeps(Callback):
        every = 1

        def __call__(self, state: md.MDState) -> None:
            seen.append(state)

    last = md.run(integrator, other, end, 3, callbacks=[Keeps()])
    result = other(end.system)
    assert torch.equal(seen[0].forces, result.forces)
    assert torch.equal(seen[0].energy, result.energy)
    assert all(state.spread is not None for state in seen)
    back = md.run(integrator, forces, last, 3)
    assert back.spread is None
    same = md.run(integrator, forces, end, 0)
    assert torch.equal(same.forces, end.forces)
