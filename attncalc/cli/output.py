"""Output of a command and files that it may write: --quiet, --json, --overwrite."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from attncalc.cli.files import new_file

# advice if an output exists
ADVICE = "choose another name, or use --overwrite"

_QUIET, _JSON, _OVERWRITE = "attncalc.quiet", "attncalc.json", "attncalc.overwrite"


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds several options to a command, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _flag(key: str, what: str, *names: str) -> Callable[[Any], Any]:
    """Return a flag that the command does not see: the context remembers it by its key."""
    return click.option(
        *names, is_flag=True, expose_value=False, callback=_remember(key), help=what
    )


def _remember(key: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[key] = value
        if key == _QUIET and value:
            logging.getLogger("attncalc").setLevel(logging.WARNING)

    return remember


json_option = _flag(
    _JSON,
    "Write results as one JSON object to standard output, messages to standard error.",
    "--json",
)
quiet_option = _flag(_QUIET, "Write errors and warnings only.", "-q", "--quiet")
overwrite_option = _flag(_OVERWRITE, "Replace output files that exist.", "--overwrite")
output_options = together(quiet_option, json_option, overwrite_option)


def _is(key: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(key))


def wants_json() -> bool:
    """Return True if results are written to standard output as one JSON object."""
    return _is(_JSON)


def is_quiet() -> bool:
    """Return True if only errors and warnings are written."""
    return _is(_QUIET)


def overwrites() -> bool:
    """Return True if output files that exist are replaced."""
    return _is(_OVERWRITE)


@contextmanager
def silently() -> Iterator[None]:
    """Suppress `say` in a block outside of a command."""
    with click.Context(click.Command(None)) as context:
        context.meta[_QUIET] = True
        yield


def say(text: str) -> None:
    """Write a line, unless the command is quiet."""
    if not is_quiet():
        click.echo(text, err=wants_json())


def warn(text: str) -> None:
    """Write a warning to the standard error."""
    click.echo(f"Warning: {text}", err=True)


def report_json(numbers: dict[str, Any]) -> None:
    """Write the results of a command as one JSON object, if --json is given."""
    if wants_json():
        click.echo(json.dumps(numbers, allow_nan=False))


def output_file(path: str | Path, *, role: str = "") -> Path:
    """Return a path that can be written; an existing file is allowed only with --overwrite.

    Args:
        path: of the file.
        role: what it is, for the message about a file whose name follows from that of another.

    Raises:
        FileExistsError: the file exists.
        FileNotFoundError, PermissionError: its folder cannot be written to.
    """
    try:
        return new_file(path, overwrite=overwrites())
    except FileExistsError:
        raise FileExistsError(f"{path}{role and f' ({role})'} exists: {ADVICE}") from None
