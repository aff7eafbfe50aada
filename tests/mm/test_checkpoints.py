"""Checkpoints of MMEngine's runner, read by every door: they mean the weights that the runner evaluates."""

import json

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from typer.testing import CliRunner

from timm_mobilevit.cli import app
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
    assert (checkpoint.trainer, checkpoint.entry, checkpoint.averaged) == ("MMEngine", "state_dict", True)
    for key, value in average.items():
        assert torch.equal(checkpoint.state_dict[key], value), key
    assert not torch.equal(average["neck.weight"], raw["neck.weight"])
    assert torch.equal(open_checkpoint(file, "ema_state_dict").state_dict["neck.weight"], raw["neck.weight"])


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


def test_meta_names_the_classes():
    data = {"type": "CocoDataset", "metainfo": {"classes": ("zero", "one")}}
    cfg = Config({"default_scope": "mmdet", "test_dataloader": {"dataset": data}})
    assert dataset_meta(cfg) == {"classes": ("zero", "one")}
    del cfg.test_dataloader.dataset["metainfo"]
    meta = dataset_meta(cfg)
    assert len(meta["classes"]) == len(meta["palette"]) == 80
