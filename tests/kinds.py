"""The models that tests run over, out of timm's registry."""

import pytest
import timm

import timm_mobilevit  # noqa: F401  registers the models
from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")
# The smallest variant of each kind of block: enough for a property of all models.
KINDS = [
    min((name for name in NAMES if VARIANTS[name].block == kind), key=lambda name: VARIANTS[name].widths)
    for kind in sorted({variant.block for variant in VARIANTS.values()})
]
# Every model, those that are not in KINDS in `make test-long` only.
EVERY = [pytest.param(name, marks=() if name in KINDS else pytest.mark.long) for name in NAMES]
