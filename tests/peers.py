"""What comparisons with other implementations of v1 and v2 share."""

import timm

from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")
V1, V2 = (
    sorted((name for name in NAMES if VARIANTS[name].block == kind), key=lambda name: VARIANTS[name].widths)
    for kind in ("v1", "v2")
)
