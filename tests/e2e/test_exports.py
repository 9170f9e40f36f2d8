"""Exports of all kinds: timm, transformers and ONNX Runtime say the same of an image. And what cards say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.parts import write_digits
from w2s_plugins.hub import __main__ as hub

from .conftest import BRIEF, TINY, Run, read_result, taught

for package in ("transformers", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="pip install '.[hf,onnx]'")

NAMES = ["ant", "bee, wasp", "Käfer", "ding", "e: f", "g/h", "'i'", "j k", "LABEL_0", "z"]
SIZE = ["--img-size 32 --epochs 1"]
KINDS = {
    "plain": [
        "--model test_convnext",
        *SIZE,
    ],  # has parameters that transformers would rename, if they were its own
    "LoRA merged": ["--model test_vit", *SIZE, "--tune lora:rank=2"],
    "linear probe": ["--model test_efficientnet", *SIZE, "--linear-probe --crop-pct 0.8"],
    "names of classes": [
        "--model test_resnet",
        *SIZE,
        "--mean 0.4 0.5 0.6 --interpolation bilinear",
    ],
    "network of this package": [
        "--model w2s_cnn5"
    ],  # transformers knows it once w2s_plugins.models is imported
}


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_loads_it_has_the_same_logits(
    kind: str, here: Run, weak: Path, tmp_path: Path
) -> None:
    """The same images prepared by timm and by transformers are equal, logits to 1e-5, to 1e-4 of ONNX Runtime."""
    from onnxruntime import InferenceSession
    from transformers import AutoImageProcessor, TimmWrapperForImageClassification, pipeline

    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    names = ["--class-names names.json"] if kind == "names of classes" else []
    here(*TINY, *KINDS[kind], *taught(weak), *names, "--experiment run").ok()
    folder = tmp_path / "output/train/run/export"
    record = read_result(folder.parent)["model"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))

    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(by_timm), is_training=False
    )
    batch = AutoImageProcessor.from_pretrained(folder)(image)["pixel_values"]
    assert torch.equal(batch, transform(image)[None])
    with torch.inference_mode():
        expected = by_timm(batch)
        wrapper = TimmWrapperForImageClassification.from_pretrained(folder).eval()
        torch.testing.assert_close(wrapper(batch).logits, expected, rtol=1e-5, atol=1e-5)
    hub.export(record["architecture"], tmp_path / "run.onnx", str(folder.parent), [])
    (logits,) = InferenceSession(tmp_path / "run.onnx").run(None, {"images": batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)

    assert record["class_names"] == (NAMES if names else list("0123456789"))
    said = {
        row["label"]: row["score"]
        for row in pipeline("image-classification", str(folder))(image, top_k=10)
    }
    assert said == pytest.approx(
        dict(zip(record["class_names"], expected[0].softmax(0).tolist())), abs=1e-5
    )


def test_the_card_says_on_what_and_beside_whom_figures_were_measured(
    here: Run, weak: Path, tmp_path: Path, command: Callable
) -> None:
    """Of training on images without labels, and of evaluations on other data beside another teacher, added later."""
    shutil.copytree(weak, tmp_path / "my models/weak")
    write_digits(
        180,
        lambda number, label: (
            tmp_path
            / (
                "data/photos"
                if number < 100
                else f"data/grocery/{'test' if number < 140 else 'validation'}/{label}"
            )
        ),
    )
    Path("data/given.csv").write_text(
        "filename,label\n"
        + "".join(
            f"{path.name},{number % 10}\n"
            for number, path in enumerate(Path("data/photos").iterdir())
        )
    )
    here(
        *BRIEF,
        "--unlabeled data/photos --data-dir data/grocery --val-slice 0:30",
        "--model w2s_cnn2",
        "--teacher",
        "my models/weak,labels:data/given.csv",
        "--loss kd+elr --epochs 1 --output out --experiment run",
    ).ok()
    shutil.copytree(weak, "out/other")
    for name, *flags in (
        (
            "test.json",
            "--data-dir",
            "data/grocery",
            "--split",
            "test",
            "--val-slice",
            "",
            "--teacher",
            "out/other",
        ),
        ("train.json", "--dataset", "w2s/digits", "--data-dir", "", "--split", "train"),
        ("shots.json", "--few-shot", "3x1:9", "--queries", 1, "--split", "test", "--val-slice", ""),
    ):
        here(
            "--checkpoint out/run",
            *flags,
            "--results-file",
            name,
            "--results-format json --workers 0",
            script="validate",
        ).ok()
    first = Path("out/run/export/README.md").read_text()
    code, out, _ = command(
        hub.main, "hub", "card", "out/run", "test.json", "train.json", "shots.json"
    )
    assert (code, out) == (0, "out/run/export/README.md\n")
    card = Path("out/run/export/README.md").read_text()

    own, (test, train) = (
        read_result("out/run")["metrics"],
        (json.loads(Path(name).read_text()) for name in ("test.json", "train.json")),
    )
    assert [
        (r.dataset_name, r.dataset_split, r.metric_value)
        for r in ModelCard(card).data.eval_results[::2]
    ] == [
        ("grocery", "validation[0:30]", own["top1"]),
        ("grocery", "test", test["top1"]),
        ("digits", "train[0:30]", train["top1"]),
    ]
    assert ModelCard(card).data.datasets is None
    assert "# `w2s_cnn2` trained on `photos` with the labels of `weak,labels:given.csv`" in card
    results = card.split("## Results")[1].split("## Teacher")[0].split("Measured on ")[1:]
    weak_in, other_in = (
        [f"| teacher `{name}` |" in part for part in results] for name in ("weak", "other")
    )
    assert [*zip((part.split(":\n")[0] for part in results), weak_in, other_in)] == [
        ("`grocery`, split `validation[0:30]` (n = 30)", True, False),
        ("`grocery`, split `test` (n = 40)", False, True),
        ("`w2s/digits`, split `train[0:30]` (n = 30)", False, False),
        ("`grocery`, split `test` (n = 40)", False, False),
    ]
    assert (
        f"| student (this model) | {test['top1']:.2f} |" in results[1]
        and "3-way 1-shot (%)" in results[3]
    )
    assert f"| {test['teacher_top1']:.2f} |" in results[1].split("| teacher `other`")[1]
    assert (
        "- the loss `kd`: `Hinton et al. 2015, 1503.02531`, [arXiv:1503.02531](https://arxiv.org/abs/1503"
        in card
    )
    assert "- the loss `elr`: `Liu et al. 2020, " in card
    assert not any(place in card for place in ("data/", "my models/", "out/", str(tmp_path)))

    # later figures take the place of earlier ones of the same data, settings and kind, whatever the folder is called
    here(
        "--checkpoint out/run --teacher out/other --results-file val.json",
        "--results-format json",
        script="validate",
    ).ok()
    val = json.loads(Path("val.json").read_text())
    assert val["top1"] == round(own["top1"], 4)
    for number, row in enumerate(({**test, "top1": 12.5}, {**val, "top1": 25.0})):
        Path(f"{number}.json").write_text(json.dumps(row))
    assert (
        command(hub.main, "hub", "card", "out/run", "test.json", "shots.json", "0.json", "1.json")[
            0
        ]
        == 0
    )
    later = Path("out/run/export/README.md").read_text()
    assert [(r.dataset_split, r.metric_value) for r in ModelCard(later).data.eval_results[::2]] == [
        ("validation[0:30]", 25.0),
        ("test", 12.5),
    ]
    own, *others = later.split("## Results")[1].split("## Teacher")[0].split("Measured on ")[1:]
    assert (
        len(others) == 2
        and "| teacher `other` |" in own
        and "| 25.00 |" in own
        and "12.50" in others[0]
    )

    # figures beside the teacher are not lost to a file without it
    alone = {
        key: value
        for key, value in val.items()
        if not key.startswith("teacher") and key != "agreement"
    }
    Path("2.json").write_text(json.dumps({**alone, "top1": 50.0}))
    assert command(hub.main, "hub", "card", "out/run", "2.json")[0] == 0
    own = Path("out/run/export/README.md").read_text().split("## Results")[1]
    assert "| teacher `weak` |" in own and "| 50.00 |" not in own
    assert (
        command(hub.main, "hub", "card", "out/run", "test.json", "shots.json", "0.json", "1.json")[
            0
        ]
        == 0
    )

    # the figures of another student, and a file that is none
    here(
        "--checkpoint out/other --results-file weak.json --results-format json", script="validate"
    ).ok()
    here("--checkpoint out/run --results-file run.csv", script="validate").ok()
    for words, said in (
        (
            ("out/run", "weak.json"),
            "weak.json: no figures of this student; expected what validate.py --chec",
        ),
        (("out/run", "run.csv"), "run.csv: no figures of this student; expected"),
        (("out/run", "tset.json"), "tset.json: no figures of this student (nearest: test.json"),
        (("out/runs",), "out/runs: no finished run (nearest: run)"),
    ):
        code, _, error = command(hub.main, "hub", "card", *words)
        assert code == 2 and error.count("\n") == 1 and said in error, error
    assert Path("out/run/export/README.md").read_text() == later
    assert command(hub.main, "hub", "card", "out/run")[0] == 0
    assert Path("out/run/export/README.md").read_text() == first


def test_other_images_and_other_settings_do_not_take_the_place_of_the_runs_own(
    here: Run, tmp_path: Path, command: Callable
) -> None:
    """Figures of a folder of the same name and split, and at another crop or size, stand beside them, in the index too."""
    for number, folder in enumerate(("here", "there")):
        write_digits(
            120 + number,
            lambda number, label, folder=folder: Path(
                folder, "data", "train" if number < 80 else "validation", str(label)
            ),
        )
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    shutil.copytree("here/data/train", "elsewhere/data/validation")
    shutil.copytree("here", "moved")
    here(
        "--data-dir here/data",
        *BRIEF,
        "--model test_resnet --img-size 32 --epochs 1 --class-names names.json",
        "--output out --experiment run",
    ).ok()
    cases = {
        "same": ["--data-dir moved/data"],
        "train": ["--data-dir elsewhere/data"],
        "more": ["--data-dir there/data"],
        "crop": ["--crop-pct 0.5"],
        "size": ["--img-size 48"],
        "mean": ["--mean 0.1 0.2 0.3"],
        "all": ["--data-dir elsewhere/data --crop-pct 0.5"],
    }
    top1 = {}
    for name, flags in cases.items():
        here(
            "--checkpoint out/run",
            *flags,
            "--results-file",
            f"{name}.json",
            "--results-format json",
            script="validate",
        ).ok()
        content = json.loads(Path(f"{name}.json").read_text())
        top1[name] = content["top1"] = 10.0 + len(top1)  # so that each can be told from the others
        Path(f"{name}.json").write_text(json.dumps(content))
    own = read_result("out/run")["metrics"]["top1"]

    def card(*names: str) -> tuple[str, list[tuple[str, float]]]:
        code, _, err = command(
            hub.main, "hub", "card", "out/run", *(f"{name}.json" for name in names)
        )
        assert code == 0, err
        text = Path("out/run/export/README.md").read_text()
        return text, [
            (r.metric_name, r.metric_value)
            for r in ModelCard(text).data.eval_results
            if r.metric_name.startswith("Top-1")
        ]

    # the same images lie elsewhere, and have the names of the run's classes
    text, index = card("same")
    assert index == [("Top-1 accuracy (%)", 10.0)] and text.count("Measured on") == 1
    # all others are told apart, by what is not the same
    text, index = card(*[*cases][1:])
    names = {value: name.removeprefix("Top-1 accuracy (%)") for name, value in index}
    assert (
        len(index) == len(cases)
        and index[0] == ("Top-1 accuracy (%)", own)
        and f"| {own:.2f} |" in text
    )
    assert names[top1["train"]].startswith(", other samples, fingerprint ")
    assert names[top1["more"]].startswith(", other samples, fingerprint ")
    assert names[top1["more"]] != names[top1["train"]]
    assert names[top1["crop"]] == ", crop_pct 0.5" and names[top1["mean"]] == ", mean 0.1 0.2 0.3"
    assert names[top1["size"]] == ", input_size 3 48 48"
    assert names[top1["all"]].startswith(", crop_pct 0.5, other samples, fingerprint ")
    assert (
        "split `validation` (n = 40), with `crop_pct 0.5`:" in text
        and f"| {top1['crop']:.2f} |" in text
    )
    # of the same other evaluation the later
    Path("later.json").write_text(Path("crop.json").read_text().replace(f"{top1['crop']}", "77.0"))
    assert ("Top-1 accuracy (%), crop_pct 0.5", 77.0) in card("crop", "later")[1]
    assert len(card("crop", "later")[1]) == 2


def test_figures_beside_another_teacher_stand_by_themselves(
    here: Run, tmp_path: Path, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*BRIEF, "--dataset w2s/digits --img-size 8 --epochs 1 --output out"]
    for name in ("one", "two"):
        here(*flags, "--model w2s_cnn2", "--seed", int(name == "two"), "--experiment", name).ok()
    here(
        *flags,
        "--model w2s_cnn2 --teacher w2s_cnn2 --teacher-checkpoint out/one",
        "--experiment run",
    ).ok()
    for name in ("one", "two"):
        here(
            "--checkpoint out/run --teacher w2s_cnn2",
            "--teacher-checkpoint",
            f"out/{name}",
            "--results-file",
            f"{name}.json",
            "--results-format json",
            script="validate",
        ).ok()
    for names, count in ((["one"], 1), (["two"], 2), (["one", "two"], 2)):
        code, _, err = command(
            hub.main, "hub", "card", "out/run", *(f"{name}.json" for name in names)
        )
        assert code == 0, err
        text = Path("out/run/export/README.md").read_text()
        assert text.count("Measured on") == count and ("with `teacher w2s_cnn2`" in text) == (
            count == 2
        )
