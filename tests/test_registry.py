"""What importing the package does to timm, and what it leaves alone."""

import inspect
import json
import subprocess
import sys

import pytest
import timm

import timm_mobilevit
from timm_mobilevit import mobilevit_zoo
from timm_mobilevit.variants import VARIANTS, get_variant


def test_table_entry_points_and_pretrained_rows_agree():
    registered = timm.list_models(module="mobilevit_zoo")
    assert set(registered) == set(VARIANTS)
    assert len(registered) == 19
    assert {name.partition(".")[0] for name in mobilevit_zoo.default_cfgs} == set(VARIANTS)
    for name in registered:
        function = getattr(mobilevit_zoo, name)
        assert inspect.getsource(function).count("\n") <= 4
        assert function.__doc__


def test_importing_is_silent_and_light_and_replaces_nothing():
    code = """
import json, sys, timm
before, modules = {name: timm.model_entrypoint(name) for name in timm.list_models()}, set(sys.modules)
listed = timm.list_models(pretrained=True)
import timm_mobilevit
packages = {name.partition('.')[0] for name in set(sys.modules) - modules}
assert all(timm.model_entrypoint(name) is entry for name, entry in before.items())
assert set(listed) <= set(timm.list_models(pretrained=True))
print(json.dumps([sorted(packages), sorted(set(timm.list_models()) - set(before))]))
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [["timm_mobilevit"], sorted(VARIANTS)]
    assert result.stderr == ""


def test_version():
    assert timm_mobilevit.__version__.count(".") == 2
    assert timm_mobilevit.MobileViT.__name__ == "MobileViT"


def test_variants_are_immutable():
    with pytest.raises(AttributeError):
        get_variant("mobilevitv1_s").stem_width = 3
