"""``--stages``: students one after the other, each an ordinary run."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from tests.parts import refusal, write_digits
from w2s_plugins.data import create_dataset
from w2s_plugins.files import recipe_path
from w2s_plugins.run.record import write_predictions
from w2s_plugins.study.ahead import settle
from w2s_plugins.study.chain import best_part, choose_assign, choose_best, choose_part, is_same
from w2s_plugins.study.planning import plan_runs

from .conftest import TINY, Run, in_file, read_result, taught

HELD_OUT = {"splits": {"select": {"num_samples": 50}}}
STAGES = """
- name: head
  linear_probe: true
  no_aug: true
- name: again
  teacher: given,stage:head
  teacher_targets: cached
  clean_select: entropy:0.5
  tune: last:1
- name: all
  initial_checkpoint: stage:again
  lr: 0.001
"""


@pytest.fixture
def flags(weak: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "stages.yaml").write_text(STAGES)
    return [
        *in_file(tmp_path / "tiny.yaml", TINY),
        "--model w2s_cnn5",
        *taught(weak),
        "--stages",
        tmp_path / "stages.yaml",
        "--output",
        tmp_path,
        "--experiment chain",
    ]


def test_stages(here: Run, flags: list[object], tmp_path: Path, at_step: Callable) -> None:
    """Labels and weights are handed on, a run that was interrupted goes on, and the ends are the same."""
    save_file(
        timm.create_model("w2s_cnn5", num_classes=10).state_dict(), tmp_path / "start.safetensors"
    )
    flags = [
        *flags[:-1],
        "--finetune",
        tmp_path / "start.safetensors",
        "--experiment",
    ]  # is for the first stage
    done = here(*flags, "chain").ok()
    folder = tmp_path / "chain"
    record = read_result(folder)["stages"]
    assert list(record) == ["head", "again", "all"] and "trained weights" in done.out
    assert [path.name for path in folder.rglob("*.pth.tar")] == ["last.pth.tar"] * 3
    assert record["head"]["model"]["source"]["file"] == str(tmp_path / "start.safetensors")
    first, second = record["again"]["teacher"]["models"]
    assert first["name"] == "w2s_cnn2"
    assert second["source"]["sha256"] == record["head"]["export"]["model.safetensors"]
    assert record["again"]["data"]["clean_select"]["selected"] == 32  # half of 64
    assert (
        record["all"]["model"]["source"]["sha256"] == record["again"]["export"]["model.safetensors"]
    )
    assert record["all"]["teacher"]["name"] == "w2s_cnn2"

    parts = [*flags, "parts"]
    at_step(11)  # head 8, again 4 (2 epochs of 2): in the second stage
    with pytest.raises(RuntimeError, match="power cut"):
        here(*parts)
    done = here(*parts, "--resume auto").ok()
    assert "--stages: head is complete" in done.err
    for name in record:
        assert (tmp_path / "parts" / name / "export" / "model.safetensors").read_bytes() == (
            folder / name / "export" / "model.safetensors"
        ).read_bytes()


def test_a_loss_of_a_stage_leaves_the_arguments_of_another_one(tmp_path: Path) -> None:
    (tmp_path / "stages.yaml").write_text("[{name: one}, {name: two, loss: gce}]")
    flags = dict(dataset="w2s/digits", loss="kd", loss_kwargs={"temperature": 1.0}, experiment="x")
    plan = plan_runs({**flags, "stages": str(tmp_path / "stages.yaml")})
    assert [run.flags.get("loss_kwargs") for run in plan.runs] == [{"temperature": 1.0}, None]


def test_a_stage_that_begins_with_weights_takes_none_from_the_next(tmp_path: Path) -> None:
    """Only that stage leaves the weights aside that the command line begins with."""
    (tmp_path / "stages.yaml").write_text(
        "[{name: one}, {name: two, initial_checkpoint: 'stage:one'}, {name: three}]"
    )
    flags = dict(
        dataset="w2s/digits",
        finetune="start.pth",
        experiment="x",
        stages=str(tmp_path / "stages.yaml"),
    )
    runs = plan_runs(flags).runs
    assert [run.flags["finetune"] for run in runs] == ["start.pth", "", "start.pth"]
    assert ["initial_checkpoint" in run.flags for run in runs] == [False, True, False]


@pytest.mark.parametrize(
    ("typed", "changes"),
    [
        ({}, ["tune", "lr"]),
        ({"lr": 0.01}, ["tune"]),
        ({"tune": "lora"}, ["lr"]),
        ({"tune": "last:0.3"}, []),
    ],
)
def test_what_is_typed_stays_for_a_transformer(
    typed: dict[str, object], changes: list[str]
) -> None:
    flags = dict(unlabeled="photos", data_dir="birds", teacher="labels:a.csv", experiment="x")
    flags |= dict(model="test_vit", stages="weak-labels-plus-few-true")
    plan = plan_runs({**flags, **typed}, {*flags, *typed})
    of_stages = {run.name: [*run.flags["for_transformers"]] for run in plan.runs}
    # whoever has typed a part need not measure which one is better
    assert ("whole" in of_stages) == ("tune" not in typed)
    assert of_stages.pop("whole", [*changes, "layer_decay"]) == [*changes, "layer_decay"]
    assert of_stages == dict.fromkeys(["part", "direct", "recipe", "student"], changes)


@pytest.mark.parametrize(
    ("model", "trained"),
    [
        ("w2s_cnn5", [("last:0.3", 0.0006, None), ("lora", 0.002, None), ("all", 0.001, None)]),
        ("test_vit", [("last:0.3", 0.002, 0.3), ("lora", 0.002, None), ("all", 0.002, 0.65)]),
    ],
)
def test_candidates_fit_the_network(
    model: str, trained: list[tuple[object, ...]], weak: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks with attention get a rate each, and stay the part that the stage is about."""
    flags = dict(dataset="w2s/digits", model=model, experiment="x", stages="weak-labels-candidates")
    flags |= dict(teacher="w2s_cnn2", teacher_checkpoint=str(weak), task_loss_weight=0.0)
    plan = plan_runs(flags)
    with caplog.at_level("INFO"):
        for run in plan.runs:
            settle(run)
    probe, *others, recipe, student = (run.settings.flags for run in plan.runs)
    assert probe["linear_probe"] and (probe["loss"], probe["lr"]) == ("balanced_elr", 0.003)
    assert [(one["tune"], one["lr"], one["layer_decay"]) for one in others] == trained
    # the last one is the recipe until others have measured themselves
    for one in (recipe, student):
        assert (one["tune"], one["lr"]) == trained[model == "test_vit"][:2]
    said = [text for text in caplog.messages if "has attention" in text]
    assert said == [
        f"test_vit has attention: --{flags} (--for-transformers)"
        for flags in (
            "lr 0.002 --layer-decay 0.3",
            "lr 0.002 --layer-decay 0.65",
            "tune lora --lr 0.002",
            "tune lora --lr 0.002",
        )
        if model == "test_vit"
    ]


