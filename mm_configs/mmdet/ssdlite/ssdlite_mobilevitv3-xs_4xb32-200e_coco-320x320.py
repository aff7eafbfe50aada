# SSDLite over MobileViTv3-XS on COCO 2017, 320x320.
#
# Train: torchrun --nproc_per_node 4 $MMDET/tools/train.py \
#   mm_configs/mmdet/ssdlite/ssdlite_mobilevitv3-xs_4xb32-200e_coco-320x320.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2209.15159
# Recipe: micronDLA/MobileViTv3, MobileViTv3-v1/config/detection/ssd_mobilevitv3_x_small_320.yaml
# Published: mAP 25.6 on val2017; not reproduced here
# Checkpoint: https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0, folder mobilevitv3_XS_coco_e200_2560
#   timm-mobilevit convert mobilevitv3_XS_coco_e200_2560/checkpoint_ema_best.pt --out ssdlite_mobilevitv3-xs.pth \
#     --config mm_configs/mmdet/ssdlite/ssdlite_mobilevitv3-xs_4xb32-200e_coco-320x320.py
# The number of GPUs is not published; 4 as for MobileViTv1.
_base_ = [
    "../_base_/ssdlite_mobilevit_v0_1.py",
    "../_base_/coco_detection_320_v0_1.py",
    "../_base_/schedule_200e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv3_xs"),
    neck=dict(in_channels=(160, 160)),
)
