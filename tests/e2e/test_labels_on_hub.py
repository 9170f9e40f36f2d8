"""Labels published as a dataset on the Hub, and trained on from there."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from safetensors.torch import load_file

from tests import forks
from tests.hub_server import HubServer, hub_env
from tests.parts import write_folder

from .conftest import differences, read_result, run_many, run_script
from .test_labels import FLAGS, write

TOKEN = "hf_" + "s3cretS3cret" * 3
COLUMNS = ("filename", "label", "annotator")
PUSH = ["-m", "w2s_plugins.labels", "push"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with images of three classes, a table of labels by two annotators, and one of others."""
    work = tmp_path / "work"
    write_folder(work / "data", {"train": 48, "validation": 24}, size=(16, 16))
    files = sorted(
        p.relative_to(work / "data/train").as_posix() for p in work.glob("data/train/*/*.jpg")
    )
    write(
        work / "crowd.csv",
        [
            (f, f.split("/")[0] if i % 5 else "class1", who)
            for i, f in enumerate(files)
            for who in ("ann", "bob")
        ],
        COLUMNS,
    )
    return work


def train(name: str, teacher: str, *flags: str) -> list[str]:
    return [*FLAGS, "--experiment", name, "--teacher", teacher, *flags]


def weights(work: Path, name: str) -> dict:
    return load_file(work / "out" / name / "export/model.safetensors")


def head(server: HubServer, name: str) -> tuple[str, dict[str, bytes]]:
    """The commit of a dataset, and its files."""
    repo = server.repos[f"datasets/{name}"]
    commit = repo.resolve("main")
    return commit, {
        path: file.data for path, file in repo.commits[commit].items() if path != ".gitattributes"
    }


def card_of(files: dict[str, bytes]) -> DatasetCard:
    return DatasetCard(files["README.md"].decode())


def test_labels_travel_by_the_hub(work: Path, hub_server: HubServer, tmp_path: Path) -> None:
    """A teacher's answers and a table are published, trained on, from a pinned commit and without the Hub too."""
    hub_server.add_user("me", TOKEN)
    env = hub_env(hub_server, tmp_path, token=TOKEN)
    cached = ["--teacher-targets cached --teacher-checkpoint out/weak"]
    on_hub = "labels:hf://datasets/me/crowd"
    weak, first = run_many(
        [train("weak", "", "--task-loss-weight 1 --loss ce"), train("first", "w2s_cnn2", *cached)],
        env,
        work,
    )
    weak.ok(), first.ok()
    folder = read_result(work / "out/first")["teacher"]["cache"][0]["path"]
    answers, *done = run_many(
        [
            [*PUSH, folder, "me/answers", "--private"],
            [*PUSH, "crowd.csv", "me/crowd", "--license cc0-1.0"],
            ["-m", "w2s_plugins.labels", "check", "hf://datasets/me/crowd"],
            train("answers", "labels:hf://datasets/me/answers"),
            train("table", "labels:crowd.csv"),
            train("crowd", on_hub),
            train("resumed", on_hub, "--stop-epoch 1"),
        ],
        env,
        work,
    )
    answers.ok()
    stats = [d.ok() for d in done][1]
    assert "hf://datasets/me/crowd: 96 answers about 48 samples" in stats.out
    old, files = head(hub_server, "me/crowd")
    assert (
        set(files) == {"README.md", "crowd.csv"}
        and files["crowd.csv"] == (work / "crowd.csv").read_bytes()
    )
    assert card_of(files).data.license == "cc0-1.0"
    answers, files = head(hub_server, "me/answers")
    assert set(files) == {"README.md", "labels.npz"}
    assert hub_server.repos["datasets/me/answers"].private and card_of(files).data.license is None
    card = files["README.md"].decode()
    sha = json.loads((work / folder / "labels.json").read_text())["who"]["sha256"]
    assert all(
        t in card
        for t in (
            "Labels of 48 images in 3 classes",
            "--teacher labels:hf://datasets/me/answers",
            sha,
            "`w2s_cnn2`",
            "| `class1` |",
            "`logits`",
        )
    )
    assert differences(weights(work, "first"), weights(work, "answers")) == []
    assert differences(weights(work, "table"), weights(work, "crowd")) == []
    source = read_result(work / "out/crowd")["teacher"]["models"][0]["source"]
    assert (source["repo"], source["revision"], source["rows"]) == ("datasets/me/crowd", old, 96)
    assert old in (work / "out/crowd/export/README.md").read_text()

    hub_server.requests.clear()
    two = train("ranks", "labels:hf://datasets/me/answers", "--batch-size 8")
    with ThreadPoolExecutor() as pool:
        assert not any(
            done.code
            for done in pool.map(
                lambda rank: run_script(*two, cwd=work, env={**env, **rank}), forks.rank_env(2)
            )
        )
    asked = [
        r.path
        for r in hub_server.requests
        if r.path.startswith("/api/datasets/me/answers/revision/")
    ]
    assert len(asked) == 2  # one process: it lists the files, and downloads them

    others = [(line[0], "class0", line[2]) for line in csv.reader((work / "crowd.csv").open())][1:]
    write(work / "new.csv", others, COLUMNS)
    pushed, changed, moved = run_many(
        [
            [*PUSH, "new.csv", "me/crowd"],
            train("resumed", on_hub, "--resume auto"),
            train("moved", f"{on_hub}@{old[:12]}"),
        ],
        env,
        work,
    )
    assert set(head(hub_server, "me/crowd")[1]) == {"README.md", "new.csv"}
    assert "changed since it was written" in changed.error
    for run in (pushed, moved):
        run.ok()
    assert differences(weights(work, "crowd"), weights(work, "moved")) == []

    hub_server.__exit__()
    again, failed = run_many(
        [train("again", "labels:hf://datasets/me/answers"), [*PUSH, folder, "me/answers"]],
        env,
        work,
    )
    assert f"the commit {answers} is taken, as it is in the cache" in again.ok().err
    assert differences(weights(work, "first"), weights(work, "again")) == []
    assert "push to me/answers: the Hub at http://127.0.0.1" in failed.error
    offline, absent = run_many(
        [train("offline", f"{on_hub}@{old}"), train("absent", "labels:hf://datasets/me/other")],
        env | {"HF_HUB_OFFLINE": "1"},
        work,
    )
    assert differences(weights(work, "crowd"), weights(work, "offline")) == [], offline.ok()
    assert "HF_HUB_OFFLINE is set" in absent.error
    files = [path for path in (*work.rglob("*"), *tmp_path.glob("*")) if path.is_file()]
    assert files and not [path for path in files if TOKEN.encode() in path.read_bytes()]
    for repo in hub_server.repos.values():
        for file in (file for commit in repo.commits.values() for file in commit.values()):
            assert TOKEN.encode() not in file.data and str(tmp_path).encode() not in file.data


