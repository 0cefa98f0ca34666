"""A few trials of every part of the drill; `make drill` does thousands."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

# part: trials
FEW = {
    "kills": 2,
    "disk_full": 3,
    "power_cuts": 3,
    "hostile_files": 98,
    "links": 5,
    "threads": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("part", FEW)
def test_no_promise_is_broken(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trials = list(import_module(f"drill.{part}").trials(FEW[part], 1))
    assert len(trials) >= FEW[part]
    assert [trial for trial in trials if trial.failure] == []
