"""``--log-beta``: an event an epoch that does not change the run; every sample counts once on any number of ranks."""

from collections.abc import Callable
from pathlib import Path

from .conftest import TINY, Done, differences, read_lines, read_run

Run = Callable[..., Done]


def weights_of(folder: Path) -> list[dict]:
    return [event for event in read_lines(folder / "metrics.jsonl") if event["event"] == "weights"]


def teacher_right(event: dict) -> int:
    return sum(sum(event["weights"]["beta"].get(kind, {"counts": []})["counts"])
               for kind in ("agree_right", "teacher_right"))


def test_a_run(here: Run, ranks: Run, weak: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--val-interval", 2,
             "--task-loss-weight", 0]
    here(*flags, "--experiment", "plain").ok()
    here(*flags, "--experiment", "logged", "--log-beta").ok()
    root = tmp_path / "output/train"
    assert differences(read_run(root / "plain")["state_dict"], read_run(root / "logged")["state_dict"]) == []
    assert weights_of(root / "plain") == []
    events = weights_of(root / "logged")
    assert [event["epoch"] for event in events] == [0, 1], "also where no evaluation follows"
    for event in events:
        kinds = event["weights"]["beta"]
        assert sum(sum(kind["counts"]) for kind in kinds.values()) == 64
        for name, kind in kinds.items():
            where = [i / event["bins"] for i, count in enumerate(kind["counts"]) if count]
            assert (where == [0.5]) if name.startswith("agree") else max(where) < 0.5
            assert (kind["mean"] == 0.5) if name.startswith("agree") else 0 <= kind["mean"] < 0.5

    parts = [*flags, "--batch-size", 8, "--experiment", "two", "--log-beta"]
    ranks(*parts, processes=2, cwd=tmp_path).ok()
    for event, other in zip(events, weights_of(root / "two"), strict=True):
        assert teacher_right(other) == teacher_right(event), "which does not depend on the student's batch norm"
        assert sum(sum(kind["counts"]) for kind in other["weights"]["beta"].values()) == 64


def test_nothing_to_record(here: Run, weak: Path) -> None:
    done = here(*TINY, "--epochs", 1, "--model", "w2s_cnn2", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak,
                "--loss", "kd", "--log-beta", "--experiment", "k").ok()
    assert "the loss 'kd' does not weigh samples one by one" in done.err
    assert weights_of(Path("output/train/k")) == []
