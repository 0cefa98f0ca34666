"""attncalc models."""

from __future__ import annotations

import json

from command_line import ETHANOL, succeeds

from attncalc.model_file import DEFAULT_MODEL, shipped_models


def test_models() -> None:
    header, *rows, default = succeeds("models").splitlines()
    assert default.endswith(DEFAULT_MODEL)
    for column in ("name", "network", "elements", "force MAE", "level of theory"):
        assert column in header
    (ethanol,) = [row for row in rows if row.startswith(ETHANOL + " ")]
    assert "so3krates" in ethanol
    assert "H C O" in ethanol


def test_models_for_programs() -> None:
    told = json.loads(succeeds("models", "--json"))
    assert told["default"] == DEFAULT_MODEL
    assert told["models"].keys() == shipped_models().keys()
    ethanol = told["models"][ETHANOL]
    assert ethanol["elements"] == ["H", "C", "O"]
    assert 0.001 < ethanol["force_mae_eV_A"] < 0.01
    assert ethanol["knows_its_training"]
