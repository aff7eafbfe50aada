"""Every command in the documents runs here or says what it needs; the site builds, and loads nothing from elsewhere.

A block of ``bash`` or ``python`` is run, after those above it on its page, in a folder with the files that a reader
would bring. A comment directly above a block may say otherwise:

    <!-- needs: network -->                                      not run; NEEDS has what there may be
    <!-- extra: onnx -->                                         run where the extra is installed
    <!-- takes: minutes -->                                      run by `make test-long`
    <!-- takes: minutes, run by tests/benchmarks/test_digits.py::name -->   run by another test

Published weights are not downloaded: where a block asks for them, it gets random ones.
"""

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from timm_mobilevit.cli import app
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.export.formats import FORMATS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES]
IDS = [path.name for path in DOCUMENTS]
COMMANDS = ("bash", "python")
OTHER_LANGUAGES = ("cpp", "javascript", "json", "kotlin", "swift", "text", "yaml")
NEEDS = ("network", "GPU", "ImageNet", "COCO", "ADE20K", "VOC", "timm's scripts", "the tool")
EXTRAS = {name: (*form.packages, *filter(None, [form.runtime])) for name, form in FORMATS.items()}
EXTRAS["mm"] = ("mmcv", "mmdet", "mmseg")
MARK = re.compile(r"<!-- (needs|extra|takes): ([^>]+?)(?:, run by (\S+))? -->")
CREATE_MODEL = timm.create_model
NOWHERE = (
    "http://127.0.0.1:9"  # what asks the network fails at once: a block without its mark, a site that is not whole
)
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment above it says."""

    line: int
    language: str
    code: str
    kind: str = ""
    value: str = ""
    run_by: str = ""


def blocks_of(path):
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            above = before.content.strip().splitlines()[-1] if before and before.type == "html_block" else ""
            mark = MARK.fullmatch(above)
            yield Block(token.map[0] + 1, token.info, token.content, *(mark.groups(default="") if mark else ()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_marks_mean_something(path):
    for block in blocks_of(path):
        where = f"{path.name}:{block.line}"
        assert block.language in (*COMMANDS, *OTHER_LANGUAGES), f"{where}: a block of {block.language!r}"
        if block.kind == "needs":
            assert set(block.value.split(", ")) <= set(NEEDS), where
        if block.kind == "extra":
            assert block.value in EXTRAS, where
        if block.kind == "takes":
            assert block.value == "minutes", where
        if block.run_by:
            assert block.kind == "takes", where
            file, *names = block.run_by.split("::")
            assert (ROOT / file).is_file(), where
            for name in names:
                assert re.search(rf"^ *(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), where


@pytest.fixture(scope="module")
def files_of_readers(tmp_path_factory):
    """A folder with what the readers of the pages bring along."""
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_image

    from benchmarks.mm_data import write_scenes

    tmp_path = tmp_path_factory.mktemp("reader")
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((320, 214))
    for name in ("cat.jpg", "photos/one.jpg", "photos/two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / name)
    scans, labels = load_digits(return_X_y=True)
    for index in range(100):
        for folder in (f"images/{'val' if index // 10 % 5 == 0 else 'train'}/{labels[index]}", "scans"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray((15 * scans[index]).reshape(8, 8).astype("uint8")).save(
                tmp_path / folder / f"{index:02}.png"
            )
    (tmp_path / "classes.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    write_scenes(tmp_path / "scenes", train=8, val=2, size=96)

    for file, arch, layout, classes in (
        ("mobilevitv2-1.0.pt", "mobilevitv2_1_0", "cvnets", 1000),
        ("checkpoint_ema_best.pt", "mobilevitv3_s", "cvnets", 1000),
        ("my_bgr_training.pt", "mobilevitv2_0_5", "cvnets", 10),
        ("output/train/…/model_best.pth.tar", "mobilevitv3_xxs", "timm", 10),
        ("mobilevitv3_xxs.pt", "mobilevitv3_xxs", "timm", 1000),
        ("mobilevitv3_0_5.pt", "mobilevitv3_0_5", "timm", 1000),
    ):
        weights = CREATE_MODEL(arch, num_classes=classes).state_dict()
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": export_state_dict(weights, arch, layout)}, tmp_path / file)
    return tmp_path


@pytest.fixture
def reader(files_of_readers, tmp_path, monkeypatch):
    """Copy the readers' files into the working folder of a page."""
    shutil.copytree(files_of_readers, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timm, "create_model", without_download)
    return tmp_path


