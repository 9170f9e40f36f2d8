"""Tables of labels: what is read and what is refused, whatever a file holds, and what is written comes back."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parts import write_folder
from w2s_plugins.data import create_dataset, hold_out
from w2s_plugins.data.keys import SampleKeys, sample_keys
from w2s_plugins.data.slices import Subset, take_slice
from w2s_plugins.errors import UserError
from w2s_plugins.labels.answers import TableForm, answer_columns, check_form
from w2s_plugins.labels.names import read_class_names
from w2s_plugins.labels.samples import labels_of_samples
from w2s_plugins.labels.table import LabelTable, read_label_table
from w2s_plugins.labels.table_writer import WRITABLE, check_writable, write_label_table

CPU = torch.device("cpu")


def read(tmp_path: Path, content: str | bytes, suffix: str = ".csv", names: list[str] | None = None) -> LabelTable:
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_label_table(path, names)


def labels(table: LabelTable) -> list[str]:
    return [table.class_names[i] for i in table.answers]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("content", [
    "filename,label\na.png,cat\nb.png,dog\n",
    "\ufefffilename,label\r\na.png,cat\r\n\r\nb.png,dog",
    "\n label , filename \ncat, a.png\n\ndog,./b.png\n,\n",
    'Path,Class,width\n"a.png","cat",3\n"b.png","dog",4\n',
], ids=["plain", "of Excel", "empty lines", "quotes and more columns"])
def test_tables_of_people(tmp_path, content):
    table = read(tmp_path, content)
    assert table.keys == ["a.png", "b.png"] and labels(table) == ["cat", "dog"] and table.kind == "hard"


def test_quotes_hold_anything(tmp_path):
    table = read(tmp_path, 'filename,label\n"a, ""b"".png",cat\n"two\nlines.png",dog\n')
    assert table.keys == ['a, "b".png', "two\nlines.png"]


def test_other_forms(tmp_path):
    lines = [{"id": 0, "label": 2}, {"id": 1, "label": 0, "annotator": "x"}]
    table = read(tmp_path, "\n".join(map(json.dumps, lines)), ".jsonl")
    assert table.keys == [0, 1] and table.answers.tolist() == [2, 0] and table.annotators == ["", "x"]
    table = read(tmp_path, json.dumps({"file": "a", "probabilities": {"dog": 0.25, "cat": 0.75}}), ".ndjson")
    assert table.class_names == ["dog", "cat"] and table.answers.tolist() == [[0.25, 0.75]]
    table = read(tmp_path, "filename\tcat\tdog\na\t3\t-1\nb\t0\t7\n", ".tsv")
    assert table.kind == "logits" and table.answers.tolist() == [[3, -1], [0, 7]]
    np.savez(tmp_path / "z.npz", filename=["a", "b"], probabilities=[[0.5, 0.5], [1, 0]], class_names=["x", "y"])
    table = read_label_table(tmp_path / "z.npz")
    assert table.kind == "probabilities" and table.class_names == ["x", "y"] and table.keys == ["a", "b"]


@pytest.mark.parametrize("cell", ["cat:0.9;dog:0.05", '[["cat", 0.9], ["dog", 0.05]]', '{"cat": 0.9, "dog": 0.05}'])
def test_the_best_classes(tmp_path, cell):
    cell = '"' + cell.replace('"', '""') + '"'
    table = read(tmp_path, f"filename,top_k\na,{cell}\n", names=["hen", "cat", "cow", "dog"])
    assert np.allclose(table.answers, [[0.025, 0.9, 0.025, 0.05]]) and table.kind == "probabilities"


def test_a_probability_of_zero_among_the_best_stays(tmp_path):
    table = read(tmp_path, "filename,top_k\na,cat:0.9;dog:0\n", names=["hen", "cat", "dog"])
    assert np.allclose(table.answers, [[0.1, 0.9, 0]])


def test_the_fullest_answer_counts(tmp_path):
    """As predictions have them: a label beside probabilities. Other numbers beside a label are no classes."""
    table = read(tmp_path, "filename,label,confidence,cat,dog\na,cat,0.75,0.75,0.25\n")
    assert table.kind == "probabilities" and table.answers.tolist() == [[0.75, 0.25]] and table.confidence is None
    assert read(tmp_path, "filename,label,top_k\na,cat,cat:0.9;dog:0.1\n").kind == "probabilities"
    assert read(tmp_path, "filename,label,width,height\na,cat,3,4\n").kind == "hard"


@pytest.mark.parametrize("header, rows", [
    ("filename,a,b,fold", ["x,0.3,0.7,2", "y,0.9,0.1,4"]),
    ("filename,a,b,sharpness,width", ["x,0.3,0.7,12.7,8", "y,0.9,0.1,3.5,8"]),
    ("filename,a,b,sharpness", ["x,0.3,0.7,12.7", "y,0.9,0.1,3.5"]),
    ("filename,a,b,fold", ["x,-0.3,4.7,2", "y,0.9,1.5,4"])])
def test_a_number_of_something_else_is_no_class(tmp_path, header, rows):
    """Unless classes are named: then a table has what it has of them."""
    content = "\n".join([header, *rows])
    with pytest.raises(UserError, match=f"is column {header.split(',')[-1]} a class"):
        read(tmp_path, content)
    table = read(tmp_path, content, names=["b", "c", "a"])
    assert (table.answers[:, 1] == table.answers.min()).all() and table.answers[0, 0] > table.answers[0, 2]
    assert read(tmp_path, content, names=header.split(",")[1:]).kind == "logits"


def test_names_that_are_numbers(tmp_path):
    """A column is of names, or of numbers, but not now the one and then the other."""
    assert read(tmp_path, "filename,label\na,10\nb,2\n", names=["10", "2", "5"]).answers.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"row 1: '0' is no class \(nearest: 10\); expected the name of one"):
        read(tmp_path, "filename,label\na,0\nb,2\n", names=["10", "2", "5"])
    table = read(tmp_path, "filename,label\na,01\nb,10\n")  # nobody writes a number so
    assert (table.class_names, table.answers.tolist()) == (["01", "10"], [0, 1])
    with pytest.raises(UserError, match="row 2: '1' is no class; expected the name of one, or in all rows its"):
        read(tmp_path, "filename,label\na,cat\nb,1\n", names=["cat", "dog"])


def test_import_by_names_that_are_numbers(tmp_path):
    """Of the classes 2, 4 and 8 the label 2 is the first, not the one with the number 2."""
    (tmp_path / "a.csv").write_text("filename,label\na,2\nb,2\nc,8\n")
    keys = SampleKeys("filename", ["a", "b", "c"])
    names = ["2", "4", "8"]
    found = labels_of_samples(read_label_table(tmp_path / "a.csv", names), keys, names, None, "x")
    assert found(torch.arange(3), CPU).argmax(1).tolist() == [0, 0, 2]


@pytest.mark.parametrize("header, rows", [
    ("filename,label,confidence", ["a,cat,0.75", "b,dog,0.5", "c,cat,1"]),
    ("filename,cat,dog", ["a,3,-1", "b,0.5,7", "c,1,1"]),
    ("filename,label,annotator,confidence", ["a,cat,x,0.7", "a,dog,y,0.1", "b,dog,y,0.2", "a,dog,z,0.3", "c,cat,x,1"])])
def test_a_row_given_twice_changes_nothing(tmp_path, header, rows):
    """Nor does the order of rows: the hash of what is said is the same. To say two things is an error."""
    keys, names, found = SampleKeys("filename", [*"abc"]), ["cat", "dog"], []
    for number, lines in enumerate((rows, [rows[2], *rows[::-1]])):
        (tmp_path / f"{number}.csv").write_text("\n".join([header, *lines]))
        said = labels_of_samples(read_label_table(tmp_path / f"{number}.csv", names), keys, names, "mean", "x")
        found.append((said.manifest.kind, said.manifest.who["answers"], said(torch.arange(3), CPU).tolist()))
    assert found[0] == found[1]
    assert found[0][0] == ("logits" if header.endswith("dog") else "probabilities")
    other = rows[0].replace("0.75", "0.7").replace("-1", "2").replace("cat,x", "dog,x")
    table = read(tmp_path, "\n".join([header, *rows, other]), names=names)
    with pytest.raises(UserError, match=r"1 row\(s\) say something else of a sample than one before, such as of a; "):
        labels_of_samples(table, keys, names, None, "x")


def test_positions_are_those_of_the_whole_split(tmp_path):
    """Of files as of other samples, whatever part of them is trained on or held out."""
    write_folder(tmp_path / "data", {"train": 30}, size=(8, 8))
    images = create_dataset("", str(tmp_path / "data"), "train")
    said = torch.randint(3, (len(images),))
    np.save(tmp_path / "a.npy", said.numpy())
    table = read_label_table(tmp_path / "a.npy")
    train, held_out = hold_out(take_slice(images, "10:26", 0), 0.25, 0)
    for part in (train, held_out, Subset(images, [*range(29, 19, -1)])):
        keys = sample_keys(part)
        found = labels_of_samples(table, keys, [*"abc"], None, "x")(torch.arange(len(part)), CPU).argmax(1)
        assert found.tolist() == said[[images.filenames().index(name) for name in part.filenames()]].tolist()


@pytest.mark.parametrize("before", ["photos/", "/home/me/photos/"])
def test_a_folder_before_all_names_is_left_out(tmp_path, caplog, before):
    table = read(tmp_path, f"filename,label\n{before}x/a,cat\n{before}y/a,dog\n", names=["cat", "dog"])
    found = labels_of_samples(table, SampleKeys("filename", ["y/a", "x/a"]), ["cat", "dog"], None, "x")
    assert found(torch.arange(2), CPU).argmax(1).tolist() == [1, 0]
    assert f"without the folder that they are in, {before}" in caplog.text
    with pytest.raises(UserError, match="is about other data"):  # not all of them are in it
        table = read(tmp_path, f"filename,label\n{before}x/a,cat\nz,dog\n", names=["cat", "dog"])
        labels_of_samples(table, SampleKeys("filename", ["x/a"]), ["cat", "dog"], None, "x")


def test_rows_without_a_label_are_left_out(tmp_path, caplog):
    """As pandas writes them, which turns the other numbers into 1.0."""
    with caplog.at_level(logging.WARNING):
        table = read(tmp_path, "filename,label,annotator\na,1.0,x\nb,,y\nc,0.0,z\n")
    assert table.answers.tolist() == [1, 0] and table.keys == ["a", "c"] and table.annotators == ["x", "z"]
    assert "1 of 3 rows have no label and are left out, the first of them row 2" in caplog.text


def test_parquet_reads_what_is_used(tmp_path):
    """A column that nobody asks for may be of any size: here it cannot even be read."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, junk = tmp_path / "t.parquet", b"J" * 999
    parquet.write_table(pyarrow.table({
        "filename": ["a", "b"], "image": [junk + b"1", junk + b"2"], "label": ["cat", None]}), path, compression="NONE")
    content = path.read_bytes()
    start = content.index(junk) - 4  # its length
    path.write_bytes(content[:start] + b"\xff" * 900 + content[start + 900:])
    with pytest.raises(OSError):
        parquet.read_table(path, columns=["image"])
    table = read_label_table(path)
    assert table.keys == ["a"] and labels(table) == ["cat"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("content, suffix, message", [
    (b"\x89PNG\r\n\x1a\n\0\0\xff", ".csv", "cannot be read as csv"),
    (b"\x89PNG\r\n\x1a\n\0\0\xff", ".jsonl", "cannot be read as jsonl"),
    (b"\x89PNG\r\n\x1a\n\0\0\xff", ".parquet", "cannot be read as parquet"),
    (b"\x89PNG\r\n\x1a\n\0\0\xff", ".npz", "cannot be read as npz"),
    ("filename,label\na,b\n", ".cvs", r"of an unknown kind \(nearest: .csv"),
    ("", ".csv", "holds no labels"),
    ("filename,label\n\n", ".csv", "holds no labels"),
    ("filename,label,label\na,b,c\n", ".csv", "has the column 'label' twice"),
    ("filename,label\na,b,c\n", ".csv", "Expected 2 fields in line 2, saw 3"),
    ('filename,label\n"a,b\n', ".csv", "cannot be read as csv: .*EOF inside string"),
    ("a.png,cat\nb.png,dog\n", ".csv", "no column says which sample a row is about.*it has a.png, cat"),
    ("filenam,label\na,b\n", ".csv", r"expected filename or id \(nearest: filenam\)"),
    ("filename,note\na,b\n", ".csv", "no labels; expected a column label"),
    ("filename,label\na,\nb,\n", ".csv", "its column label is empty"),
    ("filename,label\n,cat\n", ".csv", "row 1 has no filename"),
    ("id,label\n1.5,cat\n", ".csv", "row 1: '1.5' is no position"),
    ("id,label\n0,99999999\n", ".csv", "row 1: '99999999' is no class; expected a number from 0 to 1000000"),
    ("filename,cat,dog\na,0.5,0.5\nb,nan,1\n", ".csv", r"1 row\(s\) with values that are not finite.*row 2"),
    ("filename,cat,dog\na,0.5,0.5\nb,0.5,0.4\n", ".csv", r"1 of 2 rows are no prob.*sum to 1.*row 2 \(0.9\)"),
    ("filename,cat,dog\na,0.5,0.5\nb,0,1\nc,5,-3\n", ".csv", "1 of 3 rows are no probabilities"),
    ("filename,cat,dog\na,30.5,69.5\nb,99,1\n", ".csv", "its values are percent"),
    ("filename,cat,dog\na,0.5,high\n", ".csv", "column dog is not all numbers"),
    ("filename,top_k\na,cat:5;dog:-2\n", ".csv", "1 of 1 rows are no prob"),
    ("filename,top_k\na,cat\n", ".csv", "expected pairs such as cat:0.9"),
    ("filename,top_k\na,cat:0.5;cat:0.5\n", ".csv", "has the class 'cat' twice"),
    ("filename,top_k\na,999999999:1\n", ".csv", "are more than"),
    ("filename,label,confidence\na,cat,1.5\n", ".csv", "confidence: expected probabilities from 0 to 1"),
    ("filename,label,confidence\na,cat,nan\n", ".csv", "confidence: expected probabilities from 0 to 1"),
    ("[1]", ".jsonl", "line 1 is no object"),
    ('{"file": "a", "label": ["cat"]}', ".jsonl", r"row 1: \['cat'\] is no class"),
    ('{"file": "a", "x": 1%s, "y": 0}' % ("0" * 400), ".jsonl", "column x is not all num"),
    ("[" * 100_000, ".jsonl", "cannot be read as jsonl"),
])
def test_one_line_each(tmp_path, content, suffix, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content, suffix)
    assert "\n" not in str(caught.value)


def test_labels_are_among_the_names(tmp_path):
    with pytest.raises(UserError, match=r"row 2: 'dgo' is no class \(nearest: dog\)"):
        read(tmp_path, "filename,label\na,cat\nb,dgo\n", names=["cat", "dog"])
    with pytest.raises(UserError, match="the class 'cat' is named twice"):
        read(tmp_path, "filename,label\na,cat\n", names=["cat", "dog", "cat"])
    with pytest.raises(UserError, match="no such file"):
        read_label_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="is a folder"):
        read_label_table(tmp_path)


