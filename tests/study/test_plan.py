"""Which runs a study has, what they share, and that the real parser sees every command."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import ROOT
from tests.parts import lines
from w2s_plugins.cli.parser import check_flags, parse, train_parser
from w2s_plugins.study.layout import SPEC, StudyRun, load_plan
from w2s_plugins.study.planning import encode, lies_within, plan_runs, plan_study
from w2s_plugins.study.spec import read_spec

from .conftest import Cli
from .specs import BASE, arg, changed, changed_by, write

PARSER = train_parser()
Plan = Callable[..., list[StudyRun]]
FEW = {"name": "few", "flags": {"model": "w2s_cnn2", "train_slice": "0:20", "img_size": 16}}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return lambda **changes: plan_study(read_spec(write(tmp_path, changed(**changes))))


def models(*names: str, **flags: object) -> list[dict]:
    return [
        {"name": name, "flags": {"model": "w2s_cnn2", "lr": 0.01 * (i + 1), **flags}}
        for i, name in enumerate(names)
    ]


def test_what_is_shared(plan: Plan) -> None:
    runs = plan(
        weak=models("a", "b"), strong=models("s", "t"), losses=["hard", "kd", "bkd"], seeds=2
    )
    assert Counter(run.kind for run in runs) == {"weak": 4, "ceiling": 4, "student": 24}
    by_id = {run.name: run for run in runs}
    assert len(by_id) == len({tuple(run.argv) for run in runs}) == 32
    for number, run in enumerate(runs):
        needed = {by_id[i].kind: by_id[i] for i in run.needs}
        assert all(
            runs.index(other) < number and other.seed == run.seed for other in needed.values()
        )
        assert needed.keys() == ({"weak", "ceiling"} if run.kind == "student" else set())
        if run.kind == "student":
            assert needed["weak"].weak == run.weak and needed["ceiling"].strong == run.strong
            assert arg(run, "--teacher-checkpoint") == f"{{study}}/runs/{needed['weak'].name}"
            assert (
                arg(run, "--task-loss-weight") == "0.0"
                and arg(run, "--target-cache") == "{study}/targets"
            )
            assert arg(run, "--train-slice") == arg(needed["ceiling"], "--train-slice") == "64:160"
            assert arg(needed["weak"], "--train-slice") == "0:64"
            for other in needed.values():
                assert (
                    arg(other, "--teacher")
                    is arg(other, "--loss")
                    is arg(other, "--teacher-targets")
                    is None
                )
                assert arg(other, "--lr") == arg(run if other.kind == "ceiling" else other, "--lr")


def test_parts_of_the_training_slice(plan: Plan) -> None:
    other = {"name": "other", "flags": {"model": "w2s_cnn2", "weak_fraction": 100}}
    runs = plan(weak=[*models("a"), FEW, other], losses=["hard"])
    assert [
        (run.weak, run.protocol, arg(run, "--train-slice"), arg(run, "--task-loss-weight"))
        for run in runs
    ] == [
        ("a", None, "0:64", None),
        ("few", None, "0:20", None),
        ("other", None, "0:100", None),
        (None, None, "64:160", None),
        (None, None, "100:160", None),
        ("a", "w2s", "64:160", "0.0"),
        ("few", "w2s", "64:160", "0.0"),
        ("other", "w2s", "100:160", "0.0"),
    ]


def test_controls(plan: Plan) -> None:
    """Direct is shared by losses and teachers of one slice, its labels by the students of strong-to-strong."""
    strong = [{"name": "s", "flags": {"model": "w2s_cnn5", "lr": 0.5, "epochs": 7}}]
    runs = plan(weak=[*models("a"), FEW], strong=strong, controls=["same-size", "strong-to-strong"])
    kinds, by_id = Counter(run.kind for run in runs), {run.name: run for run in runs}
    assert (kinds["direct"], kinds["same-size"], kinds["strong-to-strong"]) == (2, 4, 4)
    for run in (run for run in runs if run.kind == "student"):
        direct, same, strong = (by_id[i] for i in run.controls)
        assert arg(direct, "--train-slice") == {"a": "0:64", "few": "0:20"}[run.weak]
        assert (
            arg(direct, "--epoch-slice") == arg(run, "--train-slice")
            and arg(direct, "--teacher") is None
        )
        assert arg(direct, "--lr") == arg(run, "--lr") == arg(strong, "--lr") == "0.5"
        assert strong.needs == [direct.name] and arg(strong, "--teacher-checkpoint") is None
        assert arg(strong, "--teacher") == f"local-dir:{{study}}/runs/{direct.name}/export"
        assert (arg(same, "--model"), arg(same, "--epochs")) == ("w2s_cnn2", "7"), (
            "its own, but for the length"
        )
        assert (arg(same, "--lr"), arg(same, "--img-size")) == {
            "a": ("0.01", "8"),
            "few": ("0.1", "16"),
        }[run.weak]
        for flag in ("--loss", "--train-slice", "--task-loss-weight", "--teacher-targets"):
            assert arg(strong, flag) == arg(same, flag) == arg(run, flag)
        assert arg(same, "--teacher-checkpoint") == arg(run, "--teacher-checkpoint")
        assert set(same.needs) < set(run.needs)


def test_data_sets(tmp_path: Path, plan: Plan, cli: Cli) -> None:
    """Flags of a set lie over those of the base and under those of models, which may be for some sets, in their way."""
    few = {
        "name": "few",
        "flags": {"model": "w2s_cnn2", "lr": 0.3, "batch_size": 16},
        "sets": {"small": {"train_slice": "0:20"}},
    }
    changes = dict(
        weak=[*models("a"), few],
        losses=["hard"],
        sets=[
            {"name": "small"},
            {"name": "large", "flags": {"train_slice": "0:320", "weak_fraction": 80, "lr": 0.5}},
        ],
    )
    runs = plan(**changes)
    by_id = {run.name: run for run in runs}
    assert [
        (run.kind, run.set, run.weak, arg(run, "--train-slice"), arg(run, "--lr")) for run in runs
    ] == [
        ("weak", "small", "a", "0:64", "0.01"),
        ("weak", "small", "few", "0:20", "0.3"),
        ("weak", "large", "a", "0:80", "0.01"),
        ("ceiling", "small", None, "64:160", "0.1"),
        ("ceiling", "large", None, "80:320", "0.5"),
        ("student", "small", "a", "64:160", "0.1"),
        ("student", "small", "few", "64:160", "0.1"),
        ("student", "large", "a", "80:320", "0.5"),
    ]
    assert all(by_id[i].set == run.set and f"-{run.set}-" in i for run in runs for i in run.needs)
    code, out, err = cli("plan", write(tmp_path, changed(**changes)), "--output", tmp_path / "out")
    assert code == 0 and re.search(r"^student +large +a +s +w2s +1$", out, re.M), err
    assert "small: 8 runs, 3 weak, 2 ceiling, 3 student" in out
    assert load_plan(tmp_path / "out") == [replace(run, root=tmp_path / "out") for run in runs]


def test_flags_that_only_some_runs_have(tmp_path: Path, plan: Plan) -> None:
    """Seeds, noise and the selection of samples and epochs; a ceiling has those of its own file besides."""
    (tmp_path / "ceiling.yaml").write_text("epochs: 7\nlr: 0.01\n")
    (tmp_path / "recipe.yaml").write_text("ceiling_config: ceiling.yaml\nloss: elr\n")
    runs = plan(
        base={
            **BASE,
            "label_noise": "symmetric:0.2",
            "clean_select": "entropy:0.5",
            "select": "best",
            "select_split": 0.1,
        },
        losses=["hard"],
        config=str(tmp_path / "recipe.yaml"),
        seeds=[5],
        slices="by_seed",
        controls=["direct"],
    )
    names = ("seed", "slice-seed", "label-noise", "clean-select", "select-split", "epochs", "lr")
    assert {run.kind: [arg(run, f"--{name}") for name in names] for run in runs} == {
        "weak": ["5", "5", "symmetric:0.2", None, None, "1", "0.1"],
        "ceiling": ["5", "5", None, None, "0.1", "7", "0.01"],
        "student": ["5", "5", "symmetric:0.2", "entropy:0.5", "0.1", "1", "0.1"],
        "direct": ["5", "5", "symmetric:0.2", None, None, "1", "0.1"],
    }
    assert {arg(run, "--slice-seed") for run in plan(seeds=2)} == {None}


@pytest.mark.parametrize(
    ("own", "scale"),
    [
        ({"finetune": "a.pth"}, "1.0"),
        ({"pretrained": True}, "1.0"),
        ({"finetune": "a.pth", "head_init_scale": 0.5}, "0.5"),
        ({"finetune": "a.pth", "tune": "last:1"}, None),
        ({"finetune": "a.pth", "linear_probe": True}, None),
        ({}, None),
    ],
)
def test_runs_with_and_without_a_teacher_begin_alike(
    plan: Plan, own: dict, scale: str | None
) -> None:
    """By themselves a student that has one would begin with a head of zeros, and its ceiling with timm's."""
    runs = plan(
        strong=[{"name": "s", "flags": {"model": "w2s_cnn5", **own}}],
        losses=["hard"],
        controls=["direct", "strong-to-strong"],
    )
    begin = {run.kind: arg(run, "--head-init-scale") for run in runs}
    assert begin == {
        "weak": None,
        **dict.fromkeys(["ceiling", "student", "direct", "strong-to-strong"], scale),
    }


