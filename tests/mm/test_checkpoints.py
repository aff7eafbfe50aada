"""Checkpoints of MMEngine's runner, read by every door: they mean the weights that the runner evaluates."""

import collections
import json
from pickle import UnpicklingError

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.mm.checkpoint_loader import reading_without_running
from timm_mobilevit.mm.convert import dataset_meta
from timm_mobilevit.weights.checkpoint import open_checkpoint

NAME = "mobilevitv3_xxs"


class Classifier(BaseModel):
    """The smallest model that a runner trains."""

    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build({"type": "TimmMobileViT", "model_name": NAME, "out_indices": (4,)})
        self.neck = nn.Linear(128, 3)

    def forward(self, inputs, labels, mode="tensor"):
        logits = self.neck(self.backbone(torch.stack(inputs))[0].mean((2, 3)))
        return {"loss": nn.functional.cross_entropy(logits, torch.tensor(labels))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file after two epochs with EMAHook, and the averaged and the raw weights in memory."""
    folder = tmp_path_factory.mktemp("runner")
    draw = torch.Generator().manual_seed(1)
    data = [{"inputs": torch.rand(3, 32, 32, generator=draw), "labels": i % 3} for i in range(4)]
    runner = Runner(
        model=Classifier(),
        work_dir=str(folder),
        train_dataloader={
            "dataset": data,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "batch_size": 2,
            "num_workers": 0,
            "collate_fn": pseudo_collate,
        },
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-2}},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.5, "update_buffers": True}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        experiment_name=f"checkpoints-{id(folder)}",
    )
    average = {}

    def keep(*_, **__):
        (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
        average.update({k: v.clone() for k, v in hook.ema_model.module.state_dict().items()})

    runner.hooks[-1].after_train = keep
    runner.train()
    return folder / "epoch_2.pth", average, runner.model.state_dict()


def test_the_average_is_read(trained):
    file, average, raw = trained
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    checkpoint = open_checkpoint(file)
    taken = checkpoint.entries[0]
    assert (checkpoint.trainer, taken.name, taken.averaged) == ("MMEngine", "state_dict", True)
    for key, value in average.items():
        assert torch.equal(checkpoint.state_dict[key], value), key
    assert not torch.equal(average["neck.weight"], raw["neck.weight"])
    other = open_checkpoint(file, "ema_state_dict")
    assert torch.equal(other.state_dict["neck.weight"], raw["neck.weight"])
    assert (other.trainer, other.entries[0].averaged) == ("MMEngine", False)
    assert checkpoint.choice == (
        "the averaged weights are taken, from state_dict; --entry ema_state_dict takes the raw ones"
    )
    assert other.choice == "the raw weights are taken, from ema_state_dict; --entry state_dict takes the averaged ones"
    taken, left = checkpoint.entries
    assert (taken.name, taken.averaged, taken.updates, taken.batches) == ("state_dict", True, 4, None)
    assert (left.name, left.averaged, left.updates, left.batches) == ("ema_state_dict", False, None, 4)
    assert checkpoint.metadata == {"epoch": 2, "step": 4}


def test_as_pretrained_weights(trained, caplog):
    file, average, _ = trained
    network = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, features_only=True)
    assert torch.equal(network.stem.conv.weight, average["backbone.stem.conv.weight"])
    assert "left out are the 2 tensors beside it: neck" in caplog.text
    assert "from final_conv.conv on, the model stays as it was initialised" in caplog.text


def test_inspect_and_convert(trained, tmp_path):
    file, average, _ = trained
    done = CliRunner().invoke(app, ["inspect", str(file), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["trainer"] == "MMEngine"
    assert report["averaged"] == "yes"
    assert (report["layout"], report["prefix"], report["left_out"]) == ("timm", "backbone.", ["neck"])
    assert report["architectures"] == [NAME]
    assert (report["classes"], report["input_channels"], report["data_types"]) == (None, 3, ["float32"])
    done = CliRunner().invoke(app, [*report["convert"].split()[1:-1], str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True)
    assert torch.equal(loaded.stem.conv.weight, average["backbone.stem.conv.weight"])


@pytest.mark.detection
def test_meta_names_the_classes():
    data = {"type": "CocoDataset", "metainfo": {"classes": ("zero", "one")}}
    cfg = Config({"default_scope": "mmdet", "test_dataloader": {"dataset": data}})
    assert dataset_meta(cfg) == {"classes": ("zero", "one")}
    del cfg.test_dataloader.dataset["metainfo"]
    meta = dataset_meta(cfg)
    assert len(meta["classes"]) == len(meta["palette"]) == 80


@reading_without_running
def upstreams(filename, map_location=None):
    """What MMEngine 0.10.7 does, with any PyTorch."""
    return torch.load(filename, map_location=map_location, weights_only=True)


def same(one, other):
    """Whether two checkpoints hold equal values of equal types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, HistoryBuffer):
        return one.max_length == other.max_length and same(one.data, other.data)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


