"""The formats that a model can be exported to. Each has a module that says all about it, and a row here."""

from pathlib import PurePath

from . import coreml, executorch, litert, ncnn, onnx, openvino

FORMATS = {
    form.name: form
    for form in (
        onnx.FORMAT,
        openvino.FORMAT,
        litert.FORMAT,
        ncnn.FORMAT,
        executorch.FORMAT,
        coreml.FORMAT,
    )
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
        if form.ending and path.name.endswith(form.ending):
            return name
    endings = ", ".join(form.ending for form in FORMATS.values() if form.ending)
    raise ValueError(f"{path} is no exported file: expected a name that ends in one of {endings}")


def is_exported(path: PurePath) -> bool:
    """Whether a name ends as that of an exported file.

    Example:
        >>> is_exported(PurePath("digits.pte")), is_exported(PurePath("digits.safetensors"))
        (True, False)
    """
    return path.name.endswith(tuple(form.ending for form in FORMATS.values() if form.ending))
