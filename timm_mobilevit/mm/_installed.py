"""Which of OpenMMLab's packages are installed, in any build, and which part of ``timm_mobilevit.mm`` needs which."""

import importlib
from typing import Any, Literal

Part = Literal["the backbone", "augmentations", "segmentation", "detection"]

# Imports of each part, and the extras that install them. Without mmcv's ops, detection fails later with a less clear
# message, and so does `mmseg.models` of OpenMMLab's own mmseg 1.2, which imports them.
_NEEDED: dict[Part, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "the backbone": (("mmengine",), ("seg", "det", "mm")),
    "augmentations": (("mmengine", "mmcv"), ("seg", "det", "mm")),
    "segmentation": (("mmengine", "mmcv", "mmseg", "mmseg.models"), ("seg", "mm")),
    "detection": (("mmengine", "mmcv", "mmcv.ops", "mmdet"), ("det", "mm")),
}
_PART_OF_SCOPE: dict[str, Part] = {"mmseg": "segmentation", "mmdet": "detection"}
_OPS = (
    "mmcv has its ops where it was built beside the installed torch: pip install --no-cache-dir --force-reinstall "
    "--no-deps --no-build-isolation onedl-mmcv"
)


class MissingExtraError(ImportError):
    """A package that a part of ``timm_mobilevit.mm`` needs is missing, or refuses to be imported."""


def check_installed(part: Part) -> None:
    """Import the packages that a part of ``timm_mobilevit.mm`` needs.

    Raises:
        MissingExtraError: If a package is missing or refuses to be imported; the message names it, the reason, and the
            extra that installs it.
    """
    modules, extras = _NEEDED[part]
    problems = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:  # by an assertion, mmdet and mmseg refuse a version of mmcv
            problems[module] = error
    if problems:
        found = "; ".join(f"{module}: {error}" for module, error in problems.items())
        commands = " or ".join(f"pip install 'timm-mobilevit[{extra}]'" for extra in extras)
        raise MissingExtraError(
            f"timm_mobilevit.mm needs {', '.join(modules)} for {part}, but cannot import {found}. Install what is "
            "missing, from OpenMMLab or from a fork that has the same module names; "
            f"{commands} takes forks for newer versions of Python and PyTorch"
            + (f"; {_OPS}" if "mmcv.ops" in problems else "")
        ) from next(iter(problems.values()))


def enter_scope(config: Any) -> None:
    """Enter the default scope of a config, after a check that its packages are installed.

    Args:
        config: A ``mmengine.Config`` with a ``default_scope``. Without one, as in pure-Python configs, the scope is
            that of the model's class.

    Raises:
        MissingExtraError: As :func:`check_installed`.
    """
    kind = (config.get("model") or {}).get("type")
    packages = [base.__module__.partition(".")[0] for base in getattr(kind, "__mro__", ())]
    scope = config.get("default_scope") or next((p for p in packages if p in _PART_OF_SCOPE), "mmengine")
    check_installed(_PART_OF_SCOPE.get(scope, "the backbone"))
    from mmengine.registry import init_default_scope

    init_default_scope(scope)
