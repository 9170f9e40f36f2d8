"""A small server that speaks the Hugging Face Hub's HTTP and keeps what it is given, for tests of the real client.

with HubServer() as server:
    server.add_user("me", token="hf_me")
    subprocess.run([...], env=hub_env(server, tmp_path, token="hf_me"))
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".npz", ".onnx")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.blob_id

    @property
    def blob_id(self) -> str:
        """Git's hash of the file, or of the pointer that stands for it in Git LFS."""
        data = self.data
        if self.lfs:
            oid = hashlib.sha256(data).hexdigest()
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Commits and the branches that point to them; a commit is a dict from path to `File`."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit(
            "main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit"
        )

    @property
    def owner(self) -> str:
        return self.id.split("/")[-2]

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        tree = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(files.items()))
        text = f"{self.id} {self.branches.get(branch)} {message} {len(self.commits)}\n{tree}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """Commit hash of a branch or of a commit's first digits."""
        if revision in self.branches:
            return self.branches[revision]
        hits = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return hits[0] if len(hits) == 1 else None


@dataclass
class Fault:
    """What to do instead of, or to, the answer of requests whose ``METHOD /path`` matches ``pattern``."""

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False  # close the connection without an answer
    truncate: int | None = (
        None  # close it after so many bytes of the body; the headers promise all of them
    )
    rewrite: Callable[[bytes], bytes] | None = None  # another body under the same headers
    times: int | None = None  # None: always


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class HubServer:
    """The Hub on 127.0.0.1; ``url`` is its address, ``repos`` what it holds, ``requests`` what it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, str] = {}  # by token
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add_user(self, name: str, token: str) -> None:
        self.users[token] = name

    def add_model(
        self, repo_id: str, folder: str | Path, *, branch: str = "main", **kwargs: object
    ) -> str:
        """Commit the files of a folder to a repository, created with ``kwargs`` when missing; return the commit.

        The id of a dataset begins with ``datasets/``, here and in ``repos``.
        """
        folder = Path(folder)
        repo = self.repos.setdefault(repo_id, Repo(repo_id, **kwargs))
        files = {
            path.relative_to(folder).as_posix(): File(
                path.read_bytes(), path.name.endswith(LFS_SUFFIXES)
            )
            for path in folder.rglob("*")
            if path.is_file()
        }
        return repo.commit(branch, files, "add files")

    def fault(self, pattern: str, **kwargs: object) -> Fault:
        """Inject a `Fault` into all requests whose ``METHOD /path`` matches the regular expression ``pattern``."""
        self.faults.append(Fault(pattern, **kwargs))
        return self.faults[-1]

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, request):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class _Refused(Exception):
    """An answer that is an error: status, the Hub's error code, and a message."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {
            "X-Error-Message": message,
            **({"X-Error-Code": code} if code else {}),
            **(headers or {}),
        }


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.route = urlsplit(self.path).path
        self.fault = self.hub.take_fault(f"{self.command} {unquote(self.route)}") or Fault("")
        if self.fault.drop:
            return self._hang_up()
        body = self._body()
        with self.hub.lock:
            self.hub.requests.append(
                Request(self.command, unquote(self.route), dict(self.headers), body)
            )
        try:
            if self.fault.status:
                raise _Refused(self.fault.status, "injected fault")
            with self.hub.lock:
                status, headers, data = self._answer(body)
        except _Refused as refused:
            status, headers, data = (
                refused.status,
                refused.headers,
                json.dumps({"error": str(refused)}).encode(),
            )
        self._send(status, headers, data)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        standard = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self.send_response(status)
        for name, value in {**standard, **headers, **self.fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.rewrite:
            data = self.fault.rewrite(data)
        self.wfile.write(data[: self.fault.truncate])
        if self.fault.truncate is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, function in _ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in method.split():
                sent = {"body": body} if self.command in ("POST", "PUT") else {}
                answer = function(self, *map(unquote, match.groups()), **sent)
                return (
                    answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
                )
        raise _Refused(404, "Sorry, we can't find the page you are looking for.")

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _repo(self, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        user, repo = self._user(), self.hub.repos.get(repo_id)
        if repo is None or (repo.private and user != repo.owner):
            raise _Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and user != repo.owner:
            raise _Refused(
                403 if user else 401, f"Access to model {repo_id} is restricted.", "GatedRepo"
            )
        if write and user != repo.owner:
            raise _Refused(403 if user else 401, "You need write access to this repository.")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        if (sha := repo.resolve(revision)) is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def create(self, body: bytes) -> tuple | dict:
        wanted, user = json.loads(body), self._user()
        if user is None:
            raise _Refused(401, "Invalid username or password.")
        owner, kind = wanted.get("organization") or user, wanted.get("type") or "model"
        repo_id = f"{'' if kind == 'model' else f'{kind}s/'}{owner}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            return (
                409,
                {},
                json.dumps({**answer, "error": "You already created this model repo"}).encode(),
            )
        private = wanted.get("visibility") == "private" or wanted.get("private", False)
        self.hub.repos[repo_id] = Repo(repo_id, private=private)
        return answer

    def whoami(self) -> dict:
        if (user := self._user()) is None:
            raise _Refused(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": []}

    def validate(self, body: bytes) -> dict:
        """What the Hub checks of a card: that its metadata are YAML, and the form of the licence and the datasets."""
        data = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        names = [data.get("license", "mit"), *data.get("datasets", [])]
        errors = [
            {"message": f"{name}: no id"}
            for name in names
            if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name)
        ]
        return {"errors": errors, "warnings": []}

    def preupload(self, repo_id: str, revision: str, body: bytes) -> dict:
        repo = self._repo(repo_id, write=True)
        files = repo.commits[self._commit_of(repo, revision)]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": files[file["path"]].etag if file["path"] in files else None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def lfs_batch(self, repo_id: str, body: bytes) -> dict:
        self._repo(repo_id, write=True)
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/upload/{wanted['oid']}"}}
            objects.append(
                {**wanted, **({} if wanted["oid"] in self.hub.objects else {"actions": actions})}
            )
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid: str, body: bytes) -> dict:
        self.hub.objects[oid] = body
        return {}

    def commit(self, repo_id: str, revision: str, body: bytes) -> dict:
        repo = self._repo(repo_id, write=True)
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if revision not in repo.branches:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(repo.commits[repo.branches[revision]])
        for line in lines:
            _apply(files, self.hub.objects, line["key"], line["value"])
        sha = repo.commit(revision, files, header["summary"])
        return {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}",
        }

    def branch(self, repo_id: str, name: str, body: bytes) -> dict:
        repo = self._repo(repo_id, write=True)
        if name in repo.branches:
            raise _Refused(409, f"Reference already exists: {name}")
        repo.branches[name] = self._commit_of(
            repo, json.loads(body or b"{}").get("startingPoint", "main")
        )
        return {}

    def info(self, repo_id: str, revision: str | None = None) -> dict:
        repo = self._repo(repo_id)
        sha = self._commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        plain = repo_id.removeprefix("datasets/")
        return {
            "_id": plain,
            "id": plain,
            "modelId": plain,
            "sha": sha,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "tags": [],
            "siblings": siblings,
        }

    def tree(self, repo_id: str, revision: str) -> list:
        repo = self._repo(repo_id, content=True)
        entries = []
        for path, file in repo.commits[self._commit_of(repo, revision)].items():
            size = len(file.data)
            lfs = {"lfs": {"oid": file.etag, "size": size, "pointerSize": 130}} if file.lfs else {}
            entries.append({"type": "file", "path": path, "size": size, "oid": file.blob_id, **lfs})
        return entries

    def resolve(self, repo_id: str, revision: str, path: str) -> tuple:
        repo = self._repo(repo_id, content=True)
        sha = self._commit_of(repo, revision)
        if (file := repo.commits[sha].get(path)) is None:
            raise _Refused(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": sha,
            "ETag": f'"{file.etag}"',
        }
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        return 200, headers, file.data


_ID = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
_API = rf"/api/(?:models/|(?=datasets/)){_ID}"
_ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"{_API}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/upload/([0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", rf"{_API}/commit/(.+)", _Handler.commit),
    ("POST", rf"{_API}/branch/(.+)", _Handler.branch),
    ("GET", rf"{_API}", _Handler.info),
    ("GET", rf"{_API}/revision/(.+)", _Handler.info),
    ("GET", rf"{_API}/tree/([^/]+)", _Handler.tree),
    ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
)


def _apply(files: dict[str, File], objects: dict[str, bytes], key: str, value: dict) -> None:
    """One line of a commit."""
    path = value.get("path", "")
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        files[path] = File(objects[value["oid"]], True)
    elif key == "deletedFile":
        del files[path]


def hub_env(server: HubServer, tmp_path: Path, token: str | None = None) -> dict[str, str]:
    """Environment of a client process: this server, an own cache in ``tmp_path``, no proxy, no token but ``token``."""
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()
    }
    env |= {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return env | ({"HF_TOKEN": token} if token else {})


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
