"""Detector and segmentor: losses by their definition, sizes, bad input."""

import pytest
import torch
from mm_models import SMALL, segmentor, ssd
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from mmseg.structures import SegDataSample
from torch import nn

from timm_mobilevit.mm.seg_heads import GridPool
from timm_mobilevit.variants import VARIANTS


def detection_samples(boxes, size=64):
    from mmdet.structures import DetDataSample

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


@pytest.mark.detection
def test_anchors_of_other_levels_are_refused():
    generator = {"type": "mmdet.SSDLiteAnchorGenerator", "ratios": ((2, 3),) * 5}
    with pytest.raises(ValueError, match=r"the head has 6 levels \(in_channels\), its anchor_generator 5 \(ratios\)"):
        MODELS.build({"type": "mmdet.SSDLiteHead", "num_classes": 3, "anchor_generator": generator})


@pytest.mark.detection
def test_the_order_of_a_batch_changes_no_box():
    """Anchors belong to the canvas of the batch, whichever image comes first."""
    from mmdet.structures import DetDataSample

    model = ssd(SMALL, num_classes=3, score_thr=0.0, max_per_img=50).eval()
    images, shapes = torch.rand(2, 3, 128, 128), [(128, 128), (64, 40)]
    images[1, :, 64:] = images[1, :, :, 40:] = 0

    def boxes(order):
        meta = {"batch_input_shape": (128, 128), "scale_factor": (1.0, 1.0)}
        samples = [DetDataSample(metainfo={**meta, "img_shape": shapes[i], "ori_shape": shapes[i]}) for i in order]
        found = model.predict(images[order], samples)
        return {i: sample.pred_instances.bboxes for i, sample in zip(order, found, strict=True)}

    with torch.inference_mode():
        one, other = boxes([0, 1]), boxes([1, 0])
    for i in (0, 1):
        torch.testing.assert_close(one[i], other[i], rtol=1e-3, atol=1e-2)


@pytest.mark.detection
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

    def test_initial_values(self):
        """Xavier's uniform distribution for what lies over the backbone, and biases of 0."""
        model = ssd(SMALL, num_classes=3)
        model.init_weights()
        convs = [
            conv for part in (model.neck, model.bbox_head) for conv in part.modules() if isinstance(conv, nn.Conv2d)
        ]
        assert len(convs) == 2 + 6 + 1 + 5 + 6
        for conv in convs:
            inputs, outputs = (conv.weight[0].numel(), len(conv.weight) * conv.weight[0, 0].numel())
            bound = (6 / (inputs + outputs)) ** 0.5
            assert 0.97 * bound < conv.weight.abs().max() <= bound
            assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
            assert conv.bias is None or not conv.bias.any()

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
        rows, columns = scores[0].shape[-2:]
        x, y = width / columns * 1.5, height / rows / 2  # of the second cell of the first row
        half = torch.tensor([0.1 * width / 2, 0.1 * height / 2])  # its smallest anchor
        torch.testing.assert_close(
            levels[0][0][6], torch.cat((torch.tensor([x, y]) - half, torch.tensor([x, y]) + half))
        )

    @pytest.mark.parametrize(("boxes", "positives"), [([[4, 4, 30, 40], [20, 10, 60, 60]], 12), ([[1, 2, 4, 6]], 1)])
    def test_loss_is_that_of_the_definition(self, boxes, positives):
        """Hard negatives three to one per image, divided by the positives of the batch; an empty image adds nothing."""
        model = ssd(SMALL, num_classes=3).eval()
        samples = detection_samples([boxes, []])
        maps = model.extract_feat(torch.rand(2, 3, 64, 64))
        losses = model.bbox_head.loss(maps, samples)
        scores, deltas = model.bbox_head(maps)
        anchors = torch.cat(
            model.bbox_head.get_anchors([s.shape[-2:] for s in scores], [samples[0].metainfo], "cpu")[0][0]
        )
        gt = samples[0].gt_instances
        from mmdet.structures.bbox import HorizontalBoxes

        overlaps = HorizontalBoxes.overlaps(HorizontalBoxes(anchors), HorizontalBoxes(gt.bboxes))
        best, matched = overlaps.max(dim=1)
        for j in range(len(gt)):
            i = overlaps[:, j].argmax()
            best[i], matched[i] = 1, j
        positive = best >= 0.5
        assert positive.sum() == positives
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

    def test_smaller_image_of_a_batch_has_no_detection_in_its_padding(self):
        """Each image gets what it would get alone on a canvas of the batch's size, and no box without area."""
        model = ssd(SMALL, num_classes=3, score_thr=0.0, max_per_img=100).eval()
        samples = detection_samples([[], []], size=128)
        samples[1].set_metainfo({"img_shape": (64, 40)})
        x = torch.rand(2, 3, 128, 128)
        x[1, :, 64:] = x[1, :, :, 40:] = 0
        for sample in model.predict(x, samples):
            height, width = sample.img_shape
            boxes = sample.pred_instances.bboxes
            assert len(boxes) == model.test_cfg.max_per_img  # what lies in the padding takes no place
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height])).all()

    @pytest.mark.parametrize("broken", [[20.0, 10, 20, 60], [20, 10, 60, 10], [60, 10, 20, 60], [float("nan")] * 4])
    def test_boxes_without_area_are_left_out_of_the_loss(self, broken):
        model = ssd(SMALL, num_classes=3).eval()
        maps = model.extract_feat(torch.rand(2, 3, 64, 64))
        good = [4, 4, 30, 40]
        expected = model.bbox_head.loss(maps, detection_samples([[good], []]))
        samples = detection_samples([[good, broken], [broken]])
        samples[0].set_metainfo({"img_path": "a.jpg"})
        with pytest.warns(UserWarning, match=r"1 of 2 boxes of a\.jpg have no area and are left out"):
            losses = model.bbox_head.loss(maps, samples)
        assert losses.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(losses[key], value)
        assert len(samples[0].gt_instances) == 2  # the caller's are as they were

    def test_two_images_are_enough_for_batch_norm(self):
        model = ssd(SMALL, num_classes=3).train()
        model.loss(torch.rand(2, 3, 64, 64), detection_samples([[], []]))


