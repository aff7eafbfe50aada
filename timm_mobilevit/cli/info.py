"""``timm-mobilevit info``."""

import json
from typing import Annotated, Any

import typer

from ._options import model_names

EXAMPLES = (
    "timm-mobilevit info mobilevitv3_xxs",
    "timm-mobilevit info mobilevitv2_2_0.cvnets_in22k_ft_in1k_384 --json",
)


def info(
    model: Annotated[
        str,
        typer.Argument(help="Architecture, or architecture.tag for one set of weights.", autocompletion=model_names),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the architecture of a model and where its pretrained weights come from."""
    from dataclasses import asdict

    from timm_mobilevit.variants import VARIANTS

    from ._registry import describe_model, describe_weights, split_name, tags_of

    arch, tag = split_name(model)
    report = {
        "name": arch,
        **describe_model(arch),
        "architecture": asdict(VARIANTS[arch]),
        "pretrained": [describe_weights(f"{arch}.{t}") for t in ([tag] if tag else tags_of(arch))],
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo("\n".join(_lines(report)))


def _lines(report: dict[str, Any]) -> list[str]:
    """Return the report as text. Plain lines, not a table, so that addresses stay in one piece."""
    lines = [
        report["name"],
        _line("parameters", f"{report['parameters']:,}"),
        _line("feature channels", _join(f["channels"] for f in report["features"])),
        _line("feature strides", _join(f["stride"] for f in report["features"])),
    ]
    for key, value in report["architecture"].items():
        text = _join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
        lines.append(_line(key.replace("_", " "), text))
    for row in report["pretrained"]:
        lines += ["", row["name"], *_weights_lines(row)]
    return lines


def _weights_lines(row: dict[str, Any]) -> list[str]:
    measured = "reproduced by this project" if row["reproduced"] else "not reproduced by this project"
    return [
        _line("ImageNet-1k top-1", f"{row['top1']} % published, {measured}"),
        _line("input size", f"{row['size']}×{row['size']}"),
        _line("crop", f"{row['crop']} of the shorter side, {row['interpolation']}"),
        _line("mean, std", f"{_join(row['mean'])}, {_join(row['std'])}, for RGB in [0, 1]"),
        _line("original file", f"{row['channel_order'].upper()} channels"),
        _line("classes", str(row["num_classes"])),
        _line("licence", row["license"]),
        _line("origin", row["origin"]),
        *([_line("hub repository", row["hf_hub_id"])] if row["hf_hub_id"] else []),
        *([_line("release folder", row["folder"])] if row["folder"] else []),
        _line("paper", f"{row['paper_name']} ({row['paper']})"),
    ]


def _line(key: str, value: str) -> str:
    return f"  {key:<20}{value}"


def _join(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)
