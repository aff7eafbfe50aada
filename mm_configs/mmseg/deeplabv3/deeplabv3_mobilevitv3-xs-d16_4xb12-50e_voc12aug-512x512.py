# DeepLabv3 over MobileViTv3-XS on PASCAL VOC 2012, 512x512, output stride 16.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv3-xs-d16_4xb12-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 48 (4 GPUs of 12)
# Paper: arXiv:2209.15159
# Recipe: micronDLA/MobileViTv3, MobileViTv3-v1/config/segmentation/deeplabv3_mobilevitv3_x_small.yaml
# Published: mIoU 78.77 on val; not reproduced here
# Checkpoint: https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0, folder mobilevitv3_XS_voc_e50_7877
#   timm-mobilevit convert mobilevitv3_XS_voc_e50_7877/checkpoint_ema_best.pt --out deeplabv3_mobilevitv3-xs-d16.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv3-xs-d16_4xb12-50e_voc12aug-512x512.py
# The number of GPUs is not published; 4 as for MobileViTv1.
_base_ = [
    "../_base_/deeplabv3_mobilevit_v0_1.py",
    "../_base_/voc12aug_512_v0_1.py",
    "../_base_/schedule_voc12aug_50e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv3_xs"),
    decode_head=dict(in_channels=160, num_classes=21),
)
train_dataloader = dict(batch_size=12)
