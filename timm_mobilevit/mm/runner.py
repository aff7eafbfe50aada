"""mmengine's runner on machines without a GPU, and on data sets too small for a batch."""

import os
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from ._type_names import type_name

_NO_MIXED_PRECISION = ("cpu", "mps")
_OF_MIXED_PRECISION = ("loss_scale", "dtype", "use_fsdp")  # arguments that OptimWrapper lacks

_BY_ITERATIONS = (
    "train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=…, val_interval=…), by_epoch=False in each of "
    "param_scheduler, in log_processor and, with an interval in iterations, in default_hooks.checkpoint"
)


@RUNNERS.register_module()
class MobileViTRunner(Runner):  # type: ignore[misc]
    """A runner for configs that were written for GPUs, wherever they run.

    Without a GPU, it trains in float32 instead of mixed precision, and several processes (``torchrun``,
    ``--launcher pytorch``) exchange gradients by gloo and do not synchronise batch norms. mmengine's own needs
    changes of the config for that, and ``LOCAL_RANK=-1`` in the environment. With a GPU, it changes nothing.

    It also refuses a training that would have no end or no iteration.

    ``tools/train.py`` and ``tools/test.py`` take it from ``runner_type="MobileViTRunner"`` in a config.
    """

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up processes, by gloo where there is no GPU."""
        if self._launcher == "pytorch" and get_device() == "cpu":
            os.environ["LOCAL_RANK"] = "-1"  # mmengine takes the GPU of that number; of a negative one, none
            env_cfg = {**env_cfg, "dist_cfg": {**env_cfg.get("dist_cfg", {}), "backend": "gloo"}}
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; on CPUs, batch norms take the statistics of their own process."""
        if not self.distributed or get_device() != "cpu" or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)  # type: ignore[no-any-return]
        wrapper = {
            "type": "MMDistributedDataParallel",
            "broadcast_buffers": False,
            "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
            **(model_wrapper_cfg or {}),
        }
        return MODEL_WRAPPERS.build(wrapper, default_args={"module": revert_sync_batchnorm(model)})  # type: ignore[no-any-return]

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer's wrapper; without a GPU, one that does not scale losses."""
        mixed = isinstance(optim_wrapper, dict) and type_name(optim_wrapper.get("type")) == "AmpOptimWrapper"
        if mixed and get_device() in _NO_MIXED_PRECISION:
            self.logger.info("There is no GPU: training in float32 instead of mixed precision.")
            kept = {key: value for key, value in optim_wrapper.items() if key not in _OF_MIXED_PRECISION}
            optim_wrapper = {**kept, "type": "OptimWrapper"}
        return super().build_optim_wrapper(optim_wrapper)

    def build_train_loop(self, loop: Any) -> Any:
        """Build the loop.

        Raises:
            ValueError: If its epochs have no end, or no iteration.
        """
        built = super().build_train_loop(loop)
        if isinstance(built, EpochBasedTrainLoop):
            if isinstance(getattr(built.dataloader, "sampler", None), InfiniteSampler):
                raise ValueError(
                    "an epoch of train_dataloader has no end, because its sampler is InfiniteSampler: set "
                    f"sampler=dict(type='DefaultSampler', shuffle=True), or train by iterations, with {_BY_ITERATIONS}"
                )
            if not len(built.dataloader):
                raise ValueError(
                    f"an epoch of train_dataloader has no iteration: its data set has {len(built.dataloader.dataset)} "
                    f"images, a batch {built.dataloader.batch_size}, and drop_last=True leaves out what does not fill "
                    "one; set a smaller batch_size"
                )
        elif isinstance(built, IterBasedTrainLoop) and _counts_epochs(self.param_schedulers):
            raise ValueError(
                "param_scheduler counts epochs, of which a training by iterations has a single one: the learning rate "
                f"would not fall; set {_BY_ITERATIONS}"
            )
        return built


def _counts_epochs(schedulers: Any) -> bool:
    """Return whether some scheduler of the learning rate takes a step per epoch."""
    if isinstance(schedulers, list | tuple):
        return any(map(_counts_epochs, schedulers))
    if not isinstance(schedulers, dict):  # built, or none
        return bool(getattr(schedulers, "by_epoch", False))
    if "type" not in schedulers:  # of several optimizers
        return any(map(_counts_epochs, schedulers.values()))
    return bool(schedulers.get("by_epoch", True)) and not schedulers.get("convert_to_iter_based")
