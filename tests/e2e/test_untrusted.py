"""Files, names and tokens: nothing in a file runs, no name leaves the folder of the run, no secret is written."""

import functools
import json
import logging
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.hub_server import HubServer, hub_env
from tests.parts import Armed, assert_says, refusal, write_folder
from tests.processes import python
from w2s_plugins.predictions.run import open_model
from w2s_plugins.registry import load_plugins

from .conftest import ROOT, TINY, read_result, run_many
from .test_bad_input import CNN, Run, distil

TOKEN = "hf_" + "T0psecretT0psecret" * 2
CONFIG = {
    "architecture": "w2s_cnn2",
    "num_classes": 10,
    "pretrained_cfg": {"input_size": [3, 8, 8]},
}
TAG = "!!python/object/apply:os.system ['touch {ran}']\n"


# ---------------------------------------------------------------- files that would run code


def torch_file(path: Path, ran: Path) -> Path:
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Armed(ran)}, path)
    return path


def objects_file(path: Path, ran: Path) -> Path:
    np.save(path, np.array([Armed(ran)], dtype=object), allow_pickle=True)
    return path


def pickle_file(path: Path, ran: Path) -> Path:
    path.write_bytes(pickle.dumps({"a": Armed(ran)}))
    return path


def yaml_file(path: Path, ran: Path) -> Path:
    path.write_text("epochs: " + TAG.format(ran=ran))
    return path


