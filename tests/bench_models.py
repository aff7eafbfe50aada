"""The smallest network of each generation, for the tests of the benchmarks."""

from kinds import KINDS

from timm_mobilevit.variants import VARIANTS

V1, V2, V3 = (next(name for name in KINDS if VARIANTS[name].block == block) for block in ("v1", "v2", "v3_separable"))