def bring_official_files():
    """Detection and segmentation checkpoints as they are published, but with random weights."""
    from mm_models import theirs_of
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import timm_mobilevit.mm  # noqa: F401  registers what the configs name
    from timm_mobilevit.configs import find_config

    for folder, name in (
        ("mobilevitv3_XXS_coco_e200_1930", "ssdlite_mobilevitv3-xxs"),
        ("mobilevitv3_ade20k_0_5_0", "deeplabv3_mobilevitv3-0.5-d8"),
    ):
        config = Config.fromfile(find_config(name))
        config.model.backbone.pretrained = False
        init_default_scope(config.default_scope)
        Path(folder).mkdir()
        torch.save(
            theirs_of(MODELS.build(config.model), config.model.backbone.model_name), f"{folder}/checkpoint_ema_best.pt"
        )


def installed(extra):
    return all(importlib.util.find_spec(module) for module in EXTRAS[extra])


def without_download(model_name, pretrained=False, **kwargs):
    here = model_name.startswith("local-dir:") or "file" in (kwargs.get("pretrained_cfg_overlay") or {})
    return CREATE_MODEL(model_name, pretrained=pretrained and here, **kwargs)


def run(block, where, namespace):
    if block.language == "python":
        exec(compile(block.code, where, "exec"), namespace)
        return
    commands = [line for line in block.code.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]
    if all(line.startswith("timm-mobilevit ") for line in commands):
        for line in commands:
            run_in_process(line, where)
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    known = namespace.setdefault("__shell__", [])  # variables of the page's earlier blocks: a reader has one shell
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*known, block.code])],
        env=os.environ | OFFLINE | {"PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{where}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    known += re.findall(r"^[A-Z]+=.*$", block.code, re.MULTILINE)


def run_in_process(line, where):
    """Run a command of ours without the seconds that a process takes to import torch."""
    words = shlex.split(line, comments=True)[1:]
    words, _, redirection = (words[: words.index(">")], ">", words[-1]) if ">" in words else (words, "", "")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{where}: {line}\n{done.output}"
    if redirection:
        Path(redirection).write_text(done.stdout)


def run_page(path, *, long):
    if has(path, lambda block: (block.kind, block.value) == ("extra", "mm")) and installed("mm"):
        bring_official_files()
    namespace = {"__name__": "__main__"}
    left_out = set()
    for block in blocks_of(path):
        if block.language not in COMMANDS or block.kind == "needs" or block.run_by:
            continue
        if block.kind == "takes" and not long:
            continue
        if block.kind == "extra" and not installed(block.value):
            left_out.add(block.value)
        else:
            run(block, f"{path.name}:{block.line}", namespace)
    if left_out:
        pytest.skip(f"the rest of the page ran; not installed: {', '.join(sorted(left_out))}")


def has(path, wanted):
    return any(block.language in COMMANDS and wanted(block) for block in blocks_of(path))


QUICK = [path for path in DOCUMENTS if has(path, lambda block: block.kind in ("", "extra"))]
LONG = [path for path in DOCUMENTS if has(path, lambda block: block.kind == "takes" and not block.run_by)]


@pytest.mark.parametrize("path", QUICK, ids=[path.name for path in QUICK])
def test_blocks_run(path, reader):
    run_page(path, long=False)


@pytest.mark.long
@pytest.mark.parametrize("path", LONG, ids=[path.name for path in LONG])
def test_long_blocks_run(path, reader):
    run_page(path, long=True)


class ExternalLoads(HTMLParser):
    """Collects what a page makes the browser load from another place."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") == "canonical":
            return
        names = {"link": ("href",), "a": ()}.get(tag, ("src", "srcset", "data", "poster"))
        self.found += [value for name in names if re.match(r"(https?:)?//", value := attributes.get(name) or "")]


def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    mkdocs = shutil.which("mkdocs", path=path)
    if mkdocs is None:
        pytest.skip("mkdocs is not installed: pip install 'timm-mobilevit[docs]'")
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        parser = ExternalLoads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found == [], page.name
    styles = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\W*(?:https?:)?//[^)]*", styles)


def public_modules():
    """The modules of timm_mobilevit, without the command line."""
    files = (path for path in (ROOT / "timm_mobilevit").rglob("*.py") if ".mim" not in path.parts)
    modules = {path.relative_to(ROOT).with_suffix("").parts for path in files}
    return {parts for parts in modules if not any(part.startswith("_") for part in parts) and parts[1] != "cli"}


def test_reference_has_every_public_module():
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES if path.name.startswith("api"))
    shown = {tuple(name.split(".")) for name in re.findall(r"^## (timm_mobilevit\.\S+)$", text, re.MULTILINE)}
    public = public_modules()
    assert public <= shown
    for parts in shown - public:
        assert (ROOT.joinpath(*parts) / "__init__.py").is_file()


def test_reference_lists_the_public_names():
    rows = re.findall(r"^\| `(timm_mobilevit\S*)` \|([^|]+)\|", (ROOT / "docs/api.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 6
    for module, names in rows:
        file = ROOT.joinpath(*module.split("."))
        source = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8")
        public = ast.literal_eval(re.search(r"^__all__ = (\[.*?\])", source, re.MULTILINE | re.DOTALL)[1])
        listed = [name.rpartition(".")[2] for name in re.findall(r"`(\S+)`", names)]
        assert listed == [name for name in public if name != "__version__"], module


def test_architecture_draws_the_layers():
    """From top to bottom as the contract of import-linter has them."""
    contract = re.search(r"^layers = (\[.*?\])", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    layers = [layer.split(" | ") for layer in ast.literal_eval(contract[1])]
    depth = {package: index for index, layer in enumerate(layers) for package in layer}
    lines = next(blocks_of(ROOT / "docs/architecture.md")).code.splitlines()
    drawn = [re.findall(r"│ (\w+) ", line) for above, line in itertools.pairwise(lines) if "┌" in above]
    order = [package for row in drawn for package in row]
    assert sorted(order) == sorted(package for package in depth if not package.startswith("_"))
    for row, below in itertools.pairwise(drawn):
        assert max(depth[package] for package in row) < min(depth[package] for package in below)


def test_architecture_lists_the_modules():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    modules = {".".join(parts[1:]) for parts in public_modules()}
    packages = {"cli", "mm", "recipes", "convert"}  # a row for all of their modules
    assert {name for name in modules if not any(f"{name}.".startswith(f"{package}.") for package in packages)} == (
        listed - packages
    )
    assert packages <= listed


def test_path_of_an_image_has_its_shapes():
    drawing = next(block.code for block in blocks_of(ROOT / "docs/architecture.md") if "final_conv" in block.code)
    model = CREATE_MODEL("mobilevitv3_xxs").eval()
    parts = {"stem": model.stem, "final_conv": model.final_conv, "head": model.head}
    parts |= {f"stages.{index}": stage for index, stage in enumerate(model.stages)}
    shapes = {}
    for name, part in parts.items():
        part.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: list(output.shape)}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 256, 256))
    drawn = re.findall(r"^ (\S+) .*(\[1,[\d, ]+\])", drawing, re.MULTILINE)
    assert {name: json.loads(shape) for name, shape in drawn} == {"images": [1, 3, 256, 256], **shapes}


def test_tests_named_in_the_documents_exist():
    names = re.findall(r"`((?:\w+/)?test_\S+\.py)`", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len(names) > 20
    assert [name for name in names if not list((ROOT / "tests").glob(name))] == []
