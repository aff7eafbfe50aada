"""`timm-mobilevit predict`."""

import json

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from typer.testing import CliRunner

from timm_mobilevit._images import find_images
from timm_mobilevit.cli import app
from timm_mobilevit.cli._labels import read_labels

ARCH = "mobilevitv3_xxs"
LABELS = ["cat", "dog", "eel"]


def run(*args, **kwargs):
    return CliRunner().invoke(app, ["predict", *(str(arg) for arg in args)], **kwargs)


def run_json(*args, exit_code=0):
    result = run(*args, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)["predictions"]


def save_photos(folder):
    folder.mkdir(parents=True)
    photos = [Image.fromarray(array).resize((96, 64)) for array in load_sample_images().images]
    paths = [folder / "photo2.png", folder / "photo10.png"]
    for photo, path in zip(photos, paths, strict=True):
        photo.save(path)
    return paths


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two real photographs."""
    return save_photos(tmp_path_factory.mktemp("photos") / "animals")


def save_checkpoint(path, **kwargs):
    """A random model whose images are 64 pixels wide, to be fast, and whose predictions depend on the image."""
    torch.manual_seed(0)
    model = timm.create_model(ARCH, **kwargs)
    torch.nn.init.normal_(model.head.fc.weight, std=0.5)
    torch.save({"state_dict": model.state_dict()}, path)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model_best.pth.tar"
    save_checkpoint(path, num_classes=3)
    return path


@pytest.fixture(scope="module")
def directory(checkpoint):
    out, labels = checkpoint.with_name("converted"), checkpoint.with_name("labels.txt")
    labels.write_text("\n".join(LABELS))
    args = ["convert", checkpoint, "--arch", ARCH, "--out", out, "--labels", labels, "--img-size", 64]
    assert CliRunner().invoke(app, [str(arg) for arg in args]).exit_code == 0
    return out


def test_directory_predicts_what_timm_predicts(photos, directory):
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    assert resolve_model_data_config(model)["input_size"] == (3, 64, 64)
    predictions = run_json(*photos, "--checkpoint", directory)
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in photos]
    for path, prediction in zip(photos, predictions, strict=True):
        with torch.inference_mode():
            expected = model(transform(Image.open(path).convert("RGB"))[None]).softmax(-1)[0]
        assert [guess["index"] for guess in prediction["top"]] == expected.argsort(descending=True).tolist()
        for guess in prediction["top"]:
            assert guess["probability"] == pytest.approx(expected[guess["index"]].item(), abs=1e-6)
            assert guess["label"] == LABELS[guess["index"]]


def test_file_and_directory_predict_the_same(photos, checkpoint, directory):
    from_file = run_json(*photos, "--model", ARCH, "--checkpoint", checkpoint, "--img-size", 64)
    from_directory = run_json(*photos, "--checkpoint", directory, "--model", ARCH)
    for mine, other in zip(from_file, from_directory, strict=True):
        # Nothing names the classes of the file.
        assert [guess["label"] for guess in mine["top"]] == [str(guess["index"]) for guess in other["top"]]
        assert [g["probability"] for g in mine["top"]] == [g["probability"] for g in other["top"]]
    # The size counts: at the architecture's 256 pixels the result is another.
    assert run_json(*photos, "--model", ARCH, "--checkpoint", checkpoint)[0]["top"] != from_file[0]["top"]


def test_text_output(photos, directory):
    result = run(photos[0], "--checkpoint", directory, "--topk", 2)
    (prediction,) = run_json(photos[0], "--checkpoint", directory)
    lines = [f"  {100 * guess['probability']:6.2f} %  {guess['label']}" for guess in prediction["top"][:2]]
    assert result.stdout.splitlines() == [str(photos[0]), *lines]
    assert result.stderr == ""


def test_folder_with_images_that_cannot_be_read(directory, tmp_path):
    good = save_photos(tmp_path / "folder" / "deep")
    photo = good[0].read_bytes()
    (tmp_path / "folder" / "cut.png").write_bytes(photo[: len(photo) // 2])
    (tmp_path / "folder" / "text.jpg").write_text("no image")
    (tmp_path / "folder" / "notes.txt").write_text("not even by its name")
    (tmp_path / "folder" / ".hidden.png").write_text("the system's own")
    args = (tmp_path / "folder", tmp_path / "missing.png", "--checkpoint", directory, "--batch-size", 2)
    predictions = run_json(*args, exit_code=1)
    assert [p["image"].removeprefix(f"{tmp_path}/") for p in predictions] == [
        "folder/cut.png",
        "folder/deep/photo2.png",
        "folder/deep/photo10.png",
        "folder/text.jpg",
        "missing.png",
    ]
    assert ["top" in p for p in predictions] == [False, True, True, False, False]
    for prediction, alone in zip(predictions[1:3], run_json(*good, "--checkpoint", directory), strict=True):
        probabilities = [guess.pop("probability") for guess in alone["top"]]
        assert [guess.pop("probability") for guess in prediction["top"]] == pytest.approx(probabilities, rel=1e-4)
        assert prediction == alone
    assert predictions[-1]["error"] == "no such file"

    result = run(*args)
    assert result.exit_code == 1
    errors = result.stderr.splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in errors] == ["cut.png", "text.jpg", "missing.png"]
    assert str(good[0]) in result.stdout


def test_folder_without_images(directory, tmp_path):
    result = run(tmp_path, "--checkpoint", directory)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no images in" in result.stderr
    assert ".png" in result.stderr


def test_images_come_in_natural_order(tmp_path):
    first, second = save_photos(tmp_path / "folder")
    assert find_images([second, tmp_path / "folder"]) == [second, first, second]


def test_rotated_photograph_is_turned_upright(photos, directory, tmp_path):
    upright = Image.open(photos[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: shown after a quarter turn clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned, expected = run_json(tmp_path / "turned.png", photos[0], "--checkpoint", directory)
    assert turned["top"] == expected["top"]


def test_model_for_grey_images(photos, tmp_path):
    save_checkpoint(tmp_path / "grey.pth", num_classes=3, in_chans=1)
    args = ("--model", ARCH, "--checkpoint", tmp_path / "grey.pth", "--img-size", 64)
    Image.open(photos[0]).convert("L").save(tmp_path / "grey.png")
    colour, grey = run_json(photos[0], tmp_path / "grey.png", *args)
    assert colour["top"] == grey["top"]
    save_checkpoint(tmp_path / "grey.pth", num_classes=3, in_chans=4)
    result = run(photos[0], *args)
    assert result.exit_code == 1
    assert "takes 4" in result.stderr


def test_classes_of_imagenet_have_names(photos):
    (prediction,) = run_json(photos[0], "--model", ARCH, "--no-pretrained", "--img-size", 64)
    names = ImageNetInfo().label_descriptions()
    assert len(prediction["top"]) == 5
    assert all(guess["label"] == names[guess["index"]] for guess in prediction["top"])


def test_names_and_descriptions_of_a_directory(photos, directory, tmp_path):
    config = json.loads((directory / "config.json").read_text())
    config["label_names"] = {"0": "n01", "2": "n03"}
    config["label_descriptions"] = {"n03": "eel, a long fish"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    (prediction,) = run_json(photos[0], "--checkpoint", tmp_path)
    assert {g["index"]: g["label"] for g in prediction["top"]} == {0: "n01", 1: "1", 2: "eel, a long fish"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\n eel \n\n"),
        ("labels.txt", "\ufeffcat\r\ndog\r\neel"),
        ("labels.json", '["cat", "dog", "eel"]'),
        ("labels.json", '{"2": "eel", "0": "cat", "1": "dog"}'),
        ("labels.json", '{"eel": 2, "cat": 0, "dog": 1}'),
    ],
)
def test_label_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / name) == LABELS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("two.txt", b"cat\ndog", "names 2 classes, but the model has 3"),
        ("latin.txt", "chat\ncochon\nhérisson".encode("latin-1"), "cannot read class names"),
        ("broken.json", b"[", "cannot read class names"),
        ("gap.json", b'{"0": "cat", "2": "eel", "3": "dog"}', "must hold a list"),
        ("number.json", b"3", "must hold a list"),
        ("numbers.json", b"[1, 2, 3]", "must hold a list"),
        ("missing.txt", None, "no label file"),
    ],
)
def test_label_files_that_do_not_do(photos, directory, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run(photos[0], "--checkpoint", directory, "--labels", tmp_path / name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert name in result.stderr


def test_progress_bar_is_on_a_terminal_only_and_never_on_stdout(photos, directory):
    args = (*photos, "--checkpoint", directory, "--json")
    terminal = run(*args, env={"FORCE_COLOR": "1"})
    assert "Classifying" in terminal.stderr
    assert run(*args).stderr == ""
    assert json.loads(terminal.stdout) == json.loads(run(*args).stdout)
    assert "Classifying" not in run(*args[1:], env={"FORCE_COLOR": "1"}).stderr  # a single image needs no bar


def test_usage_errors(photos, checkpoint, directory):
    for args in (
        [],
        ["--checkpoint", checkpoint],
        ["--checkpoint", directory, "--no-pretrained"],
        ["--model", ARCH, "--topk", 0],
    ):
        result = run(photos[0], *args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Usage" in result.stderr


def test_checkpoints_that_do_not_do(photos, checkpoint, directory, tmp_path):
    backbone = timm.create_model(ARCH, num_classes=0)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    for name in ("empty", "list", "foreign", "truncated", "hollow"):
        (tmp_path / name).mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "foreign" / "config.json").write_text('{"architecture": "resnet18"}')
    for name in ("truncated", "hollow"):
        (tmp_path / name / "config.json").write_bytes((directory / "config.json").read_bytes())
    weights = (directory / "model.safetensors").read_bytes()
    (tmp_path / "truncated" / "model.safetensors").write_bytes(weights[:-100])
    for args, message in (
        (["--model", "mobilevitv3_xs", "--checkpoint", directory], f"holds {ARCH}, not mobilevitv3_xs"),
        (["--model", "mobilevitv3_xs", "--checkpoint", checkpoint], ARCH),
        (["--model", "mobilevit_xxs", "--checkpoint", checkpoint], "mobilevitv1_xxs"),
        (["--model", ARCH, "--checkpoint", tmp_path / "backbone.pth"], "no classifier"),
        (["--model", ARCH, "--checkpoint", tmp_path / "missing.pth"], "no checkpoint file"),
        (["--checkpoint", tmp_path / "empty"], "no config.json"),
        (["--checkpoint", tmp_path / "list"], "not the configuration of a timm model"),
        (["--checkpoint", tmp_path / "foreign"], "resnet18"),
        (["--checkpoint", tmp_path / "truncated"], "cannot be read"),
        (["--checkpoint", tmp_path / "hollow"], "No suitable checkpoints"),
        (["--checkpoint", directory, "--device", "abacus"], "'abacus' cannot be used"),
    ):
        result = run(photos[0], *args)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_weights_that_cannot_be_downloaded(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = run(photos[0], "--model", "mobilevitv1_xxs")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the weights of mobilevitv1_xxs are not in the cache" in result.stderr
    assert "--checkpoint" in result.stderr


def test_a_download_that_is_cut(photos, monkeypatch):
    class ProtocolError(Exception):
        """Stands for those of clients for HTTP, which derive from Exception."""

    def create_model(*args, **kwargs):
        raise ProtocolError("peer closed connection")

    monkeypatch.setattr(timm, "create_model", create_model)
    result = run(photos[0], "--model", "mobilevitv1_xxs")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: cannot load the weights of mobilevitv1_xxs: ProtocolError: peer closed connection; try again\n"
    )
