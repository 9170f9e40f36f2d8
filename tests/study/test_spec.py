"""What a specification may say, and how it is told that it says something else."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.test_untrusted import BOMB
from w2s_plugins.cli.parser import train_parser
from w2s_plugins.errors import UserError
from w2s_plugins.study.spec import PROTOCOLS, DataSet, LossChoice, Part, Protocol, Study, read_spec

from .specs import BASE, SMALL, changed, write

PARSER = train_parser()


def test_defaults_and_what_is_written_back(tmp_path: Path) -> None:
    study = read_spec(write(tmp_path, SMALL), PARSER)
    assert study.name == "small" and study.seeds == [0] and study.base == BASE
    assert study.losses == [LossChoice("hard", "hard"), LossChoice("kd", "kd")]
    assert study.protocols == [PROTOCOLS["w2s"]] and study.weak == [Part("a", {"model": "w2s_cnn2"})]
    assert read_spec(write(tmp_path, study.to_yaml()), PARSER) == study


def test_everything(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 9\nlr: 1\nloss: elr\n")
    (tmp_path / "run").mkdir()
    study = read_spec(write(tmp_path, changed(
        name="all", config=str(tmp_path / "base.yaml"), seeds=[3, 1], base={"epochs": 2},
        sets=[{"name": "one"}, {"name": "two", "flags": {"data-dir": "data"}}],
        weak=[{"flags": {"model": "w2s_cnn2"}, "sets": {"one": None, "two": {"lr": 2}}},
              {"name": "own", "flags": {"model": "w2s_cnn5"}, "checkpoint": str(tmp_path / "run")}],
        losses=[{"loss": "adaptconf", "kwargs": {"ramp": 0.1},
                 "grid": {"temperature": [0.5, 1], "kd_temperature": [2]}}, {"name": "plain", "loss": "adaptconf"}],
        protocols=["supervised", {"name": "half", "split": True, "flags": {"task-loss-weight": 0.5}}],
    )), PARSER)
    assert study.base == {"epochs": 2, "lr": 1.0}, "the file below the base"
    assert [part.name for part in study.weak] == ["w2s_cnn2", "own"]
    assert study.sets == [DataSet("one"), DataSet("two", {"data_dir": "data"})]
    assert study.weak[0].sets == {"one": {}, "two": {"lr": 2.0}} and not study.weak[1].sets
    assert [part.trained_here for part in study.weak] == [True, False]
    assert study.losses == [
        LossChoice("adaptconf-temperature=0.5-kd_temperature=2", "adaptconf",
                   {"ramp": 0.1, "temperature": 0.5, "kd_temperature": 2}),
        LossChoice("adaptconf-temperature=1-kd_temperature=2", "adaptconf",
                   {"ramp": 0.1, "temperature": 1, "kd_temperature": 2}),
        LossChoice("plain", "adaptconf")]
    assert study.protocols == [PROTOCOLS["supervised"], Protocol("half", True, {"task_loss_weight": 0.5})]
    assert study.seeds == [3, 1] and read_spec(write(tmp_path, study.to_yaml()), PARSER) == study


@pytest.mark.parametrize(("content", "message"), [
    ("a: [", "small.yaml: not a YAML file"),
    ("- 1", r"the file: \[1\] is not right; expected a mapping"),
    ("!!python/object/apply:os.system [ls]", "not a YAML file"),
    (changed(loses=[]), r"unknown key 'loses' \(nearest: losses"),
    (changed(base={"epocs": 3}), r"base: unknown key 'epocs' \(nearest: epochs"),
    (changed(base={"epochs": "many"}), "base: epochs: 'many' is a str, expected int"),
    (changed(base=[1]), "base: expected a mapping of flags"),
    (changed(base={"teacher": "resnet18"}), "base: teacher is set by the study; in its place: the key weak"),
    (changed(base={"seed": 1}), "in its place: the key seeds"),
    (changed(base={"unlabeled": "photos"}), "base: unlabeled: a study compares with ceilings, which need labels"),
    (changed(protocols=[{"name": "x", "flags": {"labeled_share": 0.5}}]), "labeled_share: a study compares with ceil"),
    (changed(config="no.yaml"), "base: --config no.yaml: no such file"),
    (changed(config=[1]), r"config: \[1\] is not right; expected a list of files"),
    (changed(weak=[]), r"weak: \[\] is not right; expected a list of at least one item"),
    (changed(weak=None), "weak: is missing"),
    (changed(weak=["w2s_cnn2"]), r"weak\[0\]: 'w2s_cnn2' is not right; expected a mapping with name, flags"),
    (changed(weak=[{"name": "a"}]), r"weak\[0\]: no model"),
    (changed(weak=[{"name": "a/b", "flags": {"model": "x"}}]), r"weak\[0\].name: 'a/b' is not right"),
    (changed(weak=[{"name": "a", "flags": {"model": "x,y"}}]), "names several"),
    (changed(weak=[{"name": "a", "checkpoint": "no", "flags": {"model": "x"}}]), "checkpoint: 'no' is not right"),
    (changed(weak=[{"name": "a", "flags": {"model": "hf-hub:a/b", "lr": 1}}]), "lr has no meaning for a teacher"),
    (changed(strong=[{"name": "a", "checkpoint": "b", "flags": {"model": "x"}}]), "unknown key 'checkpoint'"),
    (changed(strong=SMALL["strong"] * 2), "strong: 's' is there twice"),
    (changed(losses=["hard", "Hard"]), "losses: 'Hard' is there twice"),
    (changed(losses=[{"kwargs": {}}]), r"losses\[0\].loss: is missing"),
    (changed(losses=[{"loss": "kd", "grid": {"temperature": 1}}]), r"grid.temperature: 1 is not right; expected a"),
    (changed(losses=[{"loss": "kd", "kwargs": {"a": 1}, "grid": {"a": [1]}}]), "a is both in kwargs and in grid"),
    (changed(losses=[{"loss": "kd", "kwargs": [1]}]), "kwargs: .* expected a mapping"),
    (changed(protocols=["w2"]), r"protocols\[0\]: 'w2' is not right; expected one of w2s, supervised \(nearest: w2s\)"),
    (changed(protocols=[{"name": "x", "split": 1}]), "split: 1 is not right; expected true or false"),
    (changed(protocols=[{"split": True}]), r"protocols\[0\].name: is missing"),
    (changed(seeds=0), "seeds: 0 is not right"),
    (changed(seeds=[1, 1]), "seeds: '1' is there twice"),
    (changed(seeds=[True]), "expected a count of at least 1, or a list"),
    (changed(controls=["direkt"]), r"controls: 'direkt' is not right; expected one of .* \(nearest: direct\)"),
    (changed(controls="direct"), "controls: 'direct' is not right; expected a list of some of direct"),
    (changed(slices="seed"), "slices: 'seed' is not right; expected one of fixed, by_seed"),
    (changed(slices="by_seed", base={"slice_seed": 1}), "slices by_seed and slice_seed say two things"),
    (changed(slices="by_seed", sets=[{"name": "a", "flags": {"slice_seed": 1}}]), "by_seed and slice_seed say two"),
    (changed(sets=[]), r"sets: \[\] is not right; expected a list of at least one item"),
    (changed(sets=[{"flags": {"data_dir": "a"}}]), r"sets\[0\].name: is missing"),
    (changed(sets=[{"name": "a", "flags": {"datadir": "a"}}]), r"sets\[0\].flags: unknown key 'datadir'"),
    (changed(sets=[{"name": "a"}, {"name": "A"}]), "sets: 'A' is there twice"),
    (changed(weak=[{"name": "w", "flags": {"model": "x"}, "sets": {"a": None}}]),
     "w.sets: 'a' is not right; expected one of none"),
    (changed(sets=[{"name": "digits"}], weak=[{"name": "w", "flags": {"model": "x"}, "sets": {"digit": None}}]),
     r"w.sets: 'digit' is not right; expected one of digits \(nearest: digits\)"),
    (changed(sets=[{"name": "a"}], weak=[{"name": "w", "flags": {"model": "x"}, "sets": {"a": {"lr": "x"}}}]),
     r"weak\[0\].sets.a.flags: lr: 'x' is a str"),
    (changed(sets=[{"name": "a"}], weak=[{"name": "w", "flags": {"model": "x"}, "sets": {"a": {"model": "hf-hub:a/b",
                                                                                          "lr": 1}}}]),
     "lr has no meaning for a teacher"),
    (changed(name=3), "name: 3 is not right"),
])
def test_errors(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_spec(write(tmp_path, content), PARSER)
    assert "\n" not in str(error.value) and "small.yaml" in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    with pytest.raises(UserError, match=r"cannot be read .* \(nearest: .*small.yaml\)"):
        read_spec(tmp_path / "smal.yaml", PARSER)


KEYS = st.sampled_from([
    *SMALL, "sets", "name", "config", "seeds", "protocols", "flags", "loss", "grid", "kwargs", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["kd", "a", "", "w2s", "-", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(0, 1), inner, max_size=4),
    max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_content_is_a_study_or_one_line(tmp_path: Path, changes: dict) -> None:
    try:
        study = read_spec(write(tmp_path, yaml.safe_dump({**SMALL, **changes}, allow_unicode=True)), PARSER)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(study, Study)
        assert read_spec(write(tmp_path, study.to_yaml()), PARSER) == study


def test_a_token_is_refused_wherever_it_is(tmp_path: Path) -> None:
    token = "hf_" + "T0psecret" * 4
    for content in (changed(name=token), changed(losses=[{"loss": "kd", "kwargs": {"a": token}}]),
                    yaml.safe_dump(SMALL) + f"# {token}\n"):
        with pytest.raises(UserError, match="holds an access token") as caught:
            read_spec(write(tmp_path, content), PARSER)
        assert token not in str(caught.value)


@pytest.mark.parametrize("text", [BOMB, "name: !!python/object/apply:os.system ['touch ran']\n", "a: &a [*a]\n"])
def test_bombs_and_payloads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not a YAML file"):
        read_spec(write(tmp_path, text), PARSER)
    assert not (tmp_path / "ran").exists()
