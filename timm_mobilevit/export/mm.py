"""Detectors and segmentors as plain networks from a tensor to tensors, which can be exported.

mmdet's and mmseg's own forward takes data samples and gives lists of detections, of a length that depends on the image:
exporters cannot follow that. Here a detector gives decoded boxes and scores for every anchor, and a segmentor logits of
the size of the image. The metadata have the settings of the postprocessing, which ``timm_mobilevit.export.tails`` adds
to ONNX files and applications do elsewhere.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image
from torch import Tensor, nn

from ..mm._evaluated_data import evaluated_steps
from ..mm.convert import dataset_meta
from ..mm.loading import load_model


class ExportableDetector(nn.Module):
    """An SSDLite up to the non-maximum suppression.

    Boxes are fractions of the image, so that they can be multiplied by the width and height of the original picture:
    the detector sees it squashed to a square. They are not clipped, as in the reference, which clips after the
    suppression. To get mmdet's detections: leave out boxes that have no area once they are clipped; of each class the
    ``nms_pre`` best scores above ``score_thr``; suppression per class with ``iou_threshold``, on boxes in pixels; of
    each class the ``max_per_class`` best; of all classes the ``max_per_img`` best; clip to the image. An exported file
    has these settings in its metadata; -1 stands for all. :class:`timm_mobilevit.export.tails.Suppression` does that.

    Args:
        detector: A ``SingleStageDetector`` with a ``SSDLiteHead``.

    Raises:
        ValueError: If it has another head, or takes BGR images.

    Shape:
        Input [B, C, H, W] in [0, 1], RGB if C is 3. Outputs: boxes [B, anchors, 4], corners (x1, y1, x2, y2) as
        fractions of width and height; scores [B, anchors, classes], softmax with the background left out.
    """

    output_names = ("boxes", "scores")

    def __init__(self, detector: Any) -> None:
        super().__init__()
        from ..mm.ssd_head import SSDLiteHead, flatten_levels

        if not isinstance(detector.bbox_head, SSDLiteHead):
            raise ValueError(
                f"only a detector with SSDLiteHead can be exported, got a {type(detector).__name__} with "
                f"{type(detector.bbox_head).__name__}"
            )
        self.detector = _without(detector, "data_preprocessor")
        self.flatten_levels = flatten_levels
        test_cfg = detector.test_cfg
        kind = test_cfg["nms"] or {"type": None}  # without a suppression
        # mmcv takes the older name of the threshold, too.
        nms = {"iou_threshold" if key == "iou_thr" else key: value for key, value in kind.items()}
        self.export_metadata = {
            "task": "object-detection",
            **_preprocessing(detector),
            "score_thr": test_cfg.get("score_thr", 0.0),
            "nms": nms,
            "iou_threshold": nms.get("iou_threshold"),
            **{key: test_cfg.get(key, -1) for key in ("nms_pre", "max_per_class", "max_per_img")},
        }

    @property
    def head(self) -> Any:
        """Return the head of the detector."""
        return self.detector.bbox_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to the boxes and scores of all anchors."""
        scores, deltas = self.head(self.detector.extract_feat(x))
        batch = x.shape[0]
        sizes = [(level.shape[-2], level.shape[-1]) for level in scores]
        # On an image of one by one, decoded boxes are fractions: deltas are relative to their anchor.
        anchors = torch.cat(self.head.prior_generator.grid_priors(sizes, x.dtype, x.device, input_size=(1, 1)))
        flat = self.flatten_levels(deltas, 4)  # [B, anchors, 4]
        boxes = self.head.bbox_coder.decode(anchors.expand(batch, -1, -1).reshape(-1, 4), flat.reshape(-1, 4))
        probabilities = self.flatten_levels(scores, self.head.cls_out_channels).softmax(-1)
        return boxes.reshape(batch, -1, 4), probabilities[..., :-1]


class ExportableSegmentor(nn.Module):
    """A segmentor without its auxiliary head, whose logits have the size of the image.

    They are resized bilinearly, once, as the reference does. The class of a pixel is the largest of its logits. A
    binary segmentor (``out_channels=1``) has one logit per pixel; the class is 1 where its sigmoid is above
    ``threshold``, which the metadata of an exported file hold.

    Args:
        segmentor: An ``EncoderDecoder`` that sees whole images.

    Raises:
        ValueError: If it cuts images into windows, has several decode heads one behind the other (OCRNet, PointRend),
            or takes BGR images.

    Shape:
        Input [B, C, H, W] in [0, 1], RGB if C is 3. Output [B, out_channels, H, W]: as many as classes, or one.
    """

    output_names = ("logits",)

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead

        mode = (segmentor.test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ValueError(f"only a segmentor with test_cfg.mode 'whole' can be exported, got {mode!r}")
        if not isinstance(segmentor.decode_head, BaseDecodeHead):
            heads = ", ".join(type(head).__name__ for head in segmentor.decode_head.children())
            raise ValueError(
                f"a {type(segmentor).__name__} cannot be exported, because it has several decode heads ({heads}); "
                "expected a segmentor of the kind EncoderDecoder, with one"
            )
        self.segmentor = _without(segmentor, "data_preprocessor", "auxiliary_head")
        # Then the logits of the last map can be resized here, once, in a graph for any size; mmseg's resize fixes it.
        kind = type(self.head)
        self.head_gives_logits = (
            kind.predict is BaseDecodeHead.predict and kind.predict_by_feat is BaseDecodeHead.predict_by_feat
        )
        self.export_metadata = {"task": "semantic-segmentation", **_preprocessing(segmentor)}
        if self.head.out_channels == 1:
            self.export_metadata["threshold"] = self.head.threshold

    @property
    def head(self) -> Any:
        """Return the decode head of the segmentor."""
        return self.segmentor.decode_head

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        size = x.shape[-2:]
        if self.head_gives_logits:
            logits = self.head(self.segmentor.extract_feat(x))
        else:
            meta = {"img_shape": size, "ori_shape": size, "pad_shape": size}
            logits = self.segmentor.encode_decode(x, [meta] * x.shape[0])
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.head.align_corners)


