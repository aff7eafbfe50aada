"""3×3 convolutions with a quarter of the multiplications, after Winograd.

Four values in a row of the output depend on six of the input. Both are polynomials evaluated at six points: there, the
convolution with three weights takes six products instead of twelve. Along both axes 36 products make 4 by 4 outputs,
which take 144 otherwise. See Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv:1509.09308).
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm_act import is_traced

# Toom and Cook's construction at the points 0, 1, -1, 1/2, -2 and infinity. The points decide how many digits float32
# loses (Barabasz et al., arXiv:1803.10986); tests/test_winograd.py holds these to a bound. For six inputs d and three
# weights g, the four outputs are _OUT @ ((_KERNEL @ g) * (_IN @ d)).
_IN = torch.tensor(
    [
        [1, -3 / 2, -2, 3 / 2, 1, 0],  # coefficients of the product of (x - other point)
        [0, -1, 1 / 2, 5 / 2, 1, 0],
        [0, 1, -5 / 2, 1 / 2, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 1 / 2, -1, -1 / 2, 1, 0],
        [0, 1, -3 / 2, -2, 3 / 2, 1],
    ],
    dtype=torch.float64,
    device="cpu",
)
_KERNEL = torch.tensor(
    [
        [1, 0, 0],
        [1 / 3, 1 / 3, 1 / 3],  # powers of the point over the product of (point - other point)
        [-1 / 3, 1 / 3, -1 / 3],
        [-16 / 15, -8 / 15, -4 / 15],
        [1 / 15, -2 / 15, 4 / 15],
        [0, 0, 1],
    ],
    dtype=torch.float64,
    device="cpu",
)
_OUT = torch.tensor(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 1 / 2, -2, 0],  # the points, and below their powers
        [0, 1, 1, 1 / 4, 4, 0],
        [0, 1, -1, 1 / 8, -8, 1],
    ],
    dtype=torch.float64,
    device="cpu",
)
# Along both axes at once: [36, 36] and [16, 36].
_IN_2D, _OUT_2D = torch.kron(_IN, _IN), torch.kron(_OUT, _OUT)


class WinogradConv2d(nn.Module):
    """A 3×3 convolution that takes Winograd's way where that is faster: float32 on one CPU thread, large maps.

    Its results differ from those of the plain convolution by up to 3e-5 of their standard deviation. The transformed
    kernels, four times as large, are kept beside the plain ones.

    Args:
        conv: The convolution; its parameters are shared.

    Example:
        >>> conv, x = nn.Conv2d(128, 96, 3, padding=1), torch.rand(2, 128, 32, 32)
        >>> torch.allclose(WinogradConv2d(conv)(x), conv(x), atol=1e-4)
        True
    """

    __jit_ignored_attributes__ = ("kernels",)

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.weight, self.bias = conv.weight, conv.bias
        # No buffer: neither exported files nor other devices and data types need it.
        self.kernels = transformed(self.weight)
        self.register_load_state_dict_post_hook(_renew)  # type: ignore[no-untyped-call]

    @staticmethod
    def fits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a module is a plain 3×3 convolution with channels enough to pay for the transforms."""
        return (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == "zeros"
            and min(module.in_channels, module.out_channels) >= 80
            and module.weight.device.type == "cpu"
            and module.weight.dtype == torch.float32
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.conv2d(x, self.weight, self.bias, padding=1)
        elif self._pays(x):
            # Image by image, so that all that is in between stays in the cache.
            images = [winograd_conv(image, self.kernels, self.bias) for image in x.split(1)]  # type: ignore[no-untyped-call]
            return images[0] if len(images) == 1 else torch.cat(images)
        else:
            return F.conv2d(x, self.weight, self.bias, padding=1)

    def _pays(self, x: Tensor) -> bool:
        return (
            not is_traced()
            # Each step is small; several threads would wait for each other longer than they work.
            and torch.get_num_threads() == 1
            and x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and len(x) > 0
            and x.shape[-2] * x.shape[-1] >= 256  # below, reading the kernels takes longest
        )


def _renew(conv: WinogradConv2d, _: object) -> None:
    conv.kernels = transformed(conv.weight)


def transformed(weight: Tensor) -> Tensor:
    """Bring the weights of a 3×3 convolution, [O, I, 3, 3], into the form that ``winograd_conv`` takes, [36, I, O]."""
    kernels = torch.einsum("ai,bj,ocij->abco", _KERNEL, _KERNEL, weight.detach().to(_KERNEL))
    return kernels.flatten(0, 1).to(weight.dtype).contiguous()


def winograd_conv(x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve a map with 3×3 kernels, zeros around it.

    Letters: H, W height and width; h, w tiles of 4 by 4 pixels in each; I, O channels.

    Args:
        x: The map of one image, [1, I, H, W].
        kernels: What ``transformed`` makes of the weights.
        bias: One number for each channel of the output.

    Returns:
        The map [1, O, H, W], in the channels-last layout.

    Example:
        >>> x, weight = torch.rand(1, 3, 8, 10), torch.rand(5, 3, 3, 3)
        >>> torch.allclose(winograd_conv(x, transformed(weight)), F.conv2d(x, weight, padding=1), atol=1e-4)
        True
    """
    height, width = x.shape[-2:]
    # [1, I, H, W] -> [4h + 2, 4w + 2, I]
    image = F.pad(x[0].permute(1, 2, 0), (0, 0, 1, 1 + -width % 4, 1, 1 + -height % 4))
    tiles = image.unfold(0, 6, 4).unfold(1, 6, 4).permute(3, 4, 0, 1, 2)  # overlapping: [6, 6, h, w, I]
    h, w = tiles.shape[2:4]
    values = (_IN_2D.to(x) @ tiles.reshape(36, -1)).view(36, h * w, -1)  # one [hw, I] for each point
    products = (values @ kernels).view(36, -1)  # [36, hwO]
    # [16, hwO] -> [4, 4, h, w, O] -> [4h, 4w, O]
    out = (_OUT_2D.to(x) @ products).view(4, 4, h, w, -1).permute(2, 0, 3, 1, 4).reshape(4 * h, 4 * w, -1)
    if bias is not None:
        out = out.add_(bias)
    return out[None, :height, :width].contiguous().permute(0, 3, 1, 2)
