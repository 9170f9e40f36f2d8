"""iNaturalist's lists and a long tail, from training on two ranks to validate.py: the figures are NumPy's."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import BRIEF, Run, read_events, read_result, taught
from tests.parts import write_folder, write_list

TRAIN = (14, 6, 2, 3)  # images of each class
VALIDATION = (5, 4, 4, 0)  # 13: two ranks need padding
COLUMNS = {
    "top1_many": [0],
    "top1_medium": [1],
    "top1_few": [2],
}  # class 3 is medium, too, but is not evaluated


@pytest.fixture
def inat(tmp_path: Path) -> Path:
    images = tmp_path / "inat" / "train_val2018"
    for split, counts in (("train", TRAIN), ("val", VALIDATION)):
        write_folder(images, {split: 4 * max(counts)}, classes=4, size=(16, 12))
        for number, count in enumerate(counts):
            for path in sorted((images / split / f"class{number}").iterdir())[count:]:
                path.unlink()
        write_list(tmp_path / "inat", f"{split}2018.json", f"train_val2018/{split}")
    return tmp_path / "inat"


def by_numpy(run: Path, who: str) -> dict[str, float]:
    rows = list(csv.DictReader((run / "predictions_last.csv").open()))
    said, true = (np.array([int(row[name]) for row in rows]) for name in (who, "target"))
    assert len(rows) == sum(VALIDATION)
    return {
        k: 100 * np.mean([(said[true == c] == c).mean() for c in classes])
        for k, classes in COLUMNS.items()
    }


def test_long_tail(ranks: Run, inat: Path, tmp_path: Path) -> None:
    common = [
        "--dataset inat2018",
        "--data-dir",
        inat,
        *BRIEF,
        "--model w2s_cnn2 --batch-size 4",
        "--output",
        tmp_path / "out",
        "--long-tail 3:8 --decoder fast",
    ]
    ranks(*common, "--experiment weak", processes=1, cwd=tmp_path).ok()
    done = ranks(
        *common, *taught(tmp_path / "out" / "weak"), "--experiment run", processes=2, cwd=tmp_path
    ).ok()
    run = tmp_path / "out" / "run"
    assert (
        "Long tail: 1 many-shot classes (more than 8 training samples), 2 medium-shot, 1 few-shot"
        in done.err
    )
    assert json.loads((run / "class_counts.json").read_text()) == {
        "split": "train",
        "counts": list(TRAIN),
    }
    expected, result = by_numpy(run, "student"), read_result(run)
    assert len(set(expected.values())) > 1
    assert result["metrics"] == pytest.approx({**result["metrics"], **expected})
    assert result["teacher"] == {**result["teacher"], **by_numpy(run, "teacher")}
    assert set(COLUMNS) <= result["metrics"].keys() and result["data"]["dataset"] == "inat2018"
    last = read_events(run, "eval")[-1]
    summary = list(csv.DictReader((run / "summary.csv").open()))[-1]
    assert all(
        last["val"][k] == float(summary[f"eval_{k}"]) == result["metrics"][k] for k in COLUMNS
    )
    assert "top-1 medium" in done.out
    assert (
        f"{expected['top1_few']:.2f}"
        in (run / "export" / "README.md").read_text().partition("few samples")[2]
    )

    found = ranks(
        "--checkpoint",
        run,
        *taught(tmp_path / "out" / "weak"),
        processes=1,
        cwd=tmp_path,
        script="validate",
    ).figures
    for who, prefix in (("student", ""), ("teacher", "teacher_")):
        assert {k: found[f"{prefix}{k}"] for k in COLUMNS} == pytest.approx(
            by_numpy(run, who), abs=1e-4
        )
