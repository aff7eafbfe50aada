"""Checks for forward code: how it is called, and whether a child module is still PyTorch's own.

Code that PyTorch cannot trace or transform is for eager mode only: otherwise an equal plain form runs. A fused or
in-place step stands in for a module only where calling that module would run PyTorch's own code and nothing else.
"""

from typing import TypeGuard, TypeVar

import torch
from timm.layers import DropPath
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

Module = TypeVar("Module", bound=nn.Module)

# The forward of each class as PyTorch ships it: libraries patch classes too.
_TYPES: tuple[type[nn.Module], ...] = (
    nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.Conv2d, nn.Linear, nn.SiLU, nn.Dropout, DropPath, nn.Identity,
    nn.Sequential,
)  # fmt: skip
_FORWARD = {kind: kind.forward for kind in _TYPES}


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces the model, for ONNX and other runtimes, where each operator costs time."""
    # TorchScript compiles only the arm that it takes. Bare ignores: it takes those with codes for the function's type.
    return False if torch.jit.is_scripting() else (torch.compiler.is_exporting() or torch.jit.is_tracing())  # type: ignore


def is_exporting_onnx() -> bool:
    """Return whether the graph will be an ONNX file."""
    return False if torch.jit.is_scripting() else torch.onnx.is_in_onnx_export()  # type: ignore


def is_traced() -> bool:
    """Return whether a compiler or an exporter traces the model."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` or forward-mode differentiation is active.

    Example:
        >>> torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(2)), is_transformed()
        (tensor([1., 1.]), False)
    """
    return (
        False
        if torch.jit.is_scripting()  # type: ignore[attr-defined]
        else torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def has_global_hooks() -> bool:
    """Return whether hooks are registered that PyTorch calls for every module."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def is_unmodified(module: nn.Module, kind: type[Module]) -> TypeGuard[Module]:
    """Return whether a module is of a type of PyTorch's and runs the ``forward`` of that type, and nothing else.

    Users and libraries replace modules, subclass them, give one of them another ``forward`` (as accelerate's offload
    does), hang hooks on it, or compile it.

    Args:
        module: The module.
        kind: The type that it has to have itself; a subclass is another one.

    Example:
        >>> norm = nn.BatchNorm2d(8)
        >>> is_unmodified(norm, nn.BatchNorm2d), is_unmodified(nn.SyncBatchNorm(8), nn.BatchNorm2d)
        (True, False)
        >>> _ = norm.register_forward_hook(lambda *_: None)
        >>> is_unmodified(norm, nn.BatchNorm2d)
        False
    """
    return type(module) is kind and kind.forward is _FORWARD[kind] and not is_patched(module)


def is_patched(module: nn.Module) -> bool:
    """Return whether a call runs something that was added to a module: hooks, another ``forward``, a compiled one."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
    )
