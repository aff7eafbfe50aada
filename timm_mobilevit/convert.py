"""Conversion of checkpoints: the public door to ``timm_mobilevit.weights.convert``."""

from .weights.convert import convert_state_dict, export_state_dict

__all__ = ["convert_state_dict", "export_state_dict"]
