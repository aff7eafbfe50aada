# AdamW, no decay on one-dimensional parameters, 50 epochs, cosine per epoch behind 500 warm-up iterations; batch 128.
# Without a GPU: --cfg-options optim_wrapper.type=OptimWrapper
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, T_max=50, end=50, eta_min=1e-6),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=50, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

custom_hooks = [
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=5e-4, update_buffers=True, priority=49)
]
