"""``timm-mobilevit config``."""

from typing import Annotated

import typer

from ..configs import FOLDER, find_config, list_configs

EXAMPLES = (
    "timm-mobilevit config",
    "python tools/train.py $(timm-mobilevit config ssdlite_mobilevitv3-xxs)",
)


def config(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a config, or its beginning. Without it, all are listed.",
            show_default=False,
            autocompletion=lambda: [path.stem for path in list_configs()],
        ),
    ] = "",
) -> None:
    """Show where an installed config of MMDetection or MMSegmentation is."""
    if name:
        typer.echo(find_config(name))
        return
    for path in list_configs():
        typer.echo(path.relative_to(FOLDER))