def test_what_is_not_there_or_is_no_labels(
    work: Path, hub_server: HubServer, tmp_path: Path
) -> None:
    """One line each, and nothing is fetched but what may be labels."""

    def add(name: str, files: dict[str, str]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        return hub_server.add_model(f"datasets/me/{name}", folder)

    table = (work / "crowd.csv").read_text()
    add(
        "crowd",
        {
            "data/[a]*.csv": table,
            "code.py": "raise SystemExit",
            "x.pickle": "no",
            "b/c.safetensors": "",
        },
    )
    # a name that leads out of the folder is not looked at
    repo = hub_server.repos["datasets/me/crowd"]
    files = repo.commits[repo.resolve("main")]
    files["../x.csv"] = files["code.py"]
    add("two", {"a.csv": table, "b.csv": table})
    add("none", {"README.md": "#", "code.py": ""})
    add("broken", {"labels.npz": "{}", "labels.json": "{}"})
    hub_server.add_model("datasets/me/gated", tmp_path / "crowd", gated=True)
    bad = {
        "hf://datasets/me/crwd": "no such repository on the Hub, or it is private",
        "hf://datasets/me/crowd@mian": "the repository has no such revision",
        "hf://datasets/me/two": "is no set of labels: expected one table (.csv, .tsv",
        "hf://datasets/me/none": "it has 0",
        "hf://datasets/me/broken": "cannot be read as npz",
        "hf://datasets/me/gated": "the repository is gated; ask for access",
        "hf://me/crowd": "expected hf://datasets/ORG/NAME or hf://datasets/ORG/NAME@REVISION",
    }
    env = hub_env(hub_server, tmp_path)
    good, login, *done = run_many(
        [
            train("good", "labels:hf://datasets/me/crowd"),
            [*PUSH, "crowd.csv", "me/x"],
            *(train("bad", f"labels:{name}") for name in bad),
        ],
        env,
        work,
    )
    good.ok()
    assert "token" in login.error
    for run, message in zip(done, bad.values()):
        assert message in run.error
    fetched = {p.name for p in (tmp_path / "hf_home/hub").rglob("snapshots/*/*") if p.is_file()}
    fetched |= {p.name for p in (tmp_path / "hf_home/hub").rglob("snapshots/*/*/*") if p.is_file()}
    assert fetched == {"[a]*.csv", "labels.npz"}


def test_downloads_that_fail(work: Path, hub_server: HubServer, tmp_path: Path) -> None:
    """What was damaged on its way is noticed, and fetched again by the next command."""
    hub_server.add_user("me", TOKEN)
    with (work / "crowd.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.savez(work / "crowd.npz", **{name: [row[name] for row in rows] for name in rows[0]})
    hub_server.fault(
        "GET /datasets/me/crowd/resolve/.*npz",
        times=1,
        rewrite=lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    )
    hub_server.add_model("datasets/me/images", work / "data/train/class0")
    push, images, damaged, good, table = run_many(
        [
            [*PUSH, "crowd.npz", "me/crowd"],
            [*PUSH, "crowd.csv", "me/images"],
            train("damaged", "labels:hf://datasets/me/crowd"),
            train("good", "labels:hf://datasets/me/crowd"),
            train("table", "labels:crowd.csv"),
        ],
        hub_env(hub_server, tmp_path, token=TOKEN),
        work,
    )
    push.ok()
    assert "push to me/images: the dataset holds other files than labels" in images.error
    assert "was damaged on its way" in damaged.error and good.ok() and table.ok()
    assert differences(weights(work, "table"), weights(work, "good")) == []
