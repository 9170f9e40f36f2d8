"""The benchmark of cached targets runs and prints its ratios."""

import re

from tests.e2e.conftest import ROOT, environment
from tests.processes import python


def test_benchmark_prints_ratios():
    command = [
        "-m", "benchmarks.target_cache", "--model", "w2s_cnn2", "--teacher", "w2s_cnn5", "--size", "16",
        "--samples", "600", "--batch-size", "8", "--steps", "2", "--turns", "2", "--topk", "5"]
    result = python(*command, env=environment(), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    times = dict(re.findall(r"^(no teacher|cached|online) +([\d.]+) ms a step$", result.stdout, re.M))
    assert set(times) == {"no teacher", "cached", "online"} and min(map(float, times.values())) > 0
    pattern = r"^cached / (online|no teacher) +([\d.]+) \(of 2 turns, ([\d.]+) to ([\d.]+)\)$"
    ratios = re.findall(pattern, result.stdout, re.M)
    assert [name for name, *_ in ratios] == ["online", "no teacher"]
    for _, median, low, high in ratios:
        assert 0 < float(low) <= float(median) <= float(high)
