"""The demo on real digit scans: the image folder it writes, its training, and what it leaves behind."""

import doctest
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from timm.data import resolve_data_config
from timm.task import ClassificationTask
from timm.utils import random_seed
from typer.testing import CliRunner

from benchmarks import digits, digits_data
from benchmarks.digits_data import write_digits

MODEL = "mobilevitv3_xxs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def demo():
    app = typer.Typer()
    app.command()(digits.main)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestFolder:
    def test_holds_every_scan_once_and_unchanged(self, folder):
        scans, labels = load_digits(return_X_y=True)
        files = {int(path.stem): path for path in folder.rglob("*.png")}
        assert sorted(files) == list(range(1797))
        for index, path in files.items():
            pixels = np.asarray(Image.open(path), dtype=float)
            np.testing.assert_array_equal(np.rint(pixels * 16 / 255), scans[index].reshape(8, 8))
            assert path.parent.name == str(labels[index])

    def test_uses_the_whole_range_of_greys(self, folder):
        pixels = np.stack([np.asarray(Image.open(path)) for path in folder.rglob("*.png")])
        assert (pixels.min(), pixels.max(), pixels.dtype) == (0, 255, np.uint8)

    def test_holds_out_a_fifth_of_each_class(self, folder):
        for digit in range(10):
            train, val = (len(list((folder / split / str(digit)).iterdir())) for split in ("train", "val"))
            assert abs(val - 0.2 * (train + val)) <= 1, digit
        assert len(list(folder.glob("val/*/*.png"))) == 360

    def test_is_the_same_every_time(self, folder, tmp_path):
        assert contents(write_digits(tmp_path / "again")) == contents(folder)

    def test_leaves_nothing_else_beside_it(self, folder):
        assert list(folder.parent.iterdir()) == [folder]

    def test_is_reused_when_complete(self, folder, monkeypatch):
        monkeypatch.setattr(Image.Image, "save", lambda *_: pytest.fail("wrote again"))
        assert write_digits(folder) == folder

    @pytest.mark.parametrize("damage", ["missing", "unknown"])
    def test_with_other_content_is_refused_and_left_alone(self, folder, tmp_path, damage):
        root = shutil.copytree(folder, tmp_path / "digits")
        if damage == "missing":
            next(root.rglob("*.png")).unlink()
        else:
            (root / "train" / "notes.txt").write_text("mine")
        before = contents(root)
        with pytest.raises(FileExistsError, match=f"1 (of 1797 files )?are {damage}"):
            write_digits(root)
        assert contents(root) == before

    def test_is_not_left_half_written(self, tmp_path, monkeypatch):
        save, saved = Image.Image.save, []

        def save_until_the_disk_is_full(image, path):
            if len(saved) == 100:
                raise OSError("No space left on device")
            save(image, path)
            saved.append(path)

        monkeypatch.setattr(Image.Image, "save", save_until_the_disk_is_full)
        with pytest.raises(OSError, match="No space"):
            write_digits(tmp_path / "digits")
        assert len(saved) == 100
        assert list(tmp_path.iterdir()) == []

    def test_documentation(self):
        result = doctest.testmod(digits_data)
        assert result.attempted
        assert not result.failed


@pytest.fixture(scope="module")
def few(folder, tmp_path_factory):
    """Every twentieth scan of each class: 69 to train on, 20 to validate on."""
    root = tmp_path_factory.mktemp("few")
    for source in folder.glob("*/*"):
        target = root / source.relative_to(folder)
        target.mkdir(parents=True)
        for file in sorted(source.iterdir())[::20]:
            shutil.copy(file, target)
    return root


def short_training(root, seed=0):
    random_seed(seed)
    model = timm.create_model(MODEL, num_classes=10)
    data_config = resolve_data_config({"img_size": 64, "crop_pct": 1.0}, model=model)
    loaders = digits.make_loaders(root, data_config, batch_size=8)
    task = ClassificationTask(model)
    losses = digits.train(task, loaders, epochs=2, lr=4e-3)
    return model, data_config, loaders, losses


