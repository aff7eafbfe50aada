"""Run timm's train.py, or any other script, with the models of this package registered.

    python -m timm_mobilevit.run SCRIPT ARGS...
    torchrun --nproc-per-node 2 -m timm_mobilevit.run SCRIPT ARGS...

For example:

    python -m timm_mobilevit.run pytorch-image-models/train.py --model mobilevitv3_xxs --data-dir images
    python -m timm_mobilevit.run pytorch-image-models/validate.py --model mobilevitv3_xxs --pretrained --data-dir images

SCRIPT sees its arguments, its folder first on the module search path and itself as __main__, as if Python had been
started with it. So a script inside a checkout of timm uses the timm of that checkout, and so do our models.
"""

import builtins
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "timm_mobilevit"
_OLDEST_TIMM = [1, 0, 31]  # as in pyproject.toml
_TIMM_REPOSITORY = "https://github.com/huggingface/pytorch-image-models"


def main() -> None:
    """Run the script that the command line names; the process ends as the script ends it.

    Exits with status 2 if the command line names no script, or one that cannot be read.
    """
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if args else sys.stderr)
        sys.exit(0 if args else 2)

    path = os.path.join(os.getcwd(), args[0])  # as Python itself does; resolving ".." would be wrong after a link
    loader = SourceFileLoader("__main__", path)
    try:
        source = loader.get_data(path)
    except OSError as error:
        print(_cannot_open(args[0], error), file=sys.stderr)
        sys.exit(2)

    code = loader.source_to_code(source, path)

    sys.argv = args
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):  # python -P and -I keep the script's folder out
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    register()

    # Python's own pickles and spawned processes look for the script's names in sys.modules["__main__"], at its end too:
    # runpy.run_path, which puts the old module back, would not do.
    script = ModuleType("__main__")
    script.__dict__.update(__builtins__=builtins, __cached__=None, __file__=path, __loader__=loader)
    sys.modules["__main__"] = script
    exec(code, script.__dict__)


def register() -> None:
    """Register our models with the timm that an import would find now, in this process and in those it spawns.

    A debugger, profiler or coverage tool that runs this module has imported our package before, and so perhaps another
    timm: then timm is imported afresh.

    Raises:
        ImportError: The timm found is older than our models need; a checkout may hold one.
    """
    package = sys.modules[_PACKAGE]
    if _file_of(_PACKAGE) is None:  # found through the working directory alone, which has just left the path
        sys.path.append(str(Path(__file__).resolve().parents[1]))

    timm = sys.modules.get("timm")
    if timm is None or timm.__file__ != _file_of("timm"):
        for name in list(sys.modules):
            if name == "timm" or name.startswith(("timm.", f"{_PACKAGE}.")):
                del sys.modules[name]
        _check_version(importlib.import_module("timm"))
        # The same files again, where an import could now find another version of this package on the search path.
        spec: Any = package.__spec__
        package = sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)

    # Forked processes have our models already; spawned ones start empty. They inherit this dictionary from process to
    # process, pickled, and to unpickle our class they import this package, with the search path of this process.
    multiprocessing.current_process()._config[_PACKAGE] = package.MobileViT  # type: ignore[attr-defined]


def _file_of(name: str) -> str | None:
    """Return the file that an import of a package would load if it were not loaded yet; None without a package."""
    loaded = sys.modules.pop(name, None)
    try:
        spec = importlib.util.find_spec(name)
    finally:
        if loaded is not None:
            sys.modules[name] = loaded
    return spec.origin if spec else None


def _check_version(timm: ModuleType) -> None:
    if [int(number) for number in re.findall(r"\d+", timm.__version__)[:3]] < _OLDEST_TIMM:
        raise ImportError(
            f"{_PACKAGE} needs timm {'.'.join(map(str, _OLDEST_TIMM))} or newer, but this script imports timm "
            f"{timm.__version__} from {timm.__path__[0]}. Update that timm, or, if it only lies beside the script, run "
            f"a copy of the script in another folder to use the installed timm {importlib.metadata.version('timm')}."
        )


def _cannot_open(script: str, error: OSError) -> str:
    version = importlib.metadata.version("timm")
    branch = "" if "dev" in version else f"--branch v{version} "  # only releases have a tag
    return (
        f"{_PACKAGE}.run: can't open {script!r} in {os.getcwd()}: {error.strerror}.\n"
        f"timm is installed without its scripts. To get those that match the installed timm {version}:\n"
        f"    git clone --depth 1 {branch}{_TIMM_REPOSITORY}\n"
        f"    python -m {_PACKAGE}.run pytorch-image-models/{os.path.basename(script)} ..."
    )


if __name__ == "__main__":
    main()
