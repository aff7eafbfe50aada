"""Pretrained weights: where they come from, their preprocessing, and their published accuracy.

One row per set of weights, 33 in all. ``default_cfgs`` is the same table in timm's terms.
"""

from dataclasses import dataclass
from typing import Any, Literal

from timm.models import generate_default_cfgs

from ..convert.layouts import ChannelOrder

APPLE = "https://docs-assets.developer.apple.com/ml-research/models/"
MICRON_RELEASE = "https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0"
MICRON_ARCHIVE = "https://github.com/micronDLA/MobileViTv3/releases/download/v1.0.0/models.zip"  # see its issue 3

_APPLE_LICENSE = "cvnets-license"  # Apple's sample-code licence, by the name that timm uses for it
_MICRON_LICENSE = "micron-non-commercial"

_PAPERS = {
    "v1": ("arXiv:2110.02178", "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer"),
    "v2": ("arXiv:2206.02680", "Separable Self-attention for Mobile Vision Transformers"),
    "v3": (
        "arXiv:2209.15159",
        "MobileViTv3: Mobile-Friendly Vision Transformer with Simple and Effective Fusion of Local, Global and Input "
        "Features",
    ),
    "rangeaugment": ("arXiv:2212.10553", "RangeAugment: Efficient Online Augmentation with Range Learning"),
}


