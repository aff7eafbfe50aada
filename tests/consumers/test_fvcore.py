"""Multiply-accumulates, counted without fused attention, which the tool does not know."""

import timm
import torch
from fvcore.nn import FlopCountAnalysis
from timm.layers import set_fused_attn

from benchmarks.complexity import count


def test_multiply_accumulates(name):
    """Convolutions and matrix products: as many as benchmarks.complexity says."""
    set_fused_attn(False)
    try:
        model = timm.create_model(name).eval()
    finally:
        set_fused_attn(True)
    operators = FlopCountAnalysis(model, torch.rand(1, 3, 256, 256)).unsupported_ops_warnings(False).by_operator()
    assert sum(operators[kind] for kind in ("conv", "linear", "matmul")) == count(name)[1]
