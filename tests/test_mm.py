"""The adapters: backbone options, heads on bad input, losses, transforms, conversion errors."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from golden_data import make_weights
from mm_models import segmentor, ssd
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import InstanceData
from safetensors.torch import save_file
from torch import nn
from transformers import (
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTV2Config,
    MobileViTV2ForSemanticSegmentation,
)

import timm_mobilevit.mm
from timm_mobilevit.convert import detect_source, export_state_dict, source_names
from timm_mobilevit.mm.convert import convert_state_dict
from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")
KINDS = [
    min((name for name in NAMES if VARIANTS[name].block == kind), key=lambda name: VARIANTS[name].widths)
    for kind in sorted({variant.block for variant in VARIANTS.values()})
]
SMALL = KINDS[0]


def backbone(name=SMALL, **options):
    return MODELS.build({"type": "TimmMobileViT", "model_name": name, **options})


class TestBackbone:
    def test_is_found_from_both_frameworks(self):
        from mmdet.registry import MODELS as DETECTION
        from mmseg.registry import MODELS as SEGMENTATION

        for registry in (MODELS, DETECTION, SEGMENTATION):
            assert registry.get("TimmMobileViT") is timm_mobilevit.mm.TimmMobileViT

    @pytest.mark.parametrize("name", KINDS)
    def test_maps_equal_timms(self, name):
        model = backbone(name, out_indices=(1, -1), exact_feature_size=False).eval()
        plain = timm.create_model(name).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        x = torch.rand(1, 3, 70, 97)
        expected = plain.forward_intermediates(x, indices=[1, 4], intermediates_only=True)
        torch.testing.assert_close(list(model(x)), expected)
        assert model.out_channels == [VARIANTS[name].widths[i] for i in (1, 4)]

    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    @pytest.mark.parametrize("name", KINDS)
    def test_maps_are_exactly_size_over_stride(self, name, output_stride):
        model = backbone(name, output_stride=output_stride).eval()
        assert model.strides == [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
        maps = model(torch.rand(1, 3, 71, 98))
        assert [tuple(x.shape[-2:]) for x in maps] == [(-(-71 // s), -(-98 // s)) for s in model.strides]

    @pytest.mark.parametrize("layout", ["cvnets", "timm"])
    def test_pretrained_file_survives_init_weights(self, layout, tmp_path):
        trained = timm.create_model(SMALL, num_classes=7)
        save_file(export_state_dict(trained.state_dict(), SMALL, layout), tmp_path / "model.safetensors")
        model = backbone(pretrained=str(tmp_path / "model.safetensors"))
        model.init_weights()
        for key, value in model.state_dict().items():
            assert torch.equal(value, trained.state_dict()[key]), key

    def test_pretrained_names(self, monkeypatch):
        asked = []
        create_model = timm.create_model

        def record(model_name, pretrained=False, pretrained_cfg_overlay=None, **kwargs):
            asked.append((model_name, pretrained, pretrained_cfg_overlay))
            return create_model(model_name, **kwargs)

        monkeypatch.setattr(timm, "create_model", record)
        for pretrained in (True, "cvnets_in1k", "missing.pt", False):
            backbone(pretrained=pretrained)
        assert asked == [
            (SMALL, True, None),
            (f"{SMALL}.cvnets_in1k", True, None),
            (SMALL, True, {"file": "missing.pt"}),
            (SMALL, False, None),
        ]

    def test_frozen_stages_and_norm_eval(self):
        model = backbone(frozen_stages=2, norm_eval=True).train()
        assert not any(p.requires_grad for part in (model.stem, *model.stages[:2]) for p in part.parameters())
        assert all(p.requires_grad for stage in model.stages[2:] for p in stage.parameters())
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert model.stages[2].training
        before = model.stem.bn.running_mean.clone()
        backbone(frozen_stages=0).train()
        model(torch.rand(2, 3, 64, 64))
        assert torch.equal(model.stem.bn.running_mean, before)
        assert backbone().train().stem.bn.training

    def test_checkpointing_changes_no_gradient(self):
        model = backbone(norm_eval=True, out_indices=(3, 4)).train()
        x = torch.rand(1, 3, 64, 64)
        gradients = []
        for model.with_cp in (False, True):
            model.zero_grad()
            sum(out.square().sum() for out in model(x)).backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)

    def test_options_reach_the_network(self):
        model = backbone(proj_drop_rate=0.25, drop_path_rate=0.5, patch_size=(8, 4, 2))
        assert model.stages[2][1].patch_h == 8
        assert model.stages[2][1].transformer[0].attn.proj_drop.p == 0.25

    def test_sync_batch_norm_keeps_the_activations(self):
        from mmengine.model import convert_sync_batchnorm

        model = backbone()
        activations = sum(isinstance(m, nn.SiLU) for m in model.modules())
        converted = convert_sync_batchnorm(model, "torch")
        assert sum(isinstance(m, nn.SiLU) for m in converted.modules()) == activations
        assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model_name": "mobilevitv3_9_9"}, "unknown architecture 'mobilevitv3_9_9'"),
            ({"out_indices": (2, 5)}, r"out_indices must be stages from 0 to 4, got \(2, 5\)"),
            ({"out_indices": ()}, "out_indices must be stages"),
            ({"frozen_stages": 6}, "frozen_stages must be in"),
            ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
            ({"pretrained": True, "init_cfg": {"type": "Kaiming", "layer": "Conv2d"}}, "give one of them"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            backbone(**options)


def test_missing_extra_is_named():
    code = "import sys; sys.modules['mmcv'] = None\nimport timm_mobilevit.mm"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'timm-mobilevit[mm]'" in done.stderr


def detection_samples(boxes, size=64):
    meta = {"img_shape": (size, size), "batch_input_shape": (size, size), "ori_shape": (size, size)}
    meta |= {"pad_shape": (size, size), "scale_factor": (1.0, 1.0)}
    samples = []
    for image_boxes in boxes:
        sample = DetDataSample(metainfo=meta)
        bboxes = torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4)
        sample.gt_instances = InstanceData(bboxes=bboxes, labels=torch.arange(len(bboxes)) % 3)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    return samples


class TestDetector:
    def test_channels_are_checked(self):
        model = ssd(SMALL, num_classes=3)
        model.neck.in_channels = (1, 2)
        with pytest.raises(ValueError, match=r"built for maps of \(1, 2\) channels, the backbone gives \(64, 80\)"):
            model.extract_feat(torch.rand(1, 3, 64, 64))
        with pytest.raises(ValueError, match="the head was built for levels of"):
            model.bbox_head([torch.rand(1, 4, 2, 2)])
        with pytest.raises(ValueError, match="must have two entries"):
            MODELS.build({"type": "mmdet.SSDLiteNeck", "in_channels": (1, 2, 3)})

    def test_no_projection_where_channels_agree(self):
        neck = MODELS.build({"type": "mmdet.SSDLiteNeck", "in_channels": (192, 256)})
        assert isinstance(neck.projections[1], nn.Identity)
        assert not isinstance(neck.projections[0], nn.Identity)

    @pytest.mark.parametrize("height_width", [(320, 320), (256, 384), (200, 333)])
    def test_anchors_follow_the_image(self, height_width):
        height, width = height_width
        model = ssd(SMALL, num_classes=3).eval()
        meta = {"img_shape": height_width, "batch_input_shape": height_width, "scale_factor": (1.0, 1.0)}
        with torch.inference_mode():
            scores, _ = model.bbox_head(model.extract_feat(torch.rand(1, 3, height, width)))
        levels, _ = model.bbox_head.get_anchors([s.shape[-2:] for s in scores], [meta], device="cpu")
        anchors = torch.cat(levels[0])
        assert len(anchors) == sum(s.shape[1] // 4 * s.shape[2] * s.shape[3] for s in scores)
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        assert (centres > 0).all()
        assert (centres < torch.tensor([width, height])).all()
        sizes = (anchors[:, 2:] - anchors[:, :2]) / torch.tensor([width, height])
        assert sizes.max() == pytest.approx(1, abs=1e-5)  # clamped

    def test_loss_is_that_of_the_definition(self):
        """Hard negatives three to one per image, divided by the positives of the batch; an empty image adds nothing."""
        model = ssd(SMALL, num_classes=3).eval()
        samples = detection_samples([[[4, 4, 30, 40], [20, 10, 60, 60]], []])
        maps = model.extract_feat(torch.rand(2, 3, 64, 64))
        losses = model.bbox_head.loss(maps, samples)
        scores, deltas = model.bbox_head(maps)
        anchors = torch.cat(
            model.bbox_head.get_anchors([s.shape[-2:] for s in scores], [samples[0].metainfo], "cpu")[0][0]
        )
        gt = samples[0].gt_instances
        overlaps = HorizontalBoxes.overlaps(HorizontalBoxes(anchors), HorizontalBoxes(gt.bboxes))
        best, matched = overlaps.max(dim=1)
        for j in range(len(gt)):
            i = overlaps[:, j].argmax()
            best[i], matched[i] = 1, j
        positive = best >= 0.5
        flat = torch.cat([s.permute(0, 2, 3, 1).reshape(2, -1, 4) for s in scores], dim=1)
        labels = torch.where(positive, gt.labels[matched], 3)
        entropy = nn.functional.cross_entropy(flat[0], labels, reduction="none")
        hardest = entropy[~positive].topk(min(3 * int(positive.sum()), int((~positive).sum()))).values
        expected = (entropy[positive].sum() + hardest.sum()) / positive.sum()
        torch.testing.assert_close(sum(losses["loss_cls"]).reshape(()), expected)

        boxes = torch.cat([d.permute(0, 2, 3, 1).reshape(2, -1, 4) for d in deltas], dim=1)[0][positive]
        target = gt.bboxes[matched[positive]]
        size = anchors[positive][:, 2:] - anchors[positive][:, :2]
        shift = (
            ((target[:, :2] + target[:, 2:]) - (anchors[positive][:, :2] + anchors[positive][:, 2:])) / 2 / size / 0.1
        )
        scale = ((target[:, 2:] - target[:, :2]) / size).log() / 0.2
        expected = nn.functional.smooth_l1_loss(boxes, torch.cat((shift, scale), 1), reduction="sum") / positive.sum()
        torch.testing.assert_close(sum(losses["loss_bbox"]).reshape(()), expected)

    def test_batch_without_boxes(self):
        model = ssd(SMALL, num_classes=3)
        losses = model.loss(torch.rand(2, 3, 64, 64), detection_samples([[], []]))
        total = sum(sum(value) for value in losses.values())
        assert total == 0
        total.backward()

    def test_no_detection_above_the_threshold(self):
        model = ssd(SMALL, num_classes=3, score_thr=2.0).eval()
        (result,) = model.predict(torch.rand(1, 3, 64, 64), detection_samples([[]]))
        assert len(result.pred_instances) == 0


class TestSegmentor:
    def test_resize_rules(self):
        from mmseg.structures import SegDataSample

        options = {"output_stride": 16, "rates": (6, 12, 18)}
        model = segmentor(SMALL, "deeplabv3", 4, later=True, auxiliary=False, **options).eval()
        x = torch.rand(1, 3, 64, 96)

        def logits(resize, size=(51, 77), **meta):
            model.resize = resize
            meta = {"ori_shape": size, "img_shape": (64, 96), "pad_shape": (64, 96), **meta}
            return model.predict(x, [SegDataSample(metainfo=meta)])[0].seg_logits.data[None]

        with torch.inference_mode():
            small = model.decode_head(model.extract_feat(x))

            def up(t, size, mode="bilinear"):
                return nn.functional.interpolate(
                    t, size, mode=mode, **({"align_corners": True} if mode == "bilinear" else {})
                )

            torch.testing.assert_close(logits("direct"), up(small, (51, 77)))
            torch.testing.assert_close(logits("nearest"), up(up(small, (64, 96)), (51, 77), "nearest"))
            torch.testing.assert_close(logits("mmseg"), up(up(small, (64, 96)), (51, 77)))
            padded = logits("direct", padding_size=[0, 32, 0, 0])  # left, right, top, bottom
            torch.testing.assert_close(padded, up(up(small, (64, 96))[..., :64], (51, 77)))

    def test_bad_options(self):
        with pytest.raises(ValueError, match="resize must be"):
            segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), resize="bicubic")
        for head in ("deeplabv3", "pspnet"):
            model = segmentor(SMALL, head, 4, output_stride=16, rates=(6, 12, 18), auxiliary=False).eval()
            with pytest.raises(ValueError, match="was built for 80 channels, the backbone gives 64"):
                model.decode_head([torch.rand(1, 80, 4, 4), torch.rand(1, 64, 4, 4)])


def theirs_of(model, arch):
    """Random weights under the reference's names, for one of our models."""
    from timm_mobilevit.mm.convert import _rules, _their_name

    rules = _rules(model, {})
    return make_weights({_their_name(k, arch, rules): list(v.shape) for k, v in model.state_dict().items()})


