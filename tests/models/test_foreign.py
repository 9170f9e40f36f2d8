"""Files of others: the config.json of a model, and what a run has recorded. Nothing in them names code or places."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from tests.parts import assert_refused, calm, change_json
from w2s_plugins.models.foreign import PRETRAINED_CFG, constructor_arguments
from w2s_plugins.models.loading import INPUT_KEYS, create_model, settings_beside
from w2s_plugins.run.args_file import read_run_args
from w2s_plugins.settings.programs import train_program
from w2s_plugins.settings.teacher_name import TeacherName
from w2s_plugins.study.carry_out import read_result
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.teachers.kinds import open_classifier
from w2s_plugins.teachers.openers import Request

# of every kind that JSON and YAML have
ODD = [
    None,
    True,
    False,
    0,
    -1,
    3,
    10**30,
    0.5,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "3",
    "0.5",
    "a\0b",
    "hf-hub:me/x",
    "x" * 300,
    [],
    [0],
    [-1],
    [3, 8, 8],
    ["x"],
    [None],
    [[1]],
    [0.5, 0.5, 0.5],
    {},
    {"x": 1},
]
NOWHERE = "http://127.0.0.1:9/authorized_keys"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A small model in timm's export format."""
    model = timm.create_model("w2s_cnn2", num_classes=4)
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    return tmp_path / "model"


OVERLAY = dict(source="", file="", hf_hub_id="", url=NOWHERE)
# what a config.json would have timm fetch, write, load or make, by the part of it that is named
ARGUMENTS = {
    "pretrained_cfg_overlay": dict(pretrained_cfg_overlay=OVERLAY, cache_dir="home"),
    "cache_dir": dict(cache_dir="home"),
    "checkpoint_path": dict(checkpoint_path="x.pth"),
    "pretrained_cfg": dict(pretrained_cfg=OVERLAY),
    "pretrained": dict(pretrained=True),
    "pretrained_window_sizes": dict(pretrained_window_sizes=[1]),
    "features_only": dict(features_only=True),
    "inputs": dict(inputs={"img_size": 8}),
    "url": dict(url=NOWHERE),
    "drop_rate": dict(drop_rate={"a": 1}),
    "below 2147483648": dict(drop_rate=1e300),
}


ATTACKS = {attack: dict(model_args=args) for attack, args in ARGUMENTS.items()} | {
    "up to 1048576": dict(num_classes=10**12),
    "input_size: 1000000000000": dict(pretrained_cfg=dict(input_size=[3, 8, 10**12])),
    "'hf-hub:me/x'": dict(architecture="hf-hub:me/x"),
    "'local-dir:.'": dict(architecture="local-dir:."),
    "'resnet18.a1_in1k'": dict(architecture="resnet18.a1_in1k"),
}


def as_model(exported: Path) -> object:
    return create_model("--model", f"local-dir:{exported}", pretrained=True)


def as_checkpoint_of_a_teacher(exported: Path) -> object:
    request = Request(checkpoint=str(exported / "model.safetensors"))
    return open_classifier(TeacherName.parse("w2s_cnn2"), request)


@pytest.mark.parametrize("opened", [as_model, as_checkpoint_of_a_teacher])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_an_attack_reaches_timm(
    exported: Path, attack: str, opened: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_json(exported / "config.json", **ATTACKS[attack])
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was called"))
    assert_refused(attack, opened, exported)


def test_weights_come_from_the_named_place_alone(exported: Path, tmp_path: Path) -> None:
    expected = load_file(exported / "model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in expected.items()}, tmp_path / "other.safetensors")
    elsewhere = dict(
        OVERLAY,
        file=str(tmp_path / "other.safetensors"),
        hf_hub_id="me/x",
        custom_load=True,
        hf_hub_filename="other.safetensors",
        state_dict={"a": 1},
    )
    change_json(exported / "config.json", pretrained_cfg=elsewhere)
    model = as_model(exported)
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("w2s_cnn2", dict(widths=[[4], [8]], kernel_size=3)),
        ("test_vit", dict(img_size=32, depth=2, num_heads=4)),
        ("test_efficientnet", dict(bn_eps=1e-3)),
        ("test_byobnet", dict(stem_chs=16)),
    ],
)
def test_arguments_of_the_architecture_are_kept(tmp_path: Path, name: str, args: dict) -> None:
    model = timm.create_model(name, num_classes=3, **args)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = as_model(tmp_path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert again.pretrained_cfg["mean"] == list(model.pretrained_cfg["mean"])
    assert again.num_classes == 3


FORBIDDEN = "cache_dir checkpoint_path features_only out_indices device url file"


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "efficientnet_b0", "w2s_cnn5"])
def test_no_argument_is_one_of_timms_own_functions(name: str) -> None:
    allowed = constructor_arguments(name)
    assert {"num_classes", "in_chans", "drop_rate"} <= allowed
    assert not allowed & {*FORBIDDEN.split()}


