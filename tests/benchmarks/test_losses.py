"""The benchmark of the losses runs and prints a row for each."""

from tests.e2e.conftest import ROOT, environment
from tests.processes import python


def test_benchmark_prints_a_row_for_each_loss(tmp_path):
    command = [
        "-m", "benchmarks.losses", "--batch-size", "8", "--classes", "10", "20",
        "--losses", "hard", "elr", "--turns", "1", "--seconds", "0.001", "--output", str(tmp_path / "table.md")]
    result = python(*command, env=environment(), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == [
        *2 * ["loss", "---", "cross-entropy", "kd", "hard", "elr"], "loss", "---", "`kd`", "`hard`", "`elr`"]
    assert [len(row) for row in rows[12:]] == [6] * 5  # with the ends of the line: time, memory, time at 20 classes
    assert [row[3] for row in (rows[4], rows[10])] == [rows[15][2], rows[15][4]] and rows[4][5] == rows[15][3]
    kd, elr = rows[3], rows[5]
    assert kd[3].strip() == kd[5].strip() == "1.00"
    assert float(elr[4]) >= 0 and float(elr[2]) > 0
    assert (tmp_path / "table.md").read_text().strip() in result.stdout
