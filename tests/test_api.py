"""Python gives what the commands give, and leaves the process as it was."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

import w2s_plugins as w2s
from tests.processes import wait_until
from tests.test_documents import ROOT, blocks
from w2s_plugins.data import create_dataset
from w2s_plugins.files import WRITTEN

SMALL = dict(config="digits", img_size=8, train_slice="0:64", batch_size=16, epochs=1, val_interval=1,
             model="w2s_cnn2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has a run, ``weak``, and a folder ``photos`` of five images."""
    place = tmp_path_factory.mktemp("api")
    w2s.train(**{**SMALL, "config": ["digits"]}, output=place, experiment="weak")
    (place / "photos").mkdir()
    for number, (image, _) in zip(range(5), create_dataset("w2s/digits", None, "validation")):
        image.save(place / f"photos/{number}.png")
    return place


def test_train(place: Path, tmp_path: Path) -> None:
    argv, handlers = sys.argv, logging.getLogger().handlers[:]
    student = w2s.train(**SMALL, output=tmp_path, experiment="student", loss="kd", loss_kwargs={"temperature": 2.0},
                        teacher="w2s_cnn2", teacher_checkpoint=place / "weak")
    assert "teacher" in student and student == json.loads((tmp_path / "student/result.json").read_text())
    assert student["command"].startswith("w2s-train --img-size 8 ")
    assert (sys.argv, logging.getLogger().handlers) == (argv, handlers)


def test_python_in_the_readme(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\nimport w2s_plugins as w2s\n")[2].partition("```")[0]
    monkeypatch.chdir(place)
    shared = {"w2s": w2s}
    exec(code.replace("epochs=5", "epochs=1"), shared)
    assert shared["record"] == json.loads((place / "output/train/digits/result.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "4.png" and shared["loss"].requires_grad


def test_python_in_the_documents(place: Path) -> None:
    images = torch.rand(20, 3, 8, 8)
    forest = DecisionTreeClassifier().fit(images.flatten(1), [number % 10 for number in range(20)])
    shared = {"student": w2s.load_student(place / "weak"), "forest": forest}
    (block,) = blocks(ROOT / "docs/publish.md", "python")
    exec(block, shared)
    said = shared["teacher"](images * 2 - 1)  # mean and std are 0.5
    assert said.argmax(1).tolist() == [number % 10 for number in range(20)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_an_exception_and_the_next_run_is_as_any(tmp_path: Path, signum: int) -> None:
    def stop() -> None:
        metrics = tmp_path / "run/metrics.jsonl"
        wait_until(lambda: metrics.is_file() and '"train"' in metrics.read_text())
        os.kill(os.getpid(), signum)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    flags = {**SMALL, "epochs": 300, "val_interval": 300, "log_interval": 1, "output": tmp_path, "experiment": "run"}
    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt, match="resume='auto' goes on"):
        w2s.train(**flags)
    stopper.join()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert "metrics" in w2s.train(**{**SMALL, "output": tmp_path, "experiment": "other"})


def test_in_a_thread(tmp_path: Path) -> None:
    """Where no handler can be set; notebooks and servers work there."""
    done: list[dict] = []
    thread = threading.Thread(target=lambda: done.append(w2s.train(**SMALL, output=tmp_path, experiment="run")))
    thread.start()
    thread.join()
    assert done[0] == json.loads((tmp_path / "run/result.json").read_text())


def test_predict(place: Path, tmp_path: Path) -> None:
    rows = w2s.predict(place / "weak", place / "photos", workers=0, top_k=2)
    assert [row["filename"] for row in rows] == [f"{number}.png" for number in range(5)]
    best = [row["top_k"].split(";")[0].split(":") for row in rows]
    assert [label for label, _ in best] == [row["label"] for row in rows]
    assert [float(share) for _, share in best] == pytest.approx([row["confidence"] for row in rows], rel=1e-6)
    table = w2s.predict(place / "weak", place / "photos", tmp_path / "labels.csv", workers=0)
    assert table == tmp_path / "labels.csv"
    assert [line.split(",")[1] for line in table.read_text().split()[1:]] == [row["label"] for row in rows]
    assert sorted(os.listdir(tmp_path)) == [WRITTEN, "labels.csv"]


def test_a_loaded_student_says_what_predict_says(place: Path) -> None:
    rows = w2s.predict(place / "weak", place / "photos", workers=0)
    for folder in (place / "weak", place / "weak/export"):
        student = w2s.load_student(folder)
        assert not student.training and type(student).__name__ == "PlainCNN" and "transform" not in student.state_dict()
        image, _ = create_dataset("w2s/digits", None, "validation")[0]
        shares = student(student.transform(image)[None]).softmax(1)
        assert student.class_names[shares.argmax()] == rows[0]["label"]
        assert shares.max().item() == pytest.approx(rows[0]["confidence"], abs=1e-6)


def test_teachers(place: Path) -> None:
    student, seen = w2s.load_student(place / "weak"), []

    def probabilities(images: torch.Tensor) -> list[list[float]]:
        seen.append(images)
        return [[0.5, 0.5] + [0.0] * 8] * len(images)

    images = torch.rand(4, 3, 8, 8) * 2 - 1  # mean and std are 0.5
    said = w2s.create_teacher(probabilities, student)(images)
    torch.testing.assert_close(seen[-1], images / 2 + 0.5)
    torch.testing.assert_close(said.softmax(1), torch.tensor(probabilities(images)))
    for teacher, checkpoint in ((place / "weak", None), ("w2s_cnn2", place / "weak")):
        torch.testing.assert_close(
            w2s.create_teacher(teacher, student, checkpoint=checkpoint)(images), student(images).detach())
    assert len(w2s.create_teacher([place / "weak", probabilities], student).members) == 2
    first, second = (lambda images, shares=shares: [shares] * len(images) for shares in torch.eye(10)[:2].tolist())
    both = w2s.create_teacher([first, second, first], student)(images).softmax(1)  # of one name
    torch.testing.assert_close(both, torch.tensor([[2 / 3, 1 / 3] + [0.0] * 8] * 4))
    with pytest.raises(w2s.UserError, match="no teacher"):
        w2s.create_teacher([], student)


@pytest.mark.parametrize("call, message", [
    (lambda run: w2s.train(epohcs=1), "w2s.train: unknown key 'epohcs' .nearest: epochs"),
    (lambda run: w2s.train(epochs="many"), "w2s.train: epochs: 'many' is a str, expected int"),
    (lambda run: w2s.train(config="digit"), "--config digit: no such file, and no recipe of that name"),
    (lambda run: w2s.train(data=run / "none"), "--data-dir .*none: no such folder"),
    (lambda run: w2s.predict(run, "none"), "none: no such folder, image or tar file"),
    (lambda run: w2s.load_student("hf:me/it"), "MODEL hf:me/it: no model of timm"),
    (lambda run: w2s.create_teacher("resnet19", torch.nn.Identity()), "w2s.create_teacher: unknown model 'resnet19'"),
    (lambda run: w2s.WeakToStrongTask(torch.nn.Linear(1, 1), len, w2s.create_loss("kd")), "no attribute num_classes"),
    (lambda run: w2s.WeakToStrongTask(w2s.load_student(run), len, w2s.create_loss("fitnet")), "compares features"),
])
def test_errors_are_exceptions(place: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(w2s.UserError, match=message):
        call(place / "weak")


def test_names() -> None:
    assert all(getattr(w2s, name) is not None and name in dir(w2s) for name in w2s.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        w2s.trian  # noqa: B018
