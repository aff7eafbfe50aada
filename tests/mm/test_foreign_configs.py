"""Configs of MMDetection and MMSegmentation with our backbone: they train and predict at odd sizes."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from timm_mobilevit.mm import TimmMobileViT, _trial, use_backbone
from timm_mobilevit.variants import get_variant

ARCH = "mobilevitv3_xxs"
# Config, and what the helper says of it besides what was frozen.
DETECTORS = {
    "retinanet/retinanet_r50_fpn_1x_coco.py": [],
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": [],
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": [],
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": [],
    "atss/atss_r50_fpn_1x_coco.py": [],
    "rtmdet/rtmdet_tiny_8xb32-300e_coco.py": [],
    "yolox/yolox_tiny_8xb8-300e_coco.py": [],
    "detr/detr_r50_8xb2-150e_coco.py": [],
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py": [],
    "centernet/centernet_r18_8xb16-crop512-140e_coco.py": [],
}
SEGMENTORS = {
    "fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py": [],
    "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py": [],
    "upernet/upernet_r50_4xb4-80k_ade20k-512x512.py": [],
    "ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py": ["decode_head.0.channels is left at 270"],
    "mobilenet_v3/mobilenet-v3-d8-scratch_lraspp_4xb4-320k_cityscapes-512x1024.py": [],
}

# What these need whatever the backbone: sides that divide by 32; a runner that counts iterations; maps of 49 pixels.
CHANGES = {
    "rtmdet": {"pad_size_divisor": 32},
    "yolox": {"batch_augments": None},
}
SIZES = {"mobilenet_v3": (397, 431)}


def load(framework, name):
    return Config.fromfile(Path(importlib.import_module(framework).__file__).parent / ".mim" / "configs" / name)


def build(config):
    init_default_scope(config.default_scope)
    return revert_sync_batchnorm(MODELS.build(config.model))


def check_training(model, batch):
    model.train()
    data = model.data_preprocessor(batch, training=True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    assert all(math.isfinite(float(value)) for value in parts.values())
    loss.backward()
    stem = model.backbone.stem.conv.weight
    assert stem.grad.isfinite().all()
    assert stem.grad.any()


def check_notes(notes, config, expected):
    assert [note for note in notes if "the replaced backbone had" not in note] == [
        note for note in notes if any(note.startswith(start) for start in expected)
    ]
    assert config.model.data_preprocessor.std == [255.0] * 3
    assert "timm_mobilevit.mm" in config.custom_imports["imports"]


@pytest.mark.long
@pytest.mark.detection
@pytest.mark.parametrize("name", DETECTORS)
def test_detector(name):
    from mmdet.testing import demo_mm_inputs

    config = load("mmdet", name)
    notes = use_backbone(config, ARCH)
    check_notes(notes, config, DETECTORS[name])
    config.model.data_preprocessor.update(CHANGES.get(name.partition("/")[0], {}))
    model = build(config)
    masks = "mask" in name
    batch = demo_mm_inputs(2, [(3, 157, 203), (3, 131, 190)], num_items=[2, 3], num_classes=80, with_mask=masks)
    check_training(model, batch)
    model.eval()
    with torch.inference_mode():
        results = model.test_step(batch)
    assert [sample.img_shape[:2] for sample in results] == [(157, 203), (131, 190)]
    assert all(sample.pred_instances.bboxes.isfinite().all() for sample in results)


@pytest.mark.long
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentor(name):
    config = load("mmseg", name)
    notes = use_backbone(config, ARCH)
    check_notes(notes, config, SEGMENTORS[name])
    size = SIZES.get(name.partition("/")[0], (157, 203))
    config.model.data_preprocessor.size = size
    model = build(config)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": size, "ori_shape": (101, 130), "pad_shape": size})
        sample.gt_sem_seg = PixelData(data=torch.randint(model.num_classes, (1, *size)))
        samples.append(sample)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in samples]
    batch = {"inputs": images, "data_samples": samples}
    check_training(model, batch)
    model.eval()
    with torch.inference_mode():
        for sample in model.test_step({key: value[:1] for key, value in batch.items()}):
            assert sample.pred_sem_seg.shape == (101, 130)


def retinanet(**changes):
    return Config(
        {
            "default_scope": "mmdet",
            "model": {
                "type": "RetinaNet",
                "data_preprocessor": {"type": "DetDataPreprocessor", "rgb_to_bgr": True, "pad_size_divisor": 32},
                "backbone": {"type": "ResNet", "depth": 18, "out_indices": (1, 2, 3), "frozen_stages": 1},
                "neck": {"type": "FPN", "in_channels": [128, 256, 512], "out_channels": 64, "num_outs": 5},
                "bbox_head": {
                    "type": "RetinaHead",
                    "anchor_generator": {"type": "AnchorGenerator", "strides": [8, 16, 32, 64, 128]},
                    "other": {"strides": [4, 8]},
                },
                **changes,
            },
        }
    )


@pytest.mark.detection
class TestUseBackbone:
    def test_what_is_set(self):
        config = retinanet(pretrained="open-mmlab://resnet18")
        notes = use_backbone(config, ARCH, pretrained="mine.pth", norm_eval=True)
        model = config.model
        assert model.backbone == {
            "type": "TimmMobileViT",
            "model_name": ARCH,
            "out_indices": (2, 3, 4),
            "output_stride": 32,
            "pretrained": "mine.pth",
            "norm_eval": True,
        }
        assert model.neck.in_channels == list(get_variant(ARCH).widths[2:])
        assert model.data_preprocessor == {
            "type": "DetDataPreprocessor",
            "mean": [0.0] * 3,
            "std": [255.0] * 3,
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        }
        assert model.pretrained is None
        assert model.bbox_head.anchor_generator.strides == [8, 16, 32, 64, 128]
        assert config.custom_imports["imports"] == ["timm_mobilevit.mm"]
        assert notes == ["the replaced backbone had frozen_stages=1; ours has not, unless you pass frozen_stages"]

    def test_other_strides(self):
        config = retinanet()
        notes = use_backbone(config, ARCH, output_stride=16, frozen_stages=1)
        assert config.model.bbox_head.anchor_generator.strides == [8, 16, 16, 32, 64]
        assert notes == [
            "bbox_head.other.strides is left at [4, 8]; the maps had strides [8, 16, 32] and have [8, 16, 16]"
        ]

    def test_what_cannot_be_set_is_said(self):
        config = retinanet(neck={"type": "FPN", "in_channels": [1, 2, 3]}, data_preprocessor=None)
        config.load_from = "coco.pth"
        config.optim_wrapper = {"constructor": "LayerDecayOptimizerConstructor"}
        notes = use_backbone(config, ARCH, frozen_stages=-1)
        starts = ("neck.in_channels is [1, 2, 3]", "there is no data_preprocessor", "load_from='coco.pth'")
        assert [note.startswith(start) for note, start in zip(notes, starts, strict=False)] == [True] * 3
        assert "LayerDecayOptimizerConstructor" in notes[3]

    def test_what_cannot_be_replaced(self):
        config = retinanet()
        use_backbone(config, ARCH)
        with pytest.raises(ValueError, match="TimmMobileViT already"):
            use_backbone(config, ARCH)
        with pytest.raises(ValueError, match=r"has no model\.backbone"):
            use_backbone(Config({"model": {"type": "RetinaNet"}}), ARCH)
        with pytest.raises(ValueError, match=r"gives 3 maps, of strides \[8, 16, 32\]; got \[3, 4\]"):
            use_backbone(retinanet(), ARCH, out_indices=(3, 4))
        with pytest.raises(ValueError, match="unknown architecture"):
            use_backbone(retinanet(), "mobilevitv9")


def fcn(backbone=None, **head):
    """A segmentor whose head takes the last of four maps."""
    return Config(
        {
            "default_scope": "mmseg",
            "model": {
                "type": "EncoderDecoder",
                "data_preprocessor": {"type": "SegDataPreProcessor", "size": (1024, 2048)},
                "backbone": {"type": "ResNet", "depth": 18, **(backbone or {})},
                "decode_head": {
                    "type": "FCNHead",
                    "in_channels": 512,
                    "in_index": 3,
                    "channels": 8,
                    "num_classes": 3,
                    "norm_cfg": {"type": "SyncBN"},
                    **head,
                },
                "auxiliary_head": {
                    "type": "FCNHead",
                    "in_channels": 256,
                    "in_index": 2,
                    "channels": 8,
                    "num_classes": 3,
                },
            },
        }
    )


class TestWhatWasMadeIsTried:
    """Notes say what fails in the new model and did not fail before; see ``mm/_trial.py``."""

    def test_what_works_has_no_note(self):
        assert use_backbone(fcn(), ARCH) == []

    @pytest.mark.detection
    def test_a_config_that_names_no_scope(self):
        """As pure-Python configs: it gets the boxes that its class of detector asks for."""
        from mmdet.models import RetinaNet

        config = load("mmdet", "retinanet/retinanet_r50_fpn_1x_coco.py")
        config.model.type = RetinaNet
        config.default_scope = None
        use_backbone(config, ARCH)
        assert _trial._try(config, "loss") is None

    def test_a_part_that_was_built_for_other_maps(self):
        config = fcn(type="DepthwiseSeparableASPPHead", c1_in_channels=64, c1_channels=8, dilations=(1, 2))
        (note,) = use_backbone(config, ARCH)
        assert note.startswith(
            "the model does not work as it is now, it fails in decode_head.c1_bottleneck.conv: Runtime"
        )
        assert "to have 64 channels, but got 24 channels" in note
        assert "have [24, 64, 80, 128]" in note

    def test_a_model_that_did_not_work_before(self):
        """It could not be built before either: that says nothing of the backbone."""
        config = fcn()
        config.model.auxiliary_head.sampler = {"type": "NoSampler"}
        assert use_backbone(config, ARCH) == []

    @pytest.mark.detection
    def test_a_neck_that_asks_for_equal_channels(self):
        config = load("mmdet", "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py")
        (note,) = use_backbone(config, ARCH)
        assert "it fails when it is built: AssertionError: assert in_channels == out_channels" in note

    def test_necks_keep_the_type_of_their_channels(self):
        config = fcn()
        config.model.backbone.out_indices = (1, 2, 3)
        config.model.neck = {"type": "JPU", "in_channels": (128, 256, 512), "mid_channels": 8, "start_level": 0}
        config.model.decode_head.update(in_channels=32, in_index=2)
        config.model.auxiliary_head.update(in_channels=256, in_index=1)
        use_backbone(config, ARCH)
        assert config.model.neck.in_channels == (64, 80, 128)  # JPU takes no list

    def test_parts_that_ours_have_not(self):
        plugin = {"cfg": {"type": "ContextBlock", "ratio": 0.25}, "stages": (False,) * 4, "position": "after_conv2"}
        config = fcn({"depth": 50, "plugins": [plugin], "with_cp": True})
        config.model.decode_head.in_channels, config.model.auxiliary_head.in_channels = 2048, 1024
        notes = use_backbone(config, ARCH)
        assert [note.partition("=")[0] for note in notes] == [
            "the replaced backbone had with_cp",
            "the replaced backbone had plugins",
        ]
        assert notes[1].endswith("ours has nothing of the kind")

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels_are_kept(self, channels):
        config = fcn({"in_channels": channels})
        config.model.data_preprocessor.update(mean=[1.0], std=[2.0])
        assert use_backbone(config, ARCH) == []
        assert config.model.backbone.in_channels == channels
        assert config.model.data_preprocessor.mean == [0.0]  # mmengine takes one number or three
        assert not config.model.data_preprocessor.bgr_to_rgb
        model = build(config).train()
        assert model.backbone(torch.rand(2, channels, 64, 64))[-1].shape == (2, 128, 2, 2)

    def test_a_backbone_for_images_of_one_size(self):
        """BEiT's positions are those of its images, of 640 pixels."""
        config = load("mmseg", "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py")
        config.model.backbone.update(embed_dims=24, num_heads=2, img_size=(96, 96))
        notes = use_backbone(config, ARCH)
        assert "the maps had [24, 24, 24, 24] channels and strides [16, 16, 16, 16]" in notes[-1]
        assert config.model.backbone.type == "TimmMobileViT"

    def test_one_stage_by_a_number(self):
        config = fcn({"out_indices": (3,)}, in_index=0)
        config.model.auxiliary_head = None
        assert use_backbone(config, ARCH, out_indices=4) == []
        assert config.model.backbone.out_indices == (4,)

    @pytest.mark.parametrize("kind", ["mmengine.TimmMobileViT", TimmMobileViT])
    def test_ours_is_known_by_any_name(self, kind):
        config = fcn()
        config.model.backbone = {"type": kind, "model_name": ARCH}
        with pytest.raises(ValueError, match="TimmMobileViT already"):
            use_backbone(config, ARCH)
