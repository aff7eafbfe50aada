"""Copies of trained models for inference: they compute the same in less time and cannot be trained."""

import copy
import platform
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from timm.layers import ClassifierHead, DropPath
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..network.attention import (
    Mlp,
    MultiHeadAttention,
    SeparableAttention,
    SeparableTransformerLayer,
    TransformerLayer,
)
from ..network.blocks import InvertedResidual
from ..network.layers import ConvNormAct, Stem
from ..network.model import MobileViT
from ..network.modes import is_patched, is_traced, is_unmodified
from .fold_transformers import fold_transformers
from .joined_stages import JoinedStages, all_inverted_residuals

# The modules whose forward is known, so that their dropouts and activations can change.
_OWN = (
    ConvNormAct, Stem, InvertedResidual, MultiHeadAttention, SeparableAttention, Mlp, TransformerLayer,
    SeparableTransformerLayer, ClassifierHead,
)  # fmt: skip
_FORWARDS = ("forward", "forward_features", "forward_head", "forward_intermediates")


def optimize_for_inference(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Fold norms into convolutions, remove what only training needs, and store the weights channels-last.

    Activations work in place, and on a CPU the stem and the stages before the first MobileViT block run image by
    image: their maps then stay in the cache, which those of a whole batch do not. The stages of a classifier run as one
    (``timm_mobilevit.inference.joined_stages``): ``forward_intermediates`` raises, and the maps of stages come from an
    optimized model of ``timm.create_model(…, features_only=True)``.

    Args:
        model: A model of this package, or a network that contains one, such as a detector or segmentor of
            ``timm_mobilevit.mm``. It is not changed.
        dtype: ``torch.bfloat16`` to compute in bfloat16 the stages of a classifier, or the convolutions of another
            network; inputs and outputs keep the model's data type. It warns on a CPU that has no instructions for it,
            where it is slower.

    Returns:
        A copy in evaluation mode. Outputs of a classifier or backbone equal those of ``model`` within 1e-5 of their
        standard deviation; a head that rounds more in float32 differs by about as much as it rounds. In bfloat16 they
        differ by about 1e-2 of it, most of which comes from the rounding of the weights. The names of the copy's
        parameters are its own: save and load the model, not the copy.

    Raises:
        ValueError: If there is no block of this package in the model, or ``dtype`` is another one.

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
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype must be torch.bfloat16 or None, got {dtype}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    fold_transformers(model)
    for module in model.modules():
        if type(module) not in _OWN:  # others may use the input of an activation again, or read the rate of a dropout
            continue
        for name, child in module.named_children():
            if is_unmodified(child, nn.Dropout) or is_unmodified(child, DropPath):
                setattr(module, name, nn.Identity())
            elif is_unmodified(child, nn.SiLU) and _returns_new_map(module):
                setattr(module, name, nn.SiLU(inplace=True))
    if (
        type(model) is MobileViT
        and vars(model).keys().isdisjoint(_FORWARDS)  # another forward may use each stage
        and is_unmodified(model.stages, nn.Sequential)
        and all(is_unmodified(stage, nn.Sequential) for stage in model.stages)
        and not any(is_patched(module) for module in model.stages.modules())
    ):
        model.stages = JoinedStages(model.stages)  # type: ignore[assignment]
        model.grad_checkpointing = False  # it runs block by block
        model.forward_intermediates = model.prune_intermediate_layers = _refuse_single_stages  # type: ignore[method-assign, assignment]
    for module in list(model.modules()):
        for name, child in module.named_children():
            early = isinstance(child, Stem) or (isinstance(child, nn.Sequential) and all_inverted_residuals(child))
            if early and all(_is_per_image(part) for part in child.modules()):
                setattr(module, name, ImageWise(child))
    if dtype is not None:
        _run_in(dtype, model)
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def _returns_new_map(module: nn.Module) -> bool:
    """Return whether the layer before the activation returns a map that nothing else refers to."""
    if isinstance(module, ConvNormAct):
        before: nn.Module = module.conv if is_unmodified(module.bn, nn.Identity) else module.bn
    elif isinstance(module, Mlp):
        before = module.fc1
    else:
        return False
    return any(is_unmodified(before, kind) for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm))


