"""Attention maps: the same attention as the network's own, in the right places, and pictures of it."""

import itertools
import json
import math

import pytest
import timm
import torch
from PIL import Image
from random_weights import randomise
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.transforms.functional import to_tensor
from typer.testing import CliRunner

from timm_mobilevit import optimize_for_inference
from timm_mobilevit.attention_maps import (
    AttentionMap,
    attention_maps,
    draw_stage,
    overlay,
)
from timm_mobilevit.cli import app
from timm_mobilevit.network.attention import MultiHeadAttention, SeparableAttention
from timm_mobilevit.variants import VARIANTS

MODELS = timm.list_models(module="mobilevit_zoo")
BY_BLOCK = {}  # the smallest model of each kind of block
for _name in sorted(MODELS, key=lambda name: VARIANTS[name].widths):
    BY_BLOCK.setdefault(VARIANTS[_name].block, _name)


def photographs(height, width):
    """Two real photographs: over noise, what the network makes of it evens out."""
    images = [Image.fromarray(load_sample_image(name)).resize((width, height)) for name in ("china.jpg", "flower.jpg")]
    return torch.stack([to_tensor(image) for image in images]).double()


def build(name, **kwargs):
    """In double precision, so that equal means equal."""
    return randomise(timm.create_model(name, **kwargs).double())


def calls(model, images):
    """Every attention module with its arguments and its output."""
    found = []
    for module in model.modules():
        if isinstance(module, (MultiHeadAttention, SeparableAttention)):
            module.register_forward_hook(lambda module, args, out: found.append((module, args, out)))
    with torch.no_grad():
        model(images)
    return found


def weights_of(module, x):
    """Attention weights [batch, heads, N, N] of multi-head attention (arXiv:1706.03762, Equation 1)."""
    query, key, _ = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in module.qkv(x).chunk(3, -1))
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)


@pytest.mark.parametrize("name", BY_BLOCK.values())
@pytest.mark.parametrize("options", [{}, {"patch_size": (8, 4, 2)}], ids=["2", "8-4-2"])
def test_maps_have_the_scores_at_their_pixels(name, options):
    model = build(name, **options)
    images = photographs(136, 200)
    maps = attention_maps(model, images)
    variant = VARIANTS[name]
    depths = variant.transformer_depths
    assert [(m.stage, m.layer) for m in maps] == [(3 + k, 1 + i) for k in range(3) for i in range(depths[k])]
    for m, (module, args, _) in zip(maps, calls(model, images), strict=True):
        patch_h, patch_w = m.patch
        size = [math.ceil(side / 2**m.stage / patch) * patch for side, patch in zip((136, 200), m.patch, strict=True)]
        assert m.scores.shape == (2, 1 if variant.separable else 4, *size)
        for i, j in itertools.product(range(patch_h), range(patch_w)):
            phase = m.scores[:, :, i::patch_h, j::patch_w]
            torch.testing.assert_close(phase.sum(dim=(2, 3)), torch.ones_like(phase[:, :, 0, 0]))
            p = i * patch_w + j
            if variant.separable:  # a row per phase
                expected = module.qkv_proj(args[0])[:, :1, p].softmax(-1).view_as(phase)
            else:  # sequences come phase by phase, in each the two images
                weights = weights_of(module, args[0][2 * p : 2 * p + 2])
                expected = weights.mean(dim=2).view_as(phase)
            torch.testing.assert_close(phase, expected)
        assert m.scores.std() > 0.01 * m.scores.mean()  # even attention would pass all of the above


def test_relative_maps_and_phases():
    scores = torch.rand(2, 4, 6, 8)
    m = AttentionMap(3, 1, (2, 4), scores)
    torch.testing.assert_close(m.relative(), scores.mean(1) * 6)  # 3 × 2 patches
    phases = m.phases()
    assert phases.shape == (2, 8, 3, 2)
    for i, j in itertools.product(range(2), range(4)):
        assert torch.equal(phases[:, 4 * i + j], m.relative()[:, i::2, j::4])


@pytest.mark.parametrize("name", BY_BLOCK.values())
@pytest.mark.parametrize("kind", ["classifier", "features", "optimized", "bfloat16"])
@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_stages_keep_their_numbers_when_one_loses_its_transformer(name, kind):
    model = build(name, features_only=kind == "features")
    (model.stages_2 if kind == "features" else model.stages[2])[1] = nn.Identity()
    if kind in ("optimized", "bfloat16"):
        model = optimize_for_inference(model, dtype=torch.bfloat16 if kind == "bfloat16" else None)
    found = [m.stage for m in attention_maps(model, torch.rand(1, 3, 64, 64).double())]
    _, fourth, fifth = VARIANTS[name].transformer_depths
    assert found == [4] * fourth + [5] * fifth


def test_model_is_left_as_it_was():
    model = timm.create_model(BY_BLOCK["v1"]).eval()
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        attention_maps(model, torch.rand(1, 4, 64, 64))
    attention_maps(model, torch.rand(1, 3, 64, 64))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(module.fused_attn for module in model.modules() if isinstance(module, MultiHeadAttention))
    backbone = timm.create_model(BY_BLOCK["v2"], features_only=True).eval()
    assert [m.stage for m in attention_maps(backbone, torch.rand(1, 3, 64, 64))] == [3, 3, 4, 4, 4, 4, 5, 5, 5]


