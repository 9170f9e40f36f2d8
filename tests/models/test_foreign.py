"""Files of others: the config.json of a model, and what a run has recorded. Nothing in them names code or places."""

import argparse
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from tests.hub_server import HubServer, hub_env, hub_server  # noqa: F401
from tests.processes import python
from w2s_plugins.cli import train_parser
from w2s_plugins.errors import UserError
from w2s_plugins.models.foreign import PRETRAINED_CFG, constructor_arguments, refuse_addresses
from w2s_plugins.models.loading import INPUT_KEYS, create_model, settings_beside
from w2s_plugins.run.args_file import read_run_args
from w2s_plugins.study.earlier import read_result
from w2s_plugins.teachers.teacher import load_frozen_model

# of every kind that JSON and YAML have
ODD = [None, True, False, 0, -1, 3, 10 ** 30, 0.5, -0.5, float("nan"), float("inf"), "", "x", "3", "0.5", "a\0b",
       "hf-hub:me/x", "x" * 300, [], [0], [-1], [3, 8, 8], ["x"], [None], [[1]], [0.5, 0.5, 0.5], {}, {"x": 1}]


class Address:
    """A server that counts what is fetched from it."""

    def __init__(self):
        self.fetched: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.fetched.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"evil")

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/authorized_keys"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def address() -> Iterator[Address]:
    made = Address()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A small model in timm's export format."""
    save_for_hf(timm.create_model("w2s_cnn2", num_classes=4), tmp_path / "model", safe_serialization=True)
    return tmp_path / "model"


def change(folder: Path, **changes: object) -> dict:
    """Change the config.json of a folder; a mapping is merged into what is there."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    path.write_text(json.dumps(content))
    return content


def attacks(url: str, home: Path) -> dict[str, dict]:
    """What a config.json would have timm fetch, write, load or make, by the name of the part that has to be refused."""
    overlay = dict(source="", file="", hf_hub_id="", url=url)
    return {
        "pretrained_cfg_overlay": dict(model_args=dict(pretrained_cfg_overlay=overlay, cache_dir=str(home))),
        "cache_dir": dict(model_args=dict(cache_dir=str(home))),
        "checkpoint_path": dict(model_args=dict(checkpoint_path=str(home / "x.pth"))),
        "pretrained_cfg": dict(model_args=dict(pretrained_cfg=overlay)),
        "pretrained": dict(model_args=dict(pretrained=True)),
        "pretrained_window_sizes": dict(model_args=dict(pretrained_window_sizes=[1])),
        "features_only": dict(model_args=dict(features_only=True)),
        "inputs": dict(model_args=dict(inputs={"img_size": 8})),
        "file": dict(model_args=dict(file="x")),
        "url": dict(model_args=dict(url=url)),
        "hf_hub_id": dict(model_args=dict(hf_hub_id="me/x")),
        "drop_rate": dict(model_args=dict(drop_rate={"a": 1})),
        "'hf-hub:me/x'": dict(architecture="hf-hub:me/x"),
        "'local-dir:.'": dict(architecture="local-dir:."),
        "'resnet18.a1_in1k'": dict(architecture="resnet18.a1_in1k"),
    }


@pytest.mark.parametrize("changes", [
    dict(num_classes=10 ** 12), dict(pretrained_cfg=dict(input_size=[3, 8, 10 ** 12])),
    dict(model_args=dict(drop_rate=1e300))])
def test_a_number_that_is_too_large_is_told_the_limit(exported: Path, changes: dict) -> None:
    change(exported, **changes)
    with pytest.raises(UserError, match=r"expected .* (are below 2147483648|to 2147483647)"):
        create_model("--teacher", f"local-dir:{exported}", pretrained=True)


ATTACKS = list(attacks("", Path()))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_config_json_gets_nothing_fetched_written_or_made(
        exported: Path, tmp_path: Path, address: Address, attack: str) -> None:
    home = tmp_path / "home"
    change(exported, **attacks(address.url, home)[attack])
    for make in (
            lambda: create_model("--model", f"local-dir:{exported}", pretrained=True),
            lambda: load_frozen_model(f"local-dir:{exported}", None, 3),
            lambda: load_frozen_model("w2s_cnn2", str(exported / "model.safetensors"), 3)):
        with pytest.raises(UserError, match=attack.strip("'")) as error:
            make()
        assert "\n" not in str(error.value)
    assert not address.fetched and not home.exists()


def test_weights_come_from_the_named_place_alone(exported: Path, address: Address, tmp_path: Path) -> None:
    other = {k: torch.zeros_like(v) for k, v in load_file(exported / "model.safetensors").items()}
    save_file(other, tmp_path / "other.safetensors")
    change(exported, pretrained_cfg=dict(
        url=address.url, file=str(tmp_path / "other.safetensors"), source="", hf_hub_id="me/x", custom_load=True,
        hf_hub_filename="other.safetensors", state_dict={"a": 1}))
    model = create_model("--model", f"local-dir:{exported}", pretrained=True)
    expected = load_file(exported / "model.safetensors")
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert not address.fetched


@pytest.mark.parametrize("place", ["hfds/me/x:train", "HFIDS/me/x:train", "wds/pipe:id:train", "http://host/x.tar"])
def test_a_run_names_no_test_set_elsewhere(place: str) -> None:
    local = ["a=/data/x", "b=data/x.tar", "c=w2s/digits:test", "d=torch/cifar10:test"]
    refuse_addresses({"val_sets": local}, {"val_sets": "val_sets"}, "run")
    with pytest.raises(UserError, match="nothing that a run names is fetched: if it is meant, give --val-sets"):
        refuse_addresses({"val_sets": [*local, f"e={place}"]}, {"val_sets": "val_sets"}, "run")


MAKE = """
import json, sys
from w2s_plugins.errors import UserError
from w2s_plugins.models.loading import create_model

