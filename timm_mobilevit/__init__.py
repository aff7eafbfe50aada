"""MobileViT v1, v2 and v3 for timm: importing this package registers the models.

Example:
    >>> import timm, timm_mobilevit
    >>> len(timm.list_models(module="mobilevit_zoo"))
    19
"""

import sys

from ._version import __version__

# `python -m timm_mobilevit.run SCRIPT` imports this package before SCRIPT's folder, which may hold another timm, is on
# the path; run.py registers the models once it is. Python sets sys.argv[0] to "-m" only while it looks for the module.
if not (sys.argv[0] == "-m" and sys.orig_argv[-len(sys.argv)].endswith(f"{__name__}.run")):
    from . import mobilevit_zoo as mobilevit_zoo
    from .inference.optimize import optimize_for_inference
    from .network.model import MobileViT

__all__ = ["MobileViT", "__version__", "optimize_for_inference"]
