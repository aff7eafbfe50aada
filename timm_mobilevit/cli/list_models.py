"""``timm-mobilevit list``."""

import json
from typing import Annotated, Any

import typer

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models, or with --pretrained their published weights."""
    from ._registry import describe_model, describe_weights, find_names, tags_of

    names = find_names(pattern, tags=pretrained)
    if pretrained:
        _show([describe_weights(name) for name in names], _WEIGHTS_COLUMNS, as_json)
    else:
        rows = [{"name": name, **describe_model(name), "tags": tags_of(name)} for name in names]
        _show(rows, _MODEL_COLUMNS, as_json)


# Heading: how a row fills the column. Both tables fit a terminal of 80 columns.
_MODEL_COLUMNS = {
    "Model": lambda row: row["name"],
    "Parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
    "Pretrained tags (default first)": lambda row: "\n".join(row["tags"]),
}
_WEIGHTS_COLUMNS = {
    "Weights": lambda row: row["name"],
    "Input": lambda row: f"{row['size']}",
    "Top-1": lambda row: f"{row['top1']:.2f}",
    "Licence": lambda row: row["license"],
}


def _show(rows: list[dict[str, Any]], columns: dict[str, Any], as_json: bool) -> None:
    """Print rows as JSON, or as a table."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in columns:
        right = heading in ("Parameters", "Input", "Top-1")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # nothing is cut off in a file or a pipe
    console.print(table)
