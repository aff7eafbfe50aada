"""What GitHub reads in the repository: workflows, citation and documents agree with the code and with each other."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from timm_mobilevit import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md")])
PINNED = re.compile(r"[\w.-]+(?:/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def targets_of(job):
    """The make targets that a job calls, with what its matrix stands for put in."""
    commands = [step["run"] for step in job.get("steps", ()) if "run" in step]
    for key, values in job.get("strategy", {}).get("matrix", {}).items():
        if key == "exclude":
            continue
        variable = f"${{{{ matrix.{key} }}}}"
        commands = [command.replace(variable, value) for command in commands for value in values]
    return {
        word for command in commands for words in re.findall(r"\bmake ([^&|;\n]+)", command) for word in words.split()
    }


def test_there_are_workflows():
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "release.yml"}


@workflows
def test_actions_are_pinned_by_commit_and_say_their_version(path):
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"^ *(?:- )?uses: *(.+?) *$", text, re.MULTILINE)
    parsed = yaml.safe_load(text)
    assert len(uses) == sum("uses" in step for step in [*steps_of(parsed), *parsed["jobs"].values()])
    assert [use for use in uses if not use.startswith("./") and not PINNED.fullmatch(use)] == []
    for use in uses:
        assert not use.startswith("./") or (ROOT / use).is_file(), use


def test_an_action_has_one_version_in_all_workflows():
    pins = {use for path in WORKFLOWS for use in PINNED.findall(path.read_text(encoding="utf-8"))}
    assert len({use.partition("@")[0] for use in pins}) == len(pins) > 0


@workflows
def test_make_targets_exist(path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = {target for job in yaml.safe_load(path.read_text())["jobs"].values() for target in targets_of(job)}
    assert called
    assert {target for target in called if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)} == set()


@workflows
def test_workflows_may_read_and_end(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert "uses" in job or job["timeout-minutes"] <= 120, name
        assert job.get("permissions", {}) in ({}, {"id-token": "write"}), name
    for step in steps_of(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_tags_are_published_and_what_builds_cannot_publish():
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key "on" so
    publishers = {name for name, job in workflow["jobs"].items() if "permissions" in job}
    assert publishers == {"publish"}
    publish = workflow["jobs"]["publish"]
    assert publish["environment"]["name"] == "pypi"
    assert set(publish["needs"]) == {"ci", "build"}
    assert all("run" not in step for step in publish["steps"])
    assert publish["steps"][-1]["with"]["attestations"] is True


@pytest.mark.parametrize(("tag", "fits"), [(f"v{__version__}", True), (f"v{__version__}.1", False), ("v0", False)])
def test_a_release_needs_the_tag_of_its_version(tmp_path, tag, fits):
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    (check,) = (step["run"] for step in workflow["jobs"]["build"]["steps"] if "GITHUB_REF_NAME" in step.get("run", ""))
    (tmp_path / "dist").mkdir()
    (tmp_path / f"dist/timm_mobilevit-{__version__}-py3-none-any.whl").touch()
    done = subprocess.run(
        ["bash", "-ec", check], cwd=tmp_path, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert (done.returncode == 0) is fits


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no tomllib

    def stated(key):
        return re.search(rf'^{key} = "(.+)"$', project, re.MULTILINE)[1]

    assert citation["version"] == __version__
    assert citation["title"] == stated("name")
    assert citation["license"] == stated("license")
    assert citation["abstract"] == stated("description")


def test_citation_names_the_papers_of_the_models():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {reference["identifiers"][0]["value"]: reference for reference in citation["references"]}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert sorted(papers) == sorted(f"arXiv:{number}" for number in re.findall(r"arxiv\.org/abs/([\d.]+)", project))
    for number, reference in papers.items():
        assert reference["url"] == f"https://arxiv.org/abs/{number.removeprefix('arXiv:')}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_documents_link_to_exist(path):
    tokens = [child for token in MarkdownIt().parse(path.read_text(encoding="utf-8")) for child in token.children or ()]
    targets = [
        token.attrs.get("href") or token.attrs.get("src") for token in tokens if token.type in ("link_open", "image")
    ]
    files = [target.partition("#")[0] for target in targets if not re.match(r"https?://|#", target)]
    assert [file for file in files if not (path.parent / file).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_issue_forms_have_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
