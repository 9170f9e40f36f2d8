"""The folder of a study is read as it was written, wherever it lies."""

import json
from pathlib import Path

import pytest

from w2s_plugins.errors import UserError
from w2s_plugins.study.layout import StudyRun, load_plan, read_record, save_plan


def planned(root: Path) -> list[StudyRun]:
    weak = StudyRun(
        "weak-a", "weak", "a", None, None, None, 0, ["--output", "{study}/runs"], root=root
    )
    student = StudyRun(
        "student-b",
        "student",
        "a",
        "b",
        "kd",
        "w2s",
        0,
        ["--epochs", "3", "--teacher-checkpoint", "{study}/runs/weak-a"],
        needs=["weak-a"],
        root=root,
    )
    return [weak, student]


def test_a_plan_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_plan(tmp_path / "a", planned(tmp_path / "a"))
    moved = (tmp_path / "a").rename(tmp_path / "b")
    weak, student = load_plan(moved)
    assert weak.command == ["--output", str(moved / "runs")] and student.needs == ["weak-a"]
    assert student.command[-1] == str(weak.folder)
    assert student.label == "student a b kd w2s"
    with pytest.raises(UserError, match=r"bb: no folder of a study.*plan.json \(nearest: b\)"):
        load_plan(tmp_path / "bb")
    assert not weak.finished
    weak.folder.mkdir(parents=True)
    (weak.folder / "result.json").write_text('{"seed": 0}')
    assert weak.finished and read_record(weak.folder / "result.json") == {"seed": 0}


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "{", "\0"], ids=range(4))
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    assert read_record(tmp_path / "result.json") is None


@pytest.mark.parametrize(
    "change",
    [
        None,
        "[{",
        '[{"id": "a"}]',
        "[1]",
        "[" * 100_000,
        *(
            {"id": name}
            for name in (
                "../x",
                "..",
                "/tmp/x",
                "a/b",
                "a\0b",
                "",
                "n" * 300,
                3,
                "weak-a",
                "a\x1b[2J",
            )
        ),
        {"width": 1},
        {"needs": [None]},
        {"needs": ["absent"]},
        {"needs": ["student-b"]},
        {"kind": 1},
        {"kind": "x"},
    ],
)
def test_names_of_runs_stay_in_the_folder(tmp_path: Path, change: object) -> None:
    save_plan(tmp_path, planned(tmp_path))
    if isinstance(change, dict):
        plan = json.loads((tmp_path / "plan.json").read_text())
        plan[1].update(change)
        change = json.dumps(plan)
    (tmp_path / "plan.json").write_text(change) if change else (tmp_path / "plan.json").unlink()
    said = "another version .* make it again" if change else "no folder of a study"
    with pytest.raises(UserError, match=said) as caught:
        load_plan(tmp_path)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
