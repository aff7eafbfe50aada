"""Whether OpenMMLab's packages are here, whoever built them."""

import importlib

# mmcv's ops too: mmcv without them fails much later, with a message that helps nobody.
_NEEDED = {
    "mmengine": "mmengine",
    "mmcv": "mmcv",
    "mmcv.ops": "mmcv's ops (a build of mmcv with MMCV_WITH_OPS=1, not mmcv-lite)",
    "mmdet": "mmdet",
    "mmseg": "mmsegmentation",
}


def check_installed() -> None:
    """Import what ``timm_mobilevit.mm`` stands on.

    Raises:
        ImportError: If something is missing or refuses to be imported; the message names all of it, and why.
    """
    problems = []
    for module, name in _NEEDED.items():
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:  # by an assertion, mmdet and mmseg refuse a version of mmcv
            problems.append((name, error))
    if problems:
        found = "; ".join(f"{name}: {error}" for name, error in problems)
        raise ImportError(
            f"timm_mobilevit.mm needs OpenMMLab's mmengine, mmcv, mmdet and mmsegmentation, but cannot import {found}. "
            "Install what is missing, from OpenMMLab or from a fork that has the same module names; "
            "pip install 'timm-mobilevit[mm]' takes forks for newer versions of Python and PyTorch"
        ) from problems[0][1]


check_installed()
