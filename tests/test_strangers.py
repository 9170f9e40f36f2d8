"""What strangers send: names that would steer a terminal, numbers that nothing stands behind, files that are none."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.task import ClassificationTask

from tests.parts import read_label_table, refusal, small_model
from w2s_plugins.api import create_teacher
from w2s_plugins.cli.declare import Parser
from w2s_plugins.data import create_dataset
from w2s_plugins.data.class_splits import read_class_list
from w2s_plugins.data.unlabeled import expand
from w2s_plugins.errors import UserError, holds_token, nearest, run_main, say, scrub, shown
from w2s_plugins.hub.markdown import code, fenced
from w2s_plugins.hub.model_card import model_card
from w2s_plugins.labels.__main__ import main
from w2s_plugins.labels.names import read_class_names
from w2s_plugins.labels.published import leads_outside
from w2s_plugins.labels.selection import read_selection
from w2s_plugins.labels.store import LabelReader, Manifest, Part, write_part
from w2s_plugins.metrics.long_tail import read_counts
from w2s_plugins.models.loading import create_model, load_weights, read_weights, settings_beside
from w2s_plugins.monitor import format_table, setup_logging
from w2s_plugins.run.checkpoint import Checkpoint
from w2s_plugins.run.restore import restore
from w2s_plugins.teachers.clip import read_prompts

# clears the screen, colours, forges a line of the log, turns the direction of writing, is no text
EVIL = "cat\x1b[2J\x1b[31m\r\n12:00:00 WARNING: forged\u202e\x9b1m\udcff"
SAFE = r"cat\x1b[2J\x1b[31m\r\n12:00:00 WARNING: forged\u202e\x9b1m\udcff"


# ---------------------------------------------------------------- names


def test_foreign_text_is_one_printable_line() -> None:
    assert shown(EVIL) == SAFE
    assert shown("Zürich, 猫, C:\\x.png") == "Zürich, 猫, C:\\x.png"


def test_the_log_writes_names_so(capsys: pytest.CaptureFixture) -> None:
    setup_logging(primary=True)
    logging.getLogger("w2s_plugins.x").warning("no label of %s", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("w2s_plugins.x").exception("failed")
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith(f"no label of {SAFE}")
    assert not any(
        "\x1b" in line or (line.startswith("12:00:00 W") and "forged" in line)
        for line in others[:1]
    )
    assert all(line.isprintable() for line in (first, *others))


def test_console_and_errors_write_names_so(capsys: pytest.CaptureFixture) -> None:
    say(f"label {EVIL}", "next")
    assert capsys.readouterr().out == f"label {SAFE}\nnext\n"
    assert (
        SAFE in format_table([[EVIL, 1]], ["", EVIL])
        and len(format_table([[EVIL, 1]], ["", "n"]).splitlines()) == 3
    )

    def fail() -> None:
        raise UserError(f"{EVIL}: no such file")

    with pytest.raises(SystemExit):
        run_main(fail, "x")
    assert capsys.readouterr().err.endswith(f"error: {SAFE}: no such file\n")


def test_a_command_on_labels_writes_names_so(
    tmp_path: Path, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        logging.getLogger(), "handlers", []
    )  # its log goes where that of a process would
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    evil = EVIL.replace("\udcff", "")
    rows = [
        {"filename": "a.png", "label": evil},
        {"filename": f"x{evil}.png", "label": "dog", evil: 1},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "".join(
        command(main, "labels", "check", tmp_path / "t.jsonl", "--data-dir", tmp_path / "images")[
            1:
        ]
    )
    assert "forged" in text and "Traceback" not in text
    assert all(line.isprintable() and not line.startswith("12:00:00") for line in text.splitlines())


# ---------------------------------------------------------------- sizes


def csv_of_a_high_class(path: Path) -> None:
    path.write_text("id,label\n" + "".join(f"{i},{i % 3}\n" for i in range(1500)) + "1500,999999\n")


def top_k_of_a_high_class(path: Path) -> None:
    path.write_text(
        "id,top_k\n" + "".join(f"{i},{i % 3}:0.9;5:0.1\n" for i in range(1000)) + "1000,999999:1\n"
    )


def labels_folder(path: Path, **changes: object) -> None:
    path.mkdir()
    manifest = Manifest(300, 3, {}, {})
    write_part(path, manifest, Part(0, 0, 300), torch.zeros(300, 3))
    (path / "labels.json").write_text(json.dumps({**manifest.content, **changes}))


def checkpoint_of_many_classes(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": {"num_classes": 10**9}}, path)


SIZES = {
    "csv": (
        csv_of_a_high_class,
        "x.csv",
        read_label_table,
        "by the highest number: 1000000 are more than the 4",
    ),
    "top-k": (
        top_k_of_a_high_class,
        "x.csv",
        read_label_table,
        "by the highest number: 1000000 are more than the 5",
    ),
    "classes": (
        lambda p: labels_folder(p, num_classes=1000000),
        "labels",
        LabelReader,
        "is part [0, 0, 300] of the labels",
    ),
    "flags": (
        checkpoint_of_many_classes,
        "x.pth",
        lambda p: settings_beside(p, "--checkpoint"),
        "num_classes: 1000000000 is a int, expected",
    ),
}


@pytest.mark.parametrize("kind", SIZES)
def test_a_number_is_believed_when_something_of_that_size_stands_behind_it(
    tmp_path: Path, kind: str
) -> None:
    write, name, read, message = SIZES[kind]
    write(tmp_path / name)
    assert message in refusal(read, tmp_path / name)


# ---------------------------------------------------------------- weights that are none

WEIGHTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "int64": (
        lambda weight: (100 * weight).long(),
        "1 of its tensors are whole numbers (fc.weight)",
    ),
    "int8": (
        lambda weight: (100 * weight).to(torch.int8),
        "1 of its tensors are whole numbers (fc.weight)",
    ),
    "bool": (lambda weight: weight > 0, "1 of its tensors are whole numbers (fc.weight)"),
    "complex": (
        lambda weight: weight * 1j,
        "tensors are no plain numbers (fc.weight), but sparse, quantised",
    ),
    "float8": (lambda weight: weight.to(torch.float8_e4m3fn), "are no plain numbers (fc.weight)"),
    "uint16": (lambda weight: weight.to(torch.uint16), "are no plain numbers (fc.weight)"),
    "quantised": (
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "are no plain numbers",
    ),
    "sparse": (lambda weight: weight.to_sparse_csr(), "are no plain numbers"),
    "nested": (
        lambda weight: torch.nested.nested_tensor([*weight]),
        "expected tensors only",
    ),  # of torch 2.15
    "without data": (lambda weight: weight.to("meta"), "are no plain numbers"),
}


@pytest.mark.filterwarnings("ignore")  # torch's of kinds of tensors that it means to change
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_another_kind_are_refused(tmp_path: Path, kind: str) -> None:
    """Torch would round, or take the real part, without a word."""
    make, message = WEIGHTS[kind]
    state = small_model(0, "test_resnet").state_dict()
    name = "fc.weight"
    torch.save({**state, name: make(state[name])}, tmp_path / "x.pth")
    with pytest.raises(UserError) as refused:
        state = read_weights(tmp_path / "x.pth", "--checkpoint")
        load_weights(small_model(0, "test_resnet"), state, "x", "--checkpoint")
    is_expected = message in str(refused.value)
    if kind == "nested":  # an older torch reads them
        is_expected = is_expected or "are no plain numbers" in str(refused.value)
    assert is_expected and "\n" not in str(refused.value)


def test_a_head_without_dimensions_is_refused(tmp_path: Path) -> None:
    """A teacher's head is read for its number of classes before the shapes are compared."""
    state = {name: torch.tensor(1.0) for name in small_model(0, "test_resnet").state_dict()}
    torch.save(state, tmp_path / "x.pth")
    student = small_model(0, "test_resnet")
    message = refusal(create_teacher, "test_resnet", student, checkpoint=tmp_path / "x.pth")
    assert "x.pth" in message


