# SSDLite over MobileViTv3-S on COCO 2017, 320x320.
#
# Train: torchrun --nproc_per_node 4 $MMDET/tools/train.py \
#   mm_configs/mmdet/ssdlite/ssdlite_mobilevitv3-s_4xb32-200e_coco-320x320.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2209.15159
# Recipe: micronDLA/MobileViTv3, MobileViTv3-v1/config/detection/ssd_mobilevitv3_small_320.yaml
# Published: mAP 27.3 on val2017; not reproduced here
# Checkpoint: https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0, folder mobilevitv3_S_coco_e200_2730
#   timm-mobilevit convert mobilevitv3_S_coco_e200_2730/checkpoint_ema_best.pt --out ssdlite_mobilevitv3-s.pth \
#     --config mm_configs/mmdet/ssdlite/ssdlite_mobilevitv3-s_4xb32-200e_coco-320x320.py
# The number of GPUs is not published; 4 as for MobileViTv1.
_base_ = [
    "../_base_/ssdlite_mobilevit_v0_1.py",
    "../_base_/coco_detection_320_v0_1.py",
    "../_base_/schedule_200e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv3_s"),
    neck=dict(in_channels=(256, 320)),
)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type="WarmUpLR", start_factor=9e-5 / 4e-3, by_epoch=False, iterations=500),
    dict(type="CosineAnnealingLR", by_epoch=True, eta_min_ratio=1e-6 / 4e-3),
]