class TestSegmentor:
    def test_dropout_of_the_branches_lies_before_the_classifier(self):
        model = segmentor(
            SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), later=False, auxiliary=False
        ).eval()
        head = model.decode_head
        assert type(head.branch_dropout) is nn.Dropout  # of elements, not of channels
        head.branch_dropout.register_forward_hook(lambda module, args, out: 0 * out)
        logits = head([torch.rand(1, width, 4, 4) for width in VARIANTS[SMALL].widths[3:]])
        torch.testing.assert_close(logits, head.conv_seg.bias[None, :, None, None].expand_as(logits))

    def test_resize_rules(self):
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

    @pytest.mark.parametrize("resize", ["direct", "nearest"])
    def test_sliding_windows_are_mmsegs(self, resize):
        """A window as large as the image gives what mmseg gives for the whole."""
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), resize="mmseg").eval()
        x, meta = torch.rand(1, 3, 64, 96), dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), (64, 96))
        with torch.inference_mode():
            expected = model.predict(x, [SegDataSample(metainfo=meta)])[0].seg_logits.data
            model.resize = resize
            model.test_cfg = type(model.test_cfg)(mode="slide", crop_size=(64, 96), stride=(64, 96))
            actual = model.predict(x, [SegDataSample(metainfo=meta)])[0].seg_logits.data
        torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("name", ["padding_size", "img_padding_size"])
    def test_borders_are_cut_off_under_both_names(self, name):
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18)).eval()
        x = torch.rand(1, 3, 64, 96)
        meta = {"ori_shape": (51, 64), "img_shape": (64, 96), "pad_shape": (64, 96), name: [0, 32, 0, 0]}
        logits = []
        for model.resize in ("direct", "mmseg"):
            with torch.inference_mode():
                logits.append(model.predict(x, [SegDataSample(metainfo=meta)])[0].seg_logits.data)
        torch.testing.assert_close(*logits)

    @pytest.mark.parametrize("resize", ["direct", "nearest", "mmseg"])
    def test_a_batch_of_several_sizes_is_resized_as_each_image(self, resize):
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), resize=resize).eval()
        x, sizes = torch.rand(3, 3, 64, 96), [(51, 77), (130, 90), (51, 77)]

        def samples(*indices):
            meta = {"img_shape": (64, 96), "pad_shape": (64, 96)}
            return [SegDataSample(metainfo={**meta, "ori_shape": sizes[i]}) for i in indices]

        with torch.inference_mode():
            together = model.predict(x, samples(0, 1, 2))
            for i, found in enumerate(together):
                (alone,) = model.predict(x[i : i + 1], samples(i))
                torch.testing.assert_close(found.seg_logits.data, alone.seg_logits.data, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("resize", ["direct", "nearest", "mmseg"])
    def test_without_data_samples_the_result_has_the_size_of_the_images(self, resize):
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), resize=resize).eval()
        x = torch.rand(2, 3, 75, 100)
        meta = {"ori_shape": (75, 100), "img_shape": (75, 100), "pad_shape": (75, 100)}
        with torch.inference_mode():
            expected = model.predict(x, [SegDataSample(metainfo=meta) for _ in x])
            for sample, wanted in zip(model.predict(x), expected, strict=True):
                assert sample.pred_sem_seg.shape == (75, 100)
                torch.testing.assert_close(sample.seg_logits.data, wanted.seg_logits.data)

    @pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
    def test_two_images_are_enough_for_batch_norm(self, head):
        model = segmentor(SMALL, head, 4, output_stride=16, rates=(6, 12, 18), auxiliary=False).train()
        model.decode_head(model.backbone(torch.rand(2, 3, 64, 64)))

    def test_bad_options(self):
        with pytest.raises(ValueError, match="resize must be"):
            segmentor(SMALL, "deeplabv3", 4, output_stride=16, rates=(6, 12, 18), resize="bicubic")
        for head in ("deeplabv3", "pspnet"):
            model = segmentor(SMALL, head, 4, output_stride=16, rates=(6, 12, 18), auxiliary=False).eval()
            with pytest.raises(ValueError, match="was built for 80 channels, the backbone gives 64"):
                model.decode_head([torch.rand(1, 80, 4, 4), torch.rand(1, 64, 4, 4)])


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (2, 13), (32, 32)])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_exported_pooling_is_adaptive_pooling(size, count):
    x = torch.randn(2, 5, *size)
    pool = GridPool(count)
    exported = torch.export.export(pool, (x,)).module()
    torch.testing.assert_close(exported(x), torch.nn.functional.adaptive_avg_pool2d(x, count))
    torch.testing.assert_close(pool(x), torch.nn.functional.adaptive_avg_pool2d(x, count))
