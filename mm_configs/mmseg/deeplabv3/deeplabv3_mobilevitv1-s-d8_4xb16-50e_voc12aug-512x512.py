# DeepLabv3 over MobileViTv1-S on PASCAL VOC 2012, 512x512, output stride 8.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv1-s-d8_4xb16-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 16, 2 steps accumulated)
# Paper: arXiv:2110.02178
# Recipe: apple/ml-cvnets 84d992f (v0.2), config/segmentation/pascal_voc/deeplabv3_mobilevit.yaml
# Published: mIoU 79.44 on val; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/segmentation/pascalvoc/deeplabv3-mobilevitv1.pt
#   timm-mobilevit convert deeplabv3-mobilevitv1.pt --out deeplabv3_mobilevitv1-s-d8.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv1-s-d8_4xb16-50e_voc12aug-512x512.py
# The later file of this model: RGB, output stride 8, wider head, with an auxiliary head.
_base_ = [
    "../_base_/deeplabv3_mobilevit.py",
    "../_base_/voc12aug_512_bilinear.py",
    "../_base_/schedule_voc12aug_50e_v0_1.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv1_s", output_stride=8, proj_drop_rate=0.1),
    decode_head=dict(in_channels=160, dilations=(1, 12, 24, 36), num_classes=21, init_cfg=dict(distribution="normal")),
    auxiliary_head=dict(in_channels=128, channels=128, num_classes=21, init_cfg=dict(distribution="normal")),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=2)
