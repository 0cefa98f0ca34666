"""Every kernel compiles for GPUs, at published sizes; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
# one evaluation, PyTorch's operators included; a sort is several kernels
MOST_LAUNCHES = 200
# bytes of shared memory that a program may take on any GPU without being asked
MOST_SHARED = 48 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(HERE / "compiling.py"), str(capability)],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    kernels = [entry for entry in found if "kernel" in entry]
    assert kernels
    for entry in kernels:
        # `collect` has the stack of float64 sines of large angles, which do not occur
        assert entry["stack"] == 0 or entry["kernel"] == "collect", entry
        assert entry["shared"] <= MOST_SHARED, entry
        assert not entry["tensor cores"], entry  # that is, TF32
    for entry in found:
        if "launches" in entry:
            count = sum(entry["launches"].values()) + sum(entry["operators"].values())
            assert count <= MOST_LAUNCHES, entry