def test_models_that_do_not_do():
    with pytest.raises(ValueError, match=r"expected a MobileViT of timm_mobilevit .* got Linear"):
        attention_maps(nn.Linear(1, 1).eval(), torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        attention_maps(timm.create_model(BY_BLOCK["v1"]), torch.rand(1, 3, 64, 64))


def test_colours_tell_more_from_less():
    relative = torch.ones(8, 8)
    relative[:, :2], relative[:, 6:] = 0.0, 9.0
    picture = overlay(Image.new("RGB", (64, 32), "grey"), relative, opacity=1.0)
    less, even, more = (picture.getpixel((x, 16)) for x in (2, 32, 61))
    assert less[2] > less[0] + 50
    assert more[0] > more[2] + 50
    assert len(set(even)) == 1
    image = Image.fromarray(load_sample_image("china.jpg")).resize((64, 32))
    assert overlay(image, relative, opacity=0.0).tobytes() == image.convert("L").convert("RGB").tobytes()


def run(*args):
    return CliRunner().invoke(app, ["attention", *(str(arg) for arg in args)])


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "china.jpg"
    Image.fromarray(load_sample_image("china.jpg")).resize((96, 64)).save(path)
    return path


@pytest.fixture(scope="module", params=["v1", "v3_separable"])
def checkpoint(request, tmp_path_factory):
    """A checkpoint with random weights, and the architecture in it."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(BY_BLOCK[request.param], num_classes=3).state_dict(), path)
    return path, BY_BLOCK[request.param]


@pytest.mark.parametrize("phases", [False, True])
def test_command_writes_a_picture_per_stage(photo, checkpoint, tmp_path, phases):
    path, arch = checkpoint
    out = tmp_path / "out"
    args = (photo, "--model", arch, "--checkpoint", path, "--img-size", 128, "--out", out)
    result = run(*args, *(["--phases"] if phases else []))
    assert result.exit_code == 0, result.output
    files = [out / f"china-stage{stage}.png" for stage in (3, 4, 5)]
    assert result.stdout.split() == [str(file) for file in files]
    assert set(out.iterdir()) == set(files)
    model = timm.create_model(arch, num_classes=3).eval()
    model.load_state_dict(torch.load(path))
    for file, depth in zip(files, VARIANTS[arch].transformer_depths, strict=True):
        picture = Image.open(file)
        assert picture.size == (132 * (1 + depth), 150 * (5 if phases else 1))
        seen = picture.crop((0, 18, 128, 146))
        # The picture shows what the model saw: from it comes the same attention.
        x = torch.tensor(list(seen.tobytes())).view(1, 128, 128, 3).permute(0, 3, 1, 2) / 255
        maps = [m for m in attention_maps(model, x) if f"stage{m.stage}" in file.name]
        assert draw_stage(seen, maps, phases=phases).tobytes() == picture.tobytes()


def test_pictures_undo_the_normalisation(photo, tmp_path):
    """They show the image, whatever mean and standard deviation the model wants."""
    torch.save(timm.create_model(BY_BLOCK["v3"], num_classes=2).state_dict(), tmp_path / "model.pth")
    convert = ("convert", tmp_path / "model.pth", "--img-size", 64, "--out", tmp_path / "model")
    assert CliRunner().invoke(app, [str(arg) for arg in convert]).exit_code == 0
    seen = []
    for mean, std in (([0, 0, 0], [1, 1, 1]), ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])):
        config = json.loads((tmp_path / "model/config.json").read_text())
        config["pretrained_cfg"] |= {"mean": mean, "std": std}
        (tmp_path / "model/config.json").write_text(json.dumps(config))
        assert run(photo, "--checkpoint", tmp_path / "model", "--out", tmp_path / "out").exit_code == 0
        picture = Image.open(tmp_path / "out" / "china-stage3.png").crop((0, 18, 64, 82))
        seen.append(torch.tensor(list(picture.tobytes())))
    assert (seen[0] - seen[1]).abs().max() <= 1


def test_command_for_grey_images(photo, tmp_path):
    torch.save(timm.create_model(BY_BLOCK["v3"], in_chans=1, num_classes=2).state_dict(), tmp_path / "grey.pth")
    args = ("--model", BY_BLOCK["v3"], "--checkpoint", tmp_path / "grey.pth", "--img-size", 64)
    assert run(photo, *args, "--out", tmp_path / "out").exit_code == 0
    seen = Image.open(tmp_path / "out" / "china-stage3.png").crop((0, 18, 64, 82))
    assert all(len(set(pixel)) == 1 for _, pixel in seen.getcolors(maxcolors=4096))


def test_images_that_cannot_be_read(photo, checkpoint, tmp_path):
    path, arch = checkpoint
    (tmp_path / "broken.png").write_text("no image")
    args = ("--model", arch, "--checkpoint", path, "--img-size", 64, "--out", tmp_path / "out")
    result = run(tmp_path / "broken.png", photo, *args)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'broken.png'}: not a readable image")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"china-stage{s}.png" for s in (3, 4, 5)]


def test_bad_calls(photo, checkpoint, tmp_path):
    path, arch = checkpoint
    model = ("--model", arch, "--checkpoint", path, "--img-size", 64, "--out", tmp_path / "out")
    for args, code, message in (
        ((photo, "--out", tmp_path / "out"), 2, "name the model with --model"),
        ((photo, "--model", arch, "--checkpoint", path), 2, "--out"),
        ((photo, photo, *model), 1, "several images are called china"),
        ((tmp_path, *model), 1, "no images in"),
    ):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_compiled_models_give_maps_too():
    model = timm.create_model(BY_BLOCK["v2"]).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = attention_maps(model, images)
    model.compile(backend="eager")
    with torch.no_grad():
        model(images)  # compiled without the hooks
    assert len(attention_maps(model, images)) == len(expected)
