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
    for folder in ("timm_mobilevit", "mm_configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for folder in ("tests", "benchmarks"):  # lie beside the package, so they could slip in
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
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
        if path.is_file() and not {"__pycache__", ".mim"} & set(path.parts)
    }
    configs = {
        f"timm_mobilevit/.mim/configs/{path.relative_to(ROOT / 'mm_configs').as_posix()}"
        for path in (ROOT / "mm_configs").rglob("*")
        if path.suffix in (".py", ".yml")
    }
    assert configs
    assert inside == expected | configs
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


def test_configs_can_be_named_from_the_installed_package(wheel, tmp_path):
    pytest.importorskip("mmengine")
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    config = next((ROOT / "mm_configs/mmdet/ssdlite").glob("ssdlite_mobilevitv3-xxs_*.py")).name
    code = f"""
from mmengine.config import Config
from timm_mobilevit.configs import find_config
path = find_config("{config}")
print(Config.fromfile(path).model.backbone.model_name, path)
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    name, path = done.stdout.split()
    assert name == "mobilevitv3_xxs"
    assert Path(path).is_relative_to(tmp_path / "site")


@pytest.mark.long
def test_installed_into_an_empty_environment(wheel, tmp_path):
    """With everything it depends on, from the package index."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip("install", wheel, "torch<2.15", python=python)
    result = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split()[1:] == ["19", "1", "1000"]
    assert result.stderr == ""
    subprocess.run([tmp_path / "env" / "bin" / "timm-mobilevit", "list"], check=True, capture_output=True)
