"""Where the time of one network goes, operator by operator: ``python -m benchmarks.profile [--network mobilevitv1_s]``.

Ours, ours optimized, timm's and ``transformers``' side by side, in milliseconds per forward pass on the CPU. The
profiler itself takes a few microseconds per operator.
"""

from typing import Annotated

import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from ._device import prepare
from ._peers import build_family
from ._steps import LAYOUTS, inference, make_images, place


def profile(network: nn.Module, images: Tensor, passes: int) -> dict[str, float]:
    """Milliseconds that each operator takes in a forward pass, without the operators that it calls.

    Args:
        network: Network on the CPU.
        images: Images [batch, 3, height, width].
        passes: Forward passes to average, after two that are not counted.

    Example:
        >>> profile(nn.ReLU(), torch.rand(1, 3, 8, 8), 2)["relu"] > 0
        True
    """
    step = inference(network, images)
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(passes):
            step()
    return {
        event.key.removeprefix("aten::"): event.self_cpu_time_total / 1e3 / passes
        for event in profiler.key_averages()
        if event.key.startswith("aten::")
    }


def main(
    network: Annotated[str, typer.Option(help="One of our models.")] = "mobilevitv1_s",
    batch: Annotated[int, typer.Option(min=1, help="Images per pass.")] = 1,
    size: Annotated[int, typer.Option(min=64, help="Side of the square images, in pixels.")] = 256,
    layout: Annotated[str, typer.Option(help="nchw or channels_last.")] = "channels_last",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    passes: Annotated[int, typer.Option(min=1, help="Forward passes to average.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Operators to show; the rest is summed up.")] = 12,
) -> None:
    """Print a table of operators, those that take longest in any of the networks first."""
    if layout not in LAYOUTS:
        raise typer.BadParameter(f"expected the layout {' or '.join(LAYOUTS)}, got {layout!r}")
    if network not in timm.list_models(module="mobilevit_zoo"):
        raise typer.BadParameter(f"expected a model that `timm-mobilevit list` shows, got {network!r}")
    prepare("cpu", threads)
    images = make_images(batch, size, layout, "cpu")
    times = {
        source: profile(place(peer, layout, "cpu"), images, passes) for source, peer in build_family(network).items()
    }
    operators = {operator for each in times.values() for operator in each}
    longest = sorted(operators, key=lambda operator: -max(each.get(operator, 0.0) for each in times.values()))
    table = Table("operator", *(f"{source}, ms" for source in times), title=f"{network}, batch {batch}, {size}²")
    for operator in longest[:rows]:
        table.add_row(operator, *(f"{each.get(operator, 0.0):.2f}" for each in times.values()))
    table.add_row("others", *(f"{sum(each.get(o, 0.0) for o in longest[rows:]):.2f}" for each in times.values()))
    table.add_row("all", *(f"{sum(each.values()):.2f}" for each in times.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
