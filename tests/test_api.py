"""Python gives what the commands give, and leaves the process as it was."""

import inspect
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

import w2s_plugins as w2s
from tests.keywords import FILE, keywords
from tests.parts import refusal, small_model
from tests.processes import wait_until
from tests.test_documents import ROOT, blocks
from w2s_plugins.cli.parser import predict_parser, train_parser
from w2s_plugins.data import create_dataset
from w2s_plugins.files import WRITTEN

SMALL = dict(
    config="digits",
    img_size=8,
    train_slice="0:64",
    batch_size=16,
    epochs=1,
    val_interval=1,
    model="w2s_cnn2",
)

STUDENT = small_model(0, "w2s_cnn2")


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
    student = w2s.train(
        **SMALL,
        output=tmp_path,
        experiment="student",
        loss="kd",
        loss_kwargs={"temperature": 2.0},
        teacher="w2s_cnn2",
        teacher_checkpoint=place / "weak",
    )
    assert "teacher" in student and student == json.loads(
        (tmp_path / "student/result.json").read_text()
    )
    command = student["command"]
    assert command.startswith("w2s-train --") and command.endswith(" --config digits")
    assert " --img-size 8 " in command and " --model w2s_cnn2 " in command
    assert (sys.argv, logging.getLogger().handlers) == (argv, handlers)


