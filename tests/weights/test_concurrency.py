"""Many threads and processes at once: one model, one file, one cache."""

import argparse
import hashlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import timm
import torch
from fetched import MICRON, assert_weights, models
from kinds import KINDS
from servers import MODELS, Fault, Server

from timm_mobilevit.weights.checkpoint import read_checkpoint
from timm_mobilevit.weights.fetch import fetch_weights

WORKERS = 8


def at_once(function: Callable[[], Any]) -> list[Any]:
    """Call a function in eight threads that start together; returns what they return."""
    start = Barrier(WORKERS)

    def call(_: int) -> Any:
        start.wait()
        return function()

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(call, range(WORKERS)))


@pytest.mark.parametrize("name", KINDS)
def test_threads_share_a_model(name: str):
    model = timm.create_model(name, num_classes=10).eval()
    images = [torch.rand(batch, 3, height, width) for batch, height, width in ((1, 64, 64), (2, 97, 64), (1, 96, 130))]

    def infer() -> list[torch.Tensor]:
        with torch.inference_mode():  # holds for its thread only
            return [model(x) for _ in range(3) for x in images]

    alone = infer()
    for logits in at_once(infer):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, alone, strict=True))


def test_threads_create_models():
    def create() -> list[list[str]]:
        return [list(timm.create_model(name, num_classes=2, features_only=True).state_dict()) for name in KINDS]

    alone = create()
    assert all(keys == alone for keys in at_once(create))


def test_threads_read_a_training_checkpoint(tmp_path: Path):
    """Its Namespace has to be allowed in every thread for as long as the thread reads."""
    weights = {f"layer{i}.weight": torch.rand(100) for i in range(200)}
    torch.save({"state_dict": weights, "args": argparse.Namespace(lr=0.1)}, tmp_path / "last.pth.tar")
    for _ in range(5):
        for loaded in at_once(lambda: read_checkpoint(tmp_path / "last.pth.tar")):
            assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_threads_fetch_once(server: Server, tmp_path: Path, checkpoint: bytes):
    server.add(MODELS, models(checkpoint), faults=[Fault(), Fault(stall=0.5)])
    paths = at_once(lambda: fetch_weights(MICRON, tmp_path))
    assert len(set(paths)) == 1
    assert_weights(paths[0], checkpoint)
    assert len(server.requests) == 3


def create_pretrained(cache: str, archive: str) -> str:
    """Runs in another process: the checksum of a model's weights."""
    import timm_mobilevit  # noqa: F401  registers the models
    from timm_mobilevit.weights import fetch

    os.environ["no_proxy"], fetch.MICRON_ARCHIVE = "*", archive
    torch.set_num_threads(1)
    weights = timm.create_model(MICRON, pretrained=True, cache_dir=cache).state_dict()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()


def test_processes_create_a_model_from_one_cache(server: Server, tmp_path: Path, checkpoint: bytes):
    content = models(checkpoint)
    url = server.add(MODELS, content, faults=[Fault(), Fault(), Fault(stall=0.5)])
    # Imports once; the eight are forked from there.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm_mobilevit.weights.fetch", "timm_mobilevit.mobilevit_zoo"])
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        calls = [pool.submit(create_pretrained, str(tmp_path), url) for _ in range(WORKERS)]
        digests = {call.result(timeout=120) for call in calls}
    assert len(digests) == 1
    path = fetch_weights(MICRON, tmp_path)
    assert_weights(path, checkpoint)
    assert len(server.requests) == 3  # one download: its size, its directory, the checkpoint
