"""The benchmark of the losses runs and prints a row for each."""

import subprocess
import sys
from pathlib import Path


def test_benchmark_prints_a_row_for_each_loss(tmp_path):
    command = [
        sys.executable, "-m", "benchmarks.losses", "--batch-size", "8", "--classes", "10", "20",
        "--losses", "hard", "elr", "--turns", "1", "--seconds", "0.001", "--output", str(tmp_path / "table.md")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == [
        *2 * ["loss", "---", "cross-entropy", "kd", "hard", "elr"], "loss", "---", "`kd`", "`hard`", "`elr`"]
    assert [len(row) for row in rows[12:]] == [6] * 5  # with the ends of the line: time, memory, time at 20 classes
    assert [row[3] for row in (rows[4], rows[10])] == [rows[15][2], rows[15][4]] and rows[4][5] == rows[15][3]
    kd, elr = rows[3], rows[5]
    assert kd[3].strip() == kd[5].strip() == "1.00"
    assert float(elr[4]) >= 0 and float(elr[2]) > 0
    assert (tmp_path / "table.md").read_text().strip() in result.stdout
