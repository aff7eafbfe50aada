"""Checkpoints as real trainers write them: what is read is the model that the trainer itself evaluates.

MMEngine's are in ``tests/mm/test_checkpoints.py``.
"""

import argparse

import pytest
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from timm_mobilevit.convert import convert_state_dict
from timm_mobilevit.convert.subtree import find_subtree
from timm_mobilevit.weights.checkpoint import open_checkpoint

NAME = "mobilevitv3_xxs"
EPOCHS, STEPS = 2, 2


def model():
    return timm.create_model(NAME, num_classes=3)


def batches():
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.rand(2, 3, 32, 32, generator=draw), torch.randint(3, (2,), generator=draw)


def read(file, entry=None):
    """What the file holds, and the weights in our layout."""
    checkpoint = open_checkpoint(file, entry)
    return checkpoint, convert_state_dict(checkpoint.state_dict, NAME)


def assert_same(weights, expected):
    expected = expected.state_dict() if isinstance(expected, nn.Module) else expected
    assert set(weights) == set(expected)
    for key, value in expected.items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize("ema", [False, True])
def test_timm(ema, tmp_path):
    """As timm's train.py goes about it."""
    network = model()
    average = ModelEmaV3(network, decay=0.5) if ema else None
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    saver = CheckpointSaver(
        network, optimizer, args=argparse.Namespace(model=NAME), model_ema=average, checkpoint_dir=str(tmp_path)
    )
    for epoch in range(EPOCHS):
        for step, (images, labels) in enumerate(batches()):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            if average:
                average.update(network, step=epoch * STEPS + step)
        saver.save_checkpoint(epoch, metric=float(epoch))
    checkpoint, weights = read(tmp_path / "model_best.pth.tar")
    assert (checkpoint.trainer, checkpoint.entries[0].averaged) == ("timm", ema)
    assert_same(weights, average.module if average else network)
    if average:
        assert not torch.equal(weights["head.fc.weight"], network.head.fc.weight)
        other, weights = read(tmp_path / "model_best.pth.tar", "state_dict")
        assert_same(weights, network)
        assert checkpoint.choice == (
            "the averaged weights are taken, from state_dict_ema; --entry state_dict takes the raw ones"
        )
        assert other.choice == (
            "the raw weights are taken, from state_dict; --entry state_dict_ema takes the averaged ones"
        )
        assert (other.trainer, other.entries[0].name, other.entries[0].averaged) == ("timm", "state_dict", False)
        assert {one.name: one.batches for one in other.entries} == {"state_dict": 4, "state_dict_ema": 4}
    else:
        assert checkpoint.choice == ""
        assert [(one.name, one.averaged) for one in checkpoint.entries] == [("state_dict", False)]
    assert checkpoint.metadata == {"epoch": 1, "metric": 1.0}


@pytest.mark.parametrize("ema", [False, True])
def test_lightning(ema, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import WeightAveraging
    from torch.optim.swa_utils import get_ema_avg_fn

    class Module(lightning.LightningModule):
        def __init__(self, options):
            super().__init__()
            self.save_hyperparameters()
            self.model = model()
            self.proj = nn.Linear(3, 3)

        def training_step(self, batch, index):
            images, labels = batch
            return nn.functional.cross_entropy(self.proj(self.model(images)), labels)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module = Module(argparse.Namespace(lr=1e-2))
    averaging = WeightAveraging(avg_fn=get_ema_avg_fn(0.5))
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[averaging] if ema else [],
    )
    raw = {}
    module.on_train_batch_end = lambda *_: raw.update(
        {key: value.clone() for key, value in module.model.state_dict().items()}
    )
    trainer.fit(module, torch.utils.data.DataLoader(list(batches()), batch_size=None))
    if ema:  # at its end the callback puts the average into the module, and saves as in the middle of a training
        average = {key: value.clone() for key, value in averaging._average_model.module.model.state_dict().items()}
        module.model.load_state_dict(raw)
    else:
        average = module.model.state_dict()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint, weights = read(tmp_path / "last.ckpt")
    assert (checkpoint.trainer, checkpoint.entries[0].averaged) == ("Lightning", ema)
    assert_same(weights, average)
    assert torch.equal(weights["head.fc.weight"], raw["head.fc.weight"]) != ema
    assert checkpoint.metadata == {"epoch": 2, "step": EPOCHS * STEPS}
    if ema:
        assert checkpoint.choice == (
            "the averaged weights are taken, from state_dict; --entry current_model_state takes the raw ones"
        )
        taken, other = checkpoint.entries
        assert (taken.name, taken.averaged, taken.updates, taken.batches) == ("state_dict", True, 4, None)
        assert (other.name, other.averaged, other.updates, other.batches) == ("current_model_state", False, None, 4)
        assert_same(read(tmp_path / "last.ckpt", "current_model_state")[1], raw)
    else:
        assert checkpoint.choice == ""
    subtree = find_subtree(checkpoint.state_dict)
    assert (subtree.prefix, subtree.left_out) == ("model.", ["proj.weight", "proj.bias"])


def test_transformers_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.timm_model = model()

        def forward(self, pixel_values, labels):
            logits = self.timm_model(pixel_values)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    data = [
        {"pixel_values": image, "labels": label}
        for images, labels in batches()
        for image, label in zip(images, labels, strict=True)
    ]
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=2,
        save_strategy="epoch",
        report_to=[],
        use_cpu=True,
    )
    trainer = transformers.Trainer(Wrapper(), options, train_dataset=data)
    trainer.train()
    (file,) = tmp_path.glob(f"checkpoint-{EPOCHS * STEPS}/model.safetensors")
    checkpoint, weights = read(file)
    assert (checkpoint.trainer, checkpoint.entries[0].name) == ("", "")
    assert_same(weights, trainer.model.timm_model)


def test_average_of_torch(tmp_path):
    network = model()
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    torch.save(average.state_dict(), tmp_path / "swa.pth")
    assert_same(read(tmp_path / "swa.pth")[1], average.module)
