"""The generated tables of the documents, the README's examples and the claims that can be checked."""

import re
from pathlib import Path

import pytest

from benchmarks.make_tables import TABLES, update
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.pretrained import WEIGHTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "mm_configs/README.md"]


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_up_to_date(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert update(page, text) == text


def test_every_model_and_every_set_of_weights_has_a_row():
    models = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert [name for name in WEIGHTS if f"| `{name}` |" not in models] == []
    rows = [re.findall(r"`(\w+)`", line) for line in README.splitlines() if line.startswith("| `mobilevit")]
    named = [row[0] if name is row[0] else row[0].partition("_")[0] + name for row in rows for name in row]
    assert named == list(VARIANTS)


def test_families_of_the_readme():
    """Sizes counted by ``benchmarks.complexity``, accuracies from the papers and model zoos."""
    rows = [line for line in README.splitlines() if line.startswith("| `mobilevit")]
    assert rows[1].endswith("| 1.37 to 18.45 | 465 to 7,156 | 72.14 to 83.41 |")
    assert rows[3] == "| `mobilevitv3_0_5`, `_0_75`, `_1_0` | 1.43 to 5.14 | 480 to 1,873 | 72.33 to 78.64 |"


def test_every_place_belongs_to_a_table():
    for document in DOCUMENTS:
        places = re.findall(r"<!-- (\w+):begin -->", document.read_text(encoding="utf-8"))
        assert sorted(places) == sorted(TABLES.get(document.relative_to(ROOT).as_posix(), ()))


def test_a_missing_place_is_an_error():
    with pytest.raises(ValueError, match="no place for the table"):
        update("README.md", README.replace("<!-- architectures:begin -->", ""))


def test_readme_is_short():
    assert len(README.splitlines()) <= 80


def test_first_python_example_runs(monkeypatch):
    """As it stands, but without the download."""
    import timm

    example = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: create_model(name, **kw))
    exec(compile(example, "README.md", "exec"), {})


def test_models_and_links_exist():
    names = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        names += re.findall(r"(?:\"|--(?:model|arch) |info )(mobilevitv[123]_\w*[a-z0-9])\b(?!_)", text)
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (document.parent / link).exists(), f"{document}: {link}"
    assert len(names) > 10
    assert set(names) - {"mobilevitv3_tiny"} <= set(VARIANTS)  # docs/adding_a_variant.md adds that one


def test_make_targets_named_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE)) <= targets
