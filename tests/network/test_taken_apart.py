"""What users do to a model: replace modules, wrap them, patch them, hang hooks on them. Two rules hold for every model.

Forward code reads no attribute of a child and passes it nothing beyond its input. A fused or in-place step runs only
where calling the modules would run PyTorch's own code and nothing else.
"""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from kinds import EVERY, KINDS
from random_weights import randomise
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.testing import assert_close

from timm_mobilevit import optimize_for_inference
from timm_mobilevit.network.attention import MultiHeadAttention


class Opaque(nn.Module):
    """Wraps a module as adapters do: none of its attributes show through, and it takes its input only."""

    def __init__(self, hidden: nn.Module) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden(x)


class Doubling(Opaque):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.hidden(x)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=3)).double()


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not list(module.children())]


def train_step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output in training mode, the gradients and the statistics after it."""
    out = model.train()(x)
    out.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [out.detach(), *gradients, *(b.clone() for b in model.buffers() if b.is_floating_point())]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_every_module_may_be_wrapped(name):
    plain, x = build(name), images()
    wrapped = copy.deepcopy(plain)
    for parent in list(wrapped.modules()):
        if not isinstance(parent, nn.Sequential):
            for key, child in list(parent.named_children()):
                setattr(parent, key, Opaque(child))
        else:
            for index, child in enumerate(list(parent)):
                parent[index] = Opaque(child)
    with torch.no_grad():
        assert_close(wrapped(x), plain(x))
    assert_same(train_step(wrapped, x), train_step(plain, x))


@pytest.mark.parametrize("name", EVERY)
def test_the_head_and_the_stem_may_be_replaced(name):
    model = build(name)
    features = model.forward_features(images())
    model.head = nn.Identity()
    assert torch.equal(model(images()), features)
    linear = nn.Linear(model.num_features, 2).double()
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    assert_close(model(images()), linear(features.mean((2, 3))))
    mix = nn.Conv2d(9, 3, 1).double()
    model.stem.conv = nn.Sequential(mix, model.stem.conv)
    seen = model(images(9))
    model.stem.conv = model.stem.conv[1]
    assert_close(seen, model(mix(images(9))))


@pytest.mark.parametrize("hooks", ["global", "own"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_hooks_see_every_layer_and_what_it_returned(name, training, hooks):
    model, seen = build(name).train(training), {}

    def record(module, args, out):
        seen.setdefault(module, (out, out.detach().clone()))

    wanted = leaves(model)
    handles = (
        [register_module_forward_hook(record)]
        if hooks == "global"
        else [module.register_forward_hook(record) for module in wanted]
    )
    try:
        with torch.set_grad_enabled(training):
            model(images())
    finally:
        for handle in handles:
            handle.remove()
    assert [module for module in wanted if module not in seen] == []
    assert all(torch.equal(out, then) for out, then in seen.values())  # nothing was overwritten since


@pytest.mark.parametrize("name", KINDS)
def test_global_pre_hooks_see_every_layer(name):
    model, seen = build(name).train(), set()
    with register_module_forward_pre_hook(lambda module, args: seen.add(module)):
        model(images())
    assert set(leaves(model)) <= seen


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_patched_forward_is_what_runs(name, training):
    model = build(name)
    expected = copy.deepcopy(model)
    for parent in list(expected.modules()):
        for key, child in parent.named_children():
            if isinstance(child, nn.SiLU):
                setattr(parent, key, nn.ReLU())
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.forward = F.relu
    if training:
        assert_same(train_step(model, images()), train_step(expected, images()))
    else:
        with torch.no_grad():
            assert_close(model(images()), expected(images()))
            assert_close(optimize_for_inference(model)(images()), expected(images()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_patched_class_is_what_runs(name, training, monkeypatch):
    model, before = build(name), None
    with torch.no_grad():
        before = model(images())
    monkeypatch.setattr(nn.SiLU, "forward", lambda self, x: F.relu(x))
    with torch.set_grad_enabled(training):
        actual = model.train(training)(images())
        for parent in list(model.modules()):
            for key, child in parent.named_children():
                if isinstance(child, nn.SiLU):
                    setattr(parent, key, nn.ReLU())
        assert_close(actual, model(images()))
    assert not torch.allclose(actual, before)


def test_a_compiled_layer_is_what_runs():
    model = build("mobilevitv3_xxs")
    calls = []
    model.stem.act._compiled_call_impl = lambda x: calls.append(x) or F.silu(x)  # as nn.Module.compile leaves it
    with torch.no_grad():
        model(images())
    assert len(calls) == 1


@pytest.mark.parametrize("name", EVERY)
def test_batch_norms_without_a_counter(name):
    model = build(name)
    expected = train_step(copy.deepcopy(model), images())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    assert_same(train_step(model, images()), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in KINDS if "0_5" not in name])
def test_what_stands_in_for_the_dropout_of_attention_runs(name, training):
    class Sharpen(nn.Module):
        def forward(self, weights):
            return (5 * weights.log()).softmax(-1)

    model = build(name).train(training)
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    assert all(attention.fused_attn for attention in attentions)
    with torch.no_grad():
        fused = model(images())
        for attention in attentions:
            attention.attn_drop = nn.Identity()
        assert_close(model(images()), fused)
        for attention in attentions:
            attention.attn_drop = Sharpen()
        sharp = model(images())
        for attention in attentions:
            attention.fused_attn = False
        assert_close(model(images()), sharp)
    assert not torch.allclose(sharp, fused, rtol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_an_optimized_copy_keeps_what_was_changed(name):
    """Adapters, subclasses, patches and hooks stay in the copy and count as in the model."""

    class Shifted(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Swish(nn.SiLU):
        def forward(self, x):
            return x * torch.sigmoid(2 * x)

    class Noise(nn.Dropout):
        def forward(self, x):
            return 3 * x

    def swap(parent: nn.Module, key: str, kind: type[nn.Module]) -> None:
        child = getattr(parent, key)
        child.__class__ = kind

    model = build(name)
    block = model.stages[3][1]
    swap(model.stages[1][0].conv1_1x1, "conv", Shifted)
    swap(model.stages[2][0].conv2_kxk, "bn", Doubled)
    swap(block.conv_kxk, "act", Swish)
    swap(block.transformer[0].mlp, "drop", Noise)
    block.conv_proj.bn.forward = lambda x: 1.5 * x
    block.transformer[1].norm1.register_forward_hook(lambda module, args, out: out + 0.5)
    model.stages[4][0].conv3_1x1.conv = nn.Sequential(model.stages[4][0].conv3_1x1.conv, nn.Tanh())
    model.stages[0] = nn.Sequential(*model.stages[0], nn.Sigmoid())
    with torch.no_grad():
        assert_close(optimize_for_inference(model)(images()), model(images()))


@pytest.mark.parametrize("change", ["act", "drop_path", "stride", "last", "first"])
@pytest.mark.parametrize("name", KINDS)
def test_stages_join_only_where_nothing_stands_between(name, change):
    """An optimized copy multiplies the last convolution of a stage with the first of the next."""
    model = build(name)
    block, after = model.stages[0][0], model.stages[1][0]
    block.has_shortcut = False
    if change == "act":
        block.conv3_1x1.act = nn.Tanh()
    elif change == "drop_path":
        block.drop_path = nn.Tanh()
    elif change == "stride":
        conv = block.conv3_1x1.conv
        block.conv3_1x1.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 1, stride=2, padding=1).double()
    elif change == "last":
        block.conv3_1x1 = nn.Sequential(block.conv3_1x1, nn.Tanh())
    else:
        after.conv1_1x1 = nn.Sequential(nn.Tanh(), after.conv1_1x1)
    with torch.no_grad():
        assert_close(optimize_for_inference(model)(images()), model(images()))


@pytest.mark.parametrize("part", ["attn", "mlp", "layer", "block", "stage"])
@pytest.mark.parametrize("name", KINDS)
def test_whole_parts_may_be_removed(name, part):
    model = build(name)
    block = model.stages[3][1]
    where, key = {
        "attn": (block.transformer[0], "attn"),
        "mlp": (block.transformer[1], "mlp"),
        "layer": (block.transformer, "0"),
        "block": (model.stages[3], "1"),
        "stage": (model.stages[3], "1"),
    }[part]
    setattr(where, key, nn.Identity())
    if part == "stage":
        model.stages[1] = Doubling(model.stages[1])
    with torch.no_grad():
        expected = model(images())
        assert_close(optimize_for_inference(model)(images()), expected)
    model.set_grad_checkpointing()
    assert_close(model(images()), expected)
    assert_close(model.forward_intermediates(images())[1][4].shape, model.stages(model.stem(images())).shape)


@pytest.mark.parametrize("name", KINDS)
def test_checkpointing_passes_no_hook_by(name):
    model, seen = build(name), []
    for number, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda module, args, out, number=number: seen.append(number))
    model.set_grad_checkpointing()
    with torch.no_grad():
        model(images())
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", EVERY)
def test_gradients_have_the_strides_of_their_parameters(name):
    """DistributedDataParallel warns of others, and copies them."""
    model = timm.create_model(name, num_classes=3)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad.stride() != p.stride()] == []
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("name", EVERY)
def test_strides_of_parameters_change_no_output(name, size):
    """Libraries assign loaded tensors, which have strides of their own, instead of copying them."""
    model = randomise(timm.create_model(name, num_classes=3))
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        before = model(x)
        loaded = {key: torch.empty(value.shape).copy_(value) for key, value in model.state_dict().items()}
        model.load_state_dict(loaded, assign=True)
        assert torch.equal(model(x), before)
