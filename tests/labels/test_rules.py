"""The rules by which a table of labels is understood, numbered as in docs/labels.md: a test for each."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from w2s_plugins.data.keys import SampleKeys
from w2s_plugins.errors import UserError
from w2s_plugins.labels.given import GivenLabels
from w2s_plugins.labels.samples import TableLabels, labels_in_table, labels_of_samples, most_likely
from w2s_plugins.labels.table import LabelTable, read_label_table

NAMES = ["cat", "dog"]


@pytest.fixture
def read(tmp_path: Path):
    """Reads a table with some content."""
    def read(content: str, names: list[str] | None = None, name: str = "t.csv", missing: str = "error") -> LabelTable:
        (tmp_path / name.partition("#")[0]).write_text(content)
        return read_label_table(tmp_path / name, names, missing=missing)
    return read


def brought(table: LabelTable, samples: list[str], names: list[str] = NAMES, combine: str | None = None) -> TableLabels:
    return labels_of_samples(table, SampleKeys("filename", samples, range(len(samples))), names, combine, "x")


def shares(labels: TableLabels) -> list[list[float]]:
    index = torch.arange(len(labels.keys.values))
    return [[round(share, 4) for share in row] for row in labels(index, torch.device("cpu")).softmax(1).tolist()]


# ---------------------------------------------------------------- 1: which column says what


@pytest.mark.parametrize("header", ["filename,Label,label", "filename,class,given", "path,image,label", "id,ID,label"])
def test_two_columns_for_one_thing_are_refused(read, header):
    with pytest.raises(UserError, match=r"which column is the (label|filename|id), .* or .*"):
        read(f"{header}\n0,0,0\n")


def test_the_plain_name_counts_and_what_is_not_read_is_said(read, caplog):
    caplog.set_level(logging.INFO)
    table = read("filename,path,label,class,width\na,b,cat,dog,3\n")
    assert table.keys == ["a"] and table.class_names == ["cat"]
    assert "further columns, which are not read: path, class, width" in caplog.text


def test_a_key_that_a_row_has_twice_is_refused(read):
    with pytest.raises(UserError, match="a row has the key 'label' twice"):
        read('{"file": "a", "label": "cat", "label": "dog"}\n', name="t.jsonl")


# ---------------------------------------------------------------- 2: FILE#COLUMN


def test_a_column_that_is_there_is_meant_alone(read):
    content = "filename,worker1,worker10,worker11\na,cat,dog,dog\n"
    assert read(content, NAMES, "t.csv#worker1").answers.tolist() == [0]
    several = read(content, NAMES, "t.csv#worker")
    assert (several.answers.tolist(), several.annotators) == ([0, 1, 1], ["worker1", "worker10", "worker11"])
    for header in ("Worker1,worker10", "worker10,WORKER1"):
        first = header.lower().startswith("worker1,")
        one = read(f"filename,{header}\na,{'cat,dog' if first else 'dog,cat'}\n", NAMES, "t.csv#worker1")
        assert one.answers.tolist() == [0] and one.annotators is None
    with pytest.raises(UserError, match=r"has no such column.*it has filename, worker10, worker11"):
        read("filename,worker10,worker11\na,cat,dog\n", NAMES, "t.csv#worker1")


# ---------------------------------------------------------------- 3: names and positions of samples


def test_name_and_position_agree_or_are_refused(read):
    agree = read("filename,id,label\na,0,cat\nb,1,dog\n", NAMES)
    assert shares(brought(agree, ["a", "b"])) == [[1, 0], [0, 1]]
    with pytest.raises(UserError, match=r"two columns say which sample .* disagree, such as of a, "):
        brought(read("filename,id,label\na,1,cat\nb,0,dog\n", NAMES), ["a", "b"])


def test_the_end_of_a_path_names_a_sample_where_only_one_has_it(read):
    """As of two tar files, whose images are called after the file and their name in it."""
    files = ["one.tar/x/0.png", "two.tar/y/0.png", "two.tar/y/1.png"]
    table = read("filename,label\n/x/0.png,cat\ny/0.png,dog\n1.png,dog\n", NAMES)
    assert shares(brought(table, files)) == [[1, 0], [0, 1], [0, 1]]
    with pytest.raises(UserError, match=r"row 1 names '0.png', but 2 files have that name"):
        brought(read("filename,label\n0.png,cat\n", NAMES), files)


# ---------------------------------------------------------------- 4: one column a class


@pytest.mark.parametrize("name", ["id", "confidence", "annotator", "label", "class"])
def test_a_class_may_have_the_name_of_another_column(read, name):
    table = read(f"filename,cat,{name}\na,0.25,0.75\n", ["cat", name])
    assert (table.kind, table.answers.tolist(), table.keys) == ("probabilities", [[0.25, 0.75]], ["a"])
    line = json.dumps({"file": "a", "probabilities": {"cat": 0.25, name: 0.75}})
    assert read(line, name="t.jsonl").answers.tolist() == [[0.25, 0.75]]
    assert read(line[:-1] + ', "confidence": 0.5}', name="t.jsonl").answers.tolist() == [[0.25, 0.75]]


def test_a_column_that_may_be_a_class_or_not_is_refused(read):
    with pytest.raises(UserError, match="is the column 'confidence' the class of that name, or the confidence of"):
        read("filename,label,cat,confidence\na,cat,0.5,0.5\n", ["cat", "confidence"])
    with pytest.raises(UserError, match="is the column 'confidence' a class"):
        read("filename,cat,dog,confidence\na,0.5,0.5,0.9\n")


def test_a_misspelt_class_is_refused(read):
    with pytest.raises(UserError, match=r"its column 'doog' is no class \(nearest: dog"):
        read("filename,cat,doog,hen\na,0.5,0.25,0.25\n", ["cat", "dog", "hen"])


# ---------------------------------------------------------------- 5: what the numbers are


def test_whole_numbers_are_votes(read, caplog):
    caplog.set_level(logging.INFO)
    table = read("filename,cat,dog\na,19,8\nb,1,0\n", NAMES)
    assert table.kind == "probabilities" and np.allclose(table.answers, [[19 / 27, 8 / 27], [1, 0]])
    assert "counts of votes" in caplog.text
    assert read("filename,cat,dog\na,19,-8\nb,1,0\n", NAMES).kind == "logits"
    with pytest.raises(UserError, match="1 of 2 rows have no vote"):
        read("filename,cat,dog\na,19,8\nb,0,0\n", NAMES)


def test_logits_of_an_npz_are_logits(tmp_path):
    np.savez(tmp_path / "t.npz", filename=["a"], logits=[[19, 8]], class_names=NAMES)
    assert read_label_table(tmp_path / "t.npz").kind == "logits"


# ---------------------------------------------------------------- 6: names and numbers of classes


def test_a_number_is_the_class_of_that_name(read):
    """As of a spreadsheet that has dropped zeros; it is never a position among classes that are called otherwise."""
    assert read("filename,label\na,1\nb,2\n", ["01", "02", "03"]).answers.tolist() == [0, 1]
    assert read("filename,label\na,1\nb,10\n", ["01", "10"]).answers.tolist() == [0, 1]
    assert read("filename,1,2\na,0.25,0.75\n", ["01", "02"]).answers.tolist() == [[0.25, 0.75]]
    assert read("filename,top_k\na,2:0.75\n", ["01", "02"]).answers.tolist() == [[0.25, 0.75]]
    with pytest.raises(UserError, match="row 1: '0' is no class"):
        read("filename,label\na,0\nb,1\n", ["01", "02"])
    with pytest.raises(UserError, match="row 1: '1' is no class"):  # which of the two?
        read("filename,label\na,1\n", ["01", "001"])


def test_numbers_are_positions_of_classes_that_have_names(read, caplog):
    caplog.set_level(logging.INFO)
    assert read("filename,label\na,1\nb,0\n", NAMES).answers.tolist() == [1, 0]
    assert "numbers for classes, which are taken for those of the data in its order" in caplog.text


# ---------------------------------------------------------------- 7: confidence


def test_confidence_of_one_answer_does_not_depend_on_other_samples(read):
    rows = "a,cat,x,0.6\nb,dog,x,0.7\n"
    alone = brought(read(f"filename,label,annotator,confidence\n{rows}", NAMES), ["a", "b"])
    for combine in (None, "majority", "mean"):
        content = f"filename,label,annotator,confidence\n{rows}c,cat,x,0.9\nc,cat,y,0.7\n"
        beside = brought(read(content, NAMES), ["a", "b", "c"], combine=combine)
        assert shares(beside)[:2] == shares(alone) == [[0.6, 0.4], [0.3, 0.7]]
        assert shares(beside)[2] == [0.8, 0.2]


def test_a_confidence_below_chance_makes_no_other_class_likelier(read, caplog):
    table = read("filename,label,confidence\na,cat,0.1\nb,dog,0.8\n", NAMES)
    assert shares(brought(table, ["a", "b"])) == [[0.5, 0.5], [0.2, 0.8]]
    assert "1 of 2 labels have a confidence below chance" in caplog.text


# ---------------------------------------------------------------- 8: several annotators


CROWD = "filename,cat,dog,annotator\na,0.9,0.1,x\na,0.4,0.6,y\na,0.4,0.6,z\nb,1,0,x\n"


@pytest.mark.parametrize(("combine", "said", "recorded"), [
    (None, [0.5667, 0.4333], "mean"), ("mean", [0.5667, 0.4333], "mean"), ("majority", [0.4, 0.6], "majority")])
def test_annotators_who_give_probabilities_are_combined_as_asked(read, combine, said, recorded):
    labels = brought(read(CROWD), ["a", "b"], combine=combine)
    assert shares(labels) == [said, [1, 0]] and labels.manifest.who["combine"] == recorded


def test_dawid_skene_of_probabilities_is_that_of_their_classes(read):
    hard = "filename,label,annotator\na,cat,x\na,dog,y\na,dog,z\nb,cat,x\n"
    one, other = (brought(read(text), ["a", "b"], combine="dawid-skene") for text in (CROWD, hard))
    assert shares(one) == shares(other) and one.manifest.who["combine"] == "dawid-skene"


def test_what_was_not_combined_is_not_said_to_be(read):
    assert brought(read("filename,label\na,cat\n"), ["a"], ["cat"], "mean").manifest.who["combine"] is None


def test_a_tie_is_shared_and_counts_in_part(read, caplog, tmp_path):
    """Of two annotators one is always right, the other on half: a quarter is wrong, whichever class comes first."""
    caplog.set_level(logging.INFO)
    rows = [f"{i},{NAMES[i % 2]},x\n{i},{NAMES[i // 2 % 2]},y\n" for i in range(8)]
    labels = brought(read("filename,label,annotator\n" + "".join(rows), NAMES), [str(i) for i in range(8)])
    assert shares(labels)[:3] == [[1, 0], [0.5, 0.5], [0.5, 0.5]]
    found = GivenLabels("t.csv", labels, None).compared_with([i % 2 for i in range(8)])
    assert found.wrong == 0.25
    assert "of 4 of 8 samples several classes are the most likely ones; these share" in caplog.text
    assert "25.00 % of 8 labels are not the ground truth; 4 of them leave it open" in caplog.text


def test_where_one_class_is_needed_ties_take_turns():
    best, tied = most_likely(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.2, 0.4, 0.4], [0.1, 0.1, 0.8]]))
    assert best.tolist() == [0, 1, 1, 2] and tied.tolist() == [True, True, True, False]


# ---------------------------------------------------------------- 9: rows that repeat or contradict each other


def test_a_row_that_repeats_another_counts_once_and_is_said(read, caplog):
    caplog.set_level(logging.INFO)
    content = "filename,label,annotator\na,cat,x\na,cat,x\na,dog,y\n"
    assert shares(brought(read(content, NAMES), ["a"])) == [[0.5, 0.5]]
    assert "1 row(s) repeat one before, and do not count, such as of a" in caplog.text
    with pytest.raises(UserError, match=r"1 row\(s\) say something else of a sample .* or tell its annotators apart"):
        brought(read(f"{content}a,dog,x\n", NAMES), ["a"])


# ---------------------------------------------------------------- 10, 11: what is left out, and what is warned of


def test_labels_of_one_class_are_warned_of(read, caplog):
    brought(read("filename,label\na,cat\nb,cat\n", NAMES), ["a", "b"])
    assert "WARNING: x: all of its 2 labels are the class 'cat'" in caplog.text


def test_what_says_nothing_is_left_out_as_far_as_asked(read, caplog):
    content = "filename,cat,dog\na,0.5,0.5\nb,nan,1\nc,0.2,0.7\n"
    with pytest.raises(UserError, match=r"1 row\(s\) with values that are not finite, the first of them row 2"):
        read(content, NAMES)
    assert read(content, NAMES, missing="skip").keys == ["a"]
    assert read("filename,label\na,cat\nb,dgo\n", NAMES, missing="skip").keys == ["a"]


def test_a_row_that_ends_early_has_empty_values(read, caplog):
    assert read("filename,label\na,cat\nb\n").keys == ["a"]
    assert "1 of 2 rows have no label and are left out, the first of them row 2" in caplog.text


def test_a_table_in_place_of_the_labels_is_read_alike(read, tmp_path):
    read("filename,label\na,1\nb,2\n")
    keys = SampleKeys("filename", ["b", "a"], range(2))
    assert labels_in_table(tmp_path / "t.csv", keys, ["01", "02"], "x").tolist() == [1, 0]


def test_a_number_alone_makes_no_million_classes(read):
    with pytest.raises(UserError, match="by the highest number: 1000000 are more than the 1 that stand behind"):
        read("filename,top_k\na,999999:1\n")
