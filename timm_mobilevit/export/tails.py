"""What an application asks of a detector or segmentor, behind the network in its ONNX file: detections, classes.

A network of ``timm_mobilevit.export.mm`` ends where arrays of fixed shape do, and the metadata say what has to follow.
Here that is a module of PyTorch; what torch writes of it as ONNX is attached to the file, float or quantised.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import nms

from ._facts import suppresses_classes_together
from ._network import Network
from ._onnx_graph import EXPORTER_OPSET, save, translate
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
    """What follows a network: suppression behind a detector, the classes behind a segmentor.

    Raises:
        ValueError: If the network is another one, or its suppression is of a kind that no file has.
    """
    task = "object-detection" if suppress else "semantic-segmentation"
    if network.facts.get("task") != task or network.names not in (["boxes", "scores"], ["logits"]):
        raise ValueError(
            f"{'suppress' if suppress else 'argmax'} is for the task {task} and outputs that nothing was done to; got "
            f"{network.facts.get('task', 'no task')} and {', '.join(network.names)}"
        )
    if not suppress:
        return Classes(network.facts.get("threshold"))
    suppresses_classes_together(network.facts, "this detector")
    return Suppression(network.facts, height_axis=1 if network.takes_pictures else 2)


def attach(tail: Suppression | Classes, network: Network, path: Path) -> None:
    """Put a tail behind the network in an ONNX file, and run it.

    Raises:
        RuntimeError: If the file does not find what it should.
    """
    import onnx

    proto = onnx.load(path)
    graph, version = proto.graph, next(opset.version for opset in proto.opset_import if not opset.domain)
    raw, names = list(graph.output), list(tail.output_names)
    images = [network.images(shape) for shape in network.shapes]
    args = [torch.from_numpy(output) for output in _run(proto, images[0])]
    axes: list[dict[int, Any]] = [{0: "batch", 2: "height", 3: "width"}]
    if isinstance(tail, Suppression):
        args.append(images[0])
        axes = [{1: "anchors"}, {1: "anchors"}, {axis: name for axis, name in network.axes.items() if axis}]
    inputs = [f"raw_{i}" for i in range(len(args))]
    free = tuple(axes) if network.axes else None
    added = translate(tail.eval(), tuple(args), inputs, names, free, max(version, EXPORTER_OPSET))
    if version < EXPORTER_OPSET:
        to_opset_17(added)
    # The outputs of the network may be called as those of the tail are.
    inner = {value.name: f"raw_{value.name}" for value in raw}
    outer = dict(zip(inputs, [*inner.values(), graph.input[0].name], strict=False)) | {name: name for name in names}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [inner.get(value, value) for value in values]
    for output in raw:
        output.name = inner[output.name]
    for i, node in enumerate(added.graph.node):
        node.name = f"final_{i}"
        for values in (node.input, node.output):
            values[:] = [outer.get(value, f"final_{value}") if value else "" for value in values]
    for tensor in added.graph.initializer:
        tensor.name = f"final_{tensor.name}"
    graph.node.extend(added.graph.node)
    graph.initializer.extend(added.graph.initializer)
    # Both ends are compared in one run, for a network rounds differently if it is optimised for other outputs.
    del graph.output[:]
    graph.output.extend([*added.graph.output, *raw])
    onnx.checker.check_model(proto, full_check=True)
    for image in images:
        outputs = _run(proto, image)
        tail.check([torch.from_numpy(part) for part in outputs[len(names) :]], image, outputs[: len(names)])
    del graph.output[len(names) :]
    save(proto, path, network.facts | {"outputs": names, "suppressed": isinstance(tail, Suppression)})


def _run(proto: Any, images: Tensor) -> list[NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    feed = images.half() if source.type == "tensor(float16)" else images
    outputs: list[NDArray[Any]] = session.run(None, {source.name: feed.numpy()})
    return outputs
