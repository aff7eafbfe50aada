"""ExecuTorch programs: run in ExecuTorch's own runtime and compared with PyTorch."""

import sys

import pytest
import timm
import torch

from timm_mobilevit.export.executorch import export_executorch
from timm_mobilevit.variants import VARIANTS

MODELS = timm.list_models(module="mobilevit_zoo")
SMALLEST = [
    min((name for name in MODELS if VARIANTS[name].separable == separable), key=lambda name: sum(VARIANTS[name].widths))
    for separable in (False, True)
]


def check(model, path, size):
    """Compare on an image that differs from the one that was exported with."""
    runtime = pytest.importorskip(
        "executorch.runtime", reason='needs the extra: pip install "timm-mobilevit[executorch]"'
    )
    model = model.eval()
    x = torch.rand(1, 3, size, size)
    export_executorch(model, path, input_size=(3, size, size))
    outputs = runtime.Runtime.get().load_program(path).load_method("forward").execute([x])
    with torch.inference_mode():
        expected = model(x)
    for ours, theirs in zip(expected if isinstance(expected, list) else [expected], outputs, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * float(ours.std()))


@pytest.mark.parametrize("name", SMALLEST)
def test_computes_what_pytorch_does(name, tmp_path):
    check(timm.create_model(name, num_classes=10), tmp_path / "model.pte", 64)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pte"]


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_computes_what_pytorch_does_at_a_size_that_the_patch_does_not_divide(name, tmp_path):
    check(timm.create_model(name, num_classes=10), tmp_path / "model.pte", 72)


@pytest.mark.long
def test_backbone(tmp_path):
    check(timm.create_model(SMALLEST[0], features_only=True), tmp_path / "model.pte", 64)


def test_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(ImportError, match=r"timm-mobilevit\[executorch\]"):
        export_executorch(torch.nn.Identity(), tmp_path / "model.pte")


def test_refuses_a_size_that_is_none(tmp_path):
    pytest.importorskip("executorch.exir", reason='needs the extra: pip install "timm-mobilevit[executorch]"')
    with pytest.raises(ValueError, match="input_size must be channels, height and width"):
        export_executorch(torch.nn.Identity(), tmp_path / "model.pte", input_size=(64, 64))
    assert list(tmp_path.iterdir()) == []
