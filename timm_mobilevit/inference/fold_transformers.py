"""Transformers with fewer operations: factors and summands per channel become part of the convolution behind them."""

import torch
from torch import Tensor, nn

from ..network.attention import MultiHeadAttention, SeparableTransformerLayer
from ..network.blocks import SeparableMobileViTBlock
from ..network.layers import ConvNormAct


def fold_transformers(model: nn.Module) -> None:
    """Fold weights of v2's norms into the 1×1 convolutions behind them, and the scale of v1's scores into q and k.

    In real numbers nothing changes. Layers that have been replaced by others are left as they are.

    Args:
        model: Network in evaluation mode whose batch norms are folded already. It is changed.

    Example:
        >>> layer, x = SeparableTransformerLayer(8).eval(), torch.rand(1, 8, 4, 4)
        >>> before = layer(x, 2, 2)
        >>> fold_transformers(layer)
        >>> layer.norm1.weight is None, torch.allclose(layer(x, 2, 2), before, atol=1e-5)
        (True, True)
    """
    for module in list(model.modules()):
        if isinstance(module, SeparableTransformerLayer):
            module.norm1 = _fold_norm(module.norm1, module.attn.qkv_proj)
            module.norm2 = _fold_norm(module.norm2, module.mlp.fc1)
        elif isinstance(module, SeparableMobileViTBlock):
            proj = module.conv_proj
            if isinstance(proj, ConvNormAct) and isinstance(proj.bn, nn.Identity):
                module.norm = _fold_norm(module.norm, proj.conv)  # in v3, the channels of the norm come first
        elif isinstance(module, MultiHeadAttention):
            _fold_scale(module)


def _fold_norm(norm: nn.Module, conv: nn.Module) -> nn.GroupNorm:
    """Multiply a norm into the first input channels of a convolution, and return the norm that is left."""
    if (
        type(norm) is not nn.GroupNorm
        or norm.weight is None
        or type(conv) is not nn.Conv2d
        or conv.kernel_size != (1, 1)
        or conv.groups != 1
        or conv.bias is None
    ):
        return norm  # type: ignore[return-value]
    d = norm.num_channels
    with torch.no_grad():
        matrix = _wide(conv.weight).flatten(1)  # [out, in]
        conv.bias.copy_(_wide(conv.bias) + matrix[:, :d] @ _wide(norm.bias))
        conv.weight[:, :d].copy_((matrix[:, :d] * _wide(norm.weight))[:, :, None, None])
    return nn.GroupNorm(norm.num_groups, d, eps=norm.eps, affine=False).train(norm.training)


def _fold_scale(attention: MultiHeadAttention) -> None:
    """Multiply q and k by the root of the scale each: quantised to 8 bits, neither is much smaller than v."""
    qkv = attention.qkv
    if attention.scale_in_qkv or type(qkv) is not nn.Linear:
        return
    rows = qkv.out_features // 3
    root = (rows // attention.num_heads) ** -0.25
    with torch.no_grad():
        for parameter in (qkv.weight, qkv.bias):
            parameter[: 2 * rows] *= root
    attention.scale_in_qkv = True


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "mps" else tensor.double()  # Apple's GPUs have no float64
