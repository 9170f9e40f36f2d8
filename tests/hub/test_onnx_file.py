"""Models as files of ONNX: what onnxruntime says of images is what the model says."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import w2s_plugins as w2s
from tests.parts import assert_refused, data_config, lines, refusal
from tests.test_documents import ROOT
from w2s_plugins.errors import UserError
from w2s_plugins.hub import onnx_file
from w2s_plugins.hub.__main__ import main
from w2s_plugins.hub.export import export_model
from w2s_plugins.hub.onnx_file import check_onnx, export_onnx
from w2s_plugins.settings.teacher_name import TeacherName
from w2s_plugins.target_kind import SeveralClasses
from w2s_plugins.teachers.kinds import open_classifier
from w2s_plugins.teachers.openers import Opened, Request

for package in onnx_file.PACKAGES:
    pytest.importorskip(package, reason="pip install '.[onnx]'")

CONFIG = data_config(
    32, input_size=(3, 48, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), crop_pct=0.9
)
NAMES = ["ant", "bee, wasp", "Käfer"]


def opened(file: Path) -> Opened:
    return open_classifier(TeacherName.parse(f"onnx:{file}"), Request())


@pytest.mark.parametrize(
    "name, kwargs",
    [("test_resnet", {}), ("test_vit", {"img_size": (48, 32)}), ("w2s_cnn2", {"in_chans": 1})],
)
def test_the_file_is_the_model(name: str, kwargs: dict, tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    channels = kwargs.get("in_chans", 3)
    config = {
        **CONFIG,
        "input_size": (channels, 48, 32),
        "mean": CONFIG["mean"][:channels],
        "std": CONFIG["std"][:channels],
    }
    said = export_onnx(model, config, NAMES, tmp_path / "net.onnx")
    assert f"{channels} x 48 x 32 pixels, 3 classes with names; logits" in said
    found = opened(tmp_path / "net.onnx")
    assert (found.data_config, found.class_names, found.model.num_classes) == (config, NAMES, 3)
    assert onnxruntime.InferenceSession(tmp_path / "net.onnx").get_inputs()[0].shape[0] == "batch"
    for batch in (1, 5):
        images = torch.randn(batch, *config["input_size"])
        torch.testing.assert_close(
            found.model(images), model(images).detach(), rtol=1e-4, atol=1e-5
        )
    data = (tmp_path / "net.onnx").read_bytes()
    assert not any(
        place.encode() in data for place in (str(ROOT), sys.prefix, str(tmp_path), "site-packages")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an export, and photographs beside it."""
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=3).eval()
    nn.init.normal_(student.get_classifier().weight)
    export_model(student, tmp_path / "run/export", CONFIG, {}, class_names=NAMES)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((90, 70)).save(tmp_path / f"photos/{number}.png")
    return tmp_path / "run"


