"""Non-maximum suppression in a Core ML package: detections that Vision, Apple's framework, understands."""

from typing import Any

import torch
from torch import Tensor, nn

CONFIDENCE, COORDINATES = "confidence", "coordinates"  # names that Vision looks for
_THRESHOLDS = {"iouThreshold": "iou_threshold", "confidenceThreshold": "score_thr"}  # of Core ML, and in the metadata
_NMS_VERSION = 3  # of the specification: iOS 12


class ForVision(nn.Module):
    """A detector with the outputs that Core ML's suppression takes, for one image.

    Args:
        detector: Gives boxes [1, A, 4], corners as fractions of width and height, and scores [1, A, classes].

    Shape:
        Input [1, 3, H, W]. Outputs: confidence [A, classes]; coordinates [A, 4], the centre, width and height of each
        box as fractions.

    Example:
        >>> confidence, coordinates = ForVision(lambda x: x)((torch.tensor([[[0.0, 0, 0.5, 1]]]), torch.ones(1, 1, 2)))
        >>> coordinates
        tensor([[0.2500, 0.5000, 0.5000, 1.0000]])
    """

    output_names = (f"anchor_{CONFIDENCE}", f"anchor_{COORDINATES}")

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """Map an image to the scores and boxes of all anchors."""
        boxes, scores = self.detector(x)
        start, end = boxes[0].split(2, dim=1)  # each [A, 2]
        return scores[0], torch.cat([(start + end) / 2, end - start], dim=1)


def with_suppression(network: Any, metadata: dict[str, Any], *, per_class: bool) -> Any:
    """Append Core ML's non-maximum suppression, per class or of all together, to the package of a ``ForVision``.

    The new package has the outputs ``confidence`` [N, classes] and ``coordinates`` [N, 4], and the optional inputs
    ``iouThreshold`` and ``confidenceThreshold`` instead of what the metadata say.
    """
    import coremltools as ct

    spec = ct.proto.Model_pb2.Model(specificationVersion=_NMS_VERSION)
    nms = spec.nonMaximumSuppression
    nms.pickTop.perClass = per_class
    nms.stringClassLabels.vector.extend(metadata["labels"])
    described = {value.name: value for value in network.get_spec().description.output}
    for name, width in ((CONFIDENCE, len(metadata["labels"])), (COORDINATES, 4)):
        source = described[f"anchor_{name}"]
        spec.description.input.add().CopyFrom(source)
        output = spec.description.output.add(name=name)
        output.type.CopyFrom(source.type)
        array = output.type.multiArrayType
        del array.shape[:]
        array.shapeRange.sizeRanges.add(lowerBound=0, upperBound=-1)  # any number of detections
        array.shapeRange.sizeRanges.add(lowerBound=width, upperBound=width)
        setattr(nms, f"{name}InputFeatureName", source.name)
        setattr(nms, f"{name}OutputFeatureName", name)
    for name, key in _THRESHOLDS.items():
        value = spec.description.input.add(name=name, shortDescription=f"Instead of {metadata[key]:g}")
        value.type.doubleType.SetInParent()
        value.type.isOptional = True
        setattr(nms, name, metadata[key])
        setattr(nms, f"{name}InputFeatureName", name)
    return ct.utils.make_pipeline(network, ct.models.MLModel(spec, skip_model_load=True))
