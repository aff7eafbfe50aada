"""The formats that a model can be exported to, as data.

Where ``timmx`` is set, timmx (https://pypi.org/project/timmx), the exporter for timm models, writes the file. The other
files are written by this package, which adds what timmx does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Format:
    """A format of exported files; the extra of the same name installs what writes and runs them.

    Attributes:
        title: What people call it.
        ending: How the name of the file, or of the directory, ends.
        writers: Modules that write it.
        runtime: Module that runs it here.
        unverified: Instead of a runtime: why the file cannot be run here.
        takes: Options of ``timm-mobilevit export`` that not every format has.
        timmx: Options of timmx, None where this package writes the file.
        timmx_half: Further ones for weights in float16.
        is_folder: Whether it is a directory.
        has_metadata: Whether it says itself what it was made from; otherwise a JSON file beside it does.
        siblings: Endings of further files that belong to it.
        leftovers: Files in its directory that only the writer needs; they may hold paths of the machine.
    """

    title: str
    ending: str
    writers: tuple[str, ...]
    runtime: str = ""
    unverified: str = ""
    takes: frozenset[str] = frozenset()
    timmx: Mapping[str, Any] | None = None
    timmx_half: Mapping[str, Any] = field(default_factory=dict)
    is_folder: bool = False
    has_metadata: bool = False
    siblings: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()


_DENSE = frozenset({"--config", "--backbone"})
_HALF = frozenset({"--half"})
_INT8 = frozenset({"--int8"})
_ONNX = frozenset(
    {"--static", "--fixed-size", "--opset", "--half-io", "--softmax", "--image-input", "--raw", "--argmax"}
)

FORMATS = {
    "onnx": Format(
        "ONNX",
        ".onnx",
        ("onnx", "onnxscript"),
        runtime="onnxruntime",
        takes=_DENSE | _HALF | _INT8 | _ONNX,
        has_metadata=True,
    ),
    "coreml": Format(
        "Core ML",
        ".mlpackage",
        ("coremltools",),
        unverified="Core ML runs on Apple's systems only",
        takes=_DENSE | {"--raw"},
        is_folder=True,
        has_metadata=True,
    ),
    "executorch": Format("ExecuTorch", ".pte", ("executorch",), runtime="executorch", takes=_DENSE | _INT8),
    "openvino": Format(
        "OpenVINO",
        ".xml",
        ("timmx",),
        runtime="openvino",
        takes=_HALF | _INT8,
        timmx={"fp16": False, "verify": False},
        timmx_half={"fp16": True},
        siblings=(".bin",),
    ),
    "litert": Format(
        "LiteRT",
        ".tflite",
        ("timmx", "litert_torch"),
        runtime="ai_edge_litert",
        takes=_HALF,
        timmx={"mode": "fp32", "verify": False},
        timmx_half={"mode": "fp16"},
    ),
    "ncnn": Format(
        "ncnn",
        "_ncnn",
        ("timmx", "pnnx"),
        runtime="ncnn",
        takes=_HALF,
        timmx={"fp16": False, "verify": False},
        timmx_half={"fp16": True},
        is_folder=True,
        leftovers=("model_ncnn.py",),
    ),
    # What timmx itself compares, it compares more loosely than this package does.
    "tensorrt": Format(
        "TensorRT",
        ".engine",
        ("timmx", "tensorrt", "onnxscript"),
        unverified="an engine runs on the GPU that it was built for, where timmx compares it by cosine similarity only",
        takes=_HALF,
        timmx={"mode": "fp32"},
        timmx_half={"mode": "fp16"},
    ),
    "coreai": Format(
        "Core AI",
        ".aimodel",
        ("timmx", "coreai_torch"),
        unverified="Core AI runs on Apple's systems only",
        timmx={},
        is_folder=True,
    ),
}


def format_of(path: PurePath) -> str:
    """The format of a file, by the ending of its name.

    Raises:
        ValueError: If it is that of no format.

    Example:
        >>> format_of(PurePath("digits.tflite")), format_of(PurePath("digits_ncnn"))
        ('litert', 'ncnn')
    """
    for name, form in FORMATS.items():
        if path.name.endswith(form.ending):
            return name
    endings = ", ".join(form.ending for form in FORMATS.values())
    raise ValueError(f"{path} is no exported file: expected a name that ends in one of {endings}")


def is_exported(path: PurePath) -> bool:
    """Whether a name ends as that of an exported file.

    Example:
        >>> is_exported(PurePath("digits.pte")), is_exported(PurePath("digits.safetensors"))
        (True, False)
    """
    return path.name.endswith(tuple(form.ending for form in FORMATS.values()))


def require(name: str, *, to_write: bool = True) -> None:
    """Make sure that a format's packages are installed.

    Args:
        name: A key of ``FORMATS``.
        to_write: Whether the file is to be written; otherwise it is only run.

    Raises:
        ImportError: If one is missing; the message names the extra.
    """
    form = FORMATS[name]
    wanted = dict.fromkeys((*form.writers, form.runtime) if to_write else (form.runtime,))
    if missing := [package for package in wanted if package and find_spec(package) is None]:
        since = ", on Python 3.11 or newer" if "timmx" in form.writers else ""
        raise ImportError(
            f"{form.title} needs {', '.join(missing)}, not installed here; install with: "
            f'pip install "timm-mobilevit[{name}]"{since}'
        )
