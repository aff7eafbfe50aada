"""The backbone in mmengine: maps, weights, freezing, options, bad input."""

import importlib
import json
import subprocess
import sys

import mmseg
import pytest
import timm
import torch
from mm_models import KINDS, SMALL, ssd
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import MODELS
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn

import timm_mobilevit.mm
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.mm._installed import check_installed
from timm_mobilevit.variants import VARIANTS

# What `timm_mobilevit.mm` gives beside MMEngine alone; beside mmseg and mmcv without ops; beside mmdet and all of mmcv.
OF_THE_BACKBONE = {
    "BestCheckpointHook",
    "MobileViTRunner",
    "TimmMobileViT",
    "WarmUpLR",
    "convert_state_dict",
    "use_backbone",
}
OF_BOTH = {"RandomBrightnessFactor", "RandomGaussianBlur", "RandomPhotometricDistort", "ResizeToFloorMultiple"}
OF_SEGMENTATION = {"MobileViTASPPHead", "MobileViTEncoderDecoder", "MobileViTPSPHead", "MobileViTSegTTAModel"}
OF_DETECTION = {"SSDCrop", "SSDLiteAnchorGenerator", "SSDLiteHead", "SSDLiteNeck"}


def backbone(name=SMALL, **options):
    return MODELS.build({"type": "TimmMobileViT", "model_name": name, **options})