def test_adapters_need_their_package_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = dict(unlabeled="photos", teacher="labels:a.csv", experiment="x", model="w2s_cnn5")
    plan = plan_runs(flags | dict(stages="weak-labels-candidates"))
    monkeypatch.setitem(sys.modules, "peft", None)
    (adapters,) = (run for run in plan.runs if run.name == "adapters")
    monkeypatch.setattr("w2s_plugins.study.ahead.check_paths", lambda *_: None)
    assert refusal(settle, adapters) == "--tune lora needs PEFT: pip install peft"


@pytest.mark.parametrize("typed", [{"tune": "lora"}, {"linear_probe": True}])
def test_a_part_that_is_typed_is_not_for_candidates(typed: dict[str, object]) -> None:
    """A person would be asked which of students is better that are the same."""
    flags = dict(unlabeled="photos", teacher="labels:a.csv", experiment="x", model="w2s_cnn5")
    flags |= dict(stages="weak-labels-candidates", **typed)
    assert "its stages differ in what they train of the student: leave --" in refusal(
        plan_runs, flags, {*flags}
    )


def test_what_is_typed_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over what a stage says, which wins over files of flags, and over what is its own: its teacher."""
    (tmp_path / "stages.yaml").write_text(
        "[{name: one, epochs: 9, lr: 0.1, teacher: null}, "
        "{name: two, epochs: 3, loss: gce, loss_kwargs: {q: 0.5}, teacher: 'given,stage:one'}]"
    )
    in_files = dict(dataset="w2s/digits", lr=0.2, experiment="x")
    typed = dict(epochs=3, loss="kd", teacher="w2s_cnn2", stages=str(tmp_path / "stages.yaml"))
    with caplog.at_level("INFO"):
        plan = plan_runs({**in_files, **typed}, typed.keys())
    one, two = (run.flags for run in plan.runs)
    assert (one["epochs"], one["lr"], one["loss"], one["teacher"]) == (3, 0.1, "kd", None)
    assert (two["epochs"], two["lr"], two["loss"], two.get("loss_kwargs")) == (3, 0.2, "kd", None)
    assert two["teacher"] == f"w2s_cnn2,local-dir:{plan.folder / 'one' / 'export'}"
    assert caplog.messages == [
        "--stages, one: epochs 9 gives way to --epochs 3 of the command line",
        "--stages, two: loss gce gives way to --loss kd of the command line",
    ]


def test_another_start(here: Run, flags: list[object], tmp_path: Path) -> None:
    """What was made of a stage that has been trained again is no continuation of it; no test set is needed."""
    stages, flags = (
        tmp_path / "stages.yaml",
        [*flags, "--epochs 1 --checkpoint-hist 2", "--val-split", "", "--val-slice", ""],
    )
    stages.write_text(
        "[{name: one, lr: 0.1}, {name: two, initial_checkpoint: 'stage:one', lr: 0.1}]"
    )
    here(*flags).ok()
    assert len([*(tmp_path / "chain" / "one").glob("*.pth.tar")]) == 3
    assert here(*flags, "--resume auto").ok().err.count("is complete") == 2
    shutil.rmtree(tmp_path / "chain" / "one")
    # a later stage that is there with other flags is refused before an earlier one is trained again
    error = here(*flags, "--hflip 0.25 --resume auto").error
    assert (
        "two: --resume auto" in error and "that run had other flags: --hflip 0.5 -> 0.25" in error
    )
    assert not (tmp_path / "chain" / "one").exists()
    stages.write_text(stages.read_text().replace("0.1", "0.05", 1))
    error = here(*flags, "--resume auto").error
    assert (
        "two: two and the same run now cannot be compared: the weights of --initial-checkpoint one changed"
        in error
    )
    assert "delete the run folder of two and train it again" in error


def test_a_last_stage_below_an_earlier_one(here: Run, flags: list[object], tmp_path: Path) -> None:
    """It is said at the end and in result.json, with the student to take instead."""
    stages = tmp_path / "stages.yaml"
    stages.write_text(
        "[{name: elsewhere, lr: 1.0e-9, val_slice: '200:400'}, "
        "{name: one, lr: 0.1}, {name: two, lr: 0.1}, {name: three, lr: 1.0e-9}]"
    )
    flags.insert(
        2, in_file(tmp_path / "more.yaml", ["--val-slice 0:200"])[1]
    )  # the second file of --config
    done = here(*flags).ok()
    record = read_result(tmp_path / "chain")
    top1 = {name: stage["metrics"]["top1"] for name, stage in record["stages"].items()}
    assert top1["three"] < top1["one"] == top1["two"]
    assert list(record["last_above"]) == ["one", "two"], (
        "on other images of the split nothing is compared"
    )
    assert not re.search(r"(one|two|three) .*, [-+]", done.out)
    for name, above in record["last_above"].items():
        assert above["value"] == pytest.approx(top1["three"] - top1[name])
        assert above["low"] <= above["value"] <= above["high"]
    warning = record["warnings"][-1]
    assert warning.startswith("the last stage, three, is below an earlier one, one (-")
    assert (
        f"the better student is one, exported to {tmp_path / 'chain' / 'one' / 'export'}" in warning
    )
    assert f"WARNING: {warning}" in done.out
    assert (
        f"* take one, exported to {tmp_path / 'chain' / 'one' / 'export'} (of those that were"
        in done.out
    )

    stages.write_text(
        f"[{{name: low, lr: 1.0e-9}}, {{name: high, initial_checkpoint: '{tmp_path}/chain/one/export'}}]"
    )
    done = here(*flags, "--experiment up").ok()
    record = read_result(tmp_path / "up")
    assert record["last_above"]["low"]["value"] > 0 and "better student" not in done.out + str(
        record["warnings"]
    )
    assert (
        f"* take high, exported to {tmp_path / 'up' / 'high' / 'export'} (of those that were measured"
        in done.out
    )

    # on fewer images than 30 nobody is told which one to take, or that one is worse
    done = here(*flags, "--val-slice 0:20 --experiment few").ok()
    assert "* no advice: it would rest on 20 images, and takes 30 at least" in done.out
    assert not re.search("take (low|high)|better student", done.out) and "(n = 20)" in done.out

    # a person who is asked is told all the same
    stages.write_text("[{name: one, lr: 0.1}, {name: three, lr: 1.0e-9}, {audit: [one, three]}]")
    done = here(*flags, "--experiment asked").ok()
    assert read_result(tmp_path / "asked")["warnings"][-1].startswith(
        "the last stage, three, is below"
    )
    assert re.search(r"\* take one, exported to .*; which of one, three is best\?", done.out)


@pytest.mark.parametrize(
    ("top1", "assign"),
    [(62.4, "posterior:62"), (62.6, "posterior:63"), (0.0, "posterior:1"), (100.0, "posterior:99")],
)
def test_how_sure_direct_may_be_is_measured(top1: float, assign: str) -> None:
    """As often as a student of its kind is right on labelled images that it has not learned from; nobody is always."""
    record = {"held_out": {"student": {"top1": top1}}, "data": HELD_OUT}
    assert choose_assign("part", record) == assign


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([dict(top1=62.0), dict(top1=69.0)], "whole"),
        ([dict(top1=62.0), dict(top1=62.5)], "whole"),
        ([dict(top1=62.0), dict(top1=62.0)], "part"),
        ([dict(top1=63.0), dict(top1=62.0)], "part"),
        ([dict(top1=9.0, map=61.0), dict(top1=1.0, map=69.0)], "whole"),
        ([dict(confidence=90.0, agreement=61.0), dict(confidence=50.0, agreement=69.0)], "whole"),
        ([dict(top1=63.0, agreement=61.0), dict(top1=62.0, agreement=69.0)], "part"),
    ],
    ids=[
        "better",
        "a little better",
        "equal",
        "worse",
        "mAP of several classes an image",
        "weak labels",
        "true labels beside weak ones",
    ],
)
def test_which_part_is_trained_is_measured(figures: list[dict], best: str) -> None:
    records = {
        name: {"held_out": {"student": of_stage}, "data": HELD_OUT}
        for name, of_stage in zip(("part", "whole"), figures)
    }
    assert choose_best(["part", "whole"], records) == best


@pytest.mark.parametrize(
    ("model", "usual", "says", "chosen"),
    [
        ("w2s_cnn5", "last", dict(last=57, adapters=60, all=55), "last"),
        ("w2s_cnn5", "last", dict(last=57, adapters=60, all=90), "all"),
        ("w2s_cnn5", "last", dict(last=57, adapters=57, all=57), "last"),
        ("test_vit", "adapters", dict(last=60, adapters=57, all=55), "adapters"),
        ("test_vit", "adapters", dict(last=90, adapters=57, all=55), "last"),
    ],
)
def test_a_choice_within_noise_takes_the_recipe(
    model: str,
    usual: str,
    says: dict[str, int],
    chosen: str,
    weak: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another part is taken where it says what the other half of the labels says more often by a paired interval."""
    flags = dict(dataset="w2s/digits", model=model, experiment="x", stages="weak-labels-candidates")
    flags |= dict(teacher="w2s_cnn2", teacher_checkpoint=str(weak), task_loss_weight=0.0)
    plan = plan_runs(flags | dict(output=str(tmp_path)))
    runs = {run.name: run for run in plan.runs}
    for run in plan.runs:
        settle(run)
    shares = np.random.default_rng(0).permutation(100)
    for name, percent in says.items():
        held_out = {"student": {"agreement": float(percent)}}
        runs[name].record = {"held_out": held_out, "data": HELD_OUT}
        (tmp_path / "x" / name).mkdir(parents=True)
        write_predictions(
            tmp_path / "x" / name / "agreement_held_out.csv",
            ["agreement"],
            torch.tensor(np.roll(shares, percent) < percent)[:, None].float(),
        )
    assert best_part(runs["student"], plan) == chosen
    with caplog.at_level("INFO"):
        part = choose_part(runs["student"], plan)
    assert part["tune"] == runs[chosen].settings.flags["tune"]
    above = max(says, key=says.__getitem__) != chosen
    assert ("none is above it beyond noise" in caplog.messages[-1]) == above
    assert is_same(runs["recipe"], runs["student"], part) == (chosen == usual)
    # true labels choose as they always did, and an older run says less of itself
    for name in says:
        runs[name].record["held_out"]["student"]["top1"] = float(says[name])
    assert best_part(runs["student"], plan) == max(says, key=says.__getitem__)
    for name in says:
        del runs[name].record["held_out"]["student"]["top1"]
        (tmp_path / "x" / name / "agreement_held_out.csv").unlink()
    assert best_part(runs["student"], plan) == usual