def _is_per_image(module: nn.Module) -> bool:
    """Return whether a module computes each image by itself, and nothing that was added to it sees single images.

    A batch norm without running statistics uses the whole batch, a hook gets all of it, and a foreign module may.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
        return False
    return type(module).__module__.partition(".")[0] in ("torch", "timm", "timm_mobilevit") and not is_patched(module)


def _refuse_single_stages(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        "an optimized copy does not compute the map of each stage; "
        "optimize a model of timm.create_model(…, features_only=True) instead"
    )


class InDtype(nn.Module):
    """Run a module in another data type.

    Args:
        module: Module with one input and one output. Its parameters are converted.
        dtype: Data type that it computes in.
        output: Data type of the result.

    Example:
        >>> InDtype(nn.Linear(4, 2), torch.bfloat16, torch.float32)(torch.zeros(1, 4)).dtype
        torch.float32
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, output: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """Convert the input, run the module, and convert its output."""
        return self.module(x.to(self.dtype)).to(self.output)  # type: ignore[no-any-return]


def _run_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Make the networks of a model compute in another data type; their inputs and outputs keep theirs."""
    if any(isinstance(module, InDtype) for module in model.modules()):  # it is a copy in bfloat16 already
        return
    first = next(model.parameters())
    if first.device.type == "cpu" and not _has_bfloat16():
        warnings.warn("this CPU has no instructions for bfloat16: float32 is faster here", stacklevel=3)
    output = first.dtype
    networks = [module for module in model.modules() if isinstance(module, MobileViT)]
    for network in networks:
        network.stem = InDtype(network.stem, dtype, dtype)  # type: ignore[assignment]
        for name, stage in network.stages.named_children():
            between = isinstance(network.stages, JoinedStages) and name == "early"  # no caller gets this map
            setattr(network.stages, name, InDtype(stage, dtype, dtype if between else output))
        if not isinstance(network.final_conv, nn.Identity):
            network.final_conv = InDtype(network.final_conv, dtype, output)  # type: ignore[assignment]
    inside = {module for network in networks for module in network.modules()}
    for module in [module for module in model.modules() if module not in inside]:
        for name, child in module.named_children():
            if is_unmodified(child, nn.Conv2d):
                setattr(module, name, InDtype(child, dtype, output))


def _has_bfloat16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16 matrices: AVX-512 BF16, AMX, or Arm's."""
    if platform.machine() in ("x86_64", "AMD64"):  # oneDNN asks for less, and emulates
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-any-return, no-untyped-call]


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

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to a batch of images or maps."""
        # Compilers and exporters schedule the work themselves; a branch on the batch size would make it static.
        if torch.jit.is_scripting() or is_traced() or x.device.type != "cpu" or len(x) < 2:  # type: ignore[attr-defined]
            return self.module(x)  # type: ignore[no-any-return]
        return torch.cat([self.module(image) for image in x.split(1)])  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[nn.Module]:
        """Return the blocks of a stage, for networks that run them one by one."""
        return self.module.children()

    def __getitem__(self, index: int) -> nn.Module:
        """Return a block of a stage."""
        return self.module[index]  # type: ignore[index, no-any-return]


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm of a network in evaluation mode into the convolution before it."""
    for module in model.modules():
        if type(module) in (ConvNormAct, Stem):
            name: Any = "bn"
        elif getattr(module, "order", None) == ("conv", "norm", "act"):  # mmcv's ConvModule
            name = getattr(module, "norm_name", None)
        else:
            continue
        if not name or "forward" in module.__dict__:  # such a forward may use the children in another way
            continue
        conv: Any = module.conv
        norm: Any = getattr(module, name)
        is_batch_norm = is_unmodified(norm, nn.BatchNorm2d) or is_unmodified(norm, nn.SyncBatchNorm)
        if is_batch_norm and norm.running_var is not None and is_unmodified(conv, nn.Conv2d):
            module.conv = fuse_conv_bn_eval(conv, norm)
            setattr(module, name, nn.Identity())
