# SSDLite as in CVNets, whatever the version; post-processing of v0.2. A leaf adds backbone.model_name and the channels
# of the two maps, neck.in_channels.
model = dict(
    type="SingleStageDetector",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True, pad_size_divisor=1
    ),
    backbone=dict(type="TimmMobileViT", pretrained=True, out_indices=(3, 4)),
    neck=dict(
        type="SSDLiteNeck",
        proj_channels=(512, 256),
        extra_channels=(256, 128, 128),
        pool_channels=64,
    ),
    bbox_head=dict(
        type="SSDLiteHead",
        num_classes=80,
        in_channels=(512, 256, 256, 128, 128, 64),
        anchor_generator=dict(
            type="SSDLiteAnchorGenerator",
            ratios=((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,)),
            min_ratio=0.1,
            max_ratio=1.05,
            input_size=320,
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
            clip_border=False,  # the head clips after the suppression
        ),
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
        score_thr=0.01,
        nms_pre=400,  # per class, over all levels
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=200,
    ),
)
