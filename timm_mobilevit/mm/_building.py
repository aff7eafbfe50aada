"""The model of a config over our backbones."""

import copy
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from ._installed import enter_scope
from .backbone import TimmMobileViT


def build_model(cfg: Config, name: str) -> Any:
    """Build a detector or segmentor, with random weights.

    Whether the backbone is ours is decided by the built model, not by its name in the config.

    Args:
        cfg: The parsed config. It is not changed.
        name: What to call it in messages.

    Raises:
        ValueError: If it has no model, one that cannot be built, or one over another backbone.
    """
    refused = f"{name} is no config of a detector or segmentor over TimmMobileViT"
    if not cfg.get("model"):
        raise ValueError(f"{refused}: it has no model")
    enter_scope(cfg)
    try:
        model = MODELS.build(described_model(cfg))
    except ImportError:  # it names the extra
        raise
    except Exception as error:  # constructors of any model, and the registry, raise nearly anything
        raise ValueError(f"the model of {name} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(model, "backbone", None), TimmMobileViT):
        raise ValueError(f"{refused}: its backbone is {type(getattr(model, 'backbone', None)).__name__}")
    return model


def described_model(cfg: Config) -> Any:
    """Return a copy of the model of a config, with the data preprocessor that mmengine's runner would give it."""
    model = copy.deepcopy(cfg.model)
    if cfg.get("data_preprocessor"):
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    return model
