# SSDLite over MobileViTv3-1.0 on COCO 2017, 320x320.
#
# Train: torchrun --nproc_per_node 4 $MMDET/tools/train.py \
#   mm_configs/mmdet/ssdlite/ssdlite_mobilevitv3-1.0_4xb32-200e_coco-320x320.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2209.15159
# Recipe: micronDLA/MobileViTv3, MobileViTv3-v2/config/detection/ssd_coco/mobilevit_v3.yaml
# Published: mAP 27 on val2017; not reproduced here
# Checkpoint: https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0, folder mobilevitv3_coco_1_0_0
#   timm-mobilevit convert mobilevitv3_coco_1_0_0/checkpoint_ema_best.pt --out ssdlite_mobilevitv3-1.0.pth \
#     --config mm_configs/mmdet/ssdlite/ssdlite_mobilevitv3-1.0_4xb32-200e_coco-320x320.py
_base_ = [
    "../_base_/ssdlite_mobilevit.py",
    "../_base_/coco_detection_320.py",
    "../_base_/schedule_200e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv3_1_0"),
    neck=dict(in_channels=(384, 512)),
)
