"""MobileViT in MMDetection and MMSegmentation: importing this package registers what our configs name.

All a config needs is ``custom_imports = dict(imports=["timm_mobilevit.mm"], allow_failed_imports=False)``.
"""

from . import (
    _installed,  # noqa: F401  first, for its message
    checkpoint_loader,  # noqa: F401  registers it
)
from .anchors import SSDLiteAnchorGenerator
from .backbone import TimmMobileViT
from .best_checkpoint import BestCheckpointHook
from .convert import convert_state_dict
from .foreign_configs import use_backbone
from .runner import MobileViTRunner
from .schedule import WarmUpLR
from .seg_heads import MobileViTASPPHead, MobileViTPSPHead
from .seg_tta import MobileViTSegTTAModel
from .segmentor import MobileViTEncoderDecoder
from .ssd_head import SSDLiteHead
from .ssd_neck import SSDLiteNeck
from .transforms import RandomBrightnessFactor, RandomGaussianBlur, ResizeToFloorMultiple, SSDCrop

__all__ = [
    "BestCheckpointHook",
    "MobileViTASPPHead",
    "MobileViTEncoderDecoder",
    "MobileViTPSPHead",
    "MobileViTRunner",
    "MobileViTSegTTAModel",
    "RandomBrightnessFactor",
    "RandomGaussianBlur",
    "ResizeToFloorMultiple",
    "SSDCrop",
    "SSDLiteAnchorGenerator",
    "SSDLiteHead",
    "SSDLiteNeck",
    "TimmMobileViT",
    "WarmUpLR",
    "convert_state_dict",
    "use_backbone",
]
