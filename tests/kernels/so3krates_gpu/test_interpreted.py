"""Runs `interpreted.py` in a process whose Triton interprets its kernels on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton interprets the GPU's kernels on the CPU: not here")

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_kernels_have_the_plain_networks_numbers() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o"]
    file = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [*command, "addopts=--import-mode=importlib", str(file)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
