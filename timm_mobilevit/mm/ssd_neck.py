"""The neck of the reference SSDLite: six levels out of the backbone's last two maps."""

from ._installed import check_installed

check_installed("detection")

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

_INIT = {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"}


@MODELS.register_module()
class SSDLiteNeck(BaseModule):  # type: ignore[misc]
    """Projections of two maps, three strided separable convolutions, and a pooled level.

    Differs from mmdet's ``SSDNeck``: the extra levels start at the *unprojected* last map, have no 1×1 bottleneck and
    no activation between their depthwise and pointwise convolutions; the last level is pooled to one pixel.

    Args:
        in_channels: Channels of the two input maps.
        proj_channels: Channels that they are projected to. A map that has them already is not projected, as in the
            reference: so is the second one of the models of width 0.5.
        extra_channels: Channels of the strided levels.
        pool_channels: Channels of the pooled level.
        norm_cfg: Norm of all convolutions but the pooled level's, which has none.
        act_cfg: Activation; ReLU in the reference, whatever the backbone's.
        init_cfg: mmengine's initialisation; Xavier uniform in the reference.

    Shape:
        Inputs [B, C4, H, W], [B, C5, H / 2, W / 2]; outputs six maps, the last of one pixel.

    Example:
        >>> import torch
        >>> neck = SSDLiteNeck(in_channels=(80, 128))
        >>> [tuple(x.shape[1:]) for x in neck((torch.rand(1, 80, 20, 20), torch.rand(1, 128, 10, 10)))]
        [(512, 20, 20), (256, 10, 10), (256, 5, 5), (128, 3, 3), (128, 2, 2), (64, 1, 1)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        proj_channels: Sequence[int] = (512, 256),
        extra_channels: Sequence[int] = (256, 128, 128),
        pool_channels: int = 64,
        norm_cfg: Any = None,
        act_cfg: Any = None,
        init_cfg: Any = _INIT,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or {"type": "BN"}
        act_cfg = act_cfg or {"type": "ReLU"}
        if len(in_channels) != 2 or len(proj_channels) != 2:
            raise ValueError(f"in_channels and proj_channels must have two entries, got {in_channels}, {proj_channels}")
        self.in_channels = tuple(in_channels)
        self.out_channels = (*proj_channels, *extra_channels, pool_channels)
        self.projections = nn.ModuleList(
            nn.Identity() if chs == out_chs else ConvModule(chs, out_chs, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)
            for chs, out_chs in zip(in_channels, proj_channels, strict=True)
        )
        widths = (in_channels[-1], *extra_channels)
        self.extra_layers = nn.ModuleList(
            DepthwiseSeparableConvModule(
                chs, out_chs, 3, stride=2, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg, dw_act_cfg=None
            )
            for chs, out_chs in pairwise(widths)
        )
        pooled = ConvModule(widths[-1], pool_channels, 1, bias=False, norm_cfg=None, act_cfg=act_cfg)
        self.pool_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), pooled)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map the backbone's last two maps to six levels.

        Raises:
            ValueError: If their channels are not ``in_channels``.
        """
        channels = tuple(x.shape[1] for x in inputs)
        if channels != self.in_channels:
            raise ValueError(
                f"the neck was built for maps of {self.in_channels} channels, the backbone gives {channels}: set the "
                "neck's in_channels to them, or the backbone's out_indices to its last two stages"
            )
        outs = [projection(x) for projection, x in zip(self.projections, inputs, strict=True)]
        x = inputs[-1]
        for layer in self.extra_layers:
            x = layer(x)
            outs.append(x)
        return (*outs, self.pool_layer(x))