def test_a_stage_is_left_out_for_a_later_one_alone(tmp_path: Path) -> None:
    stages = tmp_path / "stages.yaml"
    stages.write_text("[{name: one}, {name: two, unless_same: one}, {name: three}]")
    flags = dict(dataset="w2s/digits", experiment="x", stages=str(stages))
    said = "two: unless_same: 'one': no stage of this name comes after it; after it come three"
    assert said in refusal(plan_runs, flags)


@pytest.mark.parametrize(
    ("judge", "teacher", "message"),
    [
        ("", "given,stage:one", "one: the stage holds out no labelled images to measure itself"),
        (
            "select_split: 0.5, unlabeled: photos,",
            "given,stage:one",
            "one: the stage holds out images without",
        ),
        (
            "select_split: 0.5,",
            "given",
            "one: expected several teachers, of which it calibrates the last",
        ),
    ],
)
def test_a_judge_is_checked_before_it_is_trained(
    tmp_path: Path, judge: str, teacher: str, message: str
) -> None:
    stages = tmp_path / "stages.yaml"
    stages.write_text(
        f"[{{name: one, {judge} teacher: null}}, {{name: two, teacher: '{teacher}', assign_by: one}}]"
    )
    flags = dict(dataset="w2s/digits", teacher="labels:a.csv", experiment="x", stages=str(stages))
    assert f"two: assign_by: {message}" in refusal(plan_runs, flags)


