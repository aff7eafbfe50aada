"""Folders of timm: every entry of config.json is sound, and true of the weights beside it."""

import json
import logging
import os

import pytest
import timm
import torch
from random_weights import randomise
from timm.models import save_for_hf

from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.weights.directory import read_config, read_directory

ARCH = "mobilevitv3_xxs"
CLASSES = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as timm writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    model = randomise(timm.create_model(ARCH, num_classes=CLASSES))
    save_for_hf(model, folder, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    return folder, model


@pytest.fixture
def folder(saved, tmp_path):
    for file in saved[0].iterdir():
        os.link(file, tmp_path / file.name)
    return tmp_path


def change(folder, entry, value):
    """Set an entry of config.json, or take it out."""
    config = json.loads((folder / "config.json").read_text())
    *path, last = entry.split(".")
    place = config
    for key in path:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (folder / "config.json").unlink()  # the original is linked to it
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_and_what_is_known_of_them(saved):
    folder, model = saved
    found = read_directory(folder)
    assert (found.arch, found.tag, found.num_features) == (ARCH, "micron_in1k", 512)
    assert found.state_dict.keys() == model.state_dict().keys()
    assert all(torch.equal(found.state_dict[key], value) for key, value in model.state_dict().items())


CFG = "pretrained_cfg."
BROKEN = {
    "architecture": ("ten", "resnet18", [3], None, 7, ""),
    "num_classes": ("ten", [3], None, -1, 3.0, True),
    "num_features": ("ten", 0, 1.5, 128),
    "label_names": ("abc", ["a", "b"], ["a", "b", "c", "d"], [1, 2, 3], [], {"0": "a", "3": "d"}, {"x": "a"}, 3),
    "label_descriptions": ("ten", [3]),
    "model_args": ("ten", [3], None),
    "pretrained_cfg": ("ten", [3], None),
    "model_args.num_classes": ("ten", [3], None, -1),
    "model_args.in_chans": ("ten", [3], None, 0),
    "model_args.drop_rate": ("ten", 1.0, -0.1, None),
    "model_args.global_pool": ("ten", [3], None),
    f"{CFG}mean": ("ten", [3], None, 0.5, [0, 0], [0] * 4, ["0", "0", "0"], [0, None, 0], [float("nan")] * 3, []),
    f"{CFG}std": ("ten", 0, [3], [0, 1, 1], [1, -1, 1], [1, 1], None, [float("inf")] * 3, [10**400] * 3),
    f"{CFG}input_size": ("ten", [3], None, [3, 256], [3, 256, 256, 1], [3, 0, 256], [3, 256.5, 256], 256, []),
    f"{CFG}crop_pct": ("ten", [3], None, 0, -0.5, 1.5, float("nan"), True),
    f"{CFG}crop_mode": ("ten", [3], None),
    f"{CFG}interpolation": ("ten", "cubic", [3], None, 3, ""),
    f"{CFG}num_classes": ("ten", [3], None),
    f"{CFG}fixed_input_size": ("ten", None, 1),
    f"{CFG}test_input_size": ("ten", [3]),
    f"{CFG}pool_size": ("ten", [3]),
    f"{CFG}label_names": ("abc", ["a"]),
    f"{CFG}architecture": ("mobilevitv1_s", 3),
    f"{CFG}licence": ("mit",),
}


@pytest.mark.parametrize("entry", BROKEN)
def test_broken_entries_are_named(entry, saved, tmp_path):
    for value in BROKEN[entry]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file in saved[0].iterdir():
            os.link(file, folder / file.name)
        change(folder, entry, value)
        if entry == "num_features" and value == 128:  # sound, but not that of the model: the builder's to see
            assert read_directory(folder).num_features == 128
            continue
        with pytest.raises(ValueError, match=f"config.json .*{entry}") as error:
            read_directory(folder)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("num_classes", 5, "5 classes in num_classes, but the weights in model.safetensors have 3"),
        ("model_args.num_classes", 5, "5 classes in model_args.num_classes, .* have 3"),
        ("model_args.in_chans", 1, "1 input channels in model_args.in_chans, .* have 3"),
        ("architecture", "mobilevitv3_xs", "as mobilevitv3_xs, as config.json says.* It fits mobilevitv3_xxs"),
    ],
)
def test_what_contradicts_the_weights(entry, value, told, folder):
    change(folder, entry, value)
    with pytest.raises(ValueError, match=told):
        read_directory(folder)