# ---------------------------------------------------------------- every key, with values of every kind


WHOLE = "architecture model_args pretrained_cfg num_classes label_names labels"


PLACES = [
    *((key,) for key in WHOLE.split()),
    *(("pretrained_cfg", key) for key in PRETRAINED_CFG),
    *(("model_args", key) for key in (*sorted(constructor_arguments("w2s_cnn2")), "x", "inputs")),
]


@pytest.mark.parametrize("keys", PLACES, ids=".".join)
def test_odd_values_in_a_config_json(exported: Path, keys: tuple[str, ...]) -> None:
    """Each is taken or refused in one line: anything else is an error."""
    whole = json.loads((exported / "config.json").read_text())
    weights = exported / "model.safetensors"
    for value in ODD:
        content = {**whole, keys[0]: value}
        if len(keys) == 2:
            content[keys[0]] = {**whole.get(keys[0], {}), keys[1]: value}
        (exported / "config.json").write_text(json.dumps(content))
        calm(open_classifier, TeacherName.parse(f"local-dir:{exported}"), Request())
        calm(settings_beside, weights, "--checkpoint")


def test_what_other_programs_call_a_task_is_no_flag(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for task, kind in (("multilabel", SEVERAL_CLASSES), ("detect", None), (["multilabel"], None)):
        torch.save({"state_dict": {}, "args": argparse.Namespace(task=task, num_classes=3)}, path)
        found = settings_beside(path, "--checkpoint")
        assert found.num_classes == 3
        assert getattr(found.target_kind, "name", None) == getattr(kind, "name", None)


OF_TIMM = [{"pretrained": True}, {"inputs": 1}, {"features_only": True}, {"cache_dir": "x"}]


@pytest.mark.parametrize("key", [*INPUT_KEYS, "num_classes", "model_kwargs", "gp"])
def test_odd_values_in_the_flags_of_a_checkpoint(tmp_path: Path, key: str) -> None:
    """Each is taken or refused in one line: anything else is an error."""
    state, path = timm.create_model("w2s_cnn2").state_dict(), tmp_path / "x.pth"
    for value in [*ODD, *OF_TIMM]:
        flags = argparse.Namespace(**{key: value})
        torch.save({"state_dict": state, "args": flags}, path)
        calm(open_classifier, TeacherName.parse("w2s_cnn2"), Request(checkpoint=str(path)))


FLAGS = train_program().flags


# a flag of every kind
KINDS = {
    (flag.kind, str(flag.nargs), flag.const, type(flag.choices)): key for key, flag in FLAGS.items()
}


@pytest.mark.parametrize("key", KINDS.values())
def test_odd_values_in_an_args_yaml(tmp_path: Path, key: str) -> None:
    """Each is refused, or has the type that it has when typed."""
    flag = FLAGS[key]
    several = flag.nargs and flag.nargs != "?"
    kind = (list, dict) if several else flag.kind if isinstance(flag.kind, type) else object
    for value in ODD:
        (tmp_path / "args.yaml").write_text(json.dumps({key: value}))
        found = calm(read_run_args, tmp_path, "--checkpoint") or {}
        wrong = [v for v in found.values() if v is not None and not isinstance(v, kind)]
        assert wrong == [], value


@pytest.mark.parametrize(
    "keys",
    [
        ("metrics",),
        ("metrics", "top1"),
        ("selected", "rule"),
        ("data", "splits"),
        ("data", "label_noise"),
        ("data", "splits", "train"),
    ],
    ids=".".join,
)
def test_odd_values_in_a_result_json(tmp_path: Path, keys: tuple[str, ...]) -> None:
    split = dict(fingerprint="x", num_samples=3)
    good = dict(
        metrics=dict(top1=1.0),
        selected=dict(rule="last"),
        data=dict(label_noise=None, splits=dict(train=split, val=split)),
    )
    refused = 0
    for value in ODD:
        content = json.loads(json.dumps(good))
        part = content
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        (tmp_path / "result.json").write_text(json.dumps(content))
        refused += calm(lambda: read_result(tmp_path, "--ceiling-checkpoint")) is None
    assert refused > 15