@pytest.mark.parametrize(
    ("one", "two", "differs"),
    [
        ("unlabeled: null, teacher: null", "epochs: 2", "--unlabeled, not none and photos"),
        ("label_noise: 0.2", "epochs: 2", "--label-noise, not 0.2 and none"),
        ("epochs: 2", "teacher: labels:b.csv", "--teacher, not labels:a.csv and labels:b.csv"),
    ],
)
def test_judges_hold_out_the_same(tmp_path: Path, one: str, two: str, differs: str) -> None:
    """True labels or weak ones, of the same images, or of easier ones: what is measured by these is not comparable."""
    stages = tmp_path / "stages.yaml"
    judges = [
        f"{{name: one, select_split: 0.5, {one}}}",
        f"{{name: two, select_split: 0.5, {two}}}",
    ]
    stages.write_text(f"[{', '.join(judges)}, {{name: end, tune_by: [one, two]}}]")
    flags = dict(unlabeled="photos", data_dir="birds", teacher="labels:a.csv", experiment="x")
    message = refusal(plan_runs, flags | dict(model="w2s_cnn5", stages=str(stages)))
    assert "end: tune_by: one and two measure themselves on other images or labels" in message
    assert f"give both the same {differs}" in message


@pytest.mark.parametrize("figures", [{}, {"held_out": {"student": None}}], ids=range(2))
def test_how_sure_direct_may_be_needs_a_figure(figures: dict) -> None:
    message = refusal(choose_assign, "part", figures)
    assert "part has not measured itself" in message


