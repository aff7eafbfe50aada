# DeepLabv3 with MobileViTv3-0.5 on digit scenes, its backbone trained on the scans alone. Effective batch: 8.
#   backbone: python -m benchmarks.digits --model mobilevitv3_0_5
#   data:     python -m benchmarks.mm_data
#   train:    python $MMSEG/tools/train.py benchmarks/mm_digits/deeplabv3_mobilevitv3-0.5_digits.py
#   test:     python $MMSEG/tools/test.py benchmarks/mm_digits/deeplabv3_mobilevitv3-0.5_digits.py CHECKPOINT
# $MMSEG is the folder .mim of the installed package mmseg.
default_scope = "mmseg"
custom_imports = dict(imports=["timm_mobilevit.mm"], allow_failed_imports=False)
work_dir = "output/mm/deeplabv3"

size = (128, 128)
epochs = 14
backbone = "output/digits-mobilevitv3_0_5/model.safetensors"
classes = ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
palette = [
    [0, 0, 0],
    [230, 25, 75],
    [60, 180, 75],
    [255, 225, 25],
    [0, 130, 200],
    [245, 130, 48],
    [145, 30, 180],
    [70, 240, 240],
    [240, 50, 230],
    [210, 245, 60],
    [250, 190, 212],
]

model = dict(
    type="MobileViTEncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        size=size,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="TimmMobileViT", model_name="mobilevitv3_0_5", pretrained=backbone, out_indices=(4,), output_stride=8
    ),
    decode_head=dict(
        type="MobileViTASPPHead",
        in_channels=256,
        in_index=0,
        channels=128,
        dilations=(1, 3, 6, 9),  # those for 512 pixels look beyond maps of 16
        num_classes=len(classes),
        norm_cfg=dict(type="BN"),
        align_corners=False,
        dropout_ratio=0.1,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=size, ratio_range=(0.9, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=size),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),  # not mirrored: that makes other signs
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]

data = dict(type="BaseSegDataset", data_root="output/digit-scenes/", metainfo=dict(classes=classes, palette=palette))
# Workers that start anew, and are seeded anew, in every epoch: a resumed run draws what an unbroken one draws.
loader = dict(num_workers=1, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=8,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **data,
        data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
        indices=1000,  # of the 3,000 scenes: enough here
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=10,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**data, data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=7)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=epochs, eta_min=1e-6, convert_to_iter_based=True),
]

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=25, log_metric_by_epoch=True),
    checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=True, max_keep_ckpts=1),
)
runner_type = "MobileViTRunner"  # for --launcher pytorch on CPUs
randomness = dict(seed=0)
log_processor = dict(type="LogProcessor", window_size=25, by_epoch=True)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