def test_a_run_exported_says_the_same_of_files(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, command: Callable
) -> None:
    """Images are prepared as the file says; and the file is enough for onnxruntime, NumPy and Pillow."""
    monkeypatch.chdir(run.parent)
    for _ in range(2):  # its own file is replaced
        _, out, _ = command(main, "hub", "export", "run", "--onnx", "student.onnx")
    assert out.startswith("student.onnx: 3 x 48 x 32 pixels, 3 classes with names; logits of onnx")
    own, file = (
        w2s.predict(model, "photos", all=True, workers=0) for model in ("run", "onnx:student.onnx")
    )
    assert len(own) == 4 and [row["label"] for row in own] == [row["label"] for row in file]
    ours, theirs = ([row["confidence"] for row in rows] for rows in (own, file))
    assert ours == pytest.approx(theirs, abs=1e-5)
    Image.open("photos/0.png").resize((50, 60)).save("image.jpg", quality=100)
    monkeypatch.setitem(sys.modules, "torch", None)
    exec((ROOT / "examples/onnx_alone.py").read_text(), {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and {line.split(maxsplit=1)[1] for line in said} == set(NAMES)
    monkeypatch.undo()
    student = w2s.load_student(run)
    shares = student(student.transform(Image.open(run.parent / "image.jpg"))[None]).softmax(1)[0]
    assert said[0] == f"{shares.max():.1%} {NAMES[shares.argmax()]}"


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE", 0)
    model = timm.create_model("w2s_cnn2", num_classes=3).eval()
    export_onnx(model, CONFIG, None, tmp_path / "net.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data"}
    images, read = torch.randn(2, 3, 48, 32), opened(tmp_path / "net.onnx").model
    torch.testing.assert_close(read(images), model(images).detach(), rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """A network with something between its image and its answer."""

    num_classes = 3

    def __init__(self, between: Callable[[Tensor], Tensor]):
        super().__init__()
        self.between, self.fc = between, nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.between(images).mean((2, 3)))


@pytest.mark.parametrize(
    "between, message",
    [
        (
            lambda images: images + torch.rand_like(images),
            "net.onnx: not written: logits of .* differ by",
        ),
        (lambda images: images / 0, "not written: logits .* differ by nan"),
        (torch.special.bessel_j0, "net.onnx: cannot be exported: .*bessel_j0"),
    ],
)
def test_what_is_not_the_model_is_not_written(
    between: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_text("an earlier one")
    found = refusal(export_onnx, Odd(between).eval(), CONFIG, None, tmp_path / "net.onnx")
    assert re.search(message, found) and len(found) < 500
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]


def test_a_batch_size_that_became_a_constant_is_noticed(tmp_path: Path) -> None:
    """Two images are traced, and a file that takes two alone says nothing of three."""
    model, file = Odd(lambda images: images).eval(), tmp_path / "net.onnx"
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 8, 8),),
        file,
        dynamo=True,
        verbose=False,
        input_names=[onnx_file.INPUT],
        output_names=[onnx_file.OUTPUT],
    )
    with pytest.raises(Exception, match=r"(?i)dimension"):
        onnx_file._compare(model, (3, 8, 8), file)


BAD = """
run --onnx mine.onnx  ->  --onnx mine.onnx: is there already, and not as this program has
run --onnx net  ->  --onnx net: expected a name that ends with .onnx (nearest: net.onnx)
run --onnx phots/net.onnx  ->  --onnx phots/net.onnx: no folder phots (nearest: photos)
resnet1 --onnx net.onnx  ->  MODEL: unknown model 'resnet1' (nearest: resnet18
onnx:net.onnx --onnx x.onnx  ->  MODEL onnx:net.onnx: no model of timm; expected a run folder
run  ->  the following arguments are required: --onnx
"""


@pytest.mark.parametrize("words, message", lines(BAD))
def test_bad_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, command: Callable, words: str, message: str
) -> None:
    monkeypatch.chdir(run.parent)
    Path("mine.onnx").write_text("of somebody else")
    code, _, said = command(main, "hub", "export", *words.split())
    assert code == 2 and said.count("\n") == 1
    assert said.startswith(f"hub: error: {message}")


def test_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = "--onnx needs packages: pip install onnxscript"
    assert_refused(message, check_onnx, Path("net.onnx"), "--onnx")


def test_thresholds_of_classes_travel(tmp_path: Path) -> None:
    """What an ONNX file says is decided as the model's export decides it; a file may say anything."""
    import onnx

    torch.manual_seed(0)
    model = timm.create_model("w2s_cnn2", num_classes=3).eval()
    file = tmp_path / "net.onnx"
    config = {**CONFIG, "input_size": (3, 16, 16)}
    export_onnx(model, config, NAMES, file, SeveralClasses([0.2, 0.5, 0.9]))
    found = opened(file).target_kind
    assert isinstance(found, SeveralClasses) and found.threshold == [0.2, 0.5, 0.9]

    for odd in ("[2]", "[]", "[true]", '["a"]', "[NaN]"):
        content = onnx.load(file)
        for entry in content.metadata_props:
            if entry.key == "label_thresholds":
                entry.value = odd
        onnx.save(content, tmp_path / "odd.onnx")
        with pytest.raises(UserError, match="expected numbers between 0 and 1"):
            opened(tmp_path / "odd.onnx")
