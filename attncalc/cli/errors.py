"""Error messages of the command line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from attncalc.signals import ctrl_c_in_loops
from attncalc.text import EXPECTED, one_line

# exit status of a command whose result is outside the training data of the model
OUTSIDE_STATUS = 2


class OutsideTraining(click.ClickException):
    """Result outside the training data of the model: all output is written, exit status 2."""

    exit_code = OUTSIDE_STATUS


Command = TypeVar("Command", bound=Callable[..., Any])


def one_line_errors(command: Command) -> Command:
    """Turn errors of a command into one line and exit status 1; a bug keeps its traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with warnings.catch_warnings(), ctrl_c_in_loops():
                # commands report the calculator's warnings themselves
                warnings.filterwarnings("ignore", module=r"attncalc\.calculator")
                return command(*args, **kwargs)
        except BrokenPipeError:  # `attncalc models | head`: click knows how to end quietly
            raise
        except EXPECTED as error:
            raise click.ClickException(one_line(error, longest=1000)) from None
        except KeyboardInterrupt as interrupt:
            click.echo(f"stopped: {interrupt}" if str(interrupt) else "stopped", err=True)
            sys.exit(130)

    return wrapped  # type: ignore[return-value]


def data_is_needed(what: str, model: str) -> click.UsageError:
    """Return the error for a command without DATA whose model does not name its data."""
    return click.UsageError(
        f"DATA is needed: a file with {what} ({model} is no folder of a training, which names its "
        "data)"
    )
