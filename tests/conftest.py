"""What every test gets: one thread, a calm hypothesis, the reference data beside the checkout."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from attncalc import compiled

REPOSITORY = Path(__file__).resolve().parents[1]
DRAW_UNSEEN = tuple(REPOSITORY / "tests" / name for name in ("cli", "distill", "train"))
SHARED = REPOSITORY.parent / "shared"
NEEDS_SHARED = "needs ../shared (reference data), which is not here"

# Begin with these. The first two make machine code, each of its own engine, that later files read
# from the disk; those behind them do without, or take long: none must be left for the end.
FIRST = (
    "kernels/equiformer/test_engine.py",
    "kernels/so3krates/test_engine.py",
    *("nn/test_equiformer.py", "nn/test_so3krates.py", "nn/test_so3krates_sphc.py"),
    *("test_drill.py", "physics/test_dynamics.py", "md/test_h5md.py", "train/test_step.py"),
    *("kernels/so3krates_gpu/test_compiles.py", "kernels/so3krates_gpu/test_interpreted.py"),
    *("train/test_denoising.py", "train/test_training.py", "train/test_processes.py"),
    *("test_cuda.py", "test_models.py", "cli/test_md.py", "test_examples.py", "cli/test_train.py"),
    *("train/test_compilation.py", "test_report.py", "engines/test_ase.py", "test_gpu_kit.py"),
)

# tests run in several processes: more threads each would only fight for the cores
torch.set_num_threads(1)

# the collector looks at a million objects of PyTorch and Numba again and again: 5 % of the time
gc.set_threshold(200_000, 20, 100)

# whatever test comes first compiles the loops in a new clone, and what commands say is compared
compiled.SILENT = 1e6

# torch's first call of a kind is slow: a deadline per example would fail at random
hypothesis.settings.register_profile("attncalc", deadline=None, derandomize=True)
hypothesis.settings.load_profile("attncalc")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data and weights beside the checkout; without it the test skips."""
    if not SHARED.is_dir():
        pytest.skip(NEEDS_SHARED)
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def _pictures_of_one_pixel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of commands and trainings make hundreds of pictures, a third of a second each.

    Hardly any test looks at one, so PNG is a constant pixel in these folders. What is drawn is
    tested in tests/test_plots.py; a test that looks at its picture takes `real_pictures`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent in DRAW_UNSEEN:
            from pictures import draw_none  # other folders need no matplotlib

            draw_none(patch)
        yield


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """A process that was started in the background inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn as for users."""
    from pictures import draw_all

    draw_all(monkeypatch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = REPOSITORY / "tests"
    places = {folder / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and PyTorch sees none here")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    n_skipped = sum(NEEDS_SHARED in str(report.longrepr) for report in skipped)
    if n_skipped:
        terminalreporter.write_line(
            f"{n_skipped} tests were skipped because ../shared is missing: "
            "they compare with reference data and weights",
            yellow=True,
        )
