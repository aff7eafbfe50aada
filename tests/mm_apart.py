"""Scripts of mmdet and mmseg in processes of their own: a server forks them that has imported what takes long."""

import importlib
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["timm_mobilevit.mm"])


def start(framework, script, *arguments, log, **environment):
    """Start a script of ``tools`` on the CPU.

    Args:
        framework: ``"mmdet"`` or ``"mmseg"``.
        script: Name of the script.
        *arguments: Of the script.
        log: File for its output.
        **environment: Further variables.
    """
    path = Path(importlib.import_module(framework).__file__).parent / ".mim" / "tools" / script
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = SERVER.Process(target=_run, args=([str(part) for part in (path, *arguments)], log, environment))
    process.start()
    return process


def finish(process, seconds=300):
    """Wait for the process and return its exit code."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def _run(command, log, environment):
    os.environ.update(environment)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
