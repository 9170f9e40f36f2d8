"""Faults of the Hub that pass, and those that do not: every one injected into a server that speaks its HTTP."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.hub.test_hub import TOKEN, contents, run, student, timm_folder  # noqa: F401  (fixtures)
from tests.hub_server import HubServer, hub_env
from tests.processes import python
from w2s_plugins.hub.errors import WAITS

# One process for all tests. Waits are written down and left out; a time-out is one of 0.5 s.
CLIENT = """
import json, logging, sys, time
waits, log = [], []
time.sleep = waits.append
from w2s_plugins.errors import UserError
from w2s_plugins.hub import errors
from w2s_plugins.hub.push import push_export
from w2s_plugins.hub.source import hub_source
from w2s_plugins.models.loading import create_model
errors.HUB_TIMEOUT = 0.5

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
PASSING = {
    "408": dict(status=408),
    "409": dict(status=409),
    "412": dict(status=412),
    "429": dict(status=429),
    "500": dict(status=500),
    "503": dict(status=503),
    "closed": dict(drop=True),
}


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


@pytest.mark.parametrize("where, fault", [
    (where, fault) for where in ("create", "commit") for fault in PASSING
    if (where, fault) != ("create", "409")])  # the answer of a repository that exists
def test_push_gets_over_what_passes(server, client, run, where, fault):  # noqa: F811
    before = contents(run / "export")
    server.repos.pop("me/passing", None)
    server.fault(f"POST /api/.*/{where}", times=2, **PASSING[fault])
    done = client("push", run / "export", "me/passing")
    assert done.ok, done.text
    assert done.waits == [1, 2] and [line.count("trying again in") for line in done.log] == [1, 1]
    assert contents(run / "export") == before
    repo = server.repos["me/passing"]
    assert repo.commits[repo.branches["main"]]["model.safetensors"].data == before["model.safetensors"]


@pytest.mark.parametrize("fault", ["429", "500", "503", "closed"])
def test_look_up_gets_over_what_passes(server, client, model, fault):
    server.fault(f"HEAD /{model}/.*config.json", times=2, **PASSING[fault])
    done = client("load", f"hf-hub:{model}")
    assert done.ok and 1 <= len(done.waits) <= 2, (done.text, done.waits)
    assert asked(server, "HEAD", "config.json") + 2 * (fault == "closed") > 2


def test_a_look_up_costs_the_tries_of_the_client_once(server, client, model):
    server.fault(f"HEAD /{model}/", status=503)
    done = client("load", f"hf-hub:{model}")
    assert not done.ok and "server error (503)" in done.text and done.waits == [1, 2, 4, 8, 8] and not done.log


