"""Teachers of transformers, open_clip, onnxruntime and plugins, from the command line to the record."""

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hub_server import HubServer, hub_env
from tests.parts import write_folder
from tests.teacher_models import CLIP, NAMES, make_clip, make_hf, make_onnx, register_clip
from w2s_plugins.files import file_sha256

from .conftest import BRIEF, ROOT, TINY, Run, read_events, read_result, run_many

PLAIN = [*BRIEF, "--model w2s_cnn2 --batch-size 8 --epochs 1 --lr 0.1 --no-aug"]
ON_DATA = ["--data-dir data --train-slice 0:16"]
FLAGS = [*ON_DATA, *PLAIN, "--loss kd"]
TEACHERS = {
    "hf": "hf:vit",
    "clip": f"clip:{CLIP}/clip.safetensors",
    "onnx": "onnx:net.onnx",
    "function": "colours:predict",
}
EPISODES = ["--few-shot-eval 3x1:5 --few-shot-split validation --queries 2"]
ALL = ",".join(TEACHERS.values())
pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_folder(folder / "data", {"train": 24, "validation": 24})
    make_hf(folder / "vit")
    make_clip(folder)
    make_onnx(folder / "net.onnx")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with teachers and images, which is the current one."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    register_clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record_of(name: str) -> dict:
    return read_result(f"output/train/{name}")


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("hf", ["--amp --model-ema", *EPISODES]),
        ("clip", ["--task-loss-weight 0", "--prompts", "{}|one {}", *EPISODES]),
        ("onnx", ["--teacher-targets cached-views:1 --amp", *EPISODES]),
        ("function", ["--linear-probe"]),
    ],
)
def test_training(here: Run, place: Path, kind: str, flags: list) -> None:
    done = here(
        *FLAGS, "--plugins colours.py", "--teacher", TEACHERS[kind], *flags, "--experiment run"
    ).ok()
    (source,) = record_of("run")["teacher"]["models"]
    assert (
        source["kind"] == ("colours" if kind == "function" else kind)
        and len(source["source"]["sha256"]) == 64
    )
    assert (source["source"].get("prompts") == ["{}", "one {}"]) == (kind == "clip")
    card = Path("output/train/run/export/README.md").read_text()
    assert TEACHERS[kind] in card and source["source"]["sha256"] in card
    assert done.err.count("matched by name") == (kind == "hf")
    if kind != "function":  # which have features, and which has none
        figures = record_of("run")["few_shot"]
        assert figures["metrics"]["3x1"] > 0 and (figures["teacher"] is None) == (kind == "onnx")


def test_all_kinds_together_are_stored_and_found_again(here: Run, place: Path) -> None:
    shutil.copytree("vit", "moved")
    flags = [*FLAGS, "--plugins colours.py --teacher-targets cached --teacher-assign student"]
    assert here(*flags, "--teacher", ALL, "--experiment first").ok().err.count("to write to") == 4
    stored = {folder: folder.stat().st_mtime_ns for folder in Path("output/targets").glob("*/*")}
    again = here(*flags, "--teacher", ALL.replace("hf:vit", "hf:moved"), "--experiment second").ok()
    assert "to write to" not in again.err
    assert stored == {
        folder: folder.stat().st_mtime_ns for folder in Path("output/targets").glob("*/*")
    }
    first, second = record_of("first"), record_of("second")
    assert first["last"] == second["last"] and len(first["teacher"]["models"]) == 4
    assert (
        0
        < sum(read_events("output/train/first")[-1]["train"][f"teacher{n}_share"] for n in range(4))
        < 1 + 1e-6
    )
    make_onnx(Path("net.onnx"), seed=1)
    others = here(*flags, "--teacher", ALL, "--prompts", "a {}", "--experiment third").ok()
    assert others.err.count("to write to") == 2


def test_images_without_labels_and_names_alone(here: Run, place: Path) -> None:
    flags = [*PLAIN, "--loss kd --unlabeled data/train", "--teacher", TEACHERS["clip"]]
    done = here(*flags, "--class-names class1,a_cat,class0 --experiment run").ok()
    assert "3 classes" in done.err
    assert json.loads(Path("output/train/run/export/config.json").read_text())["label_names"] == [
        "class1",
        "a_cat",
        "class0",
    ]
    assert "give --class-names FILE" in here(*flags, "--experiment other").error
    flags[-1] += ",hf:vit"
    done = here(*flags, "--experiment named").ok()
    assert (
        done.err.count("Teacher hf:vit: 3 classes") == 1
    )  # opened once, for its classes and its answers
    assert json.loads(Path("output/train/named/export/config.json").read_text())[
        "label_names"
    ] == list(NAMES)


@pytest.fixture
def weak_run(here: Run, place: Path, made_once: Callable) -> str:
    def train() -> str:
        here(*ON_DATA, *PLAIN, "--experiment weak").ok()
        return "output/train/weak"

    return made_once("weak run", train)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("", "local-dir:RUN/export"),
        ("/export", "local-dir:RUN/export"),
        ("/last.pth.tar", "checkpoint:RUN/last.pth.tar"),
    ],
)
def test_the_folder_of_a_run_is_a_teacher(here: Run, weak_run: str, name: str, taken: str) -> None:
    teachers = f"{weak_run}{name},hf:vit,w2s_cnn2"
    here(*FLAGS, "--teacher", teachers, "--teacher-checkpoint", weak_run, "--experiment s").ok()
    first, _, third = record_of("s")["teacher"]["models"]
    file = "last.pth.tar" if name.endswith(".tar") else "export/model.safetensors"
    assert first["name"] == taken.replace("RUN", weak_run) and first["params"] == third["params"]
    assert first["source"]["sha256"] == file_sha256(Path(weak_run, file))


