"""Settings for the whole suite."""

import sys

import pytest
import torch
from export_models import shallow_zoo

import timm_mobilevit  # noqa: F401  registers the models


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shallow_models(request):
    """Make every model a shallow one, but in tests that are marked long: those have the published depths."""
    if request.node.get_closest_marker("long"):
        yield
        return
    with shallow_zoo():
        yield


@pytest.fixture(autouse=True, scope="module")
def no_default_scope():
    """mmengine remembers for which package a test looked names up last; the next file begins without."""
    if "mmengine" in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()
