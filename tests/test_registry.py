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


def python(code):
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout, result.stderr


def test_table_entry_points_and_pretrained_rows_agree():
    registered = timm.list_models(module="mobilevit_zoo")
    assert set(registered) == set(VARIANTS)
    assert len(registered) == 19
    assert {name.partition(".")[0] for name in mobilevit_zoo.default_cfgs} == set(VARIANTS)
    for name in registered:
        function = getattr(mobilevit_zoo, name)
        assert inspect.getsource(function).count("\n") <= 4
        assert function.__doc__


def test_importing_is_silent_and_replaces_nothing():
    code = """
import json, timm
before = {name: timm.model_entrypoint(name) for name in timm.list_models()}
listed = timm.list_models(pretrained=True)
import timm_mobilevit
assert all(timm.model_entrypoint(name) is entry for name, entry in before.items())
assert set(listed) <= set(timm.list_models(pretrained=True))
print(json.dumps(sorted(set(timm.list_models()) - set(before))))
"""
    out, err = python(code)
    assert set(json.loads(out)) == set(VARIANTS)
    assert err == ""


def test_importing_is_light():
    code = """
import sys, timm
before = set(sys.modules)
import timm_mobilevit
print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))
"""
    out, _ = python(code)
    assert out.split() == ["timm_mobilevit"]


def test_version():
    assert timm_mobilevit.__version__.count(".") == 2
    assert timm_mobilevit.MobileViT.__name__ == "MobileViT"


def test_variants_are_immutable():
    with pytest.raises(AttributeError):
        get_variant("mobilevitv1_s").stem_width = 3
