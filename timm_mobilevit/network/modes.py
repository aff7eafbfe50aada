"""Who runs the network: PyTorch alone, or somebody who records or transforms what runs.

What PyTorch cannot trace or transform is used by none of them: they get the plain form, which computes the same.
"""

import torch
from torch.autograd import forward_ad


def is_exporting() -> bool:
    """Whether ``torch.export`` traces the model, for ONNX and other runtimes, where each operator has its price."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    else:  # TorchScript compiles only the arm it takes
        return torch.compiler.is_exporting()


def is_traced() -> bool:
    """Whether a compiler or an exporter records what runs."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work.

    Example:
        >>> torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(2)), is_transformed()
        (tensor([1., 1.]), False)
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    else:
        return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
