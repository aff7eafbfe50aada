"""The formats that a model can be exported to: each has a module, which is named here."""

from pathlib import PurePath

from . import coreml, executorch, litert, ncnn, onnx, openvino
from ._format import Format

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (onnx, openvino, litert, ncnn, executorch, coreml)
}


def format_of(path: PurePath) -> str:
    """Return the format of a file, by the ending of its name.

    Raises:
        ValueError: If no format has this ending.

    Example:
        >>> format_of(PurePath("digits.tflite")), format_of(PurePath("digits_ncnn"))
        ('litert', 'ncnn')
    """
    for name, form in FORMATS.items():
        if form.ending and path.name.endswith(form.ending):
            return name
    endings = ", ".join(form.ending for form in FORMATS.values() if form.ending)
    raise ValueError(f"{path} is no exported file: expected a name that ends in one of {endings}")


def is_exported(path: PurePath) -> bool:
    """Tell whether a name ends as that of an exported file.

    Example:
        >>> is_exported(PurePath("digits.pte")), is_exported(PurePath("digits.safetensors"))
        (True, False)
    """
    return path.name.endswith(tuple(form.ending for form in FORMATS.values() if form.ending))
