"""Write the generated tables of the README: ``python -m benchmarks.make_tables``; ``--check`` only compares.

A table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import yaml

from benchmarks.complexity import count
from timm_mobilevit.pretrained import WEIGHTS, Weights

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def models() -> str:
    """The table of pretrained weights, one row each."""
    lines = [
        "| `timm.create_model(…)` | input | params (M) | MACs (M) | top-1 (%) | weights from |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, row in WEIGHTS.items():
        parameters, macs = count(name.partition(".")[0], row.size, row.size)
        lines.append(
            f"| `{name}` | {row.size}² | {parameters / 1e6:.2f} | {macs / 1e6:,.0f} | {row.top1:.2f} | {_source(row)} |"
        )
    return "\n".join(lines)


def _source(row: Weights) -> str:
    if row.hf_hub_id:
        return f"[{row.hf_hub_id}](https://huggingface.co/{row.hf_hub_id})"
    if row.folder:
        return f"[release v1.0.0]({row.url}), `{row.folder}`"
    return f"[Apple]({row.url})"


def dense() -> str:
    """The table of detectors and segmentors, a row each, from the metafiles of the configs."""
    lines = ["| config | data | published | official checkpoint |", "|---|---|---:|---|"]
    for metafile in sorted((ROOT / "mm_configs").glob("*/*/metafile.yml")):
        for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]:
            (result,) = model["Results"]
            ((metric, value),) = result["Metrics"].items()
            origin = model["Converted From"]
            weights = origin.get("Folder") or origin["Weights"].rpartition("/")[2]
            lines.append(
                f"| [`{model['Name'].partition('_4xb')[0].partition('_1xb')[0]}`]({model['Config']}) "
                f"| {result['Dataset']} | {metric} {value} | [{weights}]({origin['Weights']}) |"
            )
    return "\n".join(lines)


TABLES = {"models": models, "dense": dense}


def update(text: str) -> str:
    """Replace the tables in a text by fresh ones.

    Raises:
        ValueError: If the place of a table is missing.
    """
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        text, found = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{make()}\n{end}", text, flags=re.DOTALL)  # noqa: B023
        if not found:
            raise ValueError(f"no place for the table {name!r}: expected {begin} and {end}")
    return text


def main() -> None:
    """Bring the README up to date, or say that it is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the README is out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = update(old)
    if check:
        if new != old:
            sys.exit("README.md is out of date: run python -m benchmarks.make_tables")
        return
    temporary = README.with_suffix(".tmp")
    temporary.write_text(new, encoding="utf-8")
    os.replace(temporary, README)


if __name__ == "__main__":
    main()
