"""``python -m w2s_plugins.predictions``: run folder, images and a table, as processes forked from the tests'."""

import csv
import importlib
import importlib.util
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from torch import nn

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


def read_features(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and features, as NumPy or pandas read them."""
    if path.suffix == ".npz":
        arrays = np.load(path)
        assert {*arrays} == {"filename", "features"}
        return arrays["filename"].tolist(), arrays["features"]
    frame = pd.read_parquet(path)
    assert [*frame] == ["filename", "features"]
    return frame["filename"].tolist(), np.stack(frame["features"])


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


def cut_short(work: Path, images: str, *flags: str) -> list[Path]:
    """Predict until some parts are there, and return these; the first flag names the file."""
    parts: list[Path] = []
    pid, _ = start(PREDICT, "out/weak", images, *flags, "--workers 0", cwd=work)
    file = flags[0].split()[1]
    deadline = time.monotonic() + 60
    while not parts and time.monotonic() < deadline:
        parts = list(work.glob(f"{file}.parts/*/*.safetensors"))
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert parts and not (work / file).exists()
    return list(work.glob(f"{file}.parts/*/*.safetensors"))


@pytest.mark.parametrize("flags", ["--output FILE.csv --all -b 1", "--features FILE.npz -b 1"])
def test_killed_and_gone_on_with(work, predict, flags):
    """The parts that are there stay as they are, and the file is the same to the last byte."""
    whole, cut = (flags.replace("FILE", name) for name in ("whole", "cut"))
    predict("out/weak", "data/validation", whole).ok()
    parts = cut_short(work, "data/validation", cut)
    done = predict("out/weak", "data/validation", cut).ok()
    assert f"{3 - len(parts)} part(s) to write" in done.err
    files = [work / flag.split()[1] for flag in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(work.glob("*.parts"))


def test_an_image_that_was_replaced_meanwhile_is_not_answered_from_before(work, predict):
    """Also one of the same size and time, as copying tools leave it, that no sample of pixels has seen."""
    shutil.copytree(work / "data/validation", work / "photos")
    cut_short(work, "photos", "--output replaced.csv --all -b 1")
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
    """Of labels and of features, one after the other."""
    flags = "--output {0}.jsonl --top-k 3 --features {0}.parquet --workers 0"
    predict("out/weak", "data/validation", flags.format("one")).ok()
    ranks(
        "out/weak",
        "data/validation",
        flags.format("two"),
        script=PREDICT,
        cwd=work,
        processes=2,
    ).ok()
    for suffix in ("jsonl", "parquet"):
        assert (work / f"one.{suffix}").read_bytes() == (work / f"two.{suffix}").read_bytes()
    assert not list(work.glob("*.parts"))


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
    # the first of all is one of them, so that rows and images are not numbered alike
    for name in ("a/good.png", "0-broken.png", "empty.jpg", ".hidden.png", "note.txt"):
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
    flags = "--output mixed.csv --features mixed.npz"
    done = predict("out/weak", tmp_path / "mixed", flags).ok()
    assert [row["filename"] for row in rows_of(work / "mixed.csv")] == ["a/good.png"]
    names, features = read_features(work / "mixed.npz")
    assert names == ["a/good.png"] and len(features) == 1
    warning = "\n".join(line for line in done.err.splitlines() if "WARNING" in line)
    for text in (
        "4 of 5 images are left out",
        "its name is not UTF-8",
        "0-broken.png",
        "empty.jpg",
        "pipe.png: cannot be read (a FIFO",
    ):
        assert text in warning
    (tmp_path / "mixed/a/good.png").unlink()
    for flag, file in (("--output", "none.csv"), ("--features", "none.npz")):
        done = predict("out/weak", tmp_path / "mixed", flag, file)
        assert done.code == 2 and "none of the 4 images can be read and named: " in done.err
        assert not (work / file).exists()


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
        ("out/weak broken.png", "broken.png: cannot be read ("),
        ("out/weak out/weak", "out/weak: no images in it"),
        ("out/weak data/validation", "has 600 images, whose answers are a table: give --o"),
        (
            "out/weak PHOTOS --features f.npy",
            "--features f.npy: of an unknown kind (nearest: .npz)",
        ),
        ("out/weak PHOTOS --features no/f.npz", "--features no/f.npz: is a folder, or in none"),
        ("out/weak data/train --features f.npz --all", "--all is about labels, and --features ho"),
        (
            "out/weak data/train --output y.parquet --features ./y.parquet",
            "--features y.parquet: is --output, too; expected two files",
        ),
    ],
)
def test_bad_input_is_one_line(work, predict, words, message):
    (work / "broken.png").write_bytes(b"no image")
    assert (
        message in predict(*words.replace("PHOTOS", "data/validation --output x.csv").split()).error
    )
    assert not (work / "x.csv").exists()


# ---------------------------------------------------------------- features


def export_timm(
    folder: Path, name: str, change: Callable[[nn.Module], object] | None = None, **kwargs: object
) -> str:
    """Save a model of timm with random weights in timm's own form; return what names it."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs)
    if change is not None:
        change(model)
    save_for_hf(model, folder, safe_serialization=True)
    return f"local-dir:{folder}"


@torch.inference_mode()
def features_by_timm(name: str, images: Path) -> np.ndarray:
    """What the classifier of a model is given of some images, in the order of their names, by timm alone."""
    model = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    files = sorted(images.rglob("*.png"))
    batch = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    return model.forward_head(model.forward_features(batch), pre_logits=True).numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal within rounding: batch norm is folded, and images are in another layout."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "classes", "suffix"), [("test_resnet", 7, ".npz"), ("test_vit", 0, ".parquet")]
)
def test_features_are_those_of_timm(work, predict, tmp_path, name, classes, suffix):
    """Also of a model without classes, which has no labels."""
    images, file = work / "data/validation/A", tmp_path / f"features{suffix}"
    model = export_timm(tmp_path / name, name, num_classes=classes)
    done = predict(model, images, "--features", file).ok()
    names, features = read_features(file)
    assert names == sorted(path.name for path in images.iterdir())
    assert_close(features, features_by_timm(model, images))
    assert f"{file}: features {features.shape} by {model}" in done.err
    if not classes:
        error = predict(model, images, "--output x.csv").error
        assert error == f"MODEL {model}: has no classes; --features FILE writes its features"


