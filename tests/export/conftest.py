"""Tests of exports have shallow models."""

import pytest


@pytest.fixture(autouse=True)
def _shallow(shallow_models):
    pass
