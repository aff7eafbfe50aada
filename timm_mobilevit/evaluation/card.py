"""Model cards of the published weights, in the format of the Hugging Face Hub, from the pretrained table."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData

from .. import mobilevit_zoo  # noqa: F401  # registers the models
from ..weights.directory import read_directory
from ..weights.pretrained import WEIGHTS, Weights

_FILES = ("model.safetensors", "config.json")
_IMAGENET = "imagenet-1k"  # the names that the hub has for the data sets
_IMAGENET_22K = "imagenet-22k"


@dataclass(frozen=True)
class License:
    """What a card says about the licence of weights.

    Attributes:
        title: Name in words.
        link: Address of its text.
        redistributable: Whether the weights may be uploaded again.
        terms: What it means, in short.
    """

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
    """Generate the model card of a set of published weights.

    Args:
        name: ``arch.tag`` of a row of ``timm_mobilevit.weights.pretrained.WEIGHTS``.

    Returns:
        The card; ``str(card)`` is the text of ``README.md``, with its YAML front matter.

    Raises:
        ValueError: If there is no such row.

    Example:
        >>> card = model_card("mobilevitv2_1_0.cvnets_in1k")
        >>> card.data.license_name, card.data.eval_results[0].metric_value
        ('cvnets-license', 78.09)
    """
    row = _row(name)
    return ModelCard(f"---\n{_front_matter(name, row).to_yaml()}\n---\n\n{_text(name, row)}")


def push_model(directory: str | Path, name: str, repo_id: str, *, private: bool = False) -> str:
    """Upload converted published weights to the Hugging Face Hub, with their model card.

    The address of the hub and the token are those of ``huggingface_hub``: ``HF_ENDPOINT``, ``HF_TOKEN``.

    Args:
        directory: What ``timm-mobilevit convert --tag`` wrote: ``model.safetensors`` and ``config.json``. A ``LICENSE``
            in it is uploaded too.
        name: ``arch.tag`` of the weights in it.
        repo_id: Repository to upload to, ``user/name``. Created if there is none.
        private: Whether a created repository is private.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: If a file is missing in the directory.
        ValueError: If there is no such row, its licence does not allow it, or the directory holds other weights.

    Example:
        >>> push_model("mobilevitv3_s", "mobilevitv3_s.micron_in1k", "user/mobilevitv3_s")
        Traceback (most recent call last):
        ...
        ValueError: the licence of mobilevitv3_s.micron_in1k (micron-non-commercial) does not allow to upload the
        weights again; see https://github.com/micronDLA/MobileViTv3/blob/main/LICENSE
    """
    row = _row(name)
    license = LICENSES[row.license]
    if not license.redistributable:
        raise ValueError(
            f"the licence of {name} ({row.license}) does not allow to upload the weights again; see {license.link}"
        )
    directory = Path(directory)
    _check_holds(directory, name)
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    files = [*_FILES, *(["LICENSE"] if (directory / "LICENSE").is_file() else [])]
    operations = [CommitOperationAdd(file, str(directory / file)) for file in files]
    operations.append(CommitOperationAdd("README.md", str(model_card(name)).encode()))
    # One commit: the weights are never on the hub without the card that names their licence.
    commit = api.create_commit(repo_id, operations, commit_message=f"Add {name}")
    return str(commit.commit_url)


def _check_holds(directory: Path, name: str) -> None:
    missing = [file for file in _FILES if not (directory / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} lacks {', '.join(missing)}; write it with `timm-mobilevit convert FILE --arch "
            f"{name.partition('.')[0]} --tag {name.partition('.')[2]} --out {directory}`"
        )
    holds = read_directory(directory)
    found = f"{holds.arch}.{holds.tag or None}"
    if found != name:
        raise ValueError(f"{directory} holds {found}, not {name}: the card would say nothing about these weights")
    classes = len(holds.state_dict.get("head.fc.weight", ()))
    if classes != _row(name).num_classes:
        raise ValueError(f"{directory} holds weights of {classes} classes, {name} has {_row(name).num_classes}")


def _row(name: str) -> Weights:
    row = WEIGHTS.get(name)
    if row is None:
        close = get_close_matches(name, WEIGHTS, n=3) or list(WEIGHTS)
        raise ValueError(f"no pretrained weights {name!r}; did you mean {', '.join(close)}?")
    return row


def _front_matter(name: str, row: Weights) -> ModelCardData:
    return ModelCardData(
        license="other",
        license_name=row.license,
        license_link=LICENSES[row.license].link,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "timm-mobilevit", "mobilevit"],
        datasets=[_IMAGENET, _IMAGENET_22K] if "in22k" in name else [_IMAGENET],
        metrics=["accuracy"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=_IMAGENET,
                dataset_name="ImageNet-1k",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name="Top-1 accuracy (%)",
                metric_value=row.top1,
                source_name="published" if not row.reproduced else "published and reproduced",
                source_url=row.origin if row.folder else f"https://arxiv.org/abs/{_paper(row)[0]}",
            )
        ],
    )


def _paper(row: Weights) -> tuple[str, str]:
    """Number on arXiv and title."""
    cfg = row.to_cfg()
    return cfg["paper_ids"].removeprefix("arXiv:"), cfg["paper_name"]


def _text(name: str, row: Weights) -> str:
    arch = name.partition(".")[0]
    license = LICENSES[row.license]
    number, title = _paper(row)
    with torch.device("meta"):
        model: Any = timm.create_model(arch, num_classes=row.num_classes)
    parameters = sum(p.numel() for p in model.parameters())
    channels = ", ".join(str(info["num_chs"]) for info in model.feature_info)
    training = "ImageNet-22k, then ImageNet-1k" if "in22k" in name else "ImageNet-1k"
    reproduced = "This project measured it too." if row.reproduced else "This project has not reproduced it."
    original = "BGR; its first convolution is reversed on conversion" if row.channel_order == "bgr" else "RGB"
    source = f"folder `{row.folder}` of {row.origin}" if row.folder else f"<{row.origin}>"
    download = f"[{row.hf_hub_id}](https://huggingface.co/{row.hf_hub_id})" if row.hf_hub_id else source
    command = f"timm-mobilevit evaluate imagenet --model {name}"
    return f"""# {name}

