"""Detectors and segmentors as plain networks from a tensor to tensors, which can be exported.

mmdet's and mmseg's own forward takes data samples and gives lists of detections, of a length that depends on the image:
nothing that an exporter can follow. What is exported ends where arrays of fixed shape do. A detector gives decoded
boxes and scores for every anchor; a segmentor gives logits of the size of the image. The metadata say what has to
follow. ``timm_mobilevit.export.final_outputs`` adds it to ONNX files; elsewhere it is the application's.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from ..mm import SSDLiteHead
from ..mm.convert import dataset_meta
from ..mm.loading import load_model
from ..mm.ssd_head import flatten_levels


class ExportableDetector(nn.Module):
    """An SSDLite up to the suppression of overlapping boxes.

    Boxes are fractions of the image, so that they can be multiplied by the width and height of the original picture:
    the detector sees it squashed to a square. They are not clipped, as in the reference, which clips after the
    suppression. To get mmdet's detections: leave out boxes that have no area once they are clipped; of each class the
    ``nms_pre`` best scores above ``score_thr``; suppression per class with ``iou_threshold``, on boxes in pixels; of
    each class the ``max_per_class`` best; of all classes the ``max_per_img`` best; clip to the image. An exported file
    has these settings in its metadata; -1 stands for all.
    :func:`timm_mobilevit.export.final_outputs.detections` does that.

    Args:
        detector: A ``SingleStageDetector`` with a ``SSDLiteHead``.

    Raises:
        ValueError: If it has another head, or takes BGR images.

    Shape:
        Input [B, 3, H, W], RGB in [0, 1]. Outputs: boxes [B, anchors, 4], corners (x1, y1, x2, y2) as fractions of
        width and height; scores [B, anchors, classes], softmax with the background left out.
    """

    output_names = ("boxes", "scores")

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.head = detector.bbox_head
        if not isinstance(self.head, SSDLiteHead):
            raise ValueError(f"only a detector with SSDLiteHead can be exported, got {type(self.head).__name__}")
        self.backbone, self.neck = detector.backbone, detector.neck
        test_cfg = detector.test_cfg
        self.export_metadata = {
            "task": "object-detection",
            **_preprocessing(detector.data_preprocessor),
            "score_thr": test_cfg.get("score_thr", 0.0),
            "nms_pre": test_cfg.get("nms_pre", -1),
            "nms": dict(test_cfg["nms"]),
            "iou_threshold": test_cfg["nms"]["iou_threshold"],
            "max_per_class": test_cfg.get("max_per_class", -1),
            "max_per_img": test_cfg.get("max_per_img", -1),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to the boxes and scores of all anchors."""
        scores, deltas = self.head(self.neck(self.backbone(x)))
        batch = x.shape[0]
        sizes = [(level.shape[-2], level.shape[-1]) for level in scores]
        # On an image of one by one, decoded boxes are fractions: deltas are relative to their anchor.
        anchors = torch.cat(self.head.prior_generator.grid_priors(sizes, x.dtype, x.device, input_size=(1, 1)))
        flat = flatten_levels(deltas, 4)  # [B, anchors, 4]
        boxes = self.head.bbox_coder.decode(anchors.expand(batch, -1, -1).reshape(-1, 4), flat.reshape(-1, 4))
        probabilities = flatten_levels(scores, self.head.cls_out_channels).softmax(-1)
        return boxes.reshape(batch, -1, 4), probabilities[..., :-1]


class ExportableSegmentor(nn.Module):
    """A segmentor without its auxiliary head, whose logits have the size of the image.

    They are resized bilinearly, once, as the reference does. The class of a pixel is the largest of its logits.

    Args:
        segmentor: An ``EncoderDecoder`` that sees whole images.

    Raises:
        ValueError: If it cuts images into windows, or takes BGR images.

    Shape:
        Input [B, 3, H, W], RGB in [0, 1]. Output [B, classes, H, W].
    """

    output_names = ("logits",)

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        if segmentor.test_cfg.get("mode") != "whole":
            raise ValueError(
                f"only a segmentor with test_cfg.mode 'whole' can be exported, got {segmentor.test_cfg.get('mode')!r}"
            )
        self.backbone, self.head = segmentor.backbone, segmentor.decode_head
        self.export_metadata = {"task": "semantic-segmentation", **_preprocessing(segmentor.data_preprocessor)}

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        logits = self.head(self.backbone(x))
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=self.head.align_corners)


def load_exportable(
    config: str, checkpoint: str | Mapping[str, Tensor] | None = None
) -> ExportableDetector | ExportableSegmentor:
    """Build the network of a config, ready to be exported.

    Args:
        config: A file, or the name of an installed config.
        checkpoint: Weights, in the names of mmdet and mmseg or as CVNets, CoreNet or MobileViTv3 publish them: a file,
            or a state dict that was read. None leaves them random.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config is for neither a detector nor a segmentor of ours, or the weights are not its own.
    """
    model, cfg = load_model(config, checkpoint)
    network: Any = ExportableDetector(model) if hasattr(model, "bbox_head") else ExportableSegmentor(model)
    meta = dataset_meta(cfg)
    network.export_metadata |= {
        "architecture": model.backbone.model_name,
        "labels": _labels(meta, network.head.num_classes),
    }
    if isinstance(network, ExportableSegmentor) and "palette" in meta:
        network.export_metadata["palette"] = [list(colour) for colour in meta["palette"]]
    network.input_size = (3, *_test_size(cfg))
    return network.eval()  # type: ignore[no-any-return]


def _test_size(cfg: Config) -> tuple[int, int]:
    """Height and width that the config brings images to for its test; the shorter side for both, if that is all."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            width, height = step.scale
            return (min(height, width),) * 2 if step.get("keep_ratio") else (height, width)
    raise ValueError("the config resizes no image in its test pipeline; expected a step Resize")


def _labels(meta: dict[str, Any], count: int) -> list[str]:
    """Names of the classes of the data that the config tests on, as the data set itself finds them.

    Raises:
        ValueError: If they are not as many as the head has classes.
    """
    names = list(meta.get("classes", ()))
    if len(names) != count:
        raise ValueError(
            f"the head has {count} classes, but the test data set of the config names {len(names)}"
            f"{': ' + ', '.join(names[:5]) if names else ''}; set metainfo=dict(classes=(...)) in its data set"
        )
    return names


# Of mmengine's preprocessor, on which mmdet's and newer releases of mmseg's stand, and of older ones of mmseg's.
_CONVERTS_CHANNELS = ("_channel_conversion", "channel_conversion")


def _preprocessing(preprocessor: Any) -> dict[str, Any]:
    """Mean and standard deviation for RGB in [0, 1]."""
    if not any(getattr(preprocessor, name, False) for name in _CONVERTS_CHANNELS):
        raise ValueError("the data_preprocessor feeds BGR images; export a model with bgr_to_rgb=True")
    return {
        "mean": (preprocessor.mean.flatten() / 255).tolist(),
        "std": (preprocessor.std.flatten() / 255).tolist(),
    }
