"""Postprocessing in the ONNX files of detectors and segmentors: non-maximum suppression, and the classes of pixels.

A network of ``timm_mobilevit.export.mm`` ends where arrays of fixed shape do; its metadata have the settings of what
follows. Here that is a PyTorch module, whose ONNX graph is attached to the file, float or quantized.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import nms

from ._metadata import suppresses_classes_together
from ._network import Network
from ._onnx_graph import EXPORTER_OPSET, open_onnx, save, translate
from ._opset17 import to_opset_17

_EVEN = 1e-5  # of a probability: so near to a threshold, runtimes round to either side
_MISSED = 0.01  # of the detections: overlaps can lie at the threshold, and be rounded to either side of it
_NONE = -1.0  # less than any score


class Suppression(nn.Module):
    """Turns the boxes and scores of all anchors of an image into detections, as the detector's ``predict`` does.

    Args:
        settings: The metadata of the exported file.
        height_axis: Of the image; the axis of the width follows.

    Shape:
        Inputs: boxes [1, anchors, 4], corners (x1, y1, x2, y2) as fractions of the image; scores [1, anchors, classes],
        in [0, 1]; the image, of which only the size counts. Outputs: boxes [N, 4] in pixels, clipped to the image;
        scores [N], the largest first; labels [N].

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.6], [0.5, 0.5, 1.2, 1.0]]])
        >>> scores = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]])
        >>> settings = {"score_thr": 0.1, "iou_threshold": 0.5, "nms_pre": -1, "max_per_class": -1, "max_per_img": 100}
        >>> Suppression(settings)(boxes, scores, torch.zeros(1, 3, 100, 200))
        (tensor([[  0.,   0., 100.,  50.],
                [100.,  50., 200., 100.]]), tensor([0.9000, 0.7000]), tensor([0, 1]))
    """

    output_names = ("boxes", "scores", "labels")

    def __init__(self, settings: Mapping[str, Any], height_axis: int = 2) -> None:
        super().__init__()
        self.height_axis = height_axis
        self.threshold = max(settings["score_thr"], _NONE / 2)
        self.overlap = settings["iou_threshold"]
        self.together = bool(settings.get("nms", {}).get("class_agnostic"))
        self.nms_pre, self.max_per_class, self.max_per_img = (
            settings[key] if settings[key] > 0 else None for key in ("nms_pre", "max_per_class", "max_per_img")
        )

    def forward(self, boxes: Tensor, scores: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the detections of one image."""
        height, width = image.shape[self.height_axis : self.height_axis + 2]
        limit = torch.tensor([width, height, width, height], dtype=torch.float32)
        pixels = boxes[0].float() * limit  # [A, 4]
        clipped = torch.minimum(pixels.clamp(min=0), limit)
        inside = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
        visible = torch.where(inside, scores[0].float().T, _NONE)  # [C, A]
        best, order = visible.sort(dim=1, descending=True)
        best, order = best[:, : self.nms_pre], order[:, : self.nms_pre]
        labels, ranks = (best > self.threshold).nonzero().unbind(1)
        anchors, found = order[labels, ranks], best[labels, ranks]
        # Boxes of different classes leave each other alone if they lie apart.
        distance = 0 if self.together else labels[:, None] * (pixels.max() - pixels.min() + 1)
        kept = nms(pixels[anchors] + distance, found, self.overlap)
        if self.max_per_class is not None:
            of_class = labels[kept][:, None] == torch.arange(scores.shape[2])  # [N, C]
            place = of_class.long().cumsum(0).gather(1, labels[kept][:, None])[:, 0]
            kept = kept[place <= self.max_per_class]
        kept = kept[: self.max_per_img]
        return clipped[anchors[kept]], found[kept], labels[kept]

    def check(self, raw: list[Tensor], image: Tensor, final: list[NDArray[Any]]) -> None:
        """Refuse detections that are not those of the boxes and scores."""
        ours = [part.numpy() for part in self(*raw, image)]
        expected, found = ({tuple(row) for row in np.column_stack(output).tolist()} for output in (ours, final))
        missed = len(expected ^ found) / max(len(expected | found), 1)
        if missed > _MISSED or (np.diff(final[1]) > 0).any():
            raise RuntimeError(
                f"on {list(image.shape)} the file finds {len(found)} boxes, PyTorch {len(expected)}; {missed:.1%} of "
                "them all are not in both"
            )


