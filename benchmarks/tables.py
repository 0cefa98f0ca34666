"""What the scripts here share: Markdown tables, files written at once, the name of the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table: names to the left, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def write(path: Path, text: str) -> None:
    """Atomically: whoever reads meanwhile, or after a run that was stopped, finds whole files."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text)
    partial.replace(path)


def machine_name() -> str:
    """Processor, cores and versions, for people who compare."""
    import torch

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    avx = " with AVX-512" if torch.backends.cpu.get_cpu_capability() == "AVX512" else ""
    return f"{cpu}{avx}, {os.cpu_count()} cores"
