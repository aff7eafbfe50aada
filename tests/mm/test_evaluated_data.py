"""Configs as users write them: wrapped data sets, types with a scope or as classes, a data set for validation alone."""

import pytest
import torch
from mmengine.config import Config

from timm_mobilevit.mm._evaluated_data import evaluated_dataset, evaluated_steps
from timm_mobilevit.mm.convert import dataset_meta
from timm_mobilevit.mm.loading import load_model

DATA = {
    "type": "BaseSegDataset",
    "metainfo": {"classes": ("ground", "road"), "palette": [(0, 0, 0), (9, 9, 9)]},
    "pipeline": [{"type": "LoadImageFromFile"}, {"type": "mmseg.LoadAnnotations"}, {"type": "mmseg.PackSegInputs"}],
}
WRAPPED = {
    "plain": DATA,
    "several": {"type": "ConcatDataset", "datasets": [DATA, {**DATA, "pipeline": []}]},
    "repeated": {"type": "RepeatDataset", "times": 2, "dataset": DATA},
    "both": {"type": "mmengine.ConcatDataset", "datasets": [{"type": "RepeatDataset", "times": 2, "dataset": DATA}]},
}


@pytest.mark.parametrize("loader", ["test_dataloader", "val_dataloader"])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_data(name, loader):
    config = Config({"default_scope": "mmseg", loader: {"dataset": WRAPPED[name]}})
    assert evaluated_dataset(config) == DATA
    assert [step.type for step in evaluated_steps(config)] == ["LoadImageFromFile", "mmseg.PackSegInputs"]
    assert dataset_meta(config) == {"classes": ("ground", "road"), "palette": [(0, 0, 0), (9, 9, 9)]}


@pytest.mark.parametrize("palette", [(1, 2, 3), [(1, 2, 3)], [(1, 2, 3, 4)] * 2, "random"])
def test_palettes_without_a_colour_for_each_class_are_refused(palette):
    data = {**DATA, "metainfo": {"classes": ("ground", "road"), "palette": palette}}
    with pytest.raises(ValueError, match=r"must have a colour \(red, green, blue\) for each of 2 classes"):
        dataset_meta(Config({"default_scope": "mmseg", "test_dataloader": {"dataset": data}}))


def test_without_data():
    config = Config({"default_scope": "mmseg", "test_dataloader": None})
    assert dataset_meta(config) == {}
    with pytest.raises(ValueError, match=r"expected one in test_dataloader\.dataset\.pipeline"):
        evaluated_steps(config)
    config.test_pipeline = DATA["pipeline"]
    assert len(evaluated_steps(config)) == 2
    unknown = Config({"default_scope": "mmseg", "test_dataloader": {"dataset": {"type": "MyData"}}})
    with pytest.raises(ValueError, match="a data set of the type MyData, which is not registered"):
        dataset_meta(unknown)


# A pure-Python config, as MMEngine calls them: types are classes.
PURE = """
from mmengine.dataset import DefaultSampler
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs
from mmcv.transforms import LoadImageFromFile, Resize
from mmseg.models import SegDataPreProcessor
from timm_mobilevit.mm import MobileViTASPPHead, MobileViTEncoderDecoder, TimmMobileViT

model = dict(
    type=MobileViTEncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True, size=(64, 64)
    ),
    backbone=dict(type=TimmMobileViT, model_name="mobilevitv3_xxs", out_indices=(4,), output_stride=16),
    decode_head=dict(
        type=MobileViTASPPHead, in_channels=128, in_index=0, channels=16, num_classes=2, dilations=(1, 2, 3, 4),
        norm_cfg=dict(type="BN"),
    ),
    test_cfg=dict(mode="whole"),
)
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(96, 64), keep_ratio=False),
    dict(type=LoadAnnotations),
    dict(type=PackSegInputs),
]
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=BaseSegDataset, metainfo=dict(classes=("ground", "road")), pipeline=test_pipeline),
)
"""
SCOPED = PURE.replace("type=TimmMobileViT", 'type="mmengine.TimmMobileViT"')


@pytest.mark.parametrize("text", [PURE, SCOPED], ids=["classes", "scope"])
def test_types_are_asked_of_the_model(text, tmp_path):
    """Loading, converting and exporting go by what is built."""
    from timm_mobilevit.export.mm import load_exportable

    (tmp_path / "config.py").write_text(text)
    model, config = load_model(str(tmp_path / "config.py"))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    again, _ = load_model(str(tmp_path / "config.py"), tmp_path / "model.pth")
    assert torch.equal(again.backbone.stem.conv.weight, model.backbone.stem.conv.weight)
    assert dataset_meta(config) == {"classes": ("ground", "road")}
    network = load_exportable(str(tmp_path / "config.py"), str(tmp_path / "model.pth"))
    assert network.input_size == (3, 64, 96)
    assert network.export_metadata["labels"] == ["ground", "road"]


def test_models_over_other_backbones_are_refused(tmp_path):
    other = PURE.replace(
        'type=TimmMobileViT, model_name="mobilevitv3_xxs", out_indices=(4,), output_stride=16', "type=ResNet, depth=18"
    )
    other = other.replace("import SegDataPreProcessor", "import ResNet, SegDataPreProcessor").replace("=128", "=512")
    (tmp_path / "other.py").write_text(other)
    with pytest.raises(
        ValueError, match=r"no config of a detector or segmentor over TimmMobileViT: its backbone is ResNet"
    ):
        load_model(str(tmp_path / "other.py"))
    (tmp_path / "broken.py").write_text(PURE.replace("channels=16", "no_such_option=16"))
    with pytest.raises(ValueError, match=r"the model of .*broken\.py cannot be built: TypeError"):
        load_model(str(tmp_path / "broken.py"))


def test_a_preprocessor_beside_the_model_is_the_models(tmp_path):
    """mmengine's runner gives it to a model without one; without it, images would not be scaled at all."""
    text = PURE.replace("    data_preprocessor=dict(\n", "    data_preprocessor_of_mine=dict(\n")
    start, end = text.index("    data_preprocessor_of_mine"), text.index("    backbone=")
    beside = text[start:end].strip().removeprefix("data_preprocessor_of_mine=").rstrip(",")
    (tmp_path / "config.py").write_text(text[:start] + text[end:] + f"\ndata_preprocessor = {beside}\n")
    model, _ = load_model(str(tmp_path / "config.py"))
    assert model.data_preprocessor.std.flatten().tolist() == [255.0] * 3
