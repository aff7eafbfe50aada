# DeepLabv3 as in CVNets v0.1: narrower, two dropouts, no auxiliary head, corners not aligned, the prediction brought to
# the size of the image by the nearest neighbour.
_base_ = ["deeplabv3_mobilevit.py"]

model = dict(
    resize="nearest",
    backbone=dict(output_stride=16, proj_drop_rate=0.1),
    decode_head=dict(
        channels=256,
        dilations=(1, 6, 12, 18),
        branch_dropout=0.1,
        align_corners=False,
        init_cfg=dict(distribution="normal"),
    ),
    auxiliary_head=None,
)
