"""MobileViT in MMDetection and MMSegmentation: importing this package registers what our configs name.

All a config needs is ``custom_imports = dict(imports=["timm_mobilevit.mm"], allow_failed_imports=False)``.
"""

try:
    import mmcv.ops  # noqa: F401  the ops too: without them mmcv fails much later, with an unclear message
    import mmdet  # noqa: F401
    import mmengine  # noqa: F401
    import mmseg  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"timm_mobilevit.mm needs MMDetection and MMSegmentation with mmcv's ops ({error}): "
        "install the extra with pip install 'timm-mobilevit[mm]'"
    ) from error

from .anchors import SSDLiteAnchorGenerator
from .backbone import TimmMobileViT
from .convert import convert_state_dict
from .seg_heads import MobileViTASPPHead, MobileViTPSPHead
from .segmentor import MobileViTEncoderDecoder
from .ssd_head import SSDLiteHead
from .ssd_neck import SSDLiteNeck
from .transforms import RandomBrightnessFactor, RandomGaussianBlur, ResizeToFloorMultiple, SSDCrop

__all__ = [
    "MobileViTASPPHead",
    "MobileViTEncoderDecoder",
    "MobileViTPSPHead",
    "RandomBrightnessFactor",
    "RandomGaussianBlur",
    "ResizeToFloorMultiple",
    "SSDCrop",
    "SSDLiteAnchorGenerator",
    "SSDLiteHead",
    "SSDLiteNeck",
    "TimmMobileViT",
    "convert_state_dict",
]