def load_exportable(
    config: str,
    checkpoint: str | Mapping[str, Tensor] | None = None,
    img_size: tuple[int, int] | None = None,
) -> ExportableDetector | ExportableSegmentor:
    """Build the network of a config, ready to be exported.

    Its ``input_size``, channels, height and width, is what the config's test pipeline makes of a square image.

    Args:
        config: A file, or the name of an installed config.
        checkpoint: Weights, in the names of mmdet and mmseg or as CVNets, CoreNet or MobileViTv3 publish them: a file,
            or a state dict that was read. None leaves them random.
        img_size: Height and width of the images instead of those.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config is for neither a detector nor a segmentor that can be exported, the weights are not
            its own, or the pipeline does not tell the size.
    """
    model, cfg = load_model(config, checkpoint)
    network = _exportable(model)
    meta = dataset_meta(cfg)
    network.export_metadata |= {
        "architecture": model.backbone.model_name,
        "labels": _labels(meta, network.head.num_classes, binary=getattr(network.head, "out_channels", 0) == 1),
    }
    if isinstance(network, ExportableSegmentor) and "palette" in meta:
        network.export_metadata["palette"] = [list(colour) for colour in meta["palette"]]
    channels = model.backbone.in_channels
    network.input_size = (channels, *(img_size or _test_size(cfg, channels)))
    return network.eval()  # type: ignore[no-any-return]


def _exportable(model: Any) -> Any:
    """Return the network of a detector or segmentor."""
    # By name: a package that is not installed has made no model.
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "EncoderDecoder" in kinds:
        return ExportableSegmentor(model)
    if "SingleStageDetector" in kinds:
        return ExportableDetector(model)
    raise ValueError(
        f"a {type(model).__name__} cannot be exported; expected a SingleStageDetector with SSDLiteHead, or a segmentor "
        "of the kind EncoderDecoder"
    )


def _without(model: Any, *names: str) -> Any:
    """Copy a model without some of its modules; the copy shares all others."""
    other = copy.copy(model)
    other._modules = {name: part for name, part in model._modules.items() if name not in names}
    return other


def _test_size(cfg: Config, channels: int) -> tuple[int, int]:
    """Find the height and width to which the config's test pipeline brings a square image."""
    # 512 pixels, for a pipeline that resizes no image, or scales it by a factor.
    side = int(np.max((cfg.model.get("data_preprocessor") or {}).get("size") or 512))
    pixels = np.zeros((side, side, channels), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.png")
        try:
            Image.fromarray(pixels.squeeze()).save(file)  # grey, RGB, RGBA
            packed = Compose(evaluated_steps(cfg))({"img_path": str(file), "img_id": 0})
            _, height, width = packed["inputs"].shape
        except Exception as error:  # steps of any kind, and pixels that no PNG has
            raise ValueError(
                "the pipeline that the config tests with does not tell the size of the images "
                f"({type(error).__name__}: {error}); give it, with --img-size HEIGHT,WIDTH"
            ) from error
    return int(height), int(width)


def _labels(meta: dict[str, Any], count: int, *, binary: bool) -> list[str]:
    """Name the classes of the test data of a config, as the data set itself finds them.

    Raises:
        ValueError: If they are not as many as the head has classes, or one output channel tells more or fewer than two.
    """
    names = list(meta.get("classes", ()))
    if len(names) != count:
        raise ValueError(
            f"the head has {count} classes, but the test data set of the config names {len(names)}"
            f"{': ' + ', '.join(names[:5]) if names else ''}; set metainfo=dict(classes=(...)) in its data set"
        )
    if binary and count != 2:
        raise ValueError(
            f"one output channel tells two classes apart, but the head has num_classes={count}; name both, the "
            "background too, and set num_classes=2"
        )
    return names


def _preprocessing(model: Any) -> dict[str, Any]:
    """Return mean and standard deviation for images in [0, 1], RGB if they have three channels."""
    preprocessor, channels = model.data_preprocessor, model.backbone.in_channels
    # Attributes of mmengine's preprocessor, which mmdet's and newer releases of mmseg's extend, and of older mmseg's.
    converts = any(getattr(preprocessor, name, False) for name in ("_channel_conversion", "channel_conversion"))
    if channels == 3 and not converts:
        raise ValueError("the data_preprocessor feeds BGR images; export a model with bgr_to_rgb=True")
    if not hasattr(preprocessor, "mean"):  # it leaves pixels as they are, from 0 to 255
        return {"mean": [0.0] * channels, "std": [1 / 255] * channels}
    # One number for all channels, or one for each.
    return {name: (getattr(preprocessor, name).flatten() / 255).expand(channels).tolist() for name in ("mean", "std")}
