"""Accuracy on a folder of images: the public door to ``timm_mobilevit.evaluation.accuracy``."""

from .evaluation.accuracy import Accuracy, evaluate, write_results

__all__ = ["Accuracy", "evaluate", "write_results"]
