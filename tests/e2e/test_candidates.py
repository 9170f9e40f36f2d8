"""``audit:`` at the end of a file of stages: images are drawn, and a person says which of these students is best."""

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.parts import write_digits, write_tar
from w2s_plugins.audit import run as module
from w2s_plugins.audit.labelled import flags_of_part
from w2s_plugins.cli.parser import parse, train_parser
from w2s_plugins.labels.table_writer import write_label_table
from w2s_plugins.study.planning import plan_runs

from .conftest import BRIEF, Fork, Run, call_before, in_file, power_cut, read_result, taught
from .test_audit import page_of, write_photos
from .test_audit_content import NAMES, answers_about, audit
from .test_streams import write_shards

STAGES = """
- {name: one, linear_probe: true, opt: adamw, lr: 0.003}
- {name: two, tune: head}
- {name: three, opt: adamw, lr: 0.001}
- audit: [one, two, three]
"""
FOLDERS = "chain/one chain/two chain/three"
STUDENTS = (
    "--teacher labels:weak.csv --class-names names.json --loss kd --stages stages.yaml --output ."
)


@pytest.fixture
def flags(here: Run) -> list[object]:
    """Three students of 90 digits, a third of whose labels are wrong."""
    write_photos(NAMES)
    Path("stages.yaml").write_text(STAGES)
    files = in_file(Path("brief.yaml"), [*BRIEF, "--model w2s_cnn2"])
    return [*files, STUDENTS, "--unlabeled photos --experiment chain"]


def answer(truth: dict[str, str], run: str = "chain/one", count: int = 90) -> Path:
    """Answer the first images that were drawn."""
    write_label_table(Path("said.csv"), [answers_about(truth, page_of(run)["keys"][:count])])
    return Path("said.csv")


def test_the_end_is_a_page(here: Run, flags: list[object]) -> None:
    """No student is to be taken before a person has answered; the command that is printed reads the answers."""
    done = here(*flags).ok()
    table, drawn = done.out.split(
        "* which of one, two, three is best? 90 answers of yours help to tell\n"
    )
    assert [line.split()[0] for line in table.splitlines()[-3:]] == ["one", "two", "three"]
    assert "* take" not in done.out and "earlier one" not in done.out
    assert re.search(
        r"^labels, one, two, three: all agree on .* of 90 images; 90 are drawn$", drawn, re.M
    )
    assert len(page_of("chain/one")["keys"]) == 90
    command = f"labels audit {FOLDERS} --answers FILE"
    assert "* open chain/one/audit/index.html in a browser" in drawn and drawn.rstrip().endswith(
        command
    )
    # nothing is said twice of what the students have learned from
    assert "WARNING" not in done.err and done.err.count("Images without labels") == 3

    truth = write_photos(NAMES)
    lines = audit(here, *FOLDERS.split(), "--answers", answer(truth)).ok().out.splitlines()
    (verdict,) = [line for line in lines if line.startswith(("Best: ", "Level: ", "Most likely"))]
    best = verdict.split(": ")[1].split()[0].rstrip(",")
    if best != "labels":
        assert f"* {best} is exported to chain/{best}/export" in lines
        end = "--stages weak-labels-plus-few-true --output . --experiment chain-checked"
        assert lines[-1].endswith(end)
    words = shlex.split(lines[-1])
    words = words[words.index("--unlabeled") :]
    here(*words, "--epochs 1 --workers 0 --output .").ok()
    assert "student" in read_result("chain-checked")["stages"]