@dataclass(frozen=True)
class Weights:
    """One set of pretrained weights.

    Attributes:
        top1: Published ImageNet-1k top-1 accuracy in percent.
        channel_order: Order of the input channels in the original file. Models of this package always take RGB.
        origin: Page or file where the weights were first published.
        license: Licence of the weights (not of this package).
        paper: Key of the paper that describes the training.
        hf_hub_id: Hugging Face Hub repository that holds the weights, converted already.
        url: Original file, or the release page that holds it.
        folder: Folder of the model in the MobileViTv3 release.
        size: Side of the square input, in pixels.
        crop: Side of the centre crop over the shorter side of the resized image.
        interpolation: How the published evaluation resized images.
        mean: Subtracted from each channel, for pixels in [0, 1].
        std: Divides each channel, for pixels in [0, 1].
        num_classes: Classes of the classifier.
        reproduced: Whether this project has measured the published accuracy itself.
    """

    top1: float
    channel_order: ChannelOrder
    origin: str
    license: str
    paper: str
    hf_hub_id: str | None = None
    url: str | None = None
    folder: str | None = None
    size: int = 256
    crop: float = 0.888  # floor(256 / 0.888) = 288, the reference's shorter side; 0.889 would give 287
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    num_classes: int = 1000
    reproduced: bool = False

    def to_cfg(self) -> dict[str, Any]:
        """Return the row in timm's terms, as ``timm.models.generate_default_cfgs`` takes it."""
        paper_id, paper_name = _PAPERS[self.paper]
        return {
            "hf_hub_id": self.hf_hub_id,
            "url": self.url,
            "input_size": (3, self.size, self.size),
            "pool_size": (self.size // 32, self.size // 32),
            "crop_pct": self.crop,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "num_classes": self.num_classes,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "license": self.license,
            "origin_url": self.origin,
            "paper_ids": paper_id,
            "paper_name": paper_name,
        }


def _v1(size: str, top1: float) -> Weights:
    return Weights(
        top1,
        "bgr",
        origin=f"{APPLE}cvnets/classification/mobilevit_{size}.pt",
        license=_APPLE_LICENSE,
        paper="v1",
        hf_hub_id=f"timm/mobilevit_{size}.cvnets_in1k",
        interpolation="bilinear",
    )


def _v2(width: str, top1: float, *, source: str = "imagenet1k", size: int = 256, on_hub: bool = True) -> Weights:
    file = f"{APPLE}cvnets-v2/classification/mobilevitv2/{source}/{size}x{size}/mobilevitv2-{width}.pt"
    tag = "cvnets_in1k" if source == "imagenet1k" else "cvnets_in22k_ft_in1k"
    hub_width = f"{float(width) * 100:03.0f}"  # 0.75 is 075 in timm's names
    return Weights(
        top1,
        "rgb",
        origin=file,
        license=_APPLE_LICENSE,
        paper="v2",
        hf_hub_id=f"timm/mobilevitv2_{hub_width}.{tag}{'_384' if size == 384 else ''}" if on_hub else None,
        url=None if on_hub else file,
        size=size,
        crop=1.0 if size == 384 else 0.888,
    )


def _v3(folder: str, top1: float, channel_order: ChannelOrder) -> Weights:
    return Weights(
        top1,
        channel_order,
        origin=MICRON_RELEASE,
        license=_MICRON_LICENSE,
        paper="v3",
        url=MICRON_RELEASE,
        folder=folder,
        # The code that trained the sizes named by letters reads images with OpenCV: BGR, bilinear.
        interpolation="bilinear" if channel_order == "bgr" else "bicubic",
    )


# fmt: off
WEIGHTS: dict[str, Weights] = {
    "mobilevitv1_xxs.cvnets_in1k": _v1("xxs", 69.0),
    "mobilevitv1_xs.cvnets_in1k": _v1("xs", 74.7),
    "mobilevitv1_s.cvnets_in1k": _v1("s", 78.3),
    "mobilevitv1_s.cvnets_rangeaugment_in1k": Weights(
        78.194, "rgb", license=_APPLE_LICENSE, paper="rangeaugment",
        origin=f"{APPLE}cvnets-v2/examples/range_augment/classification/mobilevit_small.pt",
        url=f"{APPLE}cvnets-v2/examples/range_augment/classification/mobilevit_small.pt",
    ),

    "mobilevitv2_0_5.cvnets_in1k": _v2("0.5", 70.18),
    "mobilevitv2_0_75.cvnets_in1k": _v2("0.75", 75.56),
    "mobilevitv2_1_0.cvnets_in1k": _v2("1.0", 78.09),
    "mobilevitv2_1_25.cvnets_in1k": _v2("1.25", 79.65),
    "mobilevitv2_1_5.cvnets_in1k": _v2("1.5", 80.38),
    "mobilevitv2_1_75.cvnets_in1k": _v2("1.75", 80.84),
    "mobilevitv2_2_0.cvnets_in1k": _v2("2.0", 81.17),

    "mobilevitv2_0_5.cvnets_in1k_384": _v2("0.5", 72.14, size=384, on_hub=False),
    "mobilevitv2_0_75.cvnets_in1k_384": _v2("0.75", 76.98, size=384, on_hub=False),
    "mobilevitv2_1_0.cvnets_in1k_384": _v2("1.0", 79.68, size=384, on_hub=False),
    "mobilevitv2_1_25.cvnets_in1k_384": _v2("1.25", 80.94, size=384, on_hub=False),
    "mobilevitv2_1_5.cvnets_in1k_384": _v2("1.5", 81.50, size=384, on_hub=False),
    "mobilevitv2_1_75.cvnets_in1k_384": _v2("1.75", 82.04, size=384, on_hub=False),
    "mobilevitv2_2_0.cvnets_in1k_384": _v2("2.0", 82.17, size=384, on_hub=False),

    "mobilevitv2_1_5.cvnets_in22k_ft_in1k": _v2("1.5", 81.46, source="imagenet21k_to_1k"),
    "mobilevitv2_1_75.cvnets_in22k_ft_in1k": _v2("1.75", 81.94, source="imagenet21k_to_1k"),
    "mobilevitv2_2_0.cvnets_in22k_ft_in1k": _v2("2.0", 82.36, source="imagenet21k_to_1k"),

    "mobilevitv2_1_5.cvnets_in22k_ft_in1k_384": _v2("1.5", 82.60, source="imagenet21k_to_1k", size=384),
    "mobilevitv2_1_75.cvnets_in22k_ft_in1k_384": _v2("1.75", 82.93, source="imagenet21k_to_1k", size=384),
    "mobilevitv2_2_0.cvnets_in22k_ft_in1k_384": _v2("2.0", 83.41, source="imagenet21k_to_1k", size=384),

    # Open: the order of these six. BGR by lineage: they were trained with CVNets v0.1, which reads images with OpenCV.
    # But PaddleClas evaluates its conversion of all nine v3 files with RGB, and is close to the published top-1: 70.87,
    # 76.63, 79.28 for XXS, XS, S; 70.28, 76.07, 79.07 for their L2 variants; 72.00, 76.26, 78.38 for 0.5, 0.75, 1.0. It
    # evaluates v1 with BGR. So either its conversion flips the first convolution of these six, or they are RGB. Sources
    # in docs/converting.md. Not verified on images.
    "mobilevitv3_xxs.micron_in1k": _v3("mobilevitv3_XXS_e300_7098", 70.98, "bgr"),
    "mobilevitv3_xs.micron_in1k": _v3("mobilevitv3_XS_e300_7671", 76.71, "bgr"),
    "mobilevitv3_s.micron_in1k": _v3("mobilevitv3_S_e300_7930", 79.30, "bgr"),
    "mobilevitv3_xxs_l2.micron_in1k": _v3("mobilevitv3_XXS_L2_e300_7023", 70.23, "bgr"),
    "mobilevitv3_xs_l2.micron_in1k": _v3("mobilevitv3_XS_L2_e300_7610", 76.10, "bgr"),
    "mobilevitv3_s_l2.micron_in1k": _v3("mobilevitv3_S_L2_e300_7906", 79.06, "bgr"),

    "mobilevitv3_0_5.micron_in1k": _v3("mobilevitv3_0_5_0", 72.33, "rgb"),
    "mobilevitv3_0_75.micron_in1k": _v3("mobilevitv3_0_7_5", 76.55, "rgb"),
    "mobilevitv3_1_0.micron_in1k": _v3("mobilevitv3_1_0_0", 78.64, "rgb"),
}
# fmt: on

default_cfgs = generate_default_cfgs({name: row.to_cfg() for name, row in WEIGHTS.items()})
