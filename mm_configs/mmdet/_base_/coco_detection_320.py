# COCO 2017 at 320x320, aspect ratio ignored, as in CVNets v0.2: images are decoded and resized by Pillow, bicubically.
dataset_type = "CocoDataset"
data_root = "data/coco/"
image_size = (320, 320)

train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="SSDCrop", min_size=100),
    dict(type="RandomFlip", prob=0.5),
    # In the reference colours change before flip and resize; here after, because Pillow resizes 8-bit images only.
    dict(type="Resize", scale=image_size, keep_ratio=False, backend="pillow", interpolation="bicubic"),
    dict(type="RandomBrightnessFactor", factors=(0.875, 1.125), prob=0.5),
    dict(type="PhotoMetricDistortion", brightness_delta=0, hue_delta=18),  # hue in degrees
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="Resize", scale=image_size, keep_ratio=False, backend="pillow", interpolation="bicubic"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="CocoMetric",
    ann_file=data_root + "annotations/instances_val2017.json",
    metric="bbox",
    proposal_nums=(1, 10, 100),  # pycocotools' own limits, for AP50 and the others too; mmdet's default is up to 1000
)
test_evaluator = val_evaluator
