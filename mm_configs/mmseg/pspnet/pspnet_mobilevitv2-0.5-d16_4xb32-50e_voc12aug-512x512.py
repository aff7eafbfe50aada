# PSPNet over MobileViTv2-0.5 on PASCAL VOC 2012, 512x512, output stride 16.
#
# Train: torchrun --nproc_per_node 4 $MMSEG/tools/train.py \
#   mm_configs/mmseg/pspnet/pspnet_mobilevitv2-0.5-d16_4xb32-50e_voc12aug-512x512.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2206.02680
# Recipe: apple/ml-cvnets 84d992f (v0.2), config/segmentation/pascal_voc/pspnet_mobilevitv2.yaml
# Published: mIoU 74.62 on val; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/segmentation/pascalvoc/mobilevitv2/pspnet-mobilevitv2-0.5.pt
#   timm-mobilevit convert pspnet-mobilevitv2-0.5.pt --out pspnet_mobilevitv2-0.5-d16.pth \
#     --config mm_configs/mmseg/pspnet/pspnet_mobilevitv2-0.5-d16_4xb32-50e_voc12aug-512x512.py
_base_ = [
    "../_base_/pspnet_mobilevit.py",
    "../_base_/voc12aug_512.py",
    "../_base_/schedule_voc12aug_50e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv2_0_5", output_stride=16),
    decode_head=dict(in_channels=256, branch_channels=64, num_classes=21),
    auxiliary_head=dict(in_channels=192, channels=128, num_classes=21),
)
