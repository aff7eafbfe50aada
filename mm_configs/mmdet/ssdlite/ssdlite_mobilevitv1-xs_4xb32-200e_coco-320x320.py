# SSDLite over MobileViTv1-XS on COCO 2017, 320x320.
#
# Train: torchrun --nproc_per_node 4 $MMDET/tools/train.py \
#   mm_configs/mmdet/ssdlite/ssdlite_mobilevitv1-xs_4xb32-200e_coco-320x320.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2110.02178
# Recipe: apple/ml-cvnets d38a116 (v0.1), config/detection/ssd_mobilevit_x_small_320.yaml
# Published: mAP 24.8 on val2017; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets/detection/ssd_mobilevit_xs_320.pt
#   timm-mobilevit convert ssd_mobilevit_xs_320.pt --out ssdlite_mobilevitv1-xs.pth \
#     --config mm_configs/mmdet/ssdlite/ssdlite_mobilevitv1-xs_4xb32-200e_coco-320x320.py
_base_ = [
    "../_base_/ssdlite_mobilevit_v0_1.py",
    "../_base_/coco_detection_320_v0_1.py",
    "../_base_/schedule_200e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv1_xs"),
    neck=dict(in_channels=(80, 96)),
)
