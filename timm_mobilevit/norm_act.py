"""Batch norm and SiLU as one step of training: the same numbers, a quarter less memory (benchmarks/targets.py).

As two modules they keep two maps for the backward pass, the norm's input and the activation's. Here only the norm's
input is kept; the activation's is one cheap formula of it and computed again. On a CPU that happens piece by piece, in
the cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_traced() -> bool:
    """Whether a compiler or an exporter records what runs."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm and an activation to a map [B, C, H, W].

    The joint step is taken where it pays, in eager training on a CPU or a CUDA GPU, and where nobody can tell the
    difference: the norm is the plain one with its usual options, and no hook waits for either module. Without
    gradients SiLU then works in place. Compilers join the two by themselves.

    Example:
        >>> norm, act, x = nn.BatchNorm2d(8), nn.SiLU(), torch.randn(2, 8, 4, 4)
        >>> torch.allclose(norm_act(norm, act, x), act(norm(x)))
        True
    """
    if _are_plain(norm, act) and not is_traced():
        if not torch.is_grad_enabled():
            return F.silu(norm(x), inplace=True)  # nobody else holds what the norm returns
        if _can_join(norm, x):
            norm.num_batches_tracked.add_(1)  # type: ignore[operator, union-attr]
            return _BatchNormSiLU.apply(  # type: ignore[no-any-return, no-untyped-call]
                x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
            )
    return act(norm(x))  # type: ignore[no-any-return]


def _are_plain(norm: nn.Module, act: nn.Module) -> bool:
    return type(norm) is nn.BatchNorm2d and type(act) is nn.SiLU and not any((*_hooks(norm), *_hooks(act)))


def _can_join(norm: Any, x: Tensor) -> bool:
    return (
        norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and x.numel() > x.shape[1]  # the norm refuses a single value per channel
        and x.device.type in ("cpu", "cuda")
    )


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


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
        if torch.is_grad_enabled():  # somebody will differentiate the gradients: these formulas can be
            out = F.silu(F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps))
            chosen = [tensor for tensor, want in zip((x, weight, bias), wanted, strict=True) if want]
            found = iter(torch.autograd.grad(out, chosen, grads, create_graph=True))
            return *(next(found) if want else None for want in wanted), None, None, None, None
        gradients = _by_pieces if _pays_by_pieces(x, weight) else _at_once
        computed = gradients(grads[0], x, weight, bias, mean, inv_std, ctx.eps)
        return *(grad if want else None for grad, want in zip(computed, wanted, strict=True)), None, None, None, None


Gradients = tuple[Tensor, Tensor, Tensor]  # of the map, the weight and the bias


def _at_once(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, eps: float
) -> Gradients:
    out = F.batch_norm(x, mean, inv_std.pow(-2), weight, bias, training=False, eps=0.0)
    grad = torch.ops.aten.silu_backward.grad_input(grad, out, grad_input=out)
    return torch.ops.aten.native_batch_norm_backward(  # type: ignore[no-any-return]
        grad, x, weight, None, None, mean, inv_std, True, eps, (True, True, True)
    )


def _by_pieces(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inv_std: Tensor, eps: float
) -> Gradients:
    """The same in pieces that stay in the cache: fewer trips to memory, and one new map instead of two.

    New maps are dear on a CPU. The system takes those of a whole batch back each time, and clears their pages again.
    """
    var = inv_std.pow(-2)
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
    pieces = list(zip(_pieces(grad_x), _pieces(x), strict=True))
    for (g, piece), above in zip(pieces, _pieces(grad), strict=True):
        out = F.batch_norm(piece, mean, var, weight, bias, training=False, eps=0.0)
        torch.ops.aten.silu_backward.grad_input(above, out, grad_input=g)
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            g, piece, weight, None, None, mean, inv_std, True, eps, (False, True, True)
        )
        grad_weight += of_weight
        grad_bias += of_bias
    # g is the gradient of the norm's output, n the number of values per channel (arXiv:1502.03167, Section 3):
    # weight · inv_std · (g - grad_bias / n - (x - mean) · inv_std · grad_weight / n). All but g is a norm of x.
    scale = weight * inv_std
    share = -scale / (x.numel() // x.shape[1])
    for g, piece in pieces:
        rest = F.batch_norm(piece, mean, var, share * grad_weight, share * grad_bias, training=False, eps=0.0)
        torch.addcmul(rest, g, scale[:, None, None], out=g)
    return grad_x, grad_weight, grad_bias


_PIECE = 2**17  # values; half a MiB in float32, so that three of them fit in a core's cache


def _pays_by_pieces(x: Tensor, weight: Tensor) -> bool:
    """Whether the rows of an image lie together, on a device that has caches to keep them in.

    Under autocast the parameters stay float32. PyTorch's own kernel mixes the two types in one go, and its maps are
    half as large.
    """
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.is_contiguous(memory_format=torch.channels_last)


def _pieces(x: Tensor) -> list[Tensor]:
    """Split a batch [B, C, H, W] into views of whole images, or of an image's rows where it is large."""
    _, C, H, W = x.shape
    images = x.split(max(1, _PIECE // (C * H * W)))  # type: ignore[no-untyped-call]
    return [rows for image in images for rows in image.split(max(1, _PIECE // (C * W)), dim=2)]
