"""Machine code that is kept must not outlive its sources."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

pytest.importorskip("numba")

from attncalc.kernels import simd
from attncalc.kernels.equiformer import step_loop as equiformer
from attncalc.kernels.simd.caching import hash_of_sources
from attncalc.kernels.so3krates import step_loop as so3krates


@pytest.mark.parametrize("changed", [0, 1])
def test_every_file_counts(tmp_path: Path, changed: int) -> None:
    folders = [tmp_path / "own", tmp_path / "shared"]
    for folder in folders:
        folder.mkdir()
        (folder / "loops.py").write_text("x = 1\n")
    before = hash_of_sources(*folders)
    assert hash_of_sources(*folders) == before
    (folders[changed] / "loops.py").write_text("x = 2\n")
    after = hash_of_sources(*folders)
    (folders[changed] / "more.py").write_text("y = 3\n")
    assert len({before, after, hash_of_sources(*folders)}) == 3


@pytest.mark.parametrize("name", ["forward", "reverse"])
@pytest.mark.parametrize("module", [equiformer, so3krates])
def test_a_step_is_cached_by_its_own_sources_and_the_shared_ones(module, name: str) -> None:
    entry = getattr(module, name).py_func
    own, shared = Path(module.__file__).parent, Path(simd.__file__).parent
    sources = inspect.getclosurevars(entry).nonlocals["sources"]
    assert sources == hash_of_sources(own, shared)


def test_two_steps_are_cached_in_two_files() -> None:
    names = {module.forward.py_func.__qualname__ for module in (equiformer, so3krates)}
    assert names == {"equiformer", "so3krates"}
