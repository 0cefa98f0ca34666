"""A model inside i-PI: units and signs, and beads in one batch as one by one."""

from __future__ import annotations

import re
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.stress import voigt_6_to_full_3x3_stress
from command_line import python_forked
from contract import model_of_electrons
from crystals import silicon

from attncalc import AttnCalculator, save
from attncalc.plugins.ipi_driver import Driver

REPOSITORY = Path(__file__).resolve().parents[2]
INPUT = """
<simulation verbosity="low">
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  <output prefix="run">
    <properties stride="1" filename="out">
      [ step, conserved{{electronvolt}}, temperature{{kelvin}}, potential{{electronvolt}} ]
    </properties>
  </output>
  <ffdirect name="attncalc" pbc="false">
    <pes>custom</pes>
    <pes_path>{driver}</pes_path>
    <parameters>{{model: so3krates-ethanol, template: ethanol.xyz, device: cpu}}</parameters>
    <batch_size>{batch}</batch_size>
  </ffdirect>
  <system>
    <initialize nbeads="4">
      <file mode="ase">ethanol.xyz</file>
      <velocities mode="thermal" units="kelvin">300</velocities>
    </initialize>
    <forces><force forcefield="attncalc"/></forces>
    <ensemble><temperature units="kelvin">300</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <timestep units="femtosecond">0.5</timestep>
        <thermostat mode="pile_g"><tau units="femtosecond">100</tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([30, 30, 30])
    atoms.rattle(0.03, seed=0)
    return atoms


def slab() -> Atoms:
    atoms = silicon()
    atoms.pbc = (True, True, False)
    return atoms


@pytest.mark.parametrize(
    "atoms", [ethanol(), silicon(), slab()], ids=["molecule", "triclinic", "slab"]
)
def test_the_calculators_numbers_alone_and_in_a_batch(atoms, tmp_path):
    model = "so3krates-silicon" if atoms.pbc.any() else "so3krates-ethanol"
    write(tmp_path / "start.xyz", atoms)
    driver = Driver(model=model, template=str(tmp_path / "start.xyz"), device="cpu")
    beads = []
    for k in range(3):
        bead = atoms.copy()
        bead.set_cell(atoms.cell * (1 + 0.002 * k), scale_atoms=True)
        bead.rattle(0.02, seed=k)
        beads.append(bead)
    cells = [bead.cell.array.T / units.Bohr for bead in beads]
    positions = [bead.positions / units.Bohr for bead in beads]
    together = driver(cells, positions)
    one_by_one = [driver(cell, x.ravel()) for cell, x in zip(cells, positions, strict=True)]
    calculator = AttnCalculator(model, device="cpu")
    for found in (together, one_by_one):
        for bead, (energy, forces, virial, extra) in zip(beads, found, strict=True):
            assert extra == ""
            expected = calculator.get_potential_energy(bead)
            assert energy * units.Hartree == pytest.approx(expected, abs=1e-9)
            of_force = units.Hartree / units.Bohr
            np.testing.assert_allclose(forces * of_force, calculator.get_forces(bead), atol=1e-5)
            if bead.pbc.all():
                stress = voigt_6_to_full_3x3_stress(calculator.get_stress(bead))
                expected = -stress * bead.get_volume()
                np.testing.assert_allclose(virial * units.Hartree, expected, atol=1e-4)


def test_charge_and_multiplicity_of_the_template_count(tmp_path):
    energies = []
    for info in ({}, {"charge": -1}, {"charge": -1, "spin": 3}):
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], cell=[30] * 3, info=info)
        write(tmp_path / "start.xyz", atoms)
        save(model_of_electrons(), tmp_path / "model.safetensors")
        driver = Driver(str(tmp_path / "model.safetensors"), str(tmp_path / "start.xyz"), "cpu")
        calculator = AttnCalculator(model_of_electrons(), device="cpu")
        energy, forces, *_ = driver(atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr)
        energies.append(energy * units.Hartree)
        assert energies[-1] == pytest.approx(calculator.get_potential_energy(atoms), abs=1e-9)
        of_force = units.Hartree / units.Bohr
        np.testing.assert_allclose(forces * of_force, calculator.get_forces(atoms), atol=1e-9)
    assert np.ptp(energies[:2]) > 1e-3
    assert np.ptp(energies[1:]) > 1e-3


def test_another_number_of_atoms_is_refused(tmp_path):
    write(tmp_path / "start.xyz", ethanol())
    driver = Driver(model="so3krates-ethanol", template=str(tmp_path / "start.xyz"), device="cpu")
    with pytest.raises(ValueError, match="template has 9 atoms, i-PI sends 3"):
        driver(np.eye(3), np.zeros((3, 3)))


def run(folder: Path, batch: int, steps: int = 8) -> np.ndarray:
    """Properties of a short run of four beads, [1 + steps, 4]."""
    folder.mkdir()
    write(folder / "ethanol.xyz", ethanol())
    status, out, err = started(folder, batch, steps)
    assert status == 0, out[-1000:] + err[-2000:]
    return np.loadtxt(folder / "run.out")


def started(folder: Path, batch: int, steps: int) -> tuple[int, str, str]:
    """Exit status of i-PI, and what it said on stdout and stderr."""
    driver = REPOSITORY / "attncalc/plugins/ipi_driver.py"
    (folder / "input.xml").write_text(INPUT.format(driver=driver, batch=batch, steps=steps))
    script = Path(sys.executable).parent / "i-pi"
    return python_forked(script, "input.xml", folder=folder)


def test_beads_in_one_batch_move_as_one_by_one(tmp_path):
    pytest.importorskip("ipi", reason='needs i-PI: pip install "attncalc[ipi]"')
    together, one_by_one = run(tmp_path / "batch", 4), run(tmp_path / "single", 1)
    assert together.shape == (9, 4)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-12)
    assert np.ptp(together[:, 1]) < 0.05  # eV, conserved


def test_an_error_at_the_start_of_ipi_ends_it_with_one_line(tmp_path):
    pytest.importorskip("ipi", reason='needs i-PI: pip install "attncalc[ipi]"')
    write(tmp_path / "ethanol.xyz", Atoms("Au"))
    status, _, err = started(tmp_path, 4, 8)
    assert status == 1
    assert "Error: attncalc: this model was not trained on Au" in err
    assert "Traceback" not in err


def test_an_unknown_parameter_is_named(tmp_path):
    write(tmp_path / "start.xyz", ethanol())
    with pytest.raises(TypeError, match="parameters are model, template and device, got chrge"):
        Driver(model="so3krates-ethanol", template=str(tmp_path / "start.xyz"), chrge=1)


def test_an_error_in_a_thread_of_ipi_ends_it(tmp_path):
    """It would wait for ever."""
    pytest.importorskip("ipi", reason='needs i-PI: pip install "attncalc[ipi]"')
    atoms = ethanol()
    atoms.positions[1] = atoms.positions[0]
    write(tmp_path / "ethanol.xyz", atoms)
    status, _, err = started(tmp_path, 4, 8)
    assert status == 1
    assert "Error: attncalc: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("broken", ["template", "positions"])
def test_an_error_in_a_client_of_a_socket_ends_it_with_one_line(broken, tmp_path):
    pytest.importorskip("ipi", reason='needs i-PI: pip install "attncalc[ipi]"')
    atoms = ethanol()
    write(tmp_path / "ethanol.xyz", Atoms("Au") if broken == "template" else atoms)
    atoms.positions[1] = atoms.positions[0]
    numbers = [np.diag([60.0] * 3), np.eye(3), np.int32(len(atoms)), atoms.positions]
    server = socket.create_server(("localhost", 0))

    def send() -> None:
        with server.accept()[0] as client:
            client.sendall(b"POSDATA     " + b"".join(number.tobytes() for number in numbers))
            client.recv(1)  # until the client has ended

    threading.Thread(target=send, daemon=True).start()
    driver = REPOSITORY / "attncalc/plugins/ipi_driver.py"
    status, _, err = python_forked(
        Path(sys.executable).parent / "i-pi-py_driver",
        *("-a", "localhost", "-p", server.getsockname()[1], "-m", "custom", "-P", driver),
        *("-o", "model=so3krates-ethanol,template=ethanol.xyz,device=cpu"),
        folder=tmp_path,
    )
    assert status == 1
    expected = "not trained on Au" if broken == "template" else r"atom 0 \(C\) and atom 1"
    assert re.search(f"^Error: attncalc: .*{expected}", err, re.MULTILINE)
    assert "Traceback" not in err
