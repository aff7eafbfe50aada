"""Losses that users put in the place of our configs', and segmentors of one output channel."""

import pytest
import torch
import torch.nn.functional as F
from mm_models import SMALL, segmentor
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models.losses import CrossEntropyLoss
from mmseg.structures import SegDataSample

from timm_mobilevit.configs import find_config

WEIGHTS = [0.5, 2.0, 4.0]


def model_of(loss, classes=3, **head):
    """A segmentor whose config inherits one of ours and changes the losses of both heads."""
    config = Config.fromfile(find_config("deeplabv3_mobilevitv3-0.5-d16"))
    config.model.backbone.pretrained = False
    for name in ("decode_head", "auxiliary_head"):
        changes = {"num_classes": classes, "dropout_ratio": 0, **head}
        config.model[name].update(changes)
        if isinstance(loss, list):
            config.model[name].loss_decode = loss
        else:
            config.merge_from_dict({"model": {name: {"loss_decode": loss}}})
    init_default_scope("mmseg")
    return MODELS.build(config.model)


def samples(classes, size=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (2, 1, size, size), generator=generator)
    labels[:, :, :9] = 255
    found = []
    for label in labels:
        sample = SegDataSample(metainfo=dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (size, size)))
        sample.gt_sem_seg = PixelData(data=label)
        found.append(sample)
    return found, labels[:, 0]


@pytest.mark.parametrize("avg_non_ignore", [True, False])
def test_class_weights_beside_ignored_pixels(avg_non_ignore):
    """The loss is PyTorch's weighted mean over the pixels that count."""
    torch.manual_seed(0)
    model = model_of({"class_weight": WEIGHTS, "avg_non_ignore": avg_non_ignore}).eval()
    data, labels = samples(3)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        losses = model.loss(images, data)
        maps = model.extract_feat(images)
        for name, head, factor in (("decode", model.decode_head, 1), ("aux", model.auxiliary_head, 0.4)):
            logits = F.interpolate(head(maps), (64, 64), mode="bilinear", align_corners=True)
            wanted = factor * F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=255)
            assert float(losses[f"{name}.loss_ce"]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "DiceLoss", "use_sigmoid": False},
        {"type": "mmseg.LovaszLoss", "reduction": "none"},
        {"type": "TverskyLoss"},
        [{"type": "CrossEntropyLoss", "class_weight": WEIGHTS}, {"type": "DiceLoss", "loss_name": "loss_dice"}],
    ],
    ids=lambda loss: loss["type"] if isinstance(loss, dict) else "several",
)
def test_other_losses(loss):
    if isinstance(loss, dict) and "Lovasz" in loss["type"]:
        loss = {**loss, "loss_weight": 1.0}
    model = model_of(loss)
    losses, _ = model.parse_losses(model.loss(torch.rand(2, 3, 64, 64), samples(3)[0]))
    assert losses.isfinite()
    losses.backward()
    assert model.backbone.stem.conv.weight.grad.any()


def test_losses_keep_their_average():
    """Only what a loss does not take is left out: the cross-entropy of the recipe stays as published."""
    model = model_of({})
    assert model.decode_head.loss_decode.avg_non_ignore
    assert model.auxiliary_head.loss_decode.avg_non_ignore
    with pytest.raises(TypeError, match="no_such_option"):
        model_of({"no_such_option": 1})


def test_a_loss_that_passes_its_options_on_keeps_them():
    @MODELS.register_module(force=True)
    class TemperedLoss(CrossEntropyLoss):
        def __init__(self, temperature=1.0, **kwargs):
            super().__init__(**kwargs)

    assert model_of({"type": "TemperedLoss", "avg_non_ignore": True}).decode_head.loss_decode.avg_non_ignore


def binary(**head):
    options = {"out_channels": 1, "loss_decode": {"type": "mmseg.CrossEntropyLoss", "use_sigmoid": True}, **head}
    model = segmentor(SMALL, "deeplabv3", 2, output_stride=16, rates=(6, 12, 18), auxiliary=False)
    config = {"in_channels": model.decode_head.in_channels, "in_index": 1, "channels": 512, "num_classes": 2}
    kind = {"type": "mmseg.MobileViTASPPHead", "norm_cfg": {"type": "BN"}, "dilations": (1, 6, 12, 18)}
    model._init_decode_head({**kind, **config, **options})
    return model.eval()


def test_binary_augmentations_are_averaged_once():
    """mmseg's own class takes the sigmoid of probabilities: then no pixel is below a half."""
    model = binary(threshold=0.4)
    tta = MODELS.build({"type": "mmseg.MobileViTSegTTAModel", "module": model})
    probabilities = torch.tensor([[[0.1, 0.5, 0.39, 0.9]], [[0.2, 0.4, 0.4, 0.1]]])
    views = [SegDataSample(seg_logits=PixelData(data=values[None])) for values in probabilities]
    (merged,) = tta.merge_preds([views])
    assert merged.pred_sem_seg.data.tolist() == [[[0, 1, 0, 1]]]  # of 0.15, 0.45, 0.395 and 0.5


def test_augmentations_of_several_classes_are_mmsegs():
    model = segmentor(SMALL, "deeplabv3", 3, output_stride=16, rates=(6, 12, 18), auxiliary=False).eval()
    tta = MODELS.build({"type": "mmseg.MobileViTSegTTAModel", "module": model})
    logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 0.0]], [[3.0, 2.0]], [[0.0, 0.0]]]])
    views = [SegDataSample(metainfo={"img_path": "a.png"}, seg_logits=PixelData(data=values)) for values in logits]
    (merged,) = tta.merge_preds([views])
    expected = torch.stack([view.softmax(0) for view in logits]).mean(0).argmax(0)
    assert merged.pred_sem_seg.data.tolist() == [expected.tolist()]


@pytest.mark.parametrize("name", ["deeplabv3_mobilevitv3-0.5-d8", "deeplabv3_mobilevitv1-xxs-d16"])
def test_tta_of_our_configs(name, tmp_path):
    """What ``mmseg/tools/test.py --tta`` makes of a config predicts an image at its own size, from twelve views."""
    import numpy as np
    from mmengine.dataset import Compose
    from PIL import Image

    config = Config.fromfile(find_config(name))
    config.model.backbone.pretrained = False
    init_default_scope("mmseg")
    config.tta_model.module = config.model
    model = MODELS.build(config.tta_model).eval()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.ones((90, 70), np.uint8)).save(tmp_path / "mask.png")
    load = {"img_path": str(tmp_path / "a.png"), "seg_map_path": str(tmp_path / "mask.png"), "label_map": None}
    views = Compose(config.tta_pipeline)(
        {**load, "reduce_zero_label": "ade20k" in str(find_config(name)), "seg_fields": []}
    )
    assert len(views["inputs"]) == 12
    heights = sorted({view.shape[1] for view in views["inputs"]})
    stride = 8 if name.endswith("d8") else 16
    assert heights == sorted({round(90 * ratio) // stride * stride for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75)})
    with torch.inference_mode():
        (sample,) = model.test_step({key: [[part] for part in value] for key, value in views.items()})
    assert sample.pred_sem_seg.data.shape[-2:] == (90, 70)
    assert sample.gt_sem_seg.data.shape[-2:] == (90, 70)
