"""Every flag of timm's two scripts, and the values of this project's own."""

import argparse
import ast
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.parts import assert_refused, lines
from tests.test_documents import commands
from w2s_plugins.cli import parse, train_parser, validate_parser
from w2s_plugins.cli.declare import words_of
from w2s_plugins.settings import concerns
from w2s_plugins.settings.concerns import EvaluatedSettings, ReportSettings, SubjectSettings
from w2s_plugins.settings.field import Role, flags_of
from w2s_plugins.settings.forms import share_or_count
from w2s_plugins.settings.programs import predict_program, train_program, validate_program

TIMM = json.loads((Path(__file__).parents[1] / "data" / "timm_flags.json").read_text())
PARSERS = {"train": train_parser, "validate": validate_parser}
BY_RULE = (
    "channels_last",
)  # chosen by network, device and precision, where timm's default is one value
CONCERNS = sorted(Path(concerns.__file__).parent.glob("*.py"))
FLAGS = [(script, flag) for script, flags in TIMM.items() for flag in flags]


@pytest.mark.parametrize("script, flag", FLAGS, ids=[f"{s}-{f['dest']}" for s, f in FLAGS])
def test_timm_flag(script, flag):
    known = PARSERS[script]().by_dest()[flag["dest"]]
    action = next(a for a in PARSERS[script]()._actions if a.dest == flag["dest"])
    assert set(flag["flags"]) <= set(action.option_strings or [action.dest])
    if flag["dest"] in BY_RULE:
        assert known.is_switch and known.default is None
        return
    kinds = [kind.__name__ for kind in type(action).__mro__]
    assert f"_{flag['kind']}Action" in kinds or flag["kind"] in kinds
    # argparse leaves text as it is without a type
    assert (action.type.__name__ if action.type else "str") == (flag["type"] or "str")
    assert action.nargs == flag["nargs"]
    assert known.default == flag["default"]
    if flag["choices"]:
        assert list(action.choices) == flag["choices"]
    elif action.choices:  # timm looks at these when it uses them
        assert flag["default"] is None or flag["default"] in action.choices


@pytest.mark.parametrize("script", PARSERS)
def test_defaults_are_those_of_timm(script):
    args, given = parse(PARSERS[script](), [])
    assert given == set()
    defaults = {f["dest"]: f["default"] for f in TIMM[script] if f["dest"] not in BY_RULE}
    assert {dest: getattr(args, dest) for dest in defaults} == defaults


@pytest.mark.parametrize("script", PARSERS)
def test_every_flag_has_help_but_for_those_that_are_refused(script):
    parser = PARSERS[script]()
    assert all(flag.help for flag in parser.by_dest().values())
    text = argparse.ArgumentParser.format_help(parser)
    shown = {flag for flag in parser.flags() if re.search(rf"{flag}[ \n,]", text)}
    hidden = {flag for flag in parser.flags() if flag.startswith("--naflex-")} | {
        "--torchscript",
        "--use-multi-epochs-loader",
    }
    assert {*parser.flags()} - shown == (hidden if script == "train" else set())


@pytest.mark.parametrize("file", CONCERNS, ids=[file.stem for file in CONCERNS])
def test_a_flag_is_declared_once(file: Path) -> None:
    """Python itself takes the last of several, and no two concerns of a run have one of the same name."""
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    for node in classes:
        names = [
            field.target.id
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        ]
        assert len(set(names)) == len(names), (node.name, names)


def test_every_field_of_a_program_is_in_its_help() -> None:
    """A concern brings all of its flags; an evaluation those that it declares itself."""
    for program in (train_program(), validate_program(), predict_program()):
        shown = [flag.name for flags in program.groups.values() for flag in flags]
        assert len(shown) == len(set(shown))
    for concern in (EvaluatedSettings, SubjectSettings, ReportSettings):
        flags = {flag.name: flag for flag in flags_of(concern)}
        assert flags.items() <= validate_program().flags.items()


def test_groups_begin_with_data_and_model():
    titles = re.findall(
        r"^(\S.*):$", argparse.ArgumentParser.format_help(train_parser()), re.MULTILINE
    )
    assert titles[:4] == ["options", "data", "model", "weak teacher"] and "NaFlex" not in titles


@pytest.mark.parametrize("script", PARSERS)
def test_every_flag_has_a_role(script):
    flags = PARSERS[script]().by_dest()
    assert [name for name, flag in flags.items() if not flag.role] == []
    assert {needed for flag in flags.values() for needed in flag.needs} <= set().union(
        *(parser().by_dest() for parser in PARSERS.values())
    )
    assert {flag.for_teacher for flag in flags.values() if flag.for_teacher} <= flags.keys()


def test_what_a_validation_takes_over_is_a_flag_of_it():
    taken = {flag.evaluation for flag in train_parser().by_dest().values() if flag.evaluation}
    assert taken <= set(validate_parser().by_dest())


def test_what_a_validation_takes_over_and_is_free_text_is_checked_for_addresses():
    """But for what nothing opens."""
    parser = train_parser()
    texts = {
        name
        for name, flag in parser.by_dest().items()
        if flag.evaluation and flag.nargs is None and flag.kind is str and not flag.choices
    }
    assert texts - parser.names(Role.PLACE) == {
        "val_slice",
        "input_key",
        "target_key",
        "gp",
        "long_tail",
    }