def test_so_does_a_hub_that_cannot_be_reached(server, tmp_path):
    """huggingface_hub 1.x breaks off its own tries after the first wait."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    env = hub_env(server, tmp_path) | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    done = python("-c", CLIENT, env=env, cwd=tmp_path, given=json.dumps(["load", "hf-hub:me/x"]) + "\n")
    ok, text, waits, log = json.loads(done.stdout)
    assert not ok and "cannot be reached" in text and waits == [1, 2, 4, 8, 8][:len(waits)] and waits and not log
    assert done.stderr == ""


@pytest.mark.parametrize("where", ["create", "commit"])
def test_a_time_out_is_not_waited_for_again(server, client, run, where):  # noqa: F811
    fault = server.fault(f"POST /api/.*/{where}", delay=1.2, times=2)
    done = client("push", run / "export", "me/silent")
    time.sleep(1.2)  # the server is still at it
    assert not done.ok and "did not answer" in done.text and "repeat with: " in done.text
    assert fault.times == 1 and not done.waits


@pytest.mark.parametrize("where, trickle", [
    ("HEAD /{}/.*config.json", "headers"), ("GET /{}/.*config.json", "headers"), ("GET /{}/.*safetensors", "body"),
    ("POST /api/.*/create", "headers"), ("POST /api/.*/commit", "body")])
def test_a_server_that_sends_a_byte_now_and_then(server, client, model, run, where, trickle):  # noqa: F811
    """No single wait is too long, and there would be no end of them."""
    fault = server.fault(where.format(model), trickle=trickle, times=1)
    started = time.monotonic()
    push = where.startswith("POST")
    done = client("push", run / "export", "me/slow") if push else client("load", f"hf-hub:{model}")
    assert not done.ok and "bytes a second, less than 1000 for 0.5 s" in done.text and not done.waits, done.text
    assert time.monotonic() - started < 5 and fault.times == 0


@pytest.mark.parametrize("status, part", [
    (401, "valid access token"), (403, "may not do this"), (404, "404"), (410, "410")])
def test_what_does_not_pass_is_said_at_once(server, client, run, status, part):  # noqa: F811
    server.fault("POST /api/models/.*/commit/", status=status)
    done = client("push", run / "export", "me/x")
    assert not done.ok and part in done.text and not done.waits
    assert done.text.endswith(f"is as it was, repeat with: python -m w2s_plugins.hub push {run} me/x")
    assert asked(server, "POST", "/commit/") == 1


@pytest.mark.parametrize("fault, part", [
    (dict(status=503), "server error (503)"), (dict(status=412), "someone else"), (dict(drop=True), "did not answer")])
def test_a_push_has_an_end_and_can_be_repeated(server, client, run, fault, part):  # noqa: F811
    server.repos.pop("me/end", None)
    fault = server.fault("POST /api/models/.*/commit/", **fault)
    done = client("push", run / "export", "me/end")
    assert not done.ok and part in done.text
    assert f"repeat with: python -m w2s_plugins.hub push {run} me/end" in done.text
    assert done.waits == [1, 2, 4, 8] and len(done.log) == len(WAITS)
    fault.times = 0
    assert client("push", run / "export", "me/end").ok


def test_waits_as_long_as_the_hub_asks_for(server, client, run):  # noqa: F811
    server.fault("POST /api/repos/create", status=429, headers={"Retry-After": "30"}, times=1)
    done = client("push", run / "export", "me/x")
    assert done.ok and done.waits == [30] and "too many requests" in done.log[0]


@pytest.mark.parametrize("where", ["POST /api/repos/create", "POST /me/far.git/info/lfs"])
def test_but_not_for_a_day(server, client, run, where):  # noqa: F811
    """huggingface_hub itself would wait for it in an upload."""
    server.fault(where, status=429, headers={"Retry-After": "86400"})
    done = client("push", run / "export", "me/far")
    assert not done.ok and "try again in 86400 s" in done.text and not done.waits


@pytest.mark.parametrize("fault", [dict(read=1000), dict(status=500), dict(mute=True)])
def test_an_upload_that_breaks_off_is_sent_again(server, client, run, fault):  # noqa: F811
    server.objects.clear()
    server.repos.pop("me/up", None)
    server.fault("PUT /lfs/upload", times=2, **fault)
    assert client("push", run / "export", "me/up").ok
    repo = server.repos["me/up"]
    data = (run / "export" / "model.safetensors").read_bytes()
    assert repo.commits[repo.branches["main"]]["model.safetensors"].data == data


def test_a_commit_whose_answer_is_lost_is_not_made_twice(server, client, run):  # noqa: F811
    server.fault("POST /api/models/.*/commit/", mute=True, times=1)
    assert client("push", run / "export", "me/lost").ok
    repo = server.repos["me/lost"]
    assert len({tuple(sorted(c)) for c in repo.commits.values()}) == 2  # the first one of the Hub, and ours
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
def test_a_download_is_repeated_until_its_bytes_are_right(server, client, timm_folder, model, fault):  # noqa: F811
    kwargs, method = DOWNLOADS[fault]
    server.fault(f"{method} /{model}/.*safetensors", times=1, **kwargs)
    done = client("load", f"hf-hub:{model}")
    assert done.ok and done.waits, (done.text, done.waits)
    assert asked(server, method, f"{model}/resolve") >= 2


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
    (found, _, waits, _), (absent, message, more, _) = map(json.loads, done.stdout.splitlines())
    assert found and not absent and "HF_HUB_OFFLINE is set" in message and not waits + more
    assert not server.requests


def test_huggingface_hub_is_the_one_whose_retries_were_looked_at():
    """Its own retries (`on_hub` names them) are to be looked at again when a new major version comes."""
    assert huggingface_hub.__version__.split(".")[0] in ("1", "2")


def test_log_lines_of_the_client_have_no_password(server: HubServer, tmp_path: Path) -> None:
    with socket.socket() as refused:  # bound, and nobody listens
        refused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{refused.getsockname()[1]}"
        url = f"http://me:S3cretPassw0rd@{address}"
        env = hub_env(server, tmp_path) | {"HF_ENDPOINT": url}
        done = python("-c", LOGGING, url, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Retrying in" not in done.stderr, "one line in place of two for each try of the client"
    assert f"Retrying: http://{address}" in done.stderr and f"OSError: http://{address}" in done.stderr
    assert "S3cret" not in done.stdout + done.stderr
