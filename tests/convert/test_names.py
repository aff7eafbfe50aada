"""What each published layout calls the parameters, and the order of its input channels: literal facts, both ways.

Read from CVNets 84d992f (CoreNet has the same names), MobileViTv3's reference over it, transformers 5.24 and
mmpretrain 1.2.0. A round trip through our own table would not notice two names in each other's place.
"""

import pytest
import timm
import torch
from random_weights import randomise

from timm_mobilevit.convert import convert_state_dict, export_state_dict

# Each line has our module and theirs, whose tensors have the same names. This is common to all of CVNets:
_CVNETS = """
stem.conv                  conv_1.block.conv
stem.bn                    conv_1.block.norm
stages.0.0.conv1_1x1.conv  layer_1.0.block.exp_1x1.block.conv
stages.0.0.conv1_1x1.bn    layer_1.0.block.exp_1x1.block.norm
stages.0.0.conv2_kxk.conv  layer_1.0.block.conv_3x3.block.conv
stages.0.0.conv2_kxk.bn    layer_1.0.block.conv_3x3.block.norm
stages.0.0.conv3_1x1.conv  layer_1.0.block.red_1x1.block.conv
stages.0.0.conv3_1x1.bn    layer_1.0.block.red_1x1.block.norm
stages.1.1.conv3_1x1.bn    layer_2.1.block.red_1x1.block.norm
stages.2.0.conv2_kxk.conv  layer_3.0.block.conv_3x3.block.conv
stages.2.1.norm            layer_3.1.global_rep.2
stages.3.1.norm            layer_4.1.global_rep.4
stages.4.1.norm            layer_5.1.global_rep.3
stages.4.1.conv_proj.conv  layer_5.1.conv_proj.block.conv
stages.4.1.conv_proj.bn    layer_5.1.conv_proj.block.norm
"""
_CVNETS_REST = (  # of v1 and v3-S, -XS, -XXS; of v2 and v3-1.0, -0.75, -0.5
    """
stages.2.1.conv_kxk.conv             layer_3.1.local_rep.conv_3x3.block.conv
stages.2.1.conv_kxk.bn               layer_3.1.local_rep.conv_3x3.block.norm
stages.2.1.conv_1x1                  layer_3.1.local_rep.conv_1x1.block.conv
stages.3.1.transformer.2.norm1       layer_4.1.global_rep.2.pre_norm_mha.0
stages.3.1.transformer.2.attn.qkv    layer_4.1.global_rep.2.pre_norm_mha.1.qkv_proj
stages.3.1.transformer.2.attn.proj   layer_4.1.global_rep.2.pre_norm_mha.1.out_proj
stages.3.1.transformer.2.norm2       layer_4.1.global_rep.2.pre_norm_ffn.0
stages.3.1.transformer.2.mlp.fc1     layer_4.1.global_rep.2.pre_norm_ffn.1
stages.3.1.transformer.2.mlp.fc2     layer_4.1.global_rep.2.pre_norm_ffn.4
stages.4.1.conv_fusion.conv          layer_5.1.fusion.block.conv
stages.4.1.conv_fusion.bn            layer_5.1.fusion.block.norm
final_conv.conv                      conv_1x1_exp.block.conv
final_conv.bn                        conv_1x1_exp.block.norm
head.fc                              classifier.fc
""",
    """
stages.2.1.conv_kxk.conv                 layer_3.1.local_rep.0.block.conv
stages.2.1.conv_kxk.bn                   layer_3.1.local_rep.0.block.norm
stages.2.1.conv_1x1                      layer_3.1.local_rep.1.block.conv
stages.3.1.transformer.2.norm1           layer_4.1.global_rep.2.pre_norm_attn.0
stages.3.1.transformer.2.attn.qkv_proj   layer_4.1.global_rep.2.pre_norm_attn.1.qkv_proj.block.conv
stages.3.1.transformer.2.attn.out_proj   layer_4.1.global_rep.2.pre_norm_attn.1.out_proj.block.conv
stages.3.1.transformer.2.norm2           layer_4.1.global_rep.2.pre_norm_ffn.0
stages.3.1.transformer.2.mlp.fc1         layer_4.1.global_rep.2.pre_norm_ffn.1.block.conv
stages.3.1.transformer.2.mlp.fc2         layer_4.1.global_rep.2.pre_norm_ffn.3.block.conv
head.fc                                  classifier.1
""",
)
_TRANSFORMERS = """
stem.conv                  {0}.conv_stem.convolution
stem.bn                    {0}.conv_stem.normalization
stages.0.0.conv1_1x1.conv  {0}.encoder.layer.0.layer.0.expand_1x1.convolution
stages.0.0.conv1_1x1.bn    {0}.encoder.layer.0.layer.0.expand_1x1.normalization
stages.0.0.conv2_kxk.conv  {0}.encoder.layer.0.layer.0.conv_3x3.convolution
stages.0.0.conv3_1x1.conv  {0}.encoder.layer.0.layer.0.reduce_1x1.convolution
stages.1.1.conv3_1x1.bn    {0}.encoder.layer.1.layer.1.reduce_1x1.normalization
stages.2.0.conv2_kxk.conv  {0}.encoder.layer.2.downsampling_layer.conv_3x3.convolution
stages.2.1.conv_kxk.conv   {0}.encoder.layer.2.conv_kxk.convolution
stages.2.1.conv_kxk.bn     {0}.encoder.layer.2.conv_kxk.normalization
stages.2.1.conv_1x1        {0}.encoder.layer.2.conv_1x1.convolution
stages.3.1.transformer.2.norm1  {0}.encoder.layer.3.transformer.layer.2.layernorm_before
stages.3.1.transformer.2.norm2  {0}.encoder.layer.3.transformer.layer.2.layernorm_after
stages.4.1.norm            {0}.encoder.layer.4.layernorm
stages.4.1.conv_proj.conv  {0}.encoder.layer.4.conv_projection.convolution
stages.4.1.conv_proj.bn    {0}.encoder.layer.4.conv_projection.normalization
head.fc                    classifier
"""
TABLES = {
    ("cvnets", "mobilevitv1_xxs"): _CVNETS + _CVNETS_REST[0],
    ("cvnets", "mobilevitv2_0_5"): _CVNETS + _CVNETS_REST[1],
    ("cvnets", "mobilevitv3_xxs"): _CVNETS + _CVNETS_REST[0],
    ("cvnets", "mobilevitv3_0_5"): _CVNETS + _CVNETS_REST[1],
    ("transformers", "mobilevitv1_xxs"): _TRANSFORMERS.format("mobilevit")
    + """
stages.3.1.transformer.2.attn.qkv[0]  mobilevit.encoder.layer.3.transformer.layer.2.attention.attention.query
stages.3.1.transformer.2.attn.qkv[1]  mobilevit.encoder.layer.3.transformer.layer.2.attention.attention.key
stages.3.1.transformer.2.attn.qkv[2]  mobilevit.encoder.layer.3.transformer.layer.2.attention.attention.value
stages.3.1.transformer.2.attn.proj    mobilevit.encoder.layer.3.transformer.layer.2.attention.output.dense
stages.3.1.transformer.2.mlp.fc1      mobilevit.encoder.layer.3.transformer.layer.2.intermediate.dense
stages.3.1.transformer.2.mlp.fc2      mobilevit.encoder.layer.3.transformer.layer.2.output.dense
stages.4.1.conv_fusion.conv           mobilevit.encoder.layer.4.fusion.convolution
stages.4.1.conv_fusion.bn             mobilevit.encoder.layer.4.fusion.normalization
final_conv.conv                       mobilevit.conv_1x1_exp.convolution
final_conv.bn                         mobilevit.conv_1x1_exp.normalization
""",
    ("transformers", "mobilevitv2_0_5"): _TRANSFORMERS.format("mobilevitv2")
    + """
stages.3.1.transformer.2.attn.qkv_proj  mobilevitv2.encoder.layer.3.transformer.layer.2.attention.qkv_proj.convolution
stages.3.1.transformer.2.attn.out_proj  mobilevitv2.encoder.layer.3.transformer.layer.2.attention.out_proj.convolution
stages.3.1.transformer.2.mlp.fc1        mobilevitv2.encoder.layer.3.transformer.layer.2.ffn.conv1.convolution
stages.3.1.transformer.2.mlp.fc2        mobilevitv2.encoder.layer.3.transformer.layer.2.ffn.conv2.convolution
""",
    ("mmpretrain", "mobilevitv1_xxs"): """
stem.conv                           backbone.stem.conv
stem.bn                             backbone.stem.bn
stages.0.0.conv1_1x1.conv           backbone.layers.0.0.conv.0.conv
stages.0.0.conv1_1x1.bn             backbone.layers.0.0.conv.0.bn
stages.0.0.conv2_kxk.conv           backbone.layers.0.0.conv.1.conv
stages.0.0.conv3_1x1.conv           backbone.layers.0.0.conv.2.conv
stages.1.1.conv3_1x1.bn             backbone.layers.1.1.conv.2.bn
stages.2.0.conv2_kxk.conv           backbone.layers.2.0.conv.1.conv
stages.2.1.conv_kxk.conv            backbone.layers.2.1.local_rep.0.conv
stages.2.1.conv_kxk.bn              backbone.layers.2.1.local_rep.0.bn
stages.2.1.conv_1x1                 backbone.layers.2.1.local_rep.1.conv
stages.2.1.norm                     backbone.layers.2.1.global_rep.2
stages.3.1.norm                     backbone.layers.3.1.global_rep.4
stages.4.1.norm                     backbone.layers.4.1.global_rep.3
stages.3.1.transformer.2.norm1      backbone.layers.3.1.global_rep.2.ln1
stages.3.1.transformer.2.attn.qkv   backbone.layers.3.1.global_rep.2.attn.qkv
stages.3.1.transformer.2.attn.proj  backbone.layers.3.1.global_rep.2.attn.proj
stages.3.1.transformer.2.norm2      backbone.layers.3.1.global_rep.2.ln2
stages.3.1.transformer.2.mlp.fc1    backbone.layers.3.1.global_rep.2.ffn.layers.0.0
stages.3.1.transformer.2.mlp.fc2    backbone.layers.3.1.global_rep.2.ffn.layers.1
stages.4.1.conv_proj.conv           backbone.layers.4.1.conv_proj.conv
stages.4.1.conv_proj.bn             backbone.layers.4.1.conv_proj.bn
stages.4.1.conv_fusion.conv         backbone.layers.4.1.conv_fusion.conv
stages.4.1.conv_fusion.bn           backbone.layers.4.1.conv_fusion.bn
final_conv.conv                     backbone.conv_1x1_exp.conv
final_conv.bn                       backbone.conv_1x1_exp.bn
head.fc                             head.fc
""",
}


