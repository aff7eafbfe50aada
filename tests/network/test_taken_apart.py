"""What users do to a model: replace modules, wrap them, patch them, hang hooks on them. Two rules hold for every model.

Forward code reads no attribute of a child and passes it nothing beyond its input. A fused or in-place step runs only
where calling the modules would run PyTorch's own code and nothing else.
"""

import copy
import types

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


class Heads(nn.Module):
    """Two heads on the same features, as users write them: the first layer of each is an activation."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.num_features
        self.first, self.second = (nn.Sequential(nn.SiLU(), nn.Linear(width, 2)).double() for _ in range(2))
        self.act, self.drop = nn.SiLU(), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.backbone(x)
        residual = x + self.act(x).flip(1)
        out = torch.cat((self.first(x), self.second(x), residual), dim=1)
        return F.dropout(out, self.drop.p, self.training)


@pytest.mark.parametrize("name", KINDS)
def test_heads_around_an_optimized_model_keep_their_inputs(name):
    backbone = build(name)
    backbone.reset_classifier(0)
    model = Heads(backbone).eval()
    with torch.no_grad():
        expected = model(images())
        assert_close(optimize_for_inference(model)(images()), expected)


@pytest.mark.parametrize("name", KINDS)
def test_hooks_of_an_optimized_copy_get_whole_batches_that_stay(name):
    """What they keep is a layer's own output for all images, and no later layer writes into it."""
    model, seen = build(name), {}
    block = model.stages[3][1]
    watched = {
        "stem": model.stem,
        "stem norm": model.stem.bn,
        "first stage": model.stages[0],
        "block": model.stages[1][0],
        "norm": block.conv_kxk.bn,
        "expanded": block.transformer[0].mlp.fc1,
    }
    for key, module in watched.items():
        module.register_forward_hook(lambda module, args, out, key=key: seen.update({key: out}))
    with torch.no_grad():
        model(images())
        expected = {key: out.clone() for key, out in seen.items()}
        seen.clear()
        optimize_for_inference(model)(images())
    assert set(seen) == set(watched)
    assert_close(seen, expected)


@pytest.mark.parametrize("name", KINDS)
def test_an_optimized_copy_of_features_by_hooks(name):
    model = randomise(timm.create_model(name, features_only=True, feature_cls="hook")).double()
    with torch.no_grad():
        assert_close(optimize_for_inference(model)(images()), model(images()))


@pytest.mark.parametrize("name", KINDS)
def test_layers_that_look_at_the_whole_batch_get_it_in_an_optimized_copy(name):
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0, keepdim=True)

    model = build(name)
    model.stages[0][0].drop_path = Centred()
    with torch.no_grad():
        assert_close(optimize_for_inference(model)(images()), model(images()))


@pytest.mark.parametrize("shared", ["attn", "mlp", "qkv", "weight", "conv_proj"])
@pytest.mark.parametrize("name", KINDS)
def test_layers_may_share_weights(name, shared):
    """As ALBERT's do: what is folded for one layer must not change another."""
    model = build(name)
    block = model.stages[3][1]
    first, second = block.transformer[:2]
    qkv = "qkv" if hasattr(first.attn, "qkv") else "qkv_proj"
    getattr(first.attn, qkv).weight.data.mul_(10)  # attention that is far from even shows the scale of its scores
    if shared == "qkv":
        setattr(second.attn, qkv, getattr(first.attn, qkv))
    elif shared == "weight":
        getattr(second.attn, qkv).weight = getattr(first.attn, qkv).weight
    elif shared == "conv_proj":
        model.stages[3].append(copy.deepcopy(block))
        for key in ("norm.weight", "norm.bias"):
            nn.init.uniform_(model.stages[3][2].get_parameter(key), 0.5, 2.0)
        model.stages[3][2].conv_proj = block.conv_proj
    else:
        setattr(second, shared, getattr(first, shared))
    x = torch.rand(2, 3, 160, 160, dtype=torch.double)
    with torch.no_grad():
        assert_close(optimize_for_inference(model)(x), model(x))


@pytest.mark.parametrize("name", KINDS)
def test_norms_without_bias(name):
    model = build(name)
    for norm in model.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.register_parameter("bias", None)  # GroupNorm(…, bias=False) of newer PyTorch
    with torch.no_grad():
        assert_close(optimize_for_inference(model)(images()), model(images()))
        assert_close(torch.export.export(model, (images(),)).module()(images()), model(images()))


@pytest.mark.parametrize("name", KINDS)
def test_an_optimized_copy_of_a_model_with_a_forward_that_uses_each_stage(name):
    def forward_features(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.final_conv(x)

    class Deep(type(build(name))):
        def forward(self, x):
            x, maps = self.forward_intermediates(x)
            return self.forward_head(x) + maps[2].mean()

    class Blocks(Opaque):
        def forward(self, x):
            x = self.hidden.stem(x)
            for stage in self.hidden.stages:
                for block in stage:
                    x = block(x)
            return x + self.hidden.stages[0][0](self.hidden.stem(images())).mean()

    patched, subclass, blocks = build(name), build(name), Blocks(build(name))
    patched.forward_features = types.MethodType(forward_features, patched)
    subclass.__class__ = Deep
    for model in (patched, subclass, blocks.eval()):
        with torch.no_grad():
            assert_close(optimize_for_inference(model)(images()), model(images()))