def test_counters_of_batches_may_be_whole_numbers_and_others_of_any_width(tmp_path: Path) -> None:
    state = {
        name: value.double() if value.is_floating_point() else value.int()
        for name, value in small_model(0, "test_resnet").state_dict().items()
    }
    assert any(value.dtype == torch.int32 for value in state.values())
    torch.save(state, tmp_path / "x.pth")
    read = read_weights(tmp_path / "x.pth", "--checkpoint")
    report = load_weights(small_model(1, "test_resnet"), read, "x", "--checkpoint")
    assert report.matched == len(state)


def test_whole_numbers_in_an_export_of_others_are_refused(tmp_path: Path) -> None:
    """Whose weights timm itself loads."""
    save_for_hf(small_model(0, "test_resnet"), tmp_path / "export", safe_serialization=True)
    assert create_model("--model", f"local-dir:{tmp_path / 'export'}", pretrained=True) is not None
    weights = load_file(tmp_path / "export/model.safetensors")
    name = next(name for name, value in weights.items() if value.ndim == 4)
    save_file({**weights, name: weights[name].long()}, tmp_path / "export/model.safetensors")
    message = refusal(create_model, "--model", f"local-dir:{tmp_path / 'export'}", pretrained=True)
    assert f"model.safetensors: 1 of its tensors are whole numbers ({name})" in message


