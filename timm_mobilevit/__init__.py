"""MobileViT v1, v2 and v3 for timm: importing this package registers the models.

Example:
    >>> import timm, timm_mobilevit
    >>> len(timm.list_models(module="mobilevit_zoo"))
    19
"""

import sys
from pathlib import Path

from ._version import __version__

# Two programs register the models later: `timm-mobilevit`, whose help and completion do not wait for torch, and `python
# -m timm_mobilevit.run`, whose script may bring another timm. sys.argv[0] is "-m" while Python looks for the module.
_program = sys.argv[0]
if Path(_program).stem != "timm-mobilevit" and not (_program == "-m" and f"{__name__}.run" in sys.orig_argv):
    from . import mobilevit_zoo as mobilevit_zoo
    from .inference.optimize import optimize_for_inference
    from .network.model import MobileViT

__all__ = ["MobileViT", "__version__", "optimize_for_inference"]
