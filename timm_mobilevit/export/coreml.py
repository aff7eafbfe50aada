"""Core ML: an ML program for iOS 15, macOS 12 and newer, which takes pictures as the camera gives them."""

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .._files import replacing
from .._version import __version__
from ..inference.optimize import optimize_for_inference
from ._compare import output_names
from ._facts import find_facts
from ._interface import WithInterface
from ._labels import known_class_names
from ._program import trace
from ._target import check_target
from ._vision import CONFIDENCE, COORDINATES, ForVision, with_suppression
from .final_outputs import suppresses_classes_together


def export_coreml(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    half_precision: bool = True,
    suppress: bool = False,
) -> None:
    """Write a model as a Core ML package, on macOS or Linux.

    The model is optimised first (batch norms folded into convolutions) and is itself left as it is. The package has the
    input ``image``, a picture of ``input_size``: Vision, Apple's framework, scales and crops to it. The rest of the
    preprocessing is in the package: division by 255, and mean and standard deviation of the model's configuration.

    A classifier whose class names are known becomes a Core ML classifier, which Vision and Xcode's preview understand:
    its outputs are ``classLabel``, and ``classLabel_probs`` by class name. All other models have their raw outputs:
    ``logits``, ``features``, ``feature_0``, … as in ONNX files. Xcode's preview colours the classes of a segmentor.

    A detector gives the boxes and scores of all anchors or, with ``suppress``, detections as Vision shows them:
    ``confidence`` [N, classes] and ``coordinates`` [N, 4], the centre, width and height of each box as fractions of the
    image. They can differ from those of the detector's own ``predict``: Core ML gives each box one class, sets no limit
    to their number, and clips no box to the image.

    Xcode shows what the package says about itself: architecture, licence, version, input and outputs. Its metadata hold
    the same facts as those of an ONNX file, without mean and standard deviation.

    Core ML itself exists on Apple's systems only: elsewhere the package is written, but cannot be run.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: Package to write, a directory that ends in ``.mlpackage``; an existing one is replaced.
        input_size: Channels (3 for RGB, 1 for grey), height and width of the image.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        half_precision: Whether to compute in float16, which Apple's neural engine needs; otherwise in float32.
        suppress: Whether a detector of ``timm_mobilevit.export.mm`` gives detections, with the thresholds of its config
            unless the optional inputs ``iouThreshold`` and ``confidenceThreshold`` say others.

    Raises:
        ImportError: If the extra ``coreml`` is not installed.
        ValueError: If ``path`` has another ending or is a file, the number of labels is not that of the classes, the
            size is none that the model and Core ML take, or ``suppress`` is for no detector or one whose suppression
            Core ML does not have.
    """
    try:
        import coremltools as ct
    except ImportError as error:
        raise ImportError(
            f'Core ML export needs coremltools ({error}); install with: pip install "timm-mobilevit[coreml]"'
        ) from error

    path = Path(path)
    check_target(path, "coreml")
    colours = {1: ct.colorlayout.GRAYSCALE, 3: ct.colorlayout.RGB}
    if input_size[0] not in colours:
        raise ValueError(f"Core ML takes images of one channel or three, got input_size={input_size!r}")
    names = known_class_names(model, labels)
    facts = find_facts(model, input_size, labels)

    preprocessing = {key: facts[key] for key in ("mean", "std") if key in facts}
    if suppress:  # what cannot be suppressed is refused before the conversion, which takes long
        if facts.get("task") != "object-detection":
            raise ValueError(f"suppress is for detectors of timm_mobilevit.export.mm, got {type(model).__name__}")
        classes_together = suppresses_classes_together(facts, "this detector")
    # Optimised before it is wrapped: what is done to a whole classifier is done to this one.
    optimized = optimize_for_inference(copy.deepcopy(model).cpu().float())
    network: nn.Module = WithInterface(optimized, **preprocessing, softmax=names is not None)
    if suppress:
        model = network = ForVision(network)
    program = trace(network, input_size)
    outputs = output_names(model, len(program.graph_signature.user_outputs))
    package = ct.convert(
        program,
        convert_to="mlprogram",
        inputs=[ct.ImageType("image", shape=(1, *input_size), scale=1 / 255, color_layout=colours[input_size[0]])],
        outputs=None if names else [ct.TensorType(name) for name in outputs],
        classifier_config=ct.ClassifierConfig(names) if names else None,
        compute_precision=ct.precision.FLOAT16 if half_precision else ct.precision.FLOAT32,
        skip_model_load=True,
    )
    if suppress:
        package = with_suppression(package, facts, per_class=not classes_together)
    package.short_description = ".".join(str(facts[key]) for key in ("architecture", "tag") if key in facts)
    package.license = facts.get("license", "")
    package.author, package.version = "timm-mobilevit", __version__
    colours_in_words = {1: "Grey", 3: "RGB"}[input_size[0]]
    package.input_description["image"] = f"{colours_in_words} picture of {input_size[2]}×{input_size[1]} pixels"
    for name in package.output_description:
        package.output_description[name] = _describe(name, facts)
    told = {key: json.dumps(fact, ensure_ascii=False) for key, fact in facts.items() if key not in preprocessing}
    package.user_defined_metadata.update(told)
    if names:
        package.user_defined_metadata[f"{_PREVIEW}.type"] = "imageClassifier"
    elif facts.get("task") == "semantic-segmentation":
        shown = {"labels": facts["labels"]}
        if "palette" in facts:
            shown["colors"] = ["#" + bytes(colour).hex() for colour in facts["palette"]]
        package.user_defined_metadata[f"{_PREVIEW}.type"] = "imageSegmenter"
        package.user_defined_metadata[f"{_PREVIEW}.params"] = json.dumps(shown)

    with replacing(path) as temporary:
        package.save(str(temporary))


_PREVIEW = "com.apple.coreml.model.preview"  # coremltools' guide, "Xcode Model Preview Types"
_OUTPUTS = {
    "classLabel": "The most probable class",
    "classLabel_probs": "The probability of each class",
    "logits": "Logits [1, classes, …]; softmax over the second dimension gives probabilities",
    "features": "Features [1, channels] of the whole image",
    "boxes": "Corners (x1, y1, x2, y2) of a box for every anchor, as fractions of width and height",
    "scores": "Probability of each class for every anchor",
    CONFIDENCE: "Probability of each class for every detection",
    COORDINATES: "Centre, width and height of every detection, as fractions of width and height",
}


def _describe(output: str, facts: dict[str, Any]) -> str:
    """What an output is, for the people who use the package."""
    stage = output.removeprefix("feature_")
    if stage.isdecimal():
        reduction = facts["feature_reductions"][int(stage)]
        return f"Map [1, channels, height, width], {reduction} times smaller than the image"
    return _OUTPUTS.get(output, "")