class TestLoader:
    """Checkpoints where MMEngine's own loader fails: on PyTorch 2.6 and newer its releases up to 0.10.7 do."""

    def test_is_registered(self):
        assert CheckpointLoader._schemes[""].__wrapped__.__module__ == "mmengine.runner.checkpoint"

    def test_what_the_runner_wrote(self, trained):
        file, _, _ = trained
        expected = torch.load(file, weights_only=False)
        assert isinstance(expected["message_hub"]["log_scalars"]["train/loss"], HistoryBuffer)
        loaded = upstreams(str(file))
        assert same(loaded, expected)
        loss = loaded["message_hub"]["log_scalars"]["train/loss"]
        loss.update(1.0)
        assert loss.statistics("current") == 1.0

    def test_numbers_of_numpy(self, tmp_path):
        content = {
            "scalars": [np.float32(0.5), np.int64(-3), np.bool_(True)],
            "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, 2)), np.zeros((0, 4), np.int16)],
            "big_endian": np.arange(3, dtype=">i4"),
        }
        torch.save(content, tmp_path / "numbers.pth")
        loaded = upstreams(tmp_path / "numbers.pth")
        assert same(loaded, content)
        assert loaded["arrays"][1].flags.f_contiguous
        assert loaded["arrays"][0].flags.writeable

    def test_shared_memory_stays_shared_and_apart_from_the_file(self, tmp_path):
        weight = torch.rand(4)
        torch.save({"log": np.float64(1), "one": weight, "two": weight[1:], "same": weight}, tmp_path / "tied.pth")
        loaded = upstreams(tmp_path / "tied.pth")
        (tmp_path / "tied.pth").write_bytes(b"")
        loaded["one"][1] = 5
        assert loaded["two"][0] == 5
        assert loaded["same"] is loaded["one"]

    def test_on_a_device(self, tmp_path):
        torch.save({"log": np.float64(1), "weight": torch.rand(4)}, tmp_path / "file.pth")
        assert upstreams(tmp_path / "file.pth", "meta")["weight"].is_meta
        assert not upstreams(tmp_path / "file.pth", lambda storage, _: storage)["weight"].is_meta

    @pytest.mark.parametrize(
        "value",
        [
            np.array([None]),
            np.array([("a", 1)], dtype=[("name", "U1"), ("number", "i4")]),
            collections.Counter("aab"),
            HistoryBuffer.min,
            torch.nn.Linear(1, 1),
        ],
        ids=["objects", "records", "counter", "method", "module"],
    )
    def test_other_objects_fail_as_before(self, value, tmp_path):
        torch.save({"log": np.float64(1), "value": value}, tmp_path / "file.pth")
        with pytest.raises(UnpicklingError, match="Weights only load failed"):
            upstreams(tmp_path / "file.pth")

    def test_nothing_is_run(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return getattr, (HistoryBuffer, "min")

        class Worse:
            def __reduce__(self):
                return exec, (f"open({str(tmp_path / 'run')!r}, 'w')",)

        buffer = HistoryBuffer([1.0], [1])
        buffer._log_history = Worse()
        for name, value in (("getattr", Hostile()), ("exec", Worse()), ("inside", buffer)):
            torch.save({"value": value}, tmp_path / name)
            with pytest.raises(UnpicklingError):
                upstreams(tmp_path / name)
        assert not (tmp_path / "run").exists()

    def test_a_file_that_contains_itself_or_is_damaged(self, tmp_path):
        endless = [np.float64(1)]
        endless.append(endless)
        torch.save(endless, tmp_path / "endless.pth")
        many = [np.float64(1)]
        for _ in range(60):
            many = [many, many]
        torch.save(many, tmp_path / "many.pth")
        with pytest.raises(UnpicklingError):
            upstreams(tmp_path / "endless.pth")
        assert len(upstreams(tmp_path / "many.pth")) == 2
        (tmp_path / "damaged.pth").write_bytes(b"no pickle")
        with pytest.raises(UnpicklingError):
            upstreams(tmp_path / "damaged.pth")

    def test_what_was_readable_is_read_as_before(self, tmp_path):
        content = object()
        assert reading_without_running(lambda filename, map_location: content)("any") is content
        with pytest.raises(FileNotFoundError):
            upstreams(tmp_path / "missing.pth")
