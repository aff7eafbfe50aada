"""Files for other runtimes: ONNX, Core ML and ExecuTorch, each with an extra of its own.

The packages that write them are imported only when a function is called. Detectors and segmentors are made ready for
all of them by ``timm_mobilevit.export.mm``, which needs the extra ``mm``.
"""

from .coreml import export_coreml
from .executorch import export_executorch
from .onnx import check_onnx, export_onnx
from .quantize import quantize_onnx

__all__ = ["check_onnx", "export_coreml", "export_executorch", "export_onnx", "quantize_onnx"]
