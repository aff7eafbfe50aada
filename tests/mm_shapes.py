"""A data set that a network learns in minutes: coloured shapes on noise, with boxes and masks."""

import json

import numpy as np
from PIL import Image

CLASSES = ("red", "green", "blue")
COLOURS = ((200, 60, 60), (60, 190, 70), (70, 80, 210))


def write_shapes(root, train=48, val=16, size=(96, 200), seed=0):
    """Write images of sides in ``size``, COCO annotations and masks; background is class 0 of a mask, 255 a border.

    Some images have no shape, some boxes are crowds.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        for folder in ("img_dir", "ann_dir"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            height, width = rng.integers(size[0], size[1] + 1, 2)
            image = rng.integers(90, 160, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            for _ in range(0 if i % 12 == 11 else rng.integers(1, 4)):
                kind = int(rng.integers(3))
                h, w = (int(side * rng.uniform(0.3, 0.6)) for side in (height, width))
                y, x = int(rng.integers(height - h)), int(rng.integers(width - w))
                image[y : y + h, x : x + w] = np.clip(rng.normal(COLOURS[kind], 20, (h, w, 3)), 0, 255)
                mask[y : y + h, x : x + w] = kind + 1
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": i,
                        "category_id": kind + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": int(len(content["annotations"]) % 20 == 19),
                    }
                )
            mask[:2] = 255
            Image.fromarray(image).save(root / "img_dir" / split / f"{i:03}.png")
            Image.fromarray(mask).save(root / "ann_dir" / split / f"{i:03}.png")
            content["images"].append({"id": i, "file_name": f"{i:03}.png", "height": int(height), "width": int(width)})
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def shapes_config(name, root, *, epochs, batch=8, size=128, extra=""):
    """The text of a config of one's own: it inherits one of ours by its path, as the documents say.

    Args:
        name: Of one of our configs.
        root: Where ``write_shapes`` wrote.
        epochs: Length of the training.
        batch: Images per batch.
        size: Side of the images in pixels.
        extra: Further lines.
    """
    from timm_mobilevit.configs import find_config

    detects = name.startswith("ssdlite")
    data = f"""
_base_ = [{str(find_config(name).resolve())!r}]
size = ({size}, {size})
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="LoadAnnotations"{", with_bbox=True" if detects else ""}),
"""
    if detects:
        data += f"""
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackDetInputs"),
]
data = dict(type="CocoDataset", data_root={str(root)!r}, metainfo=dict(classes={CLASSES!r}))
parts = {{
    split: dict(**data, ann_file=f"annotations/{{split}}.json", data_prefix=dict(img=f"img_dir/{{split}}/"))
    for split in ("train", "val")
}}
model = dict(backbone=dict(pretrained=False), bbox_head=dict(num_classes=3, anchor_generator=dict(min_ratio=0.2)))
val_evaluator = dict(ann_file={str(root / "annotations" / "val.json")!r})
"""
    else:
        data += f"""
    dict(type="PackSegInputs"),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackSegInputs"),
]
data = dict(type="BaseSegDataset", data_root={str(root)!r}, img_suffix=".png", metainfo=dict(
    classes={("background", *CLASSES)!r}, palette={[(0, 0, 0), *COLOURS]!r}))
parts = {{
    split: dict(**data, data_prefix=dict(img_path=f"img_dir/{{split}}", seg_map_path=f"ann_dir/{{split}}"))
    for split in ("train", "val")
}}
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(pretrained=False),
    decode_head=dict(num_classes=4),
    auxiliary_head=dict(num_classes=4),
)
val_evaluator = dict()
"""
    delete = ", _delete_=True"
    loaders = f"""
train_dataloader = dict(
    batch_size={batch}, num_workers=0, persistent_workers=False,
    dataset=dict(**parts["train"], pipeline=train_pipeline{delete}),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    dataset=dict(**parts["val"], pipeline=test_pipeline{", test_mode=True" if detects else ""}{delete}),
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
"""
    return data + loaders + extra
