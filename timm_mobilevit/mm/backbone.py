"""The backbone: one of our models, built by timm, as a module of mmengine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from mmengine.model import BaseModule, update_init_info
from mmengine.registry import MODELS
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..network.model import run_checkpointed
from ..variants import get_variant
from ..weights.loading import read_weights

_STEM = "stem.conv.weight"


@MODELS.register_module()
class TimmMobileViT(BaseModule):  # type: ignore[misc]
    """A MobileViT as backbone of MMDetection and MMSegmentation.

    Registered in mmengine's root registry, so both find it. Images are RGB in [0, 1]: ``mean=[0, 0, 0]``,
    ``std=[255, 255, 255]``, ``bgr_to_rgb=True`` in the data preprocessor. Images of other channels need
    ``mean=[0]``, ``std=[255]``, one number for all, and no ``bgr_to_rgb``.

    Args:
        model_name: A name that ``timm.list_models(module="mobilevit_zoo")`` gives.
        pretrained: True for the default pretrained weights, a tag (``"cvnets_in1k"``) for others, or the path of a
            checkpoint file in any recognised layout; that of a detector or segmentor will do. A dictionary has the
            path as ``file``, beside ``prefix`` or ``entry`` where a file holds several models
            (``dict(file="distilled.pth", prefix="student.")``). False for none. As everywhere in mmengine, weights
            are read by ``init_weights()``, which training calls: with a checkpoint of the whole detector, nothing is
            downloaded.
        out_indices: Stages to return, from 0 to 4, or one of them; -1 is the last.
        output_stride: Input pixels per pixel of the last map: 8, 16 or 32.
        frozen_stages: Stages whose parameters are fixed, the stem included: 0 fixes the stem alone, 1 the stem and the
            first stage, and so on; -1 fixes nothing.
        norm_eval: Whether batch norms keep their running statistics in training.
        with_cp: Whether to recompute blocks in the backward pass instead of keeping their activations.
        in_channels: Channels of the images. Pretrained weights of three channels are adapted as timm does: added for
            one channel, otherwise repeated and scaled.
        exact_feature_size: Whether maps are exactly ceil(size / stride); False for the reference's rounding.
        proj_drop_rate: Dropout rate inside the transformers, in [0, 1).
        drop_path_rate: Stochastic depth rate, in [0, 1).
        patch_size: Patch of the transformers, one number or one per stage 3, 4 and 5.
        init_cfg: mmengine's initialisation; not together with ``pretrained``.

    Raises:
        ValueError: If a name or an index does not exist, or two arguments exclude each other.

    Shape:
        Input [B, in_channels, H, W]; output one map [B, channels, ceil(H / stride), ceil(W / stride)] per index.

    Example:
        >>> import torch
        >>> backbone = MODELS.build(dict(type="TimmMobileViT", model_name="mobilevitv3_xxs", out_indices=(3, 4)))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 64))], backbone.out_channels
        ([(1, 80, 4, 4), (1, 128, 2, 2)], [80, 128])
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool | str | os.PathLike[str] | Mapping[str, str] = False,
        out_indices: int | Sequence[int] = (0, 1, 2, 3, 4),
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_channels: int = 3,
        exact_feature_size: bool = True,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_size: int | Sequence[int] = 2,
        init_cfg: Any = None,
    ) -> None:
        if pretrained and init_cfg is not None:
            raise ValueError("pretrained and init_cfg both say where weights come from: give one of them")
        super().__init__(init_cfg)
        self.model_name, _, self._tag = model_name.partition(".")
        variant = get_variant(self.model_name)
        stages = len(variant.widths)
        if isinstance(out_indices, int):
            out_indices = (out_indices,)
        self.out_indices = sorted({index + stages if index < 0 else index for index in out_indices})
        if not self.out_indices or not 0 <= self.out_indices[0] <= self.out_indices[-1] < stages:
            raise ValueError(f"out_indices must be stages from 0 to {stages - 1}, got {tuple(out_indices)}")
        if not -1 <= frozen_stages <= stages:
            raise ValueError(f"frozen_stages must be in -1…{stages}, got {frozen_stages}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be 1 or more, got {in_channels}")
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        self.pretrained = os.fspath(pretrained) if isinstance(pretrained, os.PathLike) else pretrained
        network = timm.create_model(
            self.model_name,
            in_chans=in_channels,
            output_stride=output_stride,
            exact_feature_size=exact_feature_size,
            proj_drop_rate=proj_drop_rate,
            drop_path_rate=drop_path_rate,
            patch_size=tuple(patch_size) if isinstance(patch_size, Sequence) else patch_size,
        )
        last = self.out_indices[-1]
        self.out_channels = [network.feature_info[i]["num_chs"] for i in self.out_indices]
        self.strides = [network.feature_info[i]["reduction"] for i in self.out_indices]
        # The names of the parameters stay those of the classifier.
        self.stem = network.stem
        self.stages = network.stages[: last + 1]
        self._freeze()

    _is_init: bool  # mmengine's: whether init_weights() has run

    def init_weights(self) -> None:
        """Load the pretrained weights, or initialise as ``init_cfg`` says; weights that were loaded before stay.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a file holds other weights, or fewer stages.
        """
        if self._is_init or not self.pretrained:
            super().init_weights()
            return
        weights = self._read_pretrained()
        own = self.state_dict()
        if missing := [key for key in own if key not in weights]:
            raise ValueError(
                f"{self.pretrained} holds a backbone without {missing[0].rpartition('.')[0]}; choose out_indices that "
                "end before, or weights of a whole model"
            )
        self.load_state_dict({key: weights[key] for key in own})
        self._is_init = True
        if hasattr(self, "_params_init_info"):  # mmengine's log of where parameters come from
            update_init_info(self, init_info=f"loaded from {self.pretrained}")

    def _read_pretrained(self) -> Mapping[str, Tensor]:
        """Return the weights in our layout, with those of the other parts of the network."""
        pretrained, tag = self.pretrained, self._tag
        if isinstance(pretrained, str) and not _is_file(pretrained):
            tag, pretrained = pretrained, True
        if isinstance(pretrained, bool):
            name = f"{self.model_name}.{tag}" if tag else self.model_name
            weights: Mapping[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
        else:
            options = {"file": pretrained} if isinstance(pretrained, str) else pretrained
            weights = read_weights(arch=self.model_name, tag=tag or None, **options)
        stem = weights[_STEM]
        if stem.shape[1] == self.in_channels:
            return weights
        if stem.shape[1] != 3:
            raise ValueError(
                f"{self.pretrained} is for images of {stem.shape[1]} channels, the backbone for {self.in_channels}; "
                "only weights of three channels can be adapted"
            )
        return {**weights, _STEM: adapt_input_conv(self.in_channels, stem)}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images [B, in_channels, H, W] to the maps of the chosen stages, which lie in memory as the images do."""
        outs = []
        rows = x.is_contiguous()  # not if the user chose channels last
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = run_checkpointed([stage], x) if self.with_cp and self.training else stage(x)
            if i in self.out_indices:
                # The maps are channels-last; heads take views that need the rows of an image contiguous.
                outs.append(x.contiguous() if rows else x)
        return tuple(outs)

    def train(self, mode: bool = True) -> "TimmMobileViT":
        """Switch to training mode, except for frozen stages and norms."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".pt", ".pth", ".bin", ".tar", ".safetensors") or Path(name).exists()
