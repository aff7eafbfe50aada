"""Peak memory of a step: what is there before it, and the most that it allocates on top at any time."""

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty, and complains where there is no GPU


def peak_extra_bytes(step: Callable[[], object], device: str) -> int:
    """Return the most bytes that a step has allocated at any time, beyond those allocated before it.

    On a GPU the caching allocator keeps count. On the CPU the profiler records every allocation and release of torch's
    allocator in order. Unlike the process's resident set, that is exact and the same in every run; it does not
    see what oneDNN takes for itself.

    Args:
        step: Called once. Call it before, so that the state of an optimizer and the like is there already.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], order, event["args"]["Bytes"])
        for order, event in enumerate(events)
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    )
    return max(accumulate((size for _, _, size in changes), initial=0))


def resident_bytes(*holders: torch.nn.Module | torch.optim.Optimizer | torch.Tensor) -> int:
    """Bytes of parameters, buffers, the state of optimizers, and tensors.

    Example:
        >>> resident_bytes(torch.nn.Linear(3, 2), torch.zeros(4))
        48
    """
    total = 0
    for holder in holders:
        if isinstance(holder, torch.Tensor):
            total += holder.nbytes
        elif isinstance(holder, torch.nn.Module):
            total += sum(tensor.nbytes for tensor in (*holder.parameters(), *holder.buffers()))
        else:
            states = (value for state in holder.state.values() for value in state.values())
            total += sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    return total
