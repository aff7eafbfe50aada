"""The network: stem, five stages, 1×1 expansion where the variant has one, and timm's classifier head.

Letters: B batch, C channels, H×W image.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import dropwhile
from typing import Any

import torch
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_act_layer, get_device_dtype, get_norm_layer
from timm.models import checkpoint
from torch import Tensor, nn

from ..variants import Variant
from .attention import SeparableTransformerLayer, TransformerLayer
from .blocks import InvertedResidual, MobileViTBlock, SeparableMobileViTBlock
from .layers import ConvNormAct, Stem
from .modes import is_unmodified

_STAGES = 5
_MOBILEVIT_STAGES = 3  # the last three


class MobileViT(nn.Module):
    """MobileViT v1 (arXiv:2110.02178), v2 (arXiv:2206.02680) and v3 (arXiv:2209.15159).

    Meets timm's model contract; usually built by ``timm.create_model("mobilevitv3_1_0")`` after ``import
    timm_mobilevit``. Images are RGB in [0, 1], without mean or standard deviation.

    Args:
        cfg: The architecture, a row of ``timm_mobilevit.variants.VARIANTS``.
        num_classes: Classes of the classifier; 0 for none.
        in_chans: Channels of the input images.
        global_pool: Pooling before the classifier, as timm names them; ``""`` for none.
        output_stride: Input pixels per pixel of the last map: 8, 16 or 32. Below 32 the last stages dilate instead of
            striding.
        drop_rate: Dropout rate before the classifier, in [0, 1).
        proj_drop_rate: Dropout rate inside the transformers, after attention and after the MLP, in [0, 1). The
            published recipe of v1 and its v3 successors has 0.1 (XXS: 0.05).
        attn_drop_rate: Dropout rate of the attention weights, in [0, 1).
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1); grows linearly from 0.
        patch_size: Patch of the transformers in pixels of their maps: one number, or one per stage 3, 4 and 5
            (arXiv:2110.02178, Table 6).
        exact_feature_size: Whether every map is ceil(size / stride) in both directions for any input. Where the patch
            does not divide a map, v2 and its v3 successors otherwise keep the enlarged map, as the reference
            does; the others return to the exact size anyway.
        img_size: Nominal size of the images, a side or height and width in pixels: what timm's data configuration says
            instead of the pretrained size. The network still takes images of any size.
        act_layer: Activation of the convolutions and MLPs, a class or a name of timm's; SiLU by default.
        norm_layer: Norm of the convolutions, a class, a function of the number of channels or a name of timm's; batch
            norm by default. The norms of the transformers do not change.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: If an option has an invalid value.

    Shape:
        Input [B, in_chans, H, W], output [B, num_classes].

    Example:
        >>> from timm_mobilevit.variants import VARIANTS
        >>> model = MobileViT(VARIANTS["mobilevitv3_xxs"], num_classes=10)
        >>> model(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 10])
        >>> [info["num_chs"] for info in model.feature_info]
        [16, 24, 64, 80, 128]
    """

    def __init__(
        self,
        cfg: Variant,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_size: int | Sequence[int] = 2,
        exact_feature_size: bool = False,
        img_size: int | Sequence[int] | None = None,
        act_layer: str | Callable[[], nn.Module] | None = None,
        norm_layer: str | Callable[..., nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}")
        rates = {
            "drop_rate": drop_rate,
            "proj_drop_rate": proj_drop_rate,
            "attn_drop_rate": attn_drop_rate,
            "drop_path_rate": drop_path_rate,
        }
        for name, rate in rates.items():
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")
        patch_sizes = _per_stage(patch_size)
        if img_size is not None:  # timm's builder stores it in the model's configuration
            _check_img_size(img_size)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        layer: dict[str, Any] = {
            "act_layer": get_act_layer(act_layer) or nn.SiLU,
            "norm_layer": get_norm_layer(norm_layer) or nn.BatchNorm2d,
            **dd,
        }
        drop = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.stem = Stem(in_chans, cfg.stem_width, 3, stride=2, **layer)

        depths = [1, cfg.stage2_depth, 2, 2, 2]
        drop_paths = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        stages = []
        feature_info: list[dict[str, Any]] = []
        in_chs, reduction, dilation = cfg.stem_width, 2, 1
        for i, out_chs in enumerate(cfg.widths):
            stride = 1 if i == 0 else 2
            previous_dilation = dilation
            if reduction * stride > output_stride:  # the stride becomes dilation
                stride, dilation = 1, 2 * dilation
            reduction *= stride

            # The first inverted residual keeps the dilation of the stage before, as in the reference.
            blocks: list[nn.Module] = [
                InvertedResidual(
                    in_chs,
                    out_chs,
                    expand_ratio=cfg.expand_ratio,
                    stride=stride,
                    dilation=previous_dilation,
                    drop_path=next(drop_paths),
                    **layer,
                )
            ]
            if i < _STAGES - _MOBILEVIT_STAGES:
                blocks += [
                    InvertedResidual(
                        out_chs, out_chs, expand_ratio=cfg.expand_ratio, drop_path=next(drop_paths), **layer
                    )
                    for _ in range(1, depths[i])
                ]
            else:
                k = i - (_STAGES - _MOBILEVIT_STAGES)
                common: dict[str, Any] = {
                    "transformer_dim": cfg.transformer_widths[k],
                    "transformer_depth": cfg.transformer_depths[k],
                    "patch_size": patch_sizes[k],
                    "v3_fusion": cfg.v3_fusion,
                    "drop_path": next(drop_paths),
                    **drop,
                    **layer,
                }
                if cfg.separable:
                    blocks.append(
                        SeparableMobileViTBlock(
                            out_chs, dilation=dilation, exact_feature_size=exact_feature_size, **common
                        )
                    )
                else:  # never dilated, as in the reference; timm's own v1 is, and differs at strides 8 and 16
                    blocks.append(MobileViTBlock(out_chs, **common))
            stages.append(nn.Sequential(*blocks))
            feature_info.append({"num_chs": out_chs, "reduction": reduction, "module": f"stages.{i}"})
            in_chs = out_chs
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_info

        self.num_features = cfg.final_width or in_chs
        self.final_conv = ConvNormAct(in_chs, cfg.final_width, 1, **layer) if cfg.final_width else nn.Identity()
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        _align_strides(self)
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images [B, in_chans, H, W] to the last map [B, num_features, H / stride, W / stride]."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = run_checkpointed(self.stages, x)
        else:
            x = self.stages(x)
        return self.final_conv(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a map and classify it; with ``pre_logits``, pool it only."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Map images to the outputs of chosen stages.

        Args:
            x: Images [B, in_chans, H, W].
            indices: Which of the five stages: a number takes the last so many, a list takes these, None takes all.
            norm: Part of timm's contract; a MobileViT has no final norm, so it changes nothing.
            stop_early: Whether to stop after the last chosen stage.
            output_fmt: ``"NCHW"``, the only format there is.
            intermediates_only: Whether to return the maps without the final features.

        Returns:
            The chosen maps in order of depth; unless ``intermediates_only``, after the final features.

        Raises:
            ValueError: If an index or the format is none of those above.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take = take_indices(len(self.stages), indices)
        stages = list(self.stages)[: max(take) + 1] if stop_early else list(self.stages)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(stages):
            x = run_checkpointed([stage], x) if self.grad_checkpointing else stage(x)
            if i in take:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if len(stages) == len(self.stages):
            x = self.final_conv(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what ``forward_intermediates`` with the same indices does not need.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Whether to remove the 1×1 expansion: it is where other networks have their final norm.
            prune_head: Whether to remove the classifier.

        Returns:
            The indices of the chosen stages.

        Raises:
            ValueError: If there is no such stage.
        """
        take = take_indices(len(self.stages), indices)
        last = max(take)
        cut = last < len(self.stages) - 1
        self.stages = nn.Sequential(*list(self.stages)[: last + 1])
        if cut or prune_norm:
            self.final_conv = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
            self.head.reset(self.num_classes, in_features=self.num_features)
            self.head_hidden_size = self.head.num_features
        if cut or prune_head:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes`` classes (0: none), and the pooling if it is named."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that number the layers for layer-wise learning rates, by stage (``coarse``) or by block."""
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None),
                (r"^final_conv", (99999,)),
            ],
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the parameters that optimizers must not decay besides one-dimensional ones: none."""
        return set()


def run_checkpointed(stages: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run stages block by block, each with a checkpoint; a stage that was replaced or has hooks as a whole."""
    for stage in stages:
        for part in stage.children() if is_unmodified(stage, nn.Sequential) else (stage,):
            x = checkpoint(part, x)
    return x


