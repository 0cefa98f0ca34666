"""Kernels and engine of Equiformer for GPUs, computed by Triton's interpreter on the CPU.

It must be chosen before Triton is imported, so cases run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]


@pytest.mark.parametrize(
    "cases",
    ["interpreted_kernels.py", pytest.param("interpreted_engine.py", marks=pytest.mark.slow)],
)
def test_cases(cases: str) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / cases)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
