"""The README's generated tables, its examples and its claims that can be checked."""

import re
from pathlib import Path

import pytest

from benchmarks.make_tables import TABLES, update
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.pretrained import WEIGHTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_up_to_date():
    assert update(README) == README
    for name in WEIGHTS:
        assert f"| `{name}` |" in README


def test_a_missing_place_is_an_error():
    with pytest.raises(ValueError, match="no place for the table"):
        update(README.replace(f"<!-- {next(iter(TABLES))}:begin -->", ""))


def test_first_python_example_runs(monkeypatch):
    """As it stands, but without the download."""
    import timm

    example = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: create_model(name, **kw))
    exec(compile(example, "README.md", "exec"), {})


def test_models_and_links_exist():
    names = re.findall(r"(?:\"|--(?:model|arch) |info )(mobilevitv[123]_\w+)", README)
    assert len(names) > 10
    assert set(names) <= set(VARIANTS)
    for document in ("README.md", "CONTRIBUTING.md", "LICENSES-WEIGHTS.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{document}: {link}"


def test_make_targets_named_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`?make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8"))) <= targets
