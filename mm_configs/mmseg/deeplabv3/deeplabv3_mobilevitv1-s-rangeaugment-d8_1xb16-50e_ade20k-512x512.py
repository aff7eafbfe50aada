# DeepLabv3 over MobileViTv1-S on ADE20K, 512x512, output stride 8.
#
# Train: python $MMSEG/tools/train.py \
#   mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv1-s-rangeaugment-d8_1xb16-50e_ade20k-512x512.py
# Effective batch: 32 (1 GPU of 16, 2 steps accumulated)
# Paper: arXiv:2212.10553
# Recipe: apple/corenet, projects/range_augment/segmentation/ade20k/deeplabv3_mobilevit.yaml
# Published: mIoU 38.49 on the validation set; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/examples/range_augment/segmentation/ade20k/deeplabv3_mobilevit.pt
#   timm-mobilevit convert deeplabv3_mobilevit.pt --out deeplabv3_mobilevitv1-s-rangeaugment-d8.pth \
#     --config mm_configs/mmseg/deeplabv3/deeplabv3_mobilevitv1-s-rangeaugment-d8_1xb16-50e_ade20k-512x512.py
# RangeAugment's learned brightness, contrast and noise are not in mm and left out; the official file's own
# comment counts a batch of 16. Activation checkpointing as there: --cfg-options model.backbone.with_cp=True
_base_ = [
    "../_base_/deeplabv3_mobilevit.py",
    "../_base_/ade20k_512_rangeaugment.py",
    "../_base_/schedule_ade20k_50e_rangeaugment.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        model_name="mobilevitv1_s", output_stride=8, proj_drop_rate=0.1, pretrained="cvnets_rangeaugment_in1k"
    ),
    decode_head=dict(in_channels=160, dilations=(1, 12, 24, 36), num_classes=150, init_cfg=dict(distribution="normal")),
    auxiliary_head=dict(in_channels=128, channels=128, num_classes=150, init_cfg=dict(distribution="normal")),
)
