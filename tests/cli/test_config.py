"""YAML files of flags: how they are merged, what each kind of value becomes, and what is refused."""

from pathlib import Path

import pytest
import yaml

from tests.parts import assert_refused, lines, refusal, words
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.cli.parser import read_command, read_yaml
from w2s_plugins.files import recipe_path
from w2s_plugins.run.args_file import write_args
from w2s_plugins.study.planning import read_stages
from w2s_plugins.study.spec import read_spec


@pytest.fixture
def config(tmp_path):
    """Write a YAML file, from text or a mapping, and return its path."""

    def write(content: object, name: str = "a.yaml") -> str:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_command_line_over_later_files_over_earlier_files_over_defaults(config):
    first = config({"epochs": 1, "lr": 0.1, "opt": "adamw", "model": "a"}, "1.yaml")
    second = config({"lr": 0.2, "opt": "sgd", "model": "b"}, "2.yaml")
    args, given = parse(train_parser(), ["--config", first, second, "--opt", "lamb"])
    assert (args.epochs, args.lr, args.opt, args.model, args.momentum) == (1, 0.2, "lamb", "b", 0.9)
    assert given == {"epochs", "lr", "opt", "model"}
    args, _ = parse(train_parser(), ["--opt", "lamb", "-c", second, "--config", first])
    assert (args.lr, args.opt, args.model) == (0.1, "lamb", "a")


def test_a_recipe_may_set_what_a_protocol_needs():
    """Of a ceiling that is trained otherwise, for those who add --protocol; typed alone: e2e/test_bad_flags.py."""
    args, _ = parse(train_parser(), ["--config", "weak-labels", "--teacher", "resnet18"])
    assert args.ceiling_config and args.protocol is None


VALUES = """
epochs: 3  ->  3
epochs: 3.0  ->  3
lr: "1e-4"  ->  0.0001
amp: false  ->  false
experiment: 7  ->  "7"
mean: 0.5  ->  [0.5]
mean: [0.5, "0.4", 1]  ->  [0.5, 0.4, 1.0]
input_size: [3, 32, 32]  ->  [3, 32, 32]
teacher: null  ->  null
finetune: null  ->  ""
loss_kwargs: null  ->  {}
select_split: 50  ->  50
select_split: 0.00001  ->  0.00001
teacher_targets: cached-views:3  ->  cached-views:3
loss_kwargs: {a: 1, b: [1, 2]}  ->  {a: 1, b: [1, 2]}
loss_kwargs: a=1 b=x  ->  {a: 1, b: x}
loss_kwargs: [a=1, b=0.5]  ->  {a: 1, b: 0.5}
torchcompile: inductor  ->  inductor
"""
WRONG = """
epochs: 3.5  ->  expected int
epochs: true  ->  expected int
epochs: .inf  ->  expected int
epochs: null  ->  expected a value
lr: false  ->  expected float
amp: yes please  ->  expected true or false
model: {name: a}  ->  expected str
teacher: true  ->  expected teacher names
mean: [null]  ->  expected float
input_size: [3, 32]  ->  expected 3 values
select_split: some  ->  expected a share such as 0.1, or a count such as 500
teacher_targets: live  ->  expected one of online, cached, cached-views:N
loss_kwargs: temperature  ->  expected a mapping, or key=value
"""


@pytest.mark.parametrize("content, expected", lines(VALUES))
def test_value(config, content, expected):
    args, given = parse(train_parser(), ["--config", config(content), "--select", "best"])
    (key,), expected = yaml.safe_load(content), yaml.safe_load(expected)
    found = getattr(args, key)
    assert found == expected
    assert type(found) is type(expected)
    assert given == {key, "select"}


@pytest.mark.parametrize("content, expected", lines(WRONG))
def test_wrong_type_names_file_key_value_and_what_was_expected(config, content, expected):
    file = config(content)
    message = refusal(parse, train_parser(), ["--config", file])
    ((key, value),) = yaml.safe_load(content).items()
    assert message.startswith(f"--config {file}: {key}: ")
    assert message.endswith(expected)
    assert repr(value)[:20] in message


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a YAML file" in refusal(parse, train_parser(), ["--config", str(path)])


TWICE = r"""
a.yaml | lr: 1\nopt: sgd\nlr: 2  ->  not a YAML file: 'lr' is given twice, in lines 1 and 3
a.yaml | batch_size: 1\nbatch-size: 2  ->  'batch-size' is given twice, in lines 1 and 2; expected one
a.yaml | loss_kwargs:\n  a: 1\n  a: 1  ->  'a' is given twice, in lines 2 and 3
a.json | {"lr": 1, "lr": 2}  ->  'lr' is given twice
a.json | {"batch_size": 1, "batch-size": 2}  ->  batch_size is given twice
"""


@pytest.mark.parametrize("content, expected", lines(TWICE))
def test_a_key_is_given_once(config, content, expected):
    """YAML and JSON themselves take the last of several."""
    name, content = content.split(" | ")
    file = config(content.replace("\\n", "\n"), name)
    message = refusal(parse, train_parser(), ["--config", file])
    assert message.startswith(f"--config {file}: ")
    assert expected in message


def test_a_key_of_stages_and_studies_is_given_once(config):
    stages = config("- name: a\n- name: b\n  lr: 1\n  lr: 2\n")
    assert "'lr' is given twice, in lines 3 and 4" in refusal(read_stages, stages)
    study = config("base: {lr: 1}\nweak: []\nbase: {}\n")
    assert "'base' is given twice, in lines 1 and 3" in refusal(read_spec, Path(study))


