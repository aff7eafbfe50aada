"""Models rewritten for inference against themselves."""

import warnings
from functools import partial

import pytest
import timm
import torch
from kinds import EVERY, NAMES
from random_weights import randomise
from torch import nn

from benchmarks.complexity import count
from timm_mobilevit import optimize_for_inference
from timm_mobilevit.attention_maps import attention_maps
from timm_mobilevit.inference import optimize
from timm_mobilevit.inference.joined_stages import JoinedStages
from timm_mobilevit.inference.optimize import ImageWise, fold_norms
from timm_mobilevit.network.blocks import InvertedResidual
from timm_mobilevit.variants import get_variant


def build(name: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, **kwargs))


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def assert_equal(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert (ours - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("name", EVERY)
def test_equals_the_model(name):
    model = build(name, num_classes=10, drop_rate=0.1, proj_drop_rate=0.1, drop_path_rate=0.1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fast = optimize_for_inference(model)
    x = torch.rand(2, 3, 72, 64)
    with torch.inference_mode():
        assert_equal(fast(x), model(x))
        assert_equal(fast(x[:1]), model(x[:1]))
    left = {type(module).__name__ for key, module in fast.named_modules() if not key.endswith("attn_drop")}
    assert not left & {"BatchNorm2d", "Dropout", "DropPath"}
    assert not any(p.requires_grad for p in fast.parameters())
    weight = fast.stem.module.conv.weight  # a layout of a depthwise one would say nothing
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert all(module.inplace for module in fast.modules() if isinstance(module, nn.SiLU))
    for key, tensor in model.state_dict().items():  # the model itself is as it was
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", NAMES[:1] + NAMES[-1:])
def test_optimizes_what_timm_makes_of_a_model(name):
    x = torch.rand(2, 3, 64, 64).double()
    for kwargs in ({"features_only": True}, {"features_only": True, "out_indices": (1, 3), "output_stride": 16}):
        model = build(name, **kwargs).double()
        for ours, expected in zip(optimize_for_inference(model)(x), model(x), strict=True):
            torch.testing.assert_close(ours, expected)


def test_a_block_with_a_shortcut_is_not_joined():
    """Its input is added later, so it must exist."""
    blocks = InvertedResidual(8, 16, expand_ratio=2), InvertedResidual(16, 16, expand_ratio=2)
    stages = randomise(nn.Sequential(*(nn.Sequential(block) for block in blocks)).double())
    x = torch.rand(1, 8, 8, 8, dtype=torch.double)
    expected = stages(x)
    fold_norms(stages)
    torch.testing.assert_close(JoinedStages(stages)(x), expected)


def test_norms_that_normalise_each_batch_stay():
    """Without running statistics there is nothing to fold."""
    model = build("mobilevitv1_xxs", num_classes=5).double()
    model.final_conv.bn = nn.BatchNorm2d(model.num_features, track_running_stats=False).double().eval()
    fast = optimize_for_inference(model)
    assert isinstance(fast.final_conv.bn, nn.BatchNorm2d)
    x = torch.rand(2, 3, 64, 64, dtype=torch.double)
    assert_equal(fast(x), model(x))


@pytest.mark.parametrize("name", ["mobilevitv2_0_5", "mobilevitv3_xxs"])
def test_norms_that_normalise_each_batch_see_all_of_it(name):
    """Also those before the first transformer, which otherwise get one image after the other."""
    model = build(name, num_classes=5, norm_layer=partial(nn.BatchNorm2d, track_running_stats=False)).double()
    x = torch.rand(3, 3, 64, 64, dtype=torch.double)
    assert_equal(optimize_for_inference(model)(x), model(x))


def test_optimizes_twice_and_from_training_mode():
    model = build("mobilevitv2_0_5", num_classes=5).double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.double)
    expected = model(x)
    once = optimize_for_inference(model.train())
    assert_equal(once(x), expected)
    assert_equal(optimize_for_inference(once)(x), expected)


@pytest.mark.parametrize("name", EVERY)
def test_stages_are_joined_where_that_saves_work(name):
    model = build(name, num_classes=10)
    fast = optimize_for_inference(model)
    # The stages of v2 end without activation or shortcut; so does the first stage of all that are named by a width,
    # and there alone the convolution in between is not narrower than both its neighbours.
    joined = {"v1": 0, "v2": 3, "v3": 0, "v3_separable": 1}[get_variant(name).block]
    assert len(convolutions(model)) - len(convolutions(fast)) == joined
    saved = count(name, 64, 64)[1] - count(name, 64, 64, optimized=True)[1]
    assert (saved > 0) == (joined > 0)
    linear = [module for module in fast.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == sum(isinstance(module, nn.Linear) for module in model.modules())


def test_the_map_of_each_stage_is_refused():
    """Its convolution may be part of the next stage's; attention maps and the last one are there."""
    model = build("mobilevitv2_0_5", num_classes=10).double()
    fast = optimize_for_inference(model)
    x = torch.rand(2, 3, 72, 64, dtype=torch.double)
    with torch.inference_mode():
        torch.testing.assert_close(fast.forward_features(x), model.forward_features(x))
        for ours, expected in zip(attention_maps(fast, x), attention_maps(model, x), strict=True):
            assert (ours.stage, ours.layer) == (expected.stage, expected.layer)
            torch.testing.assert_close(ours.scores, expected.scores)
        for call in (lambda: fast.forward_intermediates(x), lambda: fast.prune_intermediate_layers([1])):
            with pytest.raises(RuntimeError, match=r"does not compute the map of each stage.*features_only=True"):
                call()


def test_a_copy_of_a_model_with_checkpoints():
    model = build("mobilevitv2_0_5", num_classes=10)
    model.set_grad_checkpointing()
    fast = optimize_for_inference(model)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert_equal(fast(x), model(x))
    assert model.grad_checkpointing


def test_whole_batches_where_others_order_the_work():
    calls = []

    class Spy(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x

    image_wise = ImageWise(Spy())
    assert torch.equal(image_wise(torch.arange(3.0)), torch.arange(3.0))
    assert calls == [1, 1, 1]
    calls.clear()
    torch.jit.trace(image_wise, torch.zeros(3), check_trace=False)
    assert calls == [3]
    fast = optimize_for_inference(build("mobilevitv3_0_5", num_classes=5))
    x = torch.rand(3, 3, 64, 64)
    assert_equal(torch.jit.script(fast)(x), fast(x))
    assert_equal(torch.compile(fast, backend="eager", fullgraph=True)(x), fast(x))


def test_refuses_what_holds_no_mobilevit():
    with pytest.raises(ValueError, match=r"expected a MobileViT of timm_mobilevit.*got Sequential"):
        optimize_for_inference(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


class TestBfloat16:
    @pytest.mark.parametrize("name", ["mobilevitv1_xxs", "mobilevitv2_0_5", "mobilevitv3_xxs", "mobilevitv3_0_5"])
    def test_differs_by_rounding(self, name):
        model = build(name, num_classes=10)
        fast = optimize_for_inference(model, dtype=torch.bfloat16)
        x = torch.rand(2, 3, 72, 64)
        with torch.inference_mode():
            ours, expected = fast(x), model(x)
            assert ours.dtype == torch.float32
            assert ours.shape == (2, 10)
            difference = (ours - expected).square().mean().sqrt() / expected.std()
            assert 1e-4 < difference < 0.05
            assert fast.forward_features(x).dtype == torch.float32

    def test_computes_in_it(self):
        """Every convolution and every layer before the head."""
        fast = optimize_for_inference(build("mobilevitv3_xxs", num_classes=10), dtype=torch.bfloat16)
        seen = {torch.float32: [], torch.bfloat16: []}
        for name, module in fast.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm)):
                module.register_forward_hook(lambda _, args, out, name=name: seen[out.dtype].append(name))
        fast(torch.rand(1, 3, 64, 64))
        assert seen[torch.float32] == ["head.fc"]
        assert len(seen[torch.bfloat16]) > 30

    def test_of_such_a_copy_is_the_same(self):
        once = optimize_for_inference(build("mobilevitv2_0_5", num_classes=5), dtype=torch.bfloat16)
        x = torch.rand(1, 3, 64, 64)
        for dtype in (torch.bfloat16, None):
            torch.testing.assert_close(optimize_for_inference(once, dtype=dtype)(x), once(x))

    def test_keeps_the_types_of_features(self):
        x = torch.rand(1, 3, 64, 64)
        model = build("mobilevitv3_0_5", features_only=True, out_indices=(1, 3, 4))
        fast = optimize_for_inference(model, dtype=torch.bfloat16)
        for ours, expected in zip(fast(x), model(x), strict=True):
            assert (ours.dtype, ours.shape) == (torch.float32, expected.shape)
            assert 1e-4 < (ours - expected).square().mean().sqrt() / expected.std() < 0.05

    def test_is_compiled_and_traced(self):
        fast = optimize_for_inference(build("mobilevitv2_0_5", num_classes=5), dtype=torch.bfloat16)
        x = torch.rand(2, 3, 64, 64)
        expected = fast(x)
        for other in (torch.jit.trace(fast, x), torch.compile(fast, backend="eager", fullgraph=True)):
            assert (other(x) - expected).square().mean().sqrt() / expected.std() < 0.02

    def test_warns_where_it_is_slower(self, monkeypatch):
        model = build("mobilevitv3_xxs", num_classes=3)
        monkeypatch.setattr(optimize, "_has_bfloat16", lambda: False)
        with pytest.warns(UserWarning, match="no instructions for bfloat16"):
            optimize_for_inference(model, dtype=torch.bfloat16)
        monkeypatch.setattr(optimize, "_has_bfloat16", lambda: True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimize_for_inference(model, dtype=torch.bfloat16)

    def test_keeps_the_type_of_a_double_model(self):
        model = build("mobilevitv3_xxs", num_classes=3).double()
        x = torch.rand(1, 3, 64, 64, dtype=torch.double)
        assert optimize_for_inference(model, dtype=torch.bfloat16)(x).dtype == torch.double

    def test_refuses_other_types(self):
        with pytest.raises(ValueError, match=r"must be torch\.bfloat16 or None, got torch\.float16"):
            optimize_for_inference(build("mobilevitv3_xxs"), dtype=torch.float16)
