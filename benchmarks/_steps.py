"""What is timed: one forward pass, or one training step, on images that stay on the device."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def make_images(batch: int, size: int, layout: str, device: str) -> Tensor:
    """Make random images [batch, 3, size, size] in [0, 1]; never constant ones, which some kernels run faster on."""
    return torch.rand(batch, 3, size, size).to(device, memory_format=LAYOUTS[layout])


def place(network: nn.Module, layout: str, device: str) -> nn.Module:
    """Move a network to a device, its weights in a layout."""
    return network.to(device).to(memory_format=LAYOUTS[layout])


def compile_network(network: nn.Module) -> Any:
    """Compile for the shapes that come: every setting is a graph of its own, nothing is left dynamic."""
    return torch.compile(network, dynamic=False)


def compiler() -> Any:
    """Return the context to build and call compiled networks in: afresh, never eagerly where the compiler gave up."""
    torch.compiler.reset()
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


def inference(network: Callable[[Tensor], Tensor], images: Tensor, dtype: str = "fp32") -> Callable[[], Tensor]:
    """Return a forward pass, under autocast unless ``dtype`` is ``"fp32"``."""

    @torch.inference_mode()
    def step() -> Tensor:
        with _autocast(images, dtype):
            return network(images)

    return step


class TrainingStep:
    """Forward under autocast, backward, fused AdamW.

    The gradients of fp16 are not scaled: that is a matter of a few elementwise kernels, the same for all.

    Args:
        network: Network in training mode, compiled or not.
        images: Images [batch, 3, height, width].
        dtype: "fp32", or "bf16" or "fp16" for autocast.
    """

    def __init__(self, network: Any, images: Tensor, dtype: str = "fp32") -> None:
        self.network = network
        self.images = images
        self.dtype = dtype
        self.labels = torch.arange(len(images), device=images.device) % 1000
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def __call__(self) -> Tensor:
        """Take a step and return its loss."""
        with _autocast(self.images, self.dtype):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # at the end: no gradients between two steps, when memory is counted
        return loss.detach()


def _autocast(images: Tensor, dtype: str) -> torch.autocast:
    # Under float32 the second argument must still be a type that autocast knows.
    kind = torch.bfloat16 if dtype == "fp32" else DTYPES[dtype]
    return torch.autocast(images.device.type, dtype=kind, enabled=dtype != "fp32")
