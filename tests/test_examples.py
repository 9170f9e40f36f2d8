"""The examples run, and their students are better than their teachers."""

import os
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import w2s_plugins as w2s
from tests.e2e.conftest import ROOT, environment
from tests.parts import data_config
from tests.processes import python
from w2s_plugins.hub.onnx_file import export_onnx

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("name", ["pytorch_loop", "timm_loop", "hf_trainer"])
def test_a_loop_of_ones_own(tmp_path: Path, name: str) -> None:
    if name == "hf_trainer":
        pytest.importorskip("accelerate", reason="the Trainer of transformers is not installed")
    done = python(EXAMPLES / f"{name}.py", env=environment(PYTHONPATH=str(ROOT)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    teacher, student = (
        float(re.search(rf"^{who}: ([\d.]+) %", done.stdout, re.M)[1])
        for who in ("teacher", "student")
    )
    assert student > teacher


def test_photographs_on_which_two_tables_disagree(tmp_path: Path) -> None:
    """Each is drawn: the colours of both are in the picture."""
    for name, colour in {"1.png": (200, 0, 0), "2.png": (0, 0, 200)}.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    (tmp_path / "disagree.csv").write_text(
        "filename,label,confidence,against_label,against_confidence\n"
        "1.png,ant,0.9,bee,0.5\n2.png,bee,0.8,ant,0.5\n"
    )
    done = python(
        EXAMPLES / "disagreements.py",
        "disagree.csv",
        ".",
        "--output",
        "drawn.png",
        env={},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    colours = {
        colour for _, colour in Image.open(tmp_path / "drawn.png").convert("RGB").getcolors(1 << 20)
    }
    assert colours >= {(200, 0, 0), (0, 0, 200)}


def test_near_duplicates_and_outliers(tmp_path: Path) -> None:
    """A copy by JPEG is the nearest, and the one image without noise is unlike all others."""
    rng, photos = np.random.default_rng(0), tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        noise = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"{number:02}.png")
    Image.open(photos / "03.png").save(photos / "copy.jpg", quality=95)
    Image.new("RGB", (50, 40), (0, 0, 200)).save(photos / "odd.png")
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    features = w2s.predict(
        f"local-dir:{tmp_path / 'model'}", photos, features=tmp_path / "f.parquet", workers=0
    )
    command = [EXAMPLES / "duplicates_and_outliers.py", features, photos, "--output", "look.png"]
    done = python(*command, env={}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {*lines[1][1:]} == {"03.png", "copy.jpg"}
    assert lines[lines.index(["outlier", "filename"]) + 1][1] == "odd.png"
    colours = Image.open(tmp_path / "look.png").convert("RGB").getcolors(1 << 20)
    assert (0, 0, 200) in {colour for _, colour in colours}
    assert len(pd.read_csv(tmp_path / "look.csv")) == 14


def test_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says of an image what the model says."""
    for package in ("gradio", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the page of a Space is not made")
    shutil.copy(EXAMPLES / "space/app.py", tmp_path)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    config = data_config(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), crop_pct=0.9)
    export_onnx(model, config, ["ant", "ant", "bee"], tmp_path / "student.onnx")
    app = runpy.run_path(str(tmp_path / "app.py"))
    page = app["make_page"](sorted(tmp_path.glob("*.onnx")))
    assert [block.label for block in page.blocks.values() if block.get_block_name() == "label"] == [
        "student"
    ]
    image = Image.radial_gradient("L").resize((60, 50))
    pixels = timm.data.create_transform(**config)(image.convert("RGB"))
    expected = model(pixels[None]).softmax(1)[0].tolist()
    answer = app["Classifier"](tmp_path / "student.onnx")(image)
    assert answer == pytest.approx(
        dict(zip(["ant (class 0)", "ant (class 1)", "bee"], expected)), abs=1e-5
    )


@pytest.mark.slow
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel, as a reader runs it: log lines and results are in the cells."""
    nbformat, nbclient, _ = (
        pytest.importorskip(name, reason="notebooks are not run")
        for name in ("nbformat", "nbclient", "ipykernel")
    )
    for key, value in environment(PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}").items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(EXAMPLES / "start.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = [
        "".join(part.get("text") or part["data"]["text/plain"] for part in cell.outputs)
        for cell in (notebook.cells)
        if cell.cell_type == "code"
    ]
    red = {
        line[9:]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for part in cell.outputs
        if part.get("name") == "stderr"
        for line in part["text"].splitlines()
    }
    assert all(line.startswith("WARNING") for line in red), red
    assert said[0] == "" and "epoch 5/5 done: loss" in said[1], said
    weak, student, ceiling, direct = map(float, re.findall(r"([\d.]+) %", said[2]))
    assert weak < student < ceiling and weak < direct < ceiling
    assert said[3].count("'filename'") == 8 and "it says" in said[4] and "tensor(" in said[5]
    assert said[6].startswith("w2s.train: unknown key 'los' (nearest: loss")
