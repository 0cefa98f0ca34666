"""--threads: of PyTorch and of the model."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk
from ase.io import write
from command_line import COPPER, attncalc, fails, labelled, succeeds

from attncalc.potential import Potential


@pytest.mark.parametrize(
    ("options", "environment", "n_atoms", "expected"),
    [
        ((), None, 4, [1]),
        ((), None, 1372, []),
        ((), "2", 4, []),
        (("--threads", "3"), None, 4, [3]),
        (("--threads", "3"), "2", 1372, [3]),
    ],
)
def test_threads(options, environment, n_atoms: int, expected, monkeypatch) -> None:
    """One for small structures, unless the user says otherwise."""
    write("cu.extxyz", bulk("Cu", a=3.6, cubic=True).repeat(round((n_atoms / 4) ** (1 / 3))))
    if environment is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    called: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    no_model = {
        "relax": ("relax", "cu.extxyz", "--model", "none"),
        "md": ("md", "cu.extxyz", "--model", "none"),
        "verify": ("verify", "none", "--structure", "cu.extxyz"),
    }
    for command in no_model.values():
        fails(*command, *options)
    assert called == len(no_model) * expected


def test_threads_of_eval_and_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    write("cu.extxyz", labelled(2))
    called: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    succeeds("eval", COPPER, "cu.extxyz", "--threads", 2)
    succeeds("verify", COPPER, "--threads", 2)
    assert called == [2, 2]
    assert attncalc("verify", COPPER, "--threads", 0).exit_code == 2


def test_threads_reach_the_model_and_a_run_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    write("cu.extxyz", bulk("Cu", a=3.6, cubic=True))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    taken: list[int] = []
    take = Potential.set_num_threads
    monkeypatch.setattr(
        Potential, "set_num_threads", lambda self, n: (taken.append(n), take(self, n))
    )
    run = ("md", "cu.extxyz", "--model", COPPER, "--temperature", 10, "-o", "run.h5md")
    succeeds(*run, "--steps", 2, "--threads", 2)
    assert taken[-1] == 2
    for threads, expected in (((), 2), (("--threads", 3), 3)):
        succeeds("md", "--resume", "run.h5md", "--steps", 2 + expected, *threads)
        assert taken[-1] == expected
