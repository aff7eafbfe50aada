"""The head of the reference SSDLite, and its post-processing."""

from ._installed import check_installed

check_installed("detection")

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import SSDHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn


@MODELS.register_module()
class SSDLiteHead(SSDHead):  # type: ignore[misc]
    """SSD head with one fused predictor of boxes and classes per level.

    Differs from mmdet's ``SSDHead`` with ``use_depthwise``: boxes and classes share a depthwise convolution and one 1×1
    convolution; the last level has the 1×1 alone; anchors follow the size of the images; candidates are limited per
    class over all levels; boxes are clipped after the suppression, and those that lie outside the image are no
    candidates; the loss is divided by the positives of the batch, at least one, and not by at least one per image.

    ``test_cfg`` takes ``score_thr``, ``nms``, ``nms_pre`` (candidates per class, -1 for all), ``max_per_class`` and
    ``max_per_img`` (-1 for no limit).

    Args:
        in_channels: Channels of each level.
        norm_cfg: Norm after the depthwise convolutions.
        anchor_generator: A ``SSDLiteAnchorGenerator``.
        bbox_coder: Box coder; by default with the reference's variances, 0.1 for centres and 0.2 for sizes.
        **kwargs: As for ``mmdet.models.SSDHead``; ``num_classes`` are those without the background.
    """

    # BaseDenseHead asks for it, SSDHead does not set it.
    loss_cls = None

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 256, 256, 128, 128, 64),
        norm_cfg: Any = None,
        anchor_generator: Any = None,
        bbox_coder: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            norm_cfg=norm_cfg or {"type": "BN"},
            anchor_generator=anchor_generator or {"type": "mmdet.SSDLiteAnchorGenerator"},
            bbox_coder=bbox_coder
            or {"type": "mmdet.DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2], "clip_border": False},
            **kwargs,
        )

    def _init_layers(self) -> None:
        if len(self.in_channels) != len(self.num_base_priors):
            raise ValueError(
                f"the head has {len(self.in_channels)} levels (in_channels), its anchor_generator "
                f"{len(self.num_base_priors)} (ratios): give one entry of ratios for each level"
            )
        self.predictors = nn.ModuleList()
        for level, (chs, anchors) in enumerate(zip(self.in_channels, self.num_base_priors, strict=True)):
            pointwise = nn.Conv2d(chs, anchors * (4 + self.cls_out_channels), 1)
            if level == len(self.in_channels) - 1:  # a single pixel has no neighbours
                self.predictors.append(pointwise)
            else:
                depthwise = ConvModule(chs, chs, 3, padding=1, groups=chs, norm_cfg=self.norm_cfg, act_cfg=None)
                self.predictors.append(nn.Sequential(depthwise, pointwise))

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict classes and boxes.

        Args:
            x: Maps [B, in_channels, H, W] of all levels.

        Returns:
            Class scores [B, A·(classes + 1), H, W], background last, and box deltas [B, A·4, H, W] of all levels.

        Raises:
            ValueError: If the channels of the maps are not ``in_channels``.
        """
        channels = [level.shape[1] for level in x]
        if channels != list(self.in_channels):
            raise ValueError(f"the head was built for levels of {list(self.in_channels)} channels, got {channels}")
        scores, deltas = [], []
        for level, predictor in zip(x, self.predictors, strict=True):
            out = predictor(level)
            size = out.shape[2:]
            # No more than four dimensions: exported files keep them.
            out = out.flatten(2).unflatten(1, (-1, 4 + self.cls_out_channels))  # [B, A, 4 + classes + 1, H·W]
            deltas.append(out[:, :, :4].flatten(1, 2).unflatten(2, size))  # [B, A·4, H, W]
            scores.append(out[:, :, 4:].flatten(1, 2).unflatten(2, size))
        return scores, deltas

    def get_anchors(
        self, featmap_sizes: Sequence[tuple[int, int]], batch_img_metas: list[dict[str, Any]], device: Any = "cuda"
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Make the anchors of a batch for the size of its images; all of them are valid."""
        anchors = self._anchors(featmap_sizes, batch_img_metas[0], torch.float32, device)
        valid = [torch.ones(len(level), dtype=torch.bool, device=device) for level in anchors]
        return [anchors] * len(batch_img_metas), [valid] * len(batch_img_metas)

    def loss_by_feat(
        self, cls_scores: Any, bbox_preds: Any, batch_gt_instances: Any, batch_img_metas: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Compute the losses; boxes without area are left out with a warning, for their size has no logarithm."""
        kept = [_with_area(gt, meta) for gt, meta in zip(batch_gt_instances, batch_img_metas, strict=True)]
        return super().loss_by_feat(cls_scores, bbox_preds, kept, batch_img_metas, *args, **kwargs)  # type: ignore[no-any-return]

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Assign anchors, with the positives of the whole batch as divisor of the losses, at least one."""
        *targets, _ = super().get_targets(*args, **kwargs)
        box_weights = targets[3]
        positives = sum((level[..., 0] > 0).sum() for level in box_weights)
        return *targets, max(int(positives), 1)

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: None = None,
        batch_img_metas: list[dict[str, Any]] | None = None,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """Turn scores and deltas into detections, one ``InstanceData`` (bboxes, scores, labels) per image."""
        assert batch_img_metas is not None
        cfg = self.test_cfg if cfg is None else cfg
        sizes = [(level.shape[-2], level.shape[-1]) for level in cls_scores]
        anchors = torch.cat(self._anchors(sizes, batch_img_metas[0], cls_scores[0].dtype, cls_scores[0].device))
        scores = flatten_levels(cls_scores, self.cls_out_channels).softmax(-1)[..., :-1]  # without the background
        deltas = flatten_levels(bbox_preds, 4)
        return [
            self._detect(image_scores, self.bbox_coder.decode(anchors, image_deltas), meta, cfg, rescale, with_nms)
            for image_scores, image_deltas, meta in zip(scores, deltas, batch_img_metas, strict=True)
        ]

    def _detect(
        self, scores: Tensor, boxes: Tensor, meta: dict[str, Any], cfg: Any, rescale: bool, with_nms: bool
    ) -> InstanceData:
        """Return the detections of one image from scores [anchors, classes] and boxes [anchors, 4]."""
        height, width = meta["img_shape"][:2]
        limit = boxes.new_tensor([width, height, width, height])
        # If the batch has larger images, this one is padded: boxes in the padding must not be candidates.
        inside = _has_area(_clip(boxes, limit))
        scores, boxes = scores[inside], boxes[inside]
        most = cfg.get("nms_pre", -1)
        # Of each class, over all levels.
        top, index = scores.topk(min(most, len(scores)) if most >= 0 else len(scores), dim=0)
        keep = top > cfg.get("score_thr", 0.0)
        labels = torch.arange(scores.shape[1], device=scores.device).expand_as(top)[keep]
        results = InstanceData(bboxes=boxes[index[keep]], scores=top[keep], labels=labels)
        if with_nms and len(results):
            kept, order = batched_nms(results.bboxes, results.scores, results.labels, cfg["nms"])
            results = results[order]
            results.scores = kept[:, -1]
            if cfg.get("max_per_class", -1) > 0:
                results = results[_rank_in_class(results.labels) < cfg["max_per_class"]]
            if cfg.get("max_per_img", -1) > 0:
                results = results[: cfg["max_per_img"]]
        results.bboxes = _clip(results.bboxes, limit)
        if rescale:
            results.bboxes = results.bboxes / results.bboxes.new_tensor(meta["scale_factor"]).repeat(2)
        return results

    def _anchors(
        self, sizes: Sequence[tuple[int, int]], meta: dict[str, Any], dtype: torch.dtype, device: Any
    ) -> list[Tensor]:
        height, width = map(int, meta.get("batch_input_shape", meta["img_shape"])[:2])
        return self.prior_generator.grid_priors(sizes, dtype, device, (width, height))  # type: ignore[no-any-return]


def flatten_levels(levels: list[Tensor], width: int) -> Tensor:
    """Join maps [B, A·width, H, W] to [B, anchors, width]."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, width) for level in levels], dim=1)


def _clip(boxes: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limit)


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def _with_area(gt: InstanceData, meta: dict[str, Any]) -> InstanceData:
    """Return the boxes of an image that have an area."""
    keep = _has_area(get_box_tensor(gt.bboxes))
    if keep.all():
        return gt
    warnings.warn(
        f"{int((~keep).sum())} of {len(keep)} boxes of {meta.get('img_path', 'an image')} have no area and are left "
        "out of the loss; expected x1 < x2 and y1 < y2",
        stacklevel=2,
    )
    return gt[keep]


def _rank_in_class(labels: Tensor) -> Tensor:
    """Return how many earlier entries have the same label."""
    order = labels.argsort(stable=True)
    grouped = labels[order]
    ranks = torch.arange(len(labels), device=labels.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(labels).scatter_(0, order, ranks)
