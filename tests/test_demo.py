"""The row of the demo's table is what its runs say."""

from pathlib import Path

import pytest

from w2s_plugins import demo

RUN = """
import json, sys
from pathlib import Path

def value(flag):
    return sys.argv[sys.argv.index(flag) + 1]

assert "digits-cnn2-cnn5" in sys.argv and value("--seed") == "0"
folder = Path(value("--output")) / value("--experiment")
folder.mkdir(parents=True)
figures = dict(weak=60.0, student=70.0, ceiling=90.0, agreement=50.0, pgr=1 / 3)
(folder / "result.json").write_text(json.dumps({name: {"value": value} for name, value in figures.items()}))
"""


def test_the_row_of_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_w2s.py").write_text(RUN)
    monkeypatch.setattr(demo, "TOP", tmp_path)
    assert demo.run_seed(0, tmp_path) == [60.0, 70.0, 90.0, 50.0, pytest.approx(1 / 3)]
