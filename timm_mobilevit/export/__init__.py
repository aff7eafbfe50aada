"""Files for other runtimes, each format with an extra of its own, and such files as models.

The packages that write and run them are imported only when a function is called. Detectors and segmentors are made
ready by ``timm_mobilevit.export.mm``, which needs the extra ``mm``.
"""

from .coreml import export_coreml
from .executorch import export_executorch
from .final_outputs import add_argmax, add_suppression
from .onnx import check_onnx, export_onnx
from .quantize import quantize_onnx
from .runtimes import ExportedModel
from .with_timmx import export_with_timmx

__all__ = [
    "ExportedModel",
    "add_argmax",
    "add_suppression",
    "check_onnx",
    "export_coreml",
    "export_executorch",
    "export_onnx",
    "export_with_timmx",
    "quantize_onnx",
]
