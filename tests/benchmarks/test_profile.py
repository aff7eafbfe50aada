"""The profile: kinds of operators add up to the whole."""

import pytest
from bench_models import V2

from benchmarks import profile


def test_profile_adds_up(command):
    options = ("--network", V2, "--size", 64, "--passes", 1, "--rows", 3)
    result = command(profile.main, *options)
    assert result.exit_code == 0
    *rows, others, total = (
        [float(cell) for cell in line.split("│")[2:-1]] for line in result.output.splitlines() if line.startswith("│")
    )
    assert len(rows) == 3
    for *parts, whole in zip(*rows, others, total, strict=True):
        assert whole > 0
        assert sum(parts) == pytest.approx(whole, abs=0.05)
    assert command(profile.main, "--network", "mobilevit_s").exit_code == 2
    assert command(profile.main, "--layout", "nhwc").exit_code == 2
