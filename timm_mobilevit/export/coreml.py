"""Core ML: an ML program for iOS 15, macOS 12 and newer, which takes pictures as the camera gives them.

The package has the input ``image``, a picture of the size that was exported: Vision, Apple's framework, scales and
crops to it. The rest of the preprocessing is in the package: division by 255, and mean and standard deviation of the
model's configuration. Weights and arithmetic are float16, which Apple's neural engine needs; without ``half``, float32.

A classifier whose class names are known becomes a Core ML classifier, which Vision and Xcode's preview understand: its
outputs are ``classLabel``, and ``classLabel_probs`` by class name. All other models have the outputs of ONNX files.
Xcode's preview colours the classes of a segmentor.

A detector gives the boxes and scores of all anchors or, with ``suppress``, detections as Vision shows them:
``confidence`` [N, classes] and ``coordinates`` [N, 4], the centre, width and height of each box as fractions of the
image, with the thresholds of its config unless the optional inputs ``iouThreshold`` and ``confidenceThreshold`` say
others. They can differ from those of the detector's own ``predict``: Core ML gives each box one class, sets no limit to
their number, and clips no box to the image.

Xcode shows architecture, licence, version, input and outputs. The metadata are those of an ONNX file, without mean and
standard deviation.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ._format import Format

if TYPE_CHECKING:
    from ._network import Network


def _write(network: "Network", path: Path, *, half: bool, suppress: bool) -> None:
    import coremltools as ct

    from ._interface import WithInterface
    from ._metadata import suppresses_classes_together
    from ._vision import ForVision, with_suppression

    metadata, outputs = network.metadata, network.names
    (_, *shape) = network.shapes[0]
    colours = {1: ct.colorlayout.GRAYSCALE, 3: ct.colorlayout.RGB}
    if shape[0] not in colours:
        raise ValueError(f"Core ML takes images of one channel or three, got {shape[0]}")
    preprocessing = {key: metadata[key] for key in ("mean", "std") if key in metadata}
    if suppress:  # refused before the conversion, which takes long
        if metadata.get("task") != "object-detection":
            raise ValueError("suppress is for detectors of timm_mobilevit.export.mm")
        classes_together = suppresses_classes_together(metadata, "this detector")
    names = metadata.get("labels") if "task" not in metadata and outputs in (["logits"], ["probabilities"]) else None
    if names:  # Core ML gives probabilities by name: of two classes of one name (ImageNet's cranes), one would be lost
        counts = Counter(names)
        names = [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]
    softmax = names is not None and outputs == ["logits"]
    wrapped: Any = WithInterface(network.optimized, **preprocessing, softmax=softmax).eval()
    if suppress:
        wrapped, outputs = ForVision(wrapped), list(ForVision.output_names)
    package = ct.convert(
        network.trace(network=wrapped),
        convert_to="mlprogram",
        inputs=[ct.ImageType("image", shape=(1, *shape), scale=1 / 255, color_layout=colours[shape[0]])],
        outputs=None if names else [ct.TensorType(name) for name in outputs],
        classifier_config=ct.ClassifierConfig(names) if names else None,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    )
    if suppress:
        package = with_suppression(package, metadata, per_class=not classes_together)
    package.short_description = ".".join(str(metadata[key]) for key in ("architecture", "tag") if key in metadata)
    package.license = metadata.get("license", "")
    package.author, package.version = "timm-mobilevit", __version__
    colour = {1: "Grey", 3: "RGB"}[shape[0]]
    package.input_description["image"] = f"{colour} picture of {shape[2]}×{shape[1]} pixels"
    for name in package.output_description:
        package.output_description[name] = _describe(name, metadata)
    told = {key: json.dumps(fact, ensure_ascii=False) for key, fact in metadata.items() if key not in preprocessing}
    package.user_defined_metadata.update(told)
    if names:
        package.user_defined_metadata[f"{_PREVIEW}.type"] = "imageClassifier"
    elif metadata.get("task") == "semantic-segmentation":
        shown = {"labels": metadata["labels"]}
        if "palette" in metadata:
            shown["colors"] = ["#" + bytes(colour).hex() for colour in metadata["palette"]]
        package.user_defined_metadata[f"{_PREVIEW}.type"] = "imageSegmenter"
        package.user_defined_metadata[f"{_PREVIEW}.params"] = json.dumps(shown)

    package.save(str(path))


_PREVIEW = "com.apple.coreml.model.preview"  # coremltools' guide, "Xcode Model Preview Types"
_OUTPUTS = {
    "classLabel": "The most probable class",
    "classLabel_probs": "The probability of each class",
    "probabilities": "The probability of each class, in the second dimension",
    "logits": "Logits [1, classes, …]; softmax over the second dimension gives probabilities",
    "features": "Features [1, channels] of the whole image",
    "boxes": "Corners (x1, y1, x2, y2) of a box for every anchor, as fractions of width and height",
    "scores": "Probability of each class for every anchor",
    "confidence": "Probability of each class for every detection",
    "coordinates": "Centre, width and height of every detection, as fractions of width and height",
}


def _describe(output: str, metadata: dict[str, Any]) -> str:
    """Describe an output in words that Xcode shows."""
    stage = output.removeprefix("feature_")
    if stage.isdecimal():
        reduction = metadata["feature_reductions"][int(stage)]
        return f"Map [1, channels, height, width], {reduction} times smaller than the image"
    return _OUTPUTS.get(output, "")


FORMAT = Format(
    "coreml",
    "Core ML",
    ".mlpackage",
    ("coremltools",),
    _write,
    takes={"half": True, "softmax": False, "suppress": False},
    unverified="Core ML runs on Apple's systems only",
    is_folder=True,
    has_metadata=True,
    needs_labels=True,
)
