"""Twenty shards: trained on, interrupted, by two ranks."""

import functools
import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from tests.e2e.conftest import (
    BRIEF,
    Fork,
    Run,
    assert_same_end,
    differences,
    read_events,
    read_result,
    read_run,
    run_many,
    taught,
)
from tests.e2e.test_predict import PREDICT, run
from tests.hub_server import File, HubServer, Repo, hub_env
from tests.parts import encoded, write_tar
from w2s_plugins.data.digits import Digits
from w2s_plugins.data.unlabeled import find_shards, open_shards

SHARDS, EACH = 20, 40
FLAGS = [*BRIEF, "--model w2s_cnn2 --output out --loss kd --target-cache cache"]


digits = functools.cache(lambda: Digits("train").images)


def png(number: int) -> bytes:
    return encoded(Image.fromarray(digits()[number]))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in shards, with what else webdataset keeps of a sample; the keys begin anew in every second shard."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS):
        members = {}
        for i in range(EACH):
            key = f"{number % 2}/{i:04}"
            members |= {
                f"{key}.json": b"{}",
                f"{key}.png": png(number * EACH + i),
                f"{key}.seg.png": b"",
                f"{key}.cls": b"1",
            }
        write_tar(folder / f"train-{number:04}.tar", members)
    return folder


@pytest.fixture(scope="module")
def images(shards: Path) -> str:
    return f"wds/{shards}/train-{{0000..{SHARDS - 1:04}}}.tar"


def test_training_is_exact_for_workers_ranks_and_interruptions(
    here: Run, fork: Fork, shards: Path, images: str, weak: Path, tmp_path: Path
) -> None:
    flags = ["--unlabeled", images, *taught(weak), *FLAGS, "--hflip 0.5", "--experiment"]
    here(*flags, "whole", "--workers 2").ok()
    out = tmp_path / "out"
    cut = fork(*flags, "cut", "--recovery-interval 7")
    cut.wait_until(
        lambda: (out / "cut/metrics.jsonl").exists() and len(read_events(out / "cut")) > 66
    )
    cut.send(signal.SIGKILL)
    cut.wait()
    done = here(*flags, "cut", "--resume auto").ok()
    assert (
        "goes on with epoch 2, step " in done.err and "goes on with epoch 2, step 0" not in done.err
    )
    assert_same_end(out / "whole", out / "cut")
    two = fork(*flags, "two", "--batch-size 8", processes=2)
    assert two.wait() == [0, 0], two.text(0) + two.text(1)
    terms = [
        [e["terms"]["loss"] for e in read_events(out / name, "train")] for name in ("whole", "two")
    ]
    assert len(terms[0]) == 2 * SHARDS * EACH // 16 and terms[0] == pytest.approx(
        terms[1], abs=1e-5
    )
    record = read_result(out / "whole")
    assert record["data"]["train_samples"] == SHARDS * EACH
    shutil.copytree(shards, tmp_path / "moved")
    here(*flags, "cut", "--unlabeled", f"wds/{tmp_path}/moved", "--resume auto").ok()
    write_tar(tmp_path / "moved/train-0007.tar", {"0.png": png(0)})
    assert (
        "changed since it was written"
        in here(*flags, "cut", "--unlabeled", f"wds/{tmp_path}/moved", "--resume auto").error
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--select", "best", "--select-split", 0.1, "--train-slice", "100:700"),
        ("--teacher-targets", "cached", "--aug-repeats", 2),
        ("--linear-probe",),
    ],
)
def test_it_goes_with(
    here: Run, shards: Path, images: str, weak: Path, tmp_path: Path, flags: tuple
) -> None:
    teacher = [*taught(weak)]
    if "--select" in flags:  # a table names samples of shards by their numbers in all of them
        done = run(PREDICT, weak, images, "--output labels.csv --workers 0", cwd=tmp_path).ok()
        assert f"{SHARDS * EACH} images labelled" in done.err
        teacher = ["--teacher labels:labels.csv --num-classes 10"]
    here("--unlabeled", images, *teacher, *FLAGS, "--epochs 1 --experiment run", *flags).ok()
    record = read_result(tmp_path / "out/run")
    assert "top1" not in json.dumps(record)
    if "--select" in flags:
        assert [record["data"]["splits"][name]["num_samples"] for name in ("train", "select")] == [
            540,
            60,
        ]


def test_a_split_without_a_look_at_its_labels(here: Run, weak: Path, tmp_path: Path) -> None:
    flags = [*taught(weak), *FLAGS, "--epochs 1 --train-slice 0:64"]
    here("--unlabeled w2s/digits:train", *flags, "--experiment run").ok()
    record = read_result(tmp_path / "out/run")
    assert record["metrics"] == {} and record["data"]["splits"]["train"]["name"] == "unlabeled"
    assert (
        "which split? Expected NAME:SPLIT, such as w2s/digits:train"
        in here("--unlabeled w2s/digits", *flags).error
    )


