"""Bad input ends in one line that says what was wrong and what to do, and in exit code 2."""

import json
import os
import pickle
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.e2e.conftest import ROOT, TINY, Done, environment, read_lines, read_run, run_many, run_script
from tests.hub_server import HubServer, hub_env

Run = Callable[..., Done]
CNN = [*TINY, "--model", "w2s_cnn2"]


def distil(weak: Path) -> list[str]:
    return [*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", str(weak),
            "--no-teacher-eval"]


def assert_says(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


def test_missing_package(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert_says(here(*CNN, "--log-wandb").error, "--log-wandb", "pip install wandb")
    assert_says(here(*CNN, "--log-tensorboard").error, "--log-tensorboard", "pip install tensorboard")


# ---------------------------------------------------------------- folders of images


def image_folder(root: Path, **classes: list[str]) -> Path:
    """Image folders: for each split the names of its classes, four images of each."""
    for split, names in classes.items():
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (60 * number, 10 * i, 0)).save(root / split / name / f"{i}.png")
    return root


FOLDER = ["--model", "w2s_cnn2", "--img-size", "8", "--batch-size", "4", "--epochs", "1", "--workers", "0"]


def test_data_folder(here: Run, tmp_path: Path) -> None:
    image_folder(tmp_path / "data", train=["a", "b"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("not a tar file")
    assert_says(here(*FOLDER, "--data-dir", "dataa").error, "--data-dir dataa", "no such folder", "nearest: data")
    assert_says(here(*FOLDER, "--data-dir", "empty").error, "--data-dir empty", "empty", "train")
    assert_says(here(*FOLDER, "--data-dir", "data").error, "'validation'", "found: train", "--val-split")
    assert_says(here(*FOLDER, "--data-dir", "hollow", "--val-split", "").error, "--data-dir hollow", "'train'")
    assert_says(here(*FOLDER, "--data-dir", "file.txt").error, "--data-dir file.txt")
    assert_says(here(*FOLDER, "data", "--train-split", "trian").error, "'trian'", "found: train", "--train-split")


def test_classes_of_splits(here: Run, tmp_path: Path) -> None:
    image_folder(tmp_path / "other", train=["a", "b", "c"], validation=["a", "x"])
    assert_says(here(*FOLDER, "other").error, "different classes", "'x' of 'validation' is none of the 3")
    assert_says(here(*FOLDER, "--num-classes", 5, "other", "--val-split", "").error, "--num-classes 5", "3 classes")


def test_classes_of_teacher(here: Run, weak: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "data", train=["a", "b"], validation=["a", "b"])
    flags = [*FOLDER, "data", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak]
    assert_says(here(*flags).error, "--teacher w2s_cnn2", "10 classes", "student 2", "--teacher-class-map")
    assert_says(here(*flags, "--teacher-class-map", "none.json").error, "--teacher-class-map none.json", "no such file")
    (tmp_path / "map.json").write_text(json.dumps({"0": 0, "1": 2}))
    assert_says(here(*flags, "--teacher-class-map", "map.json").error, "map.json", "student class 2", "0 to 1")
    (tmp_path / "map.json").write_text("{")
    assert_says(here(*flags, "--teacher-class-map", "map.json").error, "map.json", "mapping of classes")


# ---------------------------------------------------------------- files of weights


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


def write_bad_file(kind: str, path: Path, good: Path) -> None:
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-2000])
    elif kind == "text":
        path.write_text("these are no weights")
    elif kind == "bytes":
        path.write_bytes(random.Random(0).randbytes(2000))
    elif kind == "empty":
        path.touch()
    elif kind == "no tensors":
        torch.save({"state_dict": {"a": 1}}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "torch pickle":
        torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Payload(path.with_suffix(".ran"))}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Payload(path.with_suffix(".ran"))))
    elif kind == "truncated safetensors":
        save_file({"a": torch.ones(100)}, path)
        path.write_bytes(path.read_bytes()[:-50])


