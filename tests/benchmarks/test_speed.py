"""Speed in PyTorch: rows are complete, and they say what was timed. No speed is judged."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from bench_models import V1, V2, V3

from benchmarks import _device, speed
from benchmarks._apart import Times
from benchmarks._peers import OPTIMIZED, OURS, SCALE, TIMM, TRANSFORMERS, sources
from benchmarks._results import file_name, read
from benchmarks._steps import TrainingStep

SMALL = {"device": "cpu", "size": 64, "rounds": 3, "seconds": 0}
LAYOUTS = ("nchw", "channels_last")


@pytest.fixture
def timed(monkeypatch):
    """Calls that are made and run once in this process, and take a given time: ours 1, 2 and 4 ms, the others 3."""
    keys = []

    def interleave_apart(executors, makers, *, rounds, seconds, device):
        keys.append(list(makers))
        assert all(key in executors for key in makers)
        outputs = {key: make()().float().numpy() for key, make in makers.items()}
        samples = {key: [0.001, 0.004, 0.002] if key[0].startswith("ours") else [0.003] * 3 for key in makers}
        return Times(samples, outputs, {})

    monkeypatch.setattr(speed, "interleave_apart", interleave_apart)
    monkeypatch.setattr(speed, "peak_apart", lambda executor, device: 3 * 2**20)
    return keys


def executors(name):
    return dict.fromkeys(itertools.product(sources(name), LAYOUTS))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_implementations_are_timed_in_both_layouts(timed, dtype):
    pytest.importorskip("transformers")
    rows = speed.measure(V2, speed.Setting("inference", dtype, "eager", 2), executors(V2), **SMALL)
    expected = list(itertools.product((OURS, OPTIMIZED, TIMM, TRANSFORMERS), LAYOUTS))
    assert timed == [expected]
    assert [(row["source"], row["layout"]) for row in rows] == expected
    for row in rows:
        times = ["2", "1.5", "3"] if row["source"].startswith("ours") else ["3", "3", "3"]
        assert [row[name] for name in ("ms", "ms_q1", "ms_q3")] == times
        assert (row["network"], row["dtype"], row["batch"], row["size"], row["peak_mib"]) == (V2, dtype, 2, 64, "")


def test_training_has_a_peak_and_no_optimized_form(timed):
    rows = speed.measure(V3, speed.Setting("training", "bf16", "eager", 2), executors(V3), **SMALL)
    assert timed == [list(itertools.product([OURS], LAYOUTS))]
    assert [row["peak_mib"] for row in rows] == ["3.0"] * 2


def test_steps_are_what_the_setting_says():
    """In its process, a step has the type, the layout and the batch of the setting."""
    training = speed.make_step(
        V3, OURS, "channels_last", speed.Setting("training", "bf16", "eager", 2), "cpu", 64, torch.get_num_threads()
    )
    assert isinstance(training, TrainingStep)
    assert training.network.training
    assert training.dtype == "bf16"
    assert training.images.shape == (2, 3, 64, 64)
    assert training.images.is_contiguous(memory_format=torch.channels_last)
    outputs = {}
    for dtype in ("fp32", "bf16"):
        step = speed.make_step(
            V3, OPTIMIZED, "nchw", speed.Setting("inference", dtype, "eager", 2), "cpu", 64, torch.get_num_threads()
        )
        outputs[dtype] = step()
        assert outputs[dtype].shape == (2, 1000)
        assert outputs[dtype].dtype == torch.float32  # the optimized copy in bfloat16 gives float32, without autocast
    difference = (outputs["bf16"] - outputs["fp32"]).abs().max() / outputs["fp32"].std()
    assert 1e-4 < difference < 0.2


def test_networks_that_differ_are_not_compared(timed, monkeypatch):
    build = speed.build_source

    def other(name, source, **options):
        network = build(name, source, **options)
        if source == TIMM:
            torch.nn.init.normal_(network.stem.conv.weight)
        return network

    monkeypatch.setattr(speed, "build_source", other)
    with pytest.raises(RuntimeError, match="not the same network"):
        speed.measure(V2, speed.Setting("inference", "fp32", "eager", 1), executors(V2), **SMALL)


def test_what_cannot_be_made_has_a_note(monkeypatch):
    monkeypatch.setattr(
        speed, "interleave_apart", lambda executors, makers, **_: Times({}, {}, dict.fromkeys(makers, "no memory"))
    )
    rows = speed.measure(V3, speed.Setting("training", "fp32", "eager", 1), executors(V3), **SMALL)
    assert [(row["ms"], row["peak_mib"], row["note"]) for row in rows] == [("", "", "no memory")] * 2


@pytest.mark.long
def test_each_implementation_has_a_process(command, tmp_path):
    small = ("--img-size", 64, "--rounds", 1, "--seconds", 0, "--batch-size", 2, "--out", tmp_path, "--device", "cpu")
    result = command(speed.main, "--network", V1, "--network", SCALE[0], *small)
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / file_name("speed", "cpu"))
    assert all(float(row["ms"]) > 0 and row["note"] == "" for row in rows)
    assert {(row["task"], row["mode"], row["dtype"]) for row in rows if row["network"] == V1} == {
        (setting.task, setting.mode, setting.dtype) for setting in speed.SETTINGS["cpu"]
    }
    assert {(row["source"], row["task"]) for row in rows if row["network"] == SCALE[0]} == {(TIMM, "inference")}
    assert all(5 < float(row["peak_mib"]) < 500 for row in rows if row["task"] == "training")


def test_rows_are_written_after_every_setting(command, tmp_path, monkeypatch):
    """A row that is measured again replaces its own."""
    measured = []

    def measure(name, setting, executors, **_):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append((name, setting.task, setting.dtype, setting.batch))
        columns = {column: getattr(setting, column) for column in ("task", "dtype", "mode", "batch")}
        return [{"network": name, "source": OURS, "layout": "nchw", "size": 256, "ms": len(measured)} | columns]

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "processes", lambda keys: nullcontext(dict.fromkeys(keys)))
    options = ("--network", V3, "--only", "training", "--device", "cpu", "--out", tmp_path)
    assert command(speed.main, *options, "--batch-size", 3).exit_code == 0
    path = tmp_path / file_name("speed", "cpu")
    assert measured == [(V3, "training", "fp32", 3), (V3, "training", "bf16", 3)]
    assert [row["ms"] for row in read(path)] == ["1", "2"]
    assert command(speed.main, *options, "--batch-size", 3).exit_code != 0  # cut
    assert [row["ms"] for row in read(path)] == ["3", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "sleeping"), "expected the start of inference, fp32; inference, bf16; training"),
        (("--network", "mobilevitv9"), "got mobilevitv9"),
        (("--device", "tpu"), "expected the device cpu or cuda, got 'tpu'"),
    ],
)
def test_speed_refuses(command, arguments, message):
    result = command(speed.main, "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_an_absent_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="found none: measure with --device cpu"):
        _device.prepare("cuda", 1)


def test_settings_are_those_of_the_plan():
    """Aims, as literal facts."""
    assert {
        (str(setting), setting.batch): dict(setting.aims)
        for setting in speed.SETTINGS["cpu"]
        if setting.dtype == "fp32"
    } == {
        ("inference, fp32", 1): {"timm": 1.15, "transformers": 1.15},
        ("inference, fp32", 16): {"timm": 1.35, "transformers": 1.5},
        ("training, fp32", 16): {"timm": 1.1},
        ("inference, fp32, compiled", 1): {"timm": 1.0},
        ("inference, fp32, compiled", 16): {"timm": 1.0},
    }
    assert np.mean([setting.batch for setting in speed.SETTINGS["cuda"]]) == 256