def test_it_goes_on(
    here: Run, flags: list[object], at_step: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was interrupted in the third stage, or while images are drawn, ends as what was not; answers stay."""
    here(*flags).ok()
    page = Path("chain/one/audit/index.html").read_text()
    parts = [*flags[:-1], "--unlabeled photos --experiment parts"]
    at_step(28)  # 6 steps an epoch: the second stage ends with step 24
    with pytest.raises(RuntimeError, match="power cut"):
        here(*parts)
    ended = [Path("parts", name, "result.json").exists() for name in ("two", "three")]
    assert ended == [True, False]
    with monkeypatch.context() as patch:
        call_before(module, "draw", 1, power_cut, patch.setattr)
        with pytest.raises(RuntimeError, match="power cut"):
            here(*parts, "--resume auto")
    done = here(*parts, "--resume auto").ok()
    assert done.err.count("is complete") == 3
    assert Path("parts/one/audit/index.html").read_text().replace("parts", "chain") == page

    # some are answered, and the same command is repeated
    truth = write_photos(NAMES)
    folders = FOLDERS.replace("chain", "parts").split()
    audit(here, *folders, "--answers", answer(truth, "parts/one", 20)).ok()
    kept = Path("parts/one/audit/answers.csv").read_bytes()
    done = here(*parts, "--resume auto").ok()
    assert "the answers so far: answers about 20 of the 90 drawn images" in done.out
    assert Path("parts/one/audit/answers.csv").read_bytes() == kept
    assert len(page_of("parts/one")["given"]) == 20


def test_on_two_ranks(ranks: Run, flags: list[object], tmp_path: Path) -> None:
    """One of them draws."""
    done = ranks(*flags, "--batch-size 8", processes=2, cwd=tmp_path).ok()
    assert done.out.count("90 are drawn") == done.err.count("90 are drawn") == 1
    assert len(page_of("chain/one")["keys"]) == 90
    again = ranks(*flags, "--batch-size 8 --resume auto", processes=2, cwd=tmp_path).ok()
    assert again.out.count("90 are drawn") == 1


def test_a_signal_ends_all_ranks(fork: Fork, flags: list[object]) -> None:
    def before(rank: int) -> None:
        def begin(*args: object) -> None:
            Path("begun").touch()
            time.sleep(60)

        module.begin_audit = begin

    run = fork(*flags, "--batch-size 8", processes=2, before=before)
    run.wait_until(Path("begun").exists)
    run.send(signal.SIGTERM)
    assert run.wait() == [128 + signal.SIGTERM] * 2
    assert "stopped between two runs; go on with the same command and --resume auto" in run.text(0)


def put_into_a_tar() -> None:
    write_tar(
        Path("photos.tar"), {file.name: file.read_bytes() for file in Path("photos").iterdir()}
    )


def sort_into_classes() -> None:
    """The photos, and others to measure on, in folders of their classes."""
    write_digits(
        120,
        lambda number, label: Path("data", "train" if number < 90 else "validation", str(label)),
    )
    rows = sorted(Path("data/train").rglob("*.png"))
    write_label_table(
        Path("weak.csv"),
        [{"filename": [file.name for file in rows], "label": [file.parent.name for file in rows]}],
    )


VIT = "--model test_vit --img-size 16 --model-kwargs patch_size=4 --amp"


@pytest.mark.parametrize(
    ("prepare", "more"),
    [
        (lambda: None, f"--unlabeled photos {VIT}"),
        (put_into_a_tar, "--unlabeled photos.tar"),
        (sort_into_classes, "--data-dir data --task-loss-weight 0"),
    ],
    ids=["transformer", "tar", "folder"],
)
def test_kinds_of_images_and_students(
    here: Run, flags: list[object], prepare: Callable, more: str
) -> None:
    prepare()
    Path("stages.yaml").write_text(STAGES.replace("opt: adamw, lr: 0.001", "tune: lora"))
    done = here(*flags[:-1], more, "--experiment chain").ok()
    assert "90 are drawn" in done.out and "no images are drawn" not in done.err
    opinions = load_file("chain/one/audit/opinions.safetensors")
    assert len({opinions[f"{number} says"].tobytes() for number in range(4)}) > 1


def test_a_stream_has_no_images_to_draw(here: Run, flags: list[object], weak: Path) -> None:
    """The students are trained all the same, and one line says why nobody is asked."""
    Path("data").mkdir()
    splits = {split: write_shards(Path("data"), split, 2) for split in ("train", "validation")}
    Path("data/_info.json").write_text(json.dumps({"splits": splits}))
    Path("stages.yaml").write_text(STAGES.replace("linear_probe: true", "tune: head"))
    data = "--dataset wds/digits --data-dir data --num-classes 10 --stages stages.yaml"
    done = here(*flags[:2], data, *taught(weak), "--output . --experiment chain").ok()
    assert "100 answers of yours help to tell" in done.out
    assert done.err.splitlines()[-1].endswith(
        "WARNING: no images are drawn: RUN chain/one: its flags say --dataset wds/digits: a stream, of which no "
        f"images can be drawn; put that right, then python -m w2s_plugins.labels audit {FOLDERS}"
    )


def test_images_that_are_gone(
    here: Run, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    call_before(module, "begin_audit", 1, lambda: os.rename("photos", "moved"), monkeypatch.setattr)
    done = here(*flags, "--plugins", "w2s_plugins.no_label").ok()
    (line,) = [line for line in done.err.splitlines() if "WARNING: no images are drawn" in line]
    assert "--unlabeled photos: no such folder" in line
    assert line.endswith(f"labels audit {FOLDERS} --plugins w2s_plugins.no_label")
    moved = "--data-dir moved --plugins w2s_plugins.no_label"
    done = audit(here, *FOLDERS.split(), moved).ok()
    assert done.out.rstrip().endswith(f"audit {FOLDERS} {moved} --answers FILE")


@pytest.mark.parametrize(
    ("typed", "flags"),
    [
        ("--model w2s_cnn5 --tune last:0.3 --opt adamw --lr 0.0006", {}),
        ("--model w2s_cnn5 --linear-probe --opt adamw --lr 0.003", {}),
        ("--model w2s_cnn5 --opt sgd --lr 0.1", {}),
        ("--model test_vit --tune lora --opt adamw --lr 0.002", {}),
        ("--model w2s_cnn5 --tune lora --opt adamw --lr 0.002", dict(tune="lora", lr=0.002)),
        (
            "--model test_vit --tune last:0.3 --opt adamw --lr 0.002 --layer-decay 0.3",
            dict(tune="last:0.3", lr=0.002, layer_decay=0.3),
        ),
    ],
)
def test_the_part_that_is_trained_next(typed: str, flags: dict[str, object]) -> None:
    """That of the best student, at its rate, unless the stages that come next train it anyway."""
    args, _ = parse(train_parser(), typed.split())
    found = flags_of_part(vars(args))
    assert {name: value for name, value in found.items() if value is not None} == flags


def test_only_those_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "stages.yaml").write_text(STAGES.replace("[one, two, three]", "[three, one]"))
    files = dict(stages=str(tmp_path / "stages.yaml"), experiment="x", dataset="w2s/digits")
    assert [run.audited for run in plan_runs(files).runs] == [True, False, True]
