"""``python -m w2s_plugins.predictions``: run folder, images and a table, as processes forked from the tests'."""

import csv
import importlib
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forks
from tests.e2e.conftest import BRIEF, Done, Run
from tests.parts import read_label_table
from tests.teacher_models import CLIP, make_clip, make_hf, make_onnx
from w2s_plugins.data.digits import Digits

TRAIN = [*BRIEF, "--data-dir data --model w2s_cnn2 --epochs 1 --batch-size 8 --lr 0.1 --output out"]
PREDICT = "w2s_plugins.predictions.__main__"


def start(module: str, *flags: object, cwd: Path) -> tuple[int, Path]:
    """Run the ``main`` of a module in a fork; return its process, and the file with what it prints."""
    main, output = importlib.import_module(module).main, cwd / f"{module}-{time.monotonic_ns()}.log"
    return forks.start(main, [module, *flags], output, before=lambda: os.chdir(cwd)), output


def run(module: str, *flags: object, cwd: Path) -> Done:
    pid, output = start(module, *flags, cwd=cwd)
    return Done(forks.finish(pid), text := output.read_text(), text)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Digits in class folders, and the run of a weak model on them; the images of the test split also in a tar file."""
    work = tmp_path_factory.mktemp("predict")
    for split, count in (("train", 200), ("validation", 600)):
        digits = Digits(split)
        for i in range(count):
            image, label = digits[i]
            path = work / "data" / split / "ABCDEFGHIJ"[label] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    with tarfile.open(work / "images.tar", "w") as archive:
        archive.add(work / "data/validation", arcname=".")
    run(
        "train_w2s", *TRAIN, "--hflip 0 --scale 0.8 1 --color-jitter 0 --experiment weak", cwd=work
    ).ok()
    yield work


@pytest.fixture
def predict(work: Path, here: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Predicts in the process of the tests."""
    monkeypatch.chdir(work)
    return lambda *flags: here(*flags, "--workers 0", script=PREDICT)


