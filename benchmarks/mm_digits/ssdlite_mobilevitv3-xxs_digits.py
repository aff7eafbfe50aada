# SSDLite with MobileViTv3-XXS on digit scenes, its backbone trained on the scans alone. Effective batch: 8.
#   backbone: python -m benchmarks.digits --model mobilevitv3_xxs
#   data:     python -m benchmarks.mm_data
#   train:    python $MMDET/tools/train.py benchmarks/mm_digits/ssdlite_mobilevitv3-xxs_digits.py
#   test:     python $MMDET/tools/test.py benchmarks/mm_digits/ssdlite_mobilevitv3-xxs_digits.py CHECKPOINT
# $MMDET is the folder .mim of the installed package mmdet.
default_scope = "mmdet"
custom_imports = dict(imports=["timm_mobilevit.mm"], allow_failed_imports=False)
work_dir = "output/mm/ssdlite"

size = (128, 128)
epochs = 6
backbone = "output/digits-mobilevitv3_xxs/model.safetensors"
classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
palette = [
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
]

model = dict(
    type="SingleStageDetector",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True),
    # A small image has few cells: with a last stride of 32 some digits have no anchor that overlaps them by half.
    backbone=dict(
        type="TimmMobileViT", model_name="mobilevitv3_xxs", pretrained=backbone, out_indices=(3, 4), output_stride=16
    ),
    neck=dict(type="SSDLiteNeck", in_channels=(80, 128)),
    bbox_head=dict(
        type="SSDLiteHead",
        num_classes=len(classes),
        anchor_generator=dict(type="SSDLiteAnchorGenerator", min_ratio=0.3, input_size=size),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type="PseudoSampler"),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms=dict(type="nms", iou_threshold=0.5, class_agnostic=True),  # no digit lies on another
        score_thr=0.01,
        nms_pre=200,
        max_per_img=100,
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="SSDCrop", modes=(0.0, 0.1), min_scale=0.75, min_size=0),  # half a digit can be another digit
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),  # not mirrored: that makes other signs
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

data = dict(type="CocoDataset", data_root="output/digit-scenes/", metainfo=dict(classes=classes, palette=palette))
# Workers that start anew, and are seeded anew, in every epoch: a resumed run draws what an unbroken one draws.
loader = dict(num_workers=1, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=8,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **data, ann_file="annotations/train.json", data_prefix=dict(img="img_dir/train/"), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **data,
        ann_file="annotations/val.json",
        data_prefix=dict(img="img_dir/val/"),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file="output/digit-scenes/annotations/val.json", metric="bbox")
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=2)
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
    logger=dict(type="LoggerHook", interval=25), checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1)
)
runner_type = "MobileViTRunner"  # for --launcher pytorch on CPUs
randomness = dict(seed=0)
log_processor = dict(type="LogProcessor", window_size=25, by_epoch=True)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="DetLocalVisualizer", vis_backends=vis_backends, name="visualizer")
