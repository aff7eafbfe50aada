"""Our backbones in configs of MMDetection and MMSegmentation that were written for others."""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from timm.layers import to_2tuple

from ..variants import get_variant
from ._installed import enter_scope
from ._trial import find_fault
from ._type_names import type_name

_STRIDES = (2, 4, 8, 16, 32)  # of our stages
_PROBE = 256  # pixels; divisible by every stride in use
_SETTINGS = ("frozen_stages", "norm_eval", "with_cp")
# Options of mmdet's and mmseg's backbones that ours do not have.
_EXTRAS = ("plugins", "dcn", "gcb", "gen_attention", "sac", "rfp_inplanes")


def use_backbone(
    config: Config,
    model_name: str,
    *,
    out_indices: int | Sequence[int] | None = None,
    output_stride: int | None = None,
    **options: Any,
) -> list[str]:
    """Replace the backbone of a config by one of ours, in place.

    The backbone that is replaced is built and run once on the CPU, without weights, to see its channels and strides.
    Ours gives as many maps of the same strides. Then these are set: ``in_channels`` of the neck, or of the heads where
    there is no neck; lists of strides, if the strides differ; mean, standard deviation and channel order of the data
    preprocessor; ``custom_imports``, so that the tools find our classes. Finally the new model is built and computes
    its loss on random images; the list that is returned names any failure that is new.

    Args:
        config: Config of a detector or segmentor.
        model_name: Name of our model.
        out_indices: Stages to return, from 0 to 4, one per map of the replaced backbone; None for those of its strides.
            A number stands for one stage.
        output_stride: Input pixels per pixel of our last map, 8, 16 or 32; None for that of the replaced backbone.
        **options: More arguments of :class:`TimmMobileViT`, such as ``pretrained=True`` or ``norm_eval=True``.

    Returns:
        Settings that could not be made or need a check, one sentence each; empty if there are none.

    Raises:
        ValueError: If the config has no backbone, has ours already, or has maps that ours cannot replace.

    Example:
        >>> from mmengine.config import Config
        >>> model = dict(
        ...     type="RetinaNet",
        ...     data_preprocessor=dict(type="DetDataPreprocessor"),
        ...     backbone=dict(type="ResNet", depth=18, out_indices=(1, 2, 3)),
        ...     neck=dict(type="FPN", in_channels=[128, 256, 512], out_channels=64, num_outs=5),
        ... )
        >>> config = Config(dict(default_scope="mmdet", model=model))
        >>> use_backbone(config, "mobilevitv3_s", pretrained=True)
        []
        >>> config.model.neck.in_channels, config.model.backbone.out_indices
        ([128, 256, 320], (2, 3, 4))
    """
    old = config.get("model", {}).get("backbone")
    if old is None:
        raise ValueError("the config has no model.backbone that could be replaced")
    if type_name(old.get("type")) == "TimmMobileViT":
        raise ValueError("the config's backbone is TimmMobileViT already: change its model_name")
    before = copy.deepcopy(config)
    if isinstance(out_indices, int):
        out_indices = (out_indices,)
    image_channels = options.get("in_channels", old.get("in_channels") or 3)
    if image_channels != 3:
        options["in_channels"] = image_channels
    channels, strides = _probe(config, old)
    widths = get_variant(model_name.partition(".")[0]).widths
    output_stride = output_stride or min(max(strides[-1], 8), 32)
    stages = list(out_indices) if out_indices is not None else _stages(strides)
    if len(stages) != len(strides):
        raise ValueError(f"the replaced backbone gives {len(strides)} maps, of strides {strides}; got {stages}")

    model = config.model
    model.backbone = {
        "type": "TimmMobileViT",
        "model_name": model_name,
        "out_indices": tuple(stages),
        "output_stride": output_stride,
        **options,
    }
    new_channels = [widths[stage] for stage in stages]
    new_strides = [min(_STRIDES[stage], output_stride) for stage in stages]
    notes = _lost(old, options)
    for name, part in _consumers(model):
        notes += _set_channels(name, part, channels, new_channels)
    if new_strides != strides:
        notes += _set_strides(model, strides, new_strides)
    notes += _set_preprocessing(config, image_channels)
    if model.get("pretrained"):
        model.pretrained = None  # mmseg's place for the weights of the replaced backbone
    imports = config.get("custom_imports") or {"imports": [], "allow_failed_imports": False}
    names = imports["imports"] if isinstance(imports["imports"], list) else [imports["imports"]]
    config.custom_imports = {**imports, "imports": [*names, "timm_mobilevit.mm"]}
    notes += _of_training(config)
    if fault := find_fault(config, before):
        notes.append(
            f"the model does not work as it is now, it fails {fault}; the maps had {channels} channels and strides "
            f"{strides}, and have {new_channels} and {new_strides}"
        )
    return notes


