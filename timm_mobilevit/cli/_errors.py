"""Errors on the command line: one line on stderr and exit code 1 instead of a traceback."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import typer

TRACEBACK_VARIABLE = "TIMM_MOBILEVIT_TRACEBACK"


def print_error(message: str) -> None:
    """Print a message as one line on stderr; line breaks become semicolons where no punctuation is."""
    message = re.sub(r"(?<=[^\s:;,.])\s*\n\s*", "; ", message.strip())
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a subcommand so that the errors that this package and the file system raise end it with exit code 1.

    If the environment variable ``TIMM_MOBILEVIT_TRACEBACK`` is not empty, they are raised instead, for bug reports.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the parser's business, though two are RuntimeErrors
            raise
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            print_error(str(error) or type(error).__name__)
            raise typer.Exit(1) from error

    return wrapper