def model_folder(path: Path, ran: Path) -> Path:
    """A model in the Hub's format, with the older file of weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    torch_file(path / "pytorch_model.bin", ran)
    return path


def args_folder(path: Path, ran: Path) -> Path:
    path.mkdir()
    yaml_file(path / "args.yaml", ran)
    torch.save({"state_dict": {"a": torch.ones(1)}}, path / "last.pth.tar")
    return path


def npz_file(path: Path, ran: Path) -> Path:
    np.savez(path, **{"embedding/kernel": np.array([Armed(ran)], dtype=object)})
    return path


PROTOCOL = ["--protocol w2s --weak-fraction 0.5 --experiment p --teacher w2s_cnn2"]
IMAGES = {"train": 3, "validation": 3}
CHECKED = ["--dataset w2s/digits --workers 0 --model w2s_cnn2 --img-size 8"]
# what is run, the file that is written, its name, the flags that lead to it
WAYS = {
    "teacher, local folder": (
        "train",
        model_folder,
        "model",
        ["--no-teacher-eval", "--teacher", "local-dir:{}"],
    ),
    "student, local folder": (
        "train",
        model_folder,
        "model",
        ["--pretrained", "--model", "local-dir:{}"],
    ),
    "student, npz": ("train", npz_file, "x.npz", ["--initial-checkpoint"]),
    "config of the weak": ("train", yaml_file, "x.yaml", [*PROTOCOL, "--weak-config"]),
    "config": ("train", yaml_file, "x.yaml", ["--config"]),
    "label noise, npy": ("train", objects_file, "x.npy", ["--label-noise", "labels:{}"]),
    "selection": ("train", objects_file, "x.npy", ["--clean-select", "file:{}"]),
    "model of the selection": (
        "train",
        torch_file,
        "x.pth",
        ["--clean-select knn:3", "--clean-select-model", "w2s_cnn2={}"],
    ),
    "class map": ("folder", pickle_file, "x.pkl", ["--class-map"]),
    "validate": ("validate", torch_file, "x.pth", [*CHECKED, "--checkpoint"]),
    "validate, args.yaml": ("validate", args_folder, "run", ["--checkpoint"]),
    "validate, teacher": (
        "validate",
        torch_file,
        "x.pth",
        ["--teacher w2s_cnn2", "--teacher-checkpoint"],
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_a_payload(here: Run, weak: Path, tmp_path: Path, way: str) -> None:
    script, write, name, flags = WAYS[way]
    ran = tmp_path / "ran"
    path = write(tmp_path / name, ran)
    if "--teacher-checkpoint" in flags:
        flags = ["--checkpoint", weak, *flags]
    write_folder(tmp_path / "data", IMAGES)
    flags = (
        [str(f).format(path) for f in flags]
        if any("{}" in str(f) for f in flags)
        else [*flags, path]
    )
    base = {
        "train": CNN,
        "validate": [],
        "folder": ["--data-dir", tmp_path / "data", "--model w2s_cnn2 --img-size 8 --workers 0"],
    }[script]
    done = here(*base, *flags, script="validate" if script == "validate" else "train_w2s")
    assert_says(
        done.error, "class map file" if way == "class map" else str(path)
    )  # the first is timm's message
    assert not ran.exists()
    assert not list(tmp_path.glob("output/**/*.pth.tar"))


@pytest.mark.parametrize("write", [torch_file, objects_file, pickle_file, yaml_file])
def test_the_payloads_are_armed(tmp_path: Path, write: Callable) -> None:
    import yaml

    ran, path = tmp_path / "ran", tmp_path / ("x.npy" if write is objects_file else "x")
    write(path, ran)
    {
        torch_file: lambda: torch.load(path, weights_only=False),
        objects_file: lambda: np.load(path, allow_pickle=True),
        pickle_file: lambda: pickle.loads(path.read_bytes()),
        yaml_file: lambda: yaml.unsafe_load(path.read_text()),
    }[write]()
    assert ran.exists()


def test_hub_models_and_caches_of_targets(
    here: Run, weak: Path, tmp_path: Path, hub_server: HubServer
) -> None:
    hub_server.add_model("me/armed", model_folder(tmp_path / "model", tmp_path / "ran"))
    (armed,) = run_many(
        [[*TINY, "--model w2s_cnn2 --no-teacher-eval --teacher hf-hub:me/armed"]],
        hub_env(hub_server, tmp_path),
        tmp_path,
    )
    assert_says(armed.error, "hf-hub:me/armed")
    cached = [*distil(weak), "--teacher-targets cached --epochs 1", "--experiment"]
    here(*cached, "a").ok()
    (part,) = (tmp_path / "output" / "targets").rglob("*.safetensors")
    torch_file(part, tmp_path / "ran")
    assert_says(here(*cached, "b").error, part.name)
    assert not (tmp_path / "ran").exists()


def test_a_tar_file_with_a_pickle_beside_it(here: Run, tmp_path: Path) -> None:
    """timm keeps the index of a large tar file in a pickle, and takes one that lies there."""
    write_folder(tmp_path / "data", IMAGES)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "data" / "train", ".")
    for name in ("_x_tarinfos.pickle", "x_tarinfos.pickle"):
        pickle_file(tmp_path / name, tmp_path / "ran")
    here(
        "--data-dir",
        tmp_path / "x.tar",
        "--val-split",
        "",
        "--model w2s_cnn2 --img-size 8 --workers 0 --epochs 1 --batch-size 2",
        "--warmup-epochs 0 --mean 0 0 0 --std 1 1 1",
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_files_of_an_export(here: Run, weak: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(weak / "export", tmp_path / "export")
    torch_file(folder / name, tmp_path / "ran")
    assert_says(here(*CNN, "--teacher", f"local-dir:{folder}").error, str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_deletes_no_file_of_others(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saver deletes the checkpoints that its own state lists: those of a stranger's may be anywhere."""
    precious = tmp_path / "precious.txt"
    precious.write_text("x")
    flags = [*CNN, "--checkpoint-hist 1", "--output", tmp_path, "--resume auto", "--experiment"]
    here(*flags, "run", "--stop-epoch 1").ok()
    content = torch.load(tmp_path / "run/last.pth.tar", weights_only=False)
    names = (str(precious), "../precious.txt", "checkpoint-0.pth.tar/../../precious.txt", 3)
    content["saver"]["checkpoint_files"] = [(name, -1.0) for name in names]
    torch.save(content, tmp_path / "run/last.pth.tar")
    shutil.copytree(tmp_path / "run", tmp_path / "unchecked")
    here(*flags, "run").ok()
    assert precious.exists()
    monkeypatch.setattr(
        "w2s_plugins.run.saver.is_checkpoint_name", lambda name: name == str(precious)
    )
    here(*flags, "unchecked").ok()
    assert not precious.exists()  # so it is that check which keeps it


# ---------------------------------------------------------------- YAML bombs


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]\n",
        "epochs: " + "[" * 5000,
        "epochs: 2001-13-41\n",
        "? {a: b}\n: c\n",
        "\x00",
    ],
    ids=range(6),
)
def test_yaml_bombs_and_oddities(here: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert_says(here(*CNN, "--config x.yaml").error, "--config")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/tmp/x", "a/b", "a\0b", "n" * 300, "x/..", "\u00e9" * 200]
)
@pytest.mark.parametrize(
    "protocol", [[], ["--protocol w2s --teacher w2s_cnn2"]], ids=["run", "protocol"]
)
def test_names_of_runs_stay_in_the_folder(
    here: Run, tmp_path: Path, name: str, protocol: list
) -> None:
    (tmp_path / "name.yaml").write_text(json.dumps({"experiment": name}))
    (tmp_path / "out").mkdir()
    done = here(*CNN, *protocol, "--config name.yaml --output out/runs")
    assert_says(done.error, "--experiment")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["name.yaml", "out"] and not list(
        (tmp_path / "out").iterdir()
    )


