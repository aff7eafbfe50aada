"""Conversion of checkpoints: from every layout that MobileViT weights are published in to ours, and back.

A layout is a literal table of substitutions from our parameter names to theirs; the way back is derived from it. Ours
is timm's, extended to v3 by the same scheme.
"""

from .state_dicts import convert_state_dict, export_state_dict

__all__ = ["convert_state_dict", "export_state_dict"]
