"""mkdocs hook: the documents at the root of the repository are pages of the site too, and README.md is the first one.

Links in all of them are relative, as the repository's web page needs them. On the site ``docs`` is the root.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSES-WEIGHTS.md", "CHANGELOG.md")
FILES = ("LICENSE", "CITATION.cff")
FOLDERS = ("mm_configs", "benchmarks/results")  # what the documents link to
CLASSIFIER = ROOT / "timm_mobilevit" / "export" / "web_page" / "classify.js"  # of the page of digits


def on_files(files: Any, config: Any) -> Any:
    """Add the documents, and the files that they link to."""
    paths = [ROOT / name for name in (*DOCUMENTS, *FILES)]
    paths += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.*")) if path.suffix != ".pyc"]
    for path in paths:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "digits/classify.js", abs_src_path=str(CLASSIFIER)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Turn links between ``docs`` and the root of the repository into links of the site."""
    in_docs = Path(page.file.abs_src_path).parent == ROOT / "docs"
    return re.sub(r"\]\(\.\./", "](", markdown) if in_docs else re.sub(r"\]\(docs/", "](", markdown)
