"""``timm-mobilevit info``."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..variants import VARIANTS
from ._options import Json, model_names

EXAMPLES = (
    "timm-mobilevit info mobilevitv3_xxs",
    "timm-mobilevit info mobilevitv2_2_0.cvnets_in22k_ft_in1k_384 --json",
)


def info(
    model: Annotated[
        str,
        typer.Argument(help="Architecture, or architecture.tag for one set of weights.", autocompletion=model_names),
    ],
    as_json: Json = False,
) -> None:
    """Show the architecture of a model and where its pretrained weights come from."""
    from ._registry import describe_model, describe_weights, split_name, tags_of

    arch, tag = split_name(model)
    about, architecture = describe_model(arch), asdict(VARIANTS[arch])
    weights = [describe_weights(f"{arch}.{t}") for t in ([tag] if tag else tags_of(arch))]
    if as_json:
        report = {"name": arch, **about, "architecture": architecture, "pretrained": weights}
        typer.echo(json.dumps(report, indent=2))
        return
    _print(
        arch,
        {
            "parameters": f"{about['parameters']:,}",
            "feature channels": [f["channels"] for f in about["features"]],
            "feature strides": [f["stride"] for f in about["features"]],
            **{key.replace("_", " "): "none" if value is None else value for key, value in architecture.items()},
        },
    )
    for row in weights:
        typer.echo()
        _print(row["name"], _weights(row))


def _weights(row: dict[str, Any]) -> dict[str, Any]:
    measured = "reproduced by this project" if row["reproduced"] else "not reproduced by this project"
    return {
        "ImageNet-1k top-1": f"{row['top1']} % published, {measured}",
        "input size": f"{row['size']}×{row['size']}",
        "crop": f"{row['crop']} of the shorter side, {row['interpolation']}",
        "mean, std": f"{_text(row['mean'])}, {_text(row['std'])}, for RGB in [0, 1]",
        "original file": f"{row['channel_order'].upper()} channels",
        "classes": row["num_classes"],
        "licence": row["license"],
        "origin": row["origin"],
        "hub repository": row["hf_hub_id"],
        "release folder": row["folder"],
        "paper": f"{row['paper_name']} ({row['paper']})",
    }


def _print(name: str, metadata: dict[str, Any]) -> None:
    """Print what is known, one line each. Not a table, so that addresses stay in one piece."""
    typer.echo(name)
    for key, value in metadata.items():
        if value is not None:
            typer.echo(f"  {key:<20}{_text(value)}")


def _text(value: Any) -> str:
    return " ".join(f"{number:g}" for number in value) if isinstance(value, (list, tuple)) else str(value)
