custom_imports = dict(imports=["timm_mobilevit.mm"], allow_failed_imports=False)
runner_type = "MobileViTRunner"  # without GPUs: float32, gloo, batch norms that are not synchronised
default_scope = "mmseg"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # The best by the metric of the evaluator: mIoU, if it gives that.
    checkpoint=dict(type="BestCheckpointHook", interval=1, max_keep_ckpts=3, save_best="auto"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
sync_bn = "torch"  # in distributed training only

visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
log_processor = dict(by_epoch=True)
log_level = "INFO"
load_from = None
resume = False

tta_model = dict(type="MobileViTSegTTAModel")
