"""Plugin of pytest for `gpu.py`: tells failures and slow tests at once, as a run may be stopped."""

from __future__ import annotations

from typing import Any

SLOW = 10.0  # s


def pytest_runtest_logreport(report: Any) -> None:
    """Print what a stopped run would lose."""
    if report.failed:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext[-1500:]}", flush=True)
    if report.duration > SLOW:
        print(f"\n{report.duration:.0f} s: {report.nodeid} ({report.when})", flush=True)
