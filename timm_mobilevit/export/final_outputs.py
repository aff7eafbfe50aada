"""What an application asks of a detector or segmentor, behind the network in its ONNX file: detections, classes.

A file of ``timm_mobilevit.export.mm`` ends where arrays of fixed shape do, and its metadata say what has to follow.
Here that is added to the finished file, float or quantised, in standard operators.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from .._files import replacing
from ..formats import require
from ._compare import make_images
from ._facts import read_facts
from ._target import check_target

# Behind one image's boxes [1, A, 4], as fractions, and scores [1, A, classes]. What lies outside the image is no
# candidate; nor, of each class, is what scores less than the best nms_pre.
_SUPPRESSION = """
suppression (float[1, A, 4] anchor_boxes, float[1, A, C] anchor_scores)
    => (float[N, 4] boxes, float[N] scores, int64[N] labels)
    <int64[4] corner_axes = {{ {width}, {height}, {width}, {height} }}, int64 first = {{0}}, int64 second = {{1}},
     int64 third = {{2}}, int64 fourth = {{3}}, int64[1] axis_0 = {{0}}, int64[1] axis_1 = {{1}},
     int64[2] class_and_anchor = {{1, 2}}, int64[2] both_axes = {{0, 1}},
     float zero = {{0}}, float none = {{-1}}, int64[1] one = {{1}},
     int64[1] candidates_per_class = {{ {nms_pre} }}, int64[1] boxes_per_class = {{ {max_per_class} }},
     int64[1] boxes_per_image = {{ {max_per_img} }}, float[1] overlap = {{ {iou_threshold} }},
     float[1] threshold = {{ {score_thr} }}>
{{
    fractions = Cast<to = 1>(anchor_boxes)
    probabilities = Cast<to = 1>(anchor_scores)
    shape = Shape(images)
    corners = Gather(shape, corner_axes)
    limit = Cast<to = 1>(corners)
    pixels = Mul(fractions, limit)
    positive = Max(pixels, zero)
    clipped = Min(positive, limit)
    left = Gather<axis = 2>(clipped, first)
    top = Gather<axis = 2>(clipped, second)
    right = Gather<axis = 2>(clipped, third)
    bottom = Gather<axis = 2>(clipped, fourth)
    has_width = Greater(right, left)
    has_height = Greater(bottom, top)
    has_area = And(has_width, has_height)
    inside = Unsqueeze(has_area, axis_1)
    per_class = Transpose<perm = [0, 2, 1]>(probabilities)
    visible = Where(inside, per_class, none)
    sizes = Shape(left)
    anchors = Gather(sizes, axis_1)
    most = Min(candidates_per_class, anchors)
    best, unused = TopK<axis = 2>(visible, most)
    last = Sub(most, one)
    lowest = Gather<axis = 2>(best, last)
    is_candidate = GreaterOrEqual(visible, lowest)
    candidates = Where(is_candidate, visible, none)
    {rivals}
    found = NonMaxSuppression(pixels, rivals, boxes_per_class, overlap, threshold)
    place = Gather<axis = 1>(found, class_and_anchor)
    table = Squeeze(rivals, axis_0)
    found_scores = GatherND(table, place)
    total = Shape(found_scores)
    count = Min(boxes_per_image, total)
    scores, order = TopK<axis = 0>(found_scores, count)
    found_anchors = Gather<axis = 1>(found, third)
    found_classes = {classes}
    labels = Gather(found_classes, order)
    kept = Gather(found_anchors, order)
    image_boxes = Squeeze(clipped, axis_0)
    boxes = Gather(image_boxes, kept)
}}
"""
# Within each class, or of all classes together: then an anchor has its best class, for its others have the same box.
_RIVALS = {
    False: {"rivals": "rivals = Identity(candidates)", "classes": "Gather<axis = 1>(found, second)"},
    True: {
        "rivals": """rivals, classes = TopK<axis = 1>(candidates, one)
    of_anchors = Squeeze(classes, both_axes)""",
        "classes": "Gather(of_anchors, found_anchors)",
    },
}
_ARGMAX = """
argmax (float[B, C, H, W] logits) => (int64[B, H, W] classes)
{
    classes = ArgMax<axis = 1, keepdims = 0>(logits)
}
"""
# Of one logit per pixel, as mmseg has it.
_THRESHOLD = """
threshold (float[B, 1, H, W] logits) => (int64[B, H, W] classes)
<int64[1] channel = {{1}}, float least = {{ {threshold} }}>
{{
    fractions = Cast<to = 1>(logits)
    probabilities = Sigmoid(fractions)
    above = Greater(probabilities, least)
    flat = Squeeze(above, channel)
    classes = Cast<to = 7>(flat)
}}
"""
_ALL = 2**31 - 1
_EVEN = 1e-5  # of a probability: so near to a threshold, runtimes round to either side
_MISSED = 0.01  # of the detections: overlaps can lie at the threshold, and be rounded to either side of it


def add_suppression(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Let the ONNX file of a detector give detections instead of the boxes and scores of all anchors.

    The outputs are ``boxes`` [N, 4], corners (x1, y1, x2, y2) in pixels of the input, clipped to it; ``scores`` [N],
    the largest first; and ``labels`` [N], indices of the names in the metadata. They are those of the detector's own
    ``predict``: the thresholds are those of its config, which the metadata hold. The file is run, and compared with
    :func:`detections`, before it is put in place.

    Args:
        path: A file of ``export_onnx`` for one image (``dynamic_batch=False``), of a detector of
            ``timm_mobilevit.export.mm``.
        out: File to write; an existing one, such as ``path`` itself, is replaced.

    Raises:
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If the file is no such one, or its suppression is of another kind.
        RuntimeError: If the file does not find what it should. It is not kept.
    """
    proto, facts = _open(path, out, "object-detection", ["boxes", "scores"])
    together = suppresses_classes_together(facts, str(path))
    if _input_shape(proto)[0] != 1:
        raise ValueError(f"detections are of one image, but {path} takes several: export with dynamic_batch=False")
    height, width = (1, 2) if _is_uint8(proto) else (2, 3)  # its axes
    text = _SUPPRESSION.format(
        **_RIVALS[together],
        height=height,
        width=width,
        iou_threshold=facts["iou_threshold"],
        score_thr=max(facts["score_thr"], -0.5),  # between the scores, and -1 for what is no candidate
        **{key: facts[key] if facts[key] > 0 else _ALL for key in ("nms_pre", "max_per_class", "max_per_img")},
    )

    def check(size: tuple[int, int], raw: list[NDArray[Any]], final: list[NDArray[Any]]) -> None:
        boxes, scores = (torch.from_numpy(values[0]).float() for values in raw)
        ours = [part.numpy() for part in detections(boxes, scores, size, facts)]
        expected, found = ({tuple(row) for row in np.column_stack(output).tolist()} for output in (ours, final))
        missed = len(expected ^ found) / max(len(expected | found), 1)
        if missed > _MISSED or (np.diff(final[1]) > 0).any():
            raise RuntimeError(
                f"on {size[0]}×{size[1]} the file finds {len(found)} boxes, PyTorch {len(expected)}; "
                f"{missed:.1%} of them all are not in both"
            )

    _add(proto, text, {"boxes": "anchor_boxes", "scores": "anchor_scores"}, {**facts, "suppressed": True}, out, check)


