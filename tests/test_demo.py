"""The row of the demo's table is what its runs say, and the sentence below the table what its means say."""

from pathlib import Path

import pytest

from tests.parts import assert_refused
from w2s_plugins import demo

RUN = """
import json, sys
from pathlib import Path

def value(flag):
    return sys.argv[sys.argv.index(flag) + 1]

assert value("--seed") == "0"
folder = Path(value("--output")) / value("--experiment")
if "--stages" in sys.argv:
    weak, direct = value("--teacher").split(",")
    assert Path(weak).parent == Path(direct).parent and (Path(weak).parent / "result.json").exists()
    folder, result = folder / "both", {"metrics": {"top1": 85.0}}
else:
    for model in ("weak", "ceiling", "student", "direct"):
        (folder / model).mkdir(parents=True)
        (folder / model / "result.json").write_text("{}")
    assert "digits-cnn2-cnn5" in sys.argv
    figures = dict(weak=60.0, student=70.0, ceiling=90.0, agreement=50.0, pgr=1 / 3)
    result = {name: {"value": value} for name, value in figures.items()}
    result["controls"] = {"direct": {"value": 80.0}}
folder.mkdir(parents=True, exist_ok=True)
(folder / "result.json").write_text(json.dumps(result))
"""


def test_the_row_of_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_w2s.py").write_text(RUN)
    monkeypatch.setattr(demo, "TOP", tmp_path)
    row = dict(zip(demo.COLUMNS, demo.run_seed(0, tmp_path)))
    assert row.pop("PGR") == pytest.approx(1 / 3)
    assert row == dict(teacher=60, student=70, direct=80, both=85, ceiling=90, agreement=50)


def test_it_says_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "train_w2s.py").write_text(RUN)
    monkeypatch.setattr(demo, "TOP", tmp_path)
    monkeypatch.setattr("sys.argv", ["demo", "--seeds", "1", "--output", str(tmp_path / "out")])
    demo.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    assert (lines[0], lines[-1]) == (
        "0 of 5 models trained, 02:12 left",
        "5 of 5 models trained, 00:00 left",
    )


@pytest.mark.parametrize(
    ("trained", "elapsed", "left"),
    [
        # the first two, and half of the third, take 45 of 132 seconds of a core
        ([2], 45, 87),
        ([2], 90, 174),
        ([2, 2], 45, 87),
        ([5, 0], 132, 132 * (132 - 4.5) / (132 + 4.5)),
        ([5, 5], 300, 0),
    ],
)
def test_the_time_that_is_left(trained: list[int], elapsed: float, left: float) -> None:
    assert demo.time_left(trained, elapsed, 1) == pytest.approx(left)


@pytest.mark.parametrize("flag", ["--seeds", "--jobs"])
def test_numbers_are_at_least_one(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr("sys.argv", ["demo", flag, "0"])
    assert_refused(f"{flag} 0: expected", demo.main)


@pytest.mark.parametrize(
    ("student", "direct", "both", "said"),
    [
        (70, 80, 85, "train on both"),
        (70, 85, 80, "train on these alone"),
        (90, 85, 80, "teacher's labels alone were the best"),
    ],
)
def test_what_the_means_say(student: float, direct: float, both: float, said: str) -> None:
    assert said in demo.advice(dict(student=student, direct=direct, both=both))
