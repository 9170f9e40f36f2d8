"""The benchmark of noisy labels trains all its students and prints a row for each seed."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks import noisy_labels


def test_benchmark_prints_a_row_for_each_seed(
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
        tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", [
        "noisy_labels", "--noise", "symmetric:0.4", "--seeds", "3", "--select", "entropy:0.6", "--epochs", "1",
        "--train-slice", "0:100", "--val-interval", "1", "--output", str(tmp_path)])
    noisy_labels.main()
    rows = re.findall(r"^(seed 3|mean) +([\d. ]+)$", capsys.readouterr().out, re.M)
    assert [name for name, _ in rows] == ["seed 3", "mean"] and rows[0][1] == rows[1][1]
    figures = [float(number) for number in rows[0][1].split()]
    assert len(figures) == 10 and all(0 <= f <= 100 for f in figures) and 20 < figures[0] < 50
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--select", ""])
    noisy_labels.main()
    again = re.search(r"^seed 3 +([\d. ]+)$", capsys.readouterr().out, re.M)
    assert again[1].split() == rows[0][1].split()[:5]  # read from the folder, without those of selected samples
