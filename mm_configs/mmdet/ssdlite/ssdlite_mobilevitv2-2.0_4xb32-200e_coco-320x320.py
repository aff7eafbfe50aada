# SSDLite over MobileViTv2-2.0 on COCO 2017, 320x320.
#
# Train: torchrun --nproc_per_node 4 $MMDET/tools/train.py \
#   mm_configs/mmdet/ssdlite/ssdlite_mobilevitv2-2.0_4xb32-200e_coco-320x320.py --launcher pytorch
# Effective batch: 128 (4 GPUs of 32)
# Paper: arXiv:2206.02680
# Recipe: apple/ml-cvnets 84d992f (v0.2), config/detection/ssd_coco/mobilevit_v2.yaml
# Published: mAP 30.21 on val2017; not reproduced here
# Checkpoint: https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/detection/mobilevitv2/coco-ssd-mobilevitv2-2.0.pt
#   timm-mobilevit convert coco-ssd-mobilevitv2-2.0.pt --out ssdlite_mobilevitv2-2.0.pth \
#     --config mm_configs/mmdet/ssdlite/ssdlite_mobilevitv2-2.0_4xb32-200e_coco-320x320.py
# The backbone starts from the weights fine-tuned at 384, as in CoreNet's file of this width.
_base_ = [
    "../_base_/ssdlite_mobilevit.py",
    "../_base_/coco_detection_320.py",
    "../_base_/schedule_200e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(model_name="mobilevitv2_2_0", pretrained="cvnets_in1k_384"),
    neck=dict(in_channels=(768, 1024)),
)
