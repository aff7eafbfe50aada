# DeepLabv3 over MobileViTv3-0.5 on PASCAL VOC 2012, 512x512, output stride 16.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv3-0.5-d16_4xb32-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2209.15159
# Recipe: micronDLA/MobileViTv3, MobileViTv3-v2/config/segmentation/pascal_voc/deeplabv3_mobilevitv3.yaml
# Published: mIoU 76.48 on val; not reproduced here
# Checkpoint: https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0, folder mobilevitv3_voc_0_5_0
#   timm-mobilevit convert mobilevitv3_voc_0_5_0/checkpoint_ema_best.pt --out deeplabv3_mobilevitv3-0.5-d16.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv3-0.5-d16_4xb32-50e_voc12aug-512x512.py
_base_ = [
    "../_base_/deeplabv3_mobilevit.py",
    "../_base_/voc12aug_512.py",
    "../_base_/schedule_voc12aug_50e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv3_0_5", output_stride=16),
    decode_head=dict(in_channels=256, dilations=(1, 6, 12, 18), num_classes=21),
    auxiliary_head=dict(in_channels=192, channels=128, num_classes=21),
)
