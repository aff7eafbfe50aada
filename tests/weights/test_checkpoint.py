"""Reading checkpoint files: containers, wrappers, damage and malice."""

import argparse
import datetime
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from timm_mobilevit.weights.checkpoint import checkpoint_of, open_checkpoint, read_checkpoint

WEIGHTS = {"a.weight": torch.arange(3.0), "a.bias": torch.zeros(1)}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


class HistoryLike:
    """Stands for the logs that trainers keep: an object with arrays, and methods reached by getattr."""

    def __init__(self, history):
        self.history = history
        self.statistics = {"mean": history.mean}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"model_state_dict": WEIGHTS, "optim_state_dict": {"step": 1}, "iterations": 9},
        {"state_dict": {"a.weight": torch.ones(1)}, "state_dict_ema": WEIGHTS},
        {"model_state_dict": {"a.weight": torch.ones(1)}, "ema_state_dict": WEIGHTS, "iterations": 3},
        {"state_dict": WEIGHTS, "ema_state_dict": {"a.weight": torch.ones(1)}, "meta": {"mmengine_version": "0.10.7"}},
        {"state_dict": WEIGHTS, "current_model_state": {"a": torch.ones(1)}, "pytorch-lightning_version": "2.6.6"},
        {"state_dict": WEIGHTS, "log": HistoryLike(np.arange(3.0)), "when": datetime.datetime(2026, 1, 1)},
        {"n_averaged": torch.tensor(3)} | {f"module.{key}": value for key, value in WEIGHTS.items()},
        {"state_dict": WEIGHTS, "state_dict_ema": None},
        {"model": {"state_dict": WEIGHTS}},
        {f"module.{key}": value for key, value in WEIGHTS.items()},
        {f"_orig_mod.module.{key}": value for key, value in WEIGHTS.items()},
    ],
)
def test_containers(content, tmp_path):
    torch.save(content, tmp_path / "file.pth.tar")
    assert same(read_checkpoint(tmp_path / "file.pth.tar"), WEIGHTS)


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert same(
        dict(sorted(read_checkpoint(str(tmp_path / "model.safetensors")).items())), dict(sorted(WEIGHTS.items()))
    )


def test_no_file(tmp_path):
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint file at"):
            read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated(suffix, kept, tmp_path):
    path = tmp_path / f"file{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"a": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"{path}.* is damaged"):
        read_checkpoint(path)


def test_text_instead_of_weights(tmp_path):
    path = tmp_path / "file.pt"
    path.write_text("<!doctype html>404")
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_does_not_run(legacy, tmp_path):
    trace = tmp_path / "trace"
    content = {"state_dict": WEIGHTS, "extra": Malice(trace)}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="would have to run code"):
        read_checkpoint(tmp_path / "bad.pt")
    assert not trace.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)  # it would have run
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"epoch": 1}, {}, {"state_dict": {}}, {"state_dict": {"a": 1}}]
)
def test_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="expected"):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("other", [{"params": {"lr": 0.1}}, {"model": {"name": "mine"}}, {"network": {"depth": 3}}])
def test_settings_are_no_weights(other, tmp_path):
    torch.save({**other, "state_dict": WEIGHTS}, tmp_path / "file.pt")
    found = open_checkpoint(tmp_path / "file.pt")
    assert same(found.state_dict, WEIGHTS)
    assert [entry.name for entry in found.entries] == ["state_dict"]


def test_what_holds_the_weights_is_no_other_entry(tmp_path):
    torch.save({"model": {"state_dict": WEIGHTS}}, tmp_path / "file.pt")
    found = open_checkpoint(tmp_path / "file.pt")
    assert [entry.name for entry in found.entries] == ["model.state_dict"]
    assert found.choice == ""


def test_nested_names_are_kept():
    assert list(checkpoint_of({"modules.weight": torch.zeros(1)}).state_dict) == ["modules.weight"]


def test_data_type_is_kept(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.float16)}, tmp_path / "half.pt")
    loaded = read_checkpoint(Path(tmp_path, "half.pt"))["a"]
    assert loaded.dtype == torch.float16
    assert loaded.device.type == "cpu"


@pytest.mark.parametrize(
    "content",
    [
        {"model": WEIGHTS, "model_ema": {"a.weight": torch.ones(1)}},
        {"state_dict": WEIGHTS, "ema_state_dict": {"a.weight": torch.ones(1)}},
    ],
)
def test_two_models_of_an_unknown_trainer_are_no_guess(content, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    first, second = content
    with pytest.raises(ValueError, match=f"holds weights in {first} and {second}, .*--entry {first}"):
        read_checkpoint(tmp_path / "file.pt")
    assert same(read_checkpoint(tmp_path / "file.pt", entry=first), WEIGHTS)
    assert list(read_checkpoint(tmp_path / "file.pt", entry=second)) == ["a.weight"]
    with pytest.raises(ValueError, match=f"has no entry mine; it has {first}, {second}"):
        read_checkpoint(tmp_path / "file.pt", entry="mine")


def test_the_old_format_and_shared_storages(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    content = {"t.weight": base.t(), "e": torch.zeros(0, 3), "b": torch.tensor(3), "h": base.half(), "row": base[1]}
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}):
        torch.save(content, tmp_path / "file.pt", **options)
        loaded = read_checkpoint(tmp_path / "file.pt")
        assert same(loaded, content)
        assert loaded["row"].untyped_storage().data_ptr() == loaded["t.weight"].untyped_storage().data_ptr()


@pytest.mark.parametrize("other", ["swa_model", "net_ema", "best"])
def test_weights_under_any_other_name_are_told(other, tmp_path):
    content = {"net": WEIGHTS, other: {f"module.{key}": value for key, value in WEIGHTS.items()}}
    torch.save({**content, "optimizer": {"state": {}}, "losses": {"train": torch.ones(1)}}, tmp_path / "file.pt")
    found = open_checkpoint(tmp_path / "file.pt")
    assert found.choice == f"the weights are taken, from net; --entry {other} takes the ones"
