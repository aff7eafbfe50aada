"""``timm-mobilevit card``."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "timm-mobilevit card mobilevitv2_1_0.cvnets_in1k",
    "timm-mobilevit card '*' --out cards",
    "timm-mobilevit card mobilevitv2_1_0.cvnets_in1k --checkpoint mobilevitv2_1_0 --push USER/mobilevitv2_1_0",
)


def card(
    model: Annotated[str, typer.Argument(help="architecture.tag of published weights; wildcards with --out.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write one card each to, NAME.md.", show_default=False)
    ] = None,
    push: Annotated[
        str, typer.Option(help="Repository on the Hugging Face Hub to upload weights and card to.", show_default=False)
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="With --push: directory with the weights, written by `convert --tag`.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a new repository private.")] = False,
) -> None:
    """Write the model card of published weights, and upload it with them."""
    if bool(push) != (checkpoint is not None):
        raise typer.BadParameter("--push and --checkpoint go together: the weights are uploaded with their card")
    if push and out:
        raise typer.BadParameter("--push and --out exclude each other")
    from .._files import check_folder, replacing
    from ..evaluation.card import model_card, push_model
    from ._registry import find_names

    if checkpoint:
        typer.echo(push_model(checkpoint, model, push, private=private))
        return
    if out is None:
        typer.echo(str(model_card(model)))
        return
    names = find_names(model, tags=True)
    check_folder(out, [f"{name}.md" for name in names])
    for name in names:
        with replacing(out / f"{name}.md") as temporary:
            temporary.write_text(str(model_card(name)), encoding="utf-8")
    typer.echo(f"Wrote {len(names)} cards to {out}.")
