# SSDLite over MobileViTv1-XXS on COCO 2017, 320x320.
#
# Train: torchrun --nproc_per_node 4 $MMDET/tools/train.py \
#   mm_configs/mmdet/ssdlite/ssdlite_mobilevitv1-xxs_4xb32-200e_coco-320x320.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2110.02178
# Recipe: apple/ml-cvnets d38a116 (v0.1), config/detection/ssd_mobilevit_xx_small_320.yaml
# Published: mAP 19.9 on val2017; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets/detection/ssd_mobilevit_xxs_320.pt
#   timm-mobilevit convert ssd_mobilevit_xxs_320.pt --out ssdlite_mobilevitv1-xxs.pth \
#     --config mm_configs/mmdet/ssdlite/ssdlite_mobilevitv1-xxs_4xb32-200e_coco-320x320.py
_base_ = [
    "../_base_/ssdlite_mobilevit_v0_1.py",
    "../_base_/coco_detection_320_v0_1.py",
    "../_base_/schedule_200e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv1_xxs", proj_drop_rate=0.05),
    neck=dict(in_channels=(64, 80)),
)
