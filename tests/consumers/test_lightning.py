"""A LightningModule around a model."""

import lightning
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    def __init__(self, name):
        super().__init__()
        self.save_hyperparameters()
        self.model = timm.create_model(name, num_classes=2)

    def training_step(self, batch, index):
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_trainer(name, tmp_path):
    """Two epochs in bf16 with accumulated gradients and averaged weights; the checkpoint computes the same."""
    data = DataLoader(TensorDataset(torch.rand(8, 3, 64, 64), torch.arange(8) % 2), batch_size=2)
    classifier = Classifier(name)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        callbacks=[lightning.pytorch.callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(classifier, data)
    assert torch.isfinite(trainer.callback_metrics["loss"])

    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "trained.ckpt").eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.model(images), classifier.eval().model(images))