class TestConversion:
    def test_known_channel_orders(self):
        for name in KINDS:
            model = ssd(name, num_classes=3)
            theirs = theirs_of(model, name)
            stem = theirs["encoder.conv_1.block.conv.weight"]
            ours = convert_state_dict(theirs, model)["backbone.stem.conv.weight"]
            assert torch.equal(ours, stem if VARIANTS[name].separable else stem.flip(1))
            ours = convert_state_dict(theirs, model, channel_order="rgb")["backbone.stem.conv.weight"]
            assert torch.equal(ours, stem)

    def test_later_segmentor_of_v1_is_rgb(self):
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=8, rates=(12, 24, 36))
        theirs = theirs_of(model, SMALL)
        assert torch.equal(
            convert_state_dict(theirs, model)["backbone.stem.conv.weight"], theirs["encoder.conv_1.block.conv.weight"]
        )
        without = segmentor(SMALL, "deeplabv3", 4, output_stride=8, rates=(12, 24, 36), auxiliary=False)
        without.load_state_dict(convert_state_dict(theirs, without))  # the auxiliary head is left out
        earlier = {k.replace("seg_head.classifier.", "seg_head.classifier.classifier."): v for k, v in theirs.items()}
        assert torch.equal(
            convert_state_dict(earlier, model)["backbone.stem.conv.weight"],
            theirs["encoder.conv_1.block.conv.weight"].flip(1),
        )

    def test_counters_may_be_missing(self):
        model = ssd(SMALL, num_classes=3)
        theirs = {k: v for k, v in theirs_of(model, SMALL).items() if not k.endswith("num_batches_tracked")}
        model.load_state_dict(convert_state_dict(theirs, model))

    def test_errors_name_the_keys(self):
        model = ssd(SMALL, num_classes=3)
        theirs = theirs_of(model, SMALL)
        with pytest.raises(ValueError, match=r"unknown something\.else"):
            convert_state_dict(theirs | {"something.else": torch.zeros(1)}, model)
        other = ssd(SMALL, num_classes=5)
        with pytest.raises(ValueError, match=r"wrong shape ssd_heads\.0\.loc_cls_layer\.pw_conv\.block\.conv\.weight"):
            convert_state_dict(theirs, other)
        classifier = export_state_dict(timm.create_model(SMALL).state_dict(), SMALL, "cvnets")
        assert detect_source(classifier) == "cvnets"
        with pytest.raises(ValueError, match="it has no encoder: a classification checkpoint goes into the backbone"):
            convert_state_dict(classifier, model)


