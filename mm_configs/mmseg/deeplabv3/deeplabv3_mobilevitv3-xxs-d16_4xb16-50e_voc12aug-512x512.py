# DeepLabv3 over MobileViTv3-XXS on PASCAL VOC 2012, 512x512, output stride 16.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv3-xxs-d16_4xb16-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 64 (4 GPUs of 16)
# Paper: arXiv:2209.15159
# Recipe: micronDLA/MobileViTv3, MobileViTv3-v1/config/segmentation/deeplabv3_mobilevitv3_xx_small.yaml
# Published: mIoU 74.04 on val; not reproduced here
# Checkpoint: https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0, folder mobilevitv3_XXS_voc_e50_7404
#   timm-mobilevit convert mobilevitv3_XXS_voc_e50_7404/checkpoint_ema_best.pt --out deeplabv3_mobilevitv3-xxs-d16.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv3-xxs-d16_4xb16-50e_voc12aug-512x512.py
# The number of GPUs is not published; 4 as for MobileViTv1.
_base_ = [
    "../_base_/deeplabv3_mobilevit_v0_1.py",
    "../_base_/voc12aug_512_v0_1.py",
    "../_base_/schedule_voc12aug_50e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv3_xxs", proj_drop_rate=0.05),
    decode_head=dict(in_channels=128, num_classes=21),
)
train_dataloader = dict(batch_size=16)
