"""A server of checkpoints, and an environment that knows of none."""

import io
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from huggingface_hub import constants
from random_weights import randomise
from servers import Server, serve

from timm_mobilevit.weights import fetch
from timm_mobilevit.weights.convert import export_state_dict
from timm_mobilevit.weights.fetch import transfer


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
        monkeypatch.setenv("TIMM_MOBILEVIT_GITHUB_API", f"{server.url}/")
        yield server


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIMM_MOBILEVIT_WEIGHTS", "GITHUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TIMM_MOBILEVIT_GITHUB_API", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transfer, "sleep", lambda seconds: None)
    fetch._log_licence.cache_clear()
