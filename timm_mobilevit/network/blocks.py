"""The blocks that a MobileViT is stacked from: inverted residual and the two kinds of MobileViT block.

Letters: B batch, C channels of the stage, d width of the transformer, H×W map, P pixels in a patch, N patches.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, register_notrace_module, to_2tuple
from torch import Tensor, nn

from .attention import SeparableTransformerLayer, TransformerLayer, norm_map
from .layers import ConvNormAct
from .patches import (
    fold_phases,
    phases_to_rows,
    resize,
    resize_to_patches,
    rows_to_phases,
    to_channels_last,
    unfold_phases,
)


class InvertedResidual(nn.Module):
    """Inverted residual of MobileNetV2 (arXiv:1801.04381): 1×1 expand, 3×3 depthwise, 1×1 project without activation.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        expand_ratio: Hidden channels over ``in_chs``.
        stride: Stride of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        drop_path: Stochastic depth rate, in [0, 1); only blocks with a shortcut have it.
        act_layer: Class of the activations.
        norm_layer: Class of the norms of the convolutions, or a function of the number of channels.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input [B, in_chs, H, W], output [B, out_chs, ceil(H / stride), ceil(W / stride)].

    Example:
        >>> InvertedResidual(16, 24, expand_ratio=2, stride=2)(torch.zeros(1, 16, 32, 32)).shape
        torch.Size([1, 24, 16, 16])
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        expand_ratio: int,
        stride: int = 1,
        dilation: int = 1,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        layer: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer, "device": device, "dtype": dtype}
        mid_chs = in_chs * expand_ratio
        self.conv1_1x1 = ConvNormAct(in_chs, mid_chs, 1, **layer)
        self.conv2_kxk = ConvNormAct(mid_chs, mid_chs, 3, stride=stride, dilation=dilation, groups=mid_chs, **layer)
        self.conv3_1x1 = ConvNormAct(mid_chs, out_chs, 1, apply_act=False, **layer)
        # A stage that loses its stride to dilation gains the shortcut, as in the reference: v3-XS in stage 5 does.
        self.has_shortcut = stride == 1 and in_chs == out_chs
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 and self.has_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chs, H, W] to [B, out_chs, H', W']."""
        out = self.drop_path(self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x))))
        return x + out if self.has_shortcut else out  # type: ignore[no-any-return]


@register_notrace_module  # torch.fx cannot trace branches on sizes, so the block is a leaf
class MobileViTBlock(nn.Module):
    """MobileViT block with multi-head attention: local convolutions, attention per pixel phase, fusion.

    v1 (arXiv:2110.02178, Figure 1b) joins the block's input and the transformer's output with a 3×3 convolution. v3
    (arXiv:2209.15159, Figure 1) makes the local convolution depthwise, joins the *local* features instead of the input,
    with a 1×1 convolution, and adds the input.

    Args:
        dim: Channels of input and output.
        transformer_dim: Width of the transformer.
        transformer_depth: Transformer layers.
        patch_size: Height and width of a patch, or one number for both, in pixels of the map.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``transformer_dim``.
        v3_fusion: Whether the block is that of MobileViTv3.
        attn_drop: Dropout rate of the attention weights, in [0, 1).
        proj_drop: Dropout rate after attention and after the MLP, in [0, 1).
        drop_path: Stochastic depth rate of the transformer's branches, in [0, 1).
        act_layer: Class of the activations.
        norm_layer: Class of the norms of the convolutions, or a function of the number of channels.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input and output [B, dim, H, W].

    Example:
        >>> MobileViTBlock(48, transformer_dim=64, transformer_depth=2)(torch.zeros(1, 48, 9, 8)).shape
        torch.Size([1, 48, 9, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        transformer_dim: int,
        transformer_depth: int,
        patch_size: int | tuple[int, int] = 2,
        num_heads: int = 4,
        mlp_ratio: int = 2,
        v3_fusion: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        layer: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer, "device": device, "dtype": dtype}
        self.patch_h, self.patch_w = to_2tuple(patch_size)
        self.v3_fusion = v3_fusion
        self.conv_kxk = ConvNormAct(dim, dim, 3, groups=dim if v3_fusion else 1, **layer)
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, 1, bias=False, device=device, dtype=dtype)
        self.transformer = nn.Sequential(
            *(
                TransformerLayer(
                    transformer_dim,
                    num_heads=num_heads,
                    mlp_ratio=mlp_ratio,
                    attn_drop=attn_drop,
                    proj_drop=proj_drop,
                    drop_path=drop_path,
                    act_layer=act_layer,
                    device=device,
                    dtype=dtype,
                )
                for _ in range(transformer_depth)
            )
        )
        self.norm = nn.LayerNorm(transformer_dim, eps=1e-5, device=device, dtype=dtype)
        self.conv_proj = ConvNormAct(transformer_dim, dim, 1, **layer)
        if v3_fusion:
            self.conv_fusion = ConvNormAct(transformer_dim + dim, dim, 1, **layer)
        else:
            self.conv_fusion = ConvNormAct(2 * dim, dim, 3, **layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, dim, H, W] to [B, dim, H, W]."""
        local = to_channels_last(self.conv_1x1(self.conv_kxk(x)))  # [B, d, H, W]
        out = self.conv_proj(self.attend(local))
        if self.v3_fusion:
            return self.conv_fusion(torch.cat((local, out), dim=1)) + x  # type: ignore[no-any-return]
        return self.conv_fusion(torch.cat((to_channels_last(x), out), dim=1))  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        """Run the transformer over a map [B, d, H, W], each pixel phase separately."""
        height, width = x.shape[-2], x.shape[-1]
        x = resize_to_patches(x, self.patch_h, self.patch_w, align_corners=False)
        x = x.permute(0, 2, 3, 1)  # [B, H', W', d]
        tokens = unfold_phases(x, self.patch_h, self.patch_w)  # [P·B, N, d]
        tokens = self.norm(self.transformer(tokens))
        x = fold_phases(tokens, self.patch_h, self.patch_w, x.shape[1], x.shape[2])
        x = x.permute(0, 3, 1, 2)  # [B, d, H', W']
        return resize(x, height, width, align_corners=False)


@register_notrace_module  # as above
class SeparableMobileViTBlock(nn.Module):
    """MobileViT block with separable attention: local convolutions, attention of linear cost, projection.

    v2 (arXiv:2206.02680) projects the transformer's output, nothing else. v3 (arXiv:2209.15159) projects it together
    with the local features and adds the input.

    A map that the patch does not divide is enlarged first and, as in the reference, keeps the larger size: the output
    is larger than the input. With ``exact_feature_size`` it is resized to the input's size.

    Args:
        dim: Channels of input and output.
        transformer_dim: Width of the transformer.
        transformer_depth: Transformer layers.
        patch_size: Height and width of a patch, or one number for both, in pixels of the map.
        mlp_ratio: Hidden width of the MLP over ``transformer_dim``.
        dilation: Dilation of the local 3×3 convolution.
        v3_fusion: Whether the block is that of MobileViTv3.
        exact_feature_size: Whether the output always has the input's size.
        attn_drop: Dropout rate of the context scores, in [0, 1).
        proj_drop: Dropout rate after attention and after the MLP, in [0, 1).
        drop_path: Stochastic depth rate of the transformer's branches, in [0, 1).
        act_layer: Class of the activations.
        norm_layer: Class of the norms of the convolutions, or a function of the number of channels.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input [B, dim, H, W]; output [B, dim, H', W'], the next multiples of the patch (H and W with
        ``exact_feature_size``).

    Example:
        >>> SeparableMobileViTBlock(64, transformer_dim=32, transformer_depth=2)(torch.zeros(1, 64, 9, 8)).shape
        torch.Size([1, 64, 10, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        transformer_dim: int,
        transformer_depth: int,
        patch_size: int | tuple[int, int] = 2,
        mlp_ratio: int = 2,
        dilation: int = 1,
        v3_fusion: bool = False,
        exact_feature_size: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        layer: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer, "device": device, "dtype": dtype}
        self.patch_h, self.patch_w = to_2tuple(patch_size)
        self.v3_fusion = v3_fusion
        self.exact_feature_size = exact_feature_size
        self.conv_kxk = ConvNormAct(dim, dim, 3, dilation=dilation, groups=dim, **layer)
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, 1, bias=False, device=device, dtype=dtype)
        self.transformer = nn.Sequential(
            *(
                SeparableTransformerLayer(
                    transformer_dim,
                    mlp_ratio=mlp_ratio,
                    attn_drop=attn_drop,
                    proj_drop=proj_drop,
                    drop_path=drop_path,
                    act_layer=act_layer,
                    device=device,
                    dtype=dtype,
                )
                for _ in range(transformer_depth)
            )
        )
        self.norm = nn.GroupNorm(1, transformer_dim, eps=1e-5, device=device, dtype=dtype)
        proj_chs = 2 * transformer_dim if v3_fusion else transformer_dim
        self.conv_proj = ConvNormAct(proj_chs, dim, 1, apply_act=False, **layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, dim, H, W] to [B, dim, H', W']."""
        height, width = x.shape[-2], x.shape[-1]
        x = resize_to_patches(x, self.patch_h, self.patch_w, align_corners=True)
        local = to_channels_last(self.conv_1x1(self.conv_kxk(x)))  # [B, d, H', W']
        out = self.attend(local)
        if self.v3_fusion:  # global features first, unlike in MobileViTBlock
            out = torch.cat((out, local), dim=1)
        out = self.conv_proj(out)
        if self.v3_fusion:
            out = out + x
        if self.exact_feature_size:
            out = resize(out, height, width, align_corners=True)
        return out  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        """Run the transformer over a map [B, d, H', W'], each pixel phase separately."""
        height, width = x.shape[-2], x.shape[-1]
        rows = self.transformer(phases_to_rows(x, self.patch_h, self.patch_w))  # [B, d, P, N]
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return rows_to_phases(self.norm(rows), self.patch_h, self.patch_w, height, width)
        else:  # TorchScript passes no modules to functions
            return rows_to_phases(norm_map(self.norm, rows), self.patch_h, self.patch_w, height, width)
