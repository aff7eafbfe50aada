"""Whatever the evaluator gives, a best checkpoint is saved by the metric that one would name."""

import logging
from types import SimpleNamespace

import pytest
from mmengine.registry import HOOKS

import timm_mobilevit.mm  # noqa: F401  registers the hook

# As the evaluators of mmdet and mmseg give them, in their order.
METRICS = {
    "mIoU": {"aAcc": 90.0, "mIoU": 40.0, "mAcc": 60.0},
    "mDice": {"aAcc": 90.0, "mDice": 40.0, "mAcc": 60.0},
    "mFscore": {"aAcc": 90.0, "mFscore": 40.0, "mPrecision": 60.0, "mRecall": 50.0},
    "coco/bbox_mAP": {"coco/cat_precision": 0.9, "coco/bbox_mAP": 0.4, "coco/bbox_mAP_50": 0.6},
    "coco/segm_mAP": {"coco/segm_mAP": 0.4, "coco/segm_mAP_50": 0.6, "coco/segm_mAP_s": 0.1},
    "pascal_voc/mAP": {"pascal_voc/AP50": 0.5, "pascal_voc/mAP": 0.4},
    "lvis/bbox_AP": {"lvis/bbox_AP": 0.4, "lvis/bbox_AP50": 0.6},
    "coco_panoptic/PQ": {"coco_panoptic/PQ": 40.0, "coco_panoptic/SQ": 60.0},
    "coco/AR@100": {"coco/AR@100": 0.4, "coco/AR@300": 0.6},
    "Recall": {"Recall": 0.4},
    "loss": {"loss": 4.0},
}


class Runner:
    """What the hook asks of a runner."""

    def __init__(self, folder):
        self.work_dir, self.epoch, self.iter = str(folder), 1, 4
        self.saved, self.logger = [], logging.getLogger("best")
        info = {}
        self.message_hub = SimpleNamespace(
            runtime_info=info, get_info=info.get, update_info=lambda key, value: info.update({key: value})
        )

    def save_checkpoint(self, folder, filename, *args, **kwargs):
        self.saved.append(filename)


def trained(folder, *evaluations, **options):
    """Names of the files that are saved after some evaluations."""
    hook = HOOKS.build({"type": "BestCheckpointHook", "save_best": "auto", **options})
    runner = Runner(folder)
    hook.before_train(runner)
    for runner.epoch, metrics in enumerate(evaluations, 1):
        hook.after_val_epoch(runner, metrics)
    return runner.saved


@pytest.mark.parametrize("name", METRICS)
def test_is_chosen_by_the_metric_of_the_field(name, tmp_path):
    worse = {key: value / 2 for key, value in METRICS[name].items()}
    better = dict(METRICS[name])
    if name == "loss":
        worse, better = better, worse
    # All other metrics fall.
    better.update({key: value / 4 for key, value in better.items() if key != name})
    prefix = f"best_{name.replace('/', '_')}"
    assert trained(tmp_path, worse, better, worse) == [f"{prefix}_epoch_1.pth", f"{prefix}_epoch_2.pth"]


def test_an_evaluation_without_metrics_is_passed_over(tmp_path):
    """mmdet's CocoMetric gives none where nothing was detected."""
    assert trained(tmp_path, {}, METRICS["coco/bbox_mAP"]) == ["best_coco_bbox_mAP_epoch_2.pth"]


def test_a_metric_of_unknown_direction_stops_nothing(tmp_path, caplog):
    assert trained(tmp_path, {"chamfer": 3.0}, {"chamfer": 2.0}) == []
    assert "is more of chamfer better, or less" in caplog.text
    assert trained(tmp_path, {"chamfer": 3.0}, {"chamfer": 2.0}, rule="less") == [
        "best_chamfer_epoch_1.pth",
        "best_chamfer_epoch_2.pth",
    ]


def test_a_named_metric_is_taken(tmp_path):
    assert trained(tmp_path, METRICS["mIoU"], save_best="aAcc") == ["best_aAcc_epoch_1.pth"]
    assert trained(tmp_path, METRICS["mIoU"], save_best=None) == []