def part_of(weights, module, kind):
    """A tensor of ours, or the third of it that a number in brackets means; None if the module has none such."""
    name, _, third = module.partition("[")
    tensor = weights.get(f"{name}.{kind}")
    return tensor if not third else tensor.chunk(3)[int(third[0])]


@pytest.mark.parametrize(("layout", "arch"), TABLES)
def test_names(layout, arch):
    ours = randomise(timm.create_model(arch, num_classes=3)).state_dict()
    theirs = export_state_dict(ours, arch, layout, channel_order="rgb")
    other = {name: torch.rand(tensor.shape) for name, tensor in theirs.items()}
    converted = convert_state_dict(other, arch, layout, channel_order="rgb")
    for line in TABLES[layout, arch].split("\n"):
        if line:
            our, their = line.split()
            kinds = [k for k in ("weight", "bias", "running_mean", "running_var") if f"{their}.{k}" in theirs]
            assert kinds, their
            for kind in kinds:
                assert torch.equal(theirs[f"{their}.{kind}"], part_of(ours, our, kind)), line
                assert torch.equal(part_of(converted, our, kind), other[f"{their}.{kind}"]), line


@pytest.mark.parametrize(
    ("layout", "arch", "order"),
    [
        ("cvnets", "mobilevitv1_xxs", "bgr"),  # v0.1 of CVNets reads images with OpenCV, later versions with PIL
        ("cvnets", "mobilevitv1_xs", "bgr"),
        ("cvnets", "mobilevitv1_s", "bgr"),
        ("cvnets", "mobilevitv3_xxs", "bgr"),
        ("cvnets", "mobilevitv3_xs_l2", "bgr"),
        ("cvnets", "mobilevitv3_s", "bgr"),
        ("cvnets", "mobilevitv2_0_5", "rgb"),
        ("cvnets", "mobilevitv2_2_0", "rgb"),
        ("cvnets", "mobilevitv3_0_5", "rgb"),
        ("cvnets", "mobilevitv3_1_0", "rgb"),
        ("transformers", "mobilevitv1_xxs", "bgr"),  # do_flip_channel_order
        ("transformers", "mobilevitv2_0_5", "rgb"),
        ("mmpretrain", "mobilevitv1_s", "bgr"),  # to_rgb=False
        ("timm", "mobilevitv1_xxs", "rgb"),
        ("timm", "mobilevitv3_xxs", "rgb"),
    ],
)
def test_known_channel_orders(layout, arch, order):
    ours = timm.create_model(arch, num_classes=0).state_dict()
    red, green, blue = ours["stem.conv.weight"].unbind(1)
    flipped = torch.stack([blue, green, red], 1)
    theirs = export_state_dict(ours, arch, layout)
    assert torch.equal(next(iter(theirs.values())), ours["stem.conv.weight"] if order == "rgb" else flipped)
    as_it_is = export_state_dict(ours, arch, layout, channel_order="rgb")
    for given, expected in ((None, order), ("rgb", "rgb"), ("bgr", "bgr")):
        stem = convert_state_dict(as_it_is, arch, channel_order=given)["stem.conv.weight"]
        assert torch.equal(stem, ours["stem.conv.weight"] if expected == "rgb" else flipped)
