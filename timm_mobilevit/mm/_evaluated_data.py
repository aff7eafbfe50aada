"""The data set that a config tests on, without its wrappers, and the steps of its pipeline."""

from typing import Any

from mmengine.config import Config

from ._type_names import type_name


def evaluated_dataset(cfg: Config) -> Any:
    """Return the data set that a config tests on, or else validates on; None if there is none.

    For wrappers (ConcatDataset, RepeatDataset and others) it is the first data set inside.

    Example:
        >>> inner = dict(type="CocoDataset", ann_file="test.json")
        >>> wrapped = dict(type="ConcatDataset", datasets=[dict(type="RepeatDataset", times=2, dataset=inner)])
        >>> evaluated_dataset(Config(dict(test_dataloader=dict(dataset=wrapped)))).ann_file
        'test.json'
    """
    for loader in ("test_dataloader", "val_dataloader"):
        if data := (cfg.get(loader) or {}).get("dataset"):
            while "dataset" in data or "datasets" in data:
                data = data["dataset"] if "dataset" in data else data["datasets"][0]
            return data
    return None


def evaluated_steps(cfg: Config) -> list[Any]:
    """Return the steps of the pipeline of that data set, without those that load annotations.

    Raises:
        ValueError: If there is no pipeline.
    """
    steps = (evaluated_dataset(cfg) or {}).get("pipeline") or cfg.get("test_pipeline")
    if not steps:
        raise ValueError("the config has no pipeline to test with: expected one in test_dataloader.dataset.pipeline")
    return [step for step in steps if not type_name(step["type"]).endswith("Annotations")]
