# PASCAL VOC 2012 for the later MobileViTv1-S of CVNets v0.2: bilinear where others are bicubic, and output stride 8.
_base_ = ["voc12aug_512.py"]

train_pipeline = [
    {**step, "interpolation": "bilinear"} if step.type == "RandomResize" else step for step in _base_.train_pipeline
]
test_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="Resize", scale=(100000, 512), keep_ratio=True, backend="pillow", interpolation="bilinear"),
    dict(type="ResizeToFloorMultiple", size_divisor=8),  # the output stride
    dict(type="LoadAnnotations"),  # at its own size, where predictions are compared
    dict(type="PackSegInputs"),
]

# For tools/test.py --tta: as in mmseg's own configs, sizes are relative to the image's own.
tta_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale_factor=ratio, keep_ratio=True, backend="pillow", interpolation="bilinear")
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="ResizeToFloorMultiple", size_divisor=8)],  # the output stride
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

datasets = [{**dataset, "pipeline": train_pipeline} for dataset in _base_.train_dataloader.dataset.datasets]
train_dataloader = dict(dataset=dict(datasets=datasets))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
