"""A server of checkpoints, and an environment that knows of none."""

import io
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from random_weights import randomise
from servers import MODELS, Server, serve

from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.weights import fetch


@pytest.fixture(scope="module")
def checkpoints() -> Callable[[str], bytes]:
    """Makes a checkpoint file in its authors' layout, once per architecture."""
    made: dict[str, bytes] = {}

    def checkpoint(arch: str) -> bytes:
        if arch not in made:
            buffer = io.BytesIO()
            torch.save(export_state_dict(randomise(timm.create_model(arch)).state_dict(), arch, "cvnets"), buffer)
            made[arch] = buffer.getvalue()
        return made[arch]

    return checkpoint


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Callable[[str], bytes]) -> bytes:
    return checkpoints("mobilevitv3_xxs")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve() as server:
        monkeypatch.setattr(fetch, "MICRON_ARCHIVE", server.url + MODELS)
        yield server


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIMM_MOBILEVIT_WEIGHTS", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "MICRON_ARCHIVE", f"http://127.0.0.1:9{MODELS}")  # where no server listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", impatient)
    fetch._log_licence.cache_clear()
