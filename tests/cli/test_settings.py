"""Flags become typed settings: each in one concern, with a type that its values have, and frozen."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from tests.parts import default_settings
from w2s_plugins.cli import train_parser, validate_parser
from w2s_plugins.errors import UserError
from w2s_plugins.settings.composite import (
    NAMES_IN_A_RUN,
    ReportSettings,
    SubjectSettings,
    TrainSettings,
    ValidateSettings,
)
from w2s_plugins.settings.field import Concern

# fields that are no flags: what follows from several, and what only validate.py has
DERIVED = {
    "semi_supervised",
    "crop_mode",
    "view_epochs",
    "labels_missing",
    "labels_combine",
    "labels_delimiter",
    "labels_unlisted",
    "labels_confidence",
}
# values that `resolve` always fills in
FILLED_IN = {"lr": 0.1, "task_loss": "ce"}
# what validate.py finds in the run that it evaluates
OF_A_RUN = {"class_counts": None, "data_of_run": ""}


def concerns(composite: type) -> dict[str, type[Concern]]:
    return {
        name: kind
        for name, kind in get_type_hints(composite).items()
        if isinstance(kind, type) and issubclass(kind, Concern)
    }


def fits(value: object, kind: Any) -> bool:
    """Whether a value has the type of a field."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if origin is Sequence:
        return isinstance(value, list) and all(fits(item, get_args(kind)[0]) for item in value)
    if origin is Literal:
        return value in get_args(kind)
    if origin is Mapping:
        return isinstance(value, dict)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def test_each_field_is_a_flag_of_one_concern() -> None:
    """But for those that follow from several flags."""
    fields = Counter(
        field.name
        for concern in concerns(TrainSettings).values()
        for field in dataclasses.fields(concern)
    )
    assert [name for name, count in fields.items() if count > 1] == []
    assert fields.keys() - train_parser().by_dest().keys() == DERIVED


@pytest.mark.parametrize("composite", [TrainSettings, ValidateSettings])
def test_types_are_those_of_the_values(composite: type) -> None:
    parser = train_parser() if composite is TrainSettings else validate_parser()
    made = composite.from_flags({**parser.defaults(), **OF_A_RUN})
    checked = 0
    for name, concern in concerns(composite).items():
        kinds = get_type_hints(concern)
        for field in dataclasses.fields(concern):
            value = getattr(getattr(made, name), field.name)
            value = FILLED_IN.get(field.name, value)
            assert fits(value, kinds[field.name]), (name, field.name, value)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    "kind",
    [
        *concerns(TrainSettings).values(),
        SubjectSettings,
        ReportSettings,
        TrainSettings,
        ValidateSettings,
    ],
)
def test_settings_are_frozen(kind: type) -> None:
    of_run = default_settings()
    of_evaluation = ValidateSettings.from_flags({**validate_parser().defaults(), **OF_A_RUN})
    parts = [of_run, of_evaluation, *vars(of_run).values(), *vars(of_evaluation).values()]
    made = next(part for part in parts if type(part) is kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(kind)[0].name, None)


def test_flags_that_settings_were_made_of_do_not_change() -> None:
    flags = train_parser().defaults()
    made = TrainSettings.from_flags(flags)
    flags["epochs"] = 1
    assert made.flags["epochs"] == made.optim.epochs == 300
    with pytest.raises(TypeError):
        made.flags["epochs"] = 2


def test_an_evaluation_has_the_settings_of_a_run() -> None:
    flags = {**validate_parser().defaults(), **OF_A_RUN}
    own = {
        field.name
        for kind in (SubjectSettings, ReportSettings)
        for field in dataclasses.fields(kind)
    }
    known = (
        own | train_parser().by_dest().keys() | NAMES_IN_A_RUN.keys() | {"crop_mode", "log_freq"}
    )
    assert flags.keys() <= known
    made = ValidateSettings.from_flags(
        {**flags, "split": "novel", "few_shot": "5x1", "num_samples": 7}
    )
    assert (made.data.val_split, made.data.val_num_samples, made.episodes.few_shot_eval) == (
        "novel",
        7,
        "5x1",
    )
    assert made.data.train_split == "train"


@pytest.mark.parametrize("text", ["5x1:0", "5x1:-1", "5x1:", "5x1:many"])
def test_a_batch_has_an_episode_at_least(text: str) -> None:
    made = TrainSettings.from_flags({**train_parser().defaults(), "episodic": text})
    with pytest.raises(UserError, match=f"--episodic {text}: expected a number of episodes of at"):
        _ = made.episodes.in_batch


PREDICATES = [
    (dict(unlabeled="photos", teacher="resnet18", task_loss_weight=0.5), "data.semi_supervised"),
    (dict(unlabeled="photos"), "data.has_no_truth"),
    (dict(unlabeled="torch/stl10:unlabeled", data_dir="."), "data.has_no_truth"),
    (dict(cutmix=1.0), "views.mixes"),
    (dict(teacher="resnet18,labels:a.csv"), "teacher.has_labels"),
    (dict(teacher="labels:a.csv,labels:b.csv"), "teacher.has_labels_alone"),
    (dict(teacher="resnet18", teacher_targets="cached"), "teacher.stores_targets"),
    (dict(teacher="resnet18", teacher_targets="cached-views:3"), "teacher.view_epochs"),
    (dict(linear_probe=True, teacher_targets="cached-views:3"), "teacher.view_epochs"),
    (dict(episodic="5x1"), "episodes.in_batch"),
    (dict(clean_select="knn:5"), "labels.selects_by_labels"),
    (dict(clean_select="entropy:0.5"), "labels.asks_the_teacher"),
    (dict(teacher="resnet18", task_loss_weight=0.0), "is_scored_by_teacher"),
    (dict(teacher="resnet18"), "has_agreement"),
]


@pytest.mark.parametrize("flags, name", PREDICATES)
def test_predicates(flags: dict[str, object], name: str) -> None:
    def value(settings: object) -> object:
        for part in name.split("."):
            settings = getattr(settings, part)
        return settings

    assert value(default_settings(**flags)) and not value(default_settings())
