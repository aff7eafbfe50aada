"""Imports between the packages run one way, and each public name has one module."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import timm_mobilevit

ROOT = Path(__file__).parents[1]
PUBLIC = ("convert", "export", "evaluate", "mm", "configs")  # and the package itself


def lint(*args: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_imports_run_one_way():
    pytest.importorskip("importlinter")
    result = lint()
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("part", ["", *PUBLIC])
def test_public_names_are_sorted_and_documented(part):
    if part == "mm":
        pytest.importorskip("mmdet")
    module = importlib.import_module(f"timm_mobilevit.{part}".rstrip("."))
    assert module.__all__ == sorted(module.__all__, key=lambda name: (name[0].islower(), name.lower())) or part == ""
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_the_reference_lists_the_public_modules():
    page = (ROOT / "docs" / "api.md").read_text()
    for name in timm_mobilevit.__all__:
        assert name.startswith("__") or f"timm_mobilevit.{name}" in page
    for part in PUBLIC:
        assert f"timm_mobilevit.{part}" in page
