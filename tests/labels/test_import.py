"""Tables as strangers send them: imported in one attempt, or with one question whose answers can be typed."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from w2s_plugins.labels.__main__ import main

STUDIO = [
    {
        "data": {"image": "a.png"},
        "annotations": [
            {"completed_by": 1, "result": [{"value": {"choices": ["cat"]}}]},
            {"completed_by": 2, "result": [{"value": {"choices": ["dog"]}}]},
        ],
    },
]
# a file, what is typed after its name, and the rows that are written, or the flags of the reading that is offered
GOLDEN = [
    ("de.csv", "filename;label;confidence\na;Hund;0,75\nb;Katze;1\nc;hund;1", "--class-names Hund,Katze",
     "filename,label,confidence / a,Hund,0.75 / b,Katze,1.0 / c,Hund,1.0"),
    ("de.csv", "Bild;label\na;Hund\nb;Katze", "", "--filename Bild"),
    ("de.csv", "Bild;label\na;Hund\nb;Katze", "--filename Bild", "filename,label / a,Hund / b,Katze"),
    ("crowd.csv", "filename,Anna,Bob,note\na,cat,dog,x\nb,dog,dog,", "", "--annotators Anna,Bob"),
    ("crowd.csv", "filename,Anna,Bob,note\na,cat,dog,x\nb,dog,dog,", "--annotators Anna,Bob",
     "filename,label,annotator / a,cat,Anna / b,dog,Anna / a,dog,Bob / b,dog,Bob"),
    ("s.json", json.dumps(STUDIO), "", "filename,label,annotator / a.png,cat,1 / a.png,dog,2"),
    ("flags.csv", "filename,cat,dog\na,1,1\nb,0,1", "", "--task multilabel"),
    ("flags.csv", "filename,cat,dog\na,1,1\nb,0,1", "--task multilabel",
     'filename,label / a,"[""cat"", ""dog""]" / b,"[""dog""]"'),
    ("tags.csv", "filename,tags\na,cat|dog\nb,dog", "", "--task multilabel"),
    ("tags.csv", "filename,tags\na,cat|dog\nb,dog", "--task multilabel",
     'filename,label / a,"[""cat"", ""dog""]" / b,"[""dog""]"'),
    ("long.csv", "filename,tags\na,cat\na,dog\nb,dog", "--task multilabel",
     'filename,label / a,"[""cat"", ""dog""]" / b,"[""dog""]"'),
    ("gaps.csv", "filename,cat,dog\na,1,\nb,0,1", "--task multilabel",
     "filename,probabilities.cat,probabilities.dog / a,1.0, / b,0.0,1.0"),
    ("pandas.csv", ",filename,label\n0,a,cat\n1,b,dog", "", "filename,label / a,cat / b,dog"),
    ("turk.csv", "HITId,WorkerId,Input.image_url,Answer.label\nh,W1,a,cat\nh,W2,a,dog", "",
     "filename,label,annotator / a,cat,W1 / a,dog,W2"),
    ("npz.csv", "filename,logits.cat,logits.dog\na,3,-1", "", "filename,logits.cat,logits.dog / a,3.0,-1.0"),
]  # fmt: skip
REFUSED = [
    ("id,label\n1,cat\n2,dog", "", "its ids are 1 to 2; expected positions, which begin with 0"),
    ("filename,label\na,1\nb,2", "", "its classes are 1 to 2; expected positions, which begin"),
    ("filename,label\n../a,cat", "", "'../a' leads out of the folder of the images"),
    ("filename,label", "", "holds no labels"),
    ("filename,label\na,cat\nb,Cat\nc,cat", "", "'Cat' 1 (nearest: cat)"),
    ("filename,label\na,cat", "--label lable", "has no column 'lable' (nearest: label)"),
    ("filename,label\na,cat", "--filename photo", "has no column 'photo'; it has filename, label"),
    ("filename,label\na,cat", "--label label --annotators label", "exclude each other"),
    ("filename,label\na,cat", "--delimiter ab", "--delimiter ab: expected one of comma"),
]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable) -> Callable:
    """Imports a file with some content; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, content: str, flags: str) -> tuple[int, str, str]:
        Path(name).write_text(content)
        return command(main, "labels", "import", name, "--output", "o.csv", *flags.split())

    return run


@pytest.mark.parametrize(("name", "content", "flags", "expected"), GOLDEN)
def test_a_table_is_written_or_asked_about(imported, name, content, flags, expected):
    code, out, err = imported(name, content, flags)
    if expected.startswith("--"):
        # whoever types one of the lines has answered
        assert code == 2 and err.count("\n") == 1 and not Path("o.csv").exists()
        lines = [shlex.split(line) for line in out.splitlines() if " import " in line]
        assert expected.split()[1] in lines[0]
        code, out, err = imported(name, content, expected)
        assert code == 0, err
        return
    assert code == 0, err
    rows = [[*row] for row in csv.reader(Path("o.csv").read_text().splitlines())]
    assert rows == [[*row] for row in csv.reader(expected.split(" / "))]


@pytest.mark.parametrize(("content", "flags", "message"), REFUSED)
def test_refused_in_one_line(imported, content, flags, message):
    code, _, err = imported("t.csv", content, flags)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not Path("o.csv").exists()


def test_what_was_understood_is_shown_and_can_be_repeated(imported, command):
    content = "photo,label,annotator,width\na,cat,x,3\nb,Dog,y,3\nc,,y,3\n=d,dog ,x,3\n"
    code, out, err = imported("t.csv", content, "--class-names cat,dog")
    assert code == 0 and not err
    for line in (
        "  photo      names of images",
        "2 classes: dog (2), cat (1)",
        "2 people: x (2), y (1)",
        "1 of 4 answers have no label and are left out, the first of them in row 3",
        "classes that are written otherwise: 'Dog' 1 (dog)",
        "columns that are not read: width",
        "names begin as formulas of a spreadsheet do, such as '=d'",
    ):
        assert line in out, line
    written = Path("o.csv").read_text()
    Path("o.csv").unlink()
    again = shlex.split(out.splitlines()[-1])
    code, _, err = command(main, "labels", *again[again.index("import") :])
    assert code == 0 and Path("o.csv").read_text() == written


def test_several_files_are_one_crowd(imported, command):
    Path("bob.csv").write_text("filename,label\na,dog\n")
    Path("anna.csv").write_text("filename,label\na,cat\n")
    code, _, err = command(main, "labels", "import", "anna.csv", "bob.csv", "--output", "o.csv")
    assert code == 0, err
    assert Path("o.csv").read_text() == "filename,label,annotator\na,cat,anna.csv\na,dog,bob.csv\n"
