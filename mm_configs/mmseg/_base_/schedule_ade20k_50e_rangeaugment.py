# As the schedule of 120 epochs, but 50 with two batches accumulated, a smaller rate at the end, no clipped gradients.
_base_ = ["schedule_ade20k_120e.py"]

optim_wrapper = dict(accumulative_counts=2, clip_grad=None)
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, eta_min_ratio=1e-4 / 0.02)]
train_cfg = dict(max_epochs=50)
