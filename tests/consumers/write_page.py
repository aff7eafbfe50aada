"""Write docs/compatibility.md from what pytest recorded: ``python tests/consumers/write_page.py RESULTS.xml PAGE.md``.

A row is a test, a column a model; the lines that work are those of the test.
"""

import ast
import platform
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from conftest import OURS, TIMM

HEAD = """# Compatibility

`make test-consumers` writes this page about tools that take timm's models. It installs the newest release of each tool
in an environment of its own and runs the lines below on a CPU, with random weights: with our models, and with timm's
built-in `mobilevit_xxs` and `mobilevitv2_050` in their place. Last run: {date}, Python {python}, torch {torch}, timm
{timm}, {minutes:.0f} minutes.
"""
LINES = """## Lines that work

`name` is the name of a model, `model` is `timm.create_model(name, num_classes=10).eval()` with random weights and
biases, after a batch in training mode, which gives batch norms their statistics, and `tmp_path` is a folder. For the
names of this package, `import timm_mobilevit` comes first.
"""


def main(results: str, page: str) -> None:
    """Read the results, write the page."""
    suite = next(ElementTree.parse(results).iter("testsuite"))
    rows = read(suite)
    head = HEAD.format(
        date=suite.get("timestamp", "")[:10],
        python=platform.python_version(),
        torch=version("torch"),
        timm=version("timm"),
        minutes=float(suite.get("time", 0)) / 60,
    )
    parts = [head, *table(rows), "", LINES]
    for file in sorted({file for file, _, _ in rows}):
        path = Path(__file__).with_name(f"{file}.py")
        title = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        parts += [f"### {tool(file)}\n\n{title}\n\n<!-- needs: the tool -->", "```python"]
        parts += [lines(path, rows), "```\n"]
    Path(page).write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def read(suite: ElementTree.Element) -> dict[tuple[str, str, str], dict[str, ElementTree.Element]]:
    """The results by file, test and parameter; of each, by model."""
    rows: dict[tuple[str, str, str], dict[str, ElementTree.Element]] = {}
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            raise SystemExit(f"expected a run in which our models pass, got a failure of {case.get('name')}")
        file = case.get("classname", "").rpartition(".")[2]
        test, _, ids = case.get("name", "").removesuffix("]").partition("[")
        *parameter, model = sorted(ids.split("-"), key=lambda part: part in (*OURS, *TIMM))
        rows.setdefault((file, test, "-".join(parameter)), {})[model] = case
    return rows


def table(rows: dict[tuple[str, str, str], dict[str, ElementTree.Element]]) -> list[str]:
    """A line per row, and below them why something fails."""
    names = [*(f"`{name}`" for name in OURS), *(f"timm's `{name}`" for name in TIMM)]
    text = [f"| Tool | | {' | '.join(names)} |", "|---|---|" + ":-:|" * len(names)]
    reasons: list[str] = []
    for (file, test, parameter), cases in sorted(rows.items()):
        what = " ".join([test.removeprefix("test_").replace("_", " "), parameter]).strip()
        cells = []
        for name in (*OURS, *TIMM):
            skipped = cases[name].find("skipped")
            if skipped is None:
                cells.append("works")
            elif skipped.get("type") == "pytest.xfail":
                message = skipped.get("message", "").replace("|", "\\|")
                if message not in reasons:
                    reasons.append(message)
                cells.append(f"fails ({reasons.index(message) + 1})")
            else:
                cells.append("–")
        text.append(f"| {tool(file)} {version(tool(file))} | {what} | {' | '.join(cells)} |")
    return [*text, "", *(f"{number}. `{reason}`" for number, reason in enumerate(reasons, 1))]


def tool(file: str) -> str:
    """The tool that a file is about: its name on PyPI."""
    return file.removeprefix("test_").replace("_", "-")


def lines(path: Path, rows: dict[tuple[str, str, str], dict[str, ElementTree.Element]]) -> str:
    """The code of a file; what is in the functions of its tests stands by itself."""
    source, parts = path.read_text(encoding="utf-8"), []
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        if isinstance(node, ast.Expr) or text == "import pytest":
            continue
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            body = "\n".join(source.splitlines()[node.body[1].lineno - 1 : node.end_lineno])  # without its docstring
            values = [parameter for file, test, parameter in rows if (file, test) == (path.stem, node.name)]
            names = [argument.arg for argument in node.args.args if argument.arg not in ("name", "model", "tmp_path")]
            comment = "".join(f"\n# {name} is one of {', '.join(values)}." for name in names)
            text = f"# {ast.get_docstring(node)}{comment}\n{textwrap.dedent(body)}"
        separate = isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If))
        parts.append(f"\n{text}" if separate else text)
    return "\n".join(parts).strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