def test_enhanced(here: Run, flags: list[object], tmp_path: Path) -> None:
    """The file that is shipped: the first student selects what the second one, of another loss, is trained on."""
    here(*flags, "--linear-probe --no-aug --stages enhanced").ok()
    first, again = read_result(tmp_path / "chain")["stages"].values()
    assert (first["loss"]["name"], again["loss"]["name"]) == ("hard", "gce")
    (model,) = again["data"]["clean_select"]["models"]
    assert model["source"]["sha256"] == first["export"]["model.safetensors"]
    assert again["data"]["clean_select"]["selected"] == 38  # 0.6 of 64


def commands(recipe: Path) -> str:
    """Return the command in the header of a recipe."""
    header = " ".join(
        line.lstrip("# ").rstrip("\\ ")
        for line in recipe.read_text().splitlines()
        if line[:1] == "#"
    )
    return header[header.index("python train_w2s.py") :].removeprefix("python train_w2s.py")


@pytest.mark.parametrize(
    "name", ["weak-labels", "weak-labels-plus-few-true", "weak-labels-candidates"]
)
def test_recipes(
    here: Run, weak: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that are shipped, by the commands in their headers, with a small student and few epochs."""
    write_digits(
        260,
        lambda number, label: (
            tmp_path / "photos"
            if number < 128
            else (tmp_path / "birds" / ("train" if number < 200 else "validation") / str(label))
        ),
    )
    labels = create_dataset("w2s/digits", None, "train").targets[:128]
    answers = [
        f"{i}.png,{'' if 'plus' in name else 'digit '}{label}" for i, label in enumerate(labels)
    ]
    (tmp_path / "answers.csv").write_text("\n".join(["filename,label", *answers]))
    monkeypatch.chdir(tmp_path)
    command = commands(recipe_path(name))
    command = command.replace("tf_efficientnet_lite0 --pretrained", "w2s_cnn5 --img-size 8")
    done = here(
        *shlex.split(command), "--epochs 1 --workers 0 --experiment student", "--output", tmp_path
    ).ok()
    record = read_result(tmp_path / "student")
    assert ("--stages, direct: epochs 40 gives way to --epochs 1 of" in done.err) == (
        "plus" in name
    )
    last_stage = [*record.get("stages", [""])][-1]
    folder = tmp_path / "student" / last_stage / "export"
    student = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert type(student).__module__ == "w2s_plugins.models.cnn"
    of_halves = ["probe", "last", "adapters", "all"]
    if name == "weak-labels-candidates":
        # the recipe is trained twice only if another part is above it beyond noise
        names = list(record["stages"])
        assert names in ([*of_halves, "student"], [*of_halves, "recipe", "student"])
        losses = [stage["loss"]["name"] for stage in record["stages"].values()]
        assert losses == ["balanced_elr", *["elr"] * (len(names) - 1)]
        assert f"which of {', '.join(names)} is best? 64 answers" in done.out
        assert "64 images; 64 are drawn" in done.out
        # the last one learns all labels, as one that has learned half of them, and measured itself by the other half
        judges, last = (
            [record["stages"][name] for name in of_halves[1:]],
            record["stages"]["student"],
        )
        halves = [stage["data"]["splits"] for stage in judges]
        assert len({splits["select"]["fingerprint"] for splits in halves}) == 1
        assert {splits["train"]["num_samples"] for splits in halves} == {64}
        assert last["data"]["splits"]["train"]["num_samples"] == 128
        agreement = {
            name: record["stages"][name]["held_out"]["student"]["agreement"]
            for name in ("last", "adapters", "all")
        }
        says = {
            name: pandas.read_csv(tmp_path / "student" / name / "agreement_held_out.csv")[
                "agreement"
            ]
            for name in agreement
        }
        for name, rows in says.items():
            assert len(rows) == 64 and 100 * rows.mean() == pytest.approx(agreement[name])
        best = max(agreement, key=agreement.__getitem__)
        gain = says[best] - says["last"]
        margin = 1.96 * gain.std() / 64**0.5  # the bootstrap's, nearly
        if abs(gain.mean() - margin) > 0.01:
            assert ("recipe" in names) == (gain.mean() > margin)
        if "recipe" not in names:
            best = "last"
            assert "without the stage recipe, because student is trained alike" in done.err
            assert "\nstudent, which is recipe " in done.out
        assert last["model"].get("tune") == record["stages"][best]["model"].get("tune")
        assert (
            f"as the stage {best} (says what the labels say: last {agreement['last']:.1f} %"
            in done.err
        )
        assert f"take student, exported to {folder}; which of" in done.out
    if name == "weak-labels-plus-few-true":
        part, whole, first, recipe, last = record["stages"].values()
        # weak labels alone, without any true one, measured on the same images
        assert recipe["data"]["splits"]["train"]["num_samples"] == 128
        assert "labelled" not in recipe["data"]["splits"] and len(recipe["teacher"]["models"]) == 1
        assert recipe["loss"]["name"] == "elr" and recipe["loss"]["task_loss_weight"] == 0
        vals = {
            stage["data"]["splits"]["val"]["fingerprint"] for stage in record["stages"].values()
        }
        assert len(vals) == 1
        taught = {
            model["source"]["sha256"] for model in last["teacher"]["models"] if "source" in model
        }
        assert first["export"]["model.safetensors"] in taught and first["teacher"] is None
        # what is trained, and how sure the first one may be, is measured on labelled images that others have not seen
        tuned = [stage["model"].get("tune", "all") for stage in (part, whole)]
        assert tuned == ["last:0.3", "all"]
        judges = dict(part=part, whole=whole)
        best = judges[choose_best([*judges], judges)]
        for stage in (first, last):
            assert stage["model"].get("tune") == best["model"].get("tune")
        assert f"tune: {best['model'].get('tune', 'all')}, as the stage" in done.err
        assert part["teacher"] is whole["teacher"] is None
        samples = [stage["data"]["splits"]["select"]["fingerprint"] for stage in (part, whole)]
        assert samples[0] == samples[1], "both hold out the same images"
        assert [part["data"]["splits"][name]["num_samples"] for name in ("train", "select")] == [
            36,
            36,
        ]
        assign = choose_assign("part or whole", best)
        assert yaml.safe_load((folder.parent / "args.yaml").read_text())["teacher_assign"] == assign
        assert f"teacher_assign: {assign}, because" in done.err
        assert "--stages: direct begins, on all of its training split" in done.err
        assert (
            "--teacher-assign posterior: the answers of the last teacher are divided by" in done.err
        )
        assert last["teacher"]["assign"] == assign and len(last["teacher"]["posterior"]) == 3
        assert first["loss"]["strong_views"] is None
        card = (folder / "README.md").read_text()
        assert (
            f"`direct` says, corrected by what the others confuse (`--teacher-assign {assign}`)"
            in card
        )
        assert f"| strongly augmented second views | `{last['loss']['strong_views']}` |" in card
        assert list(record["last_above"]) == ["direct", "recipe"], "what measures it is no student"
        assert last["data"]["splits"]["labelled"]["num_samples"] == 72
        (row,) = (line for line in done.out.splitlines() if line.startswith("student "))
        assert f" {last['metrics']['top1'] - first['metrics']['top1']:+.2f} (" in row
