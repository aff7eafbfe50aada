"""Functions that write files of other runtimes look at the target before they work."""

from functools import partial

import pytest
from torch import nn

from timm_mobilevit.export import (
    add_argmax,
    add_suppression,
    export_coreml,
    export_executorch,
    export_onnx,
    export_with_timmx,
    quantize_onnx,
)
from timm_mobilevit.formats import FORMATS

# Each with a model or file that it would refuse if it came to look at it.
FUNCTIONS = {
    "onnx": partial(export_onnx, nn.Linear(1, 1)),
    "coreml": partial(export_coreml, nn.Linear(1, 1)),
    "executorch": partial(export_executorch, nn.Linear(1, 1)),
    **{
        name: lambda path, to=name: export_with_timmx(nn.Linear(1, 1), path, to)
        for name, form in FORMATS.items()
        if form.timmx is not None
    },
}
OF_FILES = {
    "quantize": lambda path: quantize_onnx(__file__, path, "images"),
    "suppress": lambda path: add_suppression(__file__, path),
    "argmax": lambda path: add_argmax(__file__, path),
}
CASES = [*FUNCTIONS.items(), *OF_FILES.items()]


def test_every_format_is_here():
    assert FUNCTIONS.keys() == FORMATS.keys()


@pytest.mark.parametrize(("name", "function"), CASES, ids=[name for name, _ in CASES])
def test_targets_are_checked_before_the_work(name, function, tmp_path):
    pytest.importorskip({"coreml": "coremltools", "executorch": "executorch"}.get(name, "onnx"))
    form = FORMATS.get(name, FORMATS["onnx"])
    (tmp_path / "file").write_text("mine")
    good = f"model{form.ending}"
    for path, message in (
        (tmp_path / "model.txt", f"expected a name that ends in {form.ending}"),
        (tmp_path / form.ending, f"expected a name that ends in {form.ending}"),
        (tmp_path / "file" / good, "file is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            function(path)
    with pytest.raises(OSError, match="cannot write /proc/"):
        function(f"/proc/{good}")
    if form.is_folder:
        (tmp_path / good).write_text("mine")
    else:
        (tmp_path / good).mkdir()
    with pytest.raises(ValueError, match=f"{good} is a "):
        function(tmp_path / good)
