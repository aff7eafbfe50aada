"""Functions that write files of other runtimes look at the target before they work, and name what they do not take."""

from functools import partial

import pytest
from torch import nn

from timm_mobilevit.export import export_model, quantize_onnx
from timm_mobilevit.export.formats import FORMATS

# Each with a model or file that it would refuse if it came to look at it.
CASES = {
    **{name: partial(export_model, nn.Linear(1, 1), to=name) for name in FORMATS},
    "quantize": lambda path: quantize_onnx(__file__, path, "images"),
}


@pytest.mark.parametrize("name", CASES)
def test_targets_are_checked_before_the_work(name, tmp_path):
    if name == "quantize":
        pytest.importorskip("onnx")
    form, function = FORMATS.get(name, FORMATS["onnx"]), CASES[name]
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


@pytest.mark.parametrize("name", FORMATS)
def test_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setattr("timm_mobilevit.export._format.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf'pip install "timm-mobilevit\[{name}\]"'):
        export_model(nn.Linear(1, 1), tmp_path / f"model{FORMATS[name].ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "option"),
    [("ncnn", "image_input"), ("coreml", "calibration"), ("litert", "opset"), ("openvino", "suppress")],
)
def test_options_that_a_format_does_not_have(name, option, tmp_path):
    with pytest.raises(ValueError, match=f"{FORMATS[name].title} does not take {option}; it takes half, softmax"):
        export_model(nn.Linear(1, 1), tmp_path / f"model{FORMATS[name].ending}", **{option: True})


@pytest.mark.parametrize(
    "name", [name for name, form in FORMATS.items() if form.takes.keys() >= {"half", "calibration"}]
)
def test_eight_bits_and_half_precision_exclude_each_other(name, tmp_path):
    path = tmp_path / f"model{FORMATS[name].ending}"
    with pytest.raises(ValueError, match="eight bits go with weights in float32: leave out half"):
        export_model(nn.Linear(1, 1), path, half=True, calibration=tmp_path)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if "calibration" in form.takes])
def test_images_for_eight_bits_are_looked_for_before_the_work(name, tmp_path):
    try:
        FORMATS[name].require()
    except ImportError as error:
        pytest.skip(str(error))
    path = tmp_path / f"model{FORMATS[name].ending}"
    (tmp_path / "empty").mkdir()
    for folder, error in (("nowhere", FileNotFoundError), ("empty", ValueError)):
        with pytest.raises(error, match=f"no .*{folder}"):
            export_model(nn.Linear(1, 1), path, calibration=tmp_path / folder)


def test_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of onnx, openvino, .*; got 'tensorrt'"):
        export_model(nn.Linear(1, 1), tmp_path / "model.engine", "tensorrt")
    with pytest.raises(ValueError, match=r"expected a name that ends in one of \.onnx, \.xml"):
        export_model(nn.Linear(1, 1), tmp_path / "model.engine")
