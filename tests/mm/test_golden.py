"""SSD, DeepLabv3 and PSPNet against numbers recorded from the reference, and detections against another decoder."""

import numpy as np
import pytest
import torch
import torchvision
from golden_data import FOLDER, error, load, make_images, make_weights
from mm_models import segmentor, ssd
from mmseg.structures import SegDataSample

from timm_mobilevit.mm.convert import convert_state_dict
from timm_mobilevit.variants import VARIANTS

TOLERANCE = 1e-4  # of the tensor's standard deviation
DETECTORS = sorted(path.stem for path in FOLDER.glob("ssd_*.json"))
SEGMENTORS = sorted(path.stem for path in FOLDER.glob("[dp]*net_*.json")) + sorted(
    path.stem for path in FOLDER.glob("deeplabv3_*.json")
)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.detection) for name in DETECTORS])
def detector(request):
    """A detector with the recorded weights, its recording and its raw outputs."""
    golden = load(request.param)
    model = ssd(golden["arch"]).eval()
    model.load_state_dict(convert_state_dict(make_weights(golden["state_dict"]), model, channel_order="rgb"))
    with torch.inference_mode():
        scores, deltas = model.bbox_head(model.extract_feat(make_images(golden["input_shape"])))
    return model, golden, scores, deltas


def flatten(levels, width):
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, width) for x in levels], dim=1)


def test_detector_equals_the_reference(detector):
    model, golden, scores, deltas = detector
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    outputs = golden["outputs"]
    # Background is our last class and the reference's first.
    confidences = flatten(scores, 81).roll(1, dims=-1)
    assert error(confidences, outputs["confidences"]) < TOLERANCE
    assert error(confidences.softmax(-1), outputs["softmax_scores"]) < TOLERANCE
    assert error(flatten(deltas, 4), outputs["locations"]) < TOLERANCE


def test_anchors_and_decoded_boxes_equal_the_reference(detector):
    model, golden, scores, deltas = detector
    anchors = torch.cat(model.bbox_head.prior_generator.grid_priors([x.shape[-2:] for x in scores], device="cpu"))
    corners = anchors / 320
    centre_form = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), dim=1)
    assert error(centre_form[None], golden["outputs"]["anchors"]) < TOLERANCE
    for ours, theirs in ((centre_form[:8], "first8"), (centre_form[-8:], "last8")):
        torch.testing.assert_close(ours, torch.tensor(golden[f"anchors_{theirs}_rows_cxcywh"]), rtol=0, atol=1e-6)
    boxes = model.bbox_head.bbox_coder.decode(anchors.repeat(2, 1), flatten(deltas, 4).reshape(-1, 4)) / 320
    assert error(boxes.reshape(2, -1, 4), golden["outputs"]["decoded_boxes_xyxy"]) < TOLERANCE


def samples(batch, size, ori):
    meta = {"img_shape": (size, size), "ori_shape": ori, "scale_factor": (size / ori[1], size / ori[0])}
    from mmdet.structures import DetDataSample

    return [DetDataSample(metainfo={**meta, "batch_input_shape": (size, size)}) for _ in range(batch)]


