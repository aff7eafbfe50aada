"""The timm model contract and the options, over every registered name or one per kind of block."""

import copy
import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from export_models import shallow
from golden_data import reference_weights
from kinds import KINDS, NAMES
from random_weights import randomise
from timm.data import resolve_input_data_config
from torch import nn

from timm_mobilevit.convert import convert_state_dict
from timm_mobilevit.network.blocks import MobileViTBlock, SeparableMobileViTBlock
from timm_mobilevit.variants import VARIANTS

SEPARABLE = [name for name in KINDS if VARIANTS[name].separable]


def small(name, **kwargs):
    return randomise(timm.create_model(name, num_classes=5, **kwargs))


def std_error(actual, expected):
    return ((actual - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize("name", NAMES)
def test_widths_and_strides(name):
    variant = VARIANTS[name]
    model = timm.create_model(name, features_only=True, device="meta")
    assert model.feature_info.channels() == list(variant.widths)
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    maps = model(torch.zeros(1, 3, 128, 192, device="meta"))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 128 // stride, 192 // stride)
        for channels, stride in zip(variant.widths, (2, 4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", KINDS)
def test_features_only_with_output_stride(name, output_stride):
    model = timm.create_model(name, features_only=True, output_stride=output_stride, out_indices=(1, 4)).eval()
    reductions = [min(stride, output_stride) for stride in (4, 32)]
    assert model.feature_info.reduction() == reductions
    assert [m.shape[-1] for m in model(torch.rand(1, 3, 64, 64))] == [64 // r for r in reductions]


@pytest.mark.parametrize("name", KINDS)
def test_which_convolutions_dilate(name):
    """The inverted residual keeps the dilation before its stage; the local 3×3 has the new one in v2 and v3-width."""
    separable = VARIANTS[name].separable
    for output_stride, residual, local in ((16, (1, 1), (1, 2)), (8, (1, 2), (2, 4))):
        stages = timm.create_model(name, output_stride=output_stride, device="meta").stages
        for stage, expected, expected_local in zip((3, 4), residual, local, strict=True):
            convolution = stages[stage][0].conv2_kxk.conv
            assert convolution.dilation == (expected, expected)
            block = stages[stage][1]
            assert block.conv_kxk.conv.dilation == ((expected_local,) * 2 if separable else (1, 1))
            if isinstance(block, MobileViTBlock):
                assert block.conv_fusion.conv.dilation == (1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_only_a_lost_stride_with_equal_widths_gives_stage_5_a_shortcut(name):
    dilated = timm.create_model(name, output_stride=16, device="meta").stages[4][0].has_shortcut
    assert dilated == (VARIANTS[name].widths[3] == VARIANTS[name].widths[4])
    assert not timm.create_model(name, device="meta").stages[4][0].has_shortcut


def test_the_extra_shortcut_adds_the_input():
    name = next(n for n in NAMES if VARIANTS[n].widths[3] == VARIANTS[n].widths[4])
    residual = timm.create_model(name, output_stride=16).eval().stages[4][0]
    x = torch.rand(1, VARIANTS[name].widths[3], 8, 8)
    path = residual.conv3_1x1(residual.conv2_kxk(residual.conv1_1x1(x)))
    torch.testing.assert_close(residual(x) - path, x)


@pytest.mark.parametrize("name", KINDS)
def test_head(name):
    model = small(name)
    x = torch.rand(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.get_classifier().out_features == 5
    model.reset_classifier(7, "avgmax")
    assert model(x).shape == (2, 7)
    model.reset_classifier(7, "catavgmax")
    assert model.head_hidden_size == 2 * model.num_features
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.double().reset_classifier(7)  # from the network: a head without a classifier has no data type
    assert model.get_classifier().weight.dtype == torch.double
    model = small(name, global_pool="max")
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(pooled, model.forward_features(x).amax(dim=(2, 3)))


@pytest.mark.parametrize("name", KINDS)
def test_intermediates_and_pruning(name):
    model = small(name)
    x = torch.rand(1, 3, 64, 64)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(maps) == 5
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    torch.testing.assert_close(last_two, maps[-2:])
    early, chosen = model.forward_intermediates(x, indices=[-4, 2], stop_early=True)
    torch.testing.assert_close(chosen, [maps[1], maps[2]])
    torch.testing.assert_close(early, maps[2])
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")
    for wrong in (6, 0, [5], [-6], []):
        with pytest.raises(ValueError, match="stage"):
            model.forward_intermediates(x, indices=wrong)

    assert model.prune_intermediate_layers([1, 2]) == [1, 2]
    assert len(model.stages) == 3
    assert model.num_features == VARIANTS[name].widths[2]
    torch.testing.assert_close(model(x), maps[2])


def test_pruning_the_expansion_alone_keeps_a_classifier_that_fits():
    name = next(n for n in KINDS if VARIANTS[n].final_width)
    model = small(name)
    assert model.prune_intermediate_layers(1, prune_norm=True, prune_head=False) == [4]
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    assert model.num_features == VARIANTS[name].widths[-1]


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_learns_and_checkpointing_changes_nothing(name):
    model = timm.create_model(name, num_classes=5)
    # batch norm on few values amplifies rounding, so the statistics stay fixed
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(2, 3, 64, 64)
    runs = []
    # not a hook behind it: computing again ends with the last value that the backward pass needs
    model.stages[1][0].register_forward_pre_hook(lambda *_: runs.append(1))
    grads = []
    forwards = (model, lambda images: model.forward_head(model.forward_intermediates(images)[0]))
    for checkpointing, forward in itertools.product((False, True), forwards):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        runs.clear()
        forward(x).square().sum().backward()
        assert len(runs) == (2 if checkpointing else 1)  # once more in the backward pass
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        grads.append([p.grad.clone() for p in model.parameters()])
    for others in grads[1:]:
        torch.testing.assert_close(others, grads[0])


def test_layer_groups():
    from timm.models import group_parameters

    model = timm.create_model(NAMES[0], device="meta")
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 7  # stem, five stages, expansion and head
    fine = group_parameters(model, model.group_matcher())
    assert len(fine) > len(coarse)
    assert model.no_weight_decay() == set()


@pytest.mark.parametrize("patch_size", [3, (4, 4, 4), (8, 4, 2), [2, 2, 2]])
@pytest.mark.parametrize("name", KINDS)
def test_patch_sizes(name, patch_size):
    model = small(name, patch_size=patch_size)
    default = small(name)
    assert model.load_state_dict(default.state_dict())  # the patch has no parameters
    x = torch.rand(1, 3, 128, 160)
    assert model(x).shape == (1, 5)
    sizes = [patch_size] * 3 if isinstance(patch_size, int) else list(patch_size)
    assert [stage[1].patch_h for stage in model.stages[2:]] == sizes
    assert torch.equal(model(x), default(x)) == (sizes == [2, 2, 2])


def test_attention_sees_only_its_own_phase():
    """A change in one pixel reaches, through the transformer, only pixels in the same place of their patches."""
    options = {"transformer_dim": 8, "transformer_depth": 1, "patch_size": (2, 3)}
    separable = SeparableMobileViTBlock(8, **options)
    separable.transformer[0] = separable.transformer[0].attn  # the norms around it see all pixels
    separable.norm = nn.Identity()
    for block in (MobileViTBlock(8, **options), separable):
        x = torch.randn(1, 8, 6, 9, requires_grad=True)
        block.eval().attend(x)[0, 0, 2, 4].backward()
        touched = x.grad[0].abs().sum(0) > 0
        rows, columns = torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij")
        assert torch.equal(touched, (rows % 2 == 0) & (columns % 3 == 1))


@pytest.mark.parametrize("size", [(65, 97), (64, 96), (96, 71), (33, 200)])
@pytest.mark.parametrize("name", KINDS)
def test_exact_feature_size(name, size):
    model = timm.create_model(name, features_only=True, exact_feature_size=True).eval()
    plain = timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, *size)
    maps = model(x)
    assert [tuple(m.shape[-2:]) for m in maps] == [
        tuple(-(-side // stride) for side in size) for stride in (2, 4, 8, 16, 32)
    ]
    unchanged = not VARIANTS[name].separable or all(side % 64 == 0 for side in size)
    assert all(torch.equal(a, b) for a, b in zip(maps, plain(x), strict=True) if a.shape == b.shape) or not unchanged


def test_reference_sizes_of_v2_at_257():
    maps = timm.create_model(SEPARABLE[0], features_only=True).eval()(torch.rand(1, 3, 257, 257))
    assert [m.shape[-1] for m in maps] == [129, 65, 34, 18, 10]


@pytest.mark.parametrize("name", KINDS)
def test_input_channels_device_and_dtype(name):
    assert small(name, in_chans=1)(torch.rand(1, 1, 64, 64)).shape == (1, 5)
    model = small(name, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(torch.rand(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64
    assert timm.create_model(name, device="meta").stem.conv.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision(name, dtype):
    model = timm.create_model(name).eval()
    model.load_state_dict(convert_state_dict(reference_weights(name), name))
    x = torch.rand(2, 3, 96, 96)
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(x)
        loss = F.cross_entropy(logits, torch.tensor([1, 2]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    limit = 16 * torch.finfo(dtype).eps  # root mean square, in standard deviations
    assert (logits - expected).square().mean().sqrt() / expected.std() < limit
    with torch.inference_mode():
        assert (model.to(dtype)(x.to(dtype)) - expected).square().mean().sqrt() / expected.std() < limit


@pytest.mark.parametrize("size", [(64, 64), (70, 97)])
@pytest.mark.parametrize("name", KINDS)
def test_channels_last(name, size):
    model = small(name)
    x = torch.rand(2, 3, *size)
    with torch.inference_mode():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        assert std_error(model(x.contiguous(memory_format=torch.channels_last)), expected) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_torchscript(name, tmp_path):
    model = small(name)
    torch.jit.script(model).save(tmp_path / "model.pt")
    scripted = torch.jit.load(tmp_path / "model.pt")
    for size in ((64, 64), (70, 97)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_export_with_dynamic_batch_and_size(name):
    model = small(name)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (torch.rand(2, 3, 96, 128),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    ).module()
    for shape in ((1, 3, 256, 256), (3, 3, 97, 70), (2, 3, 128, 96)):
        x = torch.rand(shape)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("name", KINDS)
def test_exported_program_is_plain(name):
    """What Core ML, LiteRT and ExecuTorch are made from: at most four dimensions."""
    model, x = small(name), torch.rand(1, 3, 64, 96)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        assert std_error(program.module()(x), model(x)) < 1e-5
    shapes = [node.meta["val"].shape for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(map(len, shapes)) <= 4


@pytest.mark.parametrize("name", KINDS)
def test_compile_without_graph_breaks(name):
    torch.compiler.reset()
    model = shallow(name).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 64, 64)
    logits = compiled(x)
    torch.testing.assert_close(logits, model(x))
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_compile_with_inductor(name):
    torch.compiler.reset()
    model = small(name)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_training_with_inductor(name):
    """Two steps in one graph each way: losses, gradients and running statistics as without compiler."""
    torch.compiler.reset()
    # ReLU turns rounding in float32 into larger differences; fused attention, compiled, has no float64 on a CPU.
    dtype = torch.double if VARIANTS[name].separable else torch.float32
    model = small(name).to(dtype).train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True)
    close = {"rtol": 1e-3, "atol": 1e-4}
    for _ in range(2):
        x, labels = torch.rand(4, 3, 64, 64, dtype=dtype), torch.tensor([0, 1, 2, 3])
        losses = [F.cross_entropy(run(x), labels) for run in (model, compiled)]
        torch.testing.assert_close(losses[1], losses[0], **close)
        for network, loss in zip((model, twin), losses, strict=True):
            network.zero_grad()
            loss.backward()
        for (key, expected), actual in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, **close, msg=lambda text, key=key: f"{key}: {text}")
            with torch.no_grad():  # the second step begins elsewhere
                expected -= 0.01 * expected.grad
                actual -= 0.01 * actual.grad
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()), **close)


def test_batch_norms_survive_conversion_to_sync():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small(KINDS[0]))
    assert sum(isinstance(module, nn.SiLU) for module in model.modules()) == sum(
        isinstance(module, nn.SiLU) for module in small(KINDS[0]).modules()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"patch_size": 0}, "patch_size must be a positive"),
        ({"patch_size": (2, 2)}, "patch_size must be a positive"),
        ({"patch_size": (2, 2.5, 2)}, "patch_size must be a positive"),
        ({"img_size": 0}, "img_size must be a positive number of pixels"),
        ({"img_size": (224, 224, 3)}, "img_size must be a positive number of pixels"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(KINDS[0], **options)


def test_unknown_option_and_unknown_size():
    for option in ("paatch_size", "drop_block_rate"):  # Python's own error; no option is swallowed
        with pytest.raises(TypeError, match=f"MobileViT.* got an unexpected keyword argument '{option}'"):
            timm.create_model(KINDS[0], **{option: 0.1})
    with pytest.raises(RuntimeError, match="mobilevitv3_9_9"):
        timm.create_model("mobilevitv3_9_9")


@pytest.mark.parametrize("name", KINDS)
def test_bad_images(name):
    model = small(name)
    features = timm.create_model(name, features_only=True)
    for network in (model, features):
        for shape in ((3, 64, 64), (1, 3, 0, 64), (0, 3, 64, 64)):
            with pytest.raises(ValueError, match=r"expected images of shape \[batch, channels, height, width\]"):
                network(torch.rand(shape))
        with pytest.raises(RuntimeError, match=r"to have 3 channels, but got 4 channels"):  # says the convolution
            network(torch.rand(1, 4, 64, 64))


@pytest.mark.parametrize("name", KINDS)
def test_norm_layer(name):
    frozen = timm.create_model(name, norm_layer=torchvision.ops.FrozenBatchNorm2d, features_only=True)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in frozen.modules())
    trained = timm.create_model(name).eval()
    state_dict = {key.replace("stages.", "stages_"): value for key, value in trained.state_dict().items()}
    frozen.load_state_dict({key: value for key, value in state_dict.items() if not key.startswith(("head", "final"))})
    x = torch.rand(1, 3, 64, 64)
    expected = trained.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(frozen.train()(x), expected)
    grouped = timm.create_model(name, norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert grouped(x).shape == (1, 1000)
    with torch.device("meta"):
        sync = timm.create_model(name, norm_layer=nn.SyncBatchNorm, dtype=torch.float64)
    assert {type(m) for m in sync.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)} == {nn.SyncBatchNorm}
    assert sync.stem.bn.weight.dtype == torch.float64


@pytest.mark.parametrize("act_layer", ["relu", nn.ReLU])
@pytest.mark.parametrize("name", KINDS)
def test_act_layer(name, act_layer):
    model = timm.create_model(name, act_layer=act_layer)
    theirs = timm.create_model(name, act_layer=nn.SiLU)
    assert not any(isinstance(module, nn.SiLU) for module in model.modules())
    relus = [key for key, module in model.named_modules() if isinstance(module, nn.ReLU)]
    assert relus == [key for key, module in theirs.named_modules() if isinstance(module, nn.SiLU)]


@pytest.mark.parametrize("img_size", [224, (160, 192)])
def test_img_size_is_what_timms_data_configuration_says(img_size):
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    model = timm.create_model(KINDS[0], img_size=img_size)
    assert resolve_input_data_config(model=model)["input_size"] == (3, *size)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (32, 32)])
@pytest.mark.parametrize("name", KINDS)
def test_images_smaller_than_a_patch(name, size):
    model = timm.create_model(name, features_only=True, exact_feature_size=True, patch_size=(8, 4, 2)).eval()
    for feature_map, stride in zip(model(torch.rand(1, 3, *size)), (2, 4, 8, 16, 32), strict=True):
        assert feature_map.shape[-2:] == tuple(math.ceil(side / stride) for side in size)
