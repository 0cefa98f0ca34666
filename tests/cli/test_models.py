"""attncalc models."""

from __future__ import annotations

from command_line import ETHANOL, succeeds


def test_models() -> None:
    header, *rows = succeeds("models").splitlines()
    for column in ("name", "network", "elements", "force MAE", "level of theory"):
        assert column in header
    (ethanol,) = [row for row in rows if row.startswith(ETHANOL + " ")]
    assert "so3krates" in ethanol
    assert "H C O" in ethanol
