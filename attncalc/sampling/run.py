"""Sampling run: chunks are made by worker processes, and a stopped run is resumed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from attncalc.files import FileLock, write_atomically
from attncalc.options import require_equal
from attncalc.sampling.chunk import make_chunk
from attncalc.sampling.molecules import Molecule, draw
from attncalc.sampling.oracles import Oracle, load_oracle
from attncalc.sampling.stored import Contents, chunk_bytes, read_chunk, write_frames

log = logging.getLogger(__name__)

# version of the files in a folder of chunks
FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """Settings that, with the number of molecules, determine the data.

    Attributes:
        oracle: see `attncalc.sampling.oracles.load_oracle`.
        seed: seed of all random choices.
        relax_steps: steps of relaxation by the oracle.
        chunk_molecules: molecules per chunk; a chunk is made completely or not at all.
    """

    oracle: str
    seed: int = 0
    relax_steps: int = 8
    chunk_molecules: int = 50


@dataclass(frozen=True)
class Summary:
    """Result of a run and of the runs before it.

    Attributes:
        n_molecules: number of molecules drawn.
        n_labels: number of labels requested from the oracle.
        n_outside: number of frames outside the training data of the oracle, a model.
        refused: number of refused frames or molecules, by reason.
        train, test: contents of the two files.
        new_frames: number of frames made by this run.
        seconds: duration of this run.
    """

    n_molecules: int
    n_labels: int
    n_outside: int
    refused: Counter[str]
    train: Contents
    test: Contents
    new_frames: int
    seconds: float


def held_out_file(output: Path) -> Path:
    """Return the file beside `output` for held-out molecules."""
    return output.with_name(f"{output.stem}-test{output.suffix}")


def chunk_folder(output: Path) -> Path:
    """Return the folder beside `output` for chunks."""
    return output.with_name(f"{output.name}.chunks")


def sample(
    settings: Settings,
    output: Path,
    n_molecules: int,
    *,
    workers: int = 1,
    minutes: float = np.inf,
    overwrite: bool = False,
    progress: Callable[[int, int, int], None] = lambda *numbers: None,
) -> Summary:
    """Sample molecules, label their frames, and write training and test data.

    Chunks are kept in a folder beside the output: the same call continues a run that was stopped,
    and a larger number of molecules extends the data. The files depend only on the settings and the
    number of molecules. If there are more already, a smaller number is rounded up to whole chunks.

    Args:
        settings: settings of the sampling, and the oracle.
        output: HDF5 file; that of the held-out molecules is named after it.
        n_molecules: number of molecules to draw.
        workers: number of processes.
        minutes: time after which the run stops; completed chunks are written.
        overwrite: start again and replace the output.
        progress: called at the start and after every chunk with the number of molecules done by
            earlier runs, and the numbers of molecules and frames done so far.

    Raises:
        BlockingIOError: another run writes there.
        FileExistsError: there is an output without its chunks.
        ImportError, OSError, ValueError: the oracle is not available, see `load_oracle`; or chunks
            are damaged, or made with other settings.
    """
    start = time.monotonic()
    folder = chunk_folder(output)
    oracle = load_oracle(settings.oracle)  # before anything is removed
    with FileLock(output):
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        taken = [path for path in (output, held_out_file(output)) if path.exists()]
        if taken and not overwrite and not folder.exists():
            raise FileExistsError(f"{taken[0]} exists: choose another name, or use --overwrite")
        _require_same(folder, settings, oracle)
        if oracle.caution:
            log.warning("%s", oracle.caution)
        sizes = [
            min(settings.chunk_molecules, n_molecules - first)
            for first in range(0, n_molecules, settings.chunk_molecules)
        ]
        done = _existing(folder, sizes)
        n_before = n_frames_before = 0
        seen: set[str] = set()
        for path in done:
            arrays = read_chunk(path)
            seen |= set(arrays["drawn"].tolist())
            n_before += len(arrays["drawn"])
            n_frames_before += len(arrays.get("kind", ()))
        n_done, n_frames = n_before, n_frames_before
        progress(n_before, n_done, n_frames)
        for k, content in _new_chunks(
            settings, sizes, len(done), seen, workers, start + 60 * minutes
        ):
            path = _chunk_file(folder, k)
            write_atomically(path, content)
            done.append(path)
            n_done += sizes[k]
            n_frames += len(read_chunk(path).get("kind", ()))
            progress(n_before, n_done, n_frames)
        shorter = _chunk_file(folder, len(done))  # the last chunk of a shorter run
        if len(done) < len(sizes) and shorter.exists():  # there was no time to make it again
            arrays = read_chunk(shorter)
            done.append(shorter)
            n_done += len(arrays["drawn"])
            n_frames += (n_known := len(arrays.get("kind", ())))
            n_frames_before += n_known
        elapsed = time.monotonic() - start
        attributes = {
            "level_of_theory": oracle.level_of_theory,
            "teacher": oracle.teacher,
            "sampling": f"attncalc sample, seed {settings.seed}, {n_done} molecules",
        }
        train = write_frames(done, output, held_out=False, attributes=attributes)
        test = write_frames(done, held_out_file(output), held_out=True, attributes=attributes)
    about = [json.loads(str(read_chunk(path)["about"])) for path in done]
    refused = sum((Counter(one["refused"]) for one in about), Counter[str]())
    n_labels = sum(one["n_labels"] for one in about)
    n_outside = sum(one.get("n_outside", 0) for one in about)  # none in chunks of earlier versions
    n_new = n_frames - n_frames_before
    return Summary(n_done, n_labels, n_outside, refused, train, test, n_new, elapsed)


def _require_same(folder: Path, settings: Settings, oracle: Oracle) -> None:
    """Create the folder of chunks, or refuse one that was made with other settings."""
    mine = {
        "format": FORMAT,
        "teacher": oracle.teacher,
        **{key: value for key, value in vars(settings).items() if key != "oracle"},
    }
    file = folder / "settings.json"
    if not file.exists():
        folder.mkdir(exist_ok=True)
        write_atomically(file, json.dumps(mine, indent=1).encode())
    require_equal(mine, json.loads(file.read_text()), folder)


def _chunk_file(folder: Path, k: int) -> Path:
    return folder / f"{k:06d}.npz"


def _existing(folder: Path, sizes: list[int]) -> list[Path]:
    """Return the existing chunks, in order, with the requested number of molecules or more."""
    done: list[Path] = []
    for k, size in enumerate(sizes):
        path = _chunk_file(folder, k)
        # the last chunk of a shorter run has fewer, and is made again
        if not path.exists() or len(read_chunk(path)["drawn"]) < size:
            break
        done.append(path)
    return done


def _new_chunks(
    settings: Settings, sizes: list[int], first: int, seen: set[str], workers: int, deadline: float
) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of the chunks from the first on, in order, until the deadline."""
    if first == len(sizes) or time.monotonic() > deadline:
        return
    waiting: deque[Future[bytes]] = deque()
    coming = first
    with _processes(min(workers, len(sizes) - first)) as pool:
        for k in range(first, len(sizes)):
            while coming < len(sizes) and len(waiting) < 2 * workers:
                # in order and in one process, so that no molecule occurs twice
                rng = np.random.default_rng([settings.seed, coming, 0])
                number = coming * settings.chunk_molecules
                drawn = [draw(rng, number + i, seen) for i in range(sizes[coming])]
                waiting.append(pool.submit(_work, settings, coming, drawn))
                coming += 1
            left = max(0.0, deadline - time.monotonic())
            try:
                content = waiting.popleft().result(left if np.isfinite(left) else None)
            except TooLate:
                return
            yield k, content


@contextmanager
def _processes(n: int) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes, which end with the block, and with this process in any case."""
    context = multiprocessing.get_context("spawn")
    theirs, mine = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(n, mp_context=context, initializer=_begin, initargs=(theirs,))
    try:
        yield pool
    finally:
        mine.close()
        pool.shutdown(cancel_futures=True)


def _begin(alive: Connection) -> None:
    """Prepare a worker process: one thread, Ctrl-C is ignored, and it ends with its parent."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and tblite are imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            alive.recv()  # nothing is ever sent
        except EOFError:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _oracle(name: str) -> Oracle:
    return load_oracle(name)


def _work(settings: Settings, number: int, molecules: list[Molecule]) -> bytes:
    """Return the content of a chunk."""
    rng = np.random.default_rng([settings.seed, number, 1])
    chunk = make_chunk(_oracle(settings.oracle), rng, molecules, settings.relax_steps)
    return chunk_bytes(chunk, [molecule.name for molecule in molecules])
