"""``timm-mobilevit inspect``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import Entry, Json, Prefix

EXAMPLES = (
    "timm-mobilevit inspect work_dirs/ssdlite_mine/epoch_2.pth",
    "timm-mobilevit inspect checkpoint_ema_best.pt --json",
)


def inspect(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pt, .pth, .pth.tar, .bin, .ckpt or .safetensors.")],
    prefix: Prefix = None,
    entry: Entry = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint file is: its layout, the architectures that fit, and the command that converts it.

    Nothing in the file is run.
    """
    report = _report(file, prefix, entry)
    if as_json:
        typer.echo(json.dumps(report, indent=2, allow_nan=False))
        return
    for key, value in report.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        if key == "entries":
            text = f"\n{'':<18}".join(map(_entry_line, value))
        if value is not None or key in _ALWAYS:
            name = "weights in" if key == "entries" else key.replace("_", " ")
            typer.echo(f"{name:<18}{'none' if text in ('', None) else text}")


def _entry_line(entry: dict[str, Any]) -> str:
    known = [entry["entry"] or "the file itself", {"yes": "averaged", "no": "raw", "unknown": ""}[entry["averaged"]]]
    known += [f"{entry[key]:,} {key}" for key in ("updates", "batches") if entry[key] is not None]
    known.append("taken" if entry["taken"] else f"--entry {entry['entry']} takes them")
    return ", ".join(part for part in known if part)


def _report(file: Path, prefix: str | None, entry: str | None) -> dict[str, Any]:
    from ..convert import convert_state_dict
    from ..convert.matching import fitting_architectures, the_architecture
    from ..convert.subtree import find_subtree
    from ..weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(file, entry)
    try:
        subtree = find_subtree(checkpoint.state_dict, prefix=prefix)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    weights = subtree.state_dict
    fits = fitting_architectures(subtree)
    # The report and the suggested command come from the conversion itself, so that `convert` agrees with them.
    refused, converted, order = None, {}, None
    try:
        arch = fits[0] if fits else the_architecture(subtree)
        try:
            converted = convert_state_dict(weights, arch, subtree.source, prefix="")
        except ValueError:  # weights of another number of channels have no order to reverse
            converted, order = convert_state_dict(weights, arch, subtree.source, "rgb", prefix=""), "rgb"
    except ValueError as error:
        refused = str(error)
    options = {
        "--entry": entry,
        "--prefix": prefix,
        "--arch": arch if len(fits) > 1 else None,
        "--channel-order": order,
    }
    head, stem = converted.get("head.fc.weight"), converted.get("stem.conv.weight")
    taken, known = checkpoint.entries[0], {True: "yes", False: "no", None: "unknown"}
    return {
        "file": str(file),
        "trainer": checkpoint.trainer,
        **{key: checkpoint.metadata.get(key) for key in ("epoch", "step", "metric", "decay")},
        "entry": taken.name,
        "averaged": known[taken.averaged],
        "entries": [
            {
                "entry": found.name,
                "averaged": known[found.averaged],
                "taken": found is taken,
                "updates": found.updates,
                "batches": found.batches,
            }
            for found in checkpoint.entries
        ],
        "layout": subtree.source,
        "prefix": subtree.prefix,
        "architectures": fits,
        "classes": None if head is None else head.shape[0],
        "input_channels": None if stem is None else stem.shape[1],
        "data_types": sorted({str(t.dtype).removeprefix("torch.") for t in weights.values() if t.is_floating_point()}),
        "parameters": sum(t.numel() for key, t in weights.items() if key.endswith(("weight", "bias"))),
        "left_out": list(dict.fromkeys(name.split(".")[0] for name in subtree.left_out)),
        "refused": refused,
        "convert": None if refused else _command(file, options),
    }


def _command(file: Path, options: dict[str, str | None]) -> str:
    """Return the command that converts the file, into a folder that is not there yet."""
    import itertools
    import shlex

    from ..export.formats import is_exported

    stem = file.name.strip(".-").partition(".")[0] or "converted"
    names = itertools.chain((stem, f"{stem}_converted"), (f"{stem}_converted_{i}" for i in itertools.count(2)))
    out = next(name for name in names if not Path(name).exists() and not is_exported(Path(name)))
    source = f"./{file}" if str(file).startswith("-") else str(file)
    given = [part for option, value in options.items() if value is not None for part in (option, value)]
    return shlex.join(["timm-mobilevit", "convert", source, *given, "--out", out])


# Shown as "none" if empty; other empty entries are left out.
_ALWAYS = ("trainer", "entry", "architectures", "classes", "input_channels", "convert")