BAD_FILES = {
    "missing": ["no such file"],
    "truncated": ["truncated"],
    "text": ["cannot be read as a checkpoint"],
    "bytes": ["truncated, damaged, of another kind"],
    "empty": ["cannot be read as a checkpoint: empty"],
    "no tensors": ["no tensors"],
    "list": [],
    "torch pickle": ["refused", "would run code when loaded"],
    "plain pickle": ["would run code"],
    "truncated safetensors": ["truncated"],
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("flag", [
    "--teacher-checkpoint", "--initial-checkpoint", "--finetune", "--pretrained-path", "--resume"])
def test_bad_file(here: Run, weak: Path, tmp_path: Path, flag: str, kind: str) -> None:
    path = tmp_path / ("bad.safetensors" if "safetensors" in kind else "bad.pth.tar")
    write_bad_file(kind, path, weak / "last.pth.tar")
    teacher = ["--teacher", "w2s_cnn2", "--no-teacher-eval"] if flag == "--teacher-checkpoint" else []
    done = here(*CNN, *teacher, flag, path)
    expected = [] if flag == "--resume" and kind in ("no tensors", "truncated safetensors") else BAD_FILES[kind]
    assert_says(done.error, flag, str(path), *expected)
    assert not [word for word in ("weights_only", "PytorchStreamReader", "miniz", "trust") if word in done.error]
    assert not path.with_suffix(".ran").exists()
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").rglob("*.pth.tar"))


def test_the_payload_would_run(tmp_path: Path) -> None:
    """The two pickles above are armed: an unsafe reader runs them."""
    for kind in ("torch pickle", "plain pickle"):
        path = tmp_path / f"{kind}.pth"
        write_bad_file(kind, path, path)
        if kind == "torch pickle":
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
        assert path.with_suffix(".ran").exists()


def test_other_architecture(here: Run, weak: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_vit", num_classes=10, img_size=8, patch_size=4).state_dict(), other)
    wider = tmp_path / "wider.pth"
    state = {k: torch.cat([v, v]) if v.ndim else v for k, v in timm.create_model(
        "w2s_cnn2", num_classes=10).state_dict().items()}
    torch.save(state, wider)
    teacher = [*CNN, "--teacher", "w2s_cnn2", "--teacher-checkpoint"]
    for flags, flag in ((teacher, "--teacher-checkpoint"), ([*CNN, "--initial-checkpoint"], "--initial-checkpoint")):
        assert_says(here(*flags, other).error, flag, "other.pth", "0 of", "missing", "unexpected", "cls_token")
        message = here(*flags, wider).error
        name, shape = next((k, v.shape) for k, v in state.items() if v.ndim == 4)
        assert_says(message, flag, "wider.pth", name, str(tuple(shape)), f"expected ({shape[0] // 2},")
    message = here(*CNN, "--pretrained-path", other).error
    assert_says(message, "--pretrained-path", "other.pth", "none of its tensors", "cls_token", "expected")


def test_folder_without_weights(here: Run, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    flags = [*CNN, "--teacher", "w2s_cnn2", "--teacher-checkpoint", "bare"]
    assert_says(here(*flags).error, "--teacher-checkpoint bare", "no checkpoint", "last.pth.tar")
    assert_says(here(*CNN, "--resume", "bare").error, "--resume bare", "no checkpoint", "last.pth.tar")
    assert_says(here(*TINY, "--model", "local-dir:bare").error, "local-dir:bare", "config.json")
    assert_says(here(*CNN, "--teacher", "local-dir:bare").error, "--teacher local-dir:bare", "config.json")
    assert_says(here(*CNN, "--teacher", "w2s_cnn2").error, "--teacher w2s_cnn2", "no pretrained weights")


# ---------------------------------------------------------------- run folders


@pytest.fixture
def finished(here: Run, tmp_path: Path) -> Path:
    """Run folder of one epoch of two."""
    here(*CNN, "--output", tmp_path, "--experiment", "run", "--stop-epoch", 1).ok()
    return tmp_path / "run"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != ".lock"}  # which says who was there last


def test_run_exists(here: Run, finished: Path) -> None:
    before = snapshot(finished)
    flags = [*CNN, "--output", finished.parent, "--experiment", "run"]
    assert_says(here(*flags).error, str(finished), "--resume auto", "--experiment")
    assert snapshot(finished) == before
    here(*flags, "--resume", "auto").ok()


@pytest.mark.parametrize(("changed", "parts"), [
    (["--model", "w2s_cnn5"], ["--model w2s_cnn2 -> w2s_cnn5"]),
    (["--img-size", "16"], ["--img-size 8 -> 16"]),
    (["--model-ema"], ["--model-ema False -> True"]),
    (["--gp", "max", "--resume-changes", "gp"], ["--gp None -> max"]),
])
def test_resume_of_another_model(here: Run, finished: Path, changed: list[str], parts: list[str]) -> None:
    before = snapshot(finished)
    for resume in ("auto", finished, finished / "last.pth.tar"):
        done = here(*CNN, "--output", finished.parent, "--experiment", "run", "--resume", resume, *changed)
        assert_says(done.error, "--resume", str(finished / "last.pth.tar"), "--initial-checkpoint", *parts)
    assert snapshot(finished) == before


def test_resume_without_name(here: Run) -> None:
    assert_says(here(*CNN, "--resume", "auto").error, "--resume auto", "--experiment")
    assert_says(here(*CNN, "--resume", "nowhere").error, "--resume nowhere", "no such file")


def test_resume_of_a_foreign_checkpoint(here: Run, weak: Path, tmp_path: Path) -> None:
    """Weights alone, or another project's dictionary, are no training checkpoint."""
    torch.save(read_run(weak)["state_dict"], tmp_path / "plain.pth")
    assert_says(here(*CNN, "--resume", "plain.pth").error, "--resume plain.pth", "not a training checkpoint")
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    assert_says(here(*CNN, "--resume", "plain.safetensors").error, "--resume plain.safetensors")
    torch.save({"state_dict": {}, "epoch": 0, "optimizer": {}}, tmp_path / "bare.pth")
    assert_says(here(*CNN, "--resume", "bare.pth").error, "--resume bare.pth", "does not fit", "Missing key")


def test_no_permission(here: Run, tmp_path: Path) -> None:
    """Root may write anywhere, but not into a file."""
    (tmp_path / "taken").write_text("a file")
    for flags in (["--output", "taken"], ["--output", "taken/deeper"], ["--output", ".", "--experiment", "taken"]):
        assert_says(here(*CNN, *flags).error, "--output", "taken", "cannot be written to", "another folder")
    assert (tmp_path / "taken").read_text() == "a file"
    assert_says(here(*CNN, "--output", "/proc/none").error, "--output /proc/none", "cannot be written to")


# ---------------------------------------------------------------- a full disk

FILL = '''
import os
from w2s_plugins.losses import register_loss

calls = 0

@register_loss("fill_{when}")
def fill(inputs):
    """Fills the disk of the run folder at one of its calls, if there is a file that tells it to."""
    global calls
    calls += 1
    if calls == {when} and os.path.exists("armed"):
        with open("{disk}/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    return {{"kd": inputs.student_logits.sum() * 0}}
'''


@pytest.mark.parametrize("when", [1, 4, 5, 8])
def test_disk_full(here: Run, weak: Path, disk: Path, tmp_path: Path, when: int) -> None:
    """At the first log line, at the end of an epoch of four steps, inside the second epoch, at the end of it."""
    (tmp_path / "fill.py").write_text(FILL.format(when=when, disk=disk))
    (tmp_path / "armed").touch()
    flags = [*distil(weak), "--plugins", "fill.py", "--loss", f"fill_{when}", "--output", disk, "--experiment", "run"]
    done = here(*flags)  # training goes on to its end, and the export does not fit
    assert_says(done.error, str(disk / "run"), "No space left", "go on with --resume")
    files = snapshot(disk / "run")
    assert not [name for name in files if "tmp" in name or ".new" in name], files.keys()
    assert "args.yaml" in files and "result.json" not in files  # that says that a run is finished
    for line in read_lines(disk / "run" / "metrics.jsonl")[:-1]:
        assert line["event"] in ("train", "eval")
    if when > 4:
        assert read_run(disk / "run")["epoch"] == 0
    if when == 8:
        (disk / "filler").unlink()
        (tmp_path / "armed").unlink()
        run_script(*flags, "--resume", "auto", cwd=tmp_path).ok()
        events = [(line["event"], line["epoch"]) for line in read_lines(disk / "run" / "metrics.jsonl")]
        assert events == [("train", 0)] * 4 + [("eval", 0)] + [("train", 1)] * 4 + [("eval", 1)]


def test_disk_full_before_training(here: Run, weak: Path, disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    flags = [*distil(weak), "--output", disk, "--experiment", "run"]
    assert_says(here(*flags).error, str(disk / "run"), "cannot be written", "No space left")
    assert_says(here(*flags, "--teacher-targets", "cached").error, str(disk / "run"), "cannot be written")


# ---------------------------------------------------------------- a loss that is not finite

BREAK = '''
import torch
from w2s_plugins.losses import register_loss

calls = 0

@register_loss("break_{name}", summary="{value} from call {first} on")
def break_(inputs):
    global calls
    calls += 1
    bad = {first} <= calls < {last}
    return {{"soft": inputs.student_logits.square().mean(), "edge": inputs.student_logits.mean() * (
        float("{value}") if bad else 1.0)}}
'''


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_loss_not_finite(here: Run, weak: Path, tmp_path: Path, value: str) -> None:
    """The first epoch is good, the third step of the second one breaks."""
    (tmp_path / "break.py").write_text(BREAK.format(name=value, value=value, first=6, last=1000))
    flags = [*distil(weak), "--plugins", "break.py", "--loss", f"break_{value}", "--nan-patience", 3, "--epochs", 3,
             "--output", tmp_path, "--experiment", "run"]
    done = here(*flags)
    assert_says(done.error, "step 7", "not finite", "learning rate 0.0", "3 bad steps", "--nan-patience", "--lr")
    assert "step 5: loss or gradient is not finite" in done.err and "(1 of 3 in a row)" in done.err
    saved = read_run(tmp_path / "run")
    assert saved["epoch"] == 0 and all(v.isfinite().all() for v in saved["state_dict"].values())
    assert not (tmp_path / "run" / "export").exists() and not (tmp_path / "run" / "result.json").exists()


def test_bad_steps_are_skipped(here: Run, weak: Path, tmp_path: Path) -> None:
    """Two bad steps of a patience of three: the run goes on, and its weights and averages stay finite."""
    (tmp_path / "break.py").write_text(BREAK.format(name="twice", value="nan", first=2, last=4))
    here(*distil(weak), "--plugins", "break.py", "--loss", "break_twice", "--nan-patience", 3, "--output", tmp_path,
         "--experiment", "run").ok()
    assert all(v.isfinite().all() for v in read_run(tmp_path / "run")["state_dict"].values())
    assert all(line["train"]["loss"] < 100 for line in read_lines(tmp_path / "run" / "metrics.jsonl")
               if line["event"] == "eval")


def test_diverged_at_the_end(here: Run, tmp_path: Path) -> None:
    """A run too short for patience to end: the broken model is neither saved nor exported."""
    flags = [*CNN, "--output", tmp_path, "--experiment", "run"]
    here(*flags, "--stop-epoch", 1).ok()
    before = snapshot(tmp_path / "run")
    done = here(*flags, "--lr", 1e30, "--no-resume-opt", "--resume", "auto")
    assert_says(done.error, "epoch 2", "not finite", "learning rate 1e+30", "not saved", "--lr")
    after = snapshot(tmp_path / "run")
    assert all(after[name] == before[name] for name in before if name not in ("args.yaml", "metrics.jsonl"))


# ---------------------------------------------------------------- as real processes

def test_hub(weak: Path, tmp_path: Path, hub_server: HubServer) -> None:
    hub_server.add_user("me", token="hf_me")
    hub_server.add_model("me/weak", weak / "export")
    hub_server.add_model("me/private", weak / "export", private=True)
    hub_server.add_model("me/gated", weak / "export", gated=True)
    env = hub_env(hub_server, tmp_path)
    plugin = ["--plugins", "w2s_plugins.models", "--epochs", "1", "--no-teacher-eval"]
    teacher = [*TINY, "--model", "w2s_cnn5", *plugin, "--teacher"]
    student = [*TINY, *plugin, "--pretrained", "--model"]
    good, absent, private, gated, revision, missing, absent_kd = run_many([
        [*teacher, "hf-hub:me/weak"],
        [*teacher, "hf-hub:me/weka"],
        [*teacher, "hf-hub:me/private"],
        [*student, "hf-hub:me/gated"],
        [*teacher, "hf-hub:me/weak@maim"],
        [*student, "hf-hub:me/weka"],
        [*TINY, "--model", "w2s_cnn2", *plugin, "--kd-model-name", "hf-hub:me/weka"],
    ], env, tmp_path)
    good.ok()
    assert_says(absent.error, "--teacher hf-hub:me/weka: no such repository", "hf auth login")
    assert_says(private.error, "no such repository", "hf auth login", "HF_TOKEN")
    assert_says(gated.error, "--model hf-hub:me/gated", "gated", "ask for access")
    assert_says(revision.error, "hf-hub:me/weak@maim", "no such revision")
    assert_says(missing.error, "--model hf-hub:me/weka", "no such repository")
    assert_says(absent_kd.error, "--kd-model-name hf-hub:me/weka", "no such repository")

    hub_server.__exit__()
    cached, unreachable, push = run_many([
        [*teacher, "hf-hub:me/weak"],
        [*teacher, "hf-hub:me/other"],
        [*TINY, "--model", "w2s_cnn2", "--epochs", "1", "--push-to-hub", "me/new", "--output", str(tmp_path),
         "--experiment", "pushed"],
    ], {**env, "HF_TOKEN": "hf_unused"}, tmp_path)
    cached.ok()
    assert_says(unreachable.error, "cannot be reached")
    assert_says(push.error, "push to me/new", "w2s_plugins.hub push")
    assert (tmp_path / "pushed" / "result.json").exists()


def test_process(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "train_w2s.py"), *CNN, "--loss-fn", "x"],
                          capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert_says(Done(done.returncode, done.stdout, done.stderr).error, "'--loss-fn'", "nearest: --loss")


def test_debug_shows_the_traceback(script: Run) -> None:
    done = script(*CNN, "--opt-kwargs", "nesterof=1", "--debug")
    assert done.code == 2 and "Traceback" in done.err
    assert done.err.strip().splitlines()[-1].startswith("train_w2s.py: error: --opt")


def test_two_ranks(ranks: Run, tmp_path: Path) -> None:
    """After the processes have met: no traceback, and every one ends."""
    done = ranks(*CNN, "--output", "/proc/none", processes=2, cwd=tmp_path)
    assert 0 not in done.codes and "train_w2s.py: error: --output /proc/none" in done.err, done.err
    assert "Traceback" not in done.err


def test_torchrun(script: Run) -> None:
    """The same before they have met."""
    done = script(*CNN, "--model", "resnet81", processes=2, timeout=60)
    assert done.code != 0
    assert "train_w2s.py: error:" in done.err, done.err
    ours = [line for line in done.err.splitlines() if "train_w2s.py" in line and line.lstrip().startswith("File ")]
    assert not ours, done.err