def test_small_files_stay_small(tmp_path):
    """Rows that each have a column of their own, and an archive of zeros, would take any amount of memory."""
    with pytest.raises(UserError, match="too many different names"):
        read(tmp_path, "\n".join(json.dumps({f"{i}": 1}) for i in range(5000)), ".jsonl")
    np.savez_compressed(tmp_path / "z.npz", filename=["a"], probabilities=np.zeros((6000, 1000), np.float32))
    with pytest.raises(UserError, match=r"would unpack to 24.0 MB; write it by numpy.savez"):
        read_label_table(tmp_path / "z.npz")
    np.savez(tmp_path / "z.npz", filename=["a", "b"], label=[1])
    with pytest.raises(UserError, match="must be of the same length"):
        read_label_table(tmp_path / "z.npz")


HEADERS = ["filename", "id", "label", "top_k", "annotator", "confidence", "cat", "dog", "0", "1"]
CELLS = st.one_of(st.sampled_from(["a.png", "0", "1", "cat", "dog", "0.5", "-1", "nan", "", "1e999", "cat:0.9;dog:0.1",
                                   '{"cat": 1}', "[[1]]", "[1", '"', "\u0661"]), st.text(max_size=5))
VALUES = st.one_of(CELLS, st.none(), st.booleans(), st.floats(), st.integers(), st.lists(CELLS, max_size=2),
                   st.dictionaries(CELLS, st.floats(), max_size=2))


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_anything_is_a_table_or_one_line(tmp_path, data):
    header = data.draw(st.lists(st.sampled_from(HEADERS), min_size=1, max_size=5, unique=True))
    suffix = data.draw(st.sampled_from([".csv", ".jsonl", ".bytes"]))
    if suffix == ".csv":
        rows = data.draw(st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header)), max_size=4))
        content = "\n".join(",".join(row) for row in [header, *rows])
    elif suffix == ".jsonl":
        rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(header, VALUES)), max_size=4))
        content = "\n".join(map(json.dumps, rows))
    else:
        suffix, content = data.draw(st.sampled_from([".csv", ".jsonl", ".npz"])), data.draw(st.binary(max_size=80))
    names = data.draw(st.sampled_from([None, ["cat", "dog"], ["1", "0", "cat"]]))
    try:
        table = read(tmp_path, content.encode(errors="replace") if isinstance(content, str) else content, suffix, names)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert len(table.answers) == len(table.keys) > 0
    assert np.isfinite(table.answers).all() and table.kind in ("hard", "probabilities", "logits")
    if table.kind == "hard":
        assert table.answers.min() >= 0 and table.answers.max() < table.num_classes
    if table.kind == "probabilities":
        assert np.allclose(table.answers.sum(axis=1), 1, atol=0.03)