A MobileViT image classifier for [timm](https://github.com/huggingface/pytorch-image-models), trained on {training} \
by the authors of the weights, in the layout of `timm-mobilevit`.

## Licence

[{license.title}]({license.link}), `{row.license}`. {license.terms} \
This is a reading aid and no legal advice: the licence itself holds.

## Model

| | |
|---|---|
| parameters | {parameters / 1e6:.2f} M |
| input | {row.size}×{row.size} pixels |
| feature maps | {channels} channels at strides 2, 4, 8, 16, 32 |
| classes | {row.num_classes} |
| paper | [{title}](https://arxiv.org/abs/{number}) |
| original file | {source} |
| downloaded from | {download} |

## Use

```bash
pip install timm-mobilevit
```

```python
import timm
import timm_mobilevit  # registers the models
from timm.data import create_transform, resolve_data_config

model = timm.create_model("{name}", pretrained=True).eval()
transform = create_transform(**resolve_data_config(model=model))  # for RGB images of PIL

backbone = timm.create_model("{name}", pretrained=True, features_only=True)
```

On the command line: `timm-mobilevit predict photo.jpg --model {name}`.

## Preprocessing

RGB in [0, 1], mean {_join(row.mean)}, standard deviation {_join(row.std)}; {row.interpolation} resize, \
centre crop of {row.crop:g} of the shorter side. The original file expects {original}.

## Metrics

| data | metric | value |
|---|---|---:|
| ImageNet-1k, validation | top-1 (%) | {row.top1:.2f} |

As published by the authors of the weights. {reproduced} `{command}` measures it.

## Limits

{_limits(name, row)}

## Citation

```bibtex
@article{{arxiv_{number.replace(".", "_")},
  title = {{{title}}},
  author = {{{_AUTHORS[row.paper]}}},
  journal = {{arXiv preprint arXiv:{number}}},
  year = {{20{number[:2]}}}
}}
```
"""


def _join(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _limits(name: str, row: Weights) -> str:
    limits = [
        "The classes are the 1,000 of ImageNet-1k; an image of anything else gets one of them all the same.",
        "The weights carry the biases of ImageNet's images and labels. Nobody measured here how the accuracy differs "
        "between groups of people or places.",
        "Accuracy is published for the size above only; images of other sizes work too.",
    ]
    if row.paper == "v3" and row.channel_order == "bgr":
        limits.append(
            "That the original file expects BGR follows from the code that trained it and is not verified on data: "
            f"`timm-mobilevit evaluate imagenet --model {name} --channel-order both` tells."
        )
    return "\n".join(f"- {limit}" for limit in limits)
