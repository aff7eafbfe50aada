"""Files for other runtimes, each format with an extra of its own, a page for browsers, and such files as models.

The packages that write and run them, and PyTorch, are imported only when they are used. Detectors and segmentors are
made ready by ``timm_mobilevit.export.mm``, which needs the extra ``mm``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files import export_model as export_model
    from .files import export_onnx as export_onnx
    from .quantize import quantize_onnx as quantize_onnx
    from .runtimes import ExportedModel as ExportedModel
    from .web import export_web as export_web

_HOMES = {
    "ExportedModel": "runtimes",
    "export_model": "files",
    "export_onnx": "files",
    "export_web": "web",
    "quantize_onnx": "quantize",
}
__all__ = ["ExportedModel", "export_model", "export_onnx", "export_web", "quantize_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
