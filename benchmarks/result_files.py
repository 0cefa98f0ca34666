"""Functions that the benchmarks share: measuring processes, tables, files, machine name."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table: names left-aligned, numbers right-aligned."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def write(path: Path, text: str) -> None:
    """Write a file atomically, so that readers never find an incomplete file."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text)
    partial.replace(path)


def in_a_process(script: str, *arguments: str) -> dict:
    """Return the last row that a script prints in a process; {"failed": why} if it fails."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip() or f"signal {-done.returncode}").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Return the peak resident memory so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux KiB


def machine_name() -> str:
    """Return processor, cores and versions, for comparisons."""
    import torch

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    names = {"AVX512": " with AVX-512", "AVX2": " with AVX2"}
    vectors = names.get(torch.backends.cpu.get_cpu_capability(), "")
    return f"{cpu}{vectors}, {os.cpu_count()} cores"
