"""The decode heads of the reference: DeepLabv3's and PSPNet's, where mmseg's differ."""

from ._installed import check_installed

check_installed("segmentation")

from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import ASPPHead, PSPHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..network.modes import is_exporting


class _Head:
    """What both heads have in common."""

    def _transform_inputs(self: Any, inputs: Any) -> Tensor:
        x: Tensor = super()._transform_inputs(inputs)  # type: ignore[misc]
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} was built for {self.in_channels} channels, the backbone gives {x.shape[1]}: "
                "set in_channels to that"
            )
        return x

    def _conv(self: Any, in_chs: int, out_chs: int, kernel_size: int) -> ConvModule:
        layer = {"conv_cfg": self.conv_cfg, "norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
        return ConvModule(in_chs, out_chs, kernel_size, padding=kernel_size // 2, **layer)


@MODELS.register_module()
class MobileViTASPPHead(_Head, ASPPHead):  # type: ignore[misc]
    """DeepLabv3 head whose branches are joined by a 1×1 convolution; mmseg's has a 3×3.

    Args:
        branch_dropout: Rate of an element-wise dropout after the joining convolution, as in CVNets v0.1 (0.1), in
            [0, 1).
        **kwargs: As for ``mmseg.models.ASPPHead``.
    """

    def __init__(self, branch_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bottleneck = self._conv((len(self.dilations) + 1) * self.channels, self.channels, 1)
        self.branch_dropout = nn.Dropout(branch_dropout)

    def _forward_feature(self, inputs: Any) -> Tensor:
        return self.branch_dropout(super()._forward_feature(inputs))  # type: ignore[no-any-return]


@MODELS.register_module()
class MobileViTPSPHead(_Head, PSPHead):  # type: ignore[misc]
    """PSPNet head whose branches have their own width; mmseg's have that of the output.

    Args:
        branch_channels: Channels of each branch. In the reference a quarter of the input's, down to a multiple of 16.
        **kwargs: As for ``mmseg.models.PSPHead``.
    """

    def __init__(self, branch_channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for i, scale in enumerate(self.pool_scales):
            self.psp_modules[i] = nn.Sequential(GridPool(scale), self._conv(self.in_channels, branch_channels, 1))
        joined = self.in_channels + len(self.pool_scales) * branch_channels
        self.bottleneck = self._conv(joined, self.channels, 3)


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
