"""``timm-mobilevit convert --config``."""

from pathlib import Path

import pytest
import torch
from mm_models import ssd, theirs_of
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.configs import FOLDER, find_config

ROOT = Path(__file__).parents[2]
CONFIG = next((ROOT / "mm_configs/mmdet/ssdlite").glob("ssdlite_mobilevitv3-xxs_*.py"))


@pytest.fixture
def official(tmp_path):
    """A checkpoint with the reference's names and random weights."""
    model = ssd("mobilevitv3_xxs")
    torch.save(theirs_of(model, "mobilevitv3_xxs"), tmp_path / "official.pt")
    return tmp_path / "official.pt"


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_written_checkpoint_is_what_the_tools_load(official, tmp_path):
    done = run(official, "--config", CONFIG, "--out", tmp_path / "out" / "model.pth")
    assert done.exit_code == 0, done.output
    config = Config.fromfile(CONFIG)
    config.model.backbone.pretrained = False
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    load_checkpoint(model, str(tmp_path / "out" / "model.pth"), strict=True)
    meta = torch.load(tmp_path / "out" / "model.pth")["meta"]["dataset_meta"]
    assert (len(meta["classes"]), len(meta["palette"])) == (80, 80)
    stem = torch.load(official)["encoder.conv_1.block.conv.weight"]
    assert torch.equal(model.backbone.stem.conv.weight, stem.flip(1))  # BGR by lineage
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pth"]

    again = run(official, "--config", CONFIG, "--out", tmp_path / "out" / "model.pth")
    assert again.exit_code == 1
    assert "exists" in again.stderr
    order = ("--channel-order", "rgb", "--force")
    assert run(official, "--config", CONFIG, "--out", tmp_path / "out" / "model.pth", *order).exit_code == 0
    converted = torch.load(tmp_path / "out" / "model.pth")["state_dict"]
    assert torch.equal(converted["backbone.stem.conv.weight"], stem)
    torch.save({"raw": {}, "mine": torch.load(official)}, tmp_path / "two.pt")
    assert run(tmp_path / "two.pt", "--config", CONFIG, "--out", tmp_path / "two.pth", "--entry", "mine").exit_code == 0
    assert torch.equal(torch.load(tmp_path / "two.pth")["state_dict"]["backbone.stem.conv.weight"], stem.flip(1))


def test_bad_calls(official, tmp_path):
    out = tmp_path / "model.pth"
    assert run(official, "--out", out, "--arch", "mobilevitv3_xxs", "--config", CONFIG).exit_code == 2
    for arguments, message in (
        (("--config", tmp_path / "missing.py", "--out", out), "no config "),
        (("--config", CONFIG, "--out", tmp_path / "folder"), ".pth file to write"),
        (("--config", ROOT / "mm_configs/mmdet/_base_/default_runtime.py", "--out", out), "no config of a detector"),
    ):
        done = run(official, *arguments)
        assert done.exit_code == 1
        assert message in done.stderr
    options = {"--labels": "no_such_file.txt", "--img-size": 99, "--crop-pct": 0.5, "--prefix": "a", "--source": "timm"}
    for option, value in options.items():
        done = run(official, "--config", CONFIG, "--out", out, option, value)
        assert (done.exit_code, out.exists()) == (2, False), option
        assert f"{option} is for a classifier or backbone" in " ".join(done.stderr.replace("│", " ").split())
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pt")
    done = run(tmp_path / "other.pt", "--config", CONFIG, "--out", out)
    assert done.exit_code == 1
    assert "this is no checkpoint of a SingleStageDetector over mobilevitv3_xxs" in done.stderr
    assert not out.exists()


def test_installed_configs_have_names():
    listed = CliRunner().invoke(app, ["config"]).stdout.split()
    assert len(listed) == len(set(listed)) > 0
    for name in listed:
        assert find_config(Path(name).name) == find_config(Path(name).stem) == FOLDER / name
    shown = CliRunner().invoke(app, ["config", CONFIG.stem]).stdout.strip()
    assert Path(shown).samefile(CONFIG)
    assert find_config(str(CONFIG)) == CONFIG
    with pytest.raises(FileNotFoundError, match="neither a file nor one of those in"):
        find_config("resnet")
    for folder in ("mm_configs/mmdet/ssdlite", "mmdet/ssdlite", "ssdlite"):
        assert find_config(f"{folder}/{CONFIG.name}").samefile(CONFIG)
    for folder in ("configs", "mmdet", "mm_configs/mmseg/ssdlite", "mm_configs/mmdet", "/mm_configs/mmdet/ssdlite"):
        with pytest.raises(FileNotFoundError, match="neither a file nor one of those in"):  # a copy that is elsewhere
            find_config(f"{folder}/{CONFIG.name}")
    with pytest.raises(FileNotFoundError, match=f"did you mean {CONFIG.stem}"):
        find_config(CONFIG.stem.replace("mobilevitv", "mobilevit"))
    with pytest.raises(ValueError, match="could be any of"):
        find_config("ssdlite_mobilevitv1")
