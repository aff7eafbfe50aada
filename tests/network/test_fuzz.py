"""Options, sizes and images drawn at random: either it works and the shapes are right, or the error is ours."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS

from timm_mobilevit.network.model import MobileViT
from timm_mobilevit.variants import VARIANTS

STAGES = 5
FIRST_MOBILEVIT_STAGE = 2
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
MANY = settings(FEW, max_examples=500)

sides = st.one_of(st.integers(1, 40), st.integers(33, 520))
patches = st.integers(1, 9)
images = st.fixed_dictionaries({"batch": st.integers(0, 2), "height": sides, "width": sides})
options = st.fixed_dictionaries(
    {
        "in_chans": st.integers(1, 8),
        "output_stride": st.sampled_from([8, 16, 32]),
        "patch_size": st.one_of(patches, st.tuples(patches, patches, patches)),
        "exact_feature_size": st.booleans(),
    }
)
subsets = st.sets(st.integers(-STAGES, STAGES - 1), min_size=1).map(tuple)


def expected_sides(name, side, output_stride, patch_size, exact_feature_size, **_):
    """What becomes of one side of an image, stage by stage."""
    patch_sizes = (patch_size,) * 3 if isinstance(patch_size, int) else patch_size
    side, stride = math.ceil(side / 2), 2
    sides = [side]
    for stage in range(1, STAGES):
        if stride < output_stride:
            side, stride = math.ceil(side / 2), 2 * stride
        if stage >= FIRST_MOBILEVIT_STAGE:
            patch = patch_sizes[stage - FIRST_MOBILEVIT_STAGE]
            if VARIANTS[name].separable and not exact_feature_size:
                side = math.ceil(side / patch) * patch
        sides.append(side)
    return sides


def check_classifier(name, options, image):
    model = timm.create_model(name, num_classes=3, **options).eval()
    x = torch.rand(image["batch"], options["in_chans"], image["height"], image["width"])
    rows, columns = (expected_sides(name, image[side], **options) for side in ("height", "width"))
    with torch.inference_mode():
        if not image["batch"]:
            with pytest.raises(ValueError, match=rf"expected images of shape .*, got \[0, {options['in_chans']}, "):
                model(x)
        else:
            features = model.forward_features(x)
            assert features.shape == (image["batch"], model.num_features, rows[-1], columns[-1])
            assert model.forward_head(features).shape == (image["batch"], 3)


def check_features(name, options, image, out_indices, feature_cls):
    model = timm.create_model(
        name, features_only=True, out_indices=out_indices, feature_cls=feature_cls, **options
    ).eval()
    x = torch.rand(image["batch"], options["in_chans"], image["height"], image["width"])
    rows, columns = (expected_sides(name, image[side], **options) for side in ("height", "width"))
    taken = sorted({index % STAGES for index in out_indices})
    with torch.inference_mode():
        if not image["batch"]:
            with pytest.raises(ValueError, match="expected images of shape"):
                model(x)
        else:
            maps = model(x)
            assert [tuple(feature_map.shape) for feature_map in maps] == [
                (image["batch"], VARIANTS[name].widths[stage], rows[stage], columns[stage]) for stage in taken
            ]


@pytest.mark.parametrize("name", KINDS)
@FEW
@given(options=options, image=images)
def test_classifier(name, options, image):
    check_classifier(name, options, image)


@pytest.mark.parametrize("name", KINDS)
@FEW
@given(options=options, image=images, out_indices=subsets, feature_cls=st.sampled_from(["list", "getter"]))
def test_features_only(name, options, image, out_indices, feature_cls):
    check_features(name, options, image, out_indices, feature_cls)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
@MANY
@given(options=options, image=images)
def test_classifier_at_length(name, options, image):
    check_classifier(name, options, image)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
@MANY
@given(options=options, image=images, out_indices=subsets, feature_cls=st.sampled_from(["list", "getter"]))
def test_features_only_at_length(name, options, image, out_indices, feature_cls):
    check_features(name, options, image, out_indices, feature_cls)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return timm.create_model(request.param, num_classes=3).eval()


@settings(FEW, max_examples=40)
@given(
    shape=st.one_of(
        st.lists(st.integers(0, 40), max_size=5),
        st.tuples(st.integers(0, 2), st.integers(2, 4), st.integers(30, 40), st.integers(30, 40)).map(list),
    )
)
def test_images_of_any_shape(model, shape):
    fits = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and min(shape[2:]) > 0
    with torch.inference_mode():
        if fits:
            assert model(torch.rand(shape)).shape == (shape[0], 3)
        else:
            is_batch = len(shape) == 4 and 0 not in shape  # of other channels, which the convolution refuses
            error, message = (RuntimeError, "to have 3 channels") if is_batch else (ValueError, "expected images of")
            with pytest.raises(error, match=message):
                model(torch.rand(shape))


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(-2, 2),
    st.sampled_from([math.nan, math.inf]),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-1, 9), st.booleans(), st.floats(1, 2)), max_size=4),
)


@settings(FEW, max_examples=60)
@given(patch_size=anything)
def test_any_patch_size(patch_size):
    sizes = patch_size if isinstance(patch_size, list) else [patch_size] * 3
    if len(sizes) == 3 and all(type(size) is int and size > 0 for size in sizes):
        assert MobileViT(VARIANTS[KINDS[0]], patch_size=patch_size, device="meta")
    else:
        with pytest.raises(ValueError, match="patch_size must be a positive whole number"):
            MobileViT(VARIANTS[KINDS[0]], patch_size=patch_size, device="meta")


@settings(FEW, max_examples=40)
@given(
    name=st.sampled_from(["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"]),
    rate=st.one_of(st.floats(-2, 2), st.sampled_from([0, 1, math.nan, math.inf])),
)
def test_any_rate(name, rate):
    if 0 <= rate < 1:
        assert MobileViT(VARIANTS[KINDS[0]], device="meta", **{name: rate})
    else:
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\)"):
            MobileViT(VARIANTS[KINDS[0]], device="meta", **{name: rate})


@settings(FEW, max_examples=40)
@given(output_stride=anything, in_chans=st.integers(-2, 8))
def test_any_output_stride_and_channels(output_stride, in_chans):
    if output_stride in (8, 16, 32) and in_chans > 0:
        assert MobileViT(VARIANTS[KINDS[0]], output_stride=output_stride, in_chans=in_chans, device="meta")
    else:
        with pytest.raises(ValueError, match=r"output_stride must be 8, 16 or 32|in_chans must be at least 1"):
            MobileViT(VARIANTS[KINDS[0]], output_stride=output_stride, in_chans=in_chans, device="meta")


@settings(FEW, max_examples=40)
@given(
    name=st.sampled_from(KINDS),
    out_indices=st.one_of(st.integers(-2, 8), st.lists(st.integers(-8, 8), max_size=4)),
    feature_cls=st.sampled_from(["list", "dict", "getter"]),
)
def test_any_stages(name, out_indices, feature_cls):
    def build():
        return timm.create_model(
            name, features_only=True, out_indices=out_indices, feature_cls=feature_cls, device="meta"
        )

    if isinstance(out_indices, int):
        fits, number = 0 < out_indices <= STAGES, out_indices
    else:
        fits = bool(out_indices) and all(-STAGES <= index < STAGES for index in out_indices)
        number = len({index % STAGES for index in out_indices})
    if fits:
        assert len(build()(torch.rand(1, 3, 64, 64, device="meta"))) == number
    else:
        with pytest.raises(ValueError, match=r"stages to take must be in 1…5|stage indices must be in -5…4"):
            build()
