"""Parameters and multiply-accumulates of every model: ``python -m benchmarks.complexity [--img-size 256]``.

Counted are convolutions and matrix products, attention's included; elementwise work, norms and biases are not. The
figures equal those recorded from the reference implementations. Published ones differ by a few percent: their profiler
counts attention over N tokens of width C as N·C² instead of N²·C.

``--by-kind`` splits the multiply-accumulates of one model. ``--optimized`` counts what
``timm_mobilevit.optimize_for_inference`` makes of the models.
"""

import argparse

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import timm_mobilevit

# What an operator belongs to. "attention" is what happens between the projections, which are linear layers in v1 and
# convolutions in v2.
_KINDS = {"convolution": "convolution", "mm": "linear", "addmm": "linear", "bmm": "attention"}


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
    parameters, kinds = count_by_kind(name, height, width, optimized=optimized)
    return parameters, sum(kinds.values())


def count_by_kind(
    name: str, height: int = 256, width: int = 256, *, optimized: bool = False
) -> tuple[int, dict[str, int]]:
    """Count the parameters of a model, and its multiply-accumulates for one image by kind of operator.

    Example:
        >>> count_by_kind("mobilevitv3_xxs")
        (1249448, {'convolution': 119773184, 'linear': 134205440, 'attention': 78184448})
    """
    model = timm.create_model(name, device="meta").eval()
    if optimized:
        model = timm_mobilevit.optimize_for_inference(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width, device="meta"))
    kinds: dict[str, int] = {}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        kind = _KINDS[operator._qualified_op_name.removeprefix("aten::")]
        kinds[kind] = kinds.get(kind, 0) + flops // 2
    return sum(p.numel() for p in model.parameters()), kinds


def main() -> None:
    """Print a line per model, or one for each kind of operator below it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img-size", type=int, default=256, help="side of the square image, in pixels")
    parser.add_argument("--model", action="append", help="a model; can be repeated; all by default")
    parser.add_argument("--by-kind", action="store_true", help="split by kind of operator")
    parser.add_argument("--optimized", action="store_true", help="count what runs after optimize_for_inference")
    arguments = parser.parse_args()
    known = timm.list_models(module="mobilevit_zoo")
    for name in arguments.model or known:
        if name not in known:
            parser.error(f"expected a model that `timm-mobilevit list` shows, got {name!r}")
    print(f"{'model':20} {'parameters':>12} {'MACs (M)':>10}")
    for name in arguments.model or known:
        size = arguments.img_size
        parameters, kinds = count_by_kind(name, size, size, optimized=arguments.optimized)
        print(f"{name:20} {parameters:12,} {sum(kinds.values()) / 1e6:10,.1f}")
        for kind, macs in kinds.items() if arguments.by_kind else ():
            print(f"  {kind:31} {macs / 1e6:10,.1f}")


if __name__ == "__main__":
    main()
