"""Long compilations are announced, and code from the cache is not."""

import logging
import time
from types import SimpleNamespace

import pytest

from attncalc import compiled


class Base:
    """What Numba's listeners derive from."""


def compilation(module: str) -> SimpleNamespace:
    function = SimpleNamespace(__module__=module)
    return SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=function)})


@pytest.fixture
def announcer(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "SILENT", 0.3)
    # a test before this one may have compiled for long, and it is said once in a process
    compiled.announce_loops.cache_clear()
    caplog.set_level(logging.WARNING, logger="attncalc.compiled")
    return compiled._listener(Base)


def test_what_takes_long_is_announced_once(announcer, caplog):
    ours = compilation("attncalc.kernels.simd.loops")
    announcer.on_start(ours)
    announcer.on_start(ours)  # called by the first
    announcer.on_end(ours)
    time.sleep(0.9)
    announcer.on_end(ours)
    announcer.on_start(ours)
    time.sleep(0.9)
    announcer.on_end(ours)
    (record,) = caplog.records
    assert record.getMessage().startswith("compiling loops for this machine: half a minute")


@pytest.mark.parametrize(("module", "seconds"), [("attncalc.loops", 0.0), ("users.loops", 0.9)])
def test_short_ones_and_those_of_others_are_not(announcer, caplog, module, seconds):
    announcer.on_start(compilation(module))
    time.sleep(seconds)
    announcer.on_end(compilation(module))
    time.sleep(0.9)
    assert not caplog.records


def test_numba_asks_the_listener(monkeypatch, caplog):
    """A loop that is compiled, then the same one again."""
    asked = []
    import numba
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, compilation):
            asked.append(compilation.data["dispatcher"].py_func.__name__)

        def on_end(self, compilation):
            pass

    @numba.njit
    def new_loop(x):
        return x + 1

    with event.install_listener("numba:compile", Listener()):
        new_loop(1)
        new_loop(2)
    assert asked == ["new_loop"]
