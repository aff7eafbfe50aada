"""The preprocessing and softmax of an application as a part of the network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WithInterface(nn.Module):
    """A network with its preprocessing and its softmax.

    Args:
        model: The network.
        mean: One number per channel.
        std: One number per channel.
        image_input: Whether it takes pixels as decoders of pictures give them; otherwise in [0, 1], channels first.
        softmax: Whether its logits [B, classes, …] become probabilities; a single one does by the sigmoid.

    Shape:
        Input uint8 [B, H, W, C] with ``image_input``, otherwise float [B, C, H, W] in [0, 1]. Output as the network's.

    Example:
        >>> network = WithInterface(nn.Identity(), mean=(0.5,), std=(0.25,), image_input=True)
        >>> network(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1)).flatten()
        tensor([-2.,  2.])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        image_input: bool = False,
        softmax: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.image_input = image_input
        self.softmax = softmax
        self.is_half = False
        whole = 255.0 if image_input else 1.0
        self.register_buffer("shift", _per_channel(mean) * whole)
        self.register_buffer("scale", 1 / (_per_channel(std) * whole))
        # Flags, for a graph must not depend on values: steps that change nothing are left out of it.
        self.shifts, self.scales = bool((self.shift != 0).any()), bool((self.scale != 1).any())

    def halve(self) -> None:
        """Compute in float16 between the preprocessing and the softmax, which stay in float32."""
        self.model.half()
        self.is_half = True

    def forward(self, x: Tensor) -> Any:
        """Map pixels to the outputs of the network."""
        if self.image_input:
            x = x.permute(0, 3, 1, 2).to(self.scale.dtype)  # [B, C, H, W]
        if self.shifts:
            x = x - self.shift
        if self.scales:
            x = x * self.scale
        x = self.model(x.half() if self.is_half else x)
        if self.is_half:
            x = x.float() if isinstance(x, Tensor) else [output.float() for output in x]
        if not self.softmax:
            return x
        return x.sigmoid() if x.shape[1] == 1 else x.softmax(dim=1)


def _per_channel(values: Sequence[float]) -> Tensor:
    """Make a tensor of one number per channel [C, 1, 1], or of a single one [1, 1, 1] for all."""
    return torch.tensor(values if len(set(values)) > 1 else values[:1]).view(-1, 1, 1)
