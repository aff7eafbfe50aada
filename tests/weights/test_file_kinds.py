"""What is given instead of a checkpoint is named, with what to do; nothing waits for a writer."""

import gzip
import io
import json
import os
import signal
import socket
import tarfile
import zipfile
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save, save_file

from timm_mobilevit.weights.checkpoint import read_checkpoint

WEIGHTS = {"a.weight": torch.ones(2)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}


def torch_bytes(**options):
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer, **options)
    return buffer.getvalue()


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("release/model.pth", torch_bytes())
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            info = tarfile.TarInfo("release/model.pth")
            info.size = len(torch_bytes())
            file.addfile(info, io.BytesIO(torch_bytes()))
    return buffer.getvalue()


def script_bytes():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


# Name, content, what it is called, what to do.
FILES = {
    "web page": ("model.pth", b"<!DOCTYPE html>\n<html>Not found", "a web page", "download the file itself"),
    "page with blanks": ("model.safetensors", b"\n\n  <html lang='en'>", "a web page", "download"),
    "answer of a store": ("model.pt", b"<?xml version='1.0'?><Error>", "a web page", "download"),
    "pointer": ("model.safetensors", LFS, "a Git LFS pointer", "git lfs pull"),
    "pointer of torch": ("model.pth", LFS, "a Git LFS pointer", "git lfs pull"),
    "safetensors as torch": ("model.pth", save(WEIGHTS), "safetensors", "rename it to model.safetensors"),
    "safetensors as tar": ("best.pth.tar", save(WEIGHTS), "safetensors", "rename it to best.pth.safetensors"),
    "torch as safetensors": ("model.safetensors", torch_bytes(), "torch.save", "rename it to model.pth"),
    "old torch as safetensors": (
        "model.safetensors",
        torch_bytes(_use_new_zipfile_serialization=False),
        "torch.save",
        "rename it to model.pth",
    ),
    "index": ("model.safetensors.index.json", json.dumps(INDEX).encode(), "an index of shards", "max_shard_size"),
    "index, renamed": ("model.pth", json.dumps(INDEX).encode(), "an index of shards", "max_shard_size"),
    "config": ("config.json", b'{"architecture": "mobilevitv3_s"}', "JSON", "beside a config.json"),
    "gzip": ("model.pth.gz", gzip.compress(torch_bytes()), "a gzip archive", "unpack it"),
    "tar": ("model.pth.tar", archive("tar"), "a tar archive", "unpack it"),
    "zip": ("model.pt", archive("zip"), "a zip archive", "unpack it"),
    "TorchScript": ("model.pt", script_bytes(), "TorchScript", "save the model's state dict"),
    "image": ("model.pth", b"\x89PNG\r\n\x1a\n" + bytes(64), "an image", "name the checkpoint"),
    "HDF5": ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", "save the model's state dict"),
    "LiteRT": ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(64), "a LiteRT file", "predict"),
    "empty": ("model.pth", b"", "empty", "again"),
    "empty safetensors": ("model.safetensors", b"", "empty", "again"),
}


@pytest.mark.parametrize(("name", "content", "kind", "advice"), FILES.values(), ids=FILES)
def test_files_are_named(name, content, kind, advice, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|rename") as error:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert kind in str(error.value)
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


def test_an_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    nothing = onnx.helper.make_graph([], "empty", [], [])
    for version, producer in ((8, "pytorch"), (10, ""), (4, "")):
        onnx.save(onnx.helper.make_model(nothing, ir_version=version, producer_name=producer), tmp_path / "model.pth")
        with pytest.raises(ValueError, match="an ONNX file"):
            read_checkpoint(tmp_path / "model.pth")


@contextmanager
def at_most(seconds):
    def stop(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_is_no_regular_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.pth")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.pth")
    os.symlink("gone.pth", "link.pth")
    os.mkdir("folder")
    os.mkdir("full")
    save_file(WEIGHTS, "full/model.safetensors")
    with at_most(20):
        for name, kind in (
            ("pipe.pth", "a pipe"),
            ("socket.pth", "a socket"),
            ("/dev/null", "a device"),
            ("link.pth", "a link to gone.pth"),
            ("folder", "a folder$"),
            ("full", r"a folder; name one in it, such as full/model\.safetensors"),
            ("full/model.safetensors/x.pth", "a part of that path is a file"),
        ):
            with pytest.raises(FileNotFoundError, match=f"no checkpoint file at {name}: it is {kind}|{kind}"):
                read_checkpoint(name)
    server.close()


def test_checkpoints_are_none_of_these(tmp_path):
    """Whatever the number is that a safetensors file begins with, or the name that a file of torch.save has."""
    for size in range(1, 700, 7):  # moves the length of the header through the beginnings of other files
        content = save(WEIGHTS, metadata={"note": "x" * size})
        (tmp_path / "model.safetensors").write_bytes(content)
        assert list(read_checkpoint(tmp_path / "model.safetensors")) == ["a.weight"]
    for name in ("model", "model.bin", "model.ckpt", "model.pth.tar", "model.html"):
        for new in (True, False):
            (tmp_path / name).write_bytes(torch_bytes(_use_new_zipfile_serialization=new))
            assert list(read_checkpoint(tmp_path / name)) == ["a.weight"]
