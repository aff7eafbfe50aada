"""Copies of trained models for inference: they compute the same in less time and cannot be trained."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..network.layers import ConvNormAct, Stem
from ..network.model import MobileViT
from ..network.modes import is_patched, is_traced, is_unmodified
from .fold_transformers import fold_transformers
from .joined_stages import JoinedStages, all_inverted_residuals


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Fold norms into convolutions, remove what only training needs, and store the weights channels-last.

    Activations work in place, and on a CPU the stem and the stages before the first MobileViT block run image by
    image: their maps then stay in the cache, which those of a whole batch do not. The stages of a classifier run as one
    (``timm_mobilevit.inference.joined_stages``), so forward hooks on its blocks are not called;
    ``forward_intermediates`` returns the map of each stage as before.

    Args:
        model: A model of this package, or a network that contains one, such as a detector or segmentor of
            ``timm_mobilevit.mm``. It is not changed.

    Returns:
        A copy in evaluation mode. Outputs of a classifier or backbone equal those of ``model`` within 1e-5 of their
        standard deviation; a head that rounds more in float32 differs by about as much as it rounds. The names of the
        copy's parameters are its own: save and load the model, not the copy.

    Raises:
        ValueError: If there is no block of this package in the model.

    Example:
        >>> import timm, timm_mobilevit
        >>> model = timm.create_model("mobilevitv3_xxs", num_classes=10).eval()
        >>> fast = timm_mobilevit.optimize_for_inference(model)
        >>> images = torch.rand(2, 3, 64, 64)
        >>> torch.allclose(fast(images), model(images), atol=1e-5)
        True
    """
    if not any(isinstance(module, ConvNormAct) for module in model.modules()):
        raise ValueError(
            f"expected a MobileViT of timm_mobilevit or a network that contains one, got {type(model).__name__}"
        )
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    fold_transformers(model)
    for module in model.modules():
        for name, child in module.named_children():
            if is_unmodified(child, nn.Dropout) or is_unmodified(child, DropPath):
                setattr(module, name, nn.Identity())
            elif is_unmodified(child, nn.SiLU):
                setattr(module, name, nn.SiLU(inplace=True))
    if (
        isinstance(model, MobileViT)
        and all(is_unmodified(part, nn.Sequential) for part in (model.stages, *model.stages))
        and not any(is_patched(module) for module in model.stages.modules())
    ):
        model.stages = JoinedStages(model.stages)  # type: ignore[assignment]  # it gives the single stages as well
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Stem) or (isinstance(child, nn.Sequential) and all_inverted_residuals(child)):
                setattr(module, name, ImageWise(child))
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


class ImageWise(nn.Module):
    """Run a module on a CPU image by image.

    Args:
        module: Module that processes every image of a batch independently.

    Example:
        >>> ImageWise(nn.Conv2d(3, 8, 3))(torch.zeros(4, 3, 8, 8)).shape
        torch.Size([4, 8, 6, 6])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.module)  # type: ignore[call-overload, no-any-return]  # the parts of a sequence

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a batch of images or maps."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.module(x)  # type: ignore[no-any-return]
        # Compilers and exporters schedule the work themselves; a branch on the batch size would make it static.
        elif not is_traced() and x.device.type == "cpu" and len(x) > 1:
            return torch.cat([self.module(image) for image in x.split(1)])  # type: ignore[no-untyped-call]
        else:
            return self.module(x)  # type: ignore[no-any-return]


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm of a network in evaluation mode into the convolution before it."""
    for module in model.modules():
        _fold_norm(module)


def _fold_norm(module: nn.Module) -> None:
    """Fold the batch norm of our ConvNormAct, or of mmcv's ConvModule, into the convolution before it."""
    if "forward" in module.__dict__:  # what it does with its children is not known
        return
    if type(module) in (ConvNormAct, Stem):
        norm_name = "bn"
    elif getattr(module, "order", None) == ("conv", "norm", "act") and getattr(module, "norm_name", None):
        norm_name = module.norm_name  # type: ignore[assignment]
    else:
        return
    norm: Any = getattr(module, norm_name)
    is_batch_norm = is_unmodified(norm, nn.BatchNorm2d) or is_unmodified(norm, nn.SyncBatchNorm)
    if is_batch_norm and norm.running_var is not None and is_unmodified(module.conv, nn.Conv2d):  # type: ignore[arg-type]
        module.conv = fuse_conv_bn_eval(module.conv, norm)  # type: ignore[type-var]
        setattr(module, norm_name, nn.Identity())
