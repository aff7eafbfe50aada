"""Models of timm inside transformers."""

import torch
from transformers import (
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainingArguments,
)


def classifier(name):
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name, num_labels=2))


def test_timm_wrapper(name, tmp_path):
    """TimmWrapper learns; saved and loaded it computes the same."""
    model = classifier(name)
    images = torch.rand(2, 3, 64, 64)
    model(images, labels=torch.tensor([0, 1])).loss.backward()
    model.eval().save_pretrained(tmp_path)
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_timm_backbone(name):
    """TimmBackbone: maps of three stages."""
    config = TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=[2, 3, 4])
    model = TimmBackbone(config)
    maps = model(torch.rand(2, 3, 64, 64)).feature_maps
    sum(feature.mean() for feature in maps).backward()
    assert [feature.shape[-1] for feature in maps] == [8, 4, 2]
    assert model.channels == [feature.shape[1] for feature in maps]


def test_trainer(name, tmp_path):
    """Trainer: two steps, evaluation, a checkpoint."""
    data = [{"pixel_values": torch.rand(3, 64, 64), "labels": index % 2} for index in range(8)]
    arguments = TrainingArguments(tmp_path, max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True)
    trainer = Trainer(classifier(name), arguments, train_dataset=data, eval_dataset=data)
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
