"""Peak memory of a training step: what it holds, and the most that it allocates on top at any time."""

import json
import os
import tempfile
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ._steps import TrainingStep

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty, and complains where there is no GPU


def peak_bytes(step: TrainingStep, device: str) -> int:
    """Return the most bytes that a training step has allocated at any time: network, optimizer, images and the rest.

    On a GPU the caching allocator keeps count. On the CPU the profiler records every allocation and release of torch's
    allocator in order. Unlike the resident set of the process, that is exact and the same in every run; it does not
    see what oneDNN takes for itself.

    Args:
        step: A step that ran before, so that the state of the optimizer exists.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
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
    return _held(step) + max(accumulate((size for _, _, size in changes), initial=0))


def _held(step: TrainingStep) -> int:
    """Count the bytes of parameters, buffers, the state of the optimizer, and the images."""
    states = (value for state in step.optimizer.state.values() for value in state.values())
    tensors = [*step.network.parameters(), *step.network.buffers(), *states, step.images]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
