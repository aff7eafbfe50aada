"""PyTorch's own: gradients per image, ensembles, training on several processes."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.distributed import barrier, destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel

import timm_mobilevit  # noqa: F401  registers the models


def test_gradients_per_image(model):
    """torch.func.vmap of grad: their mean is the gradient of the batch."""
    model.double()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(model, (parameters, buffers), (image[None],)), label[None])

    images, labels = torch.rand(4, 3, 64, 64, dtype=torch.double), torch.tensor([0, 1, 1, 0])
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    F.cross_entropy(model(images), labels).backward()
    for key, parameter in parameters.items():
        torch.testing.assert_close(gradients[key].mean(dim=0), parameter.grad)


def test_ensemble(model):
    """torch.func.stack_module_state: three models in one call."""
    models = [copy.deepcopy(model) for _ in range(3)]
    for parameter in (parameter for network in models for parameter in network.parameters()):
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.rand(2, 3, 64, 64)
    logits = vmap(lambda *state: functional_call(models[0], state, (images,)))(*stack_module_state(models))
    torch.testing.assert_close(logits, torch.stack([network(images) for network in models]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wrapper", ["DistributedDataParallel", "fully_shard"])
def test_two_processes(wrapper, name):
    """Three steps on the CPU with gloo, in which each gradient has the strides of its parameter."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, __file__, wrapper, name], capture_output=True, text=True, timeout=300)
    losses = [float(loss) for loss in done.stdout.split()]  # gloo may abort a process that has done its work
    assert len(losses) == 3, done.stderr
    assert losses[-1] < losses[0]
    assert "Grad strides do not match bucket view strides" not in done.stderr


def train(wrapper, name):
    """What each process runs; the first prints its loss before and after."""
    init_process_group("gloo")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2)
    model = DistributedDataParallel(model) if wrapper == "DistributedDataParallel" else fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(torch.distributed.get_rank())
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    for _ in range(3):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if torch.distributed.get_rank() == 0:
            print(loss.item(), flush=True)
    barrier()
    destroy_process_group()


if __name__ == "__main__":
    train(*sys.argv[1:])
