"""Options of ``timm-mobilevit export``: those that all formats have, and those that a format may take."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_FILE = "File"  # panel of the help with what only some formats take

Model = Annotated[
    str,
    typer.Argument(
        help="Architecture or architecture.tag, or a directory written by `convert`; not with --config.",
        show_default=False,
    ),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Use random weights, the same each time, to try a runtime.")
]
Backbone = Annotated[bool, typer.Option("--backbone", help="Write feature maps instead of logits.")]
OutIndices = Annotated[str, typer.Option(help="Stages of the backbone, from 0 to 4, separated by commas.")]
ImgSize = Annotated[
    str,
    typer.Option(
        metavar="SIDE | HEIGHT,WIDTH",
        help="Size of the images in pixels, if not the model's own; of a config, what its test pipeline makes.",
        show_default=False,
    ),
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder with one folder of images per class, or with one per split: print the accuracy on them, of the "
        "model and of the file.",
    ),
]

Int8 = Annotated[bool, typer.Option("--int8", help="Quantize to 8 bits, with --calibration.", rich_help_panel=_FILE)]
Calibration = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder of images that the model is for, to measure the ranges of 8 bits on.",
        rich_help_panel=_FILE,
    ),
]
StoredAs = Annotated[
    Literal["int7", "int8", "uint8"],
    typer.Option(
        help="How --int8 stores weights: int7 and uint8 are right on every processor, int7 is faster on x86, uint8 has "
        "one bit more; int8 has both, but is wrong on x86 without VNNI.",
        rich_help_panel=_FILE,
    ),
]


def _flag(name: str, text: str) -> Any:
    return Annotated[bool, typer.Option(name, help=text, rich_help_panel=_FILE)]


# By option of ``export_model``, those of the command line that stand for it: name and type.
OWN: dict[str, dict[str, Any]] = {
    "dynamic_batch": {"static": _flag("--static", "Take one image of that size, nothing else.")},
    "dynamic_size": {"fixed_size": _flag("--fixed-size", "Take any number of images, all of that size.")},
    "half": {
        "half": _flag("--half/--no-half", "Write weights in float16, for runtimes that compute in what is in the file.")
    },
    "half_io": {"half_io": _flag("--half-io", "With --half, take and give float16 too.")},
    "softmax": {"softmax": _flag("--softmax", "Give probabilities instead of logits.")},
    "image_input": {
        "image_input": _flag("--image-input", "Take decoded pictures, uint8 [1, height, width, channels].")
    },
    "calibration": {"int8": Int8, "calibration": Calibration},
    "weight_type": {"weight_type": StoredAs},
    "opset": {"opset": Annotated[int, typer.Option(min=17, help="Version of the operators.", rich_help_panel=_FILE)]},
    "suppress": {"raw": _flag("--raw", "Of a detector, write boxes and scores of all anchors, without NMS.")},
    "argmax": {"argmax": _flag("--argmax", "Of a segmentor, write the class of each pixel instead of logits.")},
}


def parse_size(text: str) -> tuple[int, int] | None:
    """Read height and width from ``320``, ``480,640`` or ``480x640``."""
    if not text:
        return None
    sides = re.fullmatch(r"([1-9]\d*)(?:\s*[,x×]\s*([1-9]\d*))?", text.strip(), re.IGNORECASE)
    if not sides:
        raise typer.BadParameter(f"--img-size is a number of pixels, or HEIGHT,WIDTH as in 480,640; got {text!r}")
    return int(sides[1]), int(sides[2] or sides[1])
