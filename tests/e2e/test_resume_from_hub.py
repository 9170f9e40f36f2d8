"""A run that was pushed goes on elsewhere as one that was never moved, to the last bit; over real HTTP."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Done, differences, read_run, run_many, serve_ranks
from tests.hub_server import File, HubServer, hub_env

from .test_resume import assert_same_run, flags_of, interrupt, whole  # noqa: F401  (fixtures)

TOKEN = "hf_" + "s3cretS3cret" * 3
PUSH = ["-m", "w2s_plugins.hub", "push"]
FILES = {f"checkpoint/{part}.{kind}" for part in ("state", "best") for kind in ("json", "safetensors")}


@pytest.fixture
def env(hub_server: HubServer, tmp_path: Path) -> dict[str, str]:
    hub_server.add_user("me", TOKEN)
    return hub_env(hub_server, tmp_path, token=TOKEN)


def head(server: HubServer, name: str) -> dict[str, File]:
    repo = server.repos[name]
    return {path: file for path, file in repo.commits[repo.resolve("main")].items() if path != ".gitattributes"}


@pytest.mark.parametrize("setting", ["everything", "cached"])
def test_inside_an_epoch(
        here: Callable[..., Done], weak: Path, whole: Callable, tmp_path: Path, interrupt: Callable,  # noqa: F811
        hub_server: HubServer, env: dict[str, str], setting: str) -> None:
    """It is killed in its second epoch; the folder there has the name of the repository."""
    flags = [*flags_of(setting, weak, tmp_path)[:-1], "--recovery-interval", 1]
    here(*flags, "--experiment", "run", "--stop-epoch", 1).ok()
    interrupt(3)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*flags, "--experiment", "run", "--resume", "auto")
    there = [*map(str, flags), "--output", str(tmp_path / "there"), "--resume", "hf-hub:me/moved"]
    pushed, done, again = run_many([[*PUSH, "run", "me/moved", "--checkpoint"], there, there], env, tmp_path)
    assert " MB)" in pushed.ok().out
    assert "goes on with epoch 2, step" in done.ok().err and "step 0" not in done.err
    assert "holds a run already: --resume auto" in again.error
    one, other = whole(setting), tmp_path / "there/moved"
    files = ("last.pth.tar", "model_best.pth.tar")
    assert_same_run(one, other, files, frozenset(["checkpoint-0.pth.tar"]))
    there = {name for name in head(hub_server, "me/moved") if name.startswith("checkpoint")}
    assert there <= FILES  # no pickle among them


def test_between_epochs_on_two_ranks(
        weak: Path, tmp_path: Path, hub_server: HubServer, env: dict[str, str]) -> None:
    """Its model is pushed by the run itself, with EMA and AMP, and it has to fetch its best epoch too."""
    flags = [*flags_of("everything", weak, tmp_path)[:-1], "--grad-accum-steps", "1", "--select", "best",
             "--experiment"]
    with serve_ranks(env) as ranks:
        ranks(*flags, "whole", processes=2, cwd=tmp_path).ok()
        done = ranks(*flags, "run", "--stop-epoch", 2, "--push-to-hub", "me/run", processes=2, cwd=tmp_path).ok()
        assert "\npublished at" in done.out
        pushed, = run_many([[*PUSH, str(tmp_path / "run"), "me/run", "--checkpoint"]], env, tmp_path)
        pushed.ok()
        moved = ranks(*flags, "moved", "--resume", "hf-hub:me/run", processes=2, cwd=tmp_path).ok()
    assert "goes on with epoch 3, step 0" in moved.err
    for name in ("last.pth.tar", "model_best.pth.tar"):
        assert differences(read_run(tmp_path / "whole", name), read_run(tmp_path / "moved", name)) == []
    for name in ("metrics.jsonl", "export/model.safetensors", "predictions_best.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "moved" / name).read_bytes(), name
    files = head(hub_server, "me/run")
    assert {"config.json", "model.safetensors", "README.md", "figure.png"} == files.keys() - FILES
    assert "](figure.png)" in files["README.md"].data.decode()
    assert b"output" not in json.dumps(flags_there(files)).encode()  # where runs lie is not published
    asked = [r.path for r in hub_server.requests if "/resolve/" in r.path and "state.safetensors" in r.path]
    assert len(asked) <= 2, asked  # one rank: it looks, and fetches


def flags_there(files: dict[str, File]) -> dict:
    state = dict(json.loads(files["checkpoint/state.json"].data)["state"]["dict"])
    return dict(state["args"]["namespace"]["dict"])


def test_what_is_missing_or_odd(tmp_path: Path, hub_server: HubServer, env: dict[str, str]) -> None:
    run = [*TINY, "--model", "w2s_cnn2", "--epochs", "1", "--opt", "adamw", "--output", str(tmp_path), "--experiment"]
    go_on = [*run, "moved", "--resume"]
    first, missing, nobody, nothing = run_many([
        [*run, "run", "--push-to-hub", "me/run"], [*go_on, "hf-hub:me/run"], [*go_on, "hf-hub:me/ruin"],
        [*PUSH, str(tmp_path), "me/run", "--checkpoint"]], env, tmp_path)
    first.ok()
    assert "has no checkpoint: push what" in missing.error and "hub push RUN ORG/NAME --checkpoint" in missing.error
    assert "no such repository on the Hub" in nobody.error
    assert "no checkpoint in" in nothing.error
    assert not (tmp_path / "moved").exists()

    repo = hub_server.repos["me/run"]
    good, = run_many([[*PUSH, "run", "me/run", "--checkpoint"]], env, tmp_path)
    good.ok()
    assert {"checkpoint/state.json", "checkpoint/state.safetensors"} == FILES & head(hub_server, "me/run").keys()
    full = dict(repo.commits[repo.resolve("main")])
    text = full["checkpoint/state.json"].data.decode()
    deep = "[" * 100_000 + "]" * 100_000
    damaged = {
        "name": text.replace('"name": "last"', '"name": "../last"'), "kind": text.replace('"dict"', '"exec"', 1),
        "tensor": text.replace('{"tensor": "0"}', '{"tensor": "none"}'), "cut off": text[:-3], "deep": deep, "no": "{}",
        "optimizer": text.replace('"optimizer"', '"other"'),
        "epoch": text.replace('["epoch", 0]', '["epoch", 7]')}
    commits = {name: repo.commit(name, {**full, "checkpoint/state.json": File(odd.encode(), False)}, name)
               for name, odd in damaged.items()}
    done = run_many([[*go_on, f"hf-hub:me/run@{commit}"] for commit in commits.values()], env, tmp_path)
    for name, odd in zip(commits, done):
        assert "--resume" in odd.error, name
        words = {"optimizer": "no optimizer",
                 "epoch": "stands at epoch 9, step 0, which training has not: 1 epochs of"}.get(name, "damaged")
        assert words in odd.error, odd.error
