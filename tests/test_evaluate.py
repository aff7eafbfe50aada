"""`timm-mobilevit evaluate` and what it stands on."""

import csv
import json
import multiprocessing

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_data_config
from typer.testing import CliRunner

from benchmarks.digits_data import write_digits
from timm_mobilevit import evaluate as evaluation
from timm_mobilevit.cli import app
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.evaluate import Accuracy, UnreadableImageError, better_order, evaluate

ARCH = "mobilevitv3_xxs"
SIZE = 64


def run(*args, **kwargs):
    return CliRunner().invoke(app, ["evaluate", *(str(arg) for arg in args)], **kwargs)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Real digit scans: ten classes, split in train and val."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model directory with random weights, whose predictions depend on the image."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = timm.create_model(ARCH, num_classes=10)
    torch.nn.init.normal_(model.head.fc.weight, std=0.5)
    torch.save(model.state_dict(), folder / "model.pth")
    args = ["convert", folder / "model.pth", "--arch", ARCH, "--img-size", SIZE, "--out", folder / "converted"]
    assert CliRunner().invoke(app, [str(arg) for arg in args]).exit_code == 0
    return folder / "converted"


class Constant(torch.nn.Module):
    """A classifier that always finds one class the most likely."""

    def __init__(self, num_classes, answer=0, channels=3):
        super().__init__()
        self.num_classes = num_classes
        self.answer = answer
        self.pretrained_cfg = {"input_size": (channels, 32, 32), "num_classes": num_classes}

    def forward(self, x):
        return F.one_hot(torch.full((len(x),), self.answer), self.num_classes).float()


