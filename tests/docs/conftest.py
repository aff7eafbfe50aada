"""The documentation site, built, and a browser to look at it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import chromium, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built, and the address that it is served at."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    mkdocs = shutil.which("mkdocs", path=path)
    if mkdocs is None:
        pytest.skip("mkdocs is not installed: pip install 'timm-mobilevit[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [mkdocs, "build", "--quiet", "--strict", "--site-dir", folder]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)

    with serve(folder) as address:
        yield folder, address


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