@pytest.fixture
def validate(work: Path, here: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(work)
    return lambda *flags: here(*flags, "--workers 0", script="validate")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def right(rows: list[dict[str, str]]) -> float:
    return 100 * sum(row["label"] == Path(row["filename"]).parent.name for row in rows) / len(rows)


def test_the_table_has_the_accuracy_of_validate(work, predict, validate):
    top1 = validate("--checkpoint out/weak --data-dir data").figures["top1"]
    done = predict("out/weak", "data/validation", "--output all.csv --all").ok()
    assert "600 images labelled by out/weak" in done.err
    rows = rows_of(work / "all.csv")
    assert list(rows[0]) == ["filename", "label", "confidence", *"ABCDEFGHIJ"]
    assert [row["filename"] for row in rows] == sorted(
        p.relative_to(work / "data/validation").as_posix()
        for p in work.glob("data/validation/*/*.png")
    )
    assert right(rows) == pytest.approx(top1, abs=1e-3) and top1 > 20
    assert all(float(row["confidence"]) == float(row[row["label"]]) for row in rows)
    table = read_label_table(work / "all.csv")
    assert table.kind == "probabilities" and table.class_names == [*"ABCDEFGHIJ"]
    assert not list(work.glob("*.parts"))


NAMES = [
    "out/weak",
    "out/weak/export",
    "out/weak/last.pth.tar",
    "out/weak/export/model.safetensors",
    "local-dir:out/weak/export",
]


@pytest.mark.parametrize(
    "words",
    [
        *(f"--{flag} {name}" for flag in ("model", "checkpoint") for name in NAMES[:4]),
        "--model local-dir:out/weak/export --data-dir data",
        "--model copied --data-dir data",
        "--checkpoint copied --data-dir data",
    ],
)
def test_validate_takes_the_same_names(work, validate, words):
    """Of a run with its flags, of timm's own name and of an export that was copied elsewhere with those given."""
    if not (work / "copied").exists():
        shutil.copytree(work / "out/weak/export", work / "copied")
    trained = json.loads((work / "out/weak/result.json").read_text())["metrics"]
    found = validate(words).figures
    assert (found["img_size"], found["top1"]) == (8, round(trained["top1"], 4))
    assert found["loss"] == pytest.approx(trained["loss"], abs=1e-4)


@pytest.mark.parametrize(
    "name, near",
    [
        ("out/waek", " (nearest: weak)"),
        ("out", "; there are runs in it, give one of them: out/weak"),
        ("data", ""),
        ("out/weak/export/modle.safetensors", " (nearest: model.safetensors)"),
        ("images.tar", ""),
    ],
)
def test_what_is_no_model_is_the_same_to_every_command(here, predict, validate, name, near):
    said = [
        here("push", name, "me/x", script="w2s_plugins.hub.__main__").error,
        validate("--model", name, "--data-dir data").error,
        predict(name, "data/validation", "--output x.csv").error,
    ]
    for error in said:
        assert error.partition(": ")[2].startswith(f"unknown model '{name}'{near}; expected ")


@pytest.mark.parametrize("model", [*NAMES[1:], "w2s_cnn2 --checkpoint out/weak"])
def test_other_names_of_the_model_and_a_tar_file(work, predict, model):
    """All say the same of the same images, in whatever form they come."""
    predict("out/weak", "data/validation", "--output one.csv --top-k 2").ok()
    name, *flags = model.split()
    if flags:
        flags += ["--img-size 8"]
    predict(name, "images.tar", "--output other.csv --top-k 2", *flags).ok()
    assert (work / "one.csv").read_bytes() == (work / "other.csv").read_bytes()
    best = rows_of(work / "one.csv")[0]
    assert best["top_k"].startswith(f"{best['label']}:{best['confidence']};")


@pytest.mark.parametrize(("flags", "count"), [([], 5), (["--top-k 2"], 2), (["--all"], 10)])
def test_one_image(work, predict, flags, count):
    """Its classes are printed, the likeliest first, as the table of it has them."""
    image = sorted((work / "data/validation").glob("*/*.png"))[7]
    predict("out/weak", image, "--output photo.csv --all").ok()
    (row,) = rows_of(work / "photo.csv")
    shares = {name: float(row[name]) for name in "ABCDEFGHIJ"}
    printed = predict("out/weak", image, *flags).ok().out.splitlines()
    found = {line[0]: float(line[2:]) for line in printed if line[1:2] == ":"}
    best = sorted(shares, key=shares.get, reverse=True)[:count]
    assert [*found.items()] == [(name, shares[name]) for name in best]


def cut_short(work: Path, images: str, output: str) -> list[Path]:
    """Predict until some parts are there, and return these."""
    parts: list[Path] = []
    pid, _ = start(
        PREDICT, "out/weak", images, "--output", output, "--all -b 1 --workers 0", cwd=work
    )
    deadline = time.monotonic() + 60
    while not parts and time.monotonic() < deadline:
        parts = list(work.glob(f"{output}.parts/*/*.safetensors"))
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert parts and not (work / output).exists()
    return list(work.glob(f"{output}.parts/*/*.safetensors"))


def test_killed_and_gone_on_with(work, predict):
    """The parts that are there stay as they are, and the table is the same to the last byte."""
    predict("out/weak", "data/validation", "--output whole.csv --all -b 1").ok()
    parts = cut_short(work, "data/validation", "cut.csv")
    done = predict("out/weak", "data/validation", "--output cut.csv --all -b 1").ok()
    assert f"{3 - len(parts)} part(s) to write" in done.err
    assert (work / "cut.csv").read_bytes() == (work / "whole.csv").read_bytes()
    assert not list(work.glob("*.parts"))


def test_an_image_that_was_replaced_meanwhile_is_not_answered_from_before(work, predict):
    """Also one of the same size and time, as copying tools leave it, that no sample of pixels has seen."""
    shutil.copytree(work / "data/validation", work / "photos")
    cut_short(work, "photos", "replaced.csv")
    first, other = sorted((work / "photos").glob("*/*.png"))[1:300:298]
    before = first.stat()
    content = other.read_bytes()
    first.write_bytes(content + bytes(max(0, before.st_size - len(content))))
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = predict("out/weak", "photos", "--output replaced.csv --all -b 1").ok()
    assert "3 part(s) to write" in done.err
    rows = {row.pop("filename"): row for row in rows_of(work / "replaced.csv")}
    names = [path.relative_to(work / "photos").as_posix() for path in (first, other)]
    assert rows[names[0]] == rows[names[1]]


@pytest.mark.parametrize("content", ["filename,label,confidence\nA/0001.png,A,1.0\n", ""])
def test_a_table_of_somebody_else_is_not_overwritten(work, predict, content):
    table = work / "theirs.csv"
    table.write_text(content)
    error = predict("out/weak", "data/train", "--output theirs.csv").error
    assert "--output theirs.csv: is there already, and not as this program" in error
    assert table.read_text() == content and not list(work.glob("theirs.csv.parts"))


def test_a_table_of_its_own_is_overwritten_unless_it_was_corrected(work, predict):
    """By the same command or another model."""
    command, table = ["out/weak", "data/train", "--output mine.csv"], work / "mine.csv"
    predict(*command).ok()
    predict(*command).ok()
    predict(*command, "--top-k 2").ok()
    corrected = table.read_text().replace(",A,", ",B,", 1)
    table.write_text(corrected)
    assert predict(*command).code == 2 and table.read_text() == corrected


def test_two_processes_share_the_work(work, predict, ranks):
    predict("out/weak", "data/validation", "--output one.jsonl --top-k 3").ok()
    ranks(
        "out/weak",
        "data/validation",
        "--output two.jsonl --top-k 3 --workers 0",
        script=PREDICT,
        cwd=work,
        processes=2,
    ).ok()
    assert (work / "one.jsonl").read_bytes() == (work / "two.jsonl").read_bytes()


def test_a_chain_of_teacher_student_and_the_next_teacher(work, predict):
    """A table is the teacher of a run, in any form to the last bit, and the run's student writes the next one."""
    for name in ("first.csv", "first.parquet"):
        predict("out/weak", "data/train", "--output", name, "--all").ok()
        run(
            "train_w2s",
            *TRAIN,
            "--no-aug --loss kd --task-loss-weight 0",
            "--teacher",
            f"labels:{name}",
            "--experiment",
            name,
            cwd=work,
        ).ok()
        predict(f"out/{name}", "data/train", "--output", f"next-{name}", "--top-k 2").ok()
    assert len(rows_of(work / "next-first.csv")) == 200
    assert (
        read_label_table(work / "next-first.parquet").answers.tolist()
        == read_label_table(work / "next-first.csv").answers.tolist()
    )


def test_files_that_are_no_images_are_named_and_left_out(work, predict, tmp_path):
    for name in ("a/good.png", "broken.png", "empty.jpg", ".hidden.png", "note.txt"):
        path = tmp_path / "mixed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b""
            if "empty" in name
            else next(work.glob("data/train/A/*.png")).read_bytes()[
                : 60 if "broken" in name else None
            ]
        )
    (tmp_path / "mixed/a/loop").symlink_to(tmp_path / "mixed")
    os.mkfifo(tmp_path / "mixed/pipe.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/mixed/\xe4.png")).write_bytes(
        next(work.glob("data/train/B/*.png")).read_bytes()
    )
    done = predict("out/weak", tmp_path / "mixed", "--output mixed.csv").ok()
    assert [row["filename"] for row in rows_of(work / "mixed.csv")] == ["a/good.png"]
    warning = "\n".join(line for line in done.err.splitlines() if "WARNING" in line)
    for text in (
        "4 of 5 images are left out",
        "its name is not UTF-8",
        "broken.png",
        "empty.jpg",
        "pipe.png: cannot be read (a FIFO",
    ):
        assert text in warning
    (tmp_path / "mixed/a/good.png").unlink()
    done = predict("out/weak", tmp_path / "mixed", "--output none.csv")
    assert done.code == 2 and "none of the 4 images can be read and named: " in done.err
    assert not (work / "none.csv").exists()


