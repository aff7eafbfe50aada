# ADE20K, 150 classes, crops of 512x512, as in CVNets v0.2 and CoreNet: images are decoded and resized by Pillow.
dataset_type = "ADE20KDataset"
data_root = "data/ade/ADEChallengeData2016"
crop_size = (512, 512)

train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    # The shorter side to any of 256…768, or less if the longer one would exceed 1024.
    dict(
        type="RandomResize",
        scale=[(1024, 256), (1024, 768)],
        keep_ratio=True,
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="Pad", size=crop_size),
    dict(type="RandomGaussianBlur", max_radius=1.0, prob=0.5),
    dict(
        type="RandomPhotometricDistort",
        brightness=(0.875, 1.125),
        contrast=(0.5, 1.5),
        saturation=(0.5, 1.5),
        hue=(-0.05, 0.05),
        prob=0.5,
    ),
    dict(type="RandomRotate", prob=1.0, degree=10, pad_val=0, seg_pad_val=255),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    # The shorter side to 512; the longer one is not limited.
    dict(type="Resize", scale=(100000, 512), keep_ratio=True, backend="pillow", interpolation="bicubic"),
    dict(type="ResizeToFloorMultiple", size_divisor=8),  # the output stride
    dict(type="LoadAnnotations", reduce_zero_label=True),  # at its own size, where predictions are compared
    dict(type="PackSegInputs"),
]

# For tools/test.py --tta: as in mmseg's own configs, sizes are relative to the image's own.
tta_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale_factor=ratio, keep_ratio=True, backend="pillow", interpolation="bicubic")
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="ResizeToFloorMultiple", size_divisor=8)],  # the output stride
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,  # batch norm cannot learn from a last batch of one
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
