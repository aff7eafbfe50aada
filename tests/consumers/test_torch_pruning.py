"""Structural pruning, attention included, by the tool's recipe for transformers."""

import torch
import torch_pruning as tp


def test_pruner(model):
    """Half of the channels and of the width of each head; the smaller network learns."""
    images = torch.rand(2, 3, 64, 64)
    attention = [module for module in model.modules() if hasattr(module, "num_heads")]
    separable = [module for module in model.modules() if hasattr(module, "qkv_proj")]
    pruner = tp.pruner.BasePruner(
        model,
        images,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        num_heads={module.qkv: module.num_heads for module in attention},
        ignored_layers=[model.head, *separable],
    )
    macs, parameters = tp.utils.count_ops_and_params(model, images)
    pruner.step()
    for module in attention:
        module.num_heads = pruner.num_heads[module.qkv]
        module.attn_dim = module.qkv.out_features // 3
        module.head_dim = module.attn_dim // module.num_heads
    pruned_macs, pruned_parameters = tp.utils.count_ops_and_params(model, images)
    assert pruned_macs < 0.6 * macs
    assert pruned_parameters < 0.6 * parameters
    model.train()(images).mean().backward()
