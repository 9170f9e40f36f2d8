"""Faults of the Hub that pass, and those that do not: every one injected into a server that speaks its HTTP."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.test_hub import TOKEN, contents, run, student, timm_folder  # noqa: F401  (fixtures)
from tests.hub_server import HubServer, hub_env
from tests.processes import python

# One process for all tests. Waits are written down and left out; a time-out is one of 0.5 s.
CLIENT = """
import json, logging, sys, time
waits, log = [], []
time.sleep = waits.append
from w2s_plugins.errors import UserError
from w2s_plugins.hub.push import push_export
from w2s_plugins.hub.source import hub_source
from w2s_plugins.models.loading import create_model

class Note(logging.Handler):
    def emit(self, record):
        log.append(record.getMessage())

logging.getLogger("w2s_plugins").addHandler(Note())
for line in sys.stdin:
    task, *args = json.loads(line)
    waits.clear(), log.clear()
    try:
        if task == "push":
            done = push_export(args[0], args[1])
        else:
            model = create_model("--teacher", args[0], pretrained=True)
            done = hub_source(model, args[0])["sha256"]
        ok = True
    except UserError as error:
        ok, done = False, str(error)
    print(json.dumps([ok, done, waits, log]), flush=True)
"""
LOGGING = """
import logging, sys, time
time.sleep = lambda seconds: None
from w2s_plugins.errors import UserError
from w2s_plugins.models.loading import create_model
try:
    create_model("--teacher", "hf-hub:me/x", pretrained=True)
except UserError as error:
    print(error)
url = sys.argv[1]
logging.getLogger("urllib3.connectionpool").warning("Retrying: %s", url)  # has no handler of its own
try:
    raise OSError(url)
except OSError:
    logging.getLogger("huggingface_hub.file_download").warning("Ignored", exc_info=True)
"""
class Answer:
    """What came of one task: success, address, hash or message, and the waits in seconds."""

    def __init__(self, ok: bool, text: str, waits: list[float], log: list[str]) -> None:
        self.ok, self.text, self.waits, self.log = ok, text, waits, log
        assert TOKEN not in text + "".join(log) and "\n" not in text


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        hub.add_user("me", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Iterator[Callable[..., Answer]]:
    folder = tmp_path_factory.mktemp("client")
    env = hub_env(server, folder, TOKEN) | {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    with (folder / "stderr").open("w+") as errors, subprocess.Popen(
            [sys.executable, "-c", CLIENT], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors) as process:
        def ask(*task: object) -> Answer:
            print(json.dumps([*map(str, task)]), file=process.stdin, flush=True)
            return Answer(*json.loads(process.stdout.readline()))

        ask.cache = Path(env["HF_HOME"]) / "hub"
        yield ask
        process.stdin.close()
        assert TOKEN not in Path(errors.name).read_text()


@pytest.fixture(autouse=True)
def no_faults(server) -> Iterator[None]:
    server.requests.clear()
    yield
    server.faults.clear()


def asked(server: HubServer, method: str, part: str) -> int:
    return sum(r.method == method and part in r.path for r in server.requests)


@pytest.fixture
def model(server, timm_folder, request) -> str:  # noqa: F811
    """A repository of the test's own, so that nothing of it is in the cache."""
    name = "me/" + "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:].strip("_")
    server.add_model(name, timm_folder)
    return name


@pytest.mark.parametrize("status, part", [
    (401, "valid access token"), (403, "may not do this"), (404, "404"), (410, "410")])
def test_what_does_not_pass_is_said_at_once(server, client, run, status, part):  # noqa: F811
    server.fault("POST /api/models/.*/commit/", status=status)
    done = client("push", run / "export", "me/x")
    assert not done.ok and part in done.text
    assert done.text.endswith(f"is as it was, repeat with: python -m w2s_plugins.hub push {run} me/x")
    assert asked(server, "POST", "/commit/") == 1


@pytest.mark.parametrize("fault, part", [
    (dict(status=503), "503"), (dict(status=412), "412"), (dict(drop=True), "cannot be reached")])
def test_a_push_that_failed_can_be_repeated(server, client, run, fault, part):  # noqa: F811
    server.repos.pop("me/end", None)
    fault = server.fault("POST /api/models/.*/commit/", **fault)
    done = client("push", run / "export", "me/end")
    assert not done.ok and part in done.text
    assert f"repeat with: python -m w2s_plugins.hub push {run} me/end" in done.text
    fault.times = 0
    assert client("push", run / "export", "me/end").ok


@pytest.mark.parametrize("fault", [dict(read=1000), dict(status=500), dict(mute=True)])
def test_an_upload_that_breaks_off_is_sent_again(server, client, run, fault):  # noqa: F811
    server.objects.clear()
    server.repos.pop("me/up", None)
    server.fault("PUT /lfs/upload", times=2, **fault)
    assert client("push", run / "export", "me/up").ok
    repo = server.repos["me/up"]
    data = (run / "export" / "model.safetensors").read_bytes()
    assert repo.commits[repo.branches["main"]]["model.safetensors"].data == data


DOWNLOADS = {
    "500": (dict(status=500), "GET"),
    "503 and a wait": (dict(status=503, headers={"Retry-After": "3"}), "GET"),
    "429": (dict(status=429), "GET"),
    "closed": (dict(drop=True), "GET"),
    "cut off": (dict(truncate=50_000), "GET"),
    "another byte": (dict(rewrite=lambda data: data[:-1] + bytes([data[-1] ^ 1])), "GET"),
    "too short": (dict(headers={"X-Linked-Size": "10"}), "HEAD"),
    "too long": (dict(headers={"X-Linked-Size": "10000000"}), "HEAD"),
}


@pytest.mark.parametrize("fault", DOWNLOADS)
def test_a_download_that_stays_wrong_leaves_nothing_to_load(server, client, model, fault):
    kwargs, method = DOWNLOADS[fault]
    injected = server.fault(f"{method} /{model}/.*safetensors", **(kwargs | (
        {"truncate": 0} if "truncate" in kwargs else {})))  # a download that gains ground is never given up
    done = client("load", f"hf-hub:{model}")
    assert not done.ok and f"hf-hub:{model}: " in done.text, done.text
    folder = client.cache / f"models--{model.replace('/', '--')}"
    assert not [p for p in folder.rglob("*.safetensors") if p.exists()]
    injected.times = 0
    assert client("load", f"hf-hub:{model}").ok


def test_offline_takes_what_is_cached_and_asks_nothing(server, client, model, tmp_path):
    assert client("load", f"hf-hub:{model}").ok
    server.requests.clear()
    env = hub_env(server, tmp_path) | {"HF_HOME": str(client.cache.parent), "HF_HUB_OFFLINE": "1"}
    tasks = "".join(json.dumps(["load", f"hf-hub:{name}"]) + "\n" for name in (model, "me/never"))
    done = python("-c", CLIENT, env=env, cwd=tmp_path, given=tasks)
    (found, *_), (absent, message, *_) = map(json.loads, done.stdout.splitlines())
    assert found and not absent and "HF_HUB_OFFLINE is set" in message
    assert not server.requests


def test_log_lines_of_the_client_have_no_password(server: HubServer, tmp_path: Path) -> None:
    with socket.socket() as refused:  # bound, and nobody listens
        refused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{refused.getsockname()[1]}"
        url = f"http://me:S3cretPassw0rd@{address}"
        env = hub_env(server, tmp_path) | {"HF_ENDPOINT": url}
        done = python("-c", LOGGING, url, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Retrying: http://{address}" in done.stderr and f"OSError: http://{address}" in done.stderr
    assert "S3cret" not in done.stdout + done.stderr
