"""Parameters and multiply-accumulates of every model: ``python -m benchmarks.complexity [--img-size 256]``.

Counted are convolutions and matrix products, attention's included; elementwise work, norms and biases are not. The
figures equal those recorded from the reference implementations. Published ones differ by a few percent: their profiler
counts attention over N tokens of width C as N·C² instead of N²·C.

``--by-kind`` splits them, and the activations, by kind of layer: ``python -m benchmarks.complexity --by-kind --model
mobilevitv1_s``. Activations are the elements of all tensors that the layers write for one image. ``--optimized`` counts
what ``timm_mobilevit.optimize_for_inference`` makes of the models, 3×3 convolutions as plain ones.
"""

import argparse
from dataclasses import dataclass

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_mobilevit

from ._operators import record

# Where an operator or a module with parameters belongs; what is in neither is elementwise work, pooling and copies.
_OPERATORS = {
    "convolution": "convolution",
    "mm": "linear",
    "addmm": "linear",
    "bmm": "attention",
    "_softmax": "attention",
    "_safe_softmax": "attention",
    "_native_batch_norm_legit_no_training": "norm",
    "native_batch_norm": "norm",
    "native_layer_norm": "norm",
    "native_group_norm": "norm",
    "silu": "activation",
    "relu": "activation",
}
_MODULES = {
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.BatchNorm2d: "norm",
    nn.LayerNorm: "norm",
    nn.GroupNorm: "norm",
}
KINDS = ("convolution", "linear", "attention", "norm", "activation", "other")


@dataclass
class Complexity:
    """Parameters, multiply-accumulates and activations, for one image."""

    parameters: int = 0
    macs: int = 0
    activations: int = 0


def count(name: str, height: int = 256, width: int = 256, *, optimized: bool = False) -> tuple[int, int]:
    """Count the parameters of a model, and its multiply-accumulates for one image.

    Args:
        name: Name of a model.
        height: Height of the image, in pixels.
        width: Width of the image.
        optimized: Whether to count what runs after ``optimize_for_inference``.

    Example:
        >>> count("mobilevitv3_xxs")
        (1249448, 332163072)
    """
    model = timm.create_model(name, device="meta").eval()
    if optimized:
        model = timm_mobilevit.optimize_for_inference(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def count_by_kind(name: str, height: int = 256, width: int = 256) -> dict[str, Complexity]:
    """Split the complexity of a model by kind of layer.

    Args:
        name: Name of a model.
        height: Height of the image, in pixels.
        width: Width of the image.

    Returns:
        A complexity for each of ``KINDS``. "attention" is what happens between the projections, which are linear
        layers in v1 and convolutions in v2.

    Example:
        >>> count_by_kind("mobilevitv3_xxs")["linear"]
        Complexity(parameters=1009672, macs=134205440, activations=1620968)
    """
    model = timm.create_model(name, device="meta").eval()
    images = torch.zeros(1, 3, height, width, device="meta")
    kinds = {kind: Complexity() for kind in KINDS}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            kinds[_MODULES[type(module)]].parameters += parameter.numel()
    with torch.no_grad():
        operators = record(lambda: model(images))
    for operator in operators:
        kind = kinds[_OPERATORS.get(operator.name, "other")]
        kind.macs += operator.flops // 2
        kind.activations += operator.outputs
    return kinds


def main() -> None:
    """Print a line per model, or a table by kind of layer for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img-size", type=int, default=256, help="side of the square image, in pixels")
    parser.add_argument("--model", action="append", help="a model; can be repeated; all by default")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--by-kind", action="store_true", help="split by kind of layer")
    what.add_argument("--optimized", action="store_true", help="count what runs after optimize_for_inference")
    arguments = parser.parse_args()
    size = arguments.img_size
    known = timm.list_models(module="mobilevit_zoo")
    for name in arguments.model or known:
        if name not in known:
            parser.error(f"expected a model that `timm-mobilevit list` shows, got {name!r}")
    if not arguments.by_kind:
        print(f"{'model':20} {'parameters':>12} {'MACs (M)':>10}")
    for name in arguments.model or known:
        if arguments.by_kind:
            print(f"{name:20} {'parameters':>12} {'MACs (M)':>10} {'activations (M)':>16}")
            kinds = count_by_kind(name, size, size)
            columns = zip(*((kind.parameters, kind.macs, kind.activations) for kind in kinds.values()), strict=True)
            for kind, row in {**kinds, "total": Complexity(*map(sum, columns))}.items():
                print(f"  {kind:18} {row.parameters:12,} {row.macs / 1e6:10,.1f} {row.activations / 1e6:16,.2f}")
        else:
            parameters, macs = count(name, size, size, optimized=arguments.optimized)
            print(f"{name:20} {parameters:12,} {macs / 1e6:10,.1f}")


if __name__ == "__main__":
    main()
