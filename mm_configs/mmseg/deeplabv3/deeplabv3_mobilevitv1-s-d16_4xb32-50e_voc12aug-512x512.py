# DeepLabv3 over MobileViTv1-S on PASCAL VOC 2012, 512x512, output stride 16.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv1-s-d16_4xb32-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2110.02178
# Recipe: apple/ml-cvnets d38a116 (v0.1), config/segmentation/deeplabv3_mobilevit_small.yaml
# Published: mIoU 79.3 on val; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets/segmentation/deeplabv3_mobilevit_s.pt
#   timm-mobilevit convert deeplabv3_mobilevit_s.pt --out deeplabv3_mobilevitv1-s-d16.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv1-s-d16_4xb32-50e_voc12aug-512x512.py
_base_ = [
    "../_base_/deeplabv3_mobilevit_v0_1.py",
    "../_base_/voc12aug_512_v0_1.py",
    "../_base_/schedule_voc12aug_50e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv1_s"),
    decode_head=dict(in_channels=160, num_classes=21),
)
