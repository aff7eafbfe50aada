# DeepLabv3 over MobileViTv2-1.5 on ADE20K, 512x512, output stride 8.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv2-1.5-d8_4xb4-120e_ade20k-512x512.py --launcher pytorch
# Effective batch: 16 (4 GPUs of 4)
# Paper: arXiv:2206.02680
# Recipe: apple/ml-cvnets 84d992f (v0.2), config/segmentation/ade20k/deeplabv3_mobilevitv2.yaml
# Published: mIoU 38.91 on the validation set; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/segmentation/ade20k/mobilevitv2/deeplabv3-mobilevitv2-1.5.pt
#   timm-mobilevit convert deeplabv3-mobilevitv2-1.5.pt --out deeplabv3_mobilevitv2-1.5-d8.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv2-1.5-d8_4xb4-120e_ade20k-512x512.py
_base_ = [
    "../_base_/deeplabv3_mobilevit.py",
    "../_base_/ade20k_512.py",
    "../_base_/schedule_ade20k_120e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv2_1_5", output_stride=8),
    decode_head=dict(in_channels=768, dilations=(1, 12, 24, 36), num_classes=150),
    auxiliary_head=dict(in_channels=576, channels=144, num_classes=150),
)