# ---------------------------------------------------------------- what a run has recorded


def stranger(weak: Path, folder: Path, **changes: object) -> Path:
    """A copy of a run with other flags in its args.yaml."""
    shutil.copytree(weak, folder, ignore=shutil.ignore_patterns("export"))
    args = yaml.safe_load((folder / "args.yaml").read_text())
    (folder / "args.yaml").write_text(yaml.safe_dump({**args, **changes}))
    return folder


def test_validation_imports_nothing_that_a_run_names(here: Run, weak: Path, tmp_path: Path) -> None:
    check = functools.partial(here, script="validate")
    ran, plugin = tmp_path / "ran", tmp_path / "evil.py"
    plugin.write_text(f"open({str(ran)!r}, 'w')")
    code = dict(
        plugins=[str(plugin)],
        device_modules=["evil"],
        dataset_trust_remote_code=True,
        config=["x.yaml"],
    )
    check("--checkpoint", stranger(weak, tmp_path / "a", **code)).ok()
    done = check("--checkpoint", stranger(weak, tmp_path / "b", **code, model="evil_net"))
    assert_says(done.error, "--model: unknown model 'evil_net'")
    assert not ran.exists()
    check("--checkpoint", tmp_path / "a", "--plugins", plugin)
    assert ran.exists()  # so it is armed


@pytest.mark.parametrize(
    "changes",
    [
        dict(model="hf-hub:me/x"),
        dict(model="hf:me/x"),
        dict(model="local-dir:x"),
        dict(model="all"),
        dict(dataset="hfds/me/x"),
        dict(dataset="wds/x", data_dir="pipe:touch ran;"),
        dict(dataset="wds/x", val_split="pipe:touch ran;.tar"),
        dict(dataset="", data_dir="https://127.0.0.1/x"),
        dict(class_map="https://127.0.0.1/x"),
        dict(val_labels="https://127.0.0.1/x"),
    ],
    ids=str,
)
def test_validation_fetches_nothing_that_a_run_names(
    here: Run, weak: Path, tmp_path: Path, changes: dict
) -> None:
    assert_says(
        here("--checkpoint", stranger(weak, tmp_path / "run", **changes), script="validate").error,
        "address",
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model", ["local-dir:/etc", "hf-hub:me/x"])
def test_predict_opens_no_place_that_a_run_names(weak: Path, tmp_path: Path, model: str) -> None:
    run = stranger(weak, tmp_path / "run", model=model)
    assert "an address" in refusal(open_model, str(run))


# ---------------------------------------------------------------- foreign code is said


def test_foreign_code_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from w2s_plugins.data.datasets import create_dataset

    (tmp_path / "mine.py").write_text("")
    with caplog.at_level(logging.INFO):
        load_plugins([str(tmp_path / "mine.py")])
        create_dataset(
            "", str(write_folder(tmp_path / "data", IMAGES)), "train", trust_remote_code=True
        )
    said = [record.getMessage() for record in caplog.records]
    assert any("mine.py" in line and "runs its code" in line for line in said)
    assert any("--dataset-trust-remote-code" in line and "may run code" in line for line in said)


# ---------------------------------------------------------------- tokens


def holders(folder: Path, token: str) -> list[Path]:
    """Files that hold the token, in any part of it that is not too short to be chance, in plain or in base64."""
    import base64

    marks = [
        token.encode(),
        token[3:].encode(),
        token[-12:].encode(),
        base64.b64encode(token.encode())[:16],
    ]
    return [
        p
        for p in folder.rglob("*")
        if p.is_file() and any(mark in p.read_bytes() for mark in marks)
    ]


def test_the_token_is_in_nothing_that_a_run_writes(
    weak: Path, tmp_path: Path, hub_server: HubServer
) -> None:
    hub_server.add_user("me", TOKEN)
    hub_server.add_model("me/weak", weak / "export", private=True)
    hub_server.fault(
        "POST /api/models/me/odd/commit/",
        status=400,
        headers={"X-Error-Message": f"no rights for Bearer {TOKEN}"},
    )
    env, work = hub_env(hub_server, tmp_path / "home"), tmp_path / "work"
    Path(env["HF_HOME"]).mkdir(parents=True)  # as `hf auth login` leaves it
    Path(env["HF_HOME"], "token").write_text(TOKEN)
    work.mkdir()
    common = [
        *TINY,
        "--model w2s_cnn5 --plugins w2s_plugins.models --teacher hf-hub:me/weak",
        "--epochs 1 --log-tensorboard --recovery-interval 2 --debug",
    ]
    good, odd = run_many(
        [
            [*common, "--experiment good --push-to-hub me/new"],
            [*common, "--experiment odd --push-to-hub me/odd"],
        ],
        env,
        work,
    )
    assert "published at" in good.ok().out
    source = read_result(work / "output/train/good")["teacher"]["models"][0]["source"]
    assert (source["repo"], source["revision"]) == (
        "me/weak",
        hub_server.repos["me/weak"].resolve("main"),
    )
    assert odd.code == 2 and "can be pushed again" in odd.err
    everything = "".join(d.out + d.err for d in (good, odd))
    assert TOKEN not in everything and TOKEN[3:] not in everything and TOKEN[-12:] not in everything
    assert (work / "output" / "train" / "good" / "args.yaml").exists() and not holders(work, TOKEN)
    published = hub_server.repos["me/new"]
    files = published.commits[published.branches["main"]]
    assert {"README.md", "config.json"} <= set(files)
    assert not any(TOKEN.encode() in file.data for file in files.values())
    assert TOKEN not in "".join(published.messages.values())
    # the search finds what it looks for
    shutil.copytree(work / "output" / "train" / "good", tmp_path / "leak")
    (tmp_path / "leak" / "x").write_text(f"a{TOKEN}b")
    assert [p.name for p in holders(tmp_path / "leak", TOKEN)] == ["x"]


WITHOUT = "give the address without it"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--token", TOKEN], "unknown flag '--token'"),
        ([TOKEN], "hf auth login"),
        (["--config token.yaml"], "--loss-kwargs holds an access token"),
        (["--config address.yaml"], WITHOUT),
        (["--data-dir", f"https://me:{TOKEN[3:]}@host/x"], WITHOUT),
        ([f"--dataset=wds/pipe:curl s3://me:{TOKEN[3:]}@host/x"], WITHOUT),
        (["--teacher", f"ftp://{TOKEN[3:]}@host"], WITHOUT),
        (["--wandb-tags x", f"http://a:{TOKEN[3:]}@c"], WITHOUT),
    ],
)
def test_a_secret_in_a_flag_is_refused_and_not_repeated(
    here: Run, tmp_path: Path, flags: list, said: str
) -> None:
    (tmp_path / "token.yaml").write_text(f"loss_kwargs: {{a: [{TOKEN}]}}\n")
    (tmp_path / "address.yaml").write_text(f"class_map: 'http://a:x@{TOKEN[3:]}@c'\n")
    done = here(*CNN, *flags)
    assert_says(done.error, said)
    assert TOKEN[3:] not in done.out + done.err


