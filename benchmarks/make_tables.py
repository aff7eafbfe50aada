"""Write the generated tables of the documents: ``python -m benchmarks.make_tables``; ``--check`` only compares.

``TABLES`` says which page has which table. It stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import yaml

from benchmarks import exports, plots
from benchmarks._results import newest, read
from benchmarks.complexity import count
from benchmarks.targets import INT8, TARGETS, Target
from benchmarks.throughput import PRESETS, bench_name
from timm_mobilevit._files import replacing
from timm_mobilevit.export.formats import FORMATS
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.pretrained import WEIGHTS, Weights

ROOT = Path(__file__).parents[1]
Row = Mapping[str, str]


def architectures() -> str:
    """Return the table of architectures, one row each, with the best of their published accuracies."""
    lines = [
        "| `timm.create_model(…)` | params (M) | MACs (M) | best top-1 (%) | tags |",
        "|---|---:|---:|---:|---|",
    ]
    for name in VARIANTS:
        parameters, macs = count(name, 256, 256)
        rows = {tagged.partition(".")[2]: row for tagged, row in WEIGHTS.items() if tagged.partition(".")[0] == name}
        tags = ", ".join(f"`{tag}`" for tag in rows)
        best = max(row.top1 for row in rows.values())
        lines.append(f"| `{name}` | {parameters / 1e6:.2f} | {macs / 1e6:,.0f} | {best:.2f} | {tags} |")
    return "\n".join(lines)


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


def targets() -> str:
    """Return the table of aims for speed, a row each, from the newest measurements on each kind of device."""
    lines = [
        "| what | network | batch | peer | ours | peer's | ratio (quartiles) | aim | reached |",
        "|---|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for device, conditions in _DEVICES.items():
        path = newest("targets", device)
        rows = read(path) if path else []
        lines.append(f"| **{conditions}**{f' ({_where(rows[0])})' if rows else ''} | | | | | | | | |")
        for target in TARGETS:
            if target.device == device:
                lines.append(_target(target, rows))
    return "\n".join(lines)


_DEVICES = {"cpu": "CPU, one thread, fp32", "cuda": "one GPU, bf16 autocast, channels_last"}
_NOT_MEASURED = "not measured"


def _where(row: dict[str, str]) -> str:
    """Return where and with what a row was measured, in words."""
    return f"{row['device']}, torch {row['torch']}, timm {row['timm']}, {row['date']}"


def _target(target: Target, rows: list[dict[str, str]]) -> str:
    aim = f"{target.ratio:.2f}"
    key = (target.what, target.network, str(target.batch), target.peer)
    row = next((row for row in rows if (row["what"], row["network"], row["batch"], row["peer"]) == key), None)
    what = target.what + (_instructions(row) if target.what == INT8 and row else "")
    begin = f"| {what} | `{target.network}` | {target.batch} | {target.peer} |"
    if row is None or not row["ratio"]:
        return f"{begin} {_NOT_MEASURED} | {_NOT_MEASURED} | {_NOT_MEASURED} | {aim} | {_NOT_MEASURED} |"
    spread = f" ({row['ratio_q1']}–{row['ratio_q3']})" if row["rounds"] != "1" else ""
    figures = (f"{row[side]} {row['unit']}".strip() for side in ("ours", "peer_figure"))
    return f"{begin} {' | '.join(figures)} | {row['ratio']}{spread} | {aim} | {row['reached']} |"


def _instructions(row: Row) -> str:
    """Return what an int8 figure depends on; files of before 2026-11-25 do not say."""
    return f" on {row.get('instructions') or 'instructions that are not verified'}"


def gpu() -> str:
    """Return what was checked and timed on a GPU beside the targets."""
    path = newest("gpu", "cuda")
    if path is None:
        return f"On a GPU: {_NOT_MEASURED}, `make gpu`."
    rows = read(path)
    lines = ["| | network | what | figure | at most | passed | faster than timm |", "|---|---|---|---:|---:|---|---:|"]
    for row in rows:
        figure = f"{row['value']} {row['unit']}" if row["value"] else row["note"] or _NOT_MEASURED
        lines.append(
            f"| {row['step']} | `{row['network']}` | {row['what']} | {figure} | {row['most']} | {row['passed']} "
            f"| {_times(row['timm_over_ours'])} |"
        )
    return "\n".join((*lines, "", _origin(rows[0], path)))


def ablation() -> str:
    """Return what each optimisation is worth: how many times longer a network takes without it."""
    path = newest("ablation", "cpu")
    if path is None:
        return f"{_NOT_MEASURED}: `python -m benchmarks.ablation`.".capitalize()
    rows = read(path)
    networks = list(dict.fromkeys(row["network"] for row in rows))
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    columns = [f"`{name}`, {' / '.join(threads)} threads" for name in networks]
    lines = [f"| optimisation | mode | batch | {' | '.join(columns)} |", "|---|---|---:|" + "---:|" * len(columns)]
    for key in dict.fromkeys((row["optimisation"], row["mode"], row["batch"]) for row in rows):
        found = {
            (row["network"], row["threads"]): f"{float(row['ratio']):.2f}"
            for row in rows
            if (row["optimisation"], row["mode"], row["batch"]) == key
        }
        cells = (" / ".join(found.get((name, count), "–") for count in threads) for name in networks)
        lines.append(f"| {' | '.join((*key, *cells))} |")
    return "\n".join((*lines, "", _origin(rows[0], path)))


def latency() -> str:
    """Return the table of milliseconds per image of every model, from the newest measurements."""
    return _milliseconds(
        "latency",
        "models",
        ["model"],
        lambda row: (f"`{row['network']}`",),
        lambda row: f"{row['runtime']}, {_threads(row)}",
    )


def runtimes() -> str:
    """Return the table of milliseconds per image in every runtime, from the newest measurements."""
    return _milliseconds(
        "latency-runtimes",
        "runtimes",
        ["network", "from", "on"],
        lambda row: (f"`{row['network']}`", row["source"], _threads(row)),
        lambda row: row["runtime"] + (_instructions(row) if "int8" in row["runtime"] else ""),
    )


def _milliseconds(
    bench: str, preset: str, titles: list[str], place: Callable[[Row], tuple[str, ...]], column: Callable[[Row], str]
) -> str:
    path = newest(bench, "cpu")
    if path is None:
        return f"Not measured: `python -m benchmarks.latency --preset {preset}`."
    rows = read(path)
    columns = list(dict.fromkeys(map(column, rows)))
    times: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        times.setdefault(place(row), {})[column(row)] = row["ms"]
    lines = [f"| {' | '.join(titles + columns)} |", "|---" * len(titles) + "|" + "---:|" * len(columns)]
    for cells, found in times.items():
        lines.append(f"| {' | '.join([*cells, *(found.get(name) or '' for name in columns)])} |")
    return "\n".join((*lines, "", _origin(rows[0], path)))


def _threads(row: Row) -> str:
    return f"{row['threads']} thread{'s' if row['threads'] != '1' else ''}"


def throughput() -> str:
    """Write the tables of images per second at 256² and the largest batch, from the newest measurements."""
    parts = []
    for preset in PRESETS:
        device, _, kind = preset.partition("-")
        path = newest(bench_name(preset), device)
        if path is None:
            where = f"On {_DEVICES[device]}{f', {kind}' if kind else ''}"
            parts.append(f"{where}: {_NOT_MEASURED}, `python -m benchmarks.throughput --preset {preset}`.")
        else:
            parts.append(_throughput(path, device))
    return "\n\n".join(parts)


def _throughput(path: Path, device: str) -> str:
    rows = [row for row in read(path) if row["size"] == "256" and row["layout"] == "channels_last"]
    rows = [row for row in rows if row["dtype"] == rows[0]["dtype"]]
    lines = [
        "| | network | from | batch | images/s (quartiles) | ours is faster | peak MiB | of the roofline |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        batch = str(max(int(row["batch"]) for row in of_task))
        lines += [
            f"| {task} | `{row['network']}` | {row['source']} | {batch} "
            f"| {row['images_per_s']} ({row['images_per_s_q1']}–{row['images_per_s_q3']}) "
            f"| {_times(row['ours_faster'])} | {row['peak_mib']} | {_percent(row['roofline_share'])} |"
            for row in of_task
            if row["batch"] == batch
        ]
    dtype, mode = rows[0]["dtype"], rows[0]["mode"]
    conditions = dtype if dtype == "fp32" else f"{dtype} autocast"
    if device == "cpu":
        conditions += ", one thread" if rows[0]["threads"] == "1" else f", {rows[0]['threads']} threads"
    return "\n".join((*lines, "", f"{conditions}, channels_last, {mode}. {_origin(rows[0], path)}"))


def _times(gain: str) -> str:
    return f"{float(gain):.2f}×" if gain else ""


def _percent(share: str) -> str:
    return f"{float(share):.0%}" if share else ""


def _origin(row: dict[str, str], path: Path) -> str:
    return f"{_where(row)}: [{path.name}](../benchmarks/results/{path.name})."


def figures(page: str = "docs/benchmarks.md") -> str:
    """Return the figures of a page that there are measurements for."""
    drawn = (figure for figure in plots.FIGURES if figure.page == page and newest(figure.bench, figure.device))
    links = (f"![{figure.alt}]({figure.name}.svg)" for figure in drawn)
    return "\n\n".join(links) or "Not drawn: nothing is measured."


def quantization() -> str:
    """Accuracy and latency before and after int8."""
    path = newest("quantization", "cpu")
    if not path:
        return "Not measured: `python -m benchmarks.quantization`."
    lines = [
        "| network | weights | instructions | digits top-1, from fp32 (%) | ms per image, from fp32 "
        "| speed-up (quartiles) |",
        "|---|---|---|---:|---:|---:|",
    ]
    rows = read(path)
    for row in rows:
        begin = f"| `{row['network']}` | {row['weight_type']} | {row['instructions']} |"
        if row["digits_top1_int8"] and row["ratio"]:
            figures = (
                f"{row['digits_top1_fp32']} → {row['digits_top1_int8']} | {row['ms_fp32']} → {row['ms_int8']} "
                f"| {float(row['ratio']):.2f} ({float(row['ratio_q1']):.2f}–{float(row['ratio_q3']):.2f})"
            )
        else:
            figures = "refused | |"
        lines.append(f"{begin} {figures} |")
    return "\n".join((*lines, "", _origin(rows[0], path)))


def exported() -> str:
    """Size and latency of exported files in their runtimes, ours and timm's, with the figure."""
    path = newest("exported", "cpu")
    if not path:
        return "Not measured: `python -m benchmarks.runtimes`."
    rows = read(path)
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    counts = list(dict.fromkeys(row["threads"] for row in rows))
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    headings = ["MiB", *(f"ms, {count} thread{'s' if count != '1' else ''}" for count in counts)]
    lines = [
        f"| network | format | from | {' | '.join(headings)} |",
        f"|---|---|---|{'---:|' * len(headings)}",
    ]
    # By network, format and source: the cells of each heading, by precision.
    table: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = (f"`{row['network']}`", FORMATS[row["format"]].title, row["source"])
        cells = table.setdefault(key, {heading: {} for heading in headings})
        failed = f"no ({notes.index(row['note']) + 1})" if row["note"] else ""
        cells["MiB"][row["precision"]] = f"{float(row['mib']):.1f}" if row["mib"] else "–"
        cells[headings[1 + counts.index(row["threads"])]][row["precision"]] = failed or f"{float(row['ms']):.1f}"
    for key, cells in sorted(table.items()):
        joined = (" / ".join(cell.get(precision, "–") for precision in precisions) for cell in cells.values())
        texts = (text.rstrip(" /–") or "–" for text in joined)
        lines.append(f"| {' | '.join((*key, *texts))} |")
    reasons = [f"({number}) {note}\n" for number, note in enumerate(notes, 1)]
    legend = f"Cells: {' / '.join(precisions)}, as far as there are such files. Medians; the file has the quartiles."
    return "\n".join((figures("docs/deployment.md"), "", *lines, "", legend, "", *reasons, _origin(rows[0], path)))


