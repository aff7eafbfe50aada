"""The pretrained table against what is published, written out: the code derives names and addresses by rules."""

import pytest
import timm

from timm_mobilevit.weights.pretrained import WEIGHTS

APPLE = "https://docs-assets.developer.apple.com/ml-research/models/"
MICRON = "https://github.com/micronDLA/MobileViTv3/releases/tag/v1.0.0"

# Top-1 on ImageNet-1k is from CVNets' model zoo, CoreNet's page of MobileViT with RangeAugment, MobileViTv3's README.
# CVNets v0.1 reads images with OpenCV (BGR, bilinear), v0.2 with PIL (RGB, bicubic); 288 to 256 pixels, or 384.
# Each row: name, top-1, repository on the Hub or folder of the release, file below where the group was first published.
# fmt: off
GROUPS = [
    ("bgr", 256, 0.888, "bilinear", APPLE + "cvnets/classification/", """
    mobilevitv1_xxs.cvnets_in1k  69.00  timm/mobilevit_xxs.cvnets_in1k  mobilevit_xxs.pt
    mobilevitv1_xs.cvnets_in1k   74.70  timm/mobilevit_xs.cvnets_in1k   mobilevit_xs.pt
    mobilevitv1_s.cvnets_in1k    78.30  timm/mobilevit_s.cvnets_in1k    mobilevit_s.pt
    """),
    ("rgb", 256, 0.888, "bicubic", APPLE + "cvnets-v2/examples/range_augment/", """
    mobilevitv1_s.cvnets_rangeaugment_in1k  78.194  -  classification/mobilevit_small.pt
    """),
    ("rgb", 256, 0.888, "bicubic", APPLE + "cvnets-v2/classification/mobilevitv2/", """
    mobilevitv2_0_5.cvnets_in1k   70.18  timm/mobilevitv2_050.cvnets_in1k  imagenet1k/256x256/mobilevitv2-0.5.pt
    mobilevitv2_0_75.cvnets_in1k  75.56  timm/mobilevitv2_075.cvnets_in1k  imagenet1k/256x256/mobilevitv2-0.75.pt
    mobilevitv2_1_0.cvnets_in1k   78.09  timm/mobilevitv2_100.cvnets_in1k  imagenet1k/256x256/mobilevitv2-1.0.pt
    mobilevitv2_1_25.cvnets_in1k  79.65  timm/mobilevitv2_125.cvnets_in1k  imagenet1k/256x256/mobilevitv2-1.25.pt
    mobilevitv2_1_5.cvnets_in1k   80.38  timm/mobilevitv2_150.cvnets_in1k  imagenet1k/256x256/mobilevitv2-1.5.pt
    mobilevitv2_1_75.cvnets_in1k  80.84  timm/mobilevitv2_175.cvnets_in1k  imagenet1k/256x256/mobilevitv2-1.75.pt
    mobilevitv2_2_0.cvnets_in1k   81.17  timm/mobilevitv2_200.cvnets_in1k  imagenet1k/256x256/mobilevitv2-2.0.pt
    """),
    ("rgb", 384, 1.0, "bicubic", APPLE + "cvnets-v2/classification/mobilevitv2/", """
    mobilevitv2_0_5.cvnets_in1k_384   72.14  -  imagenet1k/384x384/mobilevitv2-0.5.pt
    mobilevitv2_0_75.cvnets_in1k_384  76.98  -  imagenet1k/384x384/mobilevitv2-0.75.pt
    mobilevitv2_1_0.cvnets_in1k_384   79.68  -  imagenet1k/384x384/mobilevitv2-1.0.pt
    mobilevitv2_1_25.cvnets_in1k_384  80.94  -  imagenet1k/384x384/mobilevitv2-1.25.pt
    mobilevitv2_1_5.cvnets_in1k_384   81.50  -  imagenet1k/384x384/mobilevitv2-1.5.pt
    mobilevitv2_1_75.cvnets_in1k_384  82.04  -  imagenet1k/384x384/mobilevitv2-1.75.pt
    mobilevitv2_2_0.cvnets_in1k_384   82.17  -  imagenet1k/384x384/mobilevitv2-2.0.pt
    """),
    ("rgb", 256, 0.888, "bicubic", APPLE + "cvnets-v2/classification/mobilevitv2/imagenet21k_to_1k/", """
    mobilevitv2_1_5.cvnets_in22k_ft_in1k   81.46  timm/mobilevitv2_150.cvnets_in22k_ft_in1k  256x256/mobilevitv2-1.5.pt
    mobilevitv2_1_75.cvnets_in22k_ft_in1k  81.94  timm/mobilevitv2_175.cvnets_in22k_ft_in1k  256x256/mobilevitv2-1.75.pt
    mobilevitv2_2_0.cvnets_in22k_ft_in1k   82.36  timm/mobilevitv2_200.cvnets_in22k_ft_in1k  256x256/mobilevitv2-2.0.pt
    """),
    ("rgb", 384, 1.0, "bicubic", APPLE + "cvnets-v2/classification/mobilevitv2/imagenet21k_to_1k/384x384/", """
    mobilevitv2_1_5.cvnets_in22k_ft_in1k_384   82.60  timm/mobilevitv2_150.cvnets_in22k_ft_in1k_384  mobilevitv2-1.5.pt
    mobilevitv2_1_75.cvnets_in22k_ft_in1k_384  82.93  timm/mobilevitv2_175.cvnets_in22k_ft_in1k_384  mobilevitv2-1.75.pt
    mobilevitv2_2_0.cvnets_in22k_ft_in1k_384   83.41  timm/mobilevitv2_200.cvnets_in22k_ft_in1k_384  mobilevitv2-2.0.pt
    """),
    ("bgr", 256, 0.888, "bilinear", MICRON, """
    mobilevitv3_xxs.micron_in1k     70.98  mobilevitv3_XXS_e300_7098     -
    mobilevitv3_xs.micron_in1k      76.71  mobilevitv3_XS_e300_7671      -
    mobilevitv3_s.micron_in1k       79.30  mobilevitv3_S_e300_7930       -
    mobilevitv3_xxs_l2.micron_in1k  70.23  mobilevitv3_XXS_L2_e300_7023  -
    mobilevitv3_xs_l2.micron_in1k   76.10  mobilevitv3_XS_L2_e300_7610   -
    mobilevitv3_s_l2.micron_in1k    79.06  mobilevitv3_S_L2_e300_7906    -
    """),
    ("rgb", 256, 0.888, "bicubic", MICRON, """
    mobilevitv3_0_5.micron_in1k   72.33  mobilevitv3_0_5_0  -
    mobilevitv3_0_75.micron_in1k  76.55  mobilevitv3_0_7_5  -
    mobilevitv3_1_0.micron_in1k   78.64  mobilevitv3_1_0_0  -
    """),
]
# fmt: on
FACTS = {
    name: (float(top1), *seen, None if place == "-" else place, base + file.strip("-"))
    for *seen, base, rows in GROUPS
    for name, top1, place, file in (row.split() for row in rows.strip().splitlines())
}
# Licence by timm's name, paper and the beginning of its title, by generation; RangeAugment has a paper of its own.
PUBLISHED = {
    "mobilevitv1": ("cvnets-license", "arXiv:2110.02178", "MobileViT: Light-weight, General-purpose"),
    "mobilevitv2": ("cvnets-license", "arXiv:2206.02680", "Separable Self-attention for Mobile Vision"),
    "mobilevitv3": ("micron-non-commercial", "arXiv:2209.15159", "MobileViTv3: Mobile-Friendly Vision Transformer"),
    "rangeaugment": ("cvnets-license", "arXiv:2212.10553", "RangeAugment: Efficient Online Augmentation"),
}