def test_a_password_in_the_address_of_the_hub_is_in_nothing(
    hub_server: HubServer, tmp_path: Path, weak: Path
) -> None:
    """Not in the log, the messages or the files of a run, nor in what huggingface_hub says itself."""
    hub_server.add_model("me/weak", weak / "export")
    secret = "S3cretPassw0rd"
    env = hub_env(hub_server, tmp_path / "home")
    env["HF_ENDPOINT"] = env["HF_ENDPOINT"].replace("://", f"://me:{secret}@")
    work, common = tmp_path / "work", [*TINY, "--model w2s_cnn5 --epochs 1 --debug"]
    work.mkdir()
    hub_server.fault("/me/weak/resolve/", status=503, times=3)
    runs = run_many(
        [
            [*common, "--experiment good"],
            [
                *common,
                "--experiment none --teacher hf-hub:me/weak",
            ],  # 401: the name takes the token's place
        ],
        env,
        work,
    )
    gone = run_many(
        [[*common, "--experiment gone --teacher hf-hub:me/weak"]],
        {**env, "HF_ENDPOINT": f"http://me:{secret}@127.0.0.1:1", "HF_HOME": str(tmp_path / "h")},
        work,
    )
    pushed = python(
        "-m", "w2s_plugins.hub", "push", weak, "me/x", env={**env, "HF_TOKEN": TOKEN}, cwd=ROOT
    )
    assert [done.code for done in (*runs, *gone)] == [0, 2, 2], runs[0].err
    assert "127.0.0.1" in gone[0].err
    everything = (
        "".join(done.out + done.err for done in (*runs, *gone)) + pushed.stdout + pushed.stderr
    )
    assert secret not in everything, [line for line in everything.splitlines() if secret in line][
        :5
    ]
    assert not holders(work, secret)