def test_python_in_the_readme(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\nimport w2s_plugins as w2s\n")[2].partition("```")[0]
    monkeypatch.chdir(place)
    shared = {"w2s": w2s}
    exec(code.replace("epochs=5", "epochs=1"), shared)
    assert shared["record"] == json.loads((place / "output/train/python/result.json").read_text())
    assert (
        capsys.readouterr().out.splitlines()[-1].split()[0] == "4.png"
        and shared["loss"].requires_grad
    )


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
    flags = {
        **SMALL,
        "epochs": 300,
        "val_interval": 300,
        "log_interval": 1,
        "output": tmp_path,
        "experiment": "run",
    }
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
    thread = threading.Thread(
        target=lambda: done.append(w2s.train(**SMALL, output=tmp_path, experiment="run"))
    )
    thread.start()
    thread.join()
    assert done[0] == json.loads((tmp_path / "run/result.json").read_text())


def test_predict(place: Path, tmp_path: Path) -> None:
    rows = w2s.predict(place / "weak", place / "photos", workers=0, top_k=2)
    assert [row["filename"] for row in rows] == [f"{number}.png" for number in range(5)]
    best = [row["top_k"].split(";")[0].split(":") for row in rows]
    assert [label for label, _ in best] == [row["label"] for row in rows]
    assert [float(share) for _, share in best] == pytest.approx(
        [row["confidence"] for row in rows], rel=1e-6
    )
    table = w2s.predict(place / "weak", place / "photos", tmp_path / "labels.csv", workers=0)
    assert table == tmp_path / "labels.csv"
    assert [line.split(",")[1] for line in table.read_text().split()[1:]] == [
        row["label"] for row in rows
    ]
    assert sorted(os.listdir(tmp_path)) == [WRITTEN, "labels.csv"]
    file = w2s.predict(
        place / "weak", place / "photos", features=tmp_path / "features.npz", workers=0
    )
    assert file == tmp_path / "features.npz" and len(np.load(file)["features"]) == 5
    assert sorted(os.listdir(tmp_path)) == [WRITTEN, "features.npz", "labels.csv"]


@pytest.mark.parametrize("folder", ["weak", "weak/export"])
def test_a_loaded_student_says_what_predict_says(place: Path, folder: str) -> None:
    rows = w2s.predict(place / "weak", place / "photos", workers=0)
    student = w2s.load_student(place / folder)
    assert not student.training and type(student).__name__ == "PlainCNN"
    assert "transform" not in student.state_dict()
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
            w2s.create_teacher(teacher, student, checkpoint=checkpoint)(images),
            student(images).detach(),
        )
    assert len(w2s.create_teacher([place / "weak", probabilities], student).members) == 2
    first, second = (
        lambda images, shares=shares: [shares] * len(images)
        for shares in torch.eye(10)[:2].tolist()
    )
    both = w2s.create_teacher([first, second, first], student)(images).softmax(1)  # of one name
    torch.testing.assert_close(both, torch.tensor([[2 / 3, 1 / 3] + [0.0] * 8] * 4))
    with pytest.raises(w2s.UserError, match="no teacher"):
        w2s.create_teacher([], student)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda run: w2s.train(epohcs=1), "w2s.train: unknown key 'epohcs' .nearest: epochs"),
        (
            lambda run: w2s.train(strong_views="rnd-m9"),
            "w2s.train: strong_views: 'rnd-m9': unknown policy .nearest: rand.; expected one of rand",
        ),
        (lambda run: w2s.train(epochs="many"), "w2s.train: epochs: 'many' is a str, expected int"),
        (
            lambda run: w2s.train(config="digit"),
            "--config digit: no such file, and no recipe of that name",
        ),
        (lambda run: w2s.train(data=run / "none"), "--data-dir .*none: no such folder"),
        (lambda run: w2s.predict(run, "none"), "none: no such folder, image or tar file"),
        (lambda run: w2s.load_student("hf:me/it"), "MODEL hf:me/it: no model of timm"),
        (
            lambda run: w2s.create_teacher("resnet19", torch.nn.Identity()),
            "w2s.create_teacher: unknown model 'resnet19'",
        ),
        (
            lambda run: w2s.WeakToStrongTask(torch.nn.Linear(1, 1), len, w2s.create_loss("kd")),
            "no attribute num_classes",
        ),
        (
            lambda run: w2s.WeakToStrongTask(w2s.load_student(run), len, w2s.create_loss("fitnet")),
            "compares features",
        ),
        (
            lambda run: w2s.train(epochs=10**400),
            "--epochs 10000000000000000000...: expected a whole number below 2",
        ),
        (lambda run: w2s.train(lr=np.float32("nan")), "--lr nan: expected a finite number"),
        (
            lambda run: w2s.train(config=[3]),
            "w2s.train: config: is a int, expected a path or a name",
        ),
        (lambda run: w2s.predict(None, run), "w2s.predict: model: is a NoneType, expected a path"),
        (
            lambda run: w2s.predict(run, np.zeros((3, 4))),
            "w2s.predict: images: is a ndarray, expected a path",
        ),
        (lambda run: w2s.predict(run, run, 3), "w2s.predict: output: is a int, expected a path"),
        (lambda run: w2s.predict(run, run, dir=run), "w2s.predict: dir is called images here"),
        (lambda run: w2s.predict(run, "x" * 10**5), "x...: longer than 255 bytes"),
        (
            lambda run: w2s.load_student(None),
            "w2s.load_student: is a NoneType, expected a path or a name",
        ),
        (lambda run: w2s.load_student("x" * 10**5), "x...: longer than 255 bytes"),
        (
            lambda run: w2s.create_teacher(3, STUDENT),
            "w2s.create_teacher: teacher: is a int, expected a path or a name",
        ),
        (
            lambda run: w2s.create_teacher(len, None),
            "w2s.create_teacher: the student is a NoneType, expected a model",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, class_names="abcdefghij"),
            "'abcdefghij': expected a list of texts",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, class_names=["a", "b"]),
            "2 names for the student's 10 classes",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, data_config=3),
            "data_config is a int, expected a mapping",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, data_config={"meen": 0}),
            "data_config has no 'meen' .nearest: mean",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, data_config={"std": (0, 1, 1)}),
            "std of .*expected numbers above",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, data_config={"mean": (1, 1)}),
            "mean of .* one for each of 3",
        ),
        (
            lambda run: w2s.create_teacher(len, STUDENT, device="gpu"),
            "w2s.create_teacher: device 'gpu': ",
        ),
        (
            lambda run: w2s.create_teacher("w2s_cnn2", STUDENT, checkpoint=["x"]),
            "checkpoint: is a list, expected a path",
        ),
        (
            lambda run: w2s.create_teacher(lambda images: images[:, 0, 0, :10] * 1j, STUDENT),
            "answers are complex numbers",
        ),
        (
            lambda run: w2s.create_loss("kd", temperature=np.ones(2)),
            "temperature=array.* expected a number > 0",
        ),
        (lambda run: w2s.create_loss(None), "name=None: expected a text"),
        (
            lambda run: w2s.create_loss("kd", temperature=float("inf")),
            "temperature=inf: expected a number > 0",
        ),
        (
            lambda run: w2s.create_loss("kd", temperature=10**400),
            r"temperature=1000.*\.\.\.: expected a number > 0",
        ),
        (
            lambda run: w2s.create_loss("kd+dist", **{"kd.weight": float("nan")}),
            "kd.weight=nan: expected a finite number",
        ),
        (lambda run: w2s.register_loss("a+b"), "expected a name, without"),
        (lambda run: w2s.register_loss("mine")(3), "factory=3: expected a function"),
    ],
)
def test_errors_are_exceptions(place: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(w2s.UserError, match=message):
        call(place / "weak")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(task_loss_weight=float("nan")), "task_loss_weight=nan: expected a finite number"),
        (
            dict(distill_loss_weight=float("inf")),
            "distill_loss_weight=inf: expected a finite number",
        ),
        (dict(distill_loss_weight="1"), "distill_loss_weight='1': expected a finite number"),
        (
            dict(loss=torch.nn.CrossEntropyLoss()),
            "loss=CrossEntropyLoss.*expected DistillationLoss or a text",
        ),
        (dict(teacher=None), "teacher=None: expected a function"),
        (dict(student=None), "student=None: expected Module"),
        (dict(criterion="ce"), "criterion='ce': expected a function or None"),
        (dict(labelled=-2), "labelled=-2: expected a number >= 0"),
        (dict(num_samples=-3), "num_samples=-3: expected a number >= 1 or None"),
        (dict(labelled=4), "more than the 4 with true labels"),
        (
            dict(target=None),
            "target is missing: expected true labels of 4 samples, since task_loss_weight is 1",
        ),
        (dict(target=None, distill_loss_weight=0.0), "target is missing"),
        (dict(target=torch.arange(2)), "target is torch.int64 .2,.: expected true labels of 4"),
        (dict(target=torch.tensor([0, 1, 2, 10])), "target has the class 10: expected 0 to 9"),
        (dict(target=torch.tensor([0, 1, 2, -1])), "target has the class -1: expected 0 to 9"),
        (
            dict(target=torch.rand(4)),
            "target is torch.float32 .4,.: expected numbers of classes, or shares",
        ),
        (dict(input=[1]), "input is a list: expected images"),
        (
            dict(input=torch.zeros(4, 3, 8, 8, dtype=torch.uint8)),
            "input is torch.uint8 .4, 3, 8, 8.: expected images",
        ),
        (
            dict(index=torch.tensor([-1, 0, 1, 2])),
            "positions of samples are -1 to 2; expected 0 to 7",
        ),
        (
            dict(index=torch.tensor([8, 0, 1, 2])),
            "positions of samples are 0 to 8; expected 0 to 7",
        ),
        (dict(index=torch.rand(4)), "positions of samples are torch.float32"),
        (dict(index=torch.arange(3)), "index is torch.int64 .3,.: expected positions of 4"),
        (dict(cached=True, index=None), "index is missing: stored answers"),
        (
            dict(teacher=lambda images: torch.zeros(4, 1)),
            "answered with torch.float32 .4, 1.: expected logits .4, 10.",
        ),
        (
            dict(teacher=lambda images: torch.zeros(4, dtype=torch.long)),
            "answered with torch.int64 .4,.",
        ),
        (dict(teacher=lambda images: np.zeros((4, 10))), "answered with a ndarray"),
        (dict(progress=float("nan")), "progress is nan: expected a share"),
    ],
)
def test_a_task_is_told_what_it_can_use(changes: dict, message: str) -> None:
    usual = dict(
        student=STUDENT,
        teacher=lambda images: torch.zeros(4, 10),
        loss="elr",
        num_samples=8,
        progress=0.5,
        input=torch.rand(4, 3, 8, 8),
        target=torch.arange(4),
        index=torch.arange(4),
    )

    def step(
        *,
        progress: float,
        input: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor,
        **how: object,
    ) -> dict:
        task = w2s.WeakToStrongTask(**how, verbose=False)
        task.set_progress(progress)
        return task(input, target, index)

    assert step(**usual)["loss"] > 0
    assert step(**{**usual, "task_loss_weight": np.float32(0), "target": None})["loss"].isfinite()
    with pytest.raises(w2s.UserError, match=message):
        step(**{**usual, **changes})


def test_numbers_of_numpy_and_torch_are_numbers(place: Path, tmp_path: Path) -> None:
    numbers = dict(
        epochs=np.int64(1),
        batch_size=np.array(16),
        lr=torch.tensor(0.5),
        drop=np.float64(0),
        amp=np.bool_(False),
        model=np.str_("w2s_cnn2"),
        std=np.full(3, 0.5),
        loss_kwargs={"temperature": np.float32(2)},
    )
    runs = [
        w2s.train(
            **{**SMALL, **dict(loss="kd", teacher=place / "weak"), **flags},
            output=tmp_path,
            experiment=name,
        )
        for name, flags in (
            ("a", numbers),
            (
                "b",
                {
                    name: value if isinstance(value, (dict, str)) else value.tolist()
                    for name, value in numbers.items()
                },
            ),
        )
    ]
    assert runs[0]["metrics"] == runs[1]["metrics"]
    assert runs[0]["command"].replace("--experiment a", "--experiment b") == runs[1]["command"]
    assert w2s.create_loss("kd", temperature=np.float32(2)).kwargs == {"temperature": 2.0}
    rows = w2s.predict(place / "weak", place / "photos", workers=np.int64(0), top_k=np.int32(2))
    assert len(rows) == 5


@pytest.mark.parametrize("function", [w2s.train, w2s.protocol, w2s.predict])
def test_an_editor_completes_keywords(function: Callable) -> None:
    """Each is a flag, says what it is for, and is not given unless somebody gives it."""
    flags = {**train_parser().by_dest(), **predict_parser().by_dest(), "config": None}
    keywords = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    assert len(keywords) >= 6
    for parameter in keywords:
        assert parameter.name in flags and parameter.default is None
        assert f"\n    {parameter.name}: " in inspect.getdoc(function)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: w2s.train(modl=None), "w2s.train: unknown key 'modl' (nearest: model"),
        (lambda: w2s.protocol(experiment="x", modl=None), "unknown key 'modl' (nearest: model"),
        (lambda: w2s.predict("a", "b", devise=None), "unknown key 'devise' (nearest: device"),
    ],
)
def test_an_unknown_keyword_is_refused_whatever_its_value(call: Callable, message: str) -> None:
    assert message in refusal(call)


def test_a_type_checker_knows_every_keyword() -> None:
    """And refuses others: tests/typed.py."""
    assert FILE.read_text() == keywords(), "python -m tests.keywords writes it anew"


def test_names() -> None:
    assert all(getattr(w2s, name) is not None and name in dir(w2s) for name in w2s.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        w2s.trian  # noqa: B018
