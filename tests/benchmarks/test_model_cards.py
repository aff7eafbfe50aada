"""Model cards, and uploading weights with them to a hub that runs here."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants, utils
from huggingface_hub.repocard_data import model_index_to_eval_results
from typer.testing import CliRunner

from benchmarks import model_cards
from benchmarks.model_cards import LICENSES, model_card
from timm_mobilevit.cli import app
from timm_mobilevit.convert import export_state_dict
from timm_mobilevit.weights.pretrained import WEIGHTS

ROOT = Path(__file__).parents[2]
NAME = "mobilevitv2_0_5.cvnets_in1k"
CLOSED = next(name for name, row in WEIGHTS.items() if not LICENSES[row.license].redistributable)
REPO = "user/mobilevit"


@pytest.fixture
def run(command):
    return lambda *args: command(model_cards.main, *args)


@pytest.mark.parametrize("name", WEIGHTS)
def test_front_matter_says_what_the_table_says(name):
    row = WEIGHTS[name]
    text = str(model_card(name))
    data = ModelCard(text).data  # parses the YAML, and refuses results that are no model index
    assert data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    assert (data.license, data.license_name) == ("other", row.license)
    # What the hub asks of a licence that is not on its list.
    assert re.fullmatch(r"[a-z0-9.-]+", data.license_name)
    assert data.license_link.startswith("https://")
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-classification")
    assert ("imagenet-22k" in data.datasets) == ("22k" in name)
    model_name, (result,) = model_index_to_eval_results(data.to_dict()["model-index"])
    assert (model_name, result.dataset_type, result.metric_value) == (name, "imagenet-1k", row.top1)


@pytest.mark.parametrize("name", WEIGHTS)
def test_text_has_the_facts(name, monkeypatch):
    row = WEIGHTS[name]
    text = model_card(name).text
    cfg = row.to_cfg()
    paper = cfg["paper_ids"].removeprefix("arXiv:")
    with torch.device("meta"):
        model = timm.create_model(name.partition(".")[0])
    for fact in (
        f"# {name}\n",
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
        f"{row.size}×{row.size}",
        f"| {row.top1:.2f} |",
        cfg["paper_name"],
        f"https://arxiv.org/abs/{paper}",
        f"arXiv:{paper}",
        row.origin,
        row.folder or row.hf_hub_id or row.url,
        f"{row.interpolation} resize",
        LICENSES[row.license].link,
    ):
        assert fact in text
    assert ("This project has not reproduced it." in text) == (not row.reproduced)
    assert ("no redistribution" in text) == (not LICENSES[row.license].redistributable)
    assert ("not verified on data" in text) == (row.paper == "v3" and row.channel_order == "bgr")
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # nothing was left to fill in

    # The example runs, but for the download.
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kwargs: create(name, **kwargs))
    with torch.device("meta"):
        exec(compile(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], name, "exec"), {})


def test_licences_are_those_of_the_document():
    document = (ROOT / "LICENSES-WEIGHTS.md").read_text(encoding="utf-8")
    assert LICENSES.keys() == {row.license for row in WEIGHTS.values()}
    for name, license in LICENSES.items():
        (line,) = [line for line in document.splitlines() if f"`{name}`" in line]
        assert license.link in line
        assert ("no redistribution" in line) == (not license.redistributable)
        assert license.terms.partition(" The weights are")[0] in line


def test_cards_are_written(run, tmp_path):
    result = run("*_384", "--out", tmp_path / "cards")
    names = {name for name in WEIGHTS if name.endswith("_384")}
    assert result.stdout == f"Wrote {len(names)} cards to {tmp_path / 'cards'}.\n"
    assert {path.name for path in (tmp_path / "cards").iterdir()} == {f"{name}.md" for name in names}
    for name in names:
        assert (tmp_path / "cards" / f"{name}.md").read_text(encoding="utf-8") == str(model_card(name))


class Hub:
    """What the fake hub was asked for."""

    def __init__(self):
        self.requests = []
        self.tokens = set()
        self.private = None
        self.files = {}
        self.refuse_cards = False
        self.url = ""


@contextmanager
def serve():
    """A Hugging Face Hub on 127.0.0.1 that takes commits of small files, and checks cards as the real one does."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.send_error(404)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.requests.append(self.path)
            hub.tokens.add(self.headers["Authorization"])
            status, answer = 200, {}
            if self.path == "/api/repos/create":
                request = json.loads(body)
                hub.private = request.get("private", request.get("visibility") == "private")
                answer = {"url": f"{hub.url}/{REPO}"}
            elif self.path == "/api/validate-yaml":
                metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
                valid = not hub.refuse_cards and {"license", "license_name", "license_link"} <= metadata.keys()
                status, answer = (200, {"errors": [], "warnings": []}) if valid else (400, {"errors": [CARD_ERROR]})
            elif self.path == f"/api/models/{REPO}/preupload/main":
                paths = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            elif self.path == f"/api/models/{REPO}/commit/main":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitOid": "c" * 40, "commitUrl": f"{hub.url}/{REPO}/commit/{'c' * 40}"}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        hub.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            http.shutdown()
            thread.join()


