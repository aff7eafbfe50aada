"""Counted operations: parts add up, the command prints a table."""

import pytest
from bench_models import V1, V2

from benchmarks import complexity


def test_kinds_are_told_apart():
    assert complexity.count_by_kind("mobilevitv1_s")[1] == {
        "convolution": 1092354048,
        "linear": 730842112,
        "attention": 177635328,
    }


def test_complexity_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["complexity", "--img-size", "64", "--model", V1, "--by-kind"])
    complexity.main()
    _, model, *kinds = capsys.readouterr().out.splitlines()
    assert f"{complexity.count(V1, 64, 64)[0]:,}" in model
    assert [line.split()[0] for line in kinds] == ["convolution", "linear", "attention"]
    whole = float(model.split()[-1].replace(",", ""))
    assert sum(float(line.split()[1].replace(",", "")) for line in kinds) == pytest.approx(whole, abs=0.2)
    monkeypatch.setattr("sys.argv", ["complexity", "--img-size", "64", "--model", V2, "--optimized"])
    complexity.main()
    assert f"{complexity.count(V2, 64, 64, optimized=True)[0]:,}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["complexity", "--model", "mobilevit_s"])
    with pytest.raises(SystemExit):
        complexity.main()
    assert "got 'mobilevit_s'" in capsys.readouterr().err
