"""The networks that are compared: ours, timm's built-in, ``transformers``' and, for scale, other mobile networks."""

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.utils import reparameterize_model
from torch import Tensor, nn

import timm_mobilevit
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.variants import VARIANTS, get_variant

OURS, OPTIMIZED, TIMM, TRANSFORMERS = "ours", "ours, optimized", "timm", "transformers"

# Convolutional networks and hybrids of the same weight class; they solve the same task with other weights.
SCALE = ("mobilenetv3_large_100", "efficientnet_b0", "mobilenetv4_conv_medium", "fastvit_t8", "repvit_m1_0")


class _Logits(nn.Module):
    """A network of ``transformers`` that returns its logits and nothing around them, as timm's networks do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images, return_dict=True).logits


def timm_name(name: str) -> str | None:
    """Return what timm calls the same network, None where it has none.

    Example:
        >>> timm_name("mobilevitv1_s"), timm_name("mobilevitv2_1_25"), timm_name("mobilevitv3_1_0")
        ('mobilevit_s', 'mobilevitv2_125', None)
    """
    generation, _, size = name.partition("_")
    if generation == "mobilevitv1":
        return f"mobilevit_{size}"
    if generation == "mobilevitv2":
        return f"mobilevitv2_{round(100 * float(size.replace('_', '.'))):03}"
    return None


def build(name: str) -> nn.Module:
    """Build our network with random weights, norms, statistics and biases, as after training.

    Kernels are drawn so that a layer returns about as much as it gets. With those of a new network the outputs hardly
    depend on the image, and implementations that compute different things would seem to agree.
    """
    network = timm.create_model(name).eval()
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
            nn.init.uniform_(tensor, 0.8, 1.2)
        elif key.endswith(("running_mean", "bias")):
            nn.init.uniform_(tensor, -0.1, 0.1)
        elif key.endswith("weight"):
            nn.init.normal_(tensor, std=1.4 * tensor[0].numel() ** -0.5)
    return network


def build_timm(ours: nn.Module, name: str, *, exportable: bool = False) -> nn.Module | None:
    """Build timm's network with the weights of ours; None where timm has none."""
    builtin = timm_name(name)
    if builtin is None:
        return None
    network = timm.create_model(builtin, exportable=exportable).eval()
    network.load_state_dict(export_state_dict(ours.state_dict(), name, "timm"))
    return network


def build_transformers(ours: nn.Module, name: str) -> nn.Module | None:
    """Build the network of ``transformers`` with the weights of ours; None without the package or where it has none."""
    if timm_name(name) is None or find_spec("transformers") is None:
        return None
    import transformers

    variant = get_variant(name)
    if variant.separable:
        config = transformers.MobileViTV2Config(width_multiplier=variant.stem_width / 32, num_labels=1000)
        network = transformers.MobileViTV2ForImageClassification(config)
    else:
        config = transformers.MobileViTConfig(
            hidden_sizes=list(variant.transformer_widths),
            neck_hidden_sizes=[variant.stem_width, *variant.widths, variant.final_width],
            expand_ratio=float(variant.expand_ratio),
            num_labels=1000,
        )
        network = transformers.MobileViTForImageClassification(config)
    # Images go in as they are, without the image processor's flip: the channel order stays.
    network.load_state_dict(export_state_dict(ours.state_dict(), name, "transformers", channel_order="rgb"))
    return _Logits(network).eval()


def sources(name: str, *, training: bool = False) -> list[str]:
    """Name the implementations of a network that exist and are installed; networks for scale are timm's alone.

    Example:
        >>> sources("mobilevitv3_1_0"), sources("mobilevitv3_1_0", training=True), sources("efficientnet_b0")
        (['ours', 'ours, optimized'], ['ours'], ['timm'])
    """
    if name not in VARIANTS:
        return [TIMM]
    peers = [TIMM, TRANSFORMERS] if find_spec("transformers") else [TIMM]
    return [OURS, *([] if training else [OPTIMIZED]), *(peers if timm_name(name) else [])]


def build_source(name: str, source: str, *, training: bool = False, dtype: str = "fp32") -> nn.Module:
    """Build one implementation of a network, with the same weights in every process.

    Args:
        name: One of our models, or one of timm for scale; those get the form that they are used in: branches are merged
            for inference.
        source: One of ``sources(name)``.
        training: Whether it is to be trained.
        dtype: "bf16" for an optimized form that computes in bfloat16; the others run under autocast.
    """
    torch.manual_seed(0)
    if name not in VARIANTS:
        network = timm.create_model(name).train(training)
        return network if training else reparameterize_model(network)
    ours = build(name)
    if source == OPTIMIZED:
        return timm_mobilevit.optimize_for_inference(ours, dtype=torch.bfloat16 if dtype == "bf16" else None)
    peers = {TIMM: build_timm, TRANSFORMERS: build_transformers}
    network = peers[source](ours, name) if source in peers else ours
    if network is None:
        raise ValueError(f"{source} has no {name}")
    return network.train(training)


def check_agreement(outputs: Mapping[str, NDArray[np.float32]], tolerance: float) -> None:
    """Refuse to compare the speed of networks that do not compute the same.

    Args:
        outputs: Logits [batch, classes] by name; the first are the expected ones.
        tolerance: Largest difference, in standard deviations of the expected ones.

    Raises:
        RuntimeError: If any differs by more, or is no number.
    """
    (first, expected), *others = outputs.items()
    for name, actual in others:
        error = float(np.abs(actual - expected).max() / expected.std())
        if not error <= tolerance:  # NaN as well
            raise RuntimeError(
                f"{name} and {first} differ by {error:.2g} standard deviations of the output, expected at most "
                f"{tolerance:.2g}: they are not the same network, so their speed says nothing"
            )
