"""Batch norm and SiLU as one step of training: the same numbers, a quarter less memory (benchmarks/speed.py).

Two separate modules keep two maps for the backward pass: the norm's input and the activation's. Here only the norm's
input is kept; the activation's input is computed again from it, which is cheap. On a CPU the gradients of a batch need
one new map instead of two.
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
        type(x) is Tensor  # a subclass may give operators another meaning
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
        in_place = wanted[0] and _pays_in_place(x, weight)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inv_std, True, ctx.eps, (wanted[0] and not in_place, True, True)
        )
        if in_place:
            grad_x = _through_norm_(grad, x, weight, mean, inv_std, grad_weight, grad_bias)
        return grad_x, grad_weight if wanted[1] else None, grad_bias if wanted[2] else None, None, None, None, None


def _pays_in_place(x: Tensor, weight: Tensor) -> bool:
    """Return whether allocating a new map costs more than working in pieces that stay in the cache.

    It does on a CPU, where the system reclaims the maps of a whole batch each time and clears their pages again. The
    rows of an image must be contiguous. Under autocast maps are half as large, and only PyTorch's own kernel mixes data
    types in one pass.
    """
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.is_contiguous(memory_format=torch.channels_last)


def _through_norm_(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inv_std: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> Tensor:
    """Turn the gradient of a batch norm's output into that of its input x, in place, in pieces that stay in the cache.

    With n values per channel (arXiv:1502.03167, Section 3) it is
    weight · inv_std · (grad - grad_bias / n - (x - mean) · inv_std · grad_weight / n): all but grad is a norm of x.
    """
    scale = weight * inv_std
    share = -scale / (x.numel() // x.shape[1])
    var, weight, bias = inv_std.pow(-2), share * grad_weight, share * grad_bias
    for part, x_part in zip(_pieces(grad), _pieces(x), strict=True):
        rest = F.batch_norm(x_part, mean, var, weight, bias, training=False, eps=0.0)
        torch.addcmul(rest, part, scale[:, None, None], out=part)
    return grad


_PIECE = 2**18  # values: a MiB in float32


def _pieces(x: Tensor) -> list[Tensor]:
    """Split a batch [B, C, H, W] into views of whole images, or of an image's rows where it is large."""
    _, C, H, W = x.shape
    images = x.split(max(1, _PIECE // (C * H * W)))  # type: ignore[no-untyped-call]
    return [rows for image in images for rows in image.split(max(1, _PIECE // (C * W)), dim=2)]
