"""MobileViT v1, v2 and v3 for timm: importing this package registers the models.

Example:
    >>> import timm, timm_mobilevit
    >>> len(timm.list_models(module="mobilevit_zoo"))
    19
"""

import os
import sys

from ._version import __version__


def _is_runner() -> bool:
    """Whether this is ``python -m timm_mobilevit.run SCRIPT``.

    It imports this package before SCRIPT's folder, which may hold another timm, is on the path; ``run.py`` registers
    the models once it is. Python sets ``sys.argv[0]`` to ``-m`` only while it looks for the module.
    """
    return sys.argv[0] == "-m" and sys.orig_argv[-len(sys.argv)].endswith(f"{__name__}.run")


def _is_command() -> bool:
    """Whether this is the installed command ``timm-mobilevit``.

    ``--help`` and completion should not wait for torch and timm; ``cli`` registers the models for the commands that
    need them. The folder is compared too: any other program of this name gets the models as ever.
    """
    folder, name = os.path.split(os.path.realpath(sys.argv[0]))
    if name.removesuffix(".exe") != "timm-mobilevit":
        return False
    import sysconfig

    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    return folder in [os.path.realpath(sysconfig.get_path("scripts", scheme)) for scheme in schemes]


if not (_is_runner() or _is_command()):
    from . import mobilevit_zoo as mobilevit_zoo
    from .inference.optimize import optimize_for_inference
    from .network.model import MobileViT

__all__ = ["MobileViT", "__version__", "optimize_for_inference"]
