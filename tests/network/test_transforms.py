"""What PyTorch can do with a function of images and parameters: torch.func, second derivatives, forward mode."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from kinds import EVERY, KINDS
from random_weights import randomise
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, replace_all_batch_norm_modules_, stack_module_state, vmap
from torch.testing import assert_close

SIZES = [(32, 48), (36, 20)]  # the second is enlarged to patches


@pytest.fixture
def plain_attention():
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


def build(name, **kwargs):
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=3, **kwargs).double())


def loss_of(model):
    """Loss of one image [3, H, W] as a function of the parameters."""
    buffers = dict(model.named_buffers())

    def loss(parameters, image, label):
        logits = functional_call(model, (parameters, buffers), (image[None],))
        return F.cross_entropy(logits, label[None])

    return loss


def assert_gradients_per_sample(model, images, labels):
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    per_sample = vmap(grad(loss_of(model)), in_dims=(None, 0, 0))(parameters, images, labels)
    for i in range(len(images)):
        model.zero_grad()
        F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1]).backward()
        for key, parameter in model.named_parameters():
            assert_close(per_sample[key][i], parameter.grad, msg=key)


@pytest.mark.parametrize("name", EVERY)
def test_vmap_over_stacked_models(name):
    models = [build(name), build(name)]
    for parameter in models[1].parameters():
        nn.init.normal_(parameter, std=0.1)
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    images = torch.rand(2, 3, *SIZES[0], dtype=torch.double)
    outputs = vmap(lambda p, b, x: functional_call(skeleton, (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, images
    )
    assert_close(outputs, torch.stack([model(images) for model in models]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EVERY)
def test_gradients_per_sample(name, size):
    assert_gradients_per_sample(build(name), torch.rand(2, 3, *size, dtype=torch.double), torch.tensor([0, 2]))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_per_sample_in_training_mode(name):
    model = replace_all_batch_norm_modules_(build(name)).train()
    images = torch.rand(2, 3, 64, 64, dtype=torch.double)  # one value per channel would be refused by batch norm
    assert_gradients_per_sample(model, images, torch.tensor([0, 2]))


@pytest.mark.parametrize("name", EVERY)
def test_jacrev(name):
    model, image = build(name), torch.rand(1, 3, 8, 8, dtype=torch.double, requires_grad=True)
    jacobian = jacrev(model)(image)[0]  # [3, 1, 3, H, W]
    for row, logit in zip(jacobian, model(image)[0], strict=True):
        assert_close(row, torch.autograd.grad(logit, image, retain_graph=True)[0])


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_compiled_vmap(name):
    model = build(name)
    images = torch.rand(2, 1, 3, 32, 32, dtype=torch.double)
    torch.compiler.reset()
    compiled = torch.compile(
        vmap(lambda x: functional_call(model, dict(model.named_parameters()), (x,))), backend="eager"
    )
    assert_close(compiled(images), model(images[:, 0])[:, None])


@pytest.mark.parametrize("name", KINDS)
def test_forward_mode(name, plain_attention):
    model, image = build(name), torch.rand(1, 3, 6, 4, dtype=torch.double)
    assert_close(jacfwd(model)(image), jacrev(model)(image))
    tangent = torch.rand_like(image)
    with torch.autograd.forward_ad.dual_level():
        dual = model(torch.autograd.forward_ad.make_dual(image, tangent))
        _, ours = torch.autograd.forward_ad.unpack_dual(dual)
    assert_close(ours, torch.einsum("bkxcij,xcij->bk", jacrev(model)(image), tangent))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_second_derivatives(name, training, plain_attention):
    """The gradient of a gradient penalty, against finite differences."""
    model = build(name).train(training)
    images = torch.rand(2, 3, 64, 64, dtype=torch.double)
    weight = model.stem.conv.weight

    def penalty():
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
        return gradient.pow(2).sum()

    direction = torch.randn_like(weight)
    (ours,) = torch.autograd.grad(penalty(), weight)
    step = 1e-7  # so small that no ReLU changes its sign on the way
    with torch.no_grad():
        weight += step * direction
    above = penalty().item()
    with torch.no_grad():
        weight -= 2 * step * direction
    below = penalty().item()
    assert (ours * direction).sum().item() == pytest.approx((above - below) / (2 * step), rel=1e-3)
