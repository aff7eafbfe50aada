# PASCAL VOC 2012 as in CVNets v0.1: images are decoded and resized by OpenCV, tested at 512x512, aspect ratio ignored.
_base_ = ["voc12aug_512.py"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    # The shorter side to any of 256…1024, and what is then smaller than the crop to the crop: 257 of 769 sizes.
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="Resize", scale=(100000, 512), keep_ratio=True)],
            [dict(type="RandomResize", scale=[(100000, 513), (100000, 1024)], keep_ratio=True)],
        ],
        prob=[257 / 769, 512 / 769],
    ),
    dict(type="RandomCrop", crop_size=(512, 512)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(512, 512), keep_ratio=False),
    dict(type="LoadAnnotations"),  # at its own size, where predictions are compared
    dict(type="PackSegInputs"),
]

# For tools/test.py --tta: as in mmseg's own configs, sizes are relative to the image's own.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=ratio, keep_ratio=True) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="ResizeToFloorMultiple", size_divisor=16)],  # the output stride
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

datasets = [{**dataset, "pipeline": train_pipeline} for dataset in _base_.train_dataloader.dataset.datasets]
train_dataloader = dict(dataset=dict(datasets=datasets))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