def test_a_run_is_known_by_its_command(plan: Plan) -> None:
    def ids(**changes: object) -> set[str]:
        return {run.name for run in plan(**changes)}

    first = ids()
    assert ids(base=dict(reversed(BASE.items()))) == first, "the order of the flags says nothing"
    assert first < ids(seeds=3) and first < ids(losses=["hard", "bkd", "kd"])
    assert not first & ids(base={**BASE, "lr": 0.2})
    kept = first & ids(weak=models("a", lr=0.3))
    assert [i.split("-")[0] for i in kept] == ["ceiling"], (
        "students of another teacher are other students"
    )


@pytest.mark.parametrize(
    ("text", "part", "inside"),
    [
        ("10:", "0:64", False),
        ("0:0.1", "0.0:0.3", True),
        ("0:0.1", "0:64", False),
        ("70:80", "64:", True),
        ("0:10", "5:64", False),
    ],
)
def test_lies_within(text: str, part: str, inside: bool) -> None:
    assert lies_within(text, part) == inside


SOME = st.sampled_from([0.5, 1e-5, 3, "x", "1", "-1", "[1]", "", None, True, (1, 2), "a b"])


@settings(max_examples=60, deadline=None)
@given(
    flags=st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(0, 1),
            "epochs": st.integers(1, 9),
            "val_split": st.sampled_from(["", "-x", "test", "a b"]),
            "scale": st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
            "model_ema": st.booleans(),
            "mean": st.lists(st.floats(-2, 2), min_size=1, max_size=3),
            "select_split": st.sampled_from([0.25, 500]),
            "loss_kwargs": st.dictionaries(st.sampled_from(["a", "b"]), SOME, max_size=2),
            "input_size": st.just([3, 8, 8]),
        },
    )
)
def test_the_parser_reads_what_is_written(flags: dict) -> None:
    flags = check_flags(flags, PARSER, "test")
    args, _ = parse(PARSER, [*encode(flags), "--select", "best"])  # which select_split belongs to
    assert {name: getattr(args, name) for name in flags} == flags