CARD_ERROR = {"message": "the card is refused"}


@pytest.fixture
def hub(monkeypatch):
    # Before huggingface_hub 1.0, a session that was opened in offline mode is kept, and stays offline.
    getattr(utils, "reset_sessions", lambda: None)()
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_fake")
        monkeypatch.setenv("no_proxy", "*")
        yield hub


def convert(folder, name, tag=True):
    """What `convert` writes for published weights, or with no tag for somebody's own."""
    arch, _, of = name.partition(".")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(export_state_dict(timm.create_model(arch).state_dict(), arch, "cvnets"), folder / "official.pt")
    args = ["convert", folder / "official.pt", "--arch", arch, "--out", folder / "converted"]
    result = CliRunner().invoke(app, [str(arg) for arg in [*args, *(["--tag", of] if tag else [])]])
    assert result.exit_code == 0, result.output
    return folder / "converted"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return convert(tmp_path_factory.mktemp("weights"), NAME)


def test_weights_and_card_are_uploaded_in_one_commit(hub, directory, run):
    result = run(NAME, "--checkpoint", directory, "--push", REPO, "--private")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{hub.url}/{REPO}/commit/{'c' * 40}\n"
    assert hub.files == {
        "README.md": str(model_card(NAME)).encode(),
        **{file: (directory / file).read_bytes() for file in ("config.json", "model.safetensors")},
    }
    assert hub.requests.count(f"/api/models/{REPO}/commit/main") == 1
    assert "Bearer hf_fake" in hub.tokens
    assert hub.private
    assert run(NAME, "--checkpoint", directory, "--push", REPO).exit_code == 0
    assert not hub.private


def test_a_licence_text_goes_along(hub, tmp_path):
    directory = convert(tmp_path, NAME)
    (directory / "LICENSE").write_text("the notice")
    (directory / "notes.txt").write_text("not for others")
    model_cards.push(directory, NAME, REPO)
    assert hub.files["LICENSE"] == b"the notice"
    assert hub.files.keys() == {"README.md", "LICENSE", "config.json", "model.safetensors"}


def test_what_was_uploaded_loads(hub, directory, tmp_path):
    model_cards.push(directory, NAME, REPO)
    for file, content in hub.files.items():
        (tmp_path / file).write_bytes(content)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    original = timm.create_model(f"local-dir:{directory}", pretrained=True)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all((loaded.state_dict()[key] == value).all() for key, value in original.state_dict().items())
    assert loaded.pretrained_cfg["license"] == ModelCard.load(tmp_path / "README.md").data.license_name


def test_a_card_that_the_hub_refuses_is_not_followed_by_weights(hub, directory, run):
    hub.refuse_cards = True
    result = run(NAME, "--checkpoint", directory, "--push", REPO)
    assert (result.exit_code, result.stdout) == (2, "")
    assert CARD_ERROR["message"] in said(result)
    assert not hub.files


def said(result):
    """What is in the frame around an error."""
    return " ".join(result.stderr.replace("│", " ").split())


def test_weights_that_must_not_be_redistributed_stay_here(hub, tmp_path, run):
    directory = convert(tmp_path, CLOSED)
    result = run(CLOSED, "--checkpoint", directory, "--push", REPO)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "does not allow to upload the weights again" in said(result)
    # Nor under the name of weights that may be.
    result = run(NAME, "--checkpoint", directory, "--push", REPO)
    assert result.exit_code == 2
    assert f"holds {CLOSED} of 1000 classes, not model.safetensors of {NAME}" in said(result)
    assert not hub.requests


def test_refusals(hub, directory, tmp_path, run):
    own = convert(tmp_path / "own", NAME, tag=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((directory / "config.json").read_bytes())
    torch.save(timm.create_model(NAME.partition(".")[0]).state_dict(), other / "pytorch_model.bin")
    for args, message in (
        ((NAME, "--checkpoint", tmp_path, "--push", REPO), "config.json"),
        ((NAME, "--checkpoint", other, "--push", REPO), "not model.safetensors"),
        ((NAME, "--checkpoint", own, "--push", REPO), f"not model.safetensors of {NAME}"),
        (("mobilevitv2_0_5.cvnets", "--out", tmp_path), "no published weights match"),
        ((NAME,), "give --out, or --push"),
        ((NAME, "--push", REPO), "give --out, or --push"),
        (("mobilevitv2_0_5.*", "--checkpoint", directory, "--push", REPO), "one name"),
        ((NAME, "--checkpoint", directory), "give --out, or --push"),
        ((NAME, "--checkpoint", directory, "--push", REPO, "--out", tmp_path), "give --out, or --push"),
    ):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert message in said(result)
    assert not hub.requests