def _probe(config: Config, backbone: Any) -> tuple[list[int], list[int]]:
    """Return the channels and strides of a backbone's feature maps."""
    enter_scope(config)
    # Weights are read by init_weights(), which is not called, or by the constructor if one of these says so.
    plain = {key: value for key, value in backbone.items() if key not in ("init_cfg", "pretrained")}
    with torch.random.fork_rng(devices=[]):
        network = MODELS.build(plain)
        network.eval()  # some return themselves, some do not
        height, width = to_2tuple(backbone.get("img_size") or _PROBE)  # some take images of one size
        with torch.inference_mode():
            maps = network(torch.zeros(1, backbone.get("in_channels") or 3, height, width))
    if isinstance(maps, torch.Tensor):
        maps = (maps,)
    if not all(isinstance(map, torch.Tensor) and map.ndim == 4 for map in maps):
        raise ValueError(f"{backbone['type']} gives no maps [B, C, H, W], so ours cannot take its place")
    return [map.shape[1] for map in maps], [width // map.shape[-1] for map in maps]


def _stages(strides: list[int]) -> list[int]:
    """Return our stages whose maps have these strides; the last one is the deepest, as in the replaced backbone."""
    if strides[-1] >= 8 and _is_dilated(strides):
        return list(range(len(_STRIDES) - len(strides), len(_STRIDES)))
    if not all(stride in _STRIDES for stride in strides) or not all(a < b for a, b in pairwise(strides)):
        raise ValueError(f"no stages of ours have the strides {strides}: name some in out_indices")
    return [_STRIDES.index(stride) for stride in strides]


def _is_dilated(strides: list[int]) -> bool:
    """Return whether the last stages do not shrink the map any more: strides are repeated."""
    return len(set(strides)) < len(strides) <= len(_STRIDES) and strides == sorted(strides)


def _consumers(model: Any) -> Iterator[tuple[str, Any]]:
    """Return the parts that take the maps of the backbone: the neck, or else everything that is built with channels."""
    neck = model.get("neck")
    if neck:
        yield ("neck.0", neck[0]) if isinstance(neck, list | tuple) else ("neck", neck)
        return
    for name, part in model.items():
        for i, item in enumerate(part) if isinstance(part, list | tuple) else ((None, part),):
            if isinstance(item, dict) and name not in ("backbone", "data_preprocessor") and "in_channels" in item:
                yield name if i is None else f"{name}.{i}", item


def _set_channels(name: str, part: Any, old: list[int], new: list[int]) -> list[str]:
    """Set ``in_channels`` of one part to those of the new maps."""
    given = part.get("in_channels")
    index = part.get("in_index", -1 if isinstance(given, int) else range(len(old)))
    before, after = ([maps[i] for i in index] if isinstance(index, Sequence) else maps[index] for maps in (old, new))
    if (list(given) if isinstance(given, tuple) else given) != before:
        return [
            f"{name}.in_channels is {given}, not the {before} channels of the replaced backbone: set it to what "
            f"{part['type']} gets from maps of {new} channels"
        ]
    part["in_channels"] = tuple(after) if isinstance(given, tuple) else after  # some necks take no other type
    if isinstance(before, list) and part.get("channels") == sum(before) != sum(after):
        return [
            f"{name}.channels is left at {part['channels']}, the sum of the old channels; that of the new ones is "
            f"{sum(after)}"
        ]
    return []


def _set_strides(model: Any, old: list[int], new: list[int]) -> list[str]:
    """Set lists of strides that begin with the old maps' to the new ones; each further level doubles the stride."""
    notes = []
    for path, owner, key in _walk(model):
        if not key.endswith("strides") or path.startswith("backbone") or not isinstance(owner[key], list | tuple):
            continue
        value = list(owner[key])
        if value[: len(old)] == old:
            owner[key] = new + [new[-1] * 2**level for level in range(1, len(value) - len(old) + 1)]
        else:
            notes.append(f"{path} is left at {value}; the maps had strides {old} and have {new}")
    return notes


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Return every key below a dictionary: its path, the dictionary that has it, itself."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"{path}{key}", value, key
            yield from _walk(item, f"{path}{key}.")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _walk(item, f"{path}{i}.")


def _set_preprocessing(config: Config, channels: int) -> list[str]:
    """Set the preprocessing to images in [0, 1], RGB if they have three channels."""
    numbers = 3 if channels == 3 else 1  # mmengine takes no others; one stands for all channels
    wanted = {"mean": [0.0] * numbers, "std": [255.0] * numbers, "bgr_to_rgb": channels == 3}
    preprocessor = config.model.get("data_preprocessor") or config.get("data_preprocessor")
    if not preprocessor:
        return [f"there is no data_preprocessor: images must arrive in [0, 1], so give it {wanted}"]
    preprocessor.update(wanted)
    preprocessor.pop("rgb_to_bgr", None)
    return []


def _lost(old: Any, options: dict[str, Any]) -> list[str]:
    """Describe what the replaced backbone had besides layers: settings that ours take, and parts that ours lack."""
    had = {name: f"the replaced backbone had {name}={value}; ours has" for name, value in old.items()}
    settings = [name for name in _SETTINGS if old.get(name) not in (None, -1, False) and name not in options]
    extras = [name for name in _EXTRAS if old.get(name)]
    return [f"{had[name]} not, unless you pass {name}" for name in settings] + [
        f"{had[name]} nothing of the kind" for name in extras
    ]


def _of_training(config: Config) -> list[str]:
    """Return the other settings that were chosen for the replaced backbone."""
    notes = []
    if config.get("load_from"):
        notes.append(f"load_from={config.load_from!r} has weights of the model as it was: set it to None")
    constructor = config.get("optim_wrapper", {}).get("constructor")
    if constructor and "LayerDecay" in constructor:
        notes.append(f"optim_wrapper.constructor {constructor} knows the layers of the replaced backbone: remove it")
    return notes
