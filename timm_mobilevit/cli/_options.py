"""Options that several subcommands have."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..export.formats import is_exported
from ..variants import VARIANTS

if TYPE_CHECKING:
    import torch


def model_names() -> list[str]:
    """Return the architectures, for the completion of the shell."""
    return list(VARIANTS)


def for_optimizing(dtype: str) -> "torch.dtype | None":
    """Return the ``dtype`` of ``optimize_for_inference``, None for float32."""
    import torch

    return None if dtype == "float32" else getattr(torch, dtype)  # type: ignore[no-any-return]


Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")]
Model = Annotated[
    str,
    typer.Option(
        help="Architecture or architecture.tag; not needed with a directory or an exported file as --checkpoint.",
        autocompletion=model_names,
    ),
]
_WEIGHTS = (
    "Weights to use instead of the published ones: a file in any format that `convert` knows, such as timm's "
    "model_best.pth.tar, or a directory written by `convert`"
)
WeightsFile = Annotated[Path | None, typer.Option(help=f"{_WEIGHTS}.")]
Checkpoint = Annotated[Path | None, typer.Option(help=f"{_WEIGHTS}, or a file written by `export`.")]
Entry = Annotated[
    str | None,
    typer.Option(
        help="Entry of the checkpoint file to take, where several hold weights, such as averaged and raw ones; "
        "`timm-mobilevit inspect` shows them.",
        show_default=False,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(help="What stands before the model's names, if the file holds several.", show_default=False),
]
Config = Annotated[
    str,
    typer.Option(
        help="Config of a detector or segmentor, instead of a model: a file, or a name that `timm-mobilevit config` "
        "lists. Needs the extra seg, det or mm.",
        show_default=False,
    ),
]
Labels = Annotated[Path | None, typer.Option(help="Class names: a text file with one per line, or JSON.")]
ImgSize = Annotated[int | None, typer.Option(min=1, help="Side of the input in pixels, if not the model's own.")]
CropPct = Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Centre crop, if not the model's own.")]
Split = Annotated[str, typer.Option(help="Folder of DATA to take, where it holds one per split; finds `val` too.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Classify so many images only, at even distances.", show_default=False)
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images.")]
Device = Annotated[str, typer.Option(help="Where to run, as torch names devices.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(help="bfloat16 is faster where the processor has instructions for it; see `optimize_for_inference`."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def given_option(context: typer.Context, names: Iterable[str]) -> str:
    """Return the first of some options that the command line has, as it is written there; empty if it has none."""
    sources = ((name, context.get_parameter_source(name)) for name in names)
    found = next((name for name, source in sources if source and source.name == "COMMANDLINE"), "")
    return f"--{found.replace('_', '-')}" if found else ""


def check_model_is_named(model: str, checkpoint: Path | None) -> None:
    """Refuse a call that does not say which model to use.

    Raises:
        typer.BadParameter: If there is neither a name nor a directory that knows it.
    """
    if not model and not (checkpoint and (checkpoint.is_dir() or is_exported(checkpoint))):
        raise typer.BadParameter(
            "name the model with --model; only a directory written by `convert`, or a file by `export`, knows its own"
        )
