"""What would be uploaded: its metadata are in order, and the same source gives the same wheel, byte for byte."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long


def build(source: Path, *, mtime: int) -> Path:
    """Copy the source, give every file a date, and build a source distribution and a wheel; returns their folder."""
    for folder in ("timm_mobilevit", "mm_configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for path in source.rglob("*"):
        os.utime(path, (mtime, mtime), follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
        capture_output=True,
    )
    return source / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build.env", reason='needs the extra: pip install "timm-mobilevit[dev]"')
    return build(tmp_path_factory.mktemp("one"), mtime=1_600_000_000)


def test_the_metadata_would_be_accepted(dist: Path):
    pytest.importorskip("twine", reason='needs the extra: pip install "timm-mobilevit[dev]"')
    files = sorted(dist.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_is_reproducible(dist: Path, tmp_path_factory: pytest.TempPathFactory):
    again = build(tmp_path_factory.mktemp("another"), mtime=1_650_000_000)
    one, two = (hashlib.sha256(next(folder.glob("*.whl")).read_bytes()).hexdigest() for folder in (dist, again))
    assert one == two


def test_the_wheel_out_of_the_source_distribution_is_the_same(dist: Path, tmp_path: Path):
    shutil.unpack_archive(next(dist.glob("*.tar.gz")), tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
    )
    one, two = (hashlib.sha256(next(folder.glob("*.whl")).read_bytes()).hexdigest() for folder in (dist, tmp_path))
    assert one == two