def independent_detections(scores, deltas, anchors, *, threshold, per_class, most, most_per_class):
    """Decode, suppress per class and keep the best, in normalised coordinates, with torchvision and numpy alone."""
    probabilities = torch.softmax(scores, -1).numpy()
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    sizes = anchors[:, 2:] - anchors[:, :2]
    middle = deltas[:, :2] * 0.1 * sizes + centres
    half = torch.exp(deltas[:, 2:] * 0.2) * sizes / 2
    boxes = torch.cat((middle - half, middle + half), dim=1)
    # The one deviation from the reference, which gives boxes outside the image too, clipped to nothing.
    inside = (boxes[:, 2:].clamp(0, 1) > boxes[:, :2].clamp(0, 1)).all(dim=1)
    probabilities, boxes = probabilities[inside.numpy()], boxes[inside]
    found = []
    for label in range(probabilities.shape[1] - 1):
        order = np.argsort(-probabilities[:, label], kind="stable")[: per_class or None]
        order = order[probabilities[order, label] > threshold]
        if len(order):
            kept = torchvision.ops.nms(boxes[order], torch.from_numpy(probabilities[order, label]), 0.5).numpy()
            found += [
                (probabilities[i, label], label, *boxes[i].clamp(0, 1).tolist()) for i in order[kept][:most_per_class]
            ]
    return sorted(found, reverse=True)[:most]


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({}, {"threshold": 0.01, "per_class": 400, "most": 200, "most_per_class": None}),  # CVNets v0.2
        (
            {"score_thr": 0.05, "nms_pre": -1, "max_per_class": 200, "max_per_img": -1},  # CVNets v0.1
            {"threshold": 0.05, "per_class": 0, "most": None, "most_per_class": 200},
        ),
    ],
)
def test_detections_equal_an_independent_decoder(detector, options, rules):
    model, _, scores, deltas = detector
    head = model.bbox_head
    config = {**model.test_cfg, **options}
    metas = [sample.metainfo for sample in samples(2, 320, (200, 400))]
    results = head.predict_by_feat(scores, deltas, batch_img_metas=metas, cfg=config, rescale=True)
    anchors = torch.cat(head.prior_generator.grid_priors([x.shape[-2:] for x in scores], device="cpu")) / 320
    for i, result in enumerate(results):
        expected = independent_detections(flatten(scores, 81)[i], flatten(deltas, 4)[i], anchors, **rules)
        assert len(result) == len(expected)
        boxes = result.bboxes / torch.tensor([400, 200, 400, 200])
        for label in range(80):
            ours = result.labels == label
            theirs = [row for row in expected if row[1] == label]
            np.testing.assert_allclose(result.scores[ours], [row[0] for row in theirs], atol=1e-5)
            alone = np.diff([2, *(row[0] for row in theirs), -2]) < -1e-5  # boxes of equal scores may swap
            alone = alone[:-1] & alone[1:]
            wanted = np.reshape([row[2:] for row in theirs], (-1, 4))[alone]
            np.testing.assert_allclose(boxes[ours].numpy()[alone], wanted, atol=2e-4)


def test_detections_agree_with_the_recorded_ones(detector):
    """The reference's own post-processing, as far as it was recorded: the five best of each image, v0.2's rules."""
    model, golden, scores, deltas = detector
    if "detections" not in golden:
        assert not VARIANTS[golden["arch"]].separable
        pytest.skip("recorded for the models of CVNets v0.2 only")
    metas = [sample.metainfo for sample in samples(2, 320, (320, 320))]
    results = model.bbox_head.predict_by_feat(scores, deltas, batch_img_metas=metas)
    for result, recorded in zip(results, golden["detections"], strict=True):
        assert len(result) == recorded["n"]
        np.testing.assert_allclose(result.scores[:5], recorded["top5_scores"], atol=1e-4)
        assert (result.labels[:5] + 1).tolist() == recorded["top5_labels"]  # background is class 0 there
        recorded_boxes = np.clip(np.asarray(recorded["top5_boxes"]) * 320, 0, 320)
        np.testing.assert_allclose(result.bboxes[:5], recorded_boxes, atol=0.05)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentor_equals_the_reference(name):
    golden = load(name)
    later = "aux_logits_eval_mode" in golden["outputs"]  # CVNets v0.1 has no auxiliary head
    classes = golden["outputs"]["logits"]["shape"][1]
    model = segmentor(
        golden["arch"],
        name.partition("_")[0],
        classes,
        output_stride=golden["output_stride"],
        rates=golden["config"].get("model.segmentation.deeplabv3.aspp_rates"),
        later=later,
        auxiliary=later,
    ).eval()
    model.load_state_dict(convert_state_dict(make_weights(golden["state_dict"]), model, channel_order="rgb"))
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    auxiliary = sum(p.numel() for p in model.auxiliary_head.parameters()) if later else 0
    assert golden["params"] - auxiliary == golden["params_without_aux_head"]
    images = make_images(golden["input_shape"])
    outputs = []
    for part in (model.backbone, model.decode_head.conv_seg):
        part.register_forward_hook(lambda part, args, out: outputs.append(out))
    meta = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), tuple(images.shape[2:]))
    with torch.inference_mode():
        results = model.predict(images, [SegDataSample(metainfo=meta) for _ in images])
        maps, small = outputs
        if later:
            assert error(model.auxiliary_head(maps), golden["outputs"]["aux_logits_eval_mode"]) < TOLERANCE
    assert error(small, golden["outputs"]["logits_before_upsample"]) < TOLERANCE
    assert error(torch.stack([result.seg_logits.data for result in results]), golden["outputs"]["logits"]) < TOLERANCE
