"""MobileViT in MMDetection and MMSegmentation: importing this package registers the types that our configs name.

All a config needs is ``custom_imports = dict(imports=["timm_mobilevit.mm"], allow_failed_imports=False)``.

The backbone and the parts for its training need MMEngine alone. Parts of segmentors and detectors are registered if the
packages that they need are installed; otherwise, accessing them raises an ImportError that names the extra.
"""

import importlib
from contextlib import suppress
from typing import Any

from ._installed import MissingExtraError, check_installed

check_installed("the backbone")

from . import checkpoint_loader  # noqa: F401  registers it
from .backbone import TimmMobileViT
from .best_checkpoint import BestCheckpointHook
from .convert import convert_state_dict
from .foreign_configs import use_backbone
from .runner import MobileViTRunner
from .schedule import WarmUpLR

__all__ = [
    "BestCheckpointHook",
    "MobileViTASPPHead",
    "MobileViTEncoderDecoder",
    "MobileViTPSPHead",
    "MobileViTRunner",
    "MobileViTSegTTAModel",
    "RandomBrightnessFactor",
    "RandomGaussianBlur",
    "RandomPhotometricDistort",
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

# Modules whose packages may be missing, and the names that this package exports from them.
_OPTIONAL = {
    "transforms": (
        "RandomBrightnessFactor",
        "RandomGaussianBlur",
        "RandomPhotometricDistort",
        "ResizeToFloorMultiple",
    ),
    "seg_heads": ("MobileViTASPPHead", "MobileViTPSPHead"),
    "seg_tta": ("MobileViTSegTTAModel",),
    "segmentor": ("MobileViTEncoderDecoder",),
    "anchors": ("SSDLiteAnchorGenerator",),
    "ssd_crop": ("SSDCrop",),
    "ssd_head": ("SSDLiteHead",),
    "ssd_neck": ("SSDLiteNeck",),
}

for _module in _OPTIONAL:
    with suppress(MissingExtraError):
        importlib.import_module(f".{_module}", __name__)


def __getattr__(name: str) -> Any:
    for module, names in _OPTIONAL.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
