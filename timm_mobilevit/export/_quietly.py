"""Converters that print run in a process of their own, so that the streams of this one stay as they are."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def run_quietly(command: Sequence[str | Path], title: str, folder: Path | None = None) -> None:
    """Run a program in a folder and hide its output.

    Raises:
        RuntimeError: If it fails; the message has ``title`` and the last error that it printed.
    """
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", env=os.environ | {"PYTHONSAFEPATH": "1"}
    )
    if done.returncode:
        said = [f"code {done.returncode}", *filter(str.strip, (done.stderr + done.stdout).splitlines())]
        told = next((line for line in reversed(said) if "Error" in line), said[-1])
        raise RuntimeError(f"could not write {title}: {told.strip()}")


def call_quietly(function: Callable[..., Any], *args: Path | str, title: str) -> None:
    """Call a function of a module with text in another Python, as :func:`run_quietly` runs a program."""
    code = f"import sys; from {function.__module__} import {function.__name__} as f; f(*sys.argv[1:])"
    run_quietly([sys.executable, "-c", code, *args], title)