def mark(path: Path) -> None:
    """A shard whose tenth member has no header."""
    with tarfile.open(path) as tar:
        header = tar.getmembers()[9].offset
    good = path.read_bytes()
    path.write_bytes(good[:header] + b"x" * 300 + good[header + 300 :])


# names of shards, how the shard x.tar is made of a whole one, and what is said
WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut": (
        "x.tar",
        lambda path: os.truncate(path, 2000),
        "not a tar file, compressed, or damaged (unexpected end of data)",
    ),
    "burnt": ("x.tar", mark, "no header of a member at byte "),
    "no images": (
        "x.tar",
        lambda path: write_tar(path, {"a.json": b"", "c.seg.png": b""}),
        "no images in it; expected files named .jpg",
    ),
    "a key twice": (
        "x.tar",
        lambda path: write_tar(path, {"a.png": b"1", "b.png": b"2", "a.jpg": b"3"}),
        "the key a is there more than once; expected one image of each",
    ),
    "no file": (
        "pipe.tar",
        lambda path: os.mkfifo("pipe.tar"),
        "1 of 1 shards are not there, such as pipe.tar",
    ),
    "nothing": ("empty", lambda path: Path("empty").mkdir(), "no tar files in it"),
    "lost": (
        "{x,y,z}.tar",
        lambda path: path.rename("y.tar"),
        "2 of 3 shards are not there, such as x.tar",
    ),
    "command": ("pipe:touch ran", str, "nothing is fetched or run here"),
    "address": ("https://host/{0..9}.tar", str, "nothing is fetched or run here"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_in_one_line(here: Run, shards: Path, weak: Path, kind: str) -> None:
    images, damage, message = WRONG[kind]
    damage(Path(shutil.copy(shards / "train-0000.tar", "x.tar")))
    error = here(*FLAGS, *taught(weak), "--experiment x", "--unlabeled", f"wds/{images}").error
    assert message in error and not Path("ran").exists()


def test_prediction_says_it_too(here: Run, weak: Path) -> None:
    Path("empty").mkdir()
    error = here(weak, "wds/empty", "--output x.csv", script=PREDICT).error
    assert error == "wds/empty: no tar files in it"


def test_samples_are_named_by_shard_and_key(shards: Path) -> None:
    """In the order of webdataset; another image of one key, or another shard, makes other data."""
    dataset = open_shards(find_shards(f"wds/{shards}"))
    assert (
        dataset.filename(45) == "train-0001/1/0005"
        and dataset[45][0].tobytes() == Image.open(io.BytesIO(png(45))).convert("RGB").tobytes()
    )
    reader = webdataset.WebDataset(
        [str(path) for path in find_shards(f"wds/{shards}")], shardshuffle=False
    )
    assert [sample["__key__"] for sample in reader] == [
        dataset.filename(i).split("/", 1)[1] for i in range(len(dataset))
    ]


def test_files_of_the_hub(hub_server: HubServer, weak: Path, tmp_path: Path) -> None:
    """Tar files, at one commit; once they are here the Hub is asked for the list of files only."""
    for name, numbers in (("x", range(32)), ("y", range(32, 64)), ("test", range(2))):
        write_tar(tmp_path / f"{name}.tar", {f"{i}.png": png(i) for i in numbers})
    files = {
        "data/train-0.tar": "x.tar",
        "more/train/y.tar": "y.tar",
        "data/test-0.tar": "test.tar",
    }
    repo = hub_server.repos["datasets/org/digits"] = Repo("datasets/org/digits")
    repo.commit(
        "main",
        {"data.py": File(b"open('ran', 'w')", False)}
        | {name: File((tmp_path / file).read_bytes(), False) for name, file in files.items()},
        "data",
    )
    common = [*map(str, (*FLAGS, *taught(weak), "--epochs", 1))]
    env = hub_env(hub_server, tmp_path)

    def flags(name: str, run: str) -> list[str]:
        return [*common, "--unlabeled", f"hfids/{name}", "--experiment", run]

    first, split, absent = run_many(
        [flags("org/digits:train", "one"), flags("org/digits:trian", "x"), flags("org/none", "x")],
        env,
        tmp_path,
    )
    assert first.code == 0, first.err
    assert "has no .tar file of the split 'trian' (nearest: train" in split.error
    assert "--unlabeled hfids/org/none: no such repository on the Hub" in absent.error
    record = read_result(tmp_path / "out/one")
    assert record["data"]["train_samples"] == 64 and not (tmp_path / "ran").exists()
    hub_server.requests.clear()
    (again,) = run_many([flags("org/digits:train", "two")], env, tmp_path)
    assert again.code == 0 and not [r for r in hub_server.requests if "resolve" in r.path]
    assert differences(read_run(tmp_path / "out/one"), read_run(tmp_path / "out/two")) == []
