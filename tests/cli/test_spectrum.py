"""attncalc spectrum: picture and numbers of a run with predicted charges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import attncalc, fails, files, succeeds

DIPOLE = ("--write", "dipole")
WIDE = ("--resolution", 1500, "--highest", 6000)


@pytest.fixture
def run(ethanol_file: str, charged_model: str) -> tuple[object, ...]:
    return ("md", ethanol_file, "--model", charged_model, "--timestep", 0.25, "--every", 2)


def moves(*arguments: object) -> None:
    """A run whose random weights break bonds, which it says."""
    done = attncalc(*arguments)
    assert done.exit_code == 0, done.output
    assert all("broke" in line for line in done.stderr.splitlines())


@pytest.mark.usefixtures("real_pictures")
def test_spectrum(run: tuple) -> None:
    moves(*run, *DIPOLE, "--steps", 240, "-o", "run.h5md")
    said = succeeds("spectrum", "run.h5md", *WIDE, "--csv", "numbers.csv").splitlines()
    assert said[0].startswith("121 frames, 0.5 fs apart, ")
    assert said[0].endswith(
        "; resolution 1.48e+03 1/cm (Hann window, correlation depth 0.0225 ps), up to 6000 1/cm"
    )
    assert said[1].startswith("density of states, 27 degrees of freedom in all; ")
    assert said[2].startswith("infrared, harmonic quantum correction, ")
    assert said[3:] == ["wrote run.spectrum.png, numbers.csv"]
    assert Path("run.spectrum.png").read_bytes().startswith(b"\x89PNG")
    rows = np.genfromtxt("numbers.csv", delimiter=",", names=True)
    assert rows.dtype.names == ("wavenumber_per_cm", "vdos_cm", "infrared_km_cm_per_mol")
    assert rows["wavenumber_per_cm"][-1] <= 6000
    assert np.isfinite(rows["infrared_km_cm_per_mol"]).all()

    moves(*run, *DIPOLE, "--steps", 100, "-o", "part.h5md")
    moves("md", "--resume", "part.h5md", "--steps", 240)
    succeeds("spectrum", "part.h5md", *WIDE, "--csv", "other.csv", "-o", "other.svg")
    assert Path("other.csv").read_bytes() == Path("numbers.csv").read_bytes()
    found = attncalc("spectrum", "part.h5md", *WIDE, "--json")
    numbers = json.loads(found.stdout)
    assert numbers["frames"] == 121
    assert numbers["degrees_of_freedom"] == pytest.approx(27)
    assert all(0 < peak <= 6000 for peak in numbers["vdos_peaks"] + numbers["infrared_peaks"])


def test_spectrum_of_replicas_without_dipoles(run: tuple) -> None:
    moves(*run, "--steps", 240, "--replicas", 2, "-o", "run.h5md")
    said = succeeds("spectrum", "run.h5md", *WIDE)
    assert said.startswith("121 frames of 2 systems, 0.5 fs apart, ")
    assert (
        "no infrared spectrum: the trajectory has no dipoles (attncalc md --write dipole)" in said
    )
    said = succeeds("spectrum", "run.h5md", *WIDE, "--system", 1, "--overwrite")
    assert said.startswith("121 frames, 0.5 fs apart, ")
    assert fails("spectrum", "run.h5md", *WIDE, "--system", 2, "--overwrite") == (
        "Error: run.h5md holds 2 systems, not number 2"
    )


def test_spectrum_that_cannot_be(run: tuple) -> None:
    succeeds(*run, "--steps", 40, "--every", 20, "-o", "run.h5md")
    before = files()
    assert fails("spectrum", "run.h5md") == (
        "Error: run.h5md: frames are 5 fs apart and show frequencies up to 3336 1/cm; for 4500 "
        "1/cm they must be 3.71 fs apart or less: write them every 14 steps, or, if there is no "
        "faster motion, state a lower highest frequency (--highest)"
    )
    assert "too few frames: a resolution of 10 1/cm" in fails(
        "spectrum", "run.h5md", "--highest", 3000
    )
    assert fails("spectrum", "run.h5md", "-o", "a.txt").endswith("must end in .png, .pdf or .svg")
    assert fails("spectrum", "run.h5md", "--csv", "a.txt").endswith("must end in .csv")
    said = fails("spectrum", "run.h5md", "--csv", "run.csv", "--overwrite")
    assert said == "Error: run.csv is the log of the run: choose another name for --csv"
    assert fails("spectrum", "run.csv").startswith("Error: run.csv: ")
    assert fails("spectrum", "none.h5md") == "Error: no such file: none.h5md"
    assert files() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        # 0.2 / (2 pi 2.9979e-5 cm / fs)
        (("--friction", 0.2), "widens every line by 1.06e+03 1/cm: use --ensemble nve or"),
        (("--friction", 0.05), ""),  # 265, beside a resolution of 5,000
        (("--thermostat", "bussi"), ""),
    ],
)
def test_lines_widened_by_friction_are_said(run: tuple, options: tuple, says: str) -> None:
    moves(*run, *options, "--steps", 60, "-o", "run.h5md")
    done = attncalc("spectrum", "run.h5md", "--resolution", 5000, "--highest", 6000)
    assert done.exit_code == 0, done.output
    assert says in done.stderr
    assert ("friction" in done.stderr) == bool(says)
