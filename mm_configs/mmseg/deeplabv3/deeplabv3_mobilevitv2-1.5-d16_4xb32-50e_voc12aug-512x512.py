# DeepLabv3 over MobileViTv2-1.5 on PASCAL VOC 2012, 512x512, output stride 16.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv2-1.5-d16_4xb32-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2206.02680
# Recipe: apple/ml-cvnets 84d992f (v0.2), config/segmentation/pascal_voc/deeplabv3_mobilevitv2.yaml
# Published: mIoU 80.30 on val; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/segmentation/pascalvoc/mobilevitv2/deeplabv3-mobilevitv2-1.5.pt
#   timm-mobilevit convert deeplabv3-mobilevitv2-1.5.pt --out deeplabv3_mobilevitv2-1.5-d16.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv2-1.5-d16_4xb32-50e_voc12aug-512x512.py
_base_ = [
    "../_base_/deeplabv3_mobilevit.py",
    "../_base_/voc12aug_512.py",
    "../_base_/schedule_voc12aug_50e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv2_1_5", output_stride=16),
    decode_head=dict(in_channels=768, dilations=(1, 6, 12, 18), num_classes=21),
    auxiliary_head=dict(in_channels=576, channels=144, num_classes=21),
)
