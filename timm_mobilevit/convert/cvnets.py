"""Parameter names of CVNets (v1 and v2), CoreNet (the same) and MobileViTv3's reference (built on CVNets)."""

import re

from ..variants import Variant

# Told by the name of its first convolution. CoreNet trains some models together with an augmentation network, whose
# parameters are no part of the model.
SIGNATURE = re.compile(r"conv_1\.block\.conv\.weight")
IGNORED = re.compile(r"neural_augmentor\.")


def rules(variant: Variant) -> list[tuple[str, str]]:
    """Return the substitutions, applied in this order, that turn our names into theirs."""
    if variant.separable:
        local = [(r"\.conv_kxk\.", ".local_rep.0.block."), (r"\.conv_1x1\.", ".local_rep.1.block.conv.")]
        layer = [
            (r"\.norm1\.", ".pre_norm_attn.0."),
            (r"\.attn\.(qkv_proj|out_proj)\.", r".pre_norm_attn.1.\1.block.conv."),
            (r"\.norm2\.", ".pre_norm_ffn.0."),
            (r"\.mlp\.fc1\.", ".pre_norm_ffn.1.block.conv."),
            (r"\.mlp\.fc2\.", ".pre_norm_ffn.3.block.conv."),
        ]
    else:
        local = [
            (r"\.conv_kxk\.", ".local_rep.conv_3x3.block."),
            (r"\.conv_1x1\.", ".local_rep.conv_1x1.block.conv."),
        ]
        layer = [
            (r"\.norm1\.", ".pre_norm_mha.0."),
            (r"\.attn\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
            (r"\.attn\.proj\.", ".pre_norm_mha.1.out_proj."),
            (r"\.norm2\.", ".pre_norm_ffn.0."),
            (r"\.mlp\.fc1\.", ".pre_norm_ffn.1."),
            (r"\.mlp\.fc2\.", ".pre_norm_ffn.4."),
        ]
    return [
        *last_norms(variant),
        *local,
        *layer,
        (r"\.transformer\.", ".global_rep."),
        (r"\.conv1_1x1\.", ".block.exp_1x1.block."),
        (r"\.conv2_kxk\.", ".block.conv_3x3.block."),
        (r"\.conv3_1x1\.", ".block.red_1x1.block."),
        (r"\.conv_proj\.", ".conv_proj.block."),
        (r"\.conv_fusion\.", ".fusion.block."),
        (r"\.bn\.", ".norm."),
        (r"^stem\.", "conv_1.block."),
        *((rf"^stages\.{stage}\.", f"layer_{stage + 1}.") for stage in range(5)),
        (r"^final_conv\.", "conv_1x1_exp.block."),
        (r"^head\.fc\.", "classifier.1." if variant.separable else "classifier.fc."),
    ]


def last_norms(variant: Variant) -> list[tuple[str, str]]:
    """Return the names of the norms after the last transformer layers, each of which counts as one more layer."""
    return [
        (rf"^stages\.{stage}\.1\.norm\.", f"stages.{stage}.1.global_rep.{depth}.")
        for stage, depth in zip((2, 3, 4), variant.transformer_depths, strict=True)
    ]