@pytest.mark.parametrize("model", NAMES)
def test_features_of_a_run_by_all_its_names(work, predict, model):
    """With labels in one command, which are those of a command of their own."""
    predict(model, "images.tar", "--output both.csv --all --features both.npz").ok()
    predict("out/weak", "data/validation", "--output alone.csv --all").ok()
    assert (work / "both.csv").read_bytes() == (work / "alone.csv").read_bytes()
    names, features = read_features(work / "both.npz")
    assert names == [row["filename"] for row in rows_of(work / "alone.csv")]
    # the head of the student makes its probabilities of them
    state = load_file(work / "out/weak/export/model.safetensors")
    weight, bias = (state[f"fc.{part}"] for part in ("weight", "bias"))
    shares = torch.softmax(torch.from_numpy(features) @ weight.T + bias, dim=1).numpy()
    table = pd.read_csv(work / "alone.csv")[[*"ABCDEFGHIJ"]]
    assert np.abs(shares - table.to_numpy()).max() < 1e-5


def test_features_of_one_image(work, predict):
    image = sorted((work / "data/validation").glob("*/*.png"))[7]
    predict("out/weak", "data/validation", "--features all.npz").ok()
    predict("out/weak", image, "--features one.npz").ok()
    names, features = read_features(work / "one.npz")
    assert names == [image.name]
    assert_close(features, read_features(work / "all.npz")[1][7:8])


def test_a_file_of_features_is_not_overwritten_unless_it_is_of_this_program(work, predict):
    command, file = ["out/weak", "data/train", "--features mine.npz"], work / "mine.npz"
    predict(*command).ok()
    predict(*command).ok()
    np.savez(file, features=np.zeros((2, 3)))
    content = file.read_bytes()
    assert "--features mine.npz: is there already, and not as this p" in predict(*command).error
    assert file.read_bytes() == content


def test_features_that_are_not_finite_are_not_written(work, predict, tmp_path):
    """Of finite weights, by which no model is refused."""
    model = export_timm(
        tmp_path / "huge", "test_vit", lambda vit: nn.init.constant_(vit.norm.weight, 3e38)
    )
    error = predict(model, "data/train", "--features inf.npz").error
    assert "gives values that are not finite for 200 of 200 samples (first: 0)" in error
    assert not (work / "inf.npz").exists()


def test_parquet_needs_a_package(work, predict, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "w2s_plugins.labels.table_writer.find_spec",
        lambda name: None if name == "pyarrow" else find_spec(name),
    )
    error = predict("out/weak", "data/train", "--features f.parquet").error
    assert error == "--features f.parquet: parquet needs a package: pip install pyarrow"


@pytest.fixture
def foreign_features(work: Path, foreign: Run) -> Callable[..., Done]:
    """Writes features of models of other packages to ``x.npz``."""

    def write(model: str, *flags: str) -> Done:
        (work / "x.npz").unlink(missing_ok=True)
        return run(
            PREDICT, model, "data/validation/A", "--features x.npz --workers 0", *flags, cwd=work
        )

    return write


@pytest.mark.filterwarnings(LEGACY)
def test_features_of_transformers(work, foreign_features):
    """What the head is given, also of an encoder that has none, whose labels are refused."""
    from transformers import AutoImageProcessor, AutoModel

    encoder = AutoModel.from_pretrained(work / "vit", add_pooling_layer=False).eval()
    encoder.save_pretrained(work / "encoder")
    processor = AutoImageProcessor.from_pretrained(work / "vit")
    processor.save_pretrained(work / "encoder")
    files = sorted((work / "data/validation/A").iterdir())
    images = [Image.open(file).convert("RGB") for file in files]
    with torch.inference_mode():
        hidden = encoder(**processor(images, return_tensors="pt")).last_hidden_state
    for model in ("hf:vit", "hf:encoder"):
        foreign_features(model).ok()
        names, features = read_features(work / "x.npz")
        assert names == [file.name for file in files]
        # its processor resizes with other rounding
        assert np.abs(features - hidden[:, 0].numpy()).max() < 0.02
    done = run(PREDICT, "hf:encoder", "data/train", "--output y.csv", cwd=work)
    assert done.code == 2 and "its weights are not those of an image classifier" in done.err


@pytest.mark.filterwarnings(LEGACY)
def test_features_of_clip_need_no_names_of_classes(work, foreign_features):
    foreign_features(CLIP_MODEL, "--plugins colours.py").ok()
    features = read_features(work / "x.npz")[1]
    assert features.shape == (len(list((work / "data/validation/A").iterdir())), 16)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)
    done = foreign_features(CLIP_MODEL, "--plugins colours.py --class-names a,b")
    assert done.code == 2 and "--class-names is about labels" in done.err


@pytest.mark.filterwarnings(LEGACY)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("onnx:net.onnx", "has no features (it gives logits alone); expected a model of timm"),
        ("colours:predict", "has no features: a function gives answers alone; expected a model"),
    ],
)
def test_a_model_without_features_is_refused(foreign_features, model, message):
    done = foreign_features(model, "--plugins colours.py")
    assert done.code == 2 and f"MODEL {model}: {message}" in done.err.splitlines()[-1], done.err
