"""Winograd's convolutions against the plain ones."""

import copy
import io

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from timm_mobilevit import optimize_for_inference, winograd
from timm_mobilevit.winograd import WinogradConv2d, transformed, winograd_conv


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the maps that went Winograd's way."""
    shapes = []
    monkeypatch.setattr(
        winograd, "winograd_conv", lambda x, *args: (shapes.append(x.shape), winograd_conv(x, *args))[1]
    )
    return shapes


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def conv(*channels: int, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*channels, **{"kernel_size": 3, "padding": 1} | kwargs)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 17])
@pytest.mark.parametrize("width", [1, 4, 6, 7, 16])
def test_any_size_to_the_last_digit_of_float64(height, width):
    x, weight, bias = normal(1, 3, height, width), normal(5, 3, 3, 3, seed=1), normal(5, seed=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        for b in (bias, None):
            ours = winograd_conv(x.contiguous(memory_format=layout), transformed(weight), b)
            torch.testing.assert_close(ours, F.conv2d(x, weight, b, padding=1), rtol=0, atol=1e-12)


def test_gradients_pass():
    x, weight, bias = normal(1, 2, 5, 6).requires_grad_(), normal(3, 2, 3, 3, seed=1), normal(3, seed=2)
    kernels = transformed(weight)
    assert torch.autograd.gradcheck(lambda x: winograd_conv(x, kernels, bias), x)


@pytest.mark.parametrize("channels", [(80, 96), (192, 96), (320, 160)])
def test_as_exact_as_float32_allows(channels):
    layer = conv(*channels)
    x = normal(1, channels[0], 32, 32, dtype=torch.float32)
    with torch.inference_mode():
        exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
        ours, plain = winograd_conv(x, transformed(layer.weight), layer.bias), layer(x)
    assert (ours - plain).abs().max() < 3e-5 * exact.std()
    assert (ours - exact).std() < 20 * (plain - exact).std()


def test_the_way_is_taken_where_it_pays_and_nowhere_else(one_thread, calls):
    layer = conv(80, 96)
    ours = WinogradConv2d(layer)
    x = normal(3, 80, 16, 17, dtype=torch.float32).contiguous(memory_format=torch.channels_last)

    def check(network: nn.Module, x: torch.Tensor, way: bool, **kwargs) -> None:
        calls.clear()
        out = network(x)
        assert len(calls) == (len(x) if way else 0)
        torch.testing.assert_close(out, layer(x), **kwargs)

    check(ours, x, True, rtol=0, atol=5e-5)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)
    check(ours, x.contiguous(), True, rtol=0, atol=5e-5)
    check(ours, x[:, :, :15], False)  # too small a map
    check(ours, x[:0], False)
    check(torch.compile(ours, backend="eager", fullgraph=True), x, False)
    check(torch.jit.trace(ours, x, check_trace=False), x, False)
    check(torch.jit.script(ours), x, False)
    torch.set_num_threads(2)
    check(ours, x, False)
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16):
        check(ours, x, False)
    layer, ours = layer.double(), copy.deepcopy(ours).double()
    check(ours, x.double(), False)


@pytest.mark.parametrize(
    "other",
    [
        conv(79, 96),
        conv(96, 79),
        conv(96, 96, stride=2),
        conv(96, 96, padding=0),
        conv(96, 96, padding="same"),
        conv(96, 96, padding=2, dilation=2),
        conv(96, 96, groups=96),
        conv(96, 96, padding_mode="reflect"),
        conv(96, 96, kernel_size=1, padding=1),
        conv(96, 96, dtype=torch.bfloat16),
        conv(96, 96, device="meta"),
        nn.Conv3d(96, 96, 3, padding=1),
        nn.Linear(96, 96),
    ],
    ids=str,
)
def test_fits_plain_convolutions_of_many_channels(other):
    assert not WinogradConv2d.fits(other)
    assert WinogradConv2d.fits(conv(80, 80))


@pytest.mark.parametrize("name", timm.list_models(module="mobilevit_zoo"))
def test_networks(one_thread, calls, name):
    model = timm.create_model(name, num_classes=10).eval()
    expected_calls = []
    for module in model.modules():
        if WinogradConv2d.fits(module):
            module.register_forward_hook(lambda module, args, out: expected_calls.append(args[0].shape))
    fast = optimize_for_inference(model)
    x = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        expected = model(x)
        assert (fast(x) - expected).abs().max() <= 1e-5 * expected.std()
    assert calls == [shape for shape in expected_calls if shape[-1] >= 16]


def test_dense_3x3_convolutions_of_stages_are_taken_once():
    fast = optimize_for_inference(timm.create_model("mobilevitv1_s").eval())
    taken = {module for module in fast.modules() if isinstance(module, WinogradConv2d)}
    assert len(taken) == 6  # two in each block
    weights = sum(parameter.nbytes for parameter in fast.parameters())
    assert (round(weights / 1e6), round((weights + sum(conv.kernels.nbytes for conv in taken)) / 1e6)) == (22, 44)
    assert not [module for module in fast.modules() if WinogradConv2d.fits(module)]
    other = optimize_for_inference(timm.create_model("mobilevitv1_s").eval())
    other.load_state_dict(fast.state_dict())
    for ours, expected in zip(other.modules(), fast.modules(), strict=True):
        if isinstance(expected, WinogradConv2d):
            assert torch.equal(ours.kernels, expected.kernels)


def test_files_hold_the_plain_kernels_alone():
    layer = conv(96, 96)
    ours = WinogradConv2d(layer)
    assert list(ours.state_dict()) == ["weight", "bias"]
    for module in (torch.jit.script(ours), torch.jit.trace(ours, torch.zeros(1, 96, 16, 16))):
        torch.jit.save(module, file := io.BytesIO())
        assert len(file.getvalue()) < 1.2 * layer.weight.nbytes
