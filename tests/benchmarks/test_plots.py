"""Tables and figures of results, as the benchmarks write them."""

import shutil

import pytest
from bench_models import RATES, V1, V2

from benchmarks import latency, make_tables, plots, targets, throughput
from benchmarks._peers import TIMM
from benchmarks._results import file_name, newest, read, write


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results, as the benchmarks write them."""
    results = tmp_path_factory.mktemp("results")
    rows = latency.measure(
        V1, runtimes=("eager", "optimized"), with_timm=False, size=64, threads=(1, 2), rounds=1, seconds=0
    )
    write(rows + [row | {"runtime": "onnxruntime"} for row in rows], results / file_name("latency", "cpu", ["fp32"]))
    write(rows, results / file_name("latency-runtimes", "cpu", ["fp32"]))
    rows = []
    for batch, size in ((2, 64), (2, 128), (4, 64)):
        setting = throughput.Setting(batch=batch, size=size, networks=(V2,))
        measured = throughput.measure(setting, device="cpu", rates=RATES, rounds=1, seconds=0)
        rows += [row | {"size": 256} if size == 64 else row for row in measured]
    write(rows, results / file_name("throughput", "cpu", ["fp32"]))
    targets_rows = [
        targets._row(target, targets.Conditions("cpu"), targets.Comparison(2.0, 3.0, "ms", [1.5, 1.4, 1.6], ""), "")
        for target in targets.TARGETS
        if target.device == "cpu"
    ]
    write([row | targets.origin("cpu") for row in targets_rows], results / file_name("targets", "cpu", ["fp32"]))
    return results


@pytest.fixture
def measured(results, tmp_path, monkeypatch):
    """A copy of the results, which the tables and figures are made from."""
    folder = shutil.copytree(results, tmp_path / "results")
    for module in (make_tables, plots):
        monkeypatch.setattr(module, "newest", lambda bench, device, _=None: newest(bench, device, folder))
    return folder


def test_tables_of_measurements(measured):
    table = make_tables.targets()
    assert table.count("1.500 (1.450–1.550)") == sum(target.device == "cpu" for target in targets.TARGETS)
    assert all("not measured" in line for line in table.splitlines() if "| 256 |" in line)
    assert f"| `{V1}` |" in make_tables.latency()
    assert "eager, 1 thread | " in make_tables.latency()
    assert "optimized, 2 threads" in make_tables.latency()
    assert make_tables.runtimes().startswith("| network | from | on | eager | optimized |")
    assert f"| `{V1}` | ours | 2 threads |" in make_tables.runtimes()
    assert f"| inference | `{V2}` | {TIMM} | 4 |" in make_tables.throughput()
    assert "--preset cuda" in make_tables.throughput()
    assert "(accuracy_latency.svg)" in make_tables.figures()
    assert "throughput_gpu" not in make_tables.figures()


def test_figures_say_what_they_were_drawn_from(measured, tmp_path):
    pytest.importorskip("matplotlib")
    docs = tmp_path / "docs"
    drawn = [figure for figure in plots.FIGURES if newest(figure.bench, figure.device, measured)]
    assert len(plots.outdated(docs=docs)) == 2 * len(drawn) == 4
    for figure in drawn:
        plots.write(figure, newest(figure.bench, figure.device, measured), docs)
    assert plots.outdated(docs=docs) == []
    first = (docs / "accuracy_latency.svg").read_bytes()
    assert V1.partition("_")[2].encode() in first
    plots.write(drawn[0], newest(drawn[0].bench, drawn[0].device, measured), docs)
    assert (docs / "accuracy_latency.svg").read_bytes() == first

    path = newest("latency", "cpu", measured)
    write(read(path)[:-1], path)
    assert plots.outdated(docs=docs) == ["accuracy_latency.svg", "accuracy_latency.png"]
    path.unlink()
    assert plots.outdated(docs=docs) == ["accuracy_latency.svg", "accuracy_latency.png"]


def test_committed_figures_are_up_to_date():
    assert plots.outdated() == []