class TestBackbone:
    @pytest.mark.parametrize("framework", ["mmengine", "mmseg", pytest.param("mmdet", marks=pytest.mark.detection)])
    def test_is_found_from_all_frameworks(self, framework):
        registry = importlib.import_module(f"{framework}.registry").MODELS
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

    @pytest.mark.parametrize("name", KINDS)
    def test_maps_lie_in_memory_as_the_images_do(self, name):
        """Heads take views of them: CenterNet's predict does."""
        model = backbone(name, norm_eval=True)
        x = torch.rand(2, 3, 64, 96)
        for training in (True, False):
            rows = model.train(training)(x)
            assert all(map.is_contiguous() for map in rows)
        pixels = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert all(map.is_contiguous(memory_format=torch.channels_last) for map in pixels)
        torch.testing.assert_close(pixels, rows)

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

        def record(model_name, pretrained=False, **kwargs):
            asked.append((model_name, pretrained))
            return create_model(model_name, **kwargs)

        monkeypatch.setattr(timm, "create_model", record)
        for pretrained in (True, "cvnets_in1k", False):
            model = backbone(pretrained=pretrained)
            model.init_weights()
            model.init_weights()
        assert [row for row in asked if row[1]] == [(SMALL, True), (f"{SMALL}.cvnets_in1k", True)]
        with pytest.raises(FileNotFoundError, match=r"no checkpoint file at missing\.pt"):
            backbone(pretrained="missing.pt").init_weights()

    @pytest.mark.detection
    def test_a_detectors_file_is_one_of_a_backbone(self, tmp_path, caplog):
        detector = ssd(SMALL)
        torch.save({"meta": {"mmengine_version": "0"}, "state_dict": detector.state_dict()}, tmp_path / "mine.pth")
        torch.save(
            {"student." + key: value for key, value in detector.backbone.state_dict().items()}
            | {"teacher." + key: value for key, value in backbone().state_dict().items()},
            tmp_path / "distilled.pth",
        )
        for pretrained in (
            str(tmp_path / "mine.pth"),
            {"file": str(tmp_path / "distilled.pth"), "prefix": "student."},
        ):
            model = backbone(pretrained=pretrained)
            model.init_weights()
            for key, value in detector.backbone.state_dict().items():
                assert torch.equal(model.state_dict()[key], value), key
        assert "left out are the" in caplog.text
        assert "neck" in caplog.text
        assert "bbox_head" in caplog.text
        with pytest.raises(ValueError, match=r"several MobileViTs, below 'student\.' and 'teacher\.'.*prefix="):
            backbone(pretrained=str(tmp_path / "distilled.pth")).init_weights()
        theirs = backbone(
            init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "mine.pth"), "prefix": "backbone."}
        )
        theirs.init_weights()
        assert torch.equal(theirs.stem.conv.weight, detector.backbone.stem.conv.weight)

    def test_channels_and_their_order_of_a_file(self, tmp_path):
        name = "mobilevitv1_s"
        weights = timm.create_model(name).state_dict()
        stem = weights["stem.conv.weight"]
        torch.save(export_state_dict(weights, name, "cvnets", channel_order="rgb"), tmp_path / "rgb.pt")
        pretrained = str(tmp_path / "rgb.pt")
        grey = backbone(f"{name}.cvnets_rangeaugment_in1k", pretrained=pretrained, in_channels=1)
        for model, expected in (
            (backbone(f"{name}.cvnets_rangeaugment_in1k", pretrained=pretrained), stem),
            (backbone(name, pretrained=pretrained), stem.flip(1)),  # the known order of this layout
            (grey, stem.sum(1, keepdim=True)),
        ):
            model.init_weights()
            torch.testing.assert_close(model.stem.conv.weight.detach(), expected)

    def test_weights_of_fewer_stages_are_refused(self, tmp_path):
        torch.save(backbone(out_indices=(1, 2)).state_dict(), tmp_path / "short.pth")
        backbone(out_indices=(0, 2), pretrained=str(tmp_path / "short.pth")).init_weights()
        with pytest.raises(ValueError, match=r"short\.pth holds a backbone without stages\.3\.0"):
            backbone(pretrained=str(tmp_path / "short.pth")).init_weights()

    def test_frozen_stages_and_norm_eval(self):
        model = backbone(frozen_stages=2, norm_eval=True).train()
        assert not any(p.requires_grad for part in (model.stem, *model.stages[:2]) for p in part.parameters())
        assert all(p.requires_grad for stage in model.stages[2:] for p in stage.parameters())
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert model.stages[2].training
        before = model.stem.bn.running_mean.clone()
        for count, frozen in ((-1, [0, 0, 0]), (0, [1, 0, 0]), (1, [1, 1, 0])):
            model_ = backbone(frozen_stages=count).train()
            parts = (model_.stem, *model_.stages[:2])
            assert [not any(p.requires_grad for p in part.parameters()) for part in parts] == frozen
            assert [not any(m.training for m in part.modules()) for part in parts] == frozen
        model(torch.rand(2, 3, 64, 64))
        assert torch.equal(model.stem.bn.running_mean, before)
        assert backbone().train().stem.bn.training

    def test_checkpointing_changes_no_gradient(self):
        model = backbone(norm_eval=True, out_indices=(3, 4)).train()
        x = torch.rand(1, 3, 64, 64)
        gradients, calls = [], []
        model.stages[4][0].register_forward_pre_hook(lambda *_: calls.append(model.with_cp))
        for model.with_cp in (False, True):
            model.zero_grad()
            sum(out.square().sum() for out in model(x)).backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        assert calls == [False, True, True]  # again when gradients are computed
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)

    def test_checkpoints_keep_the_hooks_of_a_stage(self):
        model, calls = backbone().train(), []
        model.stages[3].register_forward_hook(lambda *_: calls.append(model.with_cp))
        for model.with_cp in (False, True):
            sum(out.sum() for out in model(torch.rand(2, 3, 64, 64))).backward()
        assert calls == [False, True]  # the backward pass stops recomputing before the end of a stage

    def test_a_stage_that_is_named_twice_is_one_map(self):
        model = backbone(out_indices=(4, -1, 3)).eval()
        widths = VARIANTS[SMALL].widths[3:]
        assert model.out_channels == list(widths)
        assert [x.shape[1] for x in model(torch.rand(1, 3, 64, 64))] == list(widths)

    def test_options_reach_the_network(self):
        model = backbone(proj_drop_rate=0.25, drop_path_rate=0.5, patch_size=(8, 4, 2))
        assert model.stages[2][1].patch_h == 8
        assert [stage[1].patch_h for stage in model.stages[2:]] == [8, 4, 2]
        assert model.stages[2][1].transformer[0].attn.proj_drop.p == 0.25
        rates = [part.drop_prob for part in model.modules() if isinstance(part, DropPath)]
        assert max(rates) == 0.5

    @pytest.mark.parametrize("out_indices", [4, -1, (4,)])
    def test_one_map_by_a_number(self, out_indices):
        model = backbone(out_indices=out_indices)
        assert [tuple(x.shape) for x in model.eval()(torch.rand(1, 3, 64, 64))] == [
            (1, VARIANTS[SMALL].widths[4], 2, 2)
        ]

    @pytest.mark.parametrize("pretrained", ["file", True])
    @pytest.mark.parametrize("channels", [1, 4])
    def test_weights_for_other_channels_are_adapted_as_timm_does(self, channels, pretrained, tmp_path, monkeypatch):
        trained = timm.create_model(SMALL)
        save_file(trained.state_dict(), tmp_path / "model.safetensors")
        create_model = timm.create_model
        monkeypatch.setattr(
            timm,
            "create_model",
            lambda name, pretrained=False, **kwargs: trained if pretrained else create_model(name, **kwargs),
        )
        model = backbone(
            in_channels=channels, pretrained=True if pretrained is True else str(tmp_path / "model.safetensors")
        )
        model.init_weights()
        three = trained.stem.conv.weight
        adapted = {1: three.sum(1, keepdim=True), 4: torch.cat([three, three[:, :1]], 1) * 3 / 4}[channels]
        torch.testing.assert_close(model.stem.conv.weight, adapted)
        assert torch.equal(model.stages[2][1].conv_kxk.conv.weight, trained.stages[2][1].conv_kxk.conv.weight)
        assert model(torch.rand(2, channels, 64, 64))[0].shape[0] == 2

    def test_a_file_of_the_same_channels_is_taken_as_it_is(self, tmp_path):
        trained = backbone(in_channels=4)
        torch.save({"state_dict": trained.state_dict()}, tmp_path / "four.pth")
        model = backbone(in_channels=4, pretrained=str(tmp_path / "four.pth"))
        model.init_weights()
        assert torch.equal(model.stem.conv.weight, trained.stem.conv.weight)
        with pytest.raises(ValueError, match=r"four\.pth is for images of 4 channels, the backbone for 3"):
            backbone(pretrained=str(tmp_path / "four.pth")).init_weights()

    def test_sync_batch_norm_keeps_the_activations(self):
        model = backbone()
        activations = sum(isinstance(m, nn.SiLU) for m in model.modules())
        converted = convert_sync_batchnorm(model, "torch")
        assert sum(isinstance(m, nn.SiLU) for m in converted.modules()) == activations
        assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model_name": "mobilevitv3_9_9"}, "unknown architecture 'mobilevitv3_9_9'"),
            ({"model_name": "mobilevit_xxs"}, "timm's mobilevit_xxs is mobilevitv1_xxs here"),
            ({"model_name": "mobilevitv2_050.cvnets_in1k"}, "timm's mobilevitv2_050 is mobilevitv2_0_5 here"),
            ({"model_name": "mobilevitv2_200"}, "timm's mobilevitv2_200 is mobilevitv2_2_0 here"),
            ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
            ({"out_indices": 5}, r"out_indices must be stages from 0 to 4, got \(5,\)"),
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


