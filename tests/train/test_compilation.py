"""The compiled step is made by a second process while the first one trains."""

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from networks import Density, DensityConfig
from torch._inductor import config as inductor

from attncalc import Potential, train
from attncalc.kernels.collocation import collocated
from attncalc.ops import with_modules
from attncalc.train import callbacks, compilation, training
from attncalc.train.batches import join, samples
from attncalc.train.compilation import Compilation
from attncalc.train.select_step import select_step, with_distant_labels
from attncalc.train.start import new_potential
from attncalc.train.step import Loss, eager_step, relative_error

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler (g++)")


class Fake(Compilation):
    """Ready when so many epochs have asked; its step is a given one."""

    def __init__(self, step, *, asked: int, failure: str = "") -> None:
        self.step, self.asked, self.fails = step, asked, failure
        self.started = self.stopped = False

    def make(self):
        return self.step

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True

    @property
    def is_done(self) -> bool:
        self.asked -= 1
        return self.asked < 0

    @property
    def failure(self) -> str:
        return self.fails


@pytest.fixture
def epochs_of(recipe, parts, tmp_path, monkeypatch, caplog):
    """Trains with a given compilation; which steps had been taken by the faked compiled step."""
    caplog.set_level(logging.INFO, logger="attncalc")
    select = training.select_step

    def fit(made, *, one_core=False, **changes):
        taken = []

        def selected(*arguments, **options):
            step, _ = select(*arguments, **options)

            def counted(batch):
                taken.append(len(taken))
                return step(batch)

            made.step = counted
            return step, made

        monkeypatch.setattr(training, "select_step", selected)
        monkeypatch.setattr(callbacks, "has_one_core", lambda: one_core)
        done = train.fit(dataclasses.replace(recipe, **changes), *parts[:2], tmp_path / "run")
        return len(taken), done

    return fit


def test_the_run_changes_at_the_first_epoch_for_which_it_is_ready(epochs_of, caplog):
    made = Fake(None, asked=2)
    taken, done = epochs_of(made)
    assert made.started
    assert taken == 2 * 5, "epochs 3 and 4 of four, of five steps each"
    assert len(done.history) == 4
    assert "switching to the compiled training step" in caplog.text


def test_always_waits_for_it(epochs_of):
    made = Fake(None, asked=10**9)
    taken, _ = epochs_of(made, compile="always")
    assert taken == 4 * 5
    assert not made.started


def test_a_run_on_one_core_waits_for_it(epochs_of, caplog):
    made = Fake(None, asked=10**9)
    taken, _ = epochs_of(made, one_core=True)
    assert taken == 4 * 5
    assert not made.started
    assert "compiling the training step (one to twenty minutes" in caplog.text


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_that_the_process_may_use():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert callbacks.has_one_core()
        os.sched_setaffinity(0, cores)
        assert callbacks.has_one_core() == (len(cores) == 1)
    finally:
        os.sched_setaffinity(0, cores)


def test_a_failure_is_said_and_training_goes_on(epochs_of, caplog):
    taken, done = epochs_of(Fake(None, asked=0, failure="g++: killed"))
    assert taken == 0
    assert len(done.history) == 4
    assert "compiled training step cannot be made and is not used (g++: killed)" in caplog.text


def test_it_is_stopped_with_the_training(epochs_of, monkeypatch):
    made = Fake(None, asked=10**9)
    epochs_of(made, epochs=1)
    assert made.stopped


