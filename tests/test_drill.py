"""A few trials of every part of the drill; `make drill` does thousands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from drill.forked import DRAW_NONE, Ended, Forked

# part: trials
FEW = {
    "kills": 2,
    "disk_full": 3,
    "power_cuts": 3,
    "hostile_files": 98,
    "links": 5,
    "threads": 2,
}


@pytest.fixture(scope="module")
def commands() -> Iterator[Forked]:
    """One process from which all parts fork: it takes longer to start than a trial.

    Pictures are one pixel: to draw them is a third of the work, and no promise.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DRAW_NONE, "1")
        with Forked() as one:
            yield one


@pytest.mark.slow
@pytest.mark.parametrize("part", FEW)
def test_no_promise_is_broken(
    part: str, commands: Forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = import_module(f"drill.{part}")
    if hasattr(module, "Forked"):
        monkeypatch.setattr(module, "Forked", lambda: nullcontext(commands))
    ended, run = [], commands.run

    def noted(*arguments: object, **options: Any) -> Ended:
        ended.append(run(*arguments, **options))
        return ended[-1]

    monkeypatch.setattr(commands, "run", noted)
    trials = list(module.trials(FEW[part], 1))
    assert len(trials) >= FEW[part]
    assert [trial for trial in trials if trial.failure] == []
    if part == "disk_full":  # else nothing was tried
        assert any("no space left" in one.error for one in ended)
