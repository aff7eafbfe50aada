"""Batch norm and SiLU as one step of training: the same numbers, a quarter less memory (benchmarks/targets.py).

Two separate modules keep two maps for the backward pass: the norm's input and the activation's. Here only the norm's
input is kept; the activation's input is computed again from it, which is cheap.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modes import has_global_hooks, is_traced, is_transformed, is_unmodified

# Where the fused step was run and compared with the modules; elsewhere, on CUDA too, the modules run.
_DEVICES = ("cpu",)


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm and an activation to a map [B, C, H, W].

    They are fused in eager training on a CPU, where that saves memory and time, and only where the two modules would
    run PyTorch's batch norm with its usual options and PyTorch's SiLU, and nothing else. Without gradients SiLU then
    works in place. Compilers fuse the two by themselves, and ``torch.func`` can transform only the two modules.

    Example:
        >>> norm, act, x = nn.BatchNorm2d(8), nn.SiLU(), torch.randn(2, 8, 4, 4)
        >>> torch.allclose(norm_act(norm, act, x), act(norm(x)))
        True
    """
    if (
        type(x) is Tensor  # what a subclass makes of an operator is its own affair
        and not is_traced()
        and not is_transformed()
        and not has_global_hooks()
        and is_unmodified(norm, nn.BatchNorm2d)
        and is_unmodified(act, nn.SiLU)
    ):
        if not torch.is_grad_enabled():
            return F.silu(norm(x), inplace=True)  # nothing else refers to the output of the norm
        if _can_join(norm, x):
            norm.num_batches_tracked.add_(1)  # type: ignore[operator, union-attr]
            return _BatchNormSiLU.apply(  # type: ignore[no-any-return, no-untyped-call]
                x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
            )
    return act(norm(x))  # type: ignore[no-any-return]


def _can_join(norm: Any, x: Tensor) -> bool:
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum)
    return (
        norm.training
        and norm.track_running_stats
        and all(part is not None for part in parts)
        and x.ndim == 4
        and x.numel() > x.shape[1]  # the norm raises for a single value per channel
        and x.device.type in _DEVICES
    )


class _BatchNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        out, mean, inv_std = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, bias, mean, inv_std)
        ctx.eps = eps
        return F.silu(out, inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inv_std = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # the gradients will be differentiated: these formulas can be
            out = F.silu(F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps))
            chosen = [tensor for tensor, want in zip((x, weight, bias), wanted, strict=True) if want]
            found = iter(torch.autograd.grad(out, chosen, grads, create_graph=True))
            return *(next(found) if want else None for want in wanted), None, None, None, None
        out = F.batch_norm(x, mean, inv_std.pow(-2), weight, bias, training=False, eps=0.0)
        grad = torch.ops.aten.silu_backward.grad_input(grads[0], out, grad_input=out)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inv_std, True, ctx.eps, wanted
        )
        return grad_x, grad_weight, grad_bias, None, None, None, None