def test_whole_numbers_in_a_checkpoint_to_go_on_from_are_refused(tmp_path: Path) -> None:
    model = small_model(0, "test_resnet")
    task = ClassificationTask(model, verbose=False)
    content = {
        "state_dict": {name: value.long() for name, value in model.state_dict().items()},
        "epoch": 0,
    }
    checkpoint = Checkpoint.from_content(tmp_path / "last.pth.tar", content)
    assert "--resume" in refusal(restore, checkpoint, task, None, None, None)
    assert "whole numbers" in refusal(restore, checkpoint, task, None, None, None)


# ---------------------------------------------------------------- lengths

LONG = 300_000  # characters; what takes the square of that needs minutes
LONG_TEXTS = {
    f"{text}...{end}": (text * LONG)[:LONG] + end
    for text, end in (
        ("a", "x"),
        (" ", "x"),
        ("a ", ""),
        ("a ", "/,"),
        ("a/", ""),
        ("aa:/", "@"),
        ("aa://b@", ""),
        ("http://", "?"),
        ("hf_a", ""),
        ("hf_oauth_", " "),
        ("'", ""),
        ("`", ""),
        ("{,", ""),
        ("../", "x"),
        ("-1", "x"),
        ("\n", "x"),
        ("\x1b", ""),
    )
}
LONG_TEXTS["commas"] = "{" + "," * LONG
LONG_TEXTS["digits"] = "-" + "1" * LONG + "x"
READERS: dict[str, Callable[[str], object]] = {
    "scrub": scrub,
    "holds_token": holds_token,
    "shown": shown,
    "nearest": lambda text: nearest(text, [text[::-1], text[1:], text + "a"]),
    "UserError": lambda text: str(UserError(text)),
    "card": lambda text: model_card({"command": text, "model": {"name": text}, "warnings": [text]}),
    "fenced": lambda text: fenced(text, "yaml"),
    "code": code,
    "name of a sample": leads_outside,
    "braces": lambda text: next(expand(text)),
    "numbers": lambda text: Parser()._negative_number_matcher.match(text),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", LONG_TEXTS, ids=ascii)
def test_long_text_is_read_once(reader: str, text: str) -> None:
    """A text takes milliseconds; with a search that begins anew at each of its characters, minutes."""
    begun = time.thread_time()
    READERS[reader](LONG_TEXTS[text])
    assert time.thread_time() - begun < 10


def test_messages_are_short(capsys: pytest.CaptureFixture) -> None:
    """And end with what is to be done."""
    setup_logging(primary=True)
    error = UserError(f"x.csv: {'a' * LONG} is no class; expected a name")
    logging.getLogger("w2s_plugins.x").warning("%s", error)
    logging.getLogger("other").warning("x.csv: %s is no class; expected a name", "a" * LONG)
    for text in (str(error), *capsys.readouterr().err.splitlines()):
        assert (
            len(text) < 5000
            and "x.csv: aaaa" in text
            and text.endswith("a is no class; expected a name")
        )
        assert "characters ...]" in text
    assert len(format_table([["a" * LONG, 1], ["b", 2]], ["b" * LONG, "n"])) < 5000
    assert str(UserError("a" * 1000)) == "a" * 1000
    classes = ", ".join(f"class number {number}" for number in range(1000))
    logging.getLogger("w2s_plugins.x").warning(classes)
    logging.getLogger("w2s_plugins.x").warning("a " * LONG)
    listed, words = capsys.readouterr().err.splitlines()
    assert listed.endswith(classes) and len(words) < 101_000


@pytest.mark.timeout(60)
def test_a_table_with_a_long_cell_is_checked(tmp_path: Path, command: Callable) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        f"filename,label\na.png,cat\nb.png,{'dog' * LONG}\n{'c/' * LONG}.png,cat\n"
    )
    code, *texts = command(
        main, "labels", "check", tmp_path / "t.csv", "--data-dir", tmp_path / "images"
    )
    assert code == 0 and "can be trained on: labels of 2 of the 2 samples in 2 classes" in "".join(
        texts
    )
    assert len("".join(texts)) < 20_000