def save_classes(folder, counts, size=32):
    """A folder of images per class, with so many images each."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (size, size), (i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


def test_equals_a_plain_loop(digits, directory):
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model))
    files = sorted((digits / "val").glob("*/*.png"))
    batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    targets = torch.tensor([int(file.parent.name) for file in files])
    with torch.inference_mode():
        logits = torch.cat([model(x) for x in batch.split(64)])
    ranks = logits.argsort(dim=-1, descending=True)
    top1 = (ranks[:, 0] == targets).float().mean().item()
    top5 = (ranks[:, :5] == targets[:, None]).any(-1).float().mean().item()
    (accuracy,) = evaluate(model, digits, batch_size=50, workers=1)
    assert 0 < top1 < top5 < 1
    assert accuracy.images == len(files) == 360
    assert accuracy.top1 == pytest.approx(100 * top1)
    assert accuracy.top5 == pytest.approx(100 * top5)
    assert accuracy.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-4)


class Witness(Constant):
    """A classifier of two classes that keeps what it sees."""

    def __init__(self, **config):
        super().__init__(2)
        self.pretrained_cfg |= config
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("interpolation", "crop", "options"),
    [
        ("bilinear", 0.5, {}),
        ("bicubic", 0.5, {}),
        ("bicubic", 1.0, {}),
        ("bicubic", 0.8, {"img_size": 24}),
        ("bicubic", 0.8, {"crop_pct": 0.5}),
        ("bilinear", 0.8, {"channel_orders": ("bgr",)}),
    ],
)
def test_models_see_images_as_their_configuration_says(tmp_path, interpolation, crop, options):
    """The shorter side to that of the input over the crop, the centre, in [0, 1], mean and standard deviation."""
    folder = save_classes(tmp_path, {"cat": 0, "dog": 1})
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "cat" / "0.png")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = Witness(interpolation=interpolation, crop_pct=crop, mean=mean, std=std)
    evaluate(model, folder, workers=0, **options)
    side = options.get("img_size", 32)
    shorter = int(side / options.get("crop_pct", crop))
    width = int(shorter * 80 / 50)
    image = Image.fromarray(pixels).resize((width, shorter), Image.Resampling[interpolation.upper()])
    left, upper = round((width - side) / 2), round((shorter - side) / 2)
    image = np.asarray(image.crop((left, upper, left + side, upper + side)), dtype=np.float32) / 255
    expected = torch.from_numpy((image - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)
    if options.get("channel_orders") == ("bgr",):
        expected = expected.flip(0)
    torch.testing.assert_close(model.seen[0][0], expected)


def test_results_are_printed_and_stored(digits, directory, tmp_path):
    args = (digits, "--checkpoint", directory, "--limit", 40, "--workers", 0)
    result = run(*args, "--out", tmp_path / "results", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (row,) = document["results"]
    assert document["preprocessing"]["input_size"] == [3, SIZE, SIZE]
    assert (row["channel_order"], row["images"]) == ("rgb", 40)
    assert json.loads((tmp_path / "results/evaluate.json").read_text()) == document
    with (tmp_path / "results/evaluate.csv").open() as file:
        (stored,) = csv.DictReader(file)
    assert {key: float(stored[key]) for key in ("top1", "top5", "loss")} == {
        key: row[key] for key in ("top1", "top5", "loss")
    }
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"evaluate.json", "evaluate.csv"}
    text = run(*args).stdout
    assert text.startswith(f"rgb: top-1 {row['top1']:.2f} % (± {row['top1_standard_error']:.2f}), top-5")
    # The size counts: at another one the result is another.
    other = json.loads(run(*args, "--img-size", 96, "--json").stdout)
    assert other["results"][0]["loss"] != row["loss"]
    assert other["preprocessing"]["input_size"] == [3, 96, 96]


def test_limit_takes_images_of_all_classes(tmp_path):
    folder = save_classes(tmp_path / "data", {"cat": 10, "dog": 10})
    seen = []
    (accuracy,) = evaluate(
        Constant(2), folder, limit=4, batch_size=3, workers=0, on_batch=lambda *args: seen.append(args)
    )
    assert (accuracy.images, accuracy.top1) == (4, 50.0)
    assert seen == [(3, 4), (4, 4)]
    assert evaluate(Constant(2), folder, limit=50, workers=0)[0].images == 20
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(Constant(2), folder, limit=0, workers=0)


def test_classes_are_in_natural_order(tmp_path):
    folder = save_classes(tmp_path / "data", {str(i): 3 if i == 10 else 1 for i in range(11)})
    assert evaluate(Constant(11, answer=10), folder, workers=0)[0].top1 == pytest.approx(100 * 3 / 13)


def test_a_split_is_found_by_its_other_names(tmp_path):
    save_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    save_classes(tmp_path / "train", {"cat": 2, "dog": 3})
    assert evaluate(Constant(2), tmp_path, workers=0)[0].images == 2
    assert evaluate(Constant(2), tmp_path, split="train", workers=0)[0].images == 5
    assert evaluate(Constant(2), tmp_path / "train", workers=0)[0].images == 5


def test_splits_are_not_measured_together(tmp_path):
    """timm would, where the one that is asked for is missing: both are one class for each name then."""
    save_classes(tmp_path / "train", {"cat": 2, "dog": 3})
    save_classes(tmp_path / "test", {"cat": 1, "dog": 1})
    for split in ("validation", "tset"):
        with pytest.raises(ValueError, match=f"not in the folder of a class.* got '{split}'"):
            evaluate(Constant(2), tmp_path, split=split, workers=0)
    assert evaluate(Constant(2), tmp_path, split="test", workers=0)[0].images == 2


@pytest.mark.parametrize("place", ["train", ".", "cat/indoor", "cat/.ipynb_checkpoints"])
def test_each_image_is_in_the_folder_of_a_class(tmp_path, place):
    """timm takes the innermost folder as the class: of another split, where it is the only one, or below a class."""
    if place == "train":
        save_classes(tmp_path / place, {"cat": 1, "dog": 1})
    else:
        save_classes(tmp_path, {"dog": 1})
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / place / "0.png")
    with pytest.raises(
        ValueError, match=r"is not in the folder of a class: expected .*/CLASS/IMAGE.* got 'validation'"
    ):
        evaluate(Constant(2), tmp_path, workers=0)


def test_class_names_may_be_keyed_by_number(tmp_path):
    """As timm allows in config.json, where JSON makes texts of the numbers."""
    save_classes(tmp_path, {"blue": 1, "green": 2, "red": 5})
    model = Constant(3, answer=0)
    for names in ({"0": "red", "1": "green", "2": "blue"}, {2: "blue", 1: "green", 0: "red"}):
        model.pretrained_cfg["label_names"] = names
        assert evaluate(model, tmp_path, workers=0)[0].top1 == pytest.approx(100 * 5 / 8)


def test_a_renamed_class_leaves_the_order_unknown(tmp_path):
    save_classes(tmp_path, {"blue": 1, "Green": 1, "red": 1})
    model = Constant(3)
    for names in (["red", "green", "blue"], {"0": "red", "1": "green", "2": "blue"}):
        model.pretrained_cfg["label_names"] = names
        with pytest.raises(ValueError, match=r"no classes Green, which are folders in .*, but green: rename"):
            evaluate(model, tmp_path, workers=0)
    model.pretrained_cfg["label_names"] = ["Red", "GREEN", "Blue"]
    with pytest.raises(ValueError, match="no classes Green, blue, red, which"):
        evaluate(model, tmp_path, workers=0)
    model.pretrained_cfg["label_names"] = ["n01", "n02", "n03"]  # another kind of names, such as ImageNet's synsets
    assert evaluate(model, tmp_path, workers=0)[0].images == 3


def test_the_order_of_the_models_own_class_names_counts(tmp_path):
    """torchvision's, for example, in which 10 comes before 2."""
    folder = save_classes(tmp_path, {str(i): 1 + i for i in range(11)})
    model = Constant(11, answer=2)
    for names, images in ((["0", "1", "10", *"23456789"], 11), ([*"abcdefghij", "k"], 3), (None, 3)):
        model.pretrained_cfg["label_names"] = names
        assert evaluate(model, folder, workers=0)[0].top1 == pytest.approx(100 * images / 66)