@pytest.fixture(scope="module")
def trained(few):
    return short_training(few)


class TestTraining:
    def test_lowers_the_loss(self, trained):
        *_, losses = trained
        assert losses[-1] < losses[0]

    def test_repeats_itself_with_the_same_seed_only(self, trained, few):
        *_, losses = trained
        assert short_training(few)[-1] == losses
        assert short_training(few, seed=1)[-1] != losses

    def test_loaders_give_rgb_in_zero_to_one(self, trained):
        images, labels = next(iter(trained[2][1]))
        assert images.shape == (8, 3, 64, 64)
        assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1
        assert labels.dtype == torch.int64

    def test_accuracy_counts_right_answers(self, trained):
        class KnowsOnlyZero(torch.nn.Module):
            def forward(self, x):
                return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()

        val = trained[2][1]
        share = sum((labels == 0).sum().item() for _, labels in val) / len(val.dataset)
        assert digits.evaluate(ClassificationTask(KnowsOnlyZero()), val) == share > 0

    def test_reloads_as_it_was(self, trained, tmp_path):
        model, data_config, (_, val), _ = trained
        weights = digits.save(model, tmp_path, data_config, pretrained=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", weights.name]
        images, _ = next(iter(val))
        expected = model.eval()(images)
        from_file = timm.create_model(MODEL, num_classes=10, checkpoint_path=weights)
        from_folder = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        for reloaded in (from_file, from_folder):
            torch.testing.assert_close(reloaded.eval()(images), expected, rtol=0, atol=0)
        assert from_folder.pretrained_cfg["input_size"] == (3, 64, 64)
        assert from_folder.pretrained_cfg["license"] == "apache-2.0"

    def test_keeps_the_licence_of_weights_it_started_from(self, trained, tmp_path):
        model, data_config, *_ = trained
        digits.save(model, tmp_path, data_config, pretrained=True)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["pretrained_cfg"]["license"] == model.pretrained_cfg["license"] != "apache-2.0"


class TestCommand:
    def test_saves_predicts_and_fails_below_the_accuracy_asked_for(self, demo, few, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr(digits, "write_digits", lambda root: root)
        output = tmp_path / "model"
        result = demo("--epochs", 1, "--batch-size", 8, "--data", few, "--output", output, "--min-accuracy", 1)
        assert result.exit_code == 1
        assert "failed: expected a validation accuracy of at least 100.00%" in result.output
        assert "after reloading" not in result.output
        assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
        predicted = re.findall(r"^(\S+\.png)\n( +[\d.]+ %  \d\n){2}", capfd.readouterr().out, re.MULTILINE)
        assert len(predicted) == digits.IMAGES_TO_PREDICT
        assert {Path(path).parents[2] for path, _ in predicted} == {few}

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--model", "mobilevitv9_xxs", "unknown model 'mobilevitv9_xxs'"),
            ("--epochs", 0, "Invalid value for '--epochs'"),
            ("--data", Path(__file__).parent, "1797 of 1797 files are missing"),
            ("--output", __file__, "is a file"),
        ],
    )
    def test_refuses(self, demo, folder, tmp_path, option, value, message):
        options = {"--data": folder, "--output": tmp_path} | {option: value}
        result = demo(*(part for pair in options.items() for part in pair))
        assert result.exit_code == 2
        assert message in re.sub(r"[\s│]+", " ", result.output)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.long
    def test_reaches_98_percent_and_predicts(self, tmp_path):
        command = [sys.executable, "-m", "benchmarks.digits", "--data", tmp_path / "data", "--output", tmp_path / "out"]
        root = Path(digits.__file__).parents[1]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        accuracies = [float(value) for value in re.findall(r"validation accuracy ([\d.]+)%", result.stdout)]
        assert accuracies[-1] == accuracies[-2] >= 98
        first_guesses = re.findall(r"/val/(\d)/\d+\.png\n +[\d.]+ % +(\d)\n", result.stdout)
        assert len(first_guesses) == digits.IMAGES_TO_PREDICT
        assert sum(label == guess for label, guess in first_guesses) >= 4
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out" / "model.safetensors").values())
