"""Transformers with fewer operations: scales and biases per channel become part of the next convolution."""

from collections import Counter
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..network.attention import Mlp, MultiHeadAttention, SeparableAttention, SeparableTransformerLayer
from ..network.blocks import SeparableMobileViTBlock
from ..network.layers import ConvNormAct
from ..network.modes import is_patched, is_unmodified


def fold_transformers(model: nn.Module) -> None:
    """Fold weights of v2's norms into the 1×1 convolutions behind them, and the scale of v1's scores into q and k.

    In real numbers nothing changes. Layers that have been replaced by others are left as they are, and so are those
    that share their weights.

    Args:
        model: Network in evaluation mode whose batch norms are folded already. It is changed.

    Example:
        >>> layer, x = SeparableTransformerLayer(8).eval(), torch.rand(1, 8, 4, 4)
        >>> before = layer(x)
        >>> fold_transformers(layer)
        >>> layer.norm1.weight is None, torch.allclose(layer(x), before, atol=1e-5)
        (True, True)
    """
    users = Counter(
        part for module in model.modules() for part in {*module.children(), *module.parameters(recurse=False)}
    )

    def is_shared(*path: nn.Module) -> bool:
        """Return whether a layer, a module around it or its weights belong to another module too."""
        return any(users[part] > 1 for part in (*path, *path[-1].parameters(recurse=False)))

    for module in list(model.modules()):
        if "forward" in module.__dict__:  # its forward may use its children in another way
            continue
        if type(module) is SeparableTransformerLayer:
            attn, mlp = module.attn, module.mlp
            if type(attn) is SeparableAttention and not is_patched(attn) and not is_shared(attn, attn.qkv_proj):
                module.norm1 = _fold_norm(module.norm1, attn.qkv_proj)
            if type(mlp) is Mlp and not is_patched(mlp) and not is_shared(mlp, mlp.fc1):
                module.norm2 = _fold_norm(module.norm2, mlp.fc1)
        elif type(module) is SeparableMobileViTBlock:
            proj = module.conv_proj
            if type(proj) is ConvNormAct and not is_patched(proj) and not is_shared(proj, proj.conv):
                # In v3, the channels of the norm come first.
                module.norm = _fold_norm(module.norm, proj.conv)
        elif type(module) is MultiHeadAttention and not is_shared(module.qkv):
            _fold_scale(module)


def _fold_norm(norm: nn.Module, conv: nn.Module) -> nn.GroupNorm:
    """Multiply a norm into the first input channels of a convolution, and return the norm that remains."""
    if not is_unmodified(norm, nn.GroupNorm) or norm.weight is None or not is_pointwise(conv):
        return norm  # type: ignore[return-value]
    d = norm.num_channels
    with torch.no_grad():
        matrix = wide(conv.weight).flatten(1)  # [out, in]
        if norm.bias is not None:
            conv.bias.copy_(wide(conv.bias) + matrix[:, :d] @ wide(norm.bias))  # type: ignore[union-attr, arg-type]
        conv.weight[:, :d].copy_((matrix[:, :d] * wide(norm.weight))[:, :, None, None])
    return nn.GroupNorm(norm.num_groups, d, eps=norm.eps, affine=False).train(norm.training)


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a 1×1 convolution with a bias: a matrix and a sum for each pixel."""
    return (
        is_unmodified(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.padding) == ((1, 1), (1, 1), (0, 0))
        and module.groups == 1
        and module.bias is not None
    )


def _fold_scale(attention: MultiHeadAttention) -> None:
    """Multiply q and k by the root of the scale each: quantized to 8 bits, neither is much smaller than v."""
    qkv = attention.qkv
    if attention.scale_in_qkv or not is_unmodified(qkv, nn.Linear) or qkv.bias is None:
        return
    rows = qkv.out_features // 3
    root = (rows // attention.num_heads) ** -0.25
    with torch.no_grad():
        for parameter in (qkv.weight, qkv.bias):
            parameter[: 2 * rows] *= root
    attention.scale_in_qkv = True


def wide(tensor: Tensor) -> Tensor:
    """Convert a tensor to the data type that products of weights are computed in."""
    return tensor if tensor.device.type == "mps" else tensor.double()  # Apple's GPUs have no float64
