"""``timm-mobilevit recipe``."""

from pathlib import Path
from typing import Annotated

import typer

from .. import recipes
from .._files import replacing
from ._targets import reserve_file

EXAMPLES = (
    "timm-mobilevit recipe list",
    "timm-mobilevit recipe show mobilevitv3_s",
    "timm-mobilevit recipe copy mobilevitv2_1_0.cvnets_in1k --out recipe.yaml",
    "python -m timm_mobilevit.run train.py --config recipe.yaml --data-dir imagenet",
)


Name = Annotated[
    str,
    typer.Argument(
        help="Name of a recipe, or of an architecture that has only one.",
        show_default=False,
        autocompletion=lambda: [path.stem for path in recipes.list_recipes()],
    ),
]


def list_recipes() -> None:
    """List the recipes: name, images, epochs, batch, size and published top-1."""
    paths = recipes.list_recipes()
    width = max(len(path.stem) for path in paths)
    for path in paths:
        with path.open(encoding="utf-8") as file:
            summary = file.readline().removeprefix("# ").strip()
        typer.echo(f"{path.stem:{width}}  {summary.partition(': ')[2]}")


def show(name: Name) -> None:
    """Print a recipe, with its sources, how to launch it, and where timm differs from the reference."""
    typer.echo(recipes.find_recipe(name).read_text(encoding="utf-8"), nl=False)


def copy(
    context: typer.Context,
    name: Name,
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: NAME.yaml]", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Copy a recipe to a file of your own, for timm's train.py --config FILE."""
    recipe = recipes.find_recipe(name)
    out = out or Path(recipe.name)
    reserve_file(context, out, force=force)
    with replacing(out) as temporary:
        temporary.write_bytes(recipe.read_bytes())
    typer.echo(out)
