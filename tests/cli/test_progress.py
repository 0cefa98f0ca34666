"""Progress bars on a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
from ase.io import write
from command_line import COPPER, labelled

from attncalc.cli import main, progress

try:
    import pty
    import termios
except ImportError:  # where there are no terminals of this kind
    pty = None


@pytest.mark.skipif(pty is None, reason="needs a pseudo terminal")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("relax", "cu.extxyz"), r"step/s, largest force \d\.\d{4} eV/Å, energy -?\d+\.\d{4} eV"),
        (("md", "cu.extxyz", "--steps", "50"), r"/50 .*step/s, \d+\.\d\d ns/day, T \d+ K, E "),
        (("eval", "cu.extxyz"), r"/2 \[.*structure/s\]"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_progress_on_a_terminal(arguments: tuple[str, ...], shown: str) -> None:
    """Rate and time left, and what one wants to watch."""
    write("cu.extxyz", labelled(2)[: 2 if arguments[0] == "eval" else 1])
    name, *rest = arguments
    model = [COPPER, *rest] if name == "eval" else [*rest, "--model", COPPER]
    seen = on_a_terminal(name, *model)
    assert re.search(shown, seen), seen
    assert re.search(r"\[\d\d:\d\d<(\?|\d\d:\d\d), ", seen), "time gone and left"
    assert "wrote " in seen


def on_a_terminal(*arguments: str) -> str:
    """What a program, forked, shows that believes to write to a terminal of 120 columns."""
    process, terminal = pty.fork()
    if process == 0:
        status: object = 1
        try:
            with (
                open(1, "w", closefd=False) as shown,
                redirect_stdout(shown),
                redirect_stderr(shown),
            ):
                main(arguments)
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            os._exit(int(status))
    termios.tcsetwinsize(terminal, (24, 120))
    seen = b""
    # the terminal's end is an error on Linux
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            seen += part
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert status == 0, seen.decode()
    return seen.decode()


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """One a minute, with rate and time left."""
    caplog.set_level(logging.INFO, logger="attncalc.cli.progress")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.progress_bar(3, "structure") as bar:
        bar.set_postfix_str("largest force 0.5 eV/Å", refresh=False)
        bar.update(2)
    lines = [record.getMessage() for record in caplog.records]
    pattern = r"2 of 3 structures, .*structures?/s, .* left, largest force 0\.5 eV/Å"
    assert re.fullmatch(pattern, lines[-1]), lines
    assert len(lines) == 2, "one for the start, none for the end"


def test_no_lines_within_the_first_minute(caplog) -> None:
    caplog.set_level(logging.INFO, logger="attncalc.cli.progress")
    with progress.progress_bar(3, "structure") as bar:
        bar.update(2)
    assert not caplog.records


def test_rate_of_a_continued_run(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """What an earlier run did took no time of this one."""
    caplog.set_level(logging.INFO, logger="attncalc.cli.progress")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.progress_bar(2_000_000, "step", done=1_000_000) as bar:
        time.sleep(0.1)
        bar.update(1)
    line = caplog.records[-1].getMessage()
    rate = re.search(r"([\d.]+) ?step/s", line)
    assert rate, line
    assert float(rate[1]) < 10, line
