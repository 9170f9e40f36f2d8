"""``labels next``: images that would teach most are chosen, a person answers, and the answers train the next student."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from w2s_plugins.audit import next_images as module
from w2s_plugins.audit.labelled import typed_for, write_labelled
from w2s_plugins.audit.next_images import order_to_ask, rows_to_consider
from w2s_plugins.audit.plan import Plan
from w2s_plugins.audit.rounds import Round, answers_before
from w2s_plugins.labels.table_writer import write_label_table

from .conftest import BRIEF, Run
from .test_audit import Labels, labels_of_student, page_of


@pytest.fixture
def labels(here: Run, made_once: Callable) -> Labels:
    return labels_of_student(here, made_once, "next")


def answer(labels: Labels, keys: list[str], file: str = "answers.csv", **wrong: str) -> list[str]:
    """Write answers, true but for some, and return them."""
    said = [wrong.get(key.removesuffix(".png"), labels.truth[key]) for key in keys]
    write_label_table(Path(file), [{"filename": keys, "label": said}])
    return said


def images_in(folder: str) -> list[tuple[str, int]]:
    return sorted((p.parent.name, int(p.stem)) for p in Path(folder).rglob("*.jpeg"))


def test_two_rounds(labels: Labels, here: Run) -> None:
    """The printed command trains, and what was answered once is not asked again but trained with again."""
    done = labels("--images 12").ok()
    assert "run: 0 of 90 images have an answer; 12 are drawn" in done.out
    first = page_of("run", "next")
    labels("--images 20").ok()
    assert page_of("run", "next")["keys"][:12] == first["keys"]
    assert len({*page_of("run", "next")["keys"]}) == 20
    answer(labels, first["keys"][:10])
    command = labels("--answers answers.csv").ok().out.splitlines()[-1]
    here(*shlex.split(command)[2:], "--epochs 1 --workers 0 --output .").ok()

    # the student of these stages begins the second round, and not one that has seen answered images only
    error = labels(run="run-answered/part").error
    assert "from labelled images alone; expected" in error
    assert error.endswith("such as run-answered/student")
    student = "run-answered/student"
    assert (
        "10 of 90 images have an answer; 8 are drawn" in labels("--images 8", run=student).ok().out
    )
    second = page_of(student, "next")
    assert not {*first["keys"][:10]} & {*second["keys"]}
    answer(labels, second["keys"])
    done = labels("--answers answers.csv", run=student).ok()
    assert "8 images, 0 of them '?' (cannot tell); with those before 18" in done.out
    command = done.out.splitlines()[-1]
    assert "--teacher labels:weak.csv --model w2s_cnn2" in command
    assert command.endswith("--experiment run-answered-2")
    said = [labels.truth[key] for key in first["keys"][:10] + second["keys"]]
    fit = sorted((name, number) for number, name in enumerate(said, 1) if "/" not in name)
    assert images_in(f"{student}/next/answered") == fit
    # what a student says of answers that it has learned tells nothing
    audit = ("audit", "run", student, "--images 90")
    done = here(*audit, script="w2s_plugins.labels.__main__").ok()
    assert "10 of 90 images are left out" in done.err
    assert {*page_of("run")["keys"]} == {*labels.truth} - {*first["keys"][:10]}
    # the name of a run that is there is taken
    again = labels("--answers answers.csv").ok().out
    assert again.splitlines()[-1].endswith("--experiment run-answered-2")
    # an old file of answers is about the same images
    answer(labels, first["keys"][:10])
    done = labels("--answers answers.csv", run=student).ok()
    assert "with those before 18" in done.out and "are others than before" not in done.err


@pytest.mark.parametrize("has_folders", [True, False])
def test_the_printed_command_keeps_the_test_set(
    labels: Labels, here: Run, has_folders: bool
) -> None:
    """What a person answers about is trained with, all of it, and measured on the images that she has for that."""
    names = ["a", "b"]
    truth = {"filename": [f"{number}.png" for number in range(40)], "label": names * 20}
    for number, name in zip(range(40), truth["label"]):
        place = Path("tests", "validation", *([name] if has_folders else []), f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(Path("photos", f"{number}.png").read_bytes())
    write_label_table(Path("truth.csv"), [truth])
    write_label_table(Path("two.csv"), [truth | {"label": names[::-1] * 20}])
    given = "" if has_folders else "--val-labels truth.csv"
    # a rate is kept where the optimizer is that of the stages
    part = "--opt adamw --lr 0.002" if has_folders else "--opt sgd --lr 0.01 --tune norm"
    here(
        f"--unlabeled photos --teacher labels:two.csv?missing=skip --data-dir tests {given}",
        *BRIEF,
        "--model w2s_cnn2 --loss kd --val-slice 0:30 --batch-size 8 --output . --experiment two",
        part,
    ).ok()
    write_label_table(Path("answers.csv"), [{key: truth[key][:20] for key in truth}])
    done = labels("--answers answers.csv", run="two").ok()
    assert "answered images: two/next/answered\n" in done.out
    assert "* classes with the fewest answers: " in done.out
    assert len(images_in("two/next/answered/train")) == 20
    command = done.out.splitlines()[-1]
    assert "--batch-size 8" in command and "--val-slice 0:30" in command
    assert ("--lr 0.002" if has_folders else "--tune norm") in command
    assert has_folders or "--lr" not in command
    # beside the run, whose folder was typed
    assert "--output . --experiment two-answered" in command
    here(*shlex.split(command)[2:], "--epochs 1 --workers 0").ok()
    # images of an older version are not told from a person's
    Path("two/next/answered/written.json").unlink()
    error = labels("--answers answers.csv", run="two").error
    assert "answered: no written.json says which of its 20 images are written anew; move" in error
    assert len(images_in("two/next/answered/train")) == 20
    result = json.loads(Path("two-answered/student/result.json").read_text())
    val = result["data"]["splits"]["val"]
    # others may read it, whom folders of this disk tell nothing
    assert (val["num_samples"], val["split"]) == (30, "validation")
    assert str(Path.cwd()) not in json.dumps(result["data"])


def test_what_was_answered_before(labels: Labels) -> None:
    """Answers to an audit count, others replace them, and all images may have one."""
    labels("--images 9", command="audit").ok()
    keys = page_of("run")["keys"]
    answer(labels, keys)
    labels("--answers answers.csv", command="audit").ok()
    assert "9 of 90 images have an answer; 50 are drawn" in labels().ok().out
    assert not {*keys} & {*page_of("run", "next")["keys"]}
    answer(labels, keys[:2], **{keys[0].removesuffix(".png"): "?"})
    done = labels("--answers answers.csv").ok()
    assert "1 of them '?' (cannot tell); with those before 9" in done.out
    assert "1 of them are others than before" in done.err
    assert len(images_in("run/next/answered")) < 9
    answer(labels, [*labels.truth])
    labels("--answers answers.csv").ok()
    assert labels().error == "RUN run: all of its 90 images have an answer"


def test_what_is_there_is_not_lost(tmp_path: Path) -> None:
    """Earlier answers outlive a kill while the labelled set is written, and images of others are nobody's to delete."""
    folder, classes = tmp_path / "answered", ["a", "b"]
    image = Image.new("RGB", (8, 8))
    write_labelled(folder, [image] * 6, [*range(6)], "id", [0, 0, 0, 0, 1, 1], classes)
    # such as those of a camera, and one that has the name of the next image
    theirs = [folder / "train" / name for name in ("a/20241231.jpeg", "b/00001.jpeg")]
    theirs[1].parent.mkdir(exist_ok=True)
    for file in theirs:
        file.touch()

    def killed() -> Iterator[Image.Image]:
        yield image
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_labelled(folder, killed(), [*range(7)], "id", [1] * 7, classes)
    assert len((folder / "answers.csv").read_text().splitlines()) == 8
    write_labelled(folder, [image] * 6, [*range(6)], "id", [1] * 6, classes)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpeg"))
    in_train = [f"train/b/{name}.jpeg" for name in ("00001-2", "00001", "00002", "00003", "00004")]
    assert found == [
        "train/a/20241231.jpeg",
        *in_train,
        "train/b/00006.jpeg",
        "validation/b/00005.jpeg",
    ]
    assert not any(file.read_bytes() for file in theirs)
    write_labelled(folder, [image], [0], "id", [0], classes)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpeg"))
    assert found == ["train/a/00001.jpeg", "train/a/20241231.jpeg", "train/b/00001.jpeg"]


