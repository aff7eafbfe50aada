"""Pretrained weights through timm's own doors: any recognised file, any number of classes and channels."""

import logging

import pytest
import timm
import torch
from kinds import NAMES
from random_weights import randomise
from safetensors.torch import save_file

from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.loading import from_the_file_only
from timm_mobilevit.weights.pretrained import WEIGHTS

SMALL = min((name for name in NAMES if VARIANTS[name].block == "v1"), key=lambda name: VARIANTS[name].widths)
NAME = "mobilevitv1_s"  # has two rows whose files differ in channel order


@pytest.fixture
def trained(tmp_path):
    """A model with random weights, and its checkpoint in the naming of CVNets."""
    model = randomise(timm.create_model(SMALL, num_classes=10))
    torch.save(export_state_dict(model.state_dict(), SMALL, "cvnets"), tmp_path / "theirs.pt")
    return model, str(tmp_path / "theirs.pt")


def from_file(name, file, **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}, **kwargs).eval()


def test_classes_of_the_file_are_kept(trained):
    model, file = trained
    x = torch.rand(2, 3, 64, 64)
    loaded = from_file(SMALL, file, num_classes=10)
    torch.testing.assert_close(loaded(x), model(x))
    assert "state_dict" not in loaded.pretrained_cfg  # it would stay in memory twice


def test_other_classes_get_a_new_classifier(trained, caplog):
    model, file = trained
    with caplog.at_level(logging.WARNING):
        other = from_file(SMALL, file, num_classes=3)
    assert not caplog.records
    x = torch.rand(2, 3, 64, 64)
    assert other(x).shape == (2, 3)
    torch.testing.assert_close(other.forward_features(x), model.forward_features(x))
    torch.testing.assert_close(
        from_file(SMALL, file, num_classes=0)(x), model.forward_head(model.forward_features(x), pre_logits=True)
    )


def test_a_new_classifier_is_asked_for(trained):
    """As with timm's own models: without a number of classes, those of the file are meant, and must be the model's."""
    _, file = trained
    with pytest.raises(ValueError, match=r"has 10 classes, and the model would have 1000: pass num_classes=10"):
        from_file(SMALL, file)
    assert from_file(SMALL, file, num_classes=1000).head.fc.out_features == 1000


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"in_chans": 1, "num_classes": 10}])
def test_what_is_to_answer_comes_from_the_file_only(options, trained, tmp_path):
    model, file = trained
    with from_the_file_only():
        assert torch.equal(from_file(SMALL, file, num_classes=10).head.fc.weight, model.head.fc.weight)
        with pytest.raises(ValueError, match=r"classes|head\.fc\.weight|stem\.conv\.weight"):
            from_file(SMALL, file, **options)
        part = {key: value for key, value in model.state_dict().items() if not key.startswith(("head", "final"))}
        torch.save(part, tmp_path / "part.pt")
        with pytest.raises(ValueError, match=r"not complete: final_conv.conv.weight, .* would stay random"):
            from_file(SMALL, str(tmp_path / "part.pt"))
    assert from_file(SMALL, str(tmp_path / "part.pt"))


@pytest.mark.parametrize("feature_cls", ["list", "dict", "getter"])
def test_state_dicts_of_features_only_models(feature_cls, tmp_path, caplog):
    options = {"features_only": True, "out_indices": (1, 3), "feature_cls": feature_cls}
    trained = timm.create_model(SMALL, **options).eval()
    torch.save({f"net.{key}": value for key, value in trained.state_dict().items()}, tmp_path / "features.pt")
    x = torch.rand(1, 3, 64, 64)
    expected = trained(x)
    loaded = from_file(SMALL, str(tmp_path / "features.pt"), **options)(x)
    assert not isinstance(expected, dict) or list(expected) == list(loaded)
    torch.testing.assert_close(loaded, expected)
    whole = from_file(SMALL, str(tmp_path / "features.pt"))
    torch.testing.assert_close(
        whole.forward_intermediates(x, indices=[3], intermediates_only=True)[0],
        list(expected.values() if isinstance(expected, dict) else expected)[-1],
    )
    assert "from stages.4.0.conv1_1x1.conv on, the model stays as it was initialised" in caplog.text


@pytest.mark.parametrize("key", ["prefix", "entry"])
def test_the_overlay_chooses_between_models(key, tmp_path):
    models = {name: timm.create_model(SMALL, num_classes=2) for name in ("student", "teacher")}
    weights = {name: model.state_dict() for name, model in models.items()}
    if key == "prefix":
        weights = {f"{name}.{k}": value for name, rows in weights.items() for k, value in rows.items()}
    torch.save(weights, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=f"student.* and .*teacher.*{key}="):
        from_file(SMALL, str(tmp_path / "two.pt"), num_classes=2)
    overlay = {"file": str(tmp_path / "two.pt"), key: "teacher"}
    loaded = timm.create_model(SMALL, pretrained=True, num_classes=2, pretrained_cfg_overlay=overlay)
    assert torch.equal(loaded.head.fc.weight, models["teacher"].head.fc.weight)