def test_a_run_that_had_changed_waits_when_it_is_resumed(epochs_of, monkeypatch):
    """So that it ends with the bits of a run that was not stopped."""
    stops = callbacks.BestModel.on_validation_end

    def stop_after_two(self, trainer, module):
        stops(self, trainer, module)
        if len(module.history) == 3:
            raise OSError("stopped by the test")

    monkeypatch.setattr(callbacks.BestModel, "on_validation_end", stop_after_two)
    with pytest.raises(OSError, match="stopped by the test"):
        epochs_of(Fake(None, asked=1))
    monkeypatch.setattr(callbacks.BestModel, "on_validation_end", stops)
    again = Fake(None, asked=10**9)
    taken, done = epochs_of(again)
    assert not again.started
    assert taken == 5 * (4 - 2), "the third epoch was not saved, and is done again"
    assert len(done.history) == 4


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.no_cover
def test_a_second_process_fills_the_cache(recipe, dataset, tmp_path, monkeypatch):
    """The real one; its step is the plain one, for batches of other sizes too.

    Of a network that is compiled in seconds; So3krates takes minutes, and every training compares
    its compiled step with the plain one before it is used.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # of no use where one short file is compiled: trials of what the processor can, headers that are
    # compiled beforehand, and workers that import torch
    for name, value in (
        ("ATEN_CPU_CAPABILITY", "default"),
        ("TORCHINDUCTOR_VEC_ISA_OK", "1"),
        ("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0"),
        ("TORCHINDUCTOR_COMPILE_THREADS", "1"),
    ):
        monkeypatch.setenv(name, value)
    # here they may have been read already
    monkeypatch.setattr(inductor.cpp, "vec_isa_ok", True)
    monkeypatch.setattr(inductor, "cpp_cache_precompile_headers", False)
    monkeypatch.setattr(inductor, "compile_threads", 1)
    potential = Potential(Density(DensityConfig(3.4), 2), (28, 29))
    weights = Loss(1.0, 2.0, 50.0)
    batches = samples(dataset, potential.cutoff, potential.species)
    always = dataclasses.replace(recipe, compile="always")
    _, made = select_step(potential, weights, batches, always, shortest=2.0, n_steps=10)
    made.start()
    made._process.wait()
    assert made.is_done
    assert not made.failure
    code = set(tmp_path.rglob("*.so"))
    assert code, "the second process has left no code"
    step, plain = made.make(), eager_step(potential, weights)
    assert set(tmp_path.rglob("*.so")) == code, "the first process has compiled it again"
    for batch in (batches[0], join(batches[5:7])):
        assert relative_error(step, plain, with_distant_labels(batch, weights)) < 1e-4


def test_the_second_process_ends_with_the_first(tmp_path):
    """When it is stopped and after kill -9, each time with the compilers that it runs."""
    script = f"""
import os, pathlib, time
from attncalc.train import compilation
compilation.POLL_INTERVAL = 0.1

class Compiles:  # when it is read: starts another program, and waits for it
    def __reduce__(self):
        return os.system, (f"sleep 600 & echo $! > {tmp_path}/{{end}}; wait",)

compilation.pickle.dumps = lambda what, dumps=compilation.pickle.dumps: dumps(Compiles())
for end in ("stopped", "killed"):
    made = compilation.Compilation(None, None, None, [])
    made.start()
    print(made._process.pid, flush=True)
    while not pathlib.Path("{tmp_path}", end).exists():
        time.sleep(0.05)
    time.sleep(0.2)
    if end == "stopped":
        made.stop()
os.kill(os.getpid(), 9)
"""
    first = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    compilers = [(tmp_path / end).read_text() for end in ("stopped", "killed")]
    processes = [int(number) for number in (*first.stdout.split(), *compilers)]
    assert len(processes) == 4
    deadline = time.monotonic() + 60
    while any(map(_is_alive, processes)):
        assert time.monotonic() < deadline, "it goes on without its parent"
        time.sleep(0.1)


def test_why_the_second_process_failed_is_known(monkeypatch):
    monkeypatch.setattr(compilation.pickle, "dumps", lambda what: b"no pickle")
    made = Compilation(None, None, None, [])
    made.start()
    made._process.wait()
    assert made.is_done
    assert "invalid load key" in made.failure


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_sent_can_be_read_again(recipe, parts):
    """A collocated potential, the loss and batches as one pickle."""
    potential = new_potential(recipe, parts[0])
    fast = with_modules(potential, network=collocated(potential.network, 0.6))
    batch = join(samples(parts[0], potential.cutoff, potential.species)[:3])
    what = (fast, Loss(1.0, 1.0, 0.0), batch)
    theirs, weights, sent = compilation.pickle.loads(compilation.pickle.dumps(what))
    assert relative_error(eager_step(theirs, weights), eager_step(fast, weights), sent) == 0
    assert torch.equal(sent.forces, batch.forces)