def test_grey_model(tmp_path):
    folder = save_classes(tmp_path, {"cat": 1, "dog": 1})
    assert evaluate(Constant(2, channels=1), folder, workers=0)[0].images == 2


class Brightest(torch.nn.Module):
    """A classifier of the half that is brighter: the upper one, the lower one."""

    num_classes = 2
    pretrained_cfg = {"input_size": (3, 32, 32), "num_classes": 2}  # noqa: RUF012

    def forward(self, x):
        return torch.stack([x[:, :, :16].mean((1, 2, 3)), x[:, :, 16:].mean((1, 2, 3))], dim=1)


def test_images_are_read_as_by_all_commands(tmp_path):
    """Turned as EXIF says, and 16 bits of grey scaled: PIL's own conversion makes both halves white."""
    levels = np.repeat(np.array([[40000], [20000]], dtype=np.uint16), 16, axis=0).repeat(32, axis=1)
    for orientation, name in ((1, "a_upper"), (3, "b_lower")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / name).mkdir()
        Image.fromarray(levels).save(tmp_path / name / "wide.png", exif=exif)
        Image.fromarray((levels // 257).astype(np.uint8)).save(tmp_path / name / "photo.jpg", exif=exif)
    (accuracy,) = evaluate(Brightest(), tmp_path, channel_orders=["rgb"], crop_pct=1.0, workers=0)
    assert (accuracy.images, accuracy.top1) == (4, 100.0)


def test_runs_in_bfloat16(tmp_path):
    folder = save_classes(tmp_path, {"cat": 1, "dog": 1}, size=64)
    model = timm.create_model(ARCH, num_classes=2)
    dtypes = []
    model.stem.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    for dtype in (None, torch.bfloat16):
        evaluate(model, folder, img_size=64, workers=0, batch_size=1, limit=1, dtype=dtype)
    assert dtypes == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", ["cut", "text"])
def test_a_broken_image_is_an_error_that_names_it(digits, directory, tmp_path, workers, content):
    folder = save_classes(tmp_path / "data", {str(i): 2 for i in range(10)}, size=64)
    broken = folder / "7" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2] if content == "cut" else b"no image")
    result = run(folder, "--checkpoint", directory, "--workers", workers, "--batch-size", 4, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {broken}: not a readable image: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnreadableImageError, match=r"7/1\.png"):
        evaluate(Constant(10), folder, workers=workers)
    assert not multiprocessing.active_children()


def test_no_accuracy_where_an_image_could_not_be_read_at_first(tmp_path, monkeypatch):
    folder = save_classes(tmp_path, {"cat": 2, "dog": 2})
    read, failures = evaluation._WholeFolder.read, [UnreadableImageError("the disk hiccups")]

    def fail_once(dataset, index):
        if index == 2 and failures:
            raise failures.pop()
        return read(dataset, index)

    monkeypatch.setattr(evaluation._WholeFolder, "read", fail_once)
    with pytest.raises(UnreadableImageError, match="but can be now; try again"):
        evaluate(Constant(2), folder, batch_size=1, workers=0)
    assert not failures


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Constant(3), {}, "has 2 classes with images, but the model has 3"),
        (Constant(0), {}, "no classifier"),
        (Constant(2, channels=4), {}, "RGB images do not fit a model of 4 input channels"),
        (Constant(2, channels=1), {"channel_orders": ("rgb", "bgr")}, "RGB, BGR images do not fit a model of 1"),
    ],
)
def test_models_that_do_not_fit(tmp_path, model, options, message):
    folder = save_classes(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match=message):
        evaluate(model, folder, workers=0, **options)