def test_own_flags_are_few():
    """What is neither timm's nor of the released code; a new one takes the place of another."""
    parser = train_parser()
    own = (
        parser.by_dest().keys()
        - {flag["dest"] for flag in TIMM["train"]}
        - {"task", "target_format", "multilabel_threshold"}  # timm's since September 2026
        - parser.names(Role.ALIAS)
    )
    assert len(own) <= 68


# where any number means something, or another check says more: of a slice, of a loss, of timm; and what has no effect
WITHOUT_RANGE = {
    "train": {
        *(
            "mean",
            "head_init_bias",
            "weak_fraction",
            "select_split",
            "local_rank",
            "eval_interval_end",
        ),
        *("superalignment_rate", "superalignment_threshold", "dkd_temperature", "rkd_eps"),
        *(
            "naflex_train_seq_lens",
            "naflex_max_seq_len",
            "naflex_patch_sizes",
            "naflex_patch_size_probs",
        ),
    },
    "validate": {"mean", "naflex_max_seq_len"},
}


@pytest.mark.parametrize("script", PARSERS)
def test_every_number_has_a_range(script):
    numbers = {
        name: flag
        for name, flag in PARSERS[script]().by_dest().items()
        if flag.kind in (int, float, share_or_count) and not flag.is_switch
    }
    assert {name for name, flag in numbers.items() if flag.low is None} == WITHOUT_RANGE[script]


VALUES = """
--eval-interval 3  ->  val_interval: 3
--teacher-pretrained w.pth --teacher x  ->  teacher_checkpoint: w.pth
--select-split 50 --select best  ->  select_split: 50
--select-split 1e-2 --select best  ->  select_split: 0.01
--loss-kwargs a=1 b=0.5 c=x  ->  loss_kwargs: {a: 1, b: 0.5, c: x}
--torchcompile aot_eager  ->  torchcompile: aot_eager
--dr 0.5  ->  decay_rate: 0.5
--input-size 3 32 32  ->  input_size: [3, 32, 32]
"""


@pytest.mark.parametrize("argv, expected", lines(VALUES))
def test_value(argv, expected):
    args, given = parse(train_parser(), argv.split())
    ((dest, value),) = yaml.safe_load(expected).items()
    assert getattr(args, dest) == value
    assert dest in given


@pytest.mark.parametrize("value", ["-1.5", "-x", "--lr"])
def test_words_with_a_dash_can_be_typed(value: str) -> None:
    """What is printed to be typed is taken for what it was."""
    parser = train_parser()
    flag = parser.by_dest()["experiment"]
    words = words_of(flag, value)
    assert words == [f"--experiment={value}"]
    assert parser.take(words)["experiment"] == value


def test_help_is_a_screen_of_the_flags_of_a_first_run(capsys):
    with pytest.raises(SystemExit):
        parse(train_parser(), ["--help"])
    text = capsys.readouterr().out
    assert text.count("\n") <= 36 and max(map(len, text.splitlines())) <= 105
    assert set(re.findall(r"--[a-z-]*[a-z]", text)) <= {*train_parser().flags()}
    examples = text.partition("Examples:")[2].replace("\\\n", "").strip().splitlines()
    commands = [
        shlex.split(line)[1:] for line in examples if line.startswith("  ") or line is examples[0]
    ]
    assert len(commands) == 3
    for command in commands:
        parse(train_parser(), command)


def test_help_has_the_flags_of_the_first_pages(capsys):
    with pytest.raises(SystemExit):
        parse(train_parser(), ["--help"])
    text = capsys.readouterr().out
    used = {"--pretrained-path", "--train-labels", "--val-labels"}
    for page, program, command in commands():
        if page in ("README.md", "start.md") and program == "train":
            used |= {word for word in command if word.startswith("--")}
    assert len(used) > 20
    assert sorted(flag for flag in used if not re.search(rf"{flag}[ ,;\n]", text)) == []


def test_help_tells_defaults_and_what_belongs_together(capsys):
    with pytest.raises(SystemExit):
        parse(train_parser(), ["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the student then has all of --train-slice (default: 0.5)" in text
    assert "scale X [X ...] area of random crops (default: 0.08 1.0)" in text
    assert "report the performance gap recovered with its interval; needs --experiment NAME" in text
    assert (
        "metric that ranks checkpoints: top1, top5, loss, agreement (with --teacher), few-shot"
        in text
    )


@pytest.mark.parametrize(
    "flag, place, message",
    [
        *(
            (flag, "x.csv", "is a FIFO; expected a regular file")
            for flag in ("--class-map", "--teacher-checkpoint", "--resume", "--data-dir")
        ),
        ("--config", "x.csv", "^--config {}: is a FIFO; expected a YAML file$"),
        ("--config", ".", "^--config {}: is a folder; expected a YAML file$"),
    ],
)
def test_a_fifo_is_no_file_of_a_flag(tmp_path: Path, flag: str, place: str, message: str) -> None:
    """Whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / "x.csv")
    path = str(tmp_path / place)
    assert_refused(message.format(path), parse, train_parser(), [flag, path])


def test_a_device_is_a_file_of_a_flag() -> None:
    args, _ = parse(validate_parser(), ["--results-file", "/dev/null"])
    assert args.results_file == "/dev/null"
