"""Parameter names of mmpretrain's image classifier over its MobileViT v1."""

import re

from ..variants import Variant
from .cvnets import last_norms

# Detectors of mmdet over timm's models have this name too: what tells them apart is the first block.
SIGNATURE = re.compile(r"(?:backbone\.)?stem\.conv\.weight")
LANDMARK = "layers.0.0.conv.0.conv.weight"
BODY = re.compile(r"(backbone|stem|layers|conv_1x1_exp|head\.fc)\.")


def rules(variant: Variant) -> list[tuple[str, str]]:
    """Return the substitutions, applied in this order, that turn our names into theirs."""
    return [
        *last_norms(variant),
        (r"\.norm(1|2)\.", r".ln\1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"\.transformer\.", ".global_rep."),
        (r"\.conv1_1x1\.", ".conv.0."),
        (r"\.conv2_kxk\.", ".conv.1."),
        (r"\.conv3_1x1\.", ".conv.2."),
        (r"\.conv_kxk\.", ".local_rep.0."),
        (r"\.conv_1x1\.", ".local_rep.1.conv."),
        (r"^stem\.", "backbone.stem."),
        (r"^stages\.", "backbone.layers."),
        (r"^final_conv\.", "backbone.conv_1x1_exp."),
        (r"^head\.fc\.", "head.fc."),
    ]
