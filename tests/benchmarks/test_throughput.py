"""The benchmark of throughput prints tables with finite ratios; how large they are is not tested."""

import math
import os
import re
from pathlib import Path

import pytest
import torch

from benchmarks import throughput
from benchmarks.measure import ratios, spread, take_turns
from benchmarks.scripts import step_number


@pytest.fixture
def rows(capsys: pytest.CaptureFixture):
    """Runs the benchmark and returns the cells of the rows below its header."""
    threads = torch.get_num_threads()

    def run(*argv: str) -> list[list[str]]:
        throughput.main([*argv, "--quick"])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]

    yield run
    torch.set_num_threads(threads)


def assert_ratio(cell: str, positive: bool = True) -> None:
    median, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cell).groups())
    assert all(map(math.isfinite, (median, low, high)))
    assert low <= median <= high
    assert low > 0 or not positive


@pytest.mark.parametrize("what, columns", [("step", 6), ("teacher", 6)])
def test_a_row_for_each_dtype(rows, what, columns):
    table = rows(what)
    assert [row[:2] for row in table] == [["w2s_cnn2<-w2s_cnn2", dtype] for dtype in ("float32", "bfloat16")]
    for row in table:
        assert len(row) == columns
        assert float(row[2]) > 0
        assert_ratio(row[-1], positive=what == "step")  # what a tiny teacher adds may drown in noise


@pytest.mark.parametrize("what", ["step", "teacher"])
@pytest.mark.parametrize("flags", [["--channels-last"], pytest.param(
    ["--channels-last", "--compile"],
    marks=pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes a minute: W2S_LONG=1"))])
def test_as_on_a_gpu(rows, what, flags):
    """With what a GPU is given, in one dtype, and no column that a CPU has nothing for."""
    (row,) = rows(what, "--dtypes", "bfloat16", *flags)
    assert len(row) == 6 and row[1] == "bfloat16"
    assert_ratio(row[-1], positive=what == "step")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device(capsys):
    with pytest.raises(SystemExit) as end:
        throughput.main(["step", "--quick", "--device", "cuda"])
    assert end.value.code == 2
    assert "--device cuda: torch sees no CUDA device here" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("what, columns", [("step", 6), ("teacher", 8)])
def test_on_cuda(rows, what, columns):
    (row,) = rows(what, "--device", "cuda", "--dtypes", "bfloat16")
    assert len(row) == columns
    assert what == "step" or min(map(float, row[-2:])) > 0


def test_cached(rows):
    (row,) = rows("cached")
    assert row[0] == "w2s_cnn2<-w2s_cnn2"
    assert min(map(float, row[1:4])) > 0
    assert_ratio(row[4])


@pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes a minute: W2S_LONG=1")
def test_processes(rows):
    """The script itself, as one process and as two."""
    table = rows("processes")
    assert [row[0] for row in table] == ["1 process, 1 thread", "1 process, 2 threads", "2 processes, 1 thread each"]
    for row in table:
        assert float(row[1]) > 0
        assert_ratio(row[2])


@pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes a minute: W2S_LONG=1")
def test_startup(rows):
    table = rows("startup")
    assert [row[0] for row in table] == ["import torch", *(
        f"{script} {flag}" for script in ("train_w2s.py", "validate.py") for flag in ("--help", "--modle"))]
    for row in table:
        assert float(row[1]) > 0
        assert_ratio(row[2])


@pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes a minute: W2S_LONG=1")
def test_malloc(rows):
    table = rows("malloc")
    assert [row[:2] for row in table] == [["w2s_cnn2", "training"], ["w2s_cnn2", "evaluation"]]
    for row in table:
        assert_ratio(row[-1])


@pytest.mark.skipif("W2S_LONG" not in os.environ, reason="takes a minute: W2S_LONG=1")
def test_study(rows):
    """That the runs come out alike is shown in `tests/study`; here they are counted and timed."""
    table = rows("study")
    assert [row[0] for row in table] == ["study run", "a process a run"]
    for row in table:
        assert 0 < float(row[2]) <= float(row[1])
        assert_ratio(row[3])


@pytest.mark.parametrize("what", throughput.AGAINST_TIMM)
def test_what_needs_a_clone_of_timm(what, capsys):
    with pytest.raises(SystemExit) as end:
        throughput.main([what, "--quick"])
    assert end.value.code == 2
    assert "--timm" in capsys.readouterr().err


def test_script_needs_a_clone_with_a_training_script(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as end:
        throughput.main(["script", "--quick", "--timm", str(tmp_path)])
    assert end.value.code == 2
    assert "train.py" in capsys.readouterr().err


@pytest.mark.parametrize("line, number", [
    ("Train: 0 [   0/16 (  6%)]  Loss: 0.733 (0.733)  Time: 2.029s,   15.77/s", 1),
    ("Train: 0 [  15/16 (100%)]  Loss: 0.700 (0.743)  Time: 0.711s,   45.03/s", 16),
    ("23:45:01 epoch 1/1 step 1/16 loss 0.7223 kd 0.007003 lr 1.00e-05 0 img/s, 21s left", 1),
    ("23:45:09 epoch 1/1 step 16/16 loss 0.7223 kd 0.007003 lr 1.00e-05 40 img/s, 0s left", 16),
    ("Test: [   0/0]  Time: 0.198 (0.198)  Loss:   0.725 ( 0.725)", None),
    ("epoch 1/1 done: loss 0.7", None),
])
def test_step_number(line, number):
    assert step_number(line) == number


def test_turns_alternate_and_warm_up_is_left_out():
    calls = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = take_turns({name: lambda name=name: measure(name) for name in "ab"}, turns=3)
    assert "".join(calls) == "ba" "ab" "ba" "ab"
    assert figures == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_ratios_and_their_spread():
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0], 1) == "3.0 (2.0 to 4.0)"
