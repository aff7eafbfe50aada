"""Run timm's own model tests over our models: ``python tests/timm_suite.py`` (or ``make test-timm``).

The tests are in timm's source archive and not in its wheel, so the archive of the installed version is downloaded once
into ``output/``. Arguments are passed on to pytest.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

import timm_mobilevit  # noqa: F401  registers the models

MODULE = "mobilevit_zoo"
OURS = {*timm.list_models(module=MODULE), *timm.list_models(module=MODULE, include_tags=True)}
FOLDER = Path(__file__).parents[1] / "output" / "timm-tests"


def get_tests() -> Path:
    """Download and unpack the tests of the installed timm, unless they are there."""
    target = FOLDER / f"timm-{timm.__version__}"
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        download = ["download", "--quiet", "--no-deps", "--no-binary", "timm", f"timm=={timm.__version__}"]
        subprocess.run([sys.executable, "-m", "pip", *download, "--dest", FOLDER], check=True)
        with tarfile.open(FOLDER / f"{target.name}.tar.gz") as archive:
            wanted = [m for m in archive if m.name.startswith((f"{target.name}/tests/", f"{target.name}/pyproject"))]
            archive.extractall(FOLDER, members=wanted, filter="data")
    return target


class OnlyOurs:
    """Makes timm's tests, which ask timm for lists of models, find ours and nothing else."""

    def pytest_configure(self) -> None:
        list_models = timm.list_models
        timm.list_models = lambda *args, **kwargs: list_models(*args, **{**kwargs, "module": MODULE})
        timm.list_pretrained = lambda *args, **kwargs: []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        ours = [
            item for item in items if getattr(item, "callspec", None) and item.callspec.params.get("model_name") in OURS
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in ours])
        items[:] = ours


if __name__ == "__main__":
    os.environ["GITHUB_ACTIONS"] = "1"  # leaves out the tests that load pretrained weights from the network
    folder = get_tests()
    sys.exit(
        pytest.main(
            [
                "-q",
                "-p",
                "no:cacheprovider",
                "--rootdir",
                str(folder),
                "-c",
                str(folder / "pyproject.toml"),
                str(folder / "tests" / "test_models.py"),
                *sys.argv[1:],
            ],
            plugins=[OnlyOurs()],
        )
    )
