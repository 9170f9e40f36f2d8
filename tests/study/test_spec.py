"""What a specification may say, and how it is told that it says something else."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.test_untrusted import BOMB
from tests.parts import calm, lines, refusal
from w2s_plugins.study.planning import plan_study
from w2s_plugins.study.spec import Choice, read_spec

from .specs import BASE, SMALL, changed_by, write

EVERYTHING = """
{config: base.yaml, seeds: [3, 1], base: {epochs: 2}, sets: [{name: one}, {name: two, flags: {data-dir: data}}],
 weak: [{flags: {model: w2s_cnn2}, sets: {one: , two: {lr: 2}}},
        {name: own, flags: {model: w2s_cnn5}, checkpoint: run}],
 losses: [{loss: adaptconf, kwargs: {ramp: 0.1}, grid: {temperature: [0.5, 1], kd_temperature: [2]}},
          {name: plain, loss: adaptconf}]}
"""


def test_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 9\nlr: 1\nloss: elr\n")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    study = read_spec(write(tmp_path, {**SMALL, **yaml.safe_load(EVERYTHING)}))
    assert study.base == {"epochs": 2, "lr": 1.0}, "the file below the base"
    assert [part.name for part in study.weak] == ["w2s_cnn2", "own"]
    assert study.sets == [Choice("one"), Choice("two", {"data_dir": "data"})]
    assert study.weak[0].sets == {"one": {}, "two": {"lr": 2.0}} and not study.weak[1].sets
    assert [part.trained_here for part in study.weak] == [True, False]
    assert study.losses == [
        *(
            Choice(
                f"adaptconf-temperature={t}-kd_temperature=2",
                {"ramp": 0.1, "temperature": t, "kd_temperature": 2},
                loss="adaptconf",
            )
            for t in (0.5, 1)
        ),
        Choice("plain", loss="adaptconf"),
    ]
    assert study.seeds == [3, 1]
    study = read_spec(write(tmp_path, SMALL))
    assert study.seeds == [0] and study.base == BASE


WRONG = r"""
loses: []  ->  unknown key 'loses' \(nearest: losses
base: {epocs: 3}  ->  base: unknown key 'epocs' \(nearest: epochs
base: {epochs: many}  ->  base: epochs: 'many' is a str, expected int
base: {teacher: resnet18}  ->  base: teacher is set by the study; in its place: the key weak
config: no.yaml  ->  --config no.yaml: no such file
weak: []  ->  no run at all; expected at least one item in weak
weak: 3  ->  not a study .*'int' object is not iterable
seeds: 99999999999999999999  ->  seeds: 99999999999999999999: expected how many there are, at most 1000
seeds: 1.5  ->  seeds: 1.5: expected how many
seeds: true  ->  seeds: True: expected how many
seeds: [1, 1]  ->  seeds: \[1, 1\]: expected how many .* or a list of different whole numbers
weak: [w2s_cnn2]  ->  weak\[0\]: 'w2s_cnn2' is not right; expected a mapping with name, flags
weak: [{name: a}]  ->  weak\[0\]: no model
weak: [{name: a/b, flags: {model: x}}]  ->  weak\[0\]: name 'a/b' is not right
sets: [{flags: {dataset: x}}]  ->  sets\[0\]: name None is not right
weak: [{name: 1, flags: {model: x}}]  ->  weak\[0\]: name 1 is not right
weak: [{name: a, flags: {model: "hf-hub:a/b", lr: 1}}]  ->  taken as it is has no flags but
strong: [{name: s, flags: {model: x}}, {name: s, flags: {model: x}}]  ->  strong: two of s, s have one name
losses: [hard, Hard]  ->  losses: two of hard, hard have one name
losses: [{kwargs: {}}]  ->  losses\[0\]: no loss
losses: [{loss: kd, grid: {temperature: 1}}]  ->  not a study .*'int' object is not iterable
strong: [{name: s, flags: {model: x, train_slice: "0:9"}}]  ->  strong\[0\]: train_slice cuts .* for all models: give
strong: [{name: s, flags: {model: x, weak_fraction: 9}}]  ->  strong\[0\]: weak_fraction cuts .* give it in base
strong: [{name: s, flags: {model: x, slice_seed: 9}}]  ->  strong\[0\]: slice_seed cuts the training set
weak: [{name: w, flags: {model: x, slice_seed: 9}}]  ->  weak\[0\]: slice_seed cuts the training set
{slices: by_seed, base: {slice_seed: 3}}  ->  slice_seed: with slices: by_seed it is the seed of each run
controls: [direkt]  ->  controls 'direkt' \(nearest: direct\)
slices: seed  ->  slices 'seed' .*; one of fixed, by_seed
{sets: [{name: digits}], weak: [{name: w, flags: {model: x}, sets: {digit: }}]}  ->  w.sets 'digit' \(nearest: digits\)
"""


@pytest.mark.parametrize(("changes", "message"), lines(WRONG))
def test_errors(tmp_path: Path, changes: str, message: str) -> None:
    assert re.search(
        message, refusal(lambda: plan_study(read_spec(write(tmp_path, changed_by(changes)))))
    )


@pytest.mark.parametrize(
    "content", ["a: [", BOMB, "name: !!python/object/apply:os.system ['touch ran']\n", "- 1"]
)
def test_no_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    said = (
        r"the file: \[1\] is not right; expected a mapping"
        if content == "- 1"
        else "small.yaml: not a YAML file"
    )
    assert re.search(said, refusal(lambda: plan_study(read_spec(write(tmp_path, content)))))
    assert not (tmp_path / "ran").exists()


def test_no_file(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    assert "smal.yaml: no such file (nearest: small.yaml)" in refusal(
        read_spec, tmp_path / "smal.yaml"
    )


KEYS = st.sampled_from(
    [*SMALL, "sets", "config", "seeds", "controls", "flags", "loss", "grid", "kwargs", "model"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["kd", "a", "", "w2s", "-", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(0, 1), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_content_is_a_study_or_one_line(tmp_path: Path, changes: dict) -> None:
    calm(
        lambda: plan_study(
            read_spec(write(tmp_path, yaml.safe_dump({**SMALL, **changes}, allow_unicode=True)))
        )
    )
