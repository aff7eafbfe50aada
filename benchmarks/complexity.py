"""Parameters and multiply-accumulates of every model: ``python -m benchmarks.complexity [--size 256]``.

Counted are convolutions and matrix products, attention's included; elementwise work, norms and biases are not. The
figures equal those recorded from the reference implementations. Published ones differ by a few percent: their profiler
counts attention over N tokens of width C as N·C² instead of N²·C.
"""

import argparse

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import timm_mobilevit  # noqa: F401  registers the models


def count(name: str, height: int = 256, width: int = 256) -> tuple[int, int]:
    """Count the parameters of a model, and its multiply-accumulates for one image.

    Args:
        name: Name of a model.
        height: Height of the image, in pixels.
        width: Width of the image.

    Example:
        >>> count("mobilevitv3_xxs")
        (1249448, 332163072)
    """
    model = timm.create_model(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def main() -> None:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the square image, in pixels")
    size = parser.parse_args().size
    print(f"{'model':20} {'parameters':>12} {'MACs (M)':>10}")
    for name in timm.list_models(module="mobilevit_zoo"):
        parameters, macs = count(name, size, size)
        print(f"{name:20} {parameters:12,} {macs / 1e6:10,.1f}")


if __name__ == "__main__":
    main()
