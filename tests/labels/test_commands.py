"""``python -m w2s_plugins.labels``: tables exported, merged, checked and counted."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from pandas import Series
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from tests.e2e.conftest import Done
from tests.parts import store_labels
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.errors import run_main
from w2s_plugins.labels.__main__ import main
from w2s_plugins.labels.agreement import compare
from w2s_plugins.labels.card import describe_folder, labels_card
from w2s_plugins.labels.store import read_manifest
from w2s_plugins.labels.table import read_label_table


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Runs the command in an empty folder, as a process does: only warnings are shown unless it says more."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger().setLevel(logging.WARNING)  # `logging_as_before` puts it back

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["labels", *map(str, words)])
        capsys.readouterr()
        try:
            run_main(main, "labels")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def data(labels) -> Path:
    """Six images in folders of two classes."""
    for i in range(6):
        path = Path("data") / ("cat" if i < 3 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return Path("data")


def write(name: str, *rows: str) -> Path:
    Path(name).write_text("\n".join(rows) + "\n")
    return Path(name)


# ---------------------------------------------------------------- conversions


@pytest.mark.parametrize("kind", ["hard", "logits", "top-k"])
def test_export_of_what_a_teacher_said(labels, tmp_path, kind):
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    folder = store_labels(
        tmp_path / "folder", logits.argmax(1) if kind == "hard" else logits, classes=5, kind=kind, dtype=torch.float32,
        topk=2 if kind == "top-k" else None, class_names=[*"abcde"])
    labels("export", folder, "--output", "t.jsonl", "--top-k", 2).ok()
    table = read_label_table(Path("t.jsonl"), [*"abcde"])
    assert table.keyed_by == "id" and table.keys == list(range(40))
    assert table.answers.argmax(1).tolist() == logits.argmax(1).tolist()
    if kind != "hard":
        assert np.allclose(table.answers.max(1), logits.softmax(1).amax(1), atol=1e-6)


def test_merge(labels):
    write("ann.csv", "filename,label", "a.png,cat", "b.png,dog")
    write("bob.csv", "filename,label", "b.png,hen")
    assert "m.csv: 3 rows of 2 files about 2 samples" in labels(
        "merge", "ann.csv", "bob.csv", "--output", "m.csv").ok().out
    assert Path("m.csv").read_text() == "filename,label,annotator\na.png,cat,ann\nb.png,dog,ann\nb.png,hen,bob\n"
    write("sure.csv", "filename,label,confidence", "a.png,cat,0.5")
    labels("merge", "m.csv", "sure.csv", "--output", "n.csv").ok()
    assert Path("n.csv").read_text().splitlines()[1::3] == ["a.png,cat,1.0,m/ann", "a.png,cat,0.5,sure"]


# ---------------------------------------------------------------- questions


def test_a_table_that_fits(labels, data):
    write("a.csv", "filename,label", *(f"{folder}/{i}.png,cat" for i, folder in enumerate(["cat"] * 3 + ["dog"] * 3)))
    done = labels("check", "a.csv", "--data-dir", data, "--against", "folders", "--class-names", "cat,dog").ok()
    assert done.out.startswith(
        "note: a.csv: all of its 6 labels are the class 'cat': a student learns nothing else of them\n"
        "a.csv: can be trained on: 6 rows, labels of 6 of the 6 samples in 2 classes\n"
        "a and folders: 6 samples in common, they agree in 50.0 % (Cohen's kappa 0.000)\n"
        "  3 x 'dog' in folders is 'cat' in a\n")
    # the classes that the table names itself are this one
    assert labels("check", "a.csv", "--data-dir", data).ok().out == (
        "note: a.csv: all of its 6 labels are the class 'cat': a student learns nothing else of them\n"
        "a.csv: can be trained on: 6 rows, labels of 6 of the 6 samples in 1 classes\n")


def test_a_table_that_does_not_fit(labels, data):
    """What training would refuse, in its words, and what it would say before."""
    write("a.csv", "filename,label", "0.png,cat", "1.png,catt", "1.png,catt", "2.png,cat")
    done = labels("check", "a.csv", "--data-dir", data, "--class-names", "cat,dog")
    assert done.code == 1 and done.out == (
        "error: a.csv: row 2: 'catt' is no class (nearest: cat); expected the name of one, or in all rows its number "
        "from 0 to 1; rows like it: 2\n")
    write("a.csv", "filename,label", "0.png,cat", "1.png,cat", "9.png,dog", "cat/2.png,dog")
    done = labels("check", "a.csv", "--data-dir", data)
    assert done.code == 1 and done.out == (
        "note: a.csv: 1 of 4 rows are about none of these samples, such as 9.png "
        "(nearest: dog/5.png, dog/4.png, dog/3.png)\n"
        "error: a.csv: 3 of 6 training samples have no label, such as dog/3.png; ?missing=skip after its name "
        "trains on the others\n")
    write("b.csv", "filename,label", "0.png,cat", "2.png,cat", "cat/2.png,dog")
    said = "error: b.csv: 1 row(s) say something else of a sample than one before, such as of cat/2.png; leave one out"
    assert labels("check", "b.csv", "--data-dir", data).out.startswith(said)
    Image.new("RGB", (4, 4)).save("data/dog/0.png")
    said = "error: b.csv: row 1 names '0.png', but 2 files have that name; expected paths, such as cat/0.png"
    assert labels("check", "b.csv", "--data-dir", data).out.startswith(said)


def test_numbers_against_names(labels, data):
    write("a.csv", "filename,label", *(f"{i}.png,{i // 3}" for i in range(6)))
    done = labels("check", "a.csv", "--data-dir", data, "--against", "folders")
    assert done.code == 2 and "a has numbers for classes, folders names such as 'cat'" in done.err
    done = labels("check", "a.csv", "--data-dir", data, "--against", "folders", "--class-names", "cat,dog").ok()
    assert "they agree in 100.0 % (Cohen's kappa 1.000)" in done.out


def test_two_tables_compared(labels, data):
    for name in ("cat/2.png", "dog/4.png", "dog/5.png"):
        (data / name).unlink()
    write("a.csv", "filename,label", "0.png,cat", "1.png,dog", "3.png,dog")
    write("b.csv", "filename,cat,dog", "cat/0.png,0.9,0.1", "1.png,0.8,0.2", "3.png,0.1,0.9", "4.png,0,1")
    done = labels("check", "a.csv", "--data-dir", data, "--against", "b.csv").ok()
    assert "3 samples in common, they agree in 66.7 %" in done.out
    assert f"kappa {cohen_kappa_score(['cat', 'dog', 'dog'], ['cat', 'cat', 'dog']):.3f}" in done.out
    write("c.csv", "filename,label", "z.png,cat")
    assert "c.csv: is about other data: none of its 1 rows names one of the 3 samples; it has z.png, the" in labels(
        "check", "a.csv", "--data-dir", data, "--against", "c.csv").err


def test_opinions_that_all_say_one_class():
    assert compare(Series(["a", "a"]), Series(["a", "a"]), ("x", "y"))[1] == 1.0


def test_stats(labels):
    write("a.csv", "filename,label,annotator,confidence", "x,cat,1,0.5", "x,cat,2,1", "y,dog,1,1", "y,cat,2,0.5")
    lines = labels("stats", "a.csv").ok().out.splitlines()
    assert lines[:4] == [
        "a.csv: 4 rows about 2 samples, known by filename; hard",
        "annotators: 2; two of one sample agree in 50.0 %",
        "confidence: 0.750 in the mean",
        "2 classes:"]
    assert [line.split() for line in lines[5:]] == [["cat", "3", "75.0"], ["dog", "1", "25.0"]]


@pytest.mark.parametrize("words, message", [
    ("export none --output x.csv", "none: no such folder of labels"),
    ("export . --output x.csv", "labels.json: no manifest of labels"),
    ("merge a.csv sub/a.csv --output x.csv", "a: two of the files have this name"),
    ("merge a.csv b.csv --output ./a.csv", "--output a.csv: is there already"),
    ("merge a.csv b.csv --output x.csv", "b.csv, a.csv: one has numbers for classes, the other names"),
    ("merge a.csv c.csv --output x.csv", "c.csv: names its samples by id, a.csv by filename"),
    ("check a.csv --data-dir none", "none: no such folder or tar file"),
])
def test_bad_input_is_one_line(labels, words, message):
    write("a.csv", "filename,label", "x,cat")
    write("b.csv", "filename,label", "x,3")
    write("c.csv", "id,label", "0,cat")
    done = labels(*words.split())
    assert done.code == 2 and done.err.startswith("labels: error: ") and message in done.err
    assert done.err.count("\n") == 1 and not [*Path().glob("x*"), *Path().glob(".x*")]


@pytest.mark.parametrize("words, message", [
    ("none.csv me/x", "none.csv: no such file"),
    (". me/x", "labels.json: no manifest of labels"),
    ("run me/x", "run: its record names no stored answers of one teacher; expected a run with --teacher NAME"),
    ("features me/x", "features: holds features, not labels"),
    ("views me/x", "views: its answers are about the views of one student"),
    ("damaged me/x", "its checksum is not that of its content"),
    ("local.csv me/x", "local.csv: names its samples by paths of this machine, such as /home/me/x.png"),
    ("two.csv me/x", "two.csv: names its samples by paths of this machine, such as ../me/x.png"),
    ("windows.csv me/x", "such as C:\\me\\x.png"),
    ("home.csv me/x", "such as ~/x.png"),
    ("address.csv me/x", "such as file:///x.png"),
    ("local me/x", "local: names its samples by paths of this machine, such as /home/me/x.png"),
    ("secret.csv me/x", "secret.csv: holds an access token or a password; it is not published"),
    ("secret.npz me/x", "secret.npz: holds an access token or a password; it is not published"),
    ("secret.parquet me/x", "secret.parquet: holds an access token or a password; it is not published"),
    ("a.csv m!e/x", "not a Hub id: "),
])
def test_what_is_not_published(labels, words, message):
    """All of it is seen before anything is sent."""
    write("a.csv", "filename,label", "x,cat")
    write("local.csv", "filename,label", "/home/me/x.png,cat")
    write("two.csv", "filename,path,label", "..x.png,x.png,cat", "y~/z:1.png,../me/x.png,cat")
    write("windows.csv", "filename,label", "C:\\me\\x.png,cat")
    write("home.csv", "filename,label", "~/x.png,cat")
    write("address.csv", "filename,label", "file:///x.png,cat")
    store_labels(Path("local"), torch.randn(1, 3), SampleKeys("filename", ["/home/me/x.png"]))
    secret = dict(filename=["x"], label=["cat"], note=[f"hf_{'aB3' * 8}"])
    write("secret.csv", ",".join(secret), *map(",".join, zip(*secret.values())))
    np.savez("secret.npz", **secret | {"note": np.array([secret["note"]])})  # in two dimensions, which are no column
    if "parquet" in words:
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.table(secret), "secret.parquet")
    Path("run").mkdir()
    Path("run/result.json").write_text('{"teacher": {"cache": null, "models": []}}')
    store_labels(Path("features"), torch.randn(4, 3), kind="features")
    store_labels(Path("views"), torch.randn(4, 3), seen={"student_views": {"seed": 1}})
    (part,) = store_labels(Path("damaged"), torch.randn(4, 3)).glob("*.safetensors")
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = labels("push", *words.split())
    assert done.code == 2 and done.err.startswith("labels: error: ") and message in done.err
    assert done.err.count("\n") == 1


def test_no_value_breaks_out_of_the_card(tmp_path):
    names = ["`a` | <b>", "# c", "d\n---\nlicense: mit"]
    folder = store_labels(tmp_path / "x", torch.eye(3), class_names=names, who={"architecture": "`|<script>\n# x"})
    about = describe_folder(folder, read_manifest(folder), {"teacher": {"models": [
        {"source": {"repo": "<i>|", "file": "/home/me/x"}}]}, "data": {"dataset": "torch/cifar10"}})
    card = DatasetCard(labels_card(about, "hf://datasets/me/x", "mit\nowned: true"))
    assert card.data.to_dict() == {
        "license": "mit owned: true", "tags": ["weak-to-strong", "w2s_plugins"],
        "task_categories": ["image-classification"]}
    tokens = MarkdownIt().enable("table").parse(card.text)
    parts = [part for token in tokens for part in token.children or ()]
    assert [t.type for t in tokens if t.type in ("heading_open", "html_block")] == ["heading_open"] * 5
    assert {part.content for part in parts if part.type != "text"} == {
        "w2s_plugins", "logits, float32", "3", "uoft-cs/cifar10", "# c", "d --- license: mit", "<code>", "</code>"}
    texts = "".join(part.content for part in parts)
    assert all(text in texts for text in ("`a` | <b>", "<i>|", "`|<script> # x")) and "/home" not in texts
    assert texts.count("33.33 %") == 3
