"""The row of the demo's table is what its runs say, and the sentence below the table what its means say."""

from pathlib import Path

import pytest

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
    assert "digits-cnn2-cnn5" in sys.argv
    figures = dict(weak=60.0, student=70.0, ceiling=90.0, agreement=50.0, pgr=1 / 3)
    result = {name: {"value": value} for name, value in figures.items()}
    result["controls"] = {"direct": {"value": 80.0}}
folder.mkdir(parents=True)
(folder / "result.json").write_text(json.dumps(result))
"""


def test_the_row_of_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_w2s.py").write_text(RUN)
    monkeypatch.setattr(demo, "TOP", tmp_path)
    row = dict(zip(demo.COLUMNS, demo.run_seed(0, tmp_path)))
    assert row.pop("PGR") == pytest.approx(1 / 3)
    assert row == dict(teacher=60, student=70, direct=80, both=85, ceiling=90, agreement=50)


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