# ---------------------------------------------------------------- what is written


NAMES = ["cat", "a, b", 'the "c"', "semi;colon", "[x]", "ünder:score", "7"]


@pytest.mark.parametrize("names", [NAMES, None], ids=["names", "numbers"])
@pytest.mark.parametrize("keyed_by", ["filename", "index"])
@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_is_written_comes_back(tmp_path, suffix, keyed_by, names):
    """In parts, as a long table is written; probabilities to the last bit, where all of them are there."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([0.05] * 7, 50).astype(np.float32)
    keys = [f"dir {i}/ä,\"{i}\n.png" for i in range(50)] if keyed_by == "filename" else list(range(3, 53))
    for form in (TableForm(), TableForm(top_k=3), TableForm(every=True)):
        path = tmp_path / f"t{suffix}"
        parts = (answer_columns(keys[i:i + 20], keyed_by, shares[i:i + 20], names, form) for i in range(0, 50, 20))
        assert write_label_table(path, parts) == 50
        table = read_label_table(path, NAMES if names else None)
        assert table.keys == keys and table.class_names == names
        if form == TableForm():
            assert (table.answers == shares.argmax(1)).all() and (table.confidence == shares.max(1)).all()
        elif form.every:
            assert (table.answers == shares).all()
        else:
            best = np.argsort(-shares, axis=1)[:, :3]
            assert (np.take_along_axis(table.answers[:, :7], best, 1) == np.take_along_axis(shares, best, 1)).all()
    assert list(tmp_path.iterdir()) == [path]


def test_tables_that_cannot_be_written(tmp_path, monkeypatch):
    for name, message in (("t.xlsx", "of an unknown kind"), ("no/t.csv", "no folder"), ("t", "of an unknown kind")):
        with pytest.raises(UserError, match=message):
            check_writable(tmp_path / name)
    with pytest.raises(UserError, match="the class 'Image' has the name of another column; take --top-k 2"):
        check_form(TableForm(every=True), ["cat", "Image"], 2)
    with pytest.raises(UserError, match="--top-k 3: there are 2 classes"):
        check_form(TableForm(top_k=3), None, 2)


def test_names_of_classes(tmp_path):
    (tmp_path / "n.txt").write_text("\ufeffcat\r\n\r\na dog\n")
    (tmp_path / "n.json").write_text('["cat", "a dog"]')
    for text in (str(tmp_path / "n.txt"), str(tmp_path / "n.json"), "cat, a dog"):
        assert read_class_names(text) == ["cat", "a dog"]
    (tmp_path / "junk").write_bytes(b"\xff\xfe\0")
    for text, message in (("cat", "no such file"), ("a,b,a", "'a' is named twice"), ("a,,b", "a name is empty"),
                          (str(tmp_path / "junk"), "expected a text file with one name a line")):
        with pytest.raises(UserError, match=message):
            read_class_names(text)
