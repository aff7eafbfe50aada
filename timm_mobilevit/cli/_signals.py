"""Ending on signals as on Ctrl-C: what a command has begun to write is removed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = ("SIGTERM", "SIGHUP")  # of `docker stop` and `timeout`, and of a terminal that is closed


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """End with the exit code that shells give to a signal, 143 for SIGTERM, and clean up before.

    Signals that are handled or ignored already, as ``nohup`` does, are left alone; so are all outside the main thread,
    where Python cannot handle them.
    """
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
    can_handle = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if can_handle and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    raise SystemExit(128 + number)
