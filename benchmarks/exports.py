"""Export every model to every format, run what was written, and write down what works.

``python -m benchmarks.exports [--models PATTERN] [--formats NAME,NAME] [--size 256]``. Each result is a row of
``benchmarks/results/exports.csv``, replaced when it is measured again: formats whose packages do not go together can be
measured in environments of their own.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import timm_mobilevit  # noqa: F401  registers the models
from benchmarks._peers import build
from benchmarks._results import RESULTS, read, write

CSV = RESULTS / "exports.csv"
_PLAIN = ("yes", "not verified", "not tried")  # results that need no reason where all models have them
TOLERANCE = 1e-4  # of the standard deviation of the logits


def _torch_export(model: nn.Module, size: int, folder: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    axes = {0: dynamic, 2: dynamic, 3: dynamic}
    program = torch.export.export(model, (torch.rand(2, 3, size, size),), dynamic_shapes=(axes,))
    torch.export.save(program, folder / "model.pt2")
    loaded = torch.export.load(folder / "model.pt2").module()
    _compare(loaded, model, [(1, size, size), (3, size + 37, size + 5)])


def _torchscript(model: nn.Module, size: int, folder: Path) -> None:
    torch.jit.script(model).save(folder / "model.pt")
    _compare(torch.jit.load(folder / "model.pt"), model, [(1, size, size), (3, size + 37, size + 5)])


def _onnx(model: nn.Module, size: int, folder: Path, *, dynamic: bool = False, **options: Any) -> None:
    from timm_mobilevit.export import export_onnx

    # It compares by itself.
    axes = {"dynamic_batch": dynamic, "dynamic_size": dynamic}
    export_onnx(model, folder / "model.onnx", input_size=(3, size, size), **axes, **options)


def _onnx_int8(model: nn.Module, size: int, folder: Path) -> None:
    import onnxruntime
    from PIL import Image

    from timm_mobilevit.export.quantize import quantize_onnx

    images = folder / "images"
    images.mkdir()
    for index in range(4):  # noise: what int8 does to accuracy is measured by benchmarks.quantization
        Image.fromarray(torch.randint(256, (size, size, 3), dtype=torch.uint8).numpy()).save(images / f"{index}.png")
    out = folder / "int8.onnx"
    _onnx(model, size, folder)
    quantize_onnx(folder / "model.onnx", out, images)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": torch.rand(1, 3, size, size).numpy()})
    if not torch.from_numpy(logits).isfinite().all():
        raise ValueError("the logits are not finite")


def _coreml(model: nn.Module, size: int, folder: Path) -> str:
    from timm_mobilevit.export import export_model

    export_model(model, folder / "model.mlpackage", input_size=(3, size, size))
    return "not verified"


def _file(model: nn.Module, size: int, folder: Path, *, to: str) -> None:
    from timm_mobilevit.export import export_model
    from timm_mobilevit.export.formats import FORMATS as EXPORTED

    export_model(model, folder / f"model{EXPORTED[to].ending}", to, input_size=(3, size, size))  # it compares by itself


# Name: heading, how to do it, the packages that matter.
FORMATS: dict[str, tuple[str, Callable[[nn.Module, int, Path], Any], tuple[str, ...]]] = {
    "torch-export": ("`torch.export`, any batch and size", _torch_export, ("torch",)),
    "torchscript": ("TorchScript", _torchscript, ("torch",)),
    "onnx": ("ONNX, fixed", _onnx, ("torch", "onnx", "onnxruntime")),
    "onnx-dynamic": (
        "ONNX, any batch and size",
        partial(_onnx, dynamic=True),
        ("torch", "onnx", "onnxruntime"),
    ),
    "onnx-17": ("ONNX, opset 17", partial(_onnx, opset=17), ("torch", "onnx", "onnxruntime")),
    "onnx-fp16": ("ONNX fp16", partial(_onnx, half=True), ("torch", "onnx", "onnxruntime")),
    "onnx-int8": ("ONNX int8", _onnx_int8, ("torch", "onnx", "onnxruntime")),
    "openvino": ("OpenVINO", partial(_file, to="openvino"), ("torch", "openvino")),
    "litert": ("LiteRT", partial(_file, to="litert"), ("torch", "litert-torch")),
    "ncnn": ("ncnn", partial(_file, to="ncnn"), ("torch", "pnnx", "ncnn")),
    "executorch": ("ExecuTorch", partial(_file, to="executorch"), ("torch", "executorch")),
    "coreml": ("Core ML", _coreml, ("torch", "coremltools")),
}


@torch.inference_mode()
def _compare(exported: Callable[[Tensor], Tensor], model: nn.Module, shapes: Iterable[tuple[int, int, int]]) -> None:
    for batch, height, width in shapes:
        images = torch.rand(batch, 3, height, width)
        expected = model(images)
        difference = (exported(images) - expected).abs().max() / expected.std()
        if not difference <= TOLERANCE:
            raise ValueError(f"differs by {difference:.1g} of the standard deviation")


def measure(name: str, form: str, size: int) -> dict[str, str]:
    """Export one model to one format.

    Args:
        name: Name of a model.
        form: A key of ``FORMATS``.
        size: Side of the images, in pixels.

    Returns:
        A row: model, format, size, ``yes`` (it was run and equals PyTorch), ``not verified`` (it was written, but does
        not run here) or why not, and the versions of the packages.

    Raises:
        ImportError: If a package is missing, which says nothing about the model.
    """
    _, attempt, packages = FORMATS[form]
    torch.manual_seed(0)
    model = build(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = attempt(model, size, Path(folder)) or "yes"
    except ImportError:
        raise
    except Exception as error:  # whatever else goes wrong is the result
        result = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return {"model": name, "format": form, "size": str(size), "result": result, "with": versions}


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "not installed"


def merge(old: Iterable[dict[str, str]], new: Mapping[str, str]) -> list[dict[str, str]]:
    """Put a row in the place of the one for the same model and format, in the order of registry and ``FORMATS``."""
    kept = [row for row in old if (row["model"], row["format"]) != (new["model"], new["format"])]
    return sorted([*kept, dict(new)], key=lambda row: (row["model"], list(FORMATS).index(row["format"])))


def markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the table of docs/deployment.md: a row per format, a column per generation, what differs below.

    Example:
        >>> results = {"v1_s": "yes", "v1_xs": "yes", "v2_0_5": "yes", "v2_1_0": "not verified", "v3_s": "Error: x"}
        >>> rows = [{"model": f"mobilevit{name}", "format": "onnx", "result": text} for name, text in results.items()]
        >>> print(markdown(rows))
        | format | MobileViTv1, 2 models | MobileViTv2, 2 models | MobileViTv3, 1 model |
        |---|---|---|---|
        | ONNX, fixed | yes | yes, but (1) | no (2) |
        <BLANKLINE>
        (1) `mobilevitv2_1_0`: not verified
        <BLANKLINE>
        (2) `mobilevitv3_s`: Error: x
    """
    rows = list(rows)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        groups.setdefault(name.removeprefix("mobilevit").partition("_")[0], []).append(name)
    results = {(row["format"], row["model"]): row["result"] for row in rows}
    headings = (f"MobileViT{key}, {len(names)} model{'s' * (len(names) > 1)}" for key, names in groups.items())
    lines = [f"| format | {' | '.join(headings)} |", f"|---|{'---|' * len(groups)}"]
    reasons: list[str] = []
    for form, (title, *_) in FORMATS.items():
        cells = []
        for names in groups.values():
            found = {name: results.get((form, name), "not tried") for name in names}
            usual = found[names[0]]
            if set(found.values()) == {usual} and usual in _PLAIN:
                cells.append(usual)
                continue
            others = [f"`{name}`: {result}" for name, result in found.items() if result != "yes"]
            numbers = range(len(reasons) + 1, len(reasons) + len(others) + 1)
            cells.append(f"{'no' if len(others) == len(found) else 'yes, but'} {', '.join(f'({n})' for n in numbers)}")
            reasons += others
        if set(cells) != {"not tried"}:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    for number, reason in enumerate(reasons, 1):
        lines += ["", f"({number}) {reason}"]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write each result as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="wildcards of model names; all without it")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of %(default)s")
    parser.add_argument("--size", type=int, default=256, help="side of the square images, in pixels")
    args: Any = parser.parse_args()
    forms = args.formats.split(",")
    if unknown := set(forms) - set(FORMATS):
        parser.error(f"there is no format {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
    rows = read(CSV) if CSV.exists() else []
    for name in timm.list_models(args.models, module="mobilevit_zoo"):
        for form in forms:
            try:
                row = measure(name, form, args.size)
            except ImportError as error:
                print(f"{name:20} {form:14} not tried: {error}", flush=True)
                continue
            rows = merge(rows, row)
            write(rows, CSV)
            print(f"{name:20} {form:14} {row['result']}", flush=True)


if __name__ == "__main__":
    main()
