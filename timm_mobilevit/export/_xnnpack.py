"""Decompositions of operators that XNNPACK lacks: otherwise ExecuTorch computes each of them in portable code."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """Normalise over the last axis, or over whole maps [B, C, H, W]."""
    if len(shape) == 3 and x.ndim == 4 and weight is None:
        x = x - _mean(x)
        return x * torch.rsqrt(_mean(x * x) + eps)
    if len(shape) != 1:
        return NotImplemented
    tokens = x.reshape(1, -1, 1, shape[0])  # [1, N, 1, d]
    tokens = tokens - tokens.mean((2, 3), keepdim=True)
    tokens = tokens * torch.rsqrt((tokens * tokens).mean((2, 3), keepdim=True) + eps)
    out = tokens.reshape(x.shape)
    return out if weight is None or bias is None else out * weight + bias


def _matmul(a: Tensor, b: Tensor) -> Any:
    """Multiply the matrices of two stacks of the same size, without copies that repeat them once."""
    if a.ndim != 4 or a.shape[:2] != b.shape[:2]:
        return NotImplemented
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).reshape(*a.shape[:3], b.shape[3])


def _mean(x: Tensor) -> Tensor:
    """Average each image [B, C, H, W]: XNNPACK takes means over the last two axes only."""
    x = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
    return x.transpose(1, 2).mean((2, 3), keepdim=True)  # [B, 1, 1, 1]


def _sum(x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Add up over the last of four axes, which stays: v2's context."""
    if x.ndim != 4 or list(dim or ()) != [3] or not keepdim or dtype is not None:
        return NotImplemented
    B, d, P, N = x.shape
    return (x.reshape(B, d * P, 1, N).mean((2, 3), keepdim=True) * N).reshape(B, d, P, 1)


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> Any:
    """Split the channels of a map [B, C, H, W] into slices.

    XNNPACK cuts other channels out of four axes than it is told to (ExecuTorch 1.5.1), but the right ones out of three.
    """
    if x.ndim != 4 or dim != 1:
        return NotImplemented
    B, _, H, W = x.shape
    flat = x.flatten(2)  # [B, C, H·W]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [flat.narrow(1, start, length).reshape(B, length, H, W) for start, length in zip(starts, sizes, strict=True)]


def _split_evenly(x: Tensor, size: int, dim: int = 0) -> Any:
    length = x.shape[dim]
    return _split(x, [min(size, length - start) for start in range(0, length, size)], dim)


def _silu(x: Tensor) -> Tensor:
    """Compute SiLU in the precision of its input: PyTorch computes it in float32."""
    return x * torch.sigmoid(x)


# Each is tried on every such operator of a graph, and leaves the others as they are.
FOR_XNNPACK: dict[Any, Callable[..., Any]] = {
    _ATEN.layer_norm.default: _layer_norm,
    _ATEN.matmul.default: _matmul,
    _ATEN.sum.dim_IntList: _sum,
    _ATEN.silu.default: _silu,
    _ATEN.silu_.default: _silu,
    _ATEN.split.Tensor: _split_evenly,
    _ATEN.split_with_sizes.default: _split,
}