def suppresses_classes_together(facts: Mapping[str, Any], name: str) -> bool:
    """Whether a detector suppresses the boxes of all classes together, and not those of each class.

    Raises:
        ValueError: If its suppression is of a kind that no exported file has; ``name`` says in the message whose it is.

    Example:
        >>> suppresses_classes_together({"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_class": 9}, "ssd.onnx")
        False
    """
    kind, per_class = facts["nms"], facts["max_per_class"]
    if kind.get("type", "nms") != "nms" or kind.keys() - {"type", "iou_threshold", "class_agnostic"}:
        raise ValueError(
            f"the suppression of {name} is {kind}, expected dict(type='nms', iou_threshold=…); export it with --raw"
        )
    if kind.get("class_agnostic") and per_class > 0:
        raise ValueError(f"max_per_class={per_class} goes with a suppression per class; export {name} with --raw")
    return bool(kind.get("class_agnostic"))


def add_argmax(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Let the ONNX file of a segmentor give the class of each pixel instead of logits.

    The output is ``classes`` [batch, height, width], int64, indices of the names in the metadata. A binary segmentor
    has one logit per pixel: class 1 is where its sigmoid is above the ``threshold`` in the metadata.

    Args:
        path: A file of ``export_onnx``, of a segmentor of ``timm_mobilevit.export.mm``.
        out: File to write; an existing one, such as ``path`` itself, is replaced.

    Raises:
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If the file is no such one.
        RuntimeError: If the file does not find what it should. It is not kept.
    """
    proto, facts = _open(path, out, "semantic-segmentation", ["logits"])

    threshold = facts.get("threshold")

    def check(size: tuple[int, int], raw: list[NDArray[Any]], final: list[NDArray[Any]]) -> None:
        if threshold is None:
            wrong = raw[0].argmax(axis=1) != final[0]
        else:
            above = torch.from_numpy(raw[0][:, 0]).double().sigmoid().numpy() - threshold
            wrong = (above > 0) != (final[0] == 1)
            wrong &= np.abs(above) > _EVEN
        if wrong.any():
            raise RuntimeError(f"on {size[0]}×{size[1]} the classes are not those of the logits")

    _add(proto, _ARGMAX if threshold is None else _THRESHOLD.format(threshold=float(threshold)), {}, facts, out, check)


def detections(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the boxes and scores of all anchors of an image into detections, as the detector's ``predict`` does.

    Args:
        boxes: [anchors, 4], corners (x1, y1, x2, y2) as fractions of the image.
        scores: [anchors, classes], in [0, 1].
        size: Height and width of the image in pixels.
        settings: The metadata of the exported file.

    Returns:
        Boxes [N, 4] in pixels, scores [N] and labels [N], the largest score first.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.6], [0.5, 0.5, 1.2, 1.0]])
        >>> scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]])
        >>> settings = {"score_thr": 0.1, "iou_threshold": 0.5, "nms_pre": -1, "max_per_class": -1, "max_per_img": 100}
        >>> detections(boxes, scores, (100, 200), settings)
        (tensor([[  0.,   0., 100.,  50.],
                [100.,  50., 200., 100.]]), tensor([0.9000, 0.7000]), tensor([0, 1]))
    """
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    pixels = boxes * limit
    clipped = torch.minimum(pixels.clamp(min=0), limit)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    pixels, clipped, scores = pixels[inside], clipped[inside], scores[inside]
    places = []  # anchor and class
    for label, of_class in enumerate(scores.unbind(1)):
        candidates = of_class.argsort(descending=True, stable=True)[: _count(settings["nms_pre"])]
        candidates = candidates[of_class[candidates] > settings["score_thr"]]
        places.append(torch.stack([candidates, torch.full_like(candidates, label)], dim=1))
    groups = [torch.cat(places)] if settings.get("nms", {}).get("class_agnostic") else places
    anchors, labels = torch.cat(
        [
            group[nms(pixels[group[:, 0]], scores[group[:, 0], group[:, 1]], settings["iou_threshold"])][
                : _count(settings["max_per_class"])
            ]
            for group in groups
        ]
    ).unbind(1)
    order = scores[anchors, labels].argsort(descending=True, stable=True)[: _count(settings["max_per_img"])]
    anchors, labels = anchors[order], labels[order]
    return clipped[anchors], scores[anchors, labels], labels


def _count(limit: int) -> int | None:
    return limit if limit > 0 else None


def _open(
    path: str | os.PathLike[str], out: str | os.PathLike[str], task: str, outputs: list[str]
) -> tuple[Any, dict[str, Any]]:
    require("onnx")
    check_target(Path(out), "onnx")
    import onnx

    facts = read_facts(Path(path))
    proto = onnx.load(path)
    names = [output.name for output in proto.graph.output]
    if facts.get("task") != task or names != outputs:
        raise ValueError(
            f"expected a file with the task {task} and the outputs {', '.join(outputs)}; {path} has "
            f"{facts.get('task', 'no task')} and {', '.join(names)}"
        )
    return proto, facts


def _add(
    proto: Any,
    text: str,
    renamed: dict[str, str],
    facts: dict[str, Any],
    out: str | os.PathLike[str],
    check: Callable[[tuple[int, int], list[NDArray[Any]], list[NDArray[Any]]], None],
) -> None:
    """Append a graph to the outputs of a network, once they are renamed; write the file, and run it before."""
    import onnx

    graph = proto.graph
    raw = list(graph.output)
    for names in (part for node in graph.node for part in (node.input, node.output)):
        names[:] = [renamed.get(name, name) for name in names]
    for output in raw:
        output.name = renamed.get(output.name, output.name)
    tail = onnx.parser.parse_graph(text)
    public = {value.name for values in (graph.input, raw, tail.output) for value in values}
    for i, node in enumerate(tail.node):
        node.name = f"final_{i}"
        for names in (node.input, node.output):
            names[:] = [name if name in public else f"final_{name}" for name in names]
    for tensor in tail.initializer:
        tensor.name = f"final_{tensor.name}"
    graph.node.extend(tail.node)
    graph.initializer.extend(tail.initializer)

    with replacing(Path(out)) as temporary:
        # Both ends are compared in one run, for a network rounds differently if it is optimised for other outputs.
        del graph.output[:]
        graph.output.extend([*tail.output, *raw])
        onnx.checker.check_model(proto, full_check=True)
        for size in _sizes(proto, facts):
            outputs = _run(proto, size)
            check(size, outputs[len(tail.output) :], outputs[: len(tail.output)])
        del graph.output[:]
        graph.output.extend(tail.output)
        onnx.helper.set_model_props(proto, {k: json.dumps(value, ensure_ascii=False) for k, value in facts.items()})
        onnx.save(proto, os.fspath(temporary))


def _run(proto: Any, size: tuple[int, int]) -> list[NDArray[Any]]:
    import onnxruntime

    pixels = _is_uint8(proto)
    shape = _input_shape(proto)
    images = make_images((shape[0] or 1, shape[3 if pixels else 1], *size)).numpy()
    if pixels:
        images = (255 * images).astype(np.uint8).transpose(0, 2, 3, 1)  # [B, H, W, C]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].type == "tensor(float16)":
        images = images.astype(np.float16)
    outputs: list[NDArray[Any]] = session.run(None, {"images": images})
    return outputs


def _sizes(proto: Any, facts: dict[str, Any]) -> list[tuple[int, int]]:
    """Heights and widths to run a file on."""
    _, height, width = facts["input_size"]
    fixed = all(_input_shape(proto)[1:])
    return [(height, width)] if fixed else [(height, width), (height + 37, width + 5)]


def _input_shape(proto: Any) -> list[int]:
    """Of the images; 0 for what may be anything."""
    return [size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim]


def _is_uint8(proto: Any) -> bool:
    """Whether the file takes pictures as they are decoded, [batch, height, width, channels]."""
    import onnx

    return bool(proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8)
