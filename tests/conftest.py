"""Settings for the whole suite."""

import sys

import pytest
import torch

import timm_mobilevit  # noqa: F401  registers the models


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def no_default_scope():
    """mmengine remembers for which package a test looked names up last; the next file begins without."""
    if "mmengine" in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()
