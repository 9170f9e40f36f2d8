"""A Space: written, pushed to a Hub that speaks HTTP, taken from there and shown in a real browser."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from torch import nn

import w2s_plugins as w2s
import w2s_plugins.models  # registers an architecture
from tests.hub_server import ROOT, HubServer, hub_env, hub_server  # noqa: F401  the fixture
from tests.processes import python
from tests.study.browser import browser  # noqa: F401  a fixture
from w2s_plugins.errors import run_main
from w2s_plugins.hub.__main__ import main
from w2s_plugins.hub.export import export_model

TOKEN = "hf_" + "s3cretS3cret" * 3
CONFIG = {"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "interpolation": "bilinear",
          "crop_pct": 0.9, "crop_mode": "center"}
NAMES = ["ant", "bee, <b>wasp</b>", "Käfer"]
WRITTEN = {"README.md", "app.py", "requirements.txt", "space.json", "student.onnx"}

pytest.importorskip("onnxscript", reason="pip install -r requirements/onnx.txt")


def make_run(folder: Path, architecture: str) -> None:
    """A run folder that has an export."""
    torch.manual_seed(len(architecture))
    model = timm.create_model(architecture, num_classes=3).eval()
    nn.init.normal_(model.get_classifier().weight)
    export_model(model, folder / "export", CONFIG, {}, class_names=NAMES)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs of a teacher, of an architecture of this package, and its student, of one of timm's."""
    make_run(tmp_path / "out/weak", "w2s_cnn2")
    make_run(tmp_path / "out/strong", "test_resnet")
    Image.radial_gradient("L").resize((60, 50)).convert("RGB").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """Runs a command of w2s-hub in this process; returns its exit code and what it has printed."""
    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hub", *map(str, words)])
        try:
            run_main(main, "hub")
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().out
    return run


def test_a_space_is_written_and_written_again(work: Path, hub_command: Callable[..., tuple[int, str]]) -> None:
    """A folder with a Space has the one that was written last, and nothing of the one before."""
    assert hub_command("space", "out/strong", "demo", "--teacher", "out/weak")[0] == 0
    assert {path.name for path in (work / "demo").iterdir()} == WRITTEN | {"teacher.onnx"}
    assert json.loads((work / "demo/space.json").read_text())["title"] == "strong beside its teacher"
    code, said = hub_command("space", "out/weak/export", "demo")
    assert code == 0 and said.endswith("demo: python demo/app.py shows it\n")
    assert {path.name for path in (work / "demo").iterdir()} == WRITTEN
    assert json.loads((work / "demo/space.json").read_text()) == {"title": "weak", "models": [
        {"role": "student", "name": "weak", "file": "student.onnx"}]}


def test_bad_input(
        work: Path, hub_command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(work / "none"))
    for words, message in (
            (("out/weak", "out"), "out: has something else in it; expected a new folder, or an earlier Space"),
            (("out/weak", "image.png"), "image.png: has something else in it"),
            (("out/weak", "demo", "--teacher", "clip:a/b"), "MODEL clip:a/b: no model of timm; expected a run folder"),
            (("out", "demo"), "MODEL out: neither the folder of a run"),
            (("out/weak", "demo", "--push-to-hub", "me/a b"), "not a Hub id: 'me/a b'"),
            (("out/weak", "demo", "--push-to-hub", "me/a"), "--push-to-hub needs a token"),
            (("out/weak",), "the following arguments are required: FOLDER; see ")):
        code, said = hub_command("space", *words)
        assert code == 2 and said.count("\n") == 1 and said.startswith(f"hub: error: {message}"), said
    assert not (work / "demo").exists()


@pytest.fixture
def address(work: Path, hub_server: HubServer) -> Iterator[str]:  # noqa: F811
    """Where the app is shown that is in the Space on the Hub, alone in a folder."""
    pytest.importorskip("gradio", reason="the page of a Space is not opened: pip install gradio")
    hub_server.add_user("me", TOKEN)
    done = python("-m", "w2s_plugins.hub", "space", "out/strong", "space", "--teacher", "out/weak", "--push-to-hub",
                  "me/demo", "--private", env=hub_env(hub_server, work, TOKEN), cwd=work)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub_server.url}/spaces/me/demo"

    # what lies there says nothing of this machine
    repo = hub_server.repos["spaces/me/demo"]
    assert repo.private
    files = {name: file.data for name, file in repo.commits[repo.branches["main"]].items() if name[0] != "."}
    assert files.keys() == WRITTEN | {"teacher.onnx"}
    for data in files.values():
        assert not any(text.encode() in data for text in (str(work), str(ROOT), TOKEN, "out/weak", ".venv"))
    header = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py")

    (work / "alone").mkdir()
    for name, data in files.items():
        (work / "alone" / name).write_bytes(data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in hub_env(hub_server, work).items() if k != "PYTHONPATH"} | {
        "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(work / "uploads"), "PYTHONUNBUFFERED": "1"}
    with (work / "log").open("w") as log, subprocess.Popen(
            [sys.executable, "app.py"], env=env, cwd=work / "alone", text=True, stdout=subprocess.PIPE,
            stderr=log) as app:
        line = next((line for line in app.stdout if "Running on" in line), None)
        assert line, (work / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        app.kill()


@pytest.mark.slow
def test_a_space_in_a_browser(address: str, work: Path, browser: webdriver.Chrome) -> None:  # noqa: F811
    """Uploaded by hand, an image gets the answers that the models give; the page asks nobody else for anything."""
    expected = []
    for place in ("weak", "strong"):
        student = w2s.load_student(work / "out" / place)
        shares = student(student.transform(Image.open(work / "image.png"))[None]).softmax(1)[0]
        expected.append((NAMES[shares.argmax()], shares.max().item()))
    browser.get(address)
    wait = WebDriverWait(browser, 60)
    wait.until(lambda it: it.find_elements(By.CSS_SELECTOR, "input[type=file]"))[0].send_keys(str(work / "image.png"))
    answers = wait.until(lambda it: (
        found := it.find_elements(By.CSS_SELECTOR, "[data-testid='label-output-value']")) and len(found) == 2 and found)
    assert [answer.text for answer in answers] == [name for name, _ in expected]
    text = browser.find_element(By.TAG_NAME, "body").text
    assert all(f"{share:.0%}" in text for _, share in expected)
    assert "teacher: weak" in text and "student: strong" in text and "strong beside its teacher" in text
    hosts = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)")
    assert set(hosts) == {address.removeprefix("http://")}
