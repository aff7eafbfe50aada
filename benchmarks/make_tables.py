"""Write the generated tables of the documents: ``python -m benchmarks.make_tables``; ``--check`` only compares.

``TABLES`` says which page has which table. It stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml

from benchmarks import exports
from benchmarks._peers import OPTIMIZED, OURS, TIMM, TRANSFORMERS, timm_name
from benchmarks._results import SETS, newest, read
from benchmarks.complexity import count
from benchmarks.speed import MEMORY, SETTINGS
from timm_mobilevit._files import replacing
from timm_mobilevit.export.formats import FORMATS
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.pretrained import WEIGHTS, Weights

ROOT = Path(__file__).parents[1]
Row = Mapping[str, str]


def architectures() -> str:
    """Return the table of architectures, a row for those that differ in size alone."""
    lines = [
        "| `timm.create_model(…)` | params (M) | MACs (M) | best published top-1 (%) |",
        "|---|---:|---:|---:|",
    ]
    families: dict[tuple[str, bool], list[str]] = {}  # by generation, and whether sizes are letters
    for name in VARIANTS:
        generation, size = name.split("_", 1)
        families.setdefault((generation, size[0].isalpha()), []).append(name)
    for (generation, _), names in families.items():
        sizes = [count(name, 256, 256) for name in names]
        best = [max(row.top1 for tagged, row in WEIGHTS.items() if tagged.partition(".")[0] == name) for name in names]
        cells = (
            ", ".join([f"`{names[0]}`", *(f"`{name.removeprefix(generation)}`" for name in names[1:])]),
            _range([parameters / 1e6 for parameters, _ in sizes], ".2f"),
            _range([macs / 1e6 for _, macs in sizes], ",.0f"),
            _range(best, ".2f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def models() -> str:
    """Return the table of pretrained weights, one row each."""
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


def configs(dataset: str) -> str:
    """Return a table of detectors or segmentors, a row per config for a data set, from the metafiles."""
    folder = ROOT / "mm_configs"
    entries = [
        model
        for metafile in sorted(folder.glob("*/*/metafile.yml"))
        for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]
        if model["Results"][0]["Dataset"] == dataset
    ]
    (metric,) = {name for entry in entries for name in entry["Results"][0]["Metrics"]}
    lines = [f"| config | {metric} | official file |", "|---|---:|---|"]
    for entry in entries:
        origin = entry["Converted From"]
        file = origin.get("Folder") or origin["Weights"].partition("/models/")[2]
        lines.append(
            f"| [{entry['Name']}]({Path(entry['Config']).relative_to(folder.name).as_posix()}) "
            f"| {entry['Results'][0]['Metrics'][metric]} | `{file}` |"
        )
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Return a Markdown table; all columns after the first ``texts`` are numbers."""
    rule = "|" + "---|" * texts + "---:|" * (len(headings) - texts)
    return "\n".join([f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _blocks(bench: str, make: Callable[[list[Row]], str], command: str) -> str:
    """Return a table for each kind of device that was measured, and name those that were not."""
    measured = newest(bench)
    parts = []
    for device, path in measured.items():
        rows = read(path)
        parts += [f"**{SETS.get(device, rows[0]['device'])}**: {_origin(rows, path)}", make(rows)]
    missing = [title for device, title in SETS.items() if device not in measured]
    return "\n\n".join([*parts, f"Not measured: {'; '.join(missing)} (`{command}`)."])


def _origin(rows: Sequence[Row], *paths: Path) -> str:
    """Say where and with what rows were measured, and in which files they are."""
    row = rows[0]
    threads = f"{row['threads']} thread{'s' * (row['threads'] != '1')}"
    versions = " and ".join(sorted({row["torch"] for row in rows}))
    return (
        f"{row['device']}, {threads}, torch {versions}, timm {row['timm']}, {row['date']}, "
        f"{' and '.join(f'[results](../benchmarks/results/{path.name})' for path in paths)}."
    )


def speed() -> str:
    """Return the tables of PyTorch: milliseconds per step of ours and the peers', and the ratios with their aims."""
    return _blocks("speed", _speed, "python -m benchmarks.speed")


def _speed(rows: list[Row]) -> str:
    device = "cpu" if rows[0]["instructions"] else "cuda"
    headings = ["network", "step", "batch", OURS, OPTIMIZED, TIMM, TRANSFORMERS]
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for setting in SETTINGS[device]:
            found = [
                row
                for row in rows
                if row["network"] == network
                and all(row[name] == str(getattr(setting, name)) for name in ("task", "dtype", "mode", "batch"))
            ]
            figures = [(f"{setting}", "ms", setting.aims)]
            if setting.task == "training":
                figures.append(("its peak memory, MiB", "peak_mib", {TIMM: MEMORY[device]}))
            for title, column, aims in figures if found else ():
                best: dict[str, float] = {}
                for row in found:  # of each the better layout; it need not be the same
                    if row[column]:
                        best[row["source"]] = min(float(row[column]), best.get(row["source"], math.inf))
                cells = [f"{best[source]:.4g}" if source in best else "" for source in headings[3:]]
                ratios = [_ratio(best, peer, aims) for peer in (TIMM, TRANSFORMERS)]
                lines.append((f"`{network}`", title, str(setting.batch), *cells, *ratios))
    return _table([*headings, "timm / ours (aim)", "transformers / ours (aim)"], lines, 2)


def _ratio(best: Mapping[str, float], peer: str, aims: Mapping[str, float]) -> str:
    ours = best.get(OPTIMIZED, best.get(OURS))
    if ours is None or peer not in best:
        return ""
    ratio, aim = best[peer] / ours, aims.get(peer)
    if aim is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} ({aim:g}{', missed' if ratio < aim else ''})"


def gpu() -> str:
    """Return what was checked and timed on a GPU beside the speed."""
    found = newest("gpu")
    if not found:
        return "On a GPU: not measured, `make gpu`."
    headings = ["", "network", "what", "figure", "at most", "passed", "timm / ours"]
    parts = []
    for path in found.values():
        rows = read(path)
        cells = [
            (
                row["step"],
                f"`{row['network']}`",
                row["what"],
                f"{row['value']} {row['unit']}" if row["value"] else row["note"],
                row["most"],
                row["passed"],
                row["timm_over_ours"],
            )
            for row in rows
        ]
        parts += [_table(headings, cells, 3), _origin(rows, path)]
    return "\n\n".join(parts)


def ablation() -> str:
    """Return what each optimization is worth: how many times as long a network takes without it."""
    return _blocks("ablation", _ablation, "python -m benchmarks.ablation")


def _ablation(rows: list[Row]) -> str:
    networks = list(dict.fromkeys(row["network"] for row in rows))
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    places = ("optimization", "mode", "batch")
    ratios = {(*(row[name] for name in places), row["network"], row["threads"]): float(row["ratio"]) for row in rows}
    lines = [
        (*place, *(" / ".join(f"{ratios[(*place, name, count)]:.2f}" for count in threads) for name in networks))
        for place in dict.fromkeys(tuple(row[name] for name in places) for row in rows)
    ]
    headings = [f"`{name}`, {' / '.join(threads)} threads" for name in networks]
    return _table(["optimization", "mode", "batch", *headings], lines, 2)


# Names of formats and forms of benchmarks.exports in the tables.
_TITLES = {exports.TORCH: "PyTorch"} | {name: form.title for name, form in FORMATS.items()}
# The column of the table of accuracies that a form stands in.
_COLUMNS = {"plain": "fp32", "fp32": "fp32", "optimized, bf16": "fp16, bf16", "fp16": "fp16, bf16"}


def _ms(row: Row | None) -> str:
    return f"{float(row['ms']):.1f} / {float(row['ms_all_threads']):.1f}" if row and row["ms"] else ""


def latency() -> str:
    """Return the tables of milliseconds per image of every model."""
    return _blocks("latency", _latency, "python -m benchmarks.exports --network '*' --format torch --format onnx")


def _latency(rows: list[Row]) -> str:
    columns = {(exports.TORCH, form): form for form in ("plain", "optimized", "optimized, bf16")}
    columns |= {("onnx", "fp32"): "ONNX Runtime", ("onnx", "int8"): "ONNX Runtime, int8"}
    found = {(row["model"], row["format"], row["form"]): row for row in rows if row["source"] == OURS}
    shown = {key: title for key, title in columns.items() if any(name[1:] == key for name in found)}
    lines = [
        (f"`{name}`", *(_ms(found.get((name, *key))) for key in shown))
        for name in VARIANTS
        if any(key[0] == name for key in found)
    ]
    return _table(["model", *shown.values()], lines, 1)


def formats() -> str:
    """Return the tables of sizes and milliseconds per image in every format."""
    return _blocks("latency", _formats, "python -m benchmarks.exports")


def _formats(rows: list[Row]) -> str:
    found = {(row["format"], row["form"], row["model"], row["source"]): row for row in rows}
    subjects = [(name, source) for name in exports.NETWORKS for source in (OURS, TIMM)]
    subjects = [subject for subject in subjects if any(key[2:] == subject for key in found)]
    lines = []
    for to in (exports.TORCH, *FORMATS):
        for form in (*exports.TORCH_FORMS, *exports.FORMS):
            cells = [_ms(found.get((to, form, *subject))) for subject in subjects]
            if any(cells):
                first = found.get((to, form, *subjects[0]))
                size = f"{float(first['mib']):.1f}" if first and first["mib"] else ""
                lines.append((f"{_TITLES[to]}, {form}", size, *cells))
    headings = [f"`{name}`" if source == OURS else f"timm's `{timm_name(name)}`" for name, source in subjects]
    return _table(["runtime", f"MiB, `{subjects[0][0]}`", *headings], lines, 1)


def which() -> str:
    """Return the fastest runtime for one image on one thread, for each instruction set."""
    lines = []
    for device, path in newest("latency").items():
        rows = [row for row in read(path) if row["source"] == OURS and row["ms"] and row["model"] in exports.NETWORKS]
        for name in exports.NETWORKS:
            cells = []
            for inexact in (False, True):
                times = [
                    (float(row["ms"]), f"{_TITLES[row['format']]}, {row['form']}")
                    for row in rows
                    if row["model"] == name and ("16" in row["form"] or "int8" in row["form"]) == inexact
                ]
                cells.append(f"{min(times)[1]}: {min(times)[0]:.1f} ms" if times else "not measured")
            lines.append((SETS[device], f"`{name}`", *cells))
    return _table(["processor", "network", "fastest in float32", "fastest in 16 or 8 bits"], lines, 4)


def matrix() -> str:
    """Return the table of what every model can be exported to: a row per form, a column per generation."""
    times = newest("latency")
    for device, path in reversed(newest("exports").items()):  # the outputs are the same on every processor
        rows = [row for row in read(path) if not row["metric"]]
        if rows:
            paths = [path, *([times[device]] if device in times else [])]  # eight bits are among the times
            rows += [row for other in paths[1:] for row in read(other) if row["source"] == OURS]
            break
    else:
        return "Not measured: `python -m benchmarks.exports --network '*' --rounds 0`."
    kinds = sorted({name.partition("_")[0] for name in VARIANTS})
    found = {(row["format"], row["form"], row["model"]): row["result"] for row in rows}
    lines, reasons = [], []
    for to in FORMATS:
        for form in exports.FORMS:
            cells = []
            for kind in kinds:
                results = {
                    name: found[to, form, name]
                    for name in VARIANTS
                    if name.startswith(kind) and (to, form, name) in found
                }
                failed = [f"`{name}`: {text}" for name, text in results.items() if text not in ("yes", "not verified")]
                numbers = ", ".join(f"({len(reasons) + number})" for number in range(1, len(failed) + 1))
                reasons += failed
                good = {text for text in results.values() if text in ("yes", "not verified")}
                written = len(results) - len(failed)
                cell = f"{written} of {len(results)}{', not verified' * ('not verified' in good)} {numbers}".strip()
                cells.append(cell if results else "not tried")
            if any(found.get((to, form, name)) for name in VARIANTS):
                lines.append((f"{_TITLES[to]}, {form}", *cells))
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    table = _table(["format", *(kind.replace("mobilevit", "MobileViT") for kind in kinds)], lines, 1)
    return "\n\n".join([table, *notes, _origin(rows, *paths)])


def accuracy() -> str:
    """Return the accuracy of trained models in PyTorch and in every format."""
    return _blocks("exports", _accuracy, "python -m benchmarks.exports --trained --rounds 0")


def _accuracy(rows: list[Row]) -> str:
    rows = [row for row in rows if row["metric"]]
    column = {row["form"]: _COLUMNS.get(row["form"], row["form"]) for row in rows}
    if not rows:
        return "Not measured."
    forms = [form for form in dict.fromkeys((*_COLUMNS.values(), *exports.FORMS)) if form in column.values()]
    found = {(row["model"], row["metric"], row["format"], column[row["form"]]): row for row in rows}
    lines = []
    for place in dict.fromkeys(key[:3] for key in found):
        model, metric, to = place
        cells = ((row["accuracy"] or row["result"]) if (row := found.get((*place, form))) else "–" for form in forms)
        lines.append((f"`{model}`" if "," not in model else model, metric, _TITLES[to], *cells))
    return _table(["model", "metric (%)", "runtime", *forms], lines, 3)


# The tables of each page. Their links are relative to it.
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"architectures": architectures},
    "docs/models.md": {"models": models},
    "docs/benchmarks.md": {
        "speed": speed,
        "gpu": gpu,
        "ablation": ablation,
        "latency": latency,
    },
    "docs/deployment.md": {"which": which, "matrix": matrix, "accuracy": accuracy, "formats": formats},
    "mm_configs/README.md": {
        "coco": partial(configs, "COCO 2017"),
        "ade20k": partial(configs, "ADE20K"),
        "voc": partial(configs, "PASCAL VOC 2012"),
    },
}


def update(page: str, text: str) -> str:
    """Replace the tables in the text of a page by new ones.

    Raises:
        ValueError: If the place of a table is missing.
    """
    for name, make in TABLES[page].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        text, found = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{make()}\n{end}", text, flags=re.DOTALL)  # noqa: B023
        if not found:
            raise ValueError(f"{page}: no place for the table {name!r}: expected {begin} and {end}")
    return text


def main() -> None:
    """Bring the pages up to date, or say which are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")
    check = parser.parse_args().check
    old = {page: (ROOT / page).read_text(encoding="utf-8") for page in TABLES}
    outdated = {page: new for page, text in old.items() if (new := update(page, text)) != text}
    if check:
        if outdated:
            sys.exit(f"out of date: {', '.join(outdated)}: run python -m benchmarks.make_tables")
        return
    for page, text in outdated.items():
        with replacing(ROOT / page) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
