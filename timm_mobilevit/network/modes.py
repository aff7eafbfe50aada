"""How the network runs: in eager mode, under a tracer, or under a transform.

Code that PyTorch cannot trace or transform is for eager mode only: otherwise an equal plain form runs.
"""

import torch
from torch.autograd import forward_ad


def is_exporting() -> bool:
    """Whether ``torch.export`` traces the model, for ONNX and other runtimes, where each operator costs time."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    else:  # TorchScript compiles only the branch it takes
        # A bare ignore: TorchScript takes one with two codes for the type of the function.
        return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore


def is_traced() -> bool:
    """Whether a compiler or an exporter traces the model."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is active.

    Example:
        >>> torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(2)), is_transformed()
        (tensor([1., 1.]), False)
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    else:
        return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
