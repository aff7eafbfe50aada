"""What reaches the networks and the loaders of images when a command runs."""

import pytest
import torch

from timm_mobilevit.network.model import MobileViT


@pytest.fixture
def inputs():
    """Each batch that a network gets, and whether it computes in bfloat16."""
    seen = []

    def record(module, args):
        if isinstance(module, MobileViT):
            half = next(module.stages.parameters()).dtype == torch.bfloat16
            seen.append((args[0].clone(), half))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(record)
    yield seen
    handle.remove()


@pytest.fixture
def workers(monkeypatch):
    """For each loader of images, how many processes it is given; it reads in this one."""
    asked = []
    init = torch.utils.data.DataLoader.__init__

    def record(self, *args, **kwargs):
        asked.append(kwargs["num_workers"])
        init(self, *args, **kwargs | {"num_workers": 0, "prefetch_factor": None})

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", record)
    return asked
