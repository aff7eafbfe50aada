"""Conversion between layouts: bit-exact round trips, and equal outputs with the models the layouts belong to."""

import pytest
import timm
import torch
from golden_data import reference_weights
from peers import V1, V2
from random_weights import randomise

from timm_mobilevit.convert import convert_state_dict, export_state_dict
from timm_mobilevit.convert.matching import fitting_architectures, the_architecture
from timm_mobilevit.convert.subtree import find_subtree
from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")
KINDS = {VARIANTS[name].block: name for name in NAMES}  # one model of each
SOURCES = {
    "cvnets": [*KINDS.values()], "timm": [*KINDS.values()], "transformers": [V1[0], V2[0]], "mmpretrain": V1[:1]
}  # fmt: skip


def builtin_name(name):
    """timm's name for the same network: mobilevitv2_0_5 is mobilevitv2_050."""
    generation, size = name.split("_", 1)
    return (
        f"mobilevit_{size}"
        if generation == "mobilevitv1"
        else f"mobilevitv2_{float(size.replace('_', '.')):.2f}".replace(".", "")
    )


def assert_same(a, b):
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(("source", "name"), [(source, name) for source in SOURCES for name in SOURCES[source]])
def test_round_trip(source, name):
    ours = randomise(timm.create_model(name, num_classes=3)).state_dict()
    theirs = export_state_dict(ours, name, source)
    assert find_subtree(theirs).source == source
    assert_same(convert_state_dict(theirs, name), ours)
    assert_same(convert_state_dict(theirs, name, source), ours)


@pytest.mark.parametrize("name", NAMES)
def test_names_equal_the_recorded_ones(name):
    recorded = reference_weights(name)
    ours = convert_state_dict(recorded, name)
    theirs = export_state_dict(ours, name, "cvnets")
    assert set(theirs) == set(recorded)
    assert all(torch.equal(theirs[key], recorded[key]) for key in recorded)


@pytest.mark.parametrize("name", V1 + V2)
def test_equals_timms_own_model(name):
    ours = randomise(timm.create_model(name, num_classes=9))
    theirs = timm.create_model(builtin_name(name), num_classes=9).eval()
    theirs.load_state_dict(ours.state_dict())
    for size in ((64, 64), (71, 96), (32, 32), (20, 28), (8, 40), (1, 1)):
        x = torch.rand(2, 3, *size)
        with torch.inference_mode():
            expected = theirs(x)
            torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4 * expected.std().item())
            expected = theirs.forward_intermediates(x, indices=[0, 1, 2, 3], intermediates_only=True)
            for a, b in zip(ours.forward_intermediates(x, intermediates_only=True), expected, strict=False):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.std().item())


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", V2[:1])
def test_dilated_v2_equals_timms_own_model(name, output_stride):
    ours = randomise(timm.create_model(name, output_stride=output_stride))
    theirs = timm.create_model(builtin_name(name), output_stride=output_stride).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, 96, 128)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def test_flipping_the_stem_is_flipping_the_image():
    name = V1[0]
    bgr_file = export_state_dict(randomise(timm.create_model(name)).state_dict(), name, "cvnets", channel_order="rgb")
    as_rgb, as_bgr = timm.create_model(name).eval(), timm.create_model(name).eval()
    as_rgb.load_state_dict(convert_state_dict(bgr_file, name, channel_order="rgb"))
    as_bgr.load_state_dict(convert_state_dict(bgr_file, name, channel_order="bgr"))
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(as_bgr(x), as_rgb(x.flip(1)))


def test_input_is_left_alone_and_tensors_are_not_copied():
    name = V1[0]
    theirs = export_state_dict(timm.create_model(name).state_dict(), name, "cvnets")
    before = {key: value.clone() for key, value in theirs.items()}
    ours = convert_state_dict(theirs, name)
    assert_same(theirs, before)
    assert ours["head.fc.weight"] is theirs["classifier.fc.weight"]


def test_what_may_be_missing_or_over():
    name = V1[0]
    theirs = export_state_dict(timm.create_model(name).state_dict(), name, "cvnets")
    complete = convert_state_dict(theirs, name)
    counters = [key for key in theirs if key.endswith("num_batches_tracked")]
    assert_same(convert_state_dict({k: v for k, v in theirs.items() if k not in counters}, name), complete)
    assert_same(convert_state_dict(theirs | {"neural_augmentor.brightness._low": torch.zeros(1)}, name), complete)
    backbone = convert_state_dict({k: v for k, v in theirs.items() if not k.startswith("classifier")}, name)
    assert set(complete) - set(backbone) == {"head.fc.weight", "head.fc.bias"}


PREFIXES = ("backbone.", "model.", "net.", "encoder.", "encoder.model.", "timm_model.", "student.", "a.b.c.")


