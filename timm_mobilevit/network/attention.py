"""The two transformer layers of MobileViT: multi-head attention (v1) and separable attention (v2).

Letters: B batch, d width of the transformer, N patches, P pixels in a patch: the phases.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, use_fused_attn
from torch import Tensor, nn

from .modes import has_global_hooks, is_exporting, is_exporting_onnx, is_patched, is_transformed, is_unmodified


class MultiHeadAttention(nn.Module):
    """Scaled dot-product self-attention (arXiv:1706.03762, Equation 1), as MobileViT v1 uses it.

    ``timm.layers.use_fused_attn`` decides, when the module is built, between PyTorch's fused kernel and plain operators
    with the module ``attn_drop`` after the softmax. The plain form has second derivatives and forward-mode ones, and
    hooks on ``attn_drop`` see the attention weights [batch, num_heads, N, N].

    Args:
        dim: Width of the tokens; a multiple of ``num_heads``.
        num_heads: Attention heads.
        attn_drop: Dropout rate of the attention weights, in [0, 1).
        proj_drop: Dropout rate of the output, in [0, 1).
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: If ``dim`` is not a multiple of ``num_heads``.

    Shape:
        Input and output [batch, N, dim].

    Example:
        >>> MultiHeadAttention(64)(torch.zeros(2, 16, 64)).shape
        torch.Size([2, 16, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width of the tokens must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads  # names as in timm, for tools that prune heads
        self.attn_dim = dim
        self.fused_attn = use_fused_attn()
        self.scale_in_qkv = False  # an optimized copy has the scale of the scores in the weights of q and k
        self.qkv = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of each sequence [batch, N, dim]."""
        # Widths come from what the layers return: they may have been pruned or wrapped.
        if is_exporting():  # few operators
            qkv = self.qkv(as_matrix(x))
            width = qkv.shape[-1] // (3 * self.num_heads)
            qkv = qkv.reshape(x.shape[0], x.shape[1], 3 * self.num_heads, width)  # [batch, N, 3·heads, d / heads]
            q, k, v = qkv.transpose(1, 2).split(self.num_heads, dim=1)  # each [batch, heads, N, d / heads]
        else:
            # Split into q, k and v before heads: the backward pass then joins three contiguous gradients.
            q, k, v = self.qkv(x).chunk(3, dim=-1)  # each [batch, N, d]
            q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [batch, heads, N, d / heads]
            k = k.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            v = v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if self._can_fuse():
            drop = self._drop_rate()
            if self.scale_in_qkv:
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=1.0)
            else:
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
        else:
            if not self.scale_in_qkv:
                q = q * q.shape[-1] ** -0.5
            weights = (q @ k.transpose(-2, -1)).softmax(dim=3)  # [batch, heads, N, N]
            x = self.attn_drop(weights) @ v
        x = x.transpose(1, 2).flatten(2)  # [batch, N, d]
        return self.proj_drop(as_sequences(self.proj(as_matrix(x)), x))  # type: ignore[no-any-return]

    def _can_fuse(self) -> bool:
        """Return whether the fused kernel computes the same as plain operators with ``attn_drop``."""
        if not self.fused_attn or is_exporting():
            return False
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return not self.training
        else:
            plain = is_unmodified(self.attn_drop, nn.Dropout) or is_unmodified(self.attn_drop, nn.Identity)
            return plain and not has_global_hooks()

    def _drop_rate(self) -> float:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return 0.0
        else:
            drop: Any = self.attn_drop
            return drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0


class SeparableAttention(nn.Module):
    """Self-attention of linear cost (arXiv:2206.02680, Section 3.2 and Equation 4), per pixel phase.

    A query of a single channel scores each pixel; the softmax of the scores over the patches weighs the keys into one
    context vector per phase; the context gates the rectified values.

    Args:
        dim: Channels of the map.
        attn_drop: Dropout rate of the context scores, in [0, 1).
        proj_drop: Dropout rate of the output, in [0, 1).
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input and output [B, dim, P, N]: a row of N patches for each of P pixel phases.

    Example:
        >>> SeparableAttention(64)(torch.zeros(2, 64, 4, 16)).shape
        torch.Size([2, 64, 4, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        self.out_proj = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the patches of a map [B, dim, P, N]."""
        qkv = self.qkv_proj(x)  # [B, 1 + 2d, P, N]
        if is_exporting() or is_transformed():
            query, key, value = qkv.split([1, self.dim, self.dim], dim=1)  # [B, 1 or d, P, N]
            # A sum over the axis -1 alone is lost when pnnx converts it for ncnn, hence 3.
            context = (key * self.attn_drop(query.softmax(dim=3))).sum(dim=3, keepdim=True)  # [B, d, P, 1]
            x = F.relu(value) * context
        else:  # in memory order: the backward pass joins the gradients of the three without a copy
            query, key, value = qkv.permute(0, 2, 3, 1).split([1, self.dim, self.dim], dim=3)  # [B, P, N, 1 or d]
            scores = self.attn_drop(query.permute(0, 3, 1, 2).softmax(dim=3))  # [B, 1, P, N]
            context = (key * scores.permute(0, 2, 3, 1)).sum(dim=2, keepdim=True)  # [B, P, 1, d]
            x = (F.relu(value) * context).permute(0, 3, 1, 2)
        return self.proj_drop(self.out_proj(x))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with an activation between them; dropout after the second only, as in the reference.

    Args:
        dim: Width of input and output.
        hidden_dim: Width between the layers.
        drop: Dropout rate of the output, in [0, 1).
        pointwise: Whether the layers are 1×1 convolutions over [B, dim, H, W] and not linear over [..., dim].
        act_layer: Class of the activation.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Example:
        >>> Mlp(64, 128)(torch.zeros(2, 16, 64)).shape
        torch.Size([2, 16, 64])
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        drop: float = 0.0,
        pointwise: bool = False,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.fc1: nn.Module
        self.fc2: nn.Module
        if pointwise:
            self.fc1 = nn.Conv2d(dim, hidden_dim, 1, device=device, dtype=dtype)
            self.fc2 = nn.Conv2d(hidden_dim, dim, 1, device=device, dtype=dtype)
        else:
            self.fc1 = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
            self.fc2 = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.act = act_layer()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map every token independently."""
        return self.drop(as_sequences(self.fc2(self.act(self.fc1(as_matrix(x)))), x))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer of v1: layer norm and multi-head attention, layer norm and MLP, both with a shortcut.

    Args:
        dim: Width of the tokens.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        attn_drop: Dropout rate of the attention weights, in [0, 1).
        proj_drop: Dropout rate after attention and after the MLP, in [0, 1).
        drop_path: Stochastic depth rate of both branches, in [0, 1).
        act_layer: Class of the MLP's activation.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input and output [batch, N, dim].

    Example:
        >>> TransformerLayer(64)(torch.zeros(2, 16, 64)).shape
        torch.Size([2, 16, 64])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        mlp_ratio: int = 2,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5, device=device, dtype=dtype)
        self.attn = MultiHeadAttention(
            dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop, device=device, dtype=dtype
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, device=device, dtype=dtype)
        self.mlp = Mlp(dim, mlp_ratio * dim, drop=proj_drop, act_layer=act_layer, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens of the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class SeparableTransformerLayer(nn.Module):
    """Pre-norm transformer layer of v2: group norm and separable attention, group norm and MLP, both with a shortcut.

    The norms have one group: each image is normalised over all channels and pixels.

    Args:
        dim: Channels of the map.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        attn_drop: Dropout rate of the context scores, in [0, 1).
        proj_drop: Dropout rate after attention and after the MLP, in [0, 1).
        drop_path: Stochastic depth rate of both branches, in [0, 1).
        act_layer: Class of the MLP's activation.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input and output [B, dim, P, N].

    Example:
        >>> SeparableTransformerLayer(64)(torch.zeros(2, 64, 4, 16)).shape
        torch.Size([2, 64, 4, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: int = 2,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim, eps=1e-5, device=device, dtype=dtype)
        self.attn = SeparableAttention(dim, attn_drop=attn_drop, proj_drop=proj_drop, device=device, dtype=dtype)
        self.norm2 = nn.GroupNorm(1, dim, eps=1e-5, device=device, dtype=dtype)
        self.mlp = Mlp(
            dim, mlp_ratio * dim, drop=proj_drop, pointwise=True, act_layer=act_layer, device=device, dtype=dtype
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, dim, P, N] to a map of the same shape."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = x + self.drop_path(self.attn(self.norm1(x)))
            return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]
        else:  # TorchScript passes no modules to functions
            x = x + self.drop_path(self.attn(norm_map(self.norm1, x)))
            return x + self.drop_path(self.mlp(norm_map(self.norm2, x)))  # type: ignore[no-any-return]


def as_matrix(x: Tensor) -> Tensor:
    """Concatenate sequences [batch, N, d] to [batch·N, d] in an ONNX file: there a product of matrices adds the bias.

    Maps, and sequences for other runtimes, are returned unchanged.
    """
    return x.flatten(0, 1) if x.ndim == 3 and is_exporting_onnx() else x


def as_sequences(out: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`as_matrix` for the output of layers on ``as_matrix(x)``."""
    return out.reshape(x.shape[0], x.shape[1], out.shape[-1]) if x.ndim == 3 and is_exporting_onnx() else out


def norm_map(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm of one group to a map [B, C, H, W].

    Many runtimes decompose a group norm. A graph of ``torch.export`` has a layer norm over the map instead, with the
    scale and bias per channel as separate operators. In ONNX a layer norm would need weights of the size
    of the map; there, for a fixed image size, it is an instance norm of a single channel.

    Example:
        >>> norm, x = nn.GroupNorm(1, 8), torch.randn(2, 8, 4, 4)
        >>> torch.equal(norm_map(norm, x), norm(x))
        True
    """
    if is_transformed():
        x = x.contiguous()  # vmap has no group norm over channels-last maps
    # isinstance, because torch.export shows modules as proxies of a subclass.
    if (
        not torch.compiler.is_exporting()
        or not isinstance(norm, nn.GroupNorm)
        or type(norm).forward is not nn.GroupNorm.forward
        or is_patched(norm)
        or norm.num_groups != 1
    ):
        return norm(x)  # type: ignore[no-any-return]
    if not is_exporting_onnx():
        x = F.layer_norm(x, x.shape[1:], eps=norm.eps)
    elif any(isinstance(size, torch.SymInt) for size in x.shape[2:]):
        # Any image size. The instance norm, or a group norm without weights, would write that of the example into the
        # file.
        weight = x.new_ones(norm.num_channels) if norm.weight is None else norm.weight
        bias = x.new_zeros(norm.num_channels) if norm.bias is None else norm.bias
        return F.group_norm(x, 1, weight, bias, norm.eps)
    else:
        x = F.instance_norm(x.reshape(x.shape[0], 1, -1), eps=norm.eps).reshape(x.shape)
    if norm.weight is not None:
        x = x * norm.weight[:, None, None]
    return x if norm.bias is None else x + norm.bias[:, None, None]