@pytest.mark.parametrize("words", ["--version", "--nothing 3", "'"])
def test_a_record_of_others_has_no_typed_flags(tmp_path: Path, words: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"command": f"python x.py {words}"}))
    assert typed_for(tmp_path) == {}


def test_a_class_that_no_folder_can_be_called(tmp_path: Path) -> None:
    folder, image = tmp_path / "answered", Image.new("RGB", (8, 8))
    write_labelled(folder, [image] * 3, ["1", "2", "3"], "id", [0, 1, 2], ["x" * 256, "a/b", "ü"])
    assert [path.parent.name for path in folder.rglob("*.jpeg")] == ["ü"]


def test_an_audit_later_leaves_images_in_their_parts(tmp_path: Path) -> None:
    for folder, ids in (("audit/checked", [5, 0]), ("next/answered", [0, 2])):
        (tmp_path / folder).mkdir(parents=True)
        content = {"id": ids, "label": ["a", "b"]}
        write_label_table(tmp_path / folder / "answers.csv", [content])
    found = answers_before(round_of(tmp_path))
    assert [*found.items()] == [(0, 0), (2, 1), (5, 0)]


def round_of(run: Path, data_dir: Path | None = None) -> Round:
    """A round of a run on nine images of two classes."""
    data = SimpleNamespace(data_dir=data_dir, unlabeled="photos")
    learned = SimpleNamespace(run=run, settings=SimpleNamespace(data=data))
    plan = Plan("id", ["a", "b"], [*range(9)])
    return Round("next", learned, SimpleNamespace(), plan, "")