@pytest.mark.parametrize(
    ("part", "missing", "extra"),
    [
        ("the backbone", "mmengine", "seg"),
        ("augmentations", "mmcv", "seg"),
        ("segmentation", "mmcv", "seg"),
        ("segmentation", "mmseg", "seg"),
        ("detection", "mmcv", "det"),
        ("detection", "mmcv.ops", "det"),
        ("detection", "mmdet", "det"),
    ],
)
def test_what_is_missing_is_named(part, missing, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"for {part}, but cannot import .*{missing}: .*'timm-mobilevit\[{extra}\]'"):
        check_installed(part)


def test_version_that_is_refused_is_an_import_error(monkeypatch):
    """mmdet and mmseg say by an assertion which versions of mmcv they take."""
    imported = importlib.import_module

    def refuse(name):
        assert name != "mmseg", "MMCV==2.2.0 is used but incompatible"
        return imported(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"cannot import mmseg: MMCV==2\.2\.0 is used but incompatible"):
        check_installed("segmentation")


SSDLITE, PSPNET = "ssdlite_mobilevitv3-xxs", "pspnet_mobilevitv2-0.5-d8"
# OpenMMLab's own last release imports mmcv.ops; its forks do not.
MMSEG_WITHOUT_OPS = tuple(map(int, mmseg.__version__.split(".")[:2])) >= (1, 4)