WRONG = r"""
losses: [hard, adaptcnf]  ->  small: student a s adaptcnf w2s: --loss: unknown loss .*\(nearest: adaptconf
losses: [{loss: kd, kwargs: {temprature: 1}}]  ->  student a s kd w2s: .*temperature
strong: [{name: s, flags: {model: w2s_cnn}}]  ->  ceiling s: --model: unknown model .*w2s_cnn5
weak: [{name: a, flags: {model: w2s_cnn2, train_slice: "0:80"}}]  ->  0:80 is not within the teachers' part 0:64
base: {weak_fraction: 200}  ->  --weak-fraction 200 of .* 200:160: the slice is empty
base: {unlabeled: photos}  ->  weak a: the images of unlabeled have no true labels, from which a te
{base: {unlabeled: photos, weak_fraction: 9}, weak: [{flags: {model: "labels:x.csv"}, name: crowd}]}  ->  and no weak_fr
base: {device: cudaa}  ->  weak a: --device cudaa: unknown device \(nearest: cuda
base: {batch_size: 65}  ->  weak a: --batch-size 65 is more than 64 training samples on 1
base: {select_split: 99, select: best}  ->  ceiling s: --select-split 99: expected less than the 96
base: {select: best}  ->  select best would choose the checkpoint by test labels
base: {val_split: ""}  ->  compared on a test set
"""


@pytest.mark.parametrize(("changes", "message"), lines(WRONG))
def test_errors(tmp_path: Path, cli: Cli, changes: str, message: str) -> None:
    code, _, err = cli("plan", write(tmp_path, changed_by(changes)), "--output", tmp_path / "out")
    assert code == 2 and re.search(message, err), err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_specification_of_somebody_else_is_left_alone(tmp_path: Path, cli: Cli) -> None:
    """A folder may hold the file that is planned, or an earlier plan, but no other file of that name."""
    spec, mine = write(tmp_path, changed()), tmp_path / "out" / SPEC
    mine.parent.mkdir()
    mine.write_text("mine: 1\n")
    code, _, err = cli("plan", spec, "--output", mine.parent)
    assert code == 2 and f"has a {SPEC} that is of no study there" in err and err.count("\n") == 1
    assert mine.read_text() == "mine: 1\n" and [*mine.parent.iterdir()] == [mine]
    mine.write_text(spec.read_text())
    for losses in (["hard"], ["kd"]):
        assert cli("plan", write(mine.parent, changed()), "--output", mine.parent)[0] == 0
        assert cli("plan", write(tmp_path, changed(losses=losses)), "--output", mine.parent)[0] == 0


