"""The smallest network of each generation, and whether there are peers: for the tests of the benchmarks."""

import importlib.util

import timm

from benchmarks import complexity
from timm_mobilevit.variants import VARIANTS

NAMES = timm.list_models(module="mobilevit_zoo")


def smallest(block):
    return min(
        (name for name in NAMES if VARIANTS[name].block == block), key=lambda name: complexity.count(name, 64, 64)
    )


V1, V2, V3 = smallest("v1"), smallest("v2"), smallest("v3_separable")
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None  # not beside the oldest versions