def test_what_the_run_of_a_teacher_says_counts(here: Run, weak_run: str) -> None:
    """And so does what is not said."""
    name = f"{weak_run}/last.pth.tar"
    protocol = [*FLAGS, "--protocol w2s --weak-fraction 0 --experiment p"]
    error = here(*protocol, "--teacher", name).error
    assert "samples that it is trained on are among the student's" in error
    shutil.copy(name, "output/train/moved.pth.tar")
    error = here(*FLAGS, "--teacher ./output/train/moved.pth.tar").error
    assert "unknown model './output/train/moved.pth.tar'" in error
    torch.save({"state_dict": {}}, name)
    assert "does not say which model it is of" in here(*FLAGS, "--teacher", name).error
    Path(name).unlink()
    error = here(*FLAGS, "--teacher", f"checkpoint:{name}").error
    assert f"--teacher checkpoint:{name}: no such file (nearest: " in error


def test_selection_and_protocol(here: Run, place: Path) -> None:
    here(
        *FLAGS,
        "--teacher onnx:net.onnx --clean-select entropy:0.5 --clean-select-model hf:vit",
        "--experiment selected",
    ).ok()
    digits = [*TINY, "--train-slice 0:400 --model w2s_cnn2 --protocol w2s --weak-fraction 0"]
    here(*digits, "--teacher", TEACHERS["clip"], "--experiment p").ok()
    assert (
        record_of("p")["pgr"] is not None
        and record_of("p/student")["teacher"]["models"][0]["kind"] == "clip"
    )
    assert here(
        *FLAGS, "--protocol w2s --weak-fraction 0 --teacher onnx:none.onnx --experiment q"
    ).error.endswith("--teacher onnx:none.onnx: no such file")


def test_features_of_a_teacher_that_has_none(here: Run, place: Path) -> None:
    assert "has no forward_intermediates" in here(*FLAGS, "--teacher hf:vit --loss fitnet").error


@pytest.mark.slow  # transformers is imported anew, for another Hub
def test_a_repository_of_transformers(place: Path, hub_server: HubServer) -> None:
    commit = hub_server.add_model("me/vit", place / "vit")
    done, *wrong = run_many(
        [
            [*map(str, FLAGS), "--teacher", name, "--experiment", str(i)]
            for i, name in enumerate(("hf:me/vit@main", "hf:me/vat", "hf:me/vit@no"))
        ],
        hub_env(hub_server, place),
        place,
    )
    (source,) = done.ok() and record_of("0")["teacher"]["models"]
    assert source["source"] == {"repo": "me/vit", "revision": commit}
    assert wrong[0].error.startswith("--teacher hf:me/vat: no such repository on the Hub")
    assert wrong[1].error == "--teacher hf:me/vit@no: the repository has no such revision"


# ---------------------------------------------------------------- the teachers of examples/


def example(name: str) -> str:
    return (ROOT / "examples" / name).read_text()


def test_scikit_learn_on_features(here: Run, place: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        "labelled.npz",
        images=rng.random((12, 3, 64, 64), dtype=np.float32),
        labels=np.arange(12) % 3,
    )
    code = example("teacher_function.py").replace('"resnet10t", pretrained=True', '"test_resnet"')
    Path("birds.py").write_text(code)
    here(*FLAGS, "--plugins birds.py --teacher birds:linear --experiment run").ok()
    Path("mine.py").write_text(example("teacher_prefix.py").replace("resnet10t", "test_resnet"))
    here(*FLAGS, "--plugins mine.py --teacher mine:something --experiment mine").ok()
    assert record_of("mine")["teacher"]["models"][0]["kind"] == "mine"


class Labeller(BaseHTTPRequestHandler):
    """A service that says "3" of every image, answers every seventh time with an error, and fails after ``limit``."""

    limit = 300
    asked = said = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Labeller.asked += 1
        good = Labeller.said < self.limit and Labeller.asked % 7 != 0
        Labeller.said += good
        self.send_response(200 if good else 503)
        self.end_headers()
        if good:
            self.wfile.write(
                json.dumps({"probabilities": [0.01] * 3 + [0.91] + [0.01] * 6}).encode()
            )

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def test_a_service_that_fails_loses_no_answer(
    here: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Labeller)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LABELLER", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = example("service.py")
    Path("service.py").write_text(service.replace("(1, 4, 16, 64, None)", "(0, 0, None)"))
    flags = [
        *TINY,
        "--train-slice 0:400 --epochs 1 --no-teacher-eval --model w2s_cnn2 --loss kd",
        "--plugins service.py --teacher service:ask --teacher-targets cached",
        "--experiment",
    ]
    try:
        assert (
            here(*flags, "first").error
            == "service:ask: HTTPError: HTTP Error 503: Service Unavailable"
        )
        stored = len(list(Path("output/targets").glob("*/view*.safetensors")))
        Labeller.limit, Labeller.said = 10**6, 0
        here(*flags, "second").ok()
    finally:
        server.shutdown()
        server.server_close()
    assert stored == 1 and Labeller.said == 1 + (400 - 256 + 15) // 16 * 16
