# COCO 2017 at 320x320 as in CVNets v0.1: images are decoded and resized by OpenCV, bilinearly.
_base_ = ["coco_detection_320.py"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="SSDCrop", min_size=0),
    dict(type="PhotoMetricDistortion", brightness_delta=51, hue_delta=24),  # 0.2 of 255; 12 of OpenCV's two degrees
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=(320, 320), keep_ratio=False),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 320), keep_ratio=False),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
