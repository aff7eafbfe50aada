"""Draw accuracy against latency from measurements: ``python -m benchmarks.plots``; ``--check`` only compares.

The figure is an SVG and a PNG in ``docs/``, and says in its metadata which file it was drawn from. Drawing needs the
extra ``bench``.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from timm_mobilevit._files import replacing
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.pretrained import WEIGHTS

from ._peers import OURS
from ._results import RESULTS, SETS, newest, read

DOCS = Path(__file__).parents[1] / "docs"
FORMATS = ("svg", "png")

NAME = "accuracy_latency"

Rows = Sequence[dict[str, str]]


_FAMILIES = {
    "v1": "MobileViTv1",
    "v2": "MobileViTv2",
    "v3": "MobileViTv3 (S, XS, XXS)",
    "v3_separable": "MobileViTv3 (0.5–1.0)",
}


def published_accuracy() -> dict[str, float]:
    """Return the published top-1 accuracy in percent at 256², of the weights that a name takes without a tag.

    Example:
        >>> published_accuracy()["mobilevitv1_s"]
        78.3
    """
    accuracy: dict[str, float] = {}
    for tagged, weights in WEIGHTS.items():
        if weights.size == 256:
            accuracy.setdefault(tagged.partition(".")[0], weights.top1)
    return accuracy


def _draw(figure: Any, rows: Rows) -> None:
    accuracy = published_accuracy()
    panels = {("torch", "optimized"): "PyTorch, eager, optimized", ("onnx", "fp32"): "ONNX Runtime"}
    axes = figure.subplots(1, len(panels), sharey=True)
    named: dict[Any, list[tuple[float, float, str]]] = {axis: [] for axis in axes}
    for axis, (runtime, title) in zip(axes, panels.items(), strict=True):
        for block, family in _FAMILIES.items():
            points = sorted(
                (float(row["ms"]), accuracy[row["model"]], row["model"])
                for row in rows
                if row["source"] == OURS
                and (row["format"], row["form"]) == runtime
                and row["ms"]
                and VARIANTS[row["model"]].block == block
            )
            axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", markersize=5, label=family)
            named[axis] += points
        axis.set(title=title, xlabel="ms per image, batch 1, one thread", xscale="log", xmargin=0.12)
        _log_ticks(axis.xaxis)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("published ImageNet-1k top-1 (%)")
    axes[-1].legend(loc="lower right", fontsize=8)
    figure.draw_without_rendering()  # lays the axes out: where there is room for labels depends on it
    for axis, points in named.items():
        _label(axis, points)


# Where a label may stand, from its point: its offset in points of type, and its side that faces the point. Best first.
_PLACES = [
    (reach * x, reach * y, ("right", "center", "left")[x + 1], ("top", "center", "bottom")[y + 1])
    for reach in (4, 8, 12)
    for x, y in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
]


def _label(axis: Any, points: Iterable[tuple[float, float, str]]) -> None:
    """Write the size of each model beside its point, where it covers no point and no other label."""
    from matplotlib.transforms import Bbox

    points = sorted(points)
    taken = [Bbox.from_extents(*xy, *xy).padded(5) for xy in axis.transData.transform([point[:2] for point in points])]
    for (x, y, name), own in zip(points, list(taken), strict=True):
        size = name.partition("_")[2].replace("_l2", "-L2").replace("_", ".")
        for dx, dy, ha, va in _PLACES:
            label = axis.annotate(size, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=7, ha=ha, va=va)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken if other is not own):
                break
            label.remove()
        else:
            raise ValueError(f"there is no room for the label of {name}")
        taken.append(box)


def _log_ticks(axis: Any) -> None:
    """Write plain numbers at the ticks of a logarithmic scale."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(ScalarFormatter())


def measurements(results: Path = RESULTS) -> Path | None:
    """Return the file that the figure is drawn from: the one with the most models."""
    found = list(newest("latency", results).values())
    return max(found, key=lambda path: len({row["model"] for row in read(path)})) if found else None


def source_of(path: Path) -> str:
    """Return what the figure says it was drawn from: the file's name and the beginning of its SHA-256."""
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def write(path: Path, docs: Path = DOCS) -> None:
    """Draw the figure from a file of measurements, in all formats.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "timm-mobilevit[bench]"') from error
    from matplotlib.figure import Figure

    rows = read(path)
    # Text stays text, and names inside the file are the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": NAME}):
        figure = Figure(figsize=(10, 5), layout="constrained")
        _draw(figure, rows)
        instructions = SETS["cpu-" + rows[0]["instructions"].replace("_", "-")]
        figure.suptitle(f"{rows[0]['device']} with {instructions}", fontsize=9)
        for suffix in FORMATS:
            metadata = {"Source": source_of(path)} | ({"Date": None} if suffix == "svg" else {})
            with replacing(docs / f"{NAME}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, dpi=120, metadata=metadata)


def drawn_from(path: Path) -> str | None:
    """Return what the file of a figure says it was drawn from; None if there is none or it does not say."""
    if not path.exists():
        return None
    if path.suffix == ".svg":
        found = re.search(r"<dc:source>(.*?)</dc:source>", path.read_text(encoding="utf-8"))
        return found[1] if found else None
    with Image.open(path) as image:
        return image.info.get("Source")


def outdated(results: Path = RESULTS, docs: Path = DOCS) -> list[str]:
    """Return the files of the figure that are missing, or stand for other measurements."""
    path = measurements(results)
    files = (docs / f"{NAME}.{suffix}" for suffix in FORMATS)
    return [file.name for file in files if path is None or drawn_from(file) != source_of(path)]


def main() -> None:
    """Bring the figure up to date, or say that it is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the figure is out of date")
    if parser.parse_args().check:
        if files := outdated():
            sys.exit(f"out of date: {', '.join(files)}: run python -m benchmarks.plots")
        return
    if path := measurements():
        write(path)


if __name__ == "__main__":
    main()
