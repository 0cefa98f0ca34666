"""attncalc verify."""

from __future__ import annotations

import json
from math import inf

import pytest
from command_line import COPPER, attncalc, succeeds


def test_verify(copper_file: str) -> None:
    said = succeeds("verify", COPPER, "--structure", copper_file)
    assert said.startswith("physics checks on periodic Cu4, 4 atoms\n")
    assert "stress = dE/dstrain / V" in said
    assert "FAILED" not in said
    assert succeeds("verify", COPPER).startswith("physics checks on Cu12, 12 atoms\n")


def test_verify_as_json(copper_file: str) -> None:
    result = attncalc("verify", COPPER, "--structure", copper_file, "--json")
    told = json.loads(result.stdout)
    assert told["passed"]
    assert told["structure"] == "periodic Cu4, 4 atoms"
    assert len(told["checks"]) == result.stderr.count(" ok\n")
    assert {"name", "deviation", "tolerance", "unit", "passed"} == set(told["checks"][0])
    assert succeeds("verify", COPPER, "--structure", copper_file, "--quiet") == ""


def test_verify_of_a_model_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from attncalc import checks

    monkeypatch.setattr(checks, "_batch_is_single", lambda *_: checks.Check("b", 1.0, 1e-9, "eV"))
    result = attncalc("verify", COPPER)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert result.stderr == "Error: the model fails 1 checks: b\n"
    monkeypatch.setattr(checks, "_batch_is_single", lambda *_: checks.Check("b", inf, 1e-9, "eV"))
    told = json.loads(attncalc("verify", COPPER, "--json").stdout)
    failed = [check for check in told["checks"] if not check["passed"]]
    assert [(check["name"], check["deviation"]) for check in failed] == [("b", None)]
    assert not told["passed"]
