# Post-processing of CVNets v0.1. (The threshold of 0.05 is its default; the papers do not say which one was used.)
_base_ = ["ssdlite_mobilevit.py"]

model = dict(
    backbone=dict(proj_drop_rate=0.1),
    test_cfg=dict(
        _delete_=True,
        score_thr=0.05,
        nms_pre=-1,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_class=200,
        max_per_img=-1,
    ),
)
