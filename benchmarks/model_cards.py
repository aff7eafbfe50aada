"""Model cards of published weights: ``python -m benchmarks.model_cards mobilevitv2_1_0.cvnets_in1k --out cards``.

``--push USER/NAME --checkpoint DIR`` uploads converted weights to the Hugging Face Hub with their card, where their
licence allows it. The address of the hub and the token are those of ``huggingface_hub``: ``HF_ENDPOINT``, ``HF_TOKEN``.
"""

import fnmatch
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import timm
import torch
import typer
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

import timm_mobilevit  # noqa: F401  registers the models
from timm_mobilevit.weights.directory import read_directory
from timm_mobilevit.weights.pretrained import WEIGHTS

TEMPLATE = Path(__file__).with_name("model_card.md")
UPLOADED = ("model.safetensors", "config.json", "README.md", "LICENSE")


class License(NamedTuple):
    """What a card says about the licence of weights."""

    title: str
    link: str
    redistributable: bool
    terms: str


# By the names of the pretrained table; LICENSES-WEIGHTS.md says the same.
LICENSES = {
    "cvnets-license": License(
        "Apple sample code licence",
        "https://github.com/apple/ml-cvnets/blob/main/LICENSE",
        redistributable=True,
        terms="Use, change and redistribution with the notice; no patent licence. Whether it covers the weights was "
        "asked in [ml-cvnets#88](https://github.com/apple/ml-cvnets/issues/88) and not answered.",
    ),
    "micron-non-commercial": License(
        "Micron's licence of MobileViTv3",
        "https://github.com/micronDLA/MobileViTv3/blob/main/LICENSE",
        redistributable=False,
        terms="**Non-commercial, personal use only; no redistribution.** The weights are therefore not hosted with "
        "this card: they are downloaded from Micron's own release and converted on your machine.",
    ),
}
_AUTHORS = {
    "v1": "Sachin Mehta and Mohammad Rastegari",
    "v2": "Sachin Mehta and Mohammad Rastegari",
    "v3": "Shakti N. Wadekar and Abhishek Chaurasia",
    "rangeaugment": "Sachin Mehta and Saeid Naderiparizi and Fartash Faghri and Maxwell Horton and Lailin Chen and "
    "Ali Farhadi and Oncel Tuzel and Mohammad Rastegari",
}


def model_card(name: str) -> ModelCard:
    """Generate the card of a row of the pretrained table."""
    row, in_22k = WEIGHTS[name], "in22k" in name
    cfg = row.to_cfg()
    number = cfg["paper_ids"].removeprefix("arXiv:")
    data = ModelCardData(
        license="other",
        license_name=row.license,
        license_link=LICENSES[row.license].link,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "timm-mobilevit", "mobilevit"],
        datasets=["imagenet-1k", "imagenet-22k"] if in_22k else ["imagenet-1k"],
        metrics=["accuracy"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="imagenet-1k",
                dataset_name="ImageNet-1k",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name="Top-1 accuracy (%)",
                metric_value=row.top1,
                source_name="published" if not row.reproduced else "published and reproduced",
                source_url=row.origin if row.folder else f"https://arxiv.org/abs/{number}",
            )
        ],
    )
    with torch.device("meta"):
        model: Any = timm.create_model(name.partition(".")[0], num_classes=row.num_classes)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        row=row,
        license=LICENSES[row.license],
        number=number,
        title=cfg["paper_name"],
        authors=_AUTHORS[row.paper],
        training="ImageNet-22k, then ImageNet-1k" if in_22k else "ImageNet-1k",
        source=f"folder `{row.folder}` of {row.origin}" if row.folder else f"<{row.origin}>",
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        channels=", ".join(str(info["num_chs"]) for info in model.feature_info),
        crop=f"{row.crop:g}",
        mean=", ".join(f"{value:g}" for value in row.mean),
        std=", ".join(f"{value:g}" for value in row.std),
        top1=f"{row.top1:.2f}",
    )


def push(directory: Path, name: str, repo: str, *, private: bool = False) -> str:
    """Upload weights that ``timm-mobilevit convert --tag`` wrote, and their card; return the address of the commit.

    Raises:
        ValueError: If the licence does not allow it, or the directory holds other weights.
    """
    row = WEIGHTS[name]
    license = LICENSES[row.license]
    if not license.redistributable:
        raise ValueError(
            f"the licence of {name} ({row.license}) does not allow to upload the weights again; see {license.link}"
        )
    holds = read_directory(directory)
    found, classes = f"{holds.arch}.{holds.tag or None}", len(holds.state_dict.get("head.fc.weight", ()))
    if (found, classes) != (name, row.num_classes) or not (directory / UPLOADED[0]).is_file():
        raise ValueError(f"{directory} holds {found} of {classes} classes, not {UPLOADED[0]} of {name}")
    model_card(name).save(directory / "README.md")
    api = HfApi()
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    # One commit: the weights are never on the hub without the card that names their licence.
    commit = api.upload_folder(
        repo_id=repo, folder_path=directory, allow_patterns=list(UPLOADED), commit_message=f"Add {name}"
    )
    return str(commit.commit_url)


def main(
    name: Annotated[str, typer.Argument(help="architecture.tag of published weights; wildcards with --out.")],
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Folder to write NAME.md to.")] = None,
    repo: Annotated[str, typer.Option("--push", help="Repository to upload to, with --checkpoint.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="Directory that `convert --tag` wrote.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Write the model cards of published weights, or upload weights with their card."""
    names = fnmatch.filter(WEIGHTS, name)
    if not names:
        raise typer.BadParameter(f"no published weights match {name!r}")
    if repo and checkpoint and names == [name] and not out:
        try:
            typer.echo(push(checkpoint, name, repo, private=private))
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error)) from error
    elif out and not (repo or checkpoint):
        out.mkdir(parents=True, exist_ok=True)
        for each in names:
            model_card(each).save(out / f"{each}.md")
        typer.echo(f"Wrote {len(names)} cards to {out}.")
    else:
        raise typer.BadParameter(
            "give --out, or --push with --checkpoint and one name: weights are uploaded with their card"
        )


if __name__ == "__main__":
    typer.run(main)
