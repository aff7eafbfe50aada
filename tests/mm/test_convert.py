"""Conversion of detection and segmentation checkpoints: orders, errors, and ``transformers`` as a witness."""

import pytest
import timm
import torch
from mm_models import KINDS, SMALL, segmentor, ssd, theirs_of
from random_weights import randomise
from transformers import (
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTV2Config,
    MobileViTV2ForSemanticSegmentation,
)

from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.convert.state_dicts import source_names
from timm_mobilevit.convert.subtree import find_subtree
from timm_mobilevit.mm.convert import convert_state_dict
from timm_mobilevit.variants import VARIANTS


class TestConversion:
    @pytest.mark.detection
    def test_known_channel_orders(self):
        for name in KINDS:
            model = ssd(name, num_classes=3)
            theirs = theirs_of(model, name)
            stem = theirs["encoder.conv_1.block.conv.weight"]
            ours = convert_state_dict(theirs, model)["backbone.stem.conv.weight"]
            assert torch.equal(ours, stem if VARIANTS[name].separable else stem.flip(1))
            ours = convert_state_dict(theirs, model, channel_order="rgb")["backbone.stem.conv.weight"]
            assert torch.equal(ours, stem)

    def test_later_segmentor_of_v1_is_rgb(self):
        model = segmentor(SMALL, "deeplabv3", 4, output_stride=8, rates=(12, 24, 36))
        theirs = theirs_of(model, SMALL)
        assert torch.equal(
            convert_state_dict(theirs, model)["backbone.stem.conv.weight"], theirs["encoder.conv_1.block.conv.weight"]
        )
        without = segmentor(SMALL, "deeplabv3", 4, output_stride=8, rates=(12, 24, 36), auxiliary=False)
        without.load_state_dict(convert_state_dict(theirs, without))  # the auxiliary head is left out
        earlier = {k.replace("seg_head.classifier.", "seg_head.classifier.classifier."): v for k, v in theirs.items()}
        assert torch.equal(
            convert_state_dict(earlier, model)["backbone.stem.conv.weight"],
            theirs["encoder.conv_1.block.conv.weight"].flip(1),
        )

    @pytest.mark.detection
    def test_counters_may_be_missing(self):
        model = ssd(SMALL, num_classes=3)
        theirs = {k: v for k, v in theirs_of(model, SMALL).items() if not k.endswith("num_batches_tracked")}
        model.load_state_dict(convert_state_dict(theirs, model))

    @pytest.mark.detection
    def test_errors_name_the_keys(self):
        model = ssd(SMALL, num_classes=3)
        theirs = theirs_of(model, SMALL)
        with pytest.raises(ValueError, match=r"unknown something\.else"):
            convert_state_dict(theirs | {"something.else": torch.zeros(1)}, model)
        other = ssd(SMALL, num_classes=5)
        with pytest.raises(ValueError, match=r"wrong shape ssd_heads\.0\.loc_cls_layer\.pw_conv\.block\.conv\.weight"):
            convert_state_dict(theirs, other)
        classifier = export_state_dict(timm.create_model(SMALL).state_dict(), SMALL, "cvnets")
        assert find_subtree(classifier).source == "cvnets"
        with pytest.raises(ValueError, match="it has no encoder: a classification checkpoint goes into the backbone"):
            convert_state_dict(classifier, model)


@pytest.mark.parametrize("name", [name for name in KINDS if VARIANTS[name].block in ("v1", "v2")])
def test_deeplabv3_equals_transformers(name):
    """Their head has the reference's form: branches in its order, a 1×1 projection."""
    variant = VARIANTS[name]
    if variant.separable:
        config = MobileViTV2Config(width_multiplier=variant.stem_width / 32, output_stride=16, num_labels=5)
        theirs, prefix = MobileViTV2ForSemanticSegmentation(config).eval(), "mobilevitv2"
    else:
        config = MobileViTConfig(
            hidden_sizes=list(variant.transformer_widths),
            neck_hidden_sizes=[variant.stem_width, *variant.widths, variant.final_width],
            expand_ratio=float(variant.expand_ratio),
            output_stride=16,
            num_labels=5,
        )
        theirs, prefix = MobileViTForSemanticSegmentation(config).eval(), "mobilevit"
    randomise(theirs)
    ours = segmentor(
        name, "deeplabv3", 5, output_stride=16, rates=(6, 12, 18), later=variant.separable, auxiliary=False
    ).eval()

    if variant.separable:  # theirs never dilates the local convolution; the reference does in stage 5
        *_, local = (module for key, module in ours.backbone.named_modules() if key.endswith("conv_kxk.conv"))
        assert local.dilation == local.padding == (2, 2)
        local.dilation = local.padding = (1, 1)

    # Their weights under the names of CVNets, so that our conversion does the rest.
    state = theirs.state_dict()
    reference = {}
    for key in (k.removeprefix("backbone.") for k in ours.state_dict() if k.startswith("backbone.")):
        names = [n if n in state else n.removeprefix(f"{prefix}.") for n in source_names(key, name, "transformers")]
        reference["encoder." + source_names(key, name, "cvnets")[0]] = (
            torch.cat([state[n] for n in names]) if len(names) > 1 else state[names[0]]
        )
    for key, value in state.items():
        if key.startswith("segmentation_head."):
            key = key.replace("segmentation_head.aspp.", "seg_head.aspp.aspp_layer.")
            key = key.replace(".convs.4.conv_1x1.", ".convs.4.aspp_pool.conv_1x1.")
            key = key.replace("segmentation_head.classifier.convolution.", "seg_head.classifier.block.conv.")
            key = key.replace(".convolution.", ".block.conv.").replace(".normalization.", ".block.norm.")
            reference[key] = value
    ours.load_state_dict(convert_state_dict(reference, ours, channel_order="rgb"))
    x = torch.rand(1, 3, 64, 128)
    with torch.inference_mode():
        expected = theirs(x).logits
        torch.testing.assert_close(
            ours.decode_head(ours.extract_feat(x)), expected, rtol=0, atol=1e-4 * expected.std().item()
        )