def test_a_teacher_that_is_there(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "old").mkdir()
    args = tmp_path / "old" / "args.yaml"
    args.write_text(
        "dataset: w2s/digits\ndata_dir: null\ntrain_split: train\ntrain_slice: '0:70'\n"
    )
    old = {
        "name": "old",
        "checkpoint": str(tmp_path / "old"),
        "flags": {"model": "w2s_cnn2", "img_size": 8},
    }
    spec = write(tmp_path, changed(weak=[old]))
    code, _, err = cli("plan", spec)
    assert (
        code == 2 and "6 of the 70 samples that it is trained on are among the student's 96" in err
    )
    args.write_text(args.read_text().replace("70", "64"))
    code, _, err = cli("plan", spec, "--output", tmp_path / "out")
    assert code == 0, err
    ceiling, student, _ = load_plan(tmp_path / "out")
    assert student.needs == [ceiling.name] and arg(student, "--teacher-checkpoint") == str(
        tmp_path / "old"
    )
    assert arg(student, "--teacher-img-size") == "8" and arg(student, "--train-slice") == "64:160"
    code, _, err = cli(
        "plan", write(tmp_path, changed(weak=[old], base={**BASE, "weak_fraction": 0}))
    )
    assert (
        code == 2
        and "64 of the 64 samples that it is trained on are among the student's 160" in err
    )


def test_direct_has_the_labels_of_a_teacher_that_is_there(tmp_path: Path, cli: Cli) -> None:
    """Whatever part weak_fraction sets apart, if the teacher's run tells; else that part."""
    (tmp_path / "old").mkdir()
    args = tmp_path / "old" / "args.yaml"
    args.write_text(
        "dataset: w2s/digits\ntrain_split: train\ntrain_slice: '0:30'\nslice_seed: 7\n"
        "label_noise: symmetric:0.2\nnoise_seed: 3\n"
    )
    teacher = {"teacher": "w2s_cnn2", "teacher_checkpoint": str(tmp_path / "old")}
    flags = {
        "dataset": "w2s/digits",
        "model": "w2s_cnn5",
        "experiment": "x",
        "protocol": "w2s",
        "weak_fraction": 64,
        "controls": ["direct", "same-size"],
        "train_slice": "0:160",
        "slice_seed": 7,
        **teacher,
    }
    told = {"train_slice": "0:30", "slice_seed": 7, "label_noise": "symmetric:0.2", "noise_seed": 3}

    def parts(**changes: object) -> dict[str, dict]:
        plan = plan_runs({**flags, **changes})
        return {run.name: {name: run.flags.get(name) for name in told} for run in plan.runs}

    assert parts()["direct"] == told and parts(weak_fraction=0)["direct"] == told
    assert (
        parts()["same-size"]
        == parts()["student"]
        == dict.fromkeys(told) | dict(train_slice="64:160", slice_seed=7)
    )
    assert (
        parts(teacher=f"local-dir:{tmp_path}/old/export", teacher_checkpoint=None)["direct"] == told
    )
    assert parts(train_split="all")["direct"]["train_slice"] == "0:64", "of another split"
    assert parts(teacher_checkpoint=f"{tmp_path}/old.pth")["direct"]["train_slice"] == "0:64", (
        "nothing tells"
    )
    args.write_text(args.read_text().replace("symmetric:0.2", "labels:/etc/answers.csv"))
    assert parts()["direct"] == {**told, "label_noise": None, "noise_seed": None}, (
        "no path of somebody else"
    )

    old = {"name": "old", "checkpoint": str(tmp_path / "old"), "flags": {"model": "w2s_cnn2"}}
    spec = write(tmp_path, changed(weak=[old], controls=["direct"], slices="by_seed", seeds=2))
    plan = plan_study(read_spec(spec))
    direct, student = ([run for run in plan if run.kind == kind] for kind in ("direct", "student"))
    assert {(arg(run, "--train-slice"), arg(run, "--slice-seed")) for run in direct} == {
        ("0:30", "7")
    }
    assert {(arg(run, "--train-slice"), arg(run, "--slice-seed")) for run in student} == {
        ("64:160", "0"),
        ("64:160", "1"),
    }


@pytest.mark.parametrize(
    "file", sorted((ROOT / "hparams" / "studies").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_studies(file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = cli("plan", file)
    assert code == 0, err
    study = read_spec(file)
    counts = [(len(own.weak), len(own.strong)) for own in study.by_set().values()]
    weak, strong = (len(study.seeds) * sum(count) for count in zip(*counts))
    students = len(study.seeds) * len(study.losses) * sum(a * b for a, b in counts)
    assert (
        f"{weak + strong + students} runs, {weak} weak, {strong} ceiling, {students} student" in out
    )