def _per_stage(patch_size: int | Sequence[int]) -> tuple[int, int, int]:
    """Return one patch size for each of stages 3, 4 and 5."""
    sizes = tuple(patch_size) if isinstance(patch_size, Sequence) else (patch_size,) * _MOBILEVIT_STAGES
    if len(sizes) != _MOBILEVIT_STAGES or any(type(size) is not int or size < 1 for size in sizes):  # True is an int
        raise ValueError(
            "patch_size must be a positive whole number, or three of them for stages 3, 4 and 5, "
            f"such as 2 or (8, 4, 2); got {patch_size!r}"
        )
    return sizes  # type: ignore[return-value]


def _check_img_size(img_size: int | Sequence[int]) -> None:
    sizes = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(
            f"img_size must be a positive number of pixels or two of them, height and width; got {img_size!r}"
        )


def take_indices(num_stages: int, indices: int | Sequence[int] | None) -> list[int]:
    """Resolve stage indices.

    Args:
        num_stages: How many there are.
        indices: A number takes the last so many, a list takes these (negative ones count from the end), None takes all.

    Returns:
        Their numbers, counted from 0.

    Raises:
        ValueError: If there is no such stage.

    Example:
        >>> take_indices(5, 2), take_indices(5, [1, -1])
        ([3, 4], [1, 4])
    """
    if indices is None:
        indices = num_stages
    if isinstance(indices, int):
        if not 0 < indices <= num_stages:
            raise ValueError(f"the number of stages to take must be in 1…{num_stages}, got {indices}")
        return list(range(num_stages - indices, num_stages))
    take = [index + num_stages if index < 0 else index for index in indices]
    if not take or any(not 0 <= index < num_stages for index in take):
        raise ValueError(f"stage indices must be in {-num_stages}…{num_stages - 1}, got {list(indices)}")
    return take


def _align_strides(model: nn.Module) -> None:
    """Give kernels behind the first transformer, where maps are channels-last, the strides of their gradients.

    A 1×1 or depthwise kernel lies in memory alike in both layouts, so this costs nothing; DistributedDataParallel warns
    of gradients with other strides than their parameter.
    """
    layers = (TransformerLayer, SeparableTransformerLayer)
    for module in dropwhile(lambda module: not isinstance(module, layers), model.modules()):
        if isinstance(module, nn.Conv2d) and (module.kernel_size == (1, 1) or module.weight.shape[1] == 1):
            module.weight.data = torch.empty_like(module.weight, memory_format=torch.channels_last)


def _init_weights(module: nn.Module) -> None:
    """Initialise as the reference's recipes: Kaiming normal for convolutions, truncated normal for linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)
