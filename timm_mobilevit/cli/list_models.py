"""``timm-mobilevit list``."""

import json
from typing import Annotated

import typer

from ._options import Json

EXAMPLES = (
    "timm-mobilevit list",
    "timm-mobilevit list v3 --pretrained",
    "timm-mobilevit list '*_384' --pretrained",
    "timm-mobilevit list '*_xxs*' --json",
)


def list_models(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name, or wildcards as in file names.", show_default=False)
    ] = "",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="One row per set of pretrained weights.")] = False,
    as_json: Json = False,
) -> None:
    """List the models, or with --pretrained their published weights."""
    from rich import box
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    from ._registry import describe_model, describe_weights, find_names, tags_of

    names = find_names(pattern, tags=pretrained)
    if pretrained:
        rows = [describe_weights(name) for name in names]
        columns: dict[str, JustifyMethod] = {"Weights": "left", "Input": "right", "Top-1": "right", "Licence": "left"}
        cells: list[tuple[str, ...]] = [
            (row["name"], str(row["size"]), f"{row['top1']:.2f}", row["license"]) for row in rows
        ]
    else:
        rows = [{"name": name, **describe_model(name), "tags": tags_of(name)} for name in names]
        columns = {"Model": "left", "Parameters": "right", "Pretrained tags (default first)": "left"}
        cells = [(row["name"], f"{row['parameters'] / 1e6:.2f} M", "\n".join(row["tags"])) for row in rows]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading, side in columns.items():
        table.add_column(heading, justify=side, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # nothing is cut off in a file or a pipe
    console.print(table)