def test_without_model_args_the_preprocessing_tells_the_channels(folder):
    change(folder, "model_args", ...)
    assert read_directory(folder).arch == ARCH
    change(folder, "pretrained_cfg.input_size", [1, 256, 256])
    with pytest.raises(ValueError, match=r"1 input channels in pretrained_cfg.input_size, .* have 3"):
        read_directory(folder)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("label_names", {"0": "a", "2": "c"}),
        ("label_names", None),
        ("num_features", None),
        ("model_args", ...),
        ("num_classes", ...),
        ("pretrained_cfg.mean", [0.5, -1, 0]),
        ("pretrained_cfg.crop_pct", 1),
        ("pretrained_cfg.test_crop_pct", None),
        ("note", {"whatever": "people add"}),
        ("architecture", f"{ARCH}.mine"),
    ],
)
def test_sound_entries(entry, value, folder):
    change(folder, entry, value)
    assert read_directory(folder).arch == ARCH


def test_the_older_form_has_all_entries_at_the_top(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    older = {"architecture": ARCH, **config["pretrained_cfg"], "labels": ["a", "b", "c"]}
    (folder / "config.json").write_text(json.dumps(older))
    assert read_directory(folder).arch == ARCH
    for entry, value in (("std", [0, 0, 0]), ("num_classes", 4), ("labels", ["a"])):
        (folder / "config.json").write_text(json.dumps(older | {entry: value}))
        with pytest.raises(ValueError, match=entry):
            read_directory(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[]",
        b"3",
        b"{}",
        b"\x89PNG",
        '{"architecture": "mobilevitv3_xxs"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"architecture": "mobilevitv3_xxs"}',
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_configuration(content, folder):
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is not the configuration of a timm model: expected JSON"):
        read_config(folder)


def test_where_the_weights_are(saved, folder):
    _, model = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No suitable checkpoints in .*: expected model\.safetensors"):
        read_directory(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match="an index of shards"):
        read_directory(folder)
    # In another layout, whose stem is BGR.
    torch.save(export_state_dict(model.state_dict(), ARCH, "cvnets"), folder / "pytorch_model.bin")
    stem = read_directory(folder).state_dict["stem.conv.weight"]
    assert torch.equal(stem, model.stem.conv.weight)
    (folder / "pytorch_model.bin").rename(folder / "one.pth")
    (folder / "model.safetensors.index.json").unlink()
    assert read_directory(folder).arch == ARCH
    (folder / "other.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several weights, one\.pth and other\.pth"):
        read_directory(folder)


class TestTimm:
    """``local-dir:`` keeps timm's contract: other classes get a new classifier, a contradiction is no silent one."""

    def test_own_and_other_classes(self, saved, folder, caplog):
        _, model = saved
        own = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert torch.equal(own.head.fc.weight, model.head.fc.weight)
        with caplog.at_level(logging.WARNING):
            other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
        assert not caplog.records
        assert other.head.fc.weight.shape == (7, 512)
        assert torch.equal(other.final_conv.conv.weight, model.final_conv.conv.weight)

    def test_a_wrong_number_at_the_top_does_not_cost_the_classifier(self, saved, folder):
        _, model = saved
        change(folder, "num_classes", 5)
        own = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert torch.equal(own.head.fc.weight, model.head.fc.weight)

    def test_a_wrong_number_in_the_arguments_is_told(self, folder, caplog):
        change(folder, "model_args.num_classes", 5)
        timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert "the weights have 3 classes, but the model_args beside them say 5" in caplog.text

    def test_wrong_numbers_everywhere_are_an_error(self, folder):
        change(folder, "model_args.num_classes", 5)
        change(folder, "num_classes", 5)
        with pytest.raises(RuntimeError, match=r"size mismatch for head\.fc\.weight"):
            timm.create_model(f"local-dir:{folder}", pretrained=True)
