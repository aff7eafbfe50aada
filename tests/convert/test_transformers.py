"""Equal outputs with the models of transformers, in both directions."""

import pytest
import timm
import torch
from peers import V1, V2
from random_weights import randomise

from timm_mobilevit.convert import convert_state_dict, export_state_dict
from timm_mobilevit.variants import VARIANTS

pytest.importorskip("transformers")

from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2Model,
)


def transformers_config(name, **kwargs):
    variant = VARIANTS[name]
    if variant.separable:
        return MobileViTV2Config(width_multiplier=variant.stem_width / 32, **kwargs)
    return MobileViTConfig(
        hidden_sizes=list(variant.transformer_widths),
        neck_hidden_sizes=[variant.stem_width, *variant.widths, variant.final_width],
        expand_ratio=float(variant.expand_ratio),
        **kwargs,
    )


@pytest.mark.parametrize("name", V1 + V2)
def test_equals_transformers(name, tmp_path):
    """Weights of transformers expect what its processors give: BGR. That is what v1 was trained on; v2 was not."""
    generation = MobileViTV2ForImageClassification if name in V2 else MobileViTForImageClassification
    theirs = randomise(generation(transformers_config(name, num_labels=7)))
    theirs.save_pretrained(tmp_path)
    ours = timm.create_model(
        name, pretrained=True, num_classes=7, pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")}
    ).eval()
    # transformers' v2 brings enlarged maps back to size, the reference does not: compare where the patch divides.
    x = torch.rand(2, 3, 64, 128 if name in V2 else 96)
    with torch.inference_mode():
        expected = theirs(x.flip(1) if name in V1 else x).logits
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4 * expected.std().item())
    exported = export_state_dict(ours.state_dict(), name, "transformers")
    assert not theirs.load_state_dict(exported).missing_keys


@pytest.mark.parametrize(("name", "model"), [(V1[0], MobileViTModel), (V2[0], MobileViTV2Model)])
def test_backbone_of_transformers_has_no_prefix(name, model):
    theirs = model(transformers_config(name), expand_output=True) if name in V1 else model(transformers_config(name))
    ours = convert_state_dict(theirs.state_dict(), name)
    assert not any(key.startswith("head.") for key in ours)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", V1)
def test_dilated_v1_equals_transformers(name, output_stride):
    theirs = randomise(
        MobileViTForSemanticSegmentation(transformers_config(name, output_stride=output_stride)).mobilevit
    )
    ours = timm.create_model(name, output_stride=output_stride).eval()
    weights = export_state_dict(ours.state_dict(), name, "transformers", channel_order="rgb")
    weights |= {f"mobilevit.{key}": value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(convert_state_dict(weights, name, channel_order="rgb"))
    x = torch.rand(1, 3, 96, 128)
    with torch.inference_mode():
        # transformers takes the first hidden state after the stem's stage; ours are the last five of them
        expected = theirs(x, output_hidden_states=True).hidden_states[-5:]
        for a, b in zip(ours.forward_intermediates(x, intermediates_only=True), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.std().item())
