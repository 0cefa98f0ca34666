"""Batches of other programs, which change them in place."""

from __future__ import annotations

import pytest
import torch
from ase.build import molecule

from attncalc.plugins.batch_evaluator import BatchEvaluator
from attncalc.system import System


def test_what_changes_in_place_is_looked_at() -> None:
    batches = BatchEvaluator("so3krates-ethanol", device="cpu")
    system = System.from_ase(molecule("CH3CH2OH"))
    names = ("positions", "atomic_numbers", "cell", "pbc", "system_idx", "charge", "spin")
    given = {name: getattr(system, name).clone() for name in names}
    before = batches(**given)
    given["charge"][0] = 2.0
    with pytest.raises(ValueError, match="total charge"):
        batches(**given)
    given["charge"][0] = 0.0
    assert torch.equal(batches(**given)["energy"], before["energy"])
    given["spin"][0] = 3
    with pytest.raises(ValueError, match="multiplicity"):
        batches(**given)
