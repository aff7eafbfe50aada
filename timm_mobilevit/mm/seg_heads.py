"""The decode heads of the reference: DeepLabv3's and PSPNet's, where mmseg's differ."""

from ._installed import check_installed

check_installed("segmentation")

from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import ASPPHead, PSPHead
from mmseg.models.decode_heads.psp_head import PPM
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..network.modes import is_exporting


@MODELS.register_module()
class MobileViTASPPHead(ASPPHead):  # type: ignore[misc]
    """DeepLabv3 head whose branches are joined by a 1×1 convolution; mmseg's has a 3×3.

    Args:
        branch_dropout: Rate of an element-wise dropout after the joining convolution, as in CVNets v0.1 (0.1), in
            [0, 1).
        **kwargs: As for ``mmseg.models.ASPPHead``.
    """

    def __init__(self, branch_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bottleneck = ConvModule(
            (len(self.dilations) + 1) * self.channels,
            self.channels,
            1,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
        self.branch_dropout = nn.Dropout(branch_dropout)

    def _forward_feature(self, inputs: Any) -> Tensor:
        _check_channels(self, inputs)
        return self.branch_dropout(super()._forward_feature(inputs))  # type: ignore[no-any-return]


@MODELS.register_module()
class MobileViTPSPHead(PSPHead):  # type: ignore[misc]
    """PSPNet head whose branches have their own width; mmseg's have that of the output.

    Args:
        branch_channels: Channels of each branch. In the reference a quarter of the input's, down to a multiple of 16.
        **kwargs: As for ``mmseg.models.PSPHead``.
    """

    def __init__(self, branch_channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        common = {"conv_cfg": self.conv_cfg, "norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
        self.psp_modules = PPM(
            self.pool_scales, self.in_channels, branch_channels, align_corners=self.align_corners, **common
        )
        for scale, branch in zip(self.pool_scales, self.psp_modules, strict=True):
            branch[0] = GridPool(scale)
        joined = self.in_channels + len(self.pool_scales) * branch_channels
        self.bottleneck = ConvModule(joined, self.channels, 3, padding=1, **common)

    def _forward_feature(self, inputs: Any) -> Tensor:
        _check_channels(self, inputs)
        return super()._forward_feature(inputs)  # type: ignore[no-any-return]


class GridPool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling, for exporters as two matrix products.

    Theirs fixes the size of the map, and has six dimensions where the grid does not divide it. It is built with one
    number, that of the rows and of the columns of the grid.

    Shape:
        Input [B, C, H, W], output [B, C, rows, columns].

    Example:
        >>> GridPool(3)(torch.zeros(2, 8, 7, 5)).shape
        torch.Size([2, 8, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Average the pixels of each cell; cells overlap where the grid does not divide the map."""
        if not is_exporting():
            return super().forward(x)
        rows, columns = (_cells(size, self.output_size).to(x) for size in x.shape[2:])  # each [cells, pixels]
        return rows @ x @ columns.T


def _cells(size: int, count: Any) -> Tensor:
    """Return the share of each of ``size`` pixels in the mean of each of ``count`` cells: [count, size]."""
    cell, pixel = torch.arange(count)[:, None], torch.arange(size)
    inside = (pixel >= cell * size // count) & (pixel < ((cell + 1) * size + count - 1) // count)
    return inside / inside.sum(dim=1, keepdim=True)  # type: ignore[no-any-return]


def _check_channels(head: Any, inputs: Any) -> None:
    channels = head._transform_inputs(inputs).shape[1]
    if channels != head.in_channels:
        raise ValueError(
            f"{type(head).__name__} was built for {head.in_channels} channels, the backbone gives {channels}: set "
            "in_channels to that"
        )