def test_every_row_is_written_out_in_the_same_order():
    """Without a tag, a name takes its first row."""
    assert list(WEIGHTS) == list(FACTS)
    assert len(FACTS) == 33
    assert sorted(timm.list_models(module="mobilevit_zoo", include_tags=True)) == sorted(FACTS)
    for name in timm.list_models(module="mobilevit_zoo"):
        first = next(full for full in FACTS if full.startswith(f"{name}."))
        assert timm.get_pretrained_cfg(name).tag == first.partition(".")[2]


@pytest.mark.parametrize("name", FACTS)
def test_row_is_what_is_published(name):
    top1, order, size, crop, interpolation, place, origin = FACTS[name]
    row, cfg = WEIGHTS[name], timm.get_pretrained_cfg(name)
    assert (row.top1, row.channel_order, row.reproduced) == (top1, order, False)
    assert row.folder == (place if origin == MICRON else None)
    hub = place if origin != MICRON else None
    assert (cfg.hf_hub_id, cfg.url) == (hub, None if hub else origin)
    assert (cfg.origin_url, cfg.num_classes) == (origin, 1000)
    assert (cfg.input_size, cfg.pool_size) == ((3, size, size), (size // 32, size // 32))
    assert (cfg.crop_pct, cfg.crop_mode, cfg.interpolation) == (crop, "center", interpolation)
    assert (cfg.mean, cfg.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (cfg.first_conv, cfg.classifier) == ("stem.conv", "head.fc")
    assert int(size / cfg.crop_pct) == (288 if size == 256 else 384)  # the references' shorter side
    assert cfg.architecture == name.partition(".")[0]
    assert timm.is_model_pretrained(name)
    licence, paper, title = PUBLISHED["rangeaugment" if "rangeaugment" in name else name.partition("_")[0]]
    assert (cfg.license, cfg.paper_ids) == (licence, paper)
    assert cfg.paper_name.startswith(title)
