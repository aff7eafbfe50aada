"""The built wheel: what is in it, and that it works where it is installed."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from timm_mobilevit import __version__

ROOT = Path(__file__).parents[1]
USE = """
import timm, torch, timm_mobilevit
models = timm.list_models(module="mobilevit_zoo")
print(timm_mobilevit.__file__, len(models), *timm.create_model(models[0])(torch.rand(1, 3, 64, 64)).shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "timm_mobilevit", source / "timm_mobilevit", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tests", "benchmarks", "mm_configs"):  # lie beside the package, so they could slip in
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    (built,) = target.glob("*.whl")
    return built


def pip(*arguments, python=sys.executable):
    subprocess.run([python, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"timm_mobilevit-{__version__}.dist-info/"
    inside = {name for name in names if not name.startswith(info)}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "timm_mobilevit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == expected
    assert {"timm_mobilevit/py.typed", f"{info}licenses/LICENSE", f"{info}entry_points.txt"} <= set(names)


def test_installed_without_the_source_tree(wheel, tmp_path):
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    result = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    file, *rest = result.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "site")
    assert rest == ["19", "1", "1000"]


@pytest.mark.long
def test_installed_into_an_empty_environment(wheel, tmp_path):
    """With everything it depends on, from the package index."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip("install", wheel, "torch<2.13", python=python)
    result = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split()[1:] == ["19", "1", "1000"]
    assert result.stderr == ""
    subprocess.run([tmp_path / "env" / "bin" / "timm-mobilevit", "list"], check=True, capture_output=True)