def test_a_table_that_a_person_calls_answers_is_no_answer(tmp_path: Path) -> None:
    """The weak labels of the first page have that name; a labelled set that was written before counts."""
    (tmp_path / "args.yaml").write_text("task_loss_weight: 0.0\n")
    folder = tmp_path / "birds"
    folder.mkdir()
    write_label_table(folder / "answers.csv", [{"id": [0, 2], "label": ["a", "b"]}])
    assert answers_before(round_of(tmp_path, folder)) == {}
    image = Image.new("RGB", (8, 8))
    write_labelled(folder, [image] * 2, [0, 2], "id", [0, 1], ["a", "b"])
    assert answers_before(round_of(tmp_path, folder)) == {0: 0, 2: 1}


def test_two_at_once(labels: Labels) -> None:
    Path("run/next").mkdir()
    with FileLock("run/next/.lock"):
        assert labels().error.startswith("run/next: another command is at work in it; wait")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\n0.png,naive\n", "row 1: 'naive' is no class"),
        ("filename,label\nx.png,six\n", "about other"),
        ("filename,label\n0.png,?\n", "says of no image what is on it"),
        ("filename,label\n0.png,\n", "its column label is empty"),
        (
            "filename,label,audit\n0.png,six,n0123456789abcde\n",
            "is of another draw than run's: of another student",
        ),
        (
            "filename,label,audit\n0.png,six,a0123456789abcde\n",
            "has answers to `audit`, which has its own; expected",
        ),
        ("filename,label\n0.png,six\n0.png,nine\n", "0.png"),
        ("", "answers.csv"),
    ],
)
def test_answers_that_cannot_be_read(labels: Labels, text: str, message: str) -> None:
    Path("answers.csv").write_text(text)
    assert message in labels("--answers answers.csv").error
    assert not Path("run/next").exists()


def test_what_it_needs(labels: Labels) -> None:
    assert "none.csv: no such file" in labels("--answers none.csv").error
    assert "a table of labels; expected the folder of a run" in labels(run="weak.csv").error
    assert "expected the folder of a run that has ended" in labels(run="nowhere").error
    # few answers are no set to train with
    answer(labels, [*labels.truth][:3])
    done = labels("--answers answers.csv").ok()
    assert "there is no command that trains with them" in done.out


# ---------------------------------------------------------------- the rule


def by_hand(
    features: np.ndarray, answered: list[int], images: int, weights: np.ndarray
) -> list[int]:
    """The rule written a second time, with all gains computed anew for each image."""
    x = features - features.mean(axis=0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp((x @ x.T - 1) / 0.25)
    chosen: list[int] = []
    for _ in range(images):
        so_far = near[answered + chosen].max(axis=0, initial=0)
        gains = [(weights * np.maximum(row - so_far, 0)).sum() for row in near]
        chosen.append(max({*range(len(x))} - {*answered, *chosen}, key=gains.__getitem__))
    return chosen


def test_the_rule_by_hand() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.standard_normal((150, 6)) + 3, rng.random(150)
    expected = by_hand(features, [3, 70], 40, weights)
    found = order_to_ask(features.astype(np.float32), np.array([3, 70]), 40, weights)
    assert found.tolist() == expected
    none = np.zeros(0, dtype=np.int64)
    expected = by_hand(features, [], 9, np.ones(150))
    assert order_to_ask(features, none, 9).tolist() == expected


def test_groups_of_images() -> None:
    """One of each group that has no answer, and first of the largest one."""
    rng = np.random.default_rng(0)
    group = np.minimum(np.arange(120) % 8, 6)
    features = np.eye(8)[group] * 5 + rng.standard_normal((120, 8)) * 0.1
    order = group[order_to_ask(features, np.array([3]), 6)]
    assert sorted(order) == [0, 1, 2, 4, 5, 6] and order[0] == 6


@pytest.mark.parametrize("count", [1, 2, 130])
def test_images_that_are_all_alike(count: int) -> None:
    order = order_to_ask(np.ones((count, 4)), np.array([0]), 500)
    assert sorted(order) == [*range(1, count)]


def test_very_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them are looked at, among them those with an answer; more images asked for include the fewer."""
    monkeypatch.setattr(module, "CANDIDATES", 300)
    monkeypatch.setattr(module, "COVERED", 100)
    answered = np.array([5, 4999])
    rows = rows_to_consider(5000, answered)
    assert len(rows) == 302 and {5, 4999} < {*rows} and (np.diff(rows) > 0).all()
    features = np.random.default_rng(0).standard_normal((302, 5))
    few, many = (
        order_to_ask(features, np.searchsorted(rows, answered), images) for images in (20, 40)
    )
    assert few.tolist() == many[:20].tolist() and len({*many}) == 40
    assert (rows_to_consider(40, np.array([7])) == np.arange(40)).all()
