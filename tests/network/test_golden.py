"""Our networks against numbers recorded from the reference implementations, stage by stage."""

import pytest
import timm
import torch
from golden_data import CLASSIFIERS, DILATED, error, load, make_images, make_weights, reference_weights

from benchmarks.complexity import count
from timm_mobilevit.convert import convert_state_dict, export_state_dict
from timm_mobilevit.variants import VARIANTS

TOLERANCE = 1e-4  # of the tensor's standard deviation; float32 itself moves logits by up to 1.1e-5


def build(arch, **kwargs):
    """The model with the recorded weights; the recorded images went in without a flip, so the stem stays as it is."""
    model = timm.create_model(arch, **kwargs).eval()
    model.load_state_dict(convert_state_dict(reference_weights(arch), arch, channel_order="rgb"))
    return model


def test_every_variant_is_recorded():
    assert (
        {load(name)["arch"] for name in CLASSIFIERS} == set(VARIANTS) == set(timm.list_models(module="mobilevit_zoo"))
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_equals_the_reference(name):
    golden = load(name)
    model = build(golden["arch"])
    assert count(golden["arch"], *golden["input_shape"][2:]) == (golden["params"], golden["macs"])
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    with torch.inference_mode():
        features, stages = model.forward_intermediates(make_images(golden["input_shape"]))
        logits = model.forward_head(features)
    for i, stage in enumerate(stages):
        assert error(stage, golden["features"][f"layer_{i + 1}"]) < TOLERANCE, f"stage {i + 1}"
    recorded = golden["logits"]
    for i, image in enumerate(logits.double()):
        first = torch.tensor(recorded["first8"][i], dtype=torch.float64)
        assert (image[:8] - first).abs().max() / recorded["std"][i] < TOLERANCE
        assert image.mean().item() == pytest.approx(recorded["mean"][i], abs=TOLERANCE * recorded["std"][i])
        assert image.std(correction=0).item() == pytest.approx(recorded["std"][i], rel=TOLERANCE)
        assert image.argmax().item() == recorded["argmax"][i]


@pytest.mark.parametrize("name", ["mobilevitv2_1_0_256x256", "mobilevitv3_xxs_256x256"])
def test_a_wrong_epsilon_would_be_seen(name):
    golden = load(name)
    model = build(golden["arch"])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    with torch.inference_mode():
        last = model.forward_intermediates(make_images(golden["input_shape"]), intermediates_only=True)[-1]
    assert error(last, golden["features"]["layer_5"]) > TOLERANCE


@pytest.mark.parametrize("arch", VARIANTS)
def test_epsilons(arch):
    norms = (torch.nn.BatchNorm2d, torch.nn.LayerNorm, torch.nn.GroupNorm)
    model = timm.create_model(arch, device="meta")
    assert {module.eps for module in model.modules() if isinstance(module, norms)} == {1e-5}


@pytest.mark.parametrize("name", DILATED)
def test_dilated_stages_equal_the_reference(name):
    golden = load(name)
    arch = golden["arch"]
    model = timm.create_model(arch, output_stride=golden["output_stride"]).eval()
    # The segmenters that were recorded have neither the 1×1 expansion nor the classifier: those stay as they are.
    weights = export_state_dict(model.state_dict(), arch, "cvnets", channel_order="rgb")
    weights |= {key.removeprefix("encoder."): value for key, value in make_weights(golden["state_dict"]).items()}
    model.load_state_dict(convert_state_dict(weights, arch, channel_order="rgb"))
    with torch.inference_mode():
        stages = model.forward_intermediates(make_images(golden["input_shape"]), indices=2, intermediates_only=True)
    for stage, layer in zip(stages, ("layer_4", "layer_5"), strict=True):
        assert error(stage, golden["features"][layer]) < TOLERANCE, layer