for name in sys.argv[1:]:
    try:
        print(create_model("--model", name, pretrained=True).num_classes)
    except UserError as error:
        print(error)
"""


def test_the_same_from_the_hub(exported: Path, tmp_path: Path, address: Address,
                               hub_server: HubServer) -> None:  # noqa: F811
    hub_server.add_model("me/good", exported)
    change(exported, **attacks(address.url, tmp_path / "home")["pretrained_cfg_overlay"])
    hub_server.add_model("me/armed", exported)
    done = python("-c", MAKE, "hf-hub:me/good", "hf-hub:me/armed", env=hub_env(hub_server, tmp_path), cwd=tmp_path)
    good, armed = done.stdout.strip().splitlines()[-2:]
    assert good == "4" and "hf-hub:me/armed" in armed and "pretrained_cfg_overlay" in armed, done.stderr
    assert not address.fetched and not (tmp_path / "home").exists()


@pytest.mark.parametrize(("name", "args"), [
    ("w2s_cnn2", dict(widths=[[4], [8]], kernel_size=3)), ("test_resnet", dict(block_args={})), ("test_vit", {
        "img_size": 32, "depth": 2, "num_heads": 4}), ("test_efficientnet", dict(bn_eps=1e-3)),
    ("test_byobnet", dict(stem_chs=16)), ("test_convnext", dict(ls_init_value=0.1)),
])
def test_arguments_of_the_architecture_are_kept(tmp_path: Path, name: str, args: dict) -> None:
    args = {k: v for k, v in args.items() if v != {}}
    model = timm.create_model(name, num_classes=3, **args)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = create_model("--model", f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert {k: again.pretrained_cfg[k] for k in ("mean", "std", "num_classes")} == {
        **{k: list(model.pretrained_cfg[k]) for k in ("mean", "std")}, "num_classes": 3}


@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_224", "efficientnet_b0", "regnetx_002", "w2s_cnn5"])
def test_no_argument_is_one_of_timms_own_functions(name: str) -> None:
    allowed = constructor_arguments(name)
    assert {"num_classes", "in_chans", "drop_rate"} <= allowed
    assert not allowed & {"cache_dir", "checkpoint_path", "features_only", "out_indices", "device", "url", "file"}
    assert not any(argument.startswith("pretrained") for argument in allowed)


# ---------------------------------------------------------------- every key, with values of every kind


def calm(call: object) -> object:
    """Return what a call does, None where it ends in one line; anything else is an error of the test."""
    try:
        return call()
    except UserError as error:
        assert "\n" not in str(error), error
        return None


@pytest.mark.parametrize("key", ["architecture", "model_args", "pretrained_cfg", "num_classes", "num_features",
                                 "label_names", "label_descriptions", "labels"])
def test_odd_values_in_a_config_json(exported: Path, key: str) -> None:
    whole = (exported / "config.json").read_text()
    for value in ODD:
        (exported / "config.json").write_text(whole)
        change(exported, **{key: None})
        content = json.loads((exported / "config.json").read_text()) | {key: value}
        (exported / "config.json").write_text(json.dumps(content))
        calm(lambda: load_frozen_model(f"local-dir:{exported}", None, 3))
        calm(lambda: load_frozen_model("w2s_cnn2", str(exported / "model.safetensors"), 3))


@pytest.mark.parametrize("part", ["pretrained_cfg", "model_args"])
def test_odd_values_in_parts_of_a_config_json(exported: Path, part: str) -> None:
    whole = (exported / "config.json").read_text()
    keys = PRETRAINED_CFG if part == "pretrained_cfg" else constructor_arguments("w2s_cnn2") | {"x", "inputs"}
    for key in sorted(keys):
        for value in ODD:
            (exported / "config.json").write_text(whole)
            change(exported, **{part: {key: value}})
            calm(lambda: load_frozen_model(f"local-dir:{exported}", None, 3))
            calm(lambda: settings_beside(exported / "model.safetensors", "--checkpoint"))


def test_odd_values_in_the_flags_of_a_checkpoint(tmp_path: Path) -> None:
    model = timm.create_model("w2s_cnn2")
    for key in (*INPUT_KEYS, "num_classes", "model_kwargs", "gp"):
        for value in [*ODD, {"pretrained": True}, {"inputs": 1}, {"features_only": True}, {"cache_dir": "x"}]:
            saved = argparse.Namespace(**{key: value})
            torch.save({"state_dict": model.state_dict(), "args": saved}, tmp_path / "x.pth")
            calm(lambda: load_frozen_model("w2s_cnn2", str(tmp_path / "x.pth"), 3))


def test_odd_values_in_an_args_yaml(tmp_path: Path) -> None:
    """Each is refused, or has the type that it has when typed; a flag of every kind."""
    flags = train_parser().by_dest()
    kinds = {(type(a), a.type, str(a.nargs), type(a.choices)): key for key, a in flags.items()}
    assert len(kinds) > 12
    for key in kinds.values():
        action = flags[key]
        for value in ODD:
            (tmp_path / "args.yaml").write_text(json.dumps({key: value}))
            found = calm(lambda: read_run_args(tmp_path, "--checkpoint"))
            for taken in (found or {}).values():
                if taken is not None and action.nargs and action.nargs != "?":
                    assert isinstance(taken, (list, dict)), (key, value, taken)
                elif taken is not None and isinstance(action.type, type):
                    assert isinstance(taken, action.type), (key, value, taken)


def test_odd_values_in_a_result_json(tmp_path: Path) -> None:
    split = dict(fingerprint="x", num_samples=3)
    good = dict(metrics=dict(top1=1.0), selected=dict(rule="last"),
                data=dict(label_noise=None, splits=dict(train=split, val=split)))
    (tmp_path / "result.json").write_text(json.dumps(good))
    assert read_result(tmp_path, "--ceiling-checkpoint") == good
    refused = 0
    for keys in (("metrics",), ("metrics", "top1"), ("selected",), ("selected", "rule"), ("data",), ("data", "splits"),
                 ("data", "label_noise"), ("data", "splits", "train"), ("data", "splits", "val", "num_samples")):
        for value in ODD:
            content = json.loads(json.dumps(good))
            part = content
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value
            (tmp_path / "result.json").write_text(json.dumps(content))
            refused += calm(lambda: read_result(tmp_path, "--ceiling-checkpoint")) is None
    assert refused > 200


def test_a_folder_without_config_json_is_still_a_checkpoint(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "model.safetensors", tmp_path / "alone.safetensors")
    assert settings_beside(tmp_path / "alone.safetensors", "--checkpoint") == {}