# Which names of `timm_mobilevit.mm` are there, and the extra that an ImportError names for all others, for modules and
# models.
LOOK = f"""
import importlib, json

def extra(call):
    try:
        call()
    except ImportError as error:
        return str(error).partition("pip install 'timm-mobilevit[")[2].partition("]'")[0]

sys.modules["mmengine"] = None
found = {{"mmengine": extra(lambda: importlib.import_module("timm_mobilevit.mm"))}}
del sys.modules["mmengine"]
import timm_mobilevit.mm as mm
from timm_mobilevit.mm.loading import load_model
names = {{name: extra(lambda: getattr(mm, name)) for name in mm.__all__}}
found["there"] = [name for name, missing in names.items() if missing is None]
found["names"] = " ".join(sorted(set(names.values()) - {{None}}))
for module in ("ssd_head", "seg_heads"):
    found[module] = extra(lambda: importlib.import_module("timm_mobilevit.mm." + module))
for config in ({SSDLITE!r}, {PSPNET!r}):
    found[config] = extra(lambda: load_model(config))
print(json.dumps(found))
"""
NO_DETECTION = {"ssd_head": "det", SSDLITE: "det"}
NO_SEGMENTATION = {"seg_heads": "seg", PSPNET: "seg"}


@pytest.mark.parametrize(
    ("packages", "there", "named"),
    [
        (["mmcv", "mmseg", "mmdet"], OF_THE_BACKBONE, {"names": "det seg", **NO_DETECTION, **NO_SEGMENTATION}),
        (
            ["mmcv.ops", "mmdet"],
            OF_THE_BACKBONE | OF_BOTH | (OF_SEGMENTATION if MMSEG_WITHOUT_OPS else set()),
            {"names": "det", **NO_DETECTION}
            if MMSEG_WITHOUT_OPS
            else {"names": "det seg", **NO_DETECTION, **NO_SEGMENTATION},
        ),
        pytest.param(
            ["mmseg"],
            OF_THE_BACKBONE | OF_BOTH | OF_DETECTION,
            {"names": "seg", **NO_SEGMENTATION},
            marks=pytest.mark.detection,
        ),
    ],
    ids=["mmengine", "segmentation", "detection"],
)
def test_each_part_needs_its_own_packages_alone(packages, there, named):
    """What is missing is an ImportError that names the extra: of a class, a module, a model, and of all."""
    assert set(timm_mobilevit.mm.__all__) == OF_THE_BACKBONE | OF_BOTH | OF_SEGMENTATION | OF_DETECTION
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({packages}))\n"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", blocked + LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found.pop("there")) == there
    assert {name: extra for name, extra in found.items() if extra} == {"mmengine": "seg", **named}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'SSDHead'"):
        _ = timm_mobilevit.mm.SSDHead
