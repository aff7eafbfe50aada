"""``timm-mobilevit inspect``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = (
    "timm-mobilevit inspect work_dirs/ssdlite_mine/epoch_2.pth",
    "timm-mobilevit inspect checkpoint_ema_best.pt --json",
)


def inspect(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pt, .pth, .pth.tar, .bin, .ckpt or .safetensors.")],
    prefix: Annotated[
        str | None,
        typer.Option(help="What stands before the model's names, where a file holds several.", show_default=False),
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(help="Entry to look into, where several hold weights.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a checkpoint file is: its layout, the architectures that fit, and the command that converts it.

    Nothing in the file is run.
    """
    report = _report(file, prefix, entry)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        typer.echo(f"{key.replace('_', ' '):<18}{'none' if text in ('', 'None') else text}")


def _report(file: Path, prefix: str | None, entry: str | None) -> dict[str, Any]:
    import shlex

    from ..weights.checkpoint import open_checkpoint
    from ..weights.convert import find_subtree, fitting_architectures

    checkpoint = open_checkpoint(file, entry)
    try:
        subtree = find_subtree(checkpoint.state_dict, prefix=prefix)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    weights = subtree.state_dict
    fits = fitting_architectures(subtree)
    stem = next(tensor for tensor in weights.values() if tensor.ndim == 4)  # the first parameter of every layout
    heads = [tensor.shape[0] for key, tensor in weights.items() if key.endswith(_CLASSIFIERS) and tensor.ndim == 2]
    command = ["timm-mobilevit", "convert", str(file)]
    for option, value in (("--entry", entry), ("--prefix", prefix), ("--arch", fits[0] if len(fits) > 1 else None)):
        command += [option, value] if value is not None else []
    left_out = list(dict.fromkeys(name.split(".")[0] for name in subtree.left_out))
    return {
        "file": str(file),
        "trainer": checkpoint.trainer,
        "entry": checkpoint.entry,
        "averaged": {True: "yes", False: "no", None: "unknown"}[checkpoint.averaged],
        "layout": subtree.source,
        "prefix": subtree.prefix,
        "architectures": fits,
        "classes": heads[0] if heads else None,
        "input_channels": stem.shape[1],
        "data_types": sorted({str(t.dtype).removeprefix("torch.") for t in weights.values() if t.is_floating_point()}),
        "parameters": sum(t.numel() for key, t in weights.items() if key.endswith(("weight", "bias"))),
        "left_out": left_out,
        "convert": shlex.join([*command, "--out", file.name.partition(".")[0]]) if fits else None,
    }


_CLASSIFIERS = ("head.fc.weight", "classifier.weight", "classifier.fc.weight", "classifier.1.weight")