def digits_exports() -> str:
    """Accuracy of trained models in every format, beside that in PyTorch."""
    path = newest("digits-exports", "cpu")
    if not path:
        return "Not measured: `python -m benchmarks.digits_exports`."
    rows = read(path)
    found = {
        (f"`{row['network']}`", FORMATS[row["format"]].title, row["digits_top1_torch"], row["precision"]): (
            row["digits_top1"] or row["note"]
        )
        for row in rows
    }
    table = _by_precision(("network", "format", "in PyTorch"), found)
    return f"{table}\n\n{_origin(rows[0], path)}"


def mm_exports() -> str:
    """Accuracy of a detector and a segmentor in the runtimes, beside that in PyTorch."""
    path = newest("mm-exports", "cpu")
    if not path:
        return "Not measured: `python -m benchmarks.mm_exports`."
    titles = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"}
    rows = read(path)
    found = {
        (f"`{row['config']}`", row["metric"], titles[row["runtime"]], row["in_torch"], row["precision"]): (
            row["in_runtime"]
        )
        for row in rows
    }
    table = _by_precision(("model", "metric (%)", "runtime", "in PyTorch"), found)
    return f"{table}\n\n{_origin(rows[0], path)}"


def _by_precision(headings: tuple[str, ...], found: dict[tuple[str, ...], str]) -> str:
    """Return a table with a column per precision, the last part of the keys; the part before it is a number too."""
    precisions = list(dict.fromkeys(key[-1] for key in found))
    texts = len(headings) - 1
    lines = [
        f"| {' | '.join((*headings, *precisions))} |",
        f"|{'---|' * texts}{'---:|' * (1 + len(precisions))}",
    ]
    for begin in dict.fromkeys(key[:-1] for key in found):
        cells = (found.get((*begin, precision), "–") for precision in precisions)
        lines.append(f"| {' | '.join((*begin, *cells))} |")
    return "\n".join(lines)


# The tables of each page. Their links are relative to it.
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"architectures": architectures},
    "docs/models.md": {"models": models},
    "docs/benchmarks.md": {
        "figures": figures,
        "targets": targets,
        "gpu": gpu,
        "ablation": ablation,
        "latency": latency,
        "runtimes": runtimes,
        "throughput": throughput,
    },
    "docs/deployment.md": {
        "exports": lambda: exports.markdown(exports.read(exports.CSV)),
        "quantization": quantization,
        "digits": digits_exports,
        "mm": mm_exports,
        "exported": exported,
    },
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