def test_a_key_may_differ_from_what_is_merged_into_it(config):
    """YAML's own way to change a value."""
    file = config("loss_kwargs: {<<: &a {b: 1, c: 1}, c: 2}\nteacher_kwargs: *a")
    args, _ = parse(train_parser(), ["--config", file, "--teacher", "resnet18"])
    assert args.loss_kwargs == {"b": 1, "c": 2}


@pytest.mark.parametrize(
    "flags", ["--loss-kwargs a=1 a=2", "--teacher labels:a.csv?missing=skip&missing=error"]
)
def test_what_is_inside_a_flag_is_given_once(flags):
    assert "is given twice" in refusal(parse, train_parser(), flags.split())


def test_args_yaml_round_trip(config, tmp_path):
    """What a run writes is read back as the same values, every flag of it."""
    parser = train_parser()
    argv = words(
        "--teacher resnet18 --loss-kwargs temperature=0.25 --mean 0.5 --select best --select-split 0.1",
        "--train-img-sizes 8 12 --amp --cutmix-minmax 0.2 0.8 --model-kwargs depths=(1,2)",
    )
    args, _ = parse(parser, argv)
    flags = set(parser.by_dest())
    write_args(tmp_path / "args.yaml", {k: v for k, v in vars(args).items() if k in flags})
    again, given = parse(train_parser(), ["--config", str(tmp_path / "args.yaml")])
    args.model_kwargs = {"depths": [1, 2]}  # YAML has no tuples
    assert vars(again) == vars(args)
    assert given == flags


def test_a_file_reads_those_it_names_first(config, tmp_path, monkeypatch):
    """Relative to itself, each with those it names in turn; names are those of the file, wherever the run starts."""
    (tmp_path / "sub").mkdir()
    config({"epochs": 1, "lr": 0.1, "opt": "adamw"}, "base.yaml")
    config({"config": "../base.yaml", "lr": 0.2}, "sub/middle.yaml")
    top = config({"config": ["sub/middle.yaml"], "opt": "lamb"}, "top.yaml")
    monkeypatch.chdir("/")
    args, given = parse(train_parser(), ["--config", top])
    assert (args.epochs, args.lr, args.opt) == (1, 0.2, "lamb")
    assert given == {"epochs", "lr", "opt"}


def test_recipes_have_names(config, tmp_path, monkeypatch):
    """Wherever the run starts, and below a file of one's own."""
    monkeypatch.chdir(tmp_path)
    args, _ = parse(train_parser(), ["--config", "imagenet-resnet18-vit-base"])
    assert (args.loss, args.epochs) == ("adaptconf", 30)
    args, _ = parse(train_parser(), ["--config", config({"config": "digits", "img_size": 8})])
    assert (args.dataset, args.img_size) == ("w2s/digits", 8)


@pytest.mark.parametrize(
    "name, top, epochs",
    [
        ("digits.yaml", None, 7),
        ("./digits", None, 7),
        ("mine", None, 7),
        ("digits", None, 300),
        ("./digits", "top.yaml", 7),
        ("digits", "top.yaml", 300),
        ("../digits", "sub/top.yaml", 7),
    ],
)
def test_a_path_is_ones_own_file(config, tmp_path, monkeypatch, name, top, epochs):
    """Whatever it is called, as is a name that the package has not; so it is in a file, beside which it lies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for own in ("digits.yaml", "digits", "mine"):
        config({"epochs": 7}, own)
    if top:
        config({"config": name}, top)
    assert parse(train_parser(), ["--config", top or name])[0].epochs == epochs


@pytest.mark.parametrize(
    "name, of_package",
    [("./digits-losses", False), ("{}/digits-losses", False), ("digits-losses", True)],
)
def test_a_study_is_known_by_its_path(tmp_path, monkeypatch, name, of_package):
    """``study plan ./NAME`` takes the file that lies there, and a name alone that of the package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-losses").write_text("weak: []\n")
    name = name.format(tmp_path)
    monkeypatch.setattr("sys.argv", ["study", "plan", name])
    _, values = read_command("study")
    path, content = read_yaml(values["spec"], "")
    assert (path.suffix == ".yaml") == of_package == bool(content["weak"])
    assert bool(read_spec(recipe_path(name)).weak) == of_package


@pytest.mark.parametrize(
    "flags, loss, kwargs",
    [
        ([], "adaptconf", {"temperature": 8}),
        (["--loss", "dkd"], "dkd", {}),
        (["--distiller", "kd"], "adaptconf", {}),
        (["--loss", "dkd", "--loss-kwargs", "beta=2"], "dkd", {"beta": 2}),
    ],
)
def test_another_loss_does_not_take_over_the_kwargs_of_a_file(config, flags, loss, kwargs):
    file = config({"loss": "adaptconf", "loss_kwargs": {"temperature": 8}})
    args, _ = parse(train_parser(), ["--config", file, *flags])
    assert (args.loss, args.loss_kwargs) == (loss, kwargs)
    if flags:
        later = config({flags[0][2:]: flags[1]}, "later.yaml")
        assert parse(train_parser(), ["--config", file, later])[0].loss_kwargs == (
            {} if "dkd" in flags else kwargs
        )


def test_defaults_in_files_say_nothing_of_other_flags(config):
    """The args.yaml of a run holds all flags; what a file says can be undone."""
    file = config(
        {"weak_fraction": 0.5, "weak_config": [], "queries": 15, "few_shot_split": "validation"}
    )
    assert_refused(
        "--few-shot-split validation has no effect", parse, train_parser(), ["--config", file]
    )
    parse(train_parser(), ["--config", file, "--few-shot-split", "novel"])
    parse(train_parser(), ["--config", file, "--few-shot-eval", "5x1", "--queries", "5"])
