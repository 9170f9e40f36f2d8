"""``python -m w2s_plugins.labels``: tables checked, merged, exported, and what is published."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from tests.e2e.conftest import Done
from tests.parts import lines, store_labels
from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.files import file_sha256
from w2s_plugins.labels.__main__ import main
from w2s_plugins.labels.answers import write_arrays
from w2s_plugins.labels.card import labels_card
from w2s_plugins.labels.table import read_label_table


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable) -> Callable[..., Done]:
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: Done(*command(main, "labels", *words))


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


def test_export_of_what_a_teacher_said(labels, tmp_path):
    """To the last bit, without what nobody could be asked about."""
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    keys = SampleKeys("filename", [f"b\udcff{i}.png" for i in range(40)])
    folder = store_labels(tmp_path / "folder", logits, keys, missing=[7], class_names=[*"abcde"])
    assert "logits of 40 samples in 5 classes" in labels("export", folder, "--output", "t.npz").ok().out
    table = read_label_table(Path("t.npz"))
    del keys.values[7]
    assert (table.kind, table.class_names, table.keys) == ("logits", [*"abcde"], keys.values)
    assert table.answers.tolist() == [*logits[:7].tolist(), *logits[8:].tolist()]


# ---------------------------------------------------------------- check


def test_a_table_that_fits(labels, data, caplog):
    rows = [f"{folder}/{i}.png,cat,{who}" for i, folder in enumerate(["cat"] * 3 + ["dog"] * 3) for who in "xy"]
    write("a.csv", "filename,label,annotator", *rows)
    done = labels("check", "a.csv", "--data-dir", data, "--class-names", "cat,dog").ok()
    lines = done.out.splitlines()
    assert lines[0] == "a.csv: 12 answers about 6 samples, known by filename, of 2 annotator(s); kind of labels: hard"
    assert lines[1] == "a.csv: can be trained on: labels of 6 of the 6 samples in 2 classes"
    assert "a.csv: all of its 6 labels are the class 'cat'" in caplog.text
    assert labels("check", "a.csv").ok().out.splitlines() == lines[:1]  # without images


def test_a_table_that_does_not_fit(labels, data):
    """What training would refuse, in its words."""
    write("a.csv", "filename,label", "0.png,cat", "1.png,catt", "1.png,catt", "2.png,cat")
    done = labels("check", "a.csv", "--data-dir", data, "--class-names", "cat,dog")
    assert done.code == 2 and "a.csv: row 2: 'catt' is no class; expected the name of one" in done.err
    done = labels("check", "a.csv?missing=skip&combine=mean", "--data-dir", data, "--class-names", "cat,dog").ok()
    assert "missing=skip&combine=mean: can be trained on: labels of 2 of the 6 samples in 2 classes" in done.out
    assert "unknown setting 'mising' (nearest: missing)" in labels("check", "a.csv?mising=skip").err
    write("a.csv", "filename,label", "0.png,cat", "1.png,cat", "9.png,dog", "cat/2.png,dog")
    done = labels("check", "a.csv", "--data-dir", data)
    assert done.code == 2 and "3 of 6 training samples have no label, such as dog/3.png; ?missing=skip" in done.err


def test_where_two_tables_differ(labels, caplog):
    """In whatever form; what only one of them says something of is left out, and a tie is no label."""
    write("a.csv", "filename,label,annotator", "cat/0.png,cat,x", "cat/0.png,dog,y", "1.png,dog,x", "dog/3.png,dog,x")
    write("b.jsonl", *(f'{{"image": "{i}.png", "class": "{name}", "confidence": {share}}}' for i, name, share in (
        (0, "hen", 0.8), (1, "dog", 0.9), (2, "cat", 0.7), (3, "cat", 0.6))))
    caplog.set_level("INFO")
    done = labels("check", "a.csv", "--against", "b.jsonl", "--output", "d.csv").ok()
    assert "a.csv and b.jsonl agree on 33.33 % of the 3 samples that both label; they differ on 2" in done.out
    assert "a.csv: 1 of 3 samples are ties" in caplog.text
    assert Path("d.csv").read_text().splitlines() == [
        "filename,label,confidence,against_label,against_confidence", "cat/0.png,,0.5,hen,0.8",
        "dog/3.png,dog,1.0,cat,0.6"]


@pytest.mark.parametrize("crowd, other", [("wide.csv", "b.csv"), ("labels:wide.csv", "labels:b.csv?missing=skip")])
def test_a_table_lends_its_classes_to_a_wide_one(labels, crowd, other):
    write("wide.csv", "image,anna,bob,carla", "0.png,cat,cat,dog", "1.png,dog,dog,dog", "2.png,hen,dog,hen")
    write("b.csv", "filename,label", "0.png,cat", "1.png,cat", "2.png,dog")
    done = labels("check", crowd, "--against", other).ok()
    assert "9 answers about 3 samples, known by filename, of 3 annotator(s)" in done.out
    assert "agree on 33.33 % of the 3 samples that both label; they differ on 2" in done.out
    assert labels("stats", f"{crowd},{other}").ok().out == labels("stats", crowd, other).ok().out


@pytest.mark.parametrize("words", [("a.csv", "b.csv?missing=skip"), ("labels:b.csv?missing=skip", "a.csv")])
def test_two_tables_are_matched_as_a_table_and_images(labels, words):
    """Whichever of them has the whole names; and what one sets holds for both."""
    write("a.csv", "filename,label", *(f"{i}.png,cat" for i in range(3)), "3.png,dog")
    write("b.csv", "image,label", r"C:\x\0.png,cat", "1,cat", "/home/me/2.png,dog", "3.png,NA")
    done = labels("check", words[0], "--against", words[1]).ok()
    assert "agree on 66.67 % of the 3 samples that both label" in done.out


def test_names_of_labels_are_those_of_training(labels):
    write("wide.csv", "image,anna,bob", "0.png,cat,cat", "1.png,dog,cat")
    done = labels("check", "labels:wide.csv#anna,bob,labels:wide.csv#bob?combine=majority").ok()
    assert "6 answers about 2 samples, known by filename, of 3 annotator(s)" in done.out
    assert "6 answers about 2 samples" in labels("stats", "wide.csv#anna,bob", "labels:wide.csv#bob").ok().out
    done = labels("check", "wide.csv#anna,bob?combine=majorty")
    assert "combine=majorty: expected one of majority, mean, dawid-skene (nearest: majority)" in done.err
    labels("push", "labels:wide.csv#anna,bob", "me/x", "--dry-run").ok()


def test_who_is_how_reliable(labels):
    """What training would log of a crowd in several files, and how well its members agree."""
    said = dict(anna="ccccdddd", bob="ccccdddc", carla="dcdcdcdd")
    for name, classes in said.items():
        write(f"{name}.csv", "id,label", *(f"{i},{dict(c='cat', d='dog')[one]}" for i, one in enumerate(classes)))
    write("all.csv", "id,label,annotator", *(
        f"{i},{dict(c='cat', d='dog')[one]},{name}.csv" for name, all in said.items() for i, one in enumerate(all)))
    lines = labels("stats", *(f"{name}.csv" for name in said)).ok().out.splitlines()
    assert lines[:5] == ["24 answers about 8 samples, of 3 annotator(s)", "8 samples have 3 answer(s)",
                         "12 answers: cat", "12 answers: dog", "Krippendorff's alpha: 0.3611"]
    assert lines == labels("stats", "all.csv").ok().out.splitlines()
    table = [line.split() for line in lines[5:]]
    assert table[4] == ["who", *(f"{name}.csv" for name in said)] and len(table) == 8
    assert table[0] == ["annotator", "images", "majority", "dawid-skene"]
    people = {name: [float(share) for share in shares] for name, *shares in table[1:4]}
    assert [people[f"{name}.csv"][:2] for name in said] == [[8, 1], [8, 0.875], [8, 0.625]]
    assert people["anna.csv"][2] > people["carla.csv"][2]
    assert [row[1:] for row in table[-3:]] == [
        ["1.000", "0.875", "0.625"], ["0.875", "1.000", "0.500"], ["0.625", "0.500", "1.000"]]


def test_two_annotators_agree_or_not(labels):
    answers = dict(anna=["cat", "dog", "cat", "dog"], bob=["cat", "dog", "dog", "dog"])
    rows = [f"{i},{label},{who}" for who, all in answers.items() for i, label in enumerate(all)]
    write("two.csv", "id,label,annotator", *rows)
    lines = labels("stats", "two.csv").ok().out.splitlines()
    # 3 answers are cat, 5 are dog, and one pair of four differs
    assert f"Krippendorff's alpha: {1 - 7 * 2 / (2 * 3 * 5):.4f}" in lines
    assert [line.split() for line in lines[-2:]] == [["anna", "1.00", "0.75"], ["bob", "0.75", "1.00"]]


BAD = """
check a.csv --output d.csv  ->  --output d.csv has no effect without --against FILE
check a.csv --against a.csv --output d.txt  ->  --output d.txt: of an unknown kind
stats a.csv b.csv  ->  a.csv b.csv: one crowd names its samples in one way
export featres --output x.npz  ->  featres: no such folder of labels (nearest: features)
export features --output x.npz  ->  features: holds features, not labels
export features --output x.csv  ->  --output x.csv: expected the name of a new file that ends in .npz
check a.csv --data-dir none  ->  none: no such folder or tar file
"""


@pytest.mark.parametrize("words, message", lines(BAD))
def test_bad_input_is_one_line(labels, words, message):
    write("a.csv", "filename,label", "x,cat")
    write("b.csv", "id,label", "0,cat")
    store_labels(Path("features"), torch.randn(4, 3), kind="features")
    done = labels(*words.split())
    assert done.code == 2 and message in done.err and not [*Path().glob("x*"), *Path().glob(".x*")]


# ---------------------------------------------------------------- push


UNPUBLISHED = """
none.csv me/x  ->  none.csv: no such file
. me/x  ->  labels.json: no manifest of labels
features me/x  ->  features: holds features, not labels
views me/x  ->  views: its answers are about the views of one student
damaged me/x  ->  its checksum is not that of its content
local me/x  ->  local: names its samples by paths of this machine, such as /home/me/x.png
secret.csv me/x  ->  secret.csv: holds an access token or a password; it is not published
secret.npz me/x  ->  secret.npz: holds an access token or a password; it is not published
secret.parquet me/x  ->  secret.parquet: holds an access token or a password; it is not published
a.csv m!e/x  ->  not a Hub id:
"""


@pytest.mark.parametrize("words, message", lines(UNPUBLISHED))
def test_what_is_not_published(labels, words, message):
    """All of it is seen before anything is sent."""
    write("a.csv", "filename,label", "x,cat")
    store_labels(Path("local"), torch.randn(1, 3), SampleKeys("filename", ["/home/me/x.png"]))
    secret = dict(filename=["x"], label=["cat"], note=[f"hf_{'aB3' * 8}"])
    write("secret.csv", ",".join(secret), *map(",".join, zip(*secret.values())))
    np.savez("secret.npz", **secret)
    if "parquet" in words:
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.table(secret), "secret.parquet")
    store_labels(Path("features"), torch.randn(4, 3), kind="features")
    store_labels(Path("views"), torch.randn(4, 3), seen={"student_views": {"seed": 1}})
    (part,) = store_labels(Path("damaged"), torch.randn(4, 3)).glob("*.safetensors")
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = labels("push", *words.split(), "--dry-run")
    assert done.code == 2 and done.err.startswith("labels: error: ") and message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("content, message", [
    (b"filename,label\n/home/me/x.png,cat", "t.csv: names its samples by paths of this machine, such as /home/me/x"),
    (b"filename,path,label\n..x.png,x.png,cat\ny~/z:1.png,../me/x.png,cat", "such as ../me/x.png"),
    (b"filename,label\nC:\\me\\x.png,cat", "such as C:\\me\\x.png"),
    (b"filename,label\n~/x.png,cat", "such as ~/x.png"),
    (b"filename,label\nfile:///x.png,cat", "such as file:///x.png"),
    (b"filename,label\n\xff\0.png,cat", "cannot be read as csv: 'utf-8' codec can't decode byte 0xff"),
])
def test_a_table_that_is_not_published(labels, content, message):
    Path("t.csv").write_bytes(content)
    done = labels("push", "t.csv", "me/x", "--dry-run")
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_no_value_breaks_out_of_the_card(tmp_path):
    names = ["`a` | <b>", "# c", "d\n---\nlicense: mit"]
    folder = store_labels(tmp_path / "x", torch.eye(3), class_names=names, who={"architecture": "`|<script>\n# x"})
    manifest = write_arrays(folder, tmp_path / "x.npz")
    card = DatasetCard(labels_card(
        read_label_table(tmp_path / "x.npz"), "hf://datasets/me/x", "mit\nowned: true", manifest))
    assert card.data.to_dict() == {
        "license": "mit owned: true", "tags": ["weak-to-strong", "w2s_plugins"],
        "task_categories": ["image-classification"]}
    tokens = MarkdownIt().enable("table").parse(card.text)
    parts = [part for token in tokens for part in token.children or ()]
    assert [t.type for t in tokens if t.type in ("heading_open", "html_block")] == ["heading_open"] * 5
    assert {part.content for part in parts if part.type != "text"} == {
        "w2s_plugins", "logits", "x.npz", file_sha256(tmp_path / "x.npz"), "3",
        "# c", "d --- license: mit", "<code>", "</code>"}
    texts = "".join(part.content for part in parts)
    assert all(text in texts for text in ("`a` | <b>", "`|<script> # x"))
    assert texts.count("33.33 %") == 3
