"""The real huggingface_hub client and timm against a Hub-speaking server: pull, push, cards, errors."""

import copy
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from tests.hub_server import ROOT, File, HubServer, Repo, hub_env, hub_server  # noqa: F401  the fixture
from tests.parts import assert_refused, data_config
from tests.processes import python
from w2s_plugins.errors import scrub
from w2s_plugins.files import file_sha256
from w2s_plugins.hub.__main__ import main
from w2s_plugins.hub.client import check_repo_id
from w2s_plugins.hub.export import export_hashes, export_model
from w2s_plugins.hub.model_card import model_card

TOKEN = "hf_" + "s3cretS3cret" * 3
DATA_CONFIG = data_config(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
RECORD = json.loads((ROOT / "tests/data/record.json").read_text())
LOAD = """
import json, sys, timm, torch
all_logits = []
for name in sys.argv[1:]:
    model = timm.create_model(name, pretrained=True).eval()
    with torch.no_grad():
        logits = model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    all_logits.append([value.hex() for value in logits.flatten().tolist()])
assert "w2s_plugins.models" not in sys.modules
print(json.dumps(all_logits))
"""
# One client for what does not need an environment of its own. The waits of the retries are left out, not the retries.
CLIENT = """
import json, os, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
from w2s_plugins.errors import UserError, print_traceback
from w2s_plugins.hub.push import push_export
from w2s_plugins.hub.source import hub_source
from w2s_plugins.models.loading import create_model
for line in sys.stdin:
    task, token, args, kwargs = json.loads(line)
    os.environ["HF_TOKEN"] = token
    try:
        if task == "push":
            done = push_export(Path(args[0]), args[1], **kwargs)
        else:
            done = hub_source(create_model("--model", *args, pretrained=True), *args)
    except UserError as error:
        done = str(error)
        print_traceback(error)
    print(json.dumps(done), flush=True)
"""


def logits_of(*names: str, env: dict[str, str], cwd: Path) -> list[list[str]]:
    """Logits of each model in a fresh process that has timm but not this project."""
    env = {k: v for k, v in env.items() if k != "PYTHONPATH"}
    done = python("-c", LOAD, *names, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Client:
    """A process that pulls and pushes."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def ask(self, task: str, *args: str, token: str = TOKEN, **kwargs: object) -> object:
        print(json.dumps([task, token, args, kwargs]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def load(self, name: str, token: str = TOKEN) -> object:
        """What `hub_source` says of the model once it is loaded, or the text of the `UserError`."""
        found = self.ask("load", name, token=token)
        assert isinstance(found, dict) or ("\n" not in found and f"{name}: " in found), found
        return found

    def push(self, run: Path, repo: str = "me/x", **kwargs: object) -> str:
        """Push a run; return the address or the text of the `UserError`."""
        return self.ask("push", str(run / "export"), repo, **kwargs)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_user("me", TOKEN)
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("client")
    with (
        (folder / "stderr").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=hub_env(hub, folder),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        client = Client(process)
        client.cache = folder / "hf_home" / "hub"
        yield client
        process.stdin.close()
    assert TOKEN not in (folder / "stderr").read_text()


@pytest.fixture
def empty(hub: HubServer) -> HubServer:
    """The client's Hub, without what earlier tests pushed."""
    for name in [name for name in hub.repos if name.startswith("me/")]:
        del hub.repos[name]
    hub.requests.clear()
    hub.objects.clear()
    hub.faults.clear()
    return hub


def push(run: Path, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return python("-m", "w2s_plugins.hub", "push", run, *args, env=env, cwd=ROOT)


EXPORT = {".gitattributes", "README.md", "config.json", "model.safetensors"}


def head(repo: Repo, branch: str = "main") -> dict[str, File]:
    return repo.commits[repo.branches[branch]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def student() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


@pytest.fixture(scope="module")
def student_logits(student) -> list[str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        logits = student(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    torch.set_num_threads(threads)
    return [value.hex() for value in logits.flatten().tolist()]


@pytest.fixture(scope="module")
def run(student, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    export_model(student, folder / "export", DATA_CONFIG, RECORD)
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> Path:
    """A repository as timm publishes its models."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(timm.create_model("test_resnet"), folder, safe_serialization=True)
    return folder


# ---------------------------------------------------------------- push


def test_pushed_model_loads_in_plain_timm_with_the_same_logits(
    hub_server,  # noqa: F811
    run,
    student_logits,
    tmp_path,
):
    hub_server.add_user("me", TOKEN)
    before = contents(run / "export")
    done = push(
        run,
        "me/x",
        "--commit-message",
        "First",
        "--hub-license",
        "cc-by-4.0",
        env=hub_env(hub_server, tmp_path, TOKEN),
    )
    assert (done.returncode, done.stdout) == (0, f"{hub_server.url}/me/x\n"), done.stderr
    assert contents(run / "export") == before
    repo = hub_server.repos["me/x"]
    files = head(repo)
    assert not repo.private and repo.messages[repo.branches["main"]] == "First"
    assert set(files) == EXPORT
    card = files["README.md"].data.decode()
    assert 'timm.create_model("hf-hub:me/x", pretrained=True)' in card and "ORG/NAME" not in card
    assert (
        ModelCard(card).data.license == "cc-by-4.0"
        and "# `student` trained on `hfds/uoft-cs/cifar10` with" in card
    )
    assert TOKEN not in done.stdout + done.stderr + "".join(
        f.data.decode("latin-1") for f in files.values()
    )
    assert logits_of("hf-hub:me/x", env=hub_env(hub_server, tmp_path / "other"), cwd=tmp_path) == [
        student_logits
    ]


def test_only_what_an_export_consists_of_is_pushed(empty, client, run, tmp_path):
    """Not what else lies there, and never what a link leads to."""
    mine, secret = tmp_path / "run" / "export", tmp_path / "id_rsa"
    shutil.copytree(run / "export", mine)
    secret.write_text("private key")
    (mine / "notes.txt").write_text("x")
    (mine / "key").symlink_to(secret)
    assert client.push(tmp_path / "run") == f"{empty.url}/me/x"
    assert set(head(empty.repos["me/x"])) == EXPORT
    (mine / "config.json").unlink()
    (mine / "config.json").symlink_to(secret)
    assert f"{mine / 'config.json'} is a link, which is not published" in client.push(
        tmp_path / "run", "me/y"
    )
    (mine / "config.json").unlink()
    assert "no complete export in" in client.push(tmp_path / "run", "me/y")
    assert "me/y" not in empty.repos


def test_push_private_to_a_branch(empty, client, run, student_logits, tmp_path):
    assert client.push(run, private=True, revision="exp/1") == f"{empty.url}/me/x/tree/exp%2F1"
    repo = empty.repos["me/x"]
    assert repo.private and set(repo.branches) == {"main", "exp/1"}
    assert list(head(repo)) == [".gitattributes"]
    assert 'hf-hub:me/x@exp/1"' in head(repo, "exp/1")["README.md"].data.decode()
    names = "hf-hub:me/x@exp/1", f"hf-hub:me/x@{repo.branches['exp/1']}"
    assert (
        logits_of(*names, env=hub_env(empty, tmp_path, TOKEN), cwd=tmp_path) == [student_logits] * 2
    )


def test_push_again_leaves_what_somebody_else_has_put_there(empty, client, run):
    client.push(run)
    repo = empty.repos["me/x"]
    repo.commit("main", {**head(repo), "notes.txt": File(b"mine", False)}, "notes")
    client.push(run)
    assert set(head(repo)) == EXPORT | {"notes.txt"}
    assert "exists and is public" in client.push(run, private=True)


@pytest.mark.parametrize(
    "pattern, status, part",
    [
        ("PUT /lfs/upload", 401, "may not do this"),
        ("POST /api/models/me/x/commit", 410, "410"),
    ],
)
def test_failed_push_can_be_repeated(empty, client, run, pattern, status, part):
    before = contents(run / "export")
    empty.fault(pattern, times=1, status=status)
    answer = client.push(run)
    assert answer.startswith("push to me/x: ") and part in answer and TOKEN not in answer
    as_it_was = "/export is as it was and can be pushed again (python -m w2s_plugins.hub push)"
    assert answer.endswith(as_it_was)
    assert contents(run / "export") == before
    assert client.push(run) == f"{empty.url}/me/x"
    assert head(empty.repos["me/x"])["model.safetensors"].data == before["model.safetensors"]


@pytest.mark.parametrize("name", ["{}", "local-dir:{}/export", "{}/export/model.safetensors"])
def test_a_dry_run_writes_what_is_pushed(empty, client, run, command, name):
    words = "push", name.format(run), "me/x", "--dry-run", "--hub-license", "mit"
    code, out, err = command(main, "hub", *words)
    folder, _, said = out.partition(": ")
    assert (code, err, said) == (0, "", "what would be pushed to me/x; nothing was sent\n")
    written = contents(Path(folder))
    assert not empty.requests
    client.push(run, license="mit")
    files = head(empty.repos["me/x"]).items()
    assert written == {name: file.data for name, file in files if name != ".gitattributes"}


@pytest.mark.parametrize("card", [b"---\nlicense: [mit\n---\n", b"\xff\xfe\0", b"---\n- 1\n---\n"])
def test_an_edited_card_that_is_none(run, tmp_path, command, card):
    shutil.copytree(run / "export", tmp_path / "export")
    (tmp_path / "export/README.md").write_bytes(card)
    code, out, err = command(
        main, "hub", "push", tmp_path, "me/x", "--hub-license", "mit", "--dry-run"
    )
    assert (
        (code, out) == (2, "")
        and f"{tmp_path}/export/README.md: is no model card (" in err
        and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "changes", [dict(metrics=[1]), dict(model="x", data=3), dict(data=dict(val=3)), dict(loss=[])]
)
def test_a_card_of_a_record_that_is_none(student, tmp_path, command, changes):
    export_model(student, tmp_path / "export", DATA_CONFIG, RECORD)
    record = {**RECORD, "export": export_hashes(tmp_path / "export"), **changes}
    (tmp_path / "result.json").write_text(json.dumps(record))
    code, _, err = command(main, "hub", "card", tmp_path)
    assert "Traceback" not in err and (code == 0 or "is not what a run has written" in err)


SECRETS = {"token": "hf_" + "AbCd1234" * 4, "own": TOKEN, "login": "https://me:pass@example.org/x"}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize(
    "where", ["card", "names", "weights", "licence", "message", "branch", "repository"]
)
def test_nothing_with_a_token_is_published(empty, client, run, tmp_path, secret, where):
    """Wherever it stands: whatever is published passes one place."""
    export, how, repo = tmp_path / "run/export", {}, "me/x"
    shutil.copytree(run / "export", export)
    if where == "card":
        with (export / "README.md").open("a") as card:
            card.write(f"See {secret}, {'x' * 100}.\n")
    elif where == "names":
        config = json.loads((export / "config.json").read_text())
        (export / "config.json").write_text(json.dumps({**config, "label_names": ["a", secret]}))
    elif where == "weights":
        save_file(
            load_file(export / "model.safetensors"), export / "model.safetensors", {"note": secret}
        )
    elif where == "repository":
        repo = f"me/{secret}"
    else:
        how = {
            {"licence": "license", "message": "commit_message", "branch": "revision"}[where]: secret
        }
    answer = client.push(tmp_path / "run", repo, **how)
    if (where, secret) == (
        "weights",
        SECRETS["login"],
    ):  # weights are any bytes: a token's form alone is looked for
        assert answer == f"{empty.url}/me/x"
        return
    assert "access token" in answer or "not a Hub id" in answer, answer
    assert (
        not any(secret.encode() in request.body for request in empty.requests)
        and "me/x" not in empty.repos
    )
    if where in ("card", "names", "weights"):
        assert {"card": "README.md", "names": "config.json", "weights": "model.safetensors"}[
            where
        ] in answer


@pytest.mark.parametrize("flag", ["--hub-license", "--commit-message", "--revision"])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_no_flag_of_a_command_takes_a_token(run, command, flag, dry_run):
    code, out, err = command(
        main, "hub", "push", run, "me/x", flag, f"by {SECRETS['token']}", *dry_run
    )
    assert (code, out) == (2, "") and f"error: {flag} holds an access token, which would be" in err
    assert SECRETS["token"] not in err


def test_an_unknown_token(hub_server, run, tmp_path):  # noqa: F811
    done = push(run, "me/x", env=hub_env(hub_server, tmp_path, token="hf_of_nobody_here"))
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("w2s_plugins.hub: error: push to me/x: the Hub says: ")
    assert "Invalid user token" in done.stderr and "hf auth login" in done.stderr
    assert [request.path for request in hub_server.requests] == [
        "/",
        "/api/whoami-v2",
    ]  # before anything is read


@pytest.mark.parametrize("repo_id", ["x", "hf-hub:me/x", "a/b/c", "me/a\nx\0", "m/" + "m" * 200])
def test_malformed_ids(repo_id):
    check_repo_id("me/Ok_1.0")
    assert_refused(r"^not a Hub id: [^\n]+; expected ORG/NAME [^\n]+$", check_repo_id, repo_id)


# ---------------------------------------------------------------- pull


def test_source_of_pretrained_weights(empty, client, timm_folder):
    repo_id = "timm/test_resnet.r160_in1k"
    first = empty.add_model(repo_id, timm_folder)
    (timm_folder / "note.txt").write_text("new")
    second = empty.add_model(repo_id, timm_folder)
    names = {"test_resnet": second, f"hf-hub:{repo_id}": second, f"hf-hub:{repo_id}@{first}": first}
    digest = hashlib.sha256((timm_folder / "model.safetensors").read_bytes()).hexdigest()
    assert {name: client.load(name) for name in names} == {
        name: {"repo": repo_id, "revision": revision, "file": "model.safetensors", "sha256": digest}
        for name, revision in names.items()
    }


FAULTS = {
    "me/ok@v9": ["no such revision"],
    "me/oh": ["no such repository on the Hub, or it is private", "hf auth login"],
    "you/private": ["or it is private", "hf auth login"],
    "you/gated": ["gated", "http://", "hf auth login"],
    "me/rate": ["the Hub says: ", "429"],
    "me/hangup": ["did not answer"],
    "me/echo": ["may not do this", "***"],
    "me/json": ["config.json"],
    "me/noweights": ["the Hub says: ", "pytorch_model.bin"],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_hub_end_in_one_line(empty, client, timm_folder, tmp_path, name):
    files = {"me/json": b"{", "me/noweights": (timm_folder / "config.json").read_bytes()}
    if name in files:
        (tmp_path / "config.json").write_bytes(files[name])
        empty.add_model(name, tmp_path)
    elif name != "me/oh":
        kind = name.partition("/")[2]
        access = {kind: True} if kind in ("private", "gated") else {}
        empty.add_model(name.partition("@")[0], timm_folder, **access)
    empty.fault("me/rate", status=429, headers={"Retry-After": "7"})
    empty.fault("me/hangup", drop=True)
    empty.fault("me/echo", status=403, headers={"X-Error-Message": f"bad token {TOKEN}"})
    found = client.load(f"hf-hub:{name}")
    assert isinstance(found, str) and [part for part in FAULTS[name] if part not in found] == []
    if name == "you/gated":
        assert empty.url in found


def test_a_hub_that_does_not_answer_is_asked_once(empty, client, timm_folder):
    for name in ("me/kept", "me/new"):
        empty.add_model(name, timm_folder)
    kept = client.load("hf-hub:me/kept")
    silent = empty.fault("", drop=True, times=100)
    assert client.load("hf-hub:me/kept") == kept and kept["sha256"]  # the cache has it
    found = client.load("test_vit.r160_in1k")
    assert "did not answer: Server disconnected" in found
    assert found.endswith("; or give its weights by --checkpoint FILE")
    assert silent.times == 98
    silent.times = 0
    assert client.load("hf-hub:me/new")["repo"] == "me/new"


@pytest.mark.parametrize(
    "answer, reason", [("refuses", "Connection refused"), ("is silent", "timed out")]
)
def test_training_without_the_hub_names_the_flag_of_a_file(tmp_path, answer, reason):
    """Within the client's own time: it tries six times, for each of the names that the weights may have."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if answer == "refuses":
            server.close()
        done = python(
            "train_w2s.py",
            "--dataset",
            "w2s/digits",
            "--model",
            "test_resnet",
            "--pretrained",
            "--output",
            tmp_path,
            env=hub_env(SimpleNamespace(url=url), tmp_path) | {"HF_HUB_ETAG_TIMEOUT": "2"},
            cwd=ROOT,
        )
    assert done.returncode == 2 and "Retrying" not in done.stderr
    *_, line = done.stderr.splitlines()
    assert (
        f"--model test_resnet: the Hub at {url} cannot be reached or did not answer: " in line
        and reason in line
    )
    assert line.endswith("; or give its weights by --pretrained-path FILE")


DOWNLOADS = {
    "cut off": (dict(truncate=0), "GET"),
    "another byte": (dict(rewrite=lambda data: data[:-1] + bytes([data[-1] ^ 1])), "GET"),
    "too short": (dict(headers={"X-Linked-Size": "10"}), "HEAD"),
}


@pytest.mark.parametrize("fault", DOWNLOADS)
def test_a_download_that_stays_wrong_leaves_nothing_to_load(empty, client, timm_folder, fault):
    name = f"me/{fault.replace(' ', '-')}"
    empty.add_model(name, timm_folder)
    kwargs, method = DOWNLOADS[fault]
    injected = empty.fault(f"{method} /{name}/.*safetensors", **kwargs)
    assert isinstance(client.load(f"hf-hub:{name}"), str)
    folder = client.cache / f"models--{name.replace('/', '--')}"
    assert not [path for path in folder.rglob("*.safetensors") if path.exists()]
    injected.times = 0
    assert client.load(f"hf-hub:{name}")["sha256"] == file_sha256(timm_folder / "model.safetensors")


def test_scrub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " odd token\n")
    text = scrub(f"odd token {TOKEN}, hf_oauth_ab.c-d https://me:pw@host/a?sig=1 hf_hub_download")
    assert text == "*** hf_***, hf_*** https://host/a hf_hub_download"
    assert scrub("ftp://u@h/a s3://u:p@q@h/b http://h/c@d hf-hub:o/n@r") == (
        "ftp://h/a s3://h/b http://h/c@d hf-hub:o/n@r"
    )


# ---------------------------------------------------------------- export


def test_export_of_a_channels_last_model_and_its_preprocessing(student, tmp_path):
    model = copy.deepcopy(student).to(memory_format=torch.channels_last)
    model.train()
    export_model(model, tmp_path / "export", DATA_CONFIG, RECORD)
    assert model.training  # who exports goes on with the model as it was
    loaded = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    state = student.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert not model.state_dict()["conv1.0.weight"].is_contiguous()
    config = timm.data.resolve_model_data_config(loaded)
    assert {
        k: tuple(v) if isinstance(v := config[k], list) else v for k in DATA_CONFIG
    } == DATA_CONFIG
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    # the same weights in a model that was changed after it was made: its logits are larger by 5 %
    model.fc.register_forward_hook(lambda module, inputs, logits: logits * 1.05)
    assert_refused(
        "not exported: timm's model of it gives other logits",
        export_model,
        model,
        tmp_path / "export",
        DATA_CONFIG,
        RECORD,
    )


class Own(torch.nn.Module):
    """A network that timm's builder has no part in."""

    num_features = 192

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc, self.num_classes = torch.nn.Linear(192, num_classes), num_classes
        self.pretrained_cfg = {
            "architecture": "own_network",
            "input_size": (3, 8, 8),
            "num_classes": num_classes,
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1))


def own_network(
    pretrained: bool = False, pretrained_cfg: dict | None = None, num_classes: int = 7, **_
) -> Own:
    model = Own(num_classes)
    if pretrained:
        model.load_state_dict(load_file(f"{pretrained_cfg['file']}/model.safetensors"))
    return model


def test_a_function_of_a_plugin_is_told_the_number_of_classes(tmp_path):
    """timm's own has it from elsewhere, and transformers gives it itself: then it is not in ``model_args``."""
    timm.models.register_model(own_network)
    export_model(timm.create_model("own_network", num_classes=5), tmp_path, data_config(8), {})
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 5


def test_interrupted_export_leaves_the_earlier_one(student, tmp_path):
    class Kill:
        def __str__(self):
            os.kill(os.getpid(), signal.SIGKILL)  # met while the card is written, after the weights

    folder = tmp_path / "export"
    export_model(student, folder, DATA_CONFIG, RECORD)
    before = contents(folder)
    pid = os.fork()
    if pid == 0:
        export_model(student, folder, DATA_CONFIG, {"command": Kill()})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert contents(folder) == before and (tmp_path / ".export.new" / "model.safetensors").exists()
    export_model(student, folder, DATA_CONFIG, {})
    assert set(contents(tmp_path)) == {
        f"export/{n}" for n in ("README.md", "config.json", "model.safetensors")
    }


# ---------------------------------------------------------------- card


def test_a_figure_on_few_images_says_how_many_in_the_card() -> None:
    few, many = ({**RECORD, "data": {**RECORD["data"], "val_samples": n}} for n in (6, 600))
    assert "(n = 6)" in model_card(few) and "(n =" not in model_card(many)
    row = dict(dataset="d", split="s", top1=50.0, images=7, weights="w")
    assert "(n = 7)" in model_card({"results": [row]})


def test_card_says_what_was_measured():
    metrics = {**RECORD["metrics"], "copied": 12.5}
    card = model_card({**RECORD, "metrics": metrics})
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "timm",
        "image-classification",
        None,
    )
    assert set(data.tags) == {
        "timm",
        "image-classification",
        "weak-to-strong",
        "knowledge-distillation",
        "adaptconf",
    }
    assert (data.base_model, data.datasets) == ("timm/test_resnet.r160_in1k", ["uoft-cs/cifar10"])
    assert data.model_name == "student"
    assert [
        (r.metric_name, r.metric_value, r.dataset_type, r.dataset_split) for r in data.eval_results
    ] == [
        ("Top-1 accuracy (%)", 70.75, "uoft-cs/cifar10", "test"),
        ("Top-5 accuracy (%)", 91.0, "uoft-cs/cifar10", "test"),
    ]
    parts = (
        "61.25",
        "88.50",
        "80.12",
        "81.50",
        "0.469",
        "c" * 40,
        "d" * 64,
        "`temperature` | `0.5`",
        "0.5:1",
        RECORD["command"],
        "`2.13.0`",
        "pretrained weights",
        "best epoch (8)",
        "2402.03749",
        "12,345",
        "the test split selected the checkpoint",
        'timm.create_model("hf-hub:ORG/NAME", pretrained=True)',
        "copied of its mistakes (%)",
        "| 12.50 |",
    )
    assert [part for part in parts if part not in card] == []


def test_the_example_in_the_card_classifies_a_file(student, tmp_path, monkeypatch, capsys):
    names = [f"kind {number}" for number in range(10)]
    record = {**RECORD, "model": {**RECORD["model"], "class_names": names}}
    export_model(student, tmp_path / "export", DATA_CONFIG, record, names)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "export/README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("hf-hub:ORG/NAME", "local-dir:export"), {})
    lines = [line.split("% ") for line in capsys.readouterr().out.splitlines()]
    shares = [float(share) for share, _ in lines]
    assert (
        len(lines) == 5
        and {name for _, name in lines} < set(names)
        and shares == sorted(shares, reverse=True)
    )


ABOUT = {"tag": "a1_in1k", "license": "apache-2.0", "paper_ids": "arXiv:2110.00476"}


@pytest.mark.parametrize(
    "init, weights, license", [("random", {}, "mit"), ("pretrained", ABOUT, "apache-2.0")]
)
def test_only_weights_that_were_used_are_spoken_of(tmp_path, init, weights, license):
    """Tag, paper and licence in card and config.json are of pretrained weights, a licence also of the user's."""
    model = timm.create_model("resnet18", num_classes=2)
    own = dict(name="resnet18.a1_in1k", architecture="resnet18", init=init, weights=weights)
    export_model(model, tmp_path, DATA_CONFIG, {"model": own, "license": license})
    card = (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    said = {key: config.get(key) for key in ("tag", "license", "paper_ids", "origin_url")}
    assert said == {**dict.fromkeys(said), **weights, "license": license}
    assert ModelCard(card).data.license == license
    assert ("a1_in1k" in card) == ("2110.00476" in card) == bool(weights)


def test_a_token_in_a_record_is_not_in_the_card(student, tmp_path):
    """It would be published with the export, which has only what `export_model` writes."""
    export_model(
        student,
        tmp_path / "export",
        DATA_CONFIG,
        {**RECORD, "command": f"train_w2s.py --note {TOKEN}"},
    )
    files = contents(tmp_path / "export")
    assert b"train_w2s.py --note hf_***" in files["README.md"]
    assert not any(TOKEN.encode() in data for data in files.values())


def test_card_does_not_say_where_files_lie():
    command = (
        "torchrun /home/me/w/train_w2s.py --unlabeled /home/me/photos,/home/me/a.tar --data-dir='/home/me/my d' "
        "--teacher 'labels:/home/me/my labels/x.csv#a' --val 'wds//home/me/t-{0..9}.tar' --model hf-hub:me/home "
        '--kwargs \'{"a": "/home/me/b.pt"}\' --teacher labels:hf://datasets/me/x --output out/run /home/me/'
    )
    card = model_card(
        {
            "model": {"name": "local-dir:/home/me/cnn/export", "class_names": ["/m/011k07"]},
            "command": command,
            "teacher": {
                "models": [
                    {"name": "local-dir:/home/me/out/weak run/export"},
                    {"name": "onnx:/home/me/x.onnx"},
                ]
            },
            "data": {
                "dataset": "wds//home/me/train",
                "label_noise": {"kind": "labels:/home/me/n.csv", "rate": 0},
            },
            "metrics": {"top1": 1.0},
            "warnings": ["the run went on with --data-dir /home/me/new, it was '/home/me/old'"],
        }
    )
    assert "/home/" not in card
    texts = (
        "# `cnn`",
        "name: cnn",
        "`weak run`",
        "`onnx:x.onnx`",
        "`wds/train`",
        "labels:.../n.csv",
        "`/m/011k07`",
        "--data-dir .../new, it was '.../old'",
        "torchrun .../train_w2s.py --unlabeled .../photos,.../a.tar --data-dir='.../my d' "
        "--teacher 'labels:.../x.csv#a' --val 'wds/.../t-{0..9}.tar' --model hf-hub:me/home "
        '--kwargs \'{"a": ".../b.pt"}\' --teacher labels:hf://datasets/me/x --output out/run .../me\n',
    )
    assert [text for text in texts if text not in card] == []


def test_card_leaves_out_what_is_not_known():
    card = ModelCard(model_card({"metrics": {"top1": float("nan")}}))
    assert (
        card.data.eval_results is None
        and card.data.base_model is None
        and card.data.datasets is None
    )
    assert not any(word in card.text for word in ("None", "nan", "Results", "Teacher", "PGR"))


@pytest.mark.parametrize(
    "module, imported",
    [("w2s_plugins.models", "import w2s_plugins.models"), ("os; print(1)", "import w2s_plugins")],
)
def test_card_of_an_architecture_that_timm_does_not_have(module, imported):
    card = model_card({"model": {"plugin_module": module}})
    assert f"{imported}  # registers" in card and "print(1)" not in card


def outline(card: str) -> tuple:
    """What of a card is structure: headings, links, raw HTML, table columns, and the keys of the metadata."""
    parsed = ModelCard(card)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(parsed.text)
    headings = [
        b.content
        for a, b in itertools.pairwise(tokens)
        if a.type == "heading_open" and a.tag != "h1"
    ]
    cells = [t.type for t in tokens if t.type in ("th_open", "td_open", "tr_open")]
    inline = [child for t in tokens for child in t.children or ()]
    links = sorted({str(t.attrs["href"]) for t in inline if t.type == "link_open"})
    html = {t.content for t in [*tokens, *inline] if t.type.startswith("html")} - {
        "<code>",
        "</code>",
    }
    marks = {t.type for t in inline} & {"image", "strong_open", "em_open"}
    return headings, cells, links, html, marks, sorted(parsed.data.to_dict())


def replace_strings(value: object, text: str) -> object:
    if isinstance(value, dict):
        return {k: replace_strings(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [replace_strings(v, text) for v in value]
    return text if isinstance(value, str) else value


HOSTILE = [
    "x\n---\n\n# Owned\n",
    "a | b | c",
    "`|`",
    "\\|\\",
    "``` \n</code><script>alert(1)</script>",
    "![x](http://evil/x)",
    "[x](javascript:alert(1))",
    "'\": {}[]&*!%@\t#",
    "\u2028---\u2028key: value",
    "\u202eevil",
    "**b** _i_ <b>",
    "`",
    "\\`",
    "\ud800",
    "- a: &x *x",
    "${{x}} {% x %}",
    "x" * 5000,
    "\x00\x1b[31m",
    "<!-- x",
    "~~~",
    " ",
    "a`\\|b",
    "``\x00`",
]


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.sampled_from(HOSTILE), st.text(alphabet="`|\\<>&*_[]()#-\n\r :'\"!~ax\u2028\u202e")
    )
)
def test_no_value_breaks_out_of_the_card(text):
    text = "x" + text  # an empty value would be left out
    record = replace_strings(RECORD, text)
    harmless = replace_strings(RECORD, "x")
    for one in (record, harmless):
        one["model"]["init"], one["selected"]["rule"], one["teacher"]["targets"] = (
            "pretrained",
            "best",
            "online",
        )
        one["model"]["plugin_module"] = None
        one["model"]["source"]["repo"] = "a/b"
    record["loss"]["kwargs"] = {text: text}
    harmless["loss"]["kwargs"] = {"x": "x"}
    assert outline(model_card(record)) == outline(model_card(harmless))
