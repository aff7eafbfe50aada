"""Parameter names of ``transformers``: MobileViTForImageClassification and MobileViTV2ForImageClassification."""

import re

from ..variants import Variant

SIGNATURE = re.compile(r"(?:mobilevit\.|mobilevitv2\.)?conv_stem\.convolution\.weight")
BODY = re.compile(r"(mobilevit|mobilevitv2|conv_stem|encoder|conv_1x1_exp|classifier)\.")


def rules(variant: Variant) -> list[tuple[str, str]]:
    """Return the substitutions, applied in this order, that turn our names into theirs.

    ``{qkv}`` stands for three tensors, ``query``, ``key`` and ``value``, that are one in ours.
    """
    if variant.separable:
        prefix = "mobilevitv2"
        layer = [
            (r"\.attn\.(qkv_proj|out_proj)\.", r".attention.\1.convolution."),
            (r"\.mlp\.fc(1|2)\.", r".ffn.conv\1.convolution."),
        ]
    else:
        prefix = "mobilevit"
        layer = [
            (r"\.attn\.qkv\.", ".attention.attention.{qkv}."),
            (r"\.attn\.proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        ]
    return [
        *layer,
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.norm\.", ".layernorm."),
        (r"\.transformer\.", ".transformer.layer."),
        (r"\.conv1_1x1\.", ".expand_1x1."),
        (r"\.conv2_kxk\.", ".conv_3x3."),
        (r"\.conv3_1x1\.", ".reduce_1x1."),
        (r"\.conv_1x1\.", ".conv_1x1.convolution."),
        (r"\.conv_proj\.", ".conv_projection."),
        (r"\.conv_fusion\.", ".fusion."),
        (r"\.conv\.", ".convolution."),
        (r"\.bn\.", ".normalization."),
        (r"^stem\.", f"{prefix}.conv_stem."),
        (r"^stages\.([01])\.(\d)\.", rf"{prefix}.encoder.layer.\1.layer.\2."),
        (r"^stages\.([234])\.0\.", rf"{prefix}.encoder.layer.\1.downsampling_layer."),
        (r"^stages\.([234])\.1\.", rf"{prefix}.encoder.layer.\1."),
        (r"^final_conv\.", f"{prefix}.conv_1x1_exp."),
        (r"^head\.fc\.", "classifier."),
    ]
