"""Detectors and segmentors built without a config file, as the reference has them, with random weights."""

import math

import pytest
from golden_data import make_weights
from kinds import KINDS
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from random_weights import randomise
from torch import nn

from timm_mobilevit.mm.convert import _rules, _their_name
from timm_mobilevit.variants import VARIANTS

SMALL = KINDS[0]


def by_framework(configs, *marks):
    """Configs as parameters of a test; those of detectors need what detection needs."""
    marks = [getattr(pytest.mark, mark) for mark in marks]
    return [
        pytest.param(
            config, id=config.stem, marks=[*marks, pytest.mark.detection] if "ssdlite" in config.stem else marks
        )
        for config in configs
    ]


def ssd(arch, num_classes=80, **test_cfg):
    """The SSDLite over a model, evaluated by the rules of CVNets v0.2 unless told otherwise."""
    widths = VARIANTS[arch].widths
    config = {
        "type": "mmdet.SingleStageDetector",
        "data_preprocessor": {"type": "mmdet.DetDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3},
        "backbone": {"type": "TimmMobileViT", "model_name": arch, "out_indices": (3, 4)},
        "neck": {"type": "mmdet.SSDLiteNeck", "in_channels": widths[3:]},
        "bbox_head": {"type": "mmdet.SSDLiteHead", "num_classes": num_classes},
        "train_cfg": {
            "assigner": {
                "type": "mmdet.MaxIoUAssigner",
                "pos_iou_thr": 0.5,
                "neg_iou_thr": 0.5,
                "min_pos_iou": 0.0,
                "gt_max_assign_all": False,
                "ignore_iof_thr": -1,
            },
            "sampler": {"type": "mmdet.PseudoSampler"},
            "smoothl1_beta": 1.0,
            "allowed_border": -1,
            "pos_weight": -1,
            "neg_pos_ratio": 3,
        },
        "test_cfg": {
            "nms_pre": 400,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "score_thr": 0.01,
            "max_per_img": 200,
            **test_cfg,
        },
    }
    return randomise_model(MODELS.build(ConfigDict(config))).train()


def randomise_model(model):
    """Give a detector or segmentor random weights; the offsets and logits of a detector are about 1."""
    randomise(model)
    for predictor in model.bbox_head.predictors if hasattr(model, "bbox_head") else ():
        last = predictor if isinstance(predictor, nn.Conv2d) else predictor[-1]
        nn.init.normal_(last.bias, std=1.0)
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(last.in_channels))
    return model


def detector(**test_cfg):
    """A detector whose boxes and scores differ from anchor to anchor: no two are equal, few are certain."""
    model = ssd(SMALL, num_classes=3, **test_cfg).eval()
    model.data_preprocessor._channel_conversion = True
    return model


def segmentor(arch, head, num_classes, *, output_stride, rates=None, later=True, auxiliary=True, **options):
    """DeepLabv3 (``head="deeplabv3"``) or PSPNet over a model; ``later`` for CVNets v0.2's kind, else v0.1's."""
    widths = VARIANTS[arch].widths
    common = {"num_classes": num_classes, "norm_cfg": {"type": "BN"}, "align_corners": later}
    decode = {"in_channels": widths[4], "in_index": 1, "channels": 512 if later else 256, **common}
    if head == "deeplabv3":
        decode |= {"type": "mmseg.MobileViTASPPHead", "dilations": (1, *rates)}
    else:
        decode |= {"type": "mmseg.MobileViTPSPHead", "branch_channels": widths[4] // 4 // 16 * 16}
    config = {
        "type": "mmseg.MobileViTEncoderDecoder",
        "resize": "direct" if later else "nearest",
        "data_preprocessor": {"type": "mmseg.SegDataPreProcessor", "mean": [0.0] * 3, "std": [255.0] * 3},
        "backbone": {
            "type": "TimmMobileViT",
            "model_name": arch,
            "out_indices": (3, 4),
            "output_stride": output_stride,
        },
        "decode_head": decode,
        "test_cfg": {"mode": "whole"},
        **options,
    }
    if auxiliary:
        config["auxiliary_head"] = {
            "type": "mmseg.FCNHead",
            "in_channels": widths[3],
            "in_index": 0,
            "channels": max(widths[3] // 4, 128),
            "num_convs": 1,
            "concat_input": False,
            **common,
        }
    return randomise(MODELS.build(ConfigDict(config))).train()


def theirs_of(model, arch):
    """Random weights under the reference's names, for one of our models."""
    rules = _rules(model, {})
    return make_weights({_their_name(k, arch, rules): list(v.shape) for k, v in model.state_dict().items()})
