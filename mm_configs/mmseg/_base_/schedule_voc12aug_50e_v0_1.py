# As the schedule of v0.2, but decay on every parameter, ten times the learning rate in the heads, no clipped gradients.
_base_ = ["schedule_voc12aug_50e.py"]

optim_wrapper = dict(
    optimizer=dict(lr=9e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys=dict(decode_head=dict(lr_mult=10), auxiliary_head=dict(lr_mult=10)),
    ),
    clip_grad=None,
)
param_scheduler = [
    dict(type="WarmUpLR", start_factor=0.1, by_epoch=False, iterations=500),  # at most a tenth of the training
    # A ratio: the heads end at ten times the backbone's rate too.
    dict(type="CosineAnnealingLR", by_epoch=True, eta_min_ratio=1e-6 / 9e-4),
]