LONG_CELLS = {
    "label": ("filename,label\na.png,{0}\nb.png,2\n", "2 answers about 2 samples"),
    "number": ("filename,label\na.png,{1}\nb.png,2\n", ""),
    "annotator": (
        "filename,label,annotator\na.png,cat,{0}\n",
        "annotator has a name of 300000 characters",
    ),
    "header": ("filename,{0}\na.png,cat\n", "no labels; expected a column label"),
    "name": ("filename,label\n{0}.png,cat\n", ""),
    "id": ("id,label\n{1},cat\n", "names no sample"),
    "spaces": ("filename,label\n{2}a.png,cat\n", ""),
    "top_k": ("filename,top_k\na.png,{0}:0.5;b:0.5\n", ""),
    "top_k that is none": ("filename,top_k\na.png,{0}\n", "expected pairs such as"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", LONG_CELLS)
def test_a_long_cell_of_any_column_is_read_or_refused(
    tmp_path: Path, command: Callable, kind: str
) -> None:
    text, message = LONG_CELLS[kind]
    (tmp_path / "t.csv").write_text(text.format("a" * LONG, "9" * LONG, " " * LONG))
    code, out, err = command(main, "labels", "check", tmp_path / "t.csv")
    assert code in (0, 2) and "Traceback" not in err and len(out + err) < 120_000
    assert message in out + err


# ---------------------------------------------------------------- what is no file


SPLIT = create_dataset("w2s/digits", None, "train")
OPENED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "selection": ("x.txt", lambda p: read_selection(str(p), SPLIT, len(SPLIT), None)),
    "selection, npy": ("x.npy", lambda p: read_selection(str(p), SPLIT, len(SPLIT), None)),
    "table": ("x.csv", read_label_table),
    "table, npz": ("x.npz", read_label_table),
    "part of labels": ("labels/view000-000000000.safetensors", lambda p: LabelReader(p.parent)),
    "manifest of labels": ("labels/labels.json", lambda p: LabelReader(p.parent)),
    "class names": ("x.txt", lambda p: read_class_names(str(p))),
    "class list": ("x.txt", lambda p: read_class_list(str(p), "--class-list")),
    "class counts": ("x.json", lambda p: read_counts(p, "--checkpoint")),
    "prompts": ("x.txt", lambda p: read_prompts(str(p))),
    "weights": ("x.pth", lambda p: read_weights(p, "--finetune")),
}


@pytest.mark.parametrize("special", ["fifo", "link to a device"])
@pytest.mark.parametrize("kind", OPENED)
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str, special: str) -> None:
    """Whoever opened it would wait for ever, or read without end."""
    name, read = OPENED[kind]
    path = tmp_path / name
    if kind.endswith("labels"):
        labels_folder(path.parent)
        path.unlink()
    if special == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(
        UserError, match="a FIFO, not a regular" if special == "fifo" else "a device, not a regular"
    ):
        read(path)
