"""Unit strings and the factors to eV and Å."""

import pytest
from ase import units

from attncalc.data.units import ReadOptions, factors, parse_entry, parse_unit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("eV", 1.0),
        ("meV", 1e-3),
        ("kcal/mol", 0.0433641039),
        ("KCAL / MOL", 0.0433641039),
        ("kcal mol^-1", 0.0433641039),
        ("kJ/mol", 0.0103642697),
        ("Hartree", 27.2113860),
        ("Ha", 27.2113860),
        ("Rydberg", 13.6056930),
        ("angstrom", 1.0),
        ("Å", 1.0),
        ("Ang", 1.0),
        ("Bohr", 0.5291772106),
        ("nm", 10.0),
        ("kcal/mol/angstrom", 0.0433641039),
        ("kcal mol-1 Å-1", 0.0433641039),
        ("Hartree/Bohr", 51.4220670),
        ("eV/angstrom^3", 1.0),
        ("eV/Å**3", 1.0),
        ("eV Å^-3", 1.0),
        ("GPa", 1 / 160.21766),
        ("kbar", 1 / 1602.1766),
    ],
)
def test_sizes_of_units(text, size):
    # The numbers are CODATA's, typed in here: they do not come from the table under test.
    assert parse_unit(text)[0] == pytest.approx(size, rel=1e-7)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [("kJ/mol", (1, 0)), ("Bohr", (0, 1)), ("kcal/mol/A", (1, -1)), ("GPa", (1, -3))],
)
def test_dimensions_of_units(text, dimension):
    assert parse_unit(text)[1] == dimension


@pytest.mark.parametrize("text", ["", "MeV", "kcal", "eV/atom", "eV/", "eV/Å^x", "furlong", "1/eV"])
def test_unknown_units_are_refused(text):
    with pytest.raises(ValueError, match=r"unknown unit .*: use one of eV, meV, kcal/mol"):
        parse_unit(text)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "R: angstrom; E, E_md17: kcal/mol; F, F_md17: kcal/mol/angstrom",
            {
                "R": "angstrom",
                "E": "kcal/mol",
                "E_md17": "kcal/mol",
                "F": "kcal/mol/angstrom",
                "F_md17": "kcal/mol/angstrom",
            },
        ),
        (
            "E: eV (rounded to float32 by the origin, +-1 meV per cell); "
            "stress: eV/angstrom^3, 3x3, ASE sign (negative under compression) = -virial/volume",
            {"E": "eV", "stress": "eV/angstrom^3"},
        ),
        ("E: eV (relative); stress: GPa = -virial/volume", {"E": "eV", "stress": "GPa"}),
        ("kcal/mol", {"energy": "kcal/mol"}),
        ("Ha, Ha/Bohr, Bohr", {"energy": "Ha", "forces": "Ha/Bohr", "length": "Bohr"}),
        ({"E": "eV"}, {"E": "eV"}),
        ("", {}),
    ],
)
def test_stored_entries(entry, expected):
    stored = parse_entry(entry)
    assert {name: stored[name] for name in expected} == expected
    assert len(stored) == len(expected)


def test_forces_and_stress_follow_energy_and_length():
    found = factors({}, ReadOptions("Hartree", "Bohr"))
    assert found.energy == units.Hartree
    assert found.length == units.Bohr
    assert found.forces == pytest.approx(units.Hartree / units.Bohr)
    assert found.stress == pytest.approx(units.Hartree / units.Bohr**3)


def test_bare_stored_units_are_used():
    found = factors(parse_entry("Ha, Ha/Bohr, Bohr, GPa"), ReadOptions())
    assert (found.energy, found.length) == (units.Hartree, units.Bohr)
    assert found.forces == pytest.approx(units.Hartree / units.Bohr)
    assert found.stress == pytest.approx(units.GPa)


def test_stored_units_win_and_may_be_repeated():
    found = factors({"E": "kcal/mol", "F": "eV/Ang"}, ReadOptions("kcal/mol", "Å"))
    assert found.energy == pytest.approx(units.kcal / units.mol)
    assert found.forces == 1.0


def test_units_of_the_chosen_label_set():
    stored = {"E": "eV", "E_old": "meV", "F_old": "meV/Angstrom"}
    found = factors(stored, ReadOptions(), energy_name="E_old", forces_name="F_old")
    assert (found.energy, found.forces) == (1e-3, 1e-3)


@pytest.mark.parametrize(
    ("stored", "arguments", "message"),
    [
        ({}, {}, "the file does not state its energy unit: pass energy_unit, one of eV, meV"),
        (
            {"E": "kcal/mol"},
            {"energy_unit": "eV"},
            r"energy_unit='eV' contradicts the units stored in the file \(E: kcal/mol\)",
        ),
        (
            {"E": "eV", "R": "Bohr"},
            {"length_unit": "Angstrom"},
            "length_unit='Angstrom' contradicts",
        ),
        ({}, {"energy_unit": "Bohr"}, "energy_unit = 'Bohr' is not a unit of energy"),
        ({}, {"energy_unit": "eV", "length_unit": "eV"}, "is not a unit of length"),
        ({"E": "eV", "F": "eV"}, {}, "stored units of \"F\" = 'eV' is not a unit of forces"),
        ({}, {"energy_unit": "cal"}, "energy_unit: unknown unit 'cal'"),
    ],
)
def test_what_is_wrong_is_said(stored, arguments, message):
    with pytest.raises(ValueError, match=message):
        factors(stored, ReadOptions(**arguments))


def test_case_of_stored_names_does_not_matter():
    found = factors({"Energy": "Hartree", "FORCES": "Hartree/Bohr"}, ReadOptions())
    assert found.energy == units.Hartree
    assert found.forces == pytest.approx(units.Hartree / units.Bohr)
    found = factors({"E_a": "eV", "E_A": "meV"}, ReadOptions(), energy_name="E_A")
    assert found.energy == 1e-3, "the same case comes first"


def test_a_unit_of_an_unknown_name_is_not_ignored():
    said = r'its units say "nrg: Hartree", but it has no such quantity: write "energy: Hartree"'
    with pytest.raises(ValueError, match=said):
        factors({"nrg": "Hartree"}, ReadOptions(), default_energy_unit="eV", energy_name="energy")
    factors({"nrg": "Hartree"}, ReadOptions("eV"))
    factors({"E_old": "Hartree"}, ReadOptions(), default_energy_unit="eV", others={"E_old"})
    with pytest.raises(ValueError, match=r'say "push: Hartree/Bohr", .* write "F: Hartree/Bohr"'):
        factors({"E": "Hartree", "push": "Hartree/Bohr"}, ReadOptions())
    factors({"E": "eV", "gap": "Hartree", "push": "eV/Angstrom", "T": "K"}, ReadOptions())


def test_named_units_with_commas_between():
    """Read as with semicolons: nothing after the first comma is dropped."""
    entry = "E: Hartree, F: Hartree/Bohr, R: Angstrom"
    assert parse_entry(entry) == parse_entry(entry.replace(",", ";"))
    assert list(parse_entry(entry)) == ["E", "F", "R"]
    with pytest.raises(ValueError, match="units 'E: eV, R, cell: nm': separate them by ;"):
        parse_entry("E: eV, R, cell: nm")
