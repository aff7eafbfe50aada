"""Convolution, norm and activation: the unit of everything outside the transformers."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from .norm_act import norm_act


@register_notrace_module  # torch.fx cannot follow the branch
class ConvNormAct(nn.Module):
    """Convolution without bias, norm and, if ``apply_act``, activation: batch norm and SiLU by default.

    The norm and the activation are separate modules. timm's fused norm-and-activation layer has the same parameter
    names, but loses its activation when ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which mmengine calls too,
    replaces it.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        kernel_size: Side of the square kernel; odd. The padding keeps the map's size at stride 1.
        stride: Stride in both directions.
        dilation: Dilation in both directions.
        groups: Groups of the convolution; ``in_chs`` makes it depthwise.
        apply_act: Whether the activation follows the norm.
        act_layer: Class of the activation.
        norm_layer: Class of the norm, or a function of the number of channels.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        Input [B, in_chs, H, W], output [B, out_chs, ceil(H / stride), ceil(W / stride)].

    Example:
        >>> import torch
        >>> ConvNormAct(3, 16, 3, stride=2)(torch.zeros(1, 3, 33, 64)).shape
        torch.Size([1, 16, 17, 32])
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        apply_act: bool = True,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_chs,
            out_chs,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            groups=groups,
            bias=False,
            device=device,
            dtype=dtype,
        )
        # torchvision's FrozenBatchNorm2d, for example, has neither device nor dtype.
        given = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
        self.bn = norm_layer(out_chs, **given)
        self.act = act_layer() if apply_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chs, H, W] to [B, out_chs, H', W']."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """Apply the norm and the activation to what the convolution returns."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.act(self.bn(x))  # type: ignore[no-any-return]
        else:
            return norm_act(self.bn, self.act, x)


@register_notrace_module  # torch.fx cannot follow the check
class Stem(ConvNormAct):
    """The first convolution, 3×3 with stride 2, which also checks that its input is a batch of images.

    The check is here and not in the network because ``features_only`` wrappers call the stem without the network's
    forward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chans, H, W] to [B, C, ceil(H / 2), ceil(W / 2)].

        Raises:
            ValueError: If the input is not a batch of images. The convolution itself refuses other channels than its
                own.
        """
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(
                f"expected images of shape [batch, channels, height, width], none of them 0, got {list(x.shape)}"
            )
        # TorchScript does not support super().forward(x).
        return self.finish(self.conv(x))
