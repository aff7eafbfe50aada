# PASCAL VOC 2012, 21 classes, crops of 512x512, as in CVNets v0.2. Trained on VOC's train set, the images of SBD, and
# COCO 2017 with VOC's classes; ../../README.md says how to prepare the last, and how to leave it out.
dataset_type = "PascalVOCDataset"
data_root = "data/VOCdevkit/VOC2012"
crop_size = (512, 512)

train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations"),
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
    dict(type="ResizeToFloorMultiple", size_divisor=16),  # the output stride
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
                dict(type="Resize", scale_factor=ratio, keep_ratio=True, backend="pillow", interpolation="bicubic")
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="ResizeToFloorMultiple", size_divisor=16)],  # the output stride
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

voc_train = dict(
    type=dataset_type,
    data_root=data_root,
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
    ann_file="ImageSets/Segmentation/train.txt",
    pipeline=train_pipeline,
)
voc_aug = dict(
    type=dataset_type,
    data_root=data_root,
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
    ann_file="ImageSets/Segmentation/aug.txt",
    pipeline=train_pipeline,
)
coco_as_voc = dict(
    type=dataset_type,
    data_root="data/coco_as_voc",
    data_prefix=dict(img_path="train2017", seg_map_path="masks"),
    ann_file="train_2017.txt",
    pipeline=train_pipeline,
)

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,  # batch norm cannot learn from a last batch of one
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="ConcatDataset", datasets=[voc_train, voc_aug, coco_as_voc]),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