@pytest.fixture(scope="module")
def foreign(work: Path) -> Run:
    """Predicts by models of other packages, in a process of its own, in which a plugin is imported."""
    for package in ("transformers", "open_clip", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    make_hf(work / "vit", "xyz")
    make_clip(work)
    make_onnx(work / "net.onnx", class_names=["u", "v", "w"])
    command = ["data/train", "--output x.csv --all --workers 0"]
    return lambda model, *flags: run(PREDICT, model, *command, *flags, cwd=work)


LEGACY = "ignore:You are using the legacy TorchScript-based ONNX export"
CLIP_MODEL = f"clip:{CLIP}/clip.safetensors"


@pytest.mark.filterwarnings(LEGACY)
@pytest.mark.parametrize(
    ("model", "names", "flags"),
    [
        ("hf:vit", "xyz", ""),
        ("onnx:net.onnx", "uvw", ""),
        (CLIP_MODEL, "abcd", "--plugins colours.py --class-names a,b,c,d --prompts '{}|one {}'"),
        ("colours:predict", "abc", "--plugins colours.py --class-names a,b,c --img-size 8"),
    ],
)
def test_models_of_other_packages(work, foreign, model, names, flags):
    """Each with names of its own, or those that it is given, and its own preprocessing."""
    foreign(model, *filter(None, [flags])).ok()
    table = read_label_table(work / "x.csv")
    assert table.class_names == [*names] and len(table) == 200


@pytest.mark.filterwarnings(LEGACY)
def test_what_names_are_put_into_counts(work, foreign):
    answers = []
    for prompts in ("{}|one {}", "a drawing of a {}"):
        flags = "--plugins colours.py --class-names a,b,c,d --prompts"
        foreign(CLIP_MODEL, flags, prompts).ok()
        answers.append(read_label_table(work / "x.csv").answers.tolist())
    assert answers[0] != answers[1]


@pytest.mark.filterwarnings(LEGACY)
@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        (
            CLIP_MODEL,
            "--plugins colours.py",
            "needs the names of the classes, each of them once: give",
        ),
        ("hf:vit", "--class-names z,y,x", "hf:vit has names of its own, x, y, z"),
        ("hg:vit", "--img-size 8", "MODEL hg:vit: unknown kind of teacher 'hg' (nearest: hf"),
    ],
)
def test_models_of_other_packages_that_cannot_be_asked(work, foreign, model, flags, message):
    (work / "x.csv").unlink(missing_ok=True)
    done = foreign(model, flags)
    assert done.code == 2 and message in done.err.splitlines()[-1]
    assert not (work / "x.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("out/weak PHOTOS --class-names a,b", "2 names, but out/weak has 10 cl"),
        ("out/weak PHOTOS --top-k 11", "--top-k 11: there are 10 classes"),
        ("out/weak PHOTOS --img-size 900000", "expected 1 to 16384"),
        ("labels:a.csv PHOTOS", "MODEL labels:a.csv: labels cannot be asked about im"),
        (
            "out/weak PHOTOS --device cuda:99",
            "--device cuda:99: is not available here; use --device cpu",
        ),
        ("out/weak PHOTOS --device cdua", "--device cdua: unknown device (nearest: cuda"),
        ("resnet81 PHOTOS", "MODEL: unknown model 'resnet81' (nearest"),
        ("out/weak broken.png", "broken.png: cannot be read: "),
        ("out/weak out/weak", "out/weak: no images in it"),
        ("out/weak data/validation", "has 600 images, whose answers are a table: give --o"),
    ],
)
def test_bad_input_is_one_line(work, predict, words, message):
    (work / "broken.png").write_bytes(b"no image")
    assert (
        message in predict(*words.replace("PHOTOS", "data/validation --output x.csv").split()).error
    )
    assert not (work / "x.csv").exists()
