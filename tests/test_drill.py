"""A few trials of every part of the drill; `make drill` does thousands."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize(("part", "few"), [("hostile_files", 98), ("links", 5), ("threads", 2)])
def test_a_few_trials(part: str, few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = list(import_module(f"drill.{part}").trials(few, seed=1))
    assert len(done) >= few
    assert [trial for trial in done if trial.failure] == []
