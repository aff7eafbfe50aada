# SGD without Nesterov, no decay on one-dimensional parameters, 120 epochs, cosine per epoch, no warm-up; batch 16.
# The rate ends with the training: train_cfg.max_epochs is the only length.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(flat_decay_mult=0.0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, eta_min_ratio=2e-4 / 0.02)]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=120, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# The published momentum from iteration 20,000 on, before that 10 / (10 + iteration): of any training, however short, the
# average is about one of its last tenth, and not of its random start.
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="MomentumAnnealingEMA",
        momentum=5e-4,
        gamma=10,
        update_buffers=True,
        priority=49,
    )
]