def test_bad_calls(digits, directory, tmp_path):
    (tmp_path / "empty").mkdir()
    for args, code, message in (
        ((digits,), 2, "name the model with --model"),
        ((digits, "--checkpoint", directory, "--limit", 0), 2, "--limit"),
        ((tmp_path / "missing", "--checkpoint", directory), 1, "no folder"),
        ((tmp_path / "empty", "--checkpoint", directory), 1, "Found 0 images"),
        ((digits, "--checkpoint", directory, "--device", "abacus"), 1, "'abacus' cannot be used"),
        ((digits, "--checkpoint", tmp_path / "missing.pth", "--model", ARCH), 1, "no checkpoint file"),
    ):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert message in result.stderr


def test_progress_bar_is_on_a_terminal_only_and_never_on_stdout(digits, directory):
    args = (digits, "--checkpoint", directory, "--limit", 4, "--workers", 0, "--json")
    terminal, pipe = run(*args, env={"FORCE_COLOR": "1"}), run(*args)
    assert "Evaluating" in terminal.stderr
    assert pipe.stderr == ""
    assert json.loads(terminal.stdout) == json.loads(pipe.stdout)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Red and blue patches, and a model that was trained to tell them apart."""
    folder = tmp_path_factory.mktemp("colours") / "data"
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(80, 3, SIZE, SIZE, generator=generator) * 0.5
    classes = torch.arange(80) % 2
    noise[torch.arange(80), 2 * classes] += 0.5  # class 0 is red, 1 is blue
    for i, (image, name) in enumerate(zip(noise, classes.tolist(), strict=True)):
        (folder / str(name)).mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / str(name) / f"{i}.png")
    torch.manual_seed(0)
    model = timm.create_model(ARCH, num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(4):
        for x, y in zip(noise.split(20), classes.split(20), strict=True):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():  # the few steps leave the running statistics behind
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        for x in noise.split(20):
            model(x)
    return folder, model.eval()


def test_both_orders_settle_that_of_an_unknown_checkpoint(colours, tmp_path):
    folder, model = colours
    ours = {**model.state_dict(), "stem.conv.weight": model.stem.conv.weight.detach().flip(1)}
    file = tmp_path / "unknown.pt"
    torch.save(export_state_dict(ours, ARCH, "cvnets", channel_order="rgb"), file)
    # The patches are taken as they were trained on: a crop would resize them, which smooths the noise away.
    as_trained = ("--img-size", SIZE, "--crop-pct", 1)
    args = (folder, "--model", ARCH, "--checkpoint", file, *as_trained, "--workers", 0)

    result = run(*args, "--channel-order", "both", "--json")
    assert result.exit_code == 0, result.output
    both = json.loads(result.stdout)
    rgb, bgr = both["results"]
    assert (rgb["channel_order"], bgr["channel_order"], both["better"]) == ("rgb", "bgr", "bgr")
    assert bgr["top1"] > 90
    assert rgb["top1"] < 10
    assert run(*args, "--channel-order", "both").stdout.splitlines()[-1] == (
        f"better: bgr; convert {file} with --channel-order bgr"
    )
    for order, expected in (("rgb", rgb), ("bgr", bgr)):
        (alone,) = json.loads(run(*args, "--channel-order", order, "--json").stdout)["results"]
        assert alone == expected
    # Without the option it is read as its format is known to be: BGR.
    (known,) = json.loads(run(*args, "--json").stdout)["results"]
    assert known["top1"] == bgr["top1"]

    # What the advice leads to takes RGB.
    out = tmp_path / "converted"
    convert = ["convert", file, "--arch", ARCH, "--channel-order", "bgr", *as_trained, "--out", out]
    assert CliRunner().invoke(app, [str(arg) for arg in convert]).exit_code == 0
    result = run(folder, "--checkpoint", out, "--channel-order", "both", "--workers", 0)
    assert result.stdout.splitlines()[-1] == "better: rgb"


def test_too_few_images_settle_nothing():
    accuracies = [Accuracy("rgb", 100, 60.0, 80.0, 1.0), Accuracy("bgr", 100, 50.0, 80.0, 1.0)]
    assert better_order(accuracies) is None
    assert better_order([Accuracy(a.channel_order, 1000, a.top1, a.top5, a.loss) for a in accuracies]) == "rgb"
    grey = [Accuracy(order, 10, 50.0, 100.0, 0.7) for order in ("rgb", "bgr")]
    assert better_order(grey) is None


def test_the_same_accuracy_is_said_to_settle_nothing(digits, directory):
    result = run(digits, "--checkpoint", directory, "--channel-order", "both", "--limit", 20, "--workers", 0)
    assert "better: undecided" in result.stdout  # a grey image is the same in both orders
    lines = [line.partition(": ")[2] for line in result.stdout.splitlines()[:2]]
    assert lines[0] == lines[1]