@pytest.mark.parametrize("name", [name for name in KINDS if VARIANTS[name].block in ("v1", "v2")])
def test_deeplabv3_equals_transformers(name):
    """Their head has the reference's form: branches in its order, a 1×1 projection."""
    variant = VARIANTS[name]
    if variant.separable:
        config = MobileViTV2Config(width_multiplier=variant.stem_width / 32, output_stride=16, num_labels=5)
        theirs, prefix = MobileViTV2ForSemanticSegmentation(config).eval(), "mobilevitv2"
    else:
        config = MobileViTConfig(
            hidden_sizes=list(variant.transformer_widths),
            neck_hidden_sizes=[variant.stem_width, *variant.widths, variant.final_width],
            expand_ratio=float(variant.expand_ratio),
            output_stride=16,
            num_labels=5,
        )
        theirs, prefix = MobileViTForSemanticSegmentation(config).eval(), "mobilevit"
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    ours = segmentor(
        name, "deeplabv3", 5, output_stride=16, rates=(6, 12, 18), later=variant.separable, auxiliary=False
    ).eval()

    # Their weights under the names of CVNets, so that our conversion does the rest.
    state = theirs.state_dict()
    reference = {}
    for key in (k.removeprefix("backbone.") for k in ours.state_dict() if k.startswith("backbone.")):
        names = [n if n in state else n.removeprefix(f"{prefix}.") for n in source_names(key, name, "transformers")]
        reference["encoder." + source_names(key, name, "cvnets")[0]] = (
            torch.cat([state[n] for n in names]) if len(names) > 1 else state[names[0]]
        )
    for key, value in state.items():
        if key.startswith("segmentation_head."):
            key = key.replace("segmentation_head.aspp.", "seg_head.aspp.aspp_layer.")
            key = key.replace(".convs.4.conv_1x1.", ".convs.4.aspp_pool.conv_1x1.")
            key = key.replace("segmentation_head.classifier.convolution.", "seg_head.classifier.block.conv.")
            key = key.replace(".convolution.", ".block.conv.").replace(".normalization.", ".block.norm.")
            reference[key] = value
    ours.load_state_dict(convert_state_dict(reference, ours, channel_order="rgb"))
    x = torch.rand(1, 3, 64, 128)
    with torch.inference_mode():
        expected = theirs(x).logits
        torch.testing.assert_close(
            ours.decode_head(ours.extract_feat(x)), expected, rtol=0, atol=1e-4 * expected.std().item()
        )


