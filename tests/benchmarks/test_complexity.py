"""Counted operations: parts add up, the command prints a table."""

import pytest
from bench_models import NAMES, V1, V2

from benchmarks import complexity


@pytest.mark.parametrize("name", NAMES)
def test_kinds_add_up(name):
    kinds = complexity.count_by_kind(name, 96, 64)
    total = sum(kind.parameters for kind in kinds.values()), sum(kind.macs for kind in kinds.values())
    assert total == complexity.count(name, 96, 64)
    assert all(kinds[kind].activations for kind in complexity.KINDS)


def test_complexity_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["complexity", "--img-size", "64", "--model", V1, "--by-kind"])
    complexity.main()
    out = capsys.readouterr().out
    assert all(kind in out for kind in complexity.KINDS)
    assert f"{complexity.count(V1, 64, 64)[0]:,}" in out.splitlines()[-1]
    monkeypatch.setattr("sys.argv", ["complexity", "--img-size", "64", "--model", V2, "--optimized"])
    complexity.main()
    assert f"{complexity.count(V2, 64, 64, optimized=True)[0]:,}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["complexity", "--model", "mobilevit_s"])
    with pytest.raises(SystemExit):
        complexity.main()
    assert "got 'mobilevit_s'" in capsys.readouterr().err