@pytest.mark.parametrize(
    ("source", "name"), [("cvnets", V2[0]), ("transformers", V1[0]), ("mmpretrain", V1[0]), ("timm", V1[0])]
)
def test_any_prefix(source, name, caplog):
    ours = randomise(timm.create_model(name, num_classes=3)).state_dict()
    theirs = export_state_dict(ours, name, source)
    other = {"neck.conv.weight": torch.zeros(2), "bbox_head.stem.weight": torch.zeros(2)}
    for prefix in PREFIXES:
        caplog.clear()
        wrapped = {f"{prefix}{key}": tensor for key, tensor in theirs.items()} | other
        assert_same(convert_state_dict(wrapped, name), ours)
        (message,) = caplog.messages
        assert f"below {prefix!r} is a MobileViT; left out are the 2 tensors beside it: neck" in message
        two = wrapped | {f"teacher.{key}": tensor + 1 for key, tensor in theirs.items()}
        with pytest.raises(
            ValueError, match=f"several MobileViTs, below '{prefix}' and 'teacher.'; choose one with pref"
        ):
            convert_state_dict(two, name)
        assert_same(convert_state_dict(two, name, prefix=prefix.rstrip(".")), ours)
    with pytest.raises(ValueError, match=r"has these parameter names below 'nothing\.'"):
        convert_state_dict(wrapped, name, prefix="nothing")


def test_the_one_architecture_that_fits_is_found():
    for name in (V1[0], V2[1], "mobilevitv3_s", "mobilevitv3_s_l2", "mobilevitv3_0_5"):
        ours = timm.create_model(name, num_classes=3, device="meta").state_dict()
        assert fitting_architectures(find_subtree(ours)) == [name]
    short = {key: tensor for key, tensor in ours.items() if key.startswith(("stem.", "stages.0."))}
    assert len(fitting_architectures(find_subtree(short))) > 1


def test_the_architecture_of_a_model_without_its_end_is_no_guess():
    """Up to stage 3, MobileViTv3-XXS and its low-latency variant are the same."""
    weights = reference_weights("mobilevitv3_xxs")
    cut = {
        key: tensor for key, tensor in weights.items() if not key.startswith(("layer_4", "layer_5", "conv_1x1", "cl"))
    }
    subtree = find_subtree(cut)
    assert fitting_architectures(subtree) == ["mobilevitv3_xxs", "mobilevitv3_xxs_l2"]
    with pytest.raises(
        ValueError, match="it could be any of mobilevitv3_xxs, mobilevitv3_xxs_l2: name one with --arch"
    ):
        the_architecture(subtree)


def test_wrong_keys_are_named():
    name = V1[0]
    theirs = export_state_dict(timm.create_model(name).state_dict(), name, "cvnets")
    with pytest.raises(ValueError, match=r"unknown or wrong shape left\.over\.weight \[2\]"):
        convert_state_dict(theirs | {"left.over.weight": torch.zeros(2)}, name)
    del theirs["layer_1.0.block.exp_1x1.block.conv.weight"]
    with pytest.raises(ValueError, match=r"missing stages\.0\.0\.conv1_1x1\.conv\.weight"):
        convert_state_dict(theirs, name)
    renamed = export_state_dict(timm.create_model(name).state_dict(), name, "cvnets")
    renamed["classifier.fc.wait"] = renamed.pop("classifier.fc.weight")
    with pytest.raises(ValueError, match=r"missing head\.fc\.weight; unknown or wrong shape classifier\.fc\.wait"):
        convert_state_dict(renamed, name)


@pytest.mark.parametrize("source", ["cvnets", "transformers", "timm"])
def test_another_architecture_is_recognised(source):
    theirs = export_state_dict(timm.create_model(V2[1]).state_dict(), V2[1], source)
    with pytest.raises(ValueError, match=rf"this is no {source} checkpoint of {V2[0]}: .*It fits {V2[1]}$"):
        convert_state_dict(theirs, V2[0])
    scalars = {key: torch.zeros(()) for key in theirs}
    with pytest.raises(ValueError, match="wrong shape"):
        convert_state_dict(scalars, V2[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, V1[0]), "no layout of cvnets, transformers, mmpretrain, timm .* none at all"),
        (({"a.weight": torch.zeros(1)}, V1[0]), "these parameter names: a.weight"),
        (({}, "mobilevitv9_s"), "unknown architecture 'mobilevitv9_s'; did you mean mobilevitv3_s"),
        (({}, "resnet"), "unknown architecture 'resnet'; there are: mobilevitv1_xxs"),
        (({}, V1[0], "keras"), "the source must be one of .* or auto, got 'keras'"),
        (({}, "mobilevitv3_s", "mmpretrain"), "mmpretrain has no such architecture"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict(*arguments)


def test_bad_channel_orders():
    ours = timm.create_model(V1[0], in_chans=1).state_dict()
    with pytest.raises(ValueError, match="must be 'rgb', 'bgr' or None, got 'gbr'"):
        convert_state_dict(ours, V1[0], channel_order="gbr")
    with pytest.raises(ValueError, match="three input channels can be BGR, this one has 1"):
        convert_state_dict(ours, V1[0], channel_order="bgr")