class TestTransforms:
    @pytest.fixture(autouse=True)
    def _numpy_seed(self):
        np.random.seed(0)

    def results(self, boxes=((10, 20, 120, 140), (150, 100, 290, 190))):
        boxes = HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        image = np.random.randint(0, 255, (200, 300, 3), dtype=np.uint8)
        labels = np.arange(len(boxes))
        return {
            "img": image,
            "img_shape": (200, 300),
            "gt_bboxes": boxes,
            "gt_bboxes_labels": labels,
            "gt_ignore_flags": np.zeros(len(boxes), bool),
        }

    @pytest.mark.parametrize("mode", [0.1, 0.5, 0.9])
    def test_crop_keeps_its_promise(self, mode):
        from timm_mobilevit.mm.transforms import _overlaps

        crop = TRANSFORMS.build({"type": "SSDCrop", "modes": (mode,)})
        cropped = 0
        for _ in range(20):
            before = self.results()
            left, top, right, bottom = crop._random_crop(before["gt_bboxes"].tensor.numpy(), 200, 300)
            assert min(right - left, bottom - top) >= 100
            assert 0.5 <= (bottom - top) / (right - left) <= 2
            assert _overlaps(before["gt_bboxes"].tensor.numpy(), (left, top, right, bottom)).max() >= mode
            after = crop(self.results())
            cropped += after["img"].shape != (200, 300, 3)
            height, width = after["img_shape"]
            boxes = after["gt_bboxes"].tensor
            assert 1 <= len(boxes) == len(after["gt_bboxes_labels"]) == len(after["gt_ignore_flags"])
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert cropped

    def test_crop_moves_boxes_with_the_image(self):
        results = self.results(((40, 50, 160, 170),))
        results["img"][:] = 0
        results["img"][50:170, 40:160] = 255
        after = TRANSFORMS.build({"type": "SSDCrop", "modes": (0.5,)})(results)
        x1, y1, x2, y2 = after["gt_bboxes"].tensor[0].int().tolist()
        assert (after["img"][y1:y2, x1:x2] == 255).all()
        assert after["img"].sum() == 255 * 3 * (x2 - x1) * (y2 - y1)

    def test_crop_leaves_alone(self):
        crop = TRANSFORMS.build({"type": "SSDCrop", "modes": (0.0,)})
        assert crop(self.results())["img"].shape == (200, 300, 3)
        assert TRANSFORMS.build({"type": "SSDCrop"})(self.results(()))["img"].shape == (200, 300, 3)

    def test_brightness(self):
        image = np.full((4, 4, 3), 100, np.uint8)
        brighter = TRANSFORMS.build({"type": "RandomBrightnessFactor", "factors": (1.5, 1.5), "prob": 1.0})
        assert (brighter({"img": image})["img"] == 150).all()
        assert (brighter({"img": image * 2})["img"] == 255).all()
        assert TRANSFORMS.build({"type": "RandomBrightnessFactor", "prob": 0.0})({"img": image})["img"] is image

    def test_blur(self):
        image = np.random.randint(0, 255, (32, 32, 3), dtype=np.uint8)
        blurred = TRANSFORMS.build({"type": "RandomGaussianBlur", "max_radius": 5.0, "prob": 1.0})({"img": image})[
            "img"
        ]
        assert blurred.dtype == np.uint8
        assert blurred.std() < image.std()
        assert TRANSFORMS.build({"type": "RandomGaussianBlur", "prob": 0.0})({"img": image})["img"] is image

    def test_floor_multiple(self):
        shrink = TRANSFORMS.build({"type": "ResizeToFloorMultiple", "size_divisor": 16})
        assert shrink({"img": np.zeros((70, 64, 3), np.uint8)})["img_shape"] == (64, 64)
        image = np.zeros((64, 32, 3), np.uint8)
        assert shrink({"img": image})["img"] is image
        with pytest.raises(ValueError, match="smaller than size_divisor 16"):
            shrink({"img": np.zeros((8, 64, 3), np.uint8)})

    @pytest.mark.parametrize(
        "name", ["SSDCrop", "RandomBrightnessFactor", "RandomGaussianBlur", "ResizeToFloorMultiple"]
    )
    def test_representation(self, name):
        assert repr(TRANSFORMS.build({"type": name})).startswith(f"{name}(")