class Classes(nn.Module):
    """Turns logits [B, classes, H, W] into classes [B, H, W], int64.

    Args:
        threshold: Of the sigmoid of a single logit, above which the class is 1; None for several.

    Example:
        >>> Classes()(torch.tensor([[[[0.0]], [[2.0]]]])), Classes(0.3)(torch.zeros(1, 1, 1, 1))
        (tensor([[[1]]]), tensor([[[1]]]))
    """

    output_names = ("classes",)

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, logits: Tensor) -> Tensor:
        """Find the class of each pixel."""
        if self.threshold is None:
            return logits.argmax(dim=1)
        return (logits[:, 0].float().sigmoid() > self.threshold).long()

    def check(self, raw: list[Tensor], image: Tensor, final: list[NDArray[Any]]) -> None:
        """Refuse classes that are not those of the logits."""
        wrong = self(raw[0]).numpy() != final[0]
        if self.threshold is not None:
            wrong &= (raw[0][:, 0].double().sigmoid() - self.threshold).abs().numpy() > _EVEN
        if wrong.any():
            raise RuntimeError(f"on {list(image.shape)} the classes are not those of the logits")


def find_tail(network: Network, *, suppress: bool) -> Suppression | Classes:
    """Return the postprocessing of a network: suppression for a detector, classes for a segmentor.

    Raises:
        ValueError: If the network is another one, or no file has its kind of suppression.
    """
    task = "object-detection" if suppress else "semantic-segmentation"
    if network.metadata.get("task") != task or network.names not in (["boxes", "scores"], ["logits"]):
        raise ValueError(
            f"{'suppress' if suppress else 'argmax'} is for the task {task} and outputs that nothing was done to; got "
            f"{network.metadata.get('task', 'no task')} and {', '.join(network.names)}"
        )
    if not suppress:
        return Classes(network.metadata.get("threshold"))
    suppresses_classes_together(network.metadata, "this detector")
    return Suppression(network.metadata, height_axis=1 if network.takes_pictures else 2)


def attach(tail: Suppression | Classes, network: Network, path: Path) -> None:
    """Append postprocessing to the network in an ONNX file, and run it.

    Raises:
        RuntimeError: If the file gives other detections or classes.
    """
    import onnx

    proto = onnx.load(path)
    graph, version = proto.graph, next(opset.version for opset in proto.opset_import if not opset.domain)
    raw, names = list(graph.output), list(tail.output_names)
    inner = {value.name: f"raw_{value.name}" for value in raw}  # both may have outputs of one name
    inputs = list(inner.values())
    images = [network.images(shape) for shape in network.shapes]
    args = [torch.from_numpy(output) for output in open_onnx(path)(images[0].numpy())]
    axes: list[dict[int, Any]] = [{0: "batch", 2: "height", 3: "width"}]
    if isinstance(tail, Suppression):
        args.append(images[0])
        inputs.append(graph.input[0].name)
        axes = [{1: "anchors"}, {1: "anchors"}, {axis: name for axis, name in network.axes.items() if axis}]
    free = tuple(axes) if network.axes else None
    added = translate(tail.eval(), tuple(args), inputs, names, free, max(version, EXPORTER_OPSET))
    if version < EXPORTER_OPSET:
        to_opset_17(added)
    shared = {"", *inputs, *names}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [inner.get(value, value) for value in values]
    for output in raw:
        output.name = inner[output.name]
    for i, node in enumerate(added.graph.node):
        node.name = f"final_{i}"
        for values in (node.input, node.output):
            values[:] = [value if value in shared else f"final_{value}" for value in values]
    for tensor in added.graph.initializer:
        tensor.name = f"final_{tensor.name}"
    graph.node.extend(added.graph.node)
    graph.initializer.extend(added.graph.initializer)
    # Both ends are compared in one run, for a network rounds differently if it is optimized for other outputs.
    del graph.output[:]
    graph.output.extend([*added.graph.output, *raw])
    onnx.checker.check_model(proto, full_check=True)
    run = open_onnx(proto.SerializeToString())
    for image in images:
        outputs = run(image.numpy())
        tail.check([torch.from_numpy(part) for part in outputs[len(names) :]], image, outputs[: len(names)])
    del graph.output[len(names) :]
    save(proto, path, network.metadata | {"outputs": names, "suppressed": isinstance(tail, Suppression)})
