"""A small segmentor as users have them: a config file with changes, and a checkpoint of it."""

import torch
from mmengine.config import Config
from random_weights import randomise

from timm_mobilevit.mm._building import build_model

CLASSES = ("ground", "road", "sky")
SQUARE = ({"type": "Resize", "scale": (64, 64), "keep_ratio": False},)


def tiny_segmentor(folder, *, steps=SQUARE, model=None, data=None, loader=None, classes=CLASSES, **others):
    """Write ``config.py`` and ``model.pth``, with all weights random.

    Args:
        folder: Where to write.
        steps: Those of the test pipeline between loading and packing.
        model: Changes of the model.
        data: A function from the data set of the config to that in its place.
        loader: What loads images, if not ``LoadImageFromFile``.
        classes: Names of the classes.
        **others: More of the config.

    Returns:
        Both paths.
    """
    load = {"type": "LoadImageFromFile", **(loader or {})}
    pipeline = [load, *steps, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    dataset = {"type": "BaseSegDataset", "metainfo": {"classes": classes}, "pipeline": pipeline}
    config = Config(
        {
            "default_scope": "mmseg",
            "custom_imports": {"imports": ["timm_mobilevit.mm"], "allow_failed_imports": False},
            "model": {
                "type": "EncoderDecoder",
                "data_preprocessor": {
                    "type": "SegDataPreProcessor",
                    "mean": [0.0] * 3,
                    "std": [255.0] * 3,
                    "bgr_to_rgb": True,
                },
                "backbone": {"type": "TimmMobileViT", "model_name": "mobilevitv3_xxs", "out_indices": (2, 3, 4)},
                "decode_head": {
                    "type": "FCNHead",
                    "in_channels": 128,
                    "in_index": 2,
                    "channels": 16,
                    "num_classes": len(classes),
                    "norm_cfg": {"type": "BN"},
                },
                "test_cfg": {"mode": "whole"},
            },
            "test_dataloader": {"batch_size": 1, "dataset": data(dataset) if data else dataset},
            **others,
        }
    )
    config.merge_from_dict({"model": model or {}})
    torch.manual_seed(0)
    built = randomise(build_model(config, "tiny"))
    config.dump(folder / "config.py")
    torch.save({"state_dict": built.state_dict()}, folder / "model.pth")
    return folder / "config.py", folder / "model.pth"
