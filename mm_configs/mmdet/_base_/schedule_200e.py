# AdamW with decay on every parameter, 200 epochs, cosine per epoch behind 500 iterations of warm-up; batch 128.
# The rate ends with the training: train_cfg.max_epochs is the only length.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=9e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
param_scheduler = [
    dict(type="WarmUpLR", start_factor=0.1, by_epoch=False, iterations=500),  # at most a tenth of the training
    dict(type="CosineAnnealingLR", by_epoch=True, eta_min_ratio=1e-6 / 9e-4),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200, val_interval=1)
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
auto_scale_lr = dict(enable=False, base_batch_size=128)
