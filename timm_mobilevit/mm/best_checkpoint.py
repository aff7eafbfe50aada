"""The metric that selects the best checkpoint if a config says ``save_best="auto"``."""

from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

# The ends of the names, "coco/bbox_mAP" for one. mmengine itself takes the first metric of the evaluator, which is the
# accuracy of all pixels in mmseg, and the precision of the first class in mmdet's CocoMetric(classwise=True).
_SUMMARIES = ("mIoU", "mAP", "AP", "PQ", "mDice", "mFscore")


@HOOKS.register_module()
class BestCheckpointHook(CheckpointHook):  # type: ignore[misc]
    """mmengine's hook, whose ``save_best="auto"`` prefers the metrics that mmdet and mmseg are compared by.

    It takes the first of mIoU, mAP, AP, PQ, mDice and mFscore that the evaluator gives, and otherwise the
    evaluator's first metric. If nothing says whether more or less of that metric is better (``rule``), it warns and
    saves no best checkpoint; mmengine's own hook ends the training then. The arguments are those of
    ``mmengine.hooks.CheckpointHook``.
    """

    _default_greater_keys = (*CheckpointHook._default_greater_keys, *_SUMMARIES, "Recall", "Fscore", "AR")

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any]) -> None:
        """Save the checkpoint if it is the best one so far."""
        if self.save_best and self.key_indicators == ["auto"] and metrics:
            metrics = _summary_first(metrics)
            first = next(iter(metrics))
            known = (*self.greater_keys, *self.less_keys)
            if self.rules == [None] and not any(key.lower() in first.lower() for key in known):
                runner.logger.warning(
                    f"No best checkpoint is saved: is more of {first} better, or less? Say so with "
                    f"default_hooks.checkpoint.rule='greater' or 'less'"
                )
                return
        super().after_val_epoch(runner, metrics)


def _summary_first(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the same metrics, the one that selects the checkpoint first."""
    for end in _SUMMARIES:
        for name in metrics:
            if name.rpartition("/")[2].rpartition("_")[2] == end:
                return {name: metrics[name], **metrics}
    return metrics
