"""Preparing a device for measurements."""

import os

import torch


def default_device() -> str:
    """Name "cuda" where torch finds a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare(device: str, threads: int) -> None:
    """Set the CPU threads, and let cuDNN try its algorithms, as timm's scripts do.

    Raises:
        ValueError: If the device is unknown or not there.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"expected the device cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a GPU that torch can use, found none: measure with --device cpu")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True


def all_threads() -> int:
    """Count the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
