"""The rooms: arrows between them run one way, and each public thing has one door."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import timm_mobilevit

ROOT = Path(__file__).parents[1]
DOORS = ("convert", "export", "evaluate", "mm", "configs")  # and the package itself


def lint(*args: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_arrows_run_one_way():
    pytest.importorskip("importlinter")
    result = lint()
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("door", ["", *DOORS])
def test_every_public_name_has_its_door(door):
    if door == "mm":
        pytest.importorskip("mmdet")
    module = importlib.import_module(f"timm_mobilevit.{door}".rstrip("."))
    assert module.__all__ == sorted(module.__all__, key=lambda name: (name[0].islower(), name.lower())) or door == ""
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_the_reference_lists_the_doors():
    page = (ROOT / "docs" / "api.md").read_text()
    for name in timm_mobilevit.__all__:
        assert name.startswith("__") or f"timm_mobilevit.{name}" in page
    for door in DOORS:
        assert f"timm_mobilevit.{door}" in page
