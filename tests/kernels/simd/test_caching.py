"""Machine code that is kept must not outlive its sources."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ase.build import molecule

from attncalc import AttnCalculator
from attncalc.compiled import cacheable
from attncalc.kernels import simd
from attncalc.kernels.equiformer import step_loop as equiformer
from attncalc.kernels.simd import caching
from attncalc.kernels.simd.caching import hash_of_sources, types_of_second
from attncalc.kernels.so3krates import step_loop as so3krates

NAMES = ["hold", "forward", "reverse"]


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("module", [equiformer, so3krates])
def test_a_step_is_cached_by_its_own_sources_and_the_shared_ones(module, name: str) -> None:
    own, shared = Path(module.__file__).parent, Path(simd.__file__).parent
    expected = f"{own.name}_{name}-{hash_of_sources(own, shared)[:16]}"
    assert getattr(module, name).py_func.__qualname__ == expected


def test_steps_are_cached_in_files_of_their_own() -> None:
    steps = [getattr(one, name) for one in (equiformer, so3krates) for name in NAMES]
    assert len({step.py_func.__qualname__ for step in steps}) == len(steps)


@pytest.mark.skipif(not cacheable(), reason="there is no folder to keep machine code in")
def test_no_process_runs_what_it_compiled_itself() -> None:
    """That would differ by rounding from what others read: a resumed run would be another one."""
    atoms = molecule("CH3CH2OH")
    AttnCalculator("so3krates-ethanol", device="cpu").calculate(atoms)
    for name in ("forward", "reverse"):  # `hold` computes nothing
        stats = getattr(so3krates, name).stats
        assert stats.cache_hits
        assert not stats.cache_misses


@pytest.mark.skipif(not cacheable(), reason="there is no folder to keep machine code in")
@pytest.mark.parametrize(
    ("step", "model"), [(so3krates, "so3krates-ethanol"), (equiformer, "equiformer-ethanol")]
)
def test_the_reverse_steps_types_are_known_before_it_is_called(step, model: str) -> None:
    atoms = molecule("CH3CH2OH")
    AttnCalculator(model, device="cpu").calculate(atoms)
    forward, reverse = step.forward, step.reverse
    assert forward.signatures
    for signature in forward.signatures:
        assert types_of_second(forward, reverse, signature) in reverse.signatures


def test_a_step_is_compiled_as_a_whole() -> None:
    """And what it calls is not machine code of its own."""
    program = """if True:
        import numba
        from attncalc.kernels.simd import caching

        def inner(x):
            return [x, 2 * x]

        def outer(x):
            return sum(again(x)) + again(x)[1]

        again, step = numba.njit(inner), numba.njit(outer)
        again.targetoptions.update(no_cpython_wrapper=True, no_cfunc_wrapper=True)
        caching._optimize_as_a_whole("outer")
        step.compile((numba.int64,))

        def address(loop):
            (made,) = loop.overloads.values()
            return made.library.get_pointer_to_function(made.fndesc.llvm_func_name)

        assert address(step) != 0
        assert address(again) == 0
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_of_two_that_need_a_step_at_once_one_compiles(tmp_path: Path, monkeypatch) -> None:
    """The other waits, and reads."""
    kept: list[str] = []
    read: list[list[str]] = []

    def compile_for_long(signature: str) -> None:
        time.sleep(0.5)
        kept.append(signature)

    monkeypatch.setattr(caching, "_is_kept", lambda loop, signature: signature in kept)
    step = SimpleNamespace(
        stats=SimpleNamespace(cache_path=str(tmp_path)),
        py_func=SimpleNamespace(__qualname__="step"),
        compile=lambda signature: read.append(list(kept)),
    )
    caching._compile_in_turn(step, compile_for_long)
    both = [threading.Thread(target=step.compile, args=("types",)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert read == [["types"], ["types"]]
