"""A Learner by the name of a model, and a U-Net."""

import timm
import torch
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    DynamicUnet,
    ImageBlock,
    PILImage,
    Resize,
    SuggestionMethod,
    accuracy,
    vision_learner,
)


def test_vision_learner(name, tmp_path):
    """A frozen epoch and one with layer groups; finds a learning rate."""
    data = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=lambda index: PILImage.create(torch.full((64, 64, 3), 15 * index).byte().numpy()),
        get_y=lambda index: index % 2,
        item_tfms=Resize(64),
    ).dataloaders(range(16), bs=4, num_workers=0, device="cpu")
    learner = vision_learner(data, name, pretrained=False, metrics=accuracy, path=tmp_path)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1)
        learner.lr_find(num_it=8, stop_div=False, suggest_funcs=SuggestionMethod.Minimum, show_plot=False)
    assert len(learner.opt.param_groups) > 1
    assert learner.get_preds(dl=data.valid)[0].shape == (len(data.valid_ds), 2)


def test_unet(name):
    """DynamicUnet over the layers up to the head."""
    body = torch.nn.Sequential(*list(timm.create_model(name).children())[:-1])
    model = DynamicUnet(body, n_out=2, img_size=(64, 64))
    masks = model(torch.rand(2, 3, 64, 64))
    CrossEntropyLossFlat(axis=1)(masks, torch.zeros(2, 64, 64).long()).backward()
    assert masks.shape == (2, 2, 64, 64)