@pytest.mark.parametrize("feature_cls", ["list", "dict", "getter"])
def test_features_only(trained, feature_cls):
    model, file = trained
    features = from_file(SMALL, file, features_only=True, out_indices=(1, 4), feature_cls=feature_cls)
    x = torch.rand(2, 3, 64, 64)
    maps = features(x)
    maps = list(maps.values()) if feature_cls == "dict" else maps
    torch.testing.assert_close(maps, model.forward_intermediates(x, indices=[1, 4], intermediates_only=True))


def test_input_channels_are_adapted(trained):
    model, file = trained
    grey = from_file(SMALL, file, num_classes=10, in_chans=1)
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(grey(x), model(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (4, 4), (4, 2)])
def test_channels_of_a_file_that_has_not_three(channels, wanted, tmp_path):
    model = timm.create_model(SMALL, in_chans=channels, num_classes=4)
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    loaded = from_file(SMALL, str(tmp_path / "other.safetensors"), in_chans=wanted, num_classes=4)
    # As timm does it: the first ones, with weights for inputs that are fewer.
    expected = model.stem.conv.weight[:, :wanted] * channels / wanted
    torch.testing.assert_close(loaded.stem.conv.weight, expected)


def test_file_without_classifier(trained, tmp_path):
    model, _ = trained
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    torch.save(weights, tmp_path / "backbone.pt")
    loaded = from_file(SMALL, str(tmp_path / "backbone.pt"))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.forward_features(x), model.forward_features(x))


def test_state_dict_and_local_directory(trained, tmp_path):
    model, file = trained
    x = torch.rand(1, 3, 64, 64)
    loaded = timm.create_model(
        SMALL,
        pretrained=True,
        num_classes=10,
        pretrained_cfg_overlay={"state_dict": torch.load(file), "num_classes": 10},
    ).eval()
    torch.testing.assert_close(loaded(x), model(x))
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    torch.testing.assert_close(
        timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()(x), model(x)
    )


def test_training_checkpoint_through_checkpoint_path(trained, tmp_path):
    model, _ = trained
    torch.save({"state_dict": model.state_dict(), "epoch": 1, "arch": SMALL}, tmp_path / "last.pth.tar")
    x = torch.rand(1, 3, 64, 64)
    loaded = timm.create_model(SMALL, num_classes=10, checkpoint_path=str(tmp_path / "last.pth.tar")).eval()
    torch.testing.assert_close(loaded(x), model(x))


def test_the_row_names_the_channel_order(tmp_path):
    model = timm.create_model(NAME, num_classes=10)
    stem = model.stem.conv.weight
    torch.save(export_state_dict(model.state_dict(), NAME, "cvnets", channel_order="rgb"), tmp_path / "file.pt")
    for row, expected in (("cvnets_in1k", stem.flip(1)), ("cvnets_rangeaugment_in1k", stem)):
        loaded = from_file(f"{NAME}.{row}", str(tmp_path / "file.pt"), num_classes=10)
        assert torch.equal(loaded.stem.conv.weight, expected)
        overlay = {"state_dict": torch.load(tmp_path / "file.pt"), "num_classes": 10}
        read = timm.create_model(f"{NAME}.{row}", pretrained=True, num_classes=10, pretrained_cfg_overlay=overlay)
        assert torch.equal(read.stem.conv.weight, expected)
    save_file(model.state_dict(), tmp_path / "ours.safetensors")  # timm's layout is RGB whatever the row says
    assert torch.equal(from_file(NAME, str(tmp_path / "ours.safetensors"), num_classes=10).stem.conv.weight, stem)


def test_bad_files_are_named(trained, tmp_path):
    _, file = trained
    with pytest.raises(FileNotFoundError, match="no checkpoint file at"):
        from_file(SMALL, str(tmp_path / "nothing.pt"))
    with pytest.raises(ValueError, match=rf"cannot load {file}: this is no cvnets checkpoint of {NAME}"):
        from_file(NAME, file)


def test_a_row_that_only_we_can_download_becomes_a_file(monkeypatch, tmp_path):
    name = next(name for name in WEIGHTS if WEIGHTS[name].folder)
    arch = name.partition(".")[0]
    model = timm.create_model(arch).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def fetch_weights(row, cache_dir=None):
        asked.append((row, cache_dir))
        return tmp_path / "model.safetensors"

    monkeypatch.setattr("timm_mobilevit.weights.fetch.fetch_weights", fetch_weights)
    loaded = timm.create_model(name, pretrained=True, cache_dir=tmp_path)
    assert asked == [(name, tmp_path)]
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)
    assert timm.create_model(arch, pretrained=False)
    assert len(asked) == 1


def test_a_choice_in_the_overlay_goes_with_a_file(trained):
    _, file = trained
    overlay = {"file": file, "prefix": "student", "entry": "model"}
    assert timm.create_model(SMALL, num_classes=10, pretrained_cfg_overlay=overlay).num_classes == 10  # not pretrained
    with pytest.raises(ValueError, match="entry in pretrained_cfg_overlay choose in a file"):
        timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay={"entry": "model"})
