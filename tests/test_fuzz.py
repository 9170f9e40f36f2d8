"""Hypothesis against everything that reads what a person or a stranger wrote, and against every loss.

Nothing may come out but a value or a `UserError` of one line. A few seconds in the suite; ``FUZZ=N`` takes N times as
many examples, drawn anew (docs/evidence/scale.md).
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.parts import calm, read_label_table, small_model, write_folder, write_list
from w2s_plugins.cli import parse, train_parser, validate_parser
from w2s_plugins.data import create_dataset
from w2s_plugins.data.class_splits import read_class_list
from w2s_plugins.data.inat import read_list
from w2s_plugins.files import write_json
from w2s_plugins.labels.selection import read_selection
from w2s_plugins.labels.store import Manifest, read_manifest, read_part, write_part
from w2s_plugins.models.loading import (
    create_model,
    load_weights,
    read_checkpoint,
    read_weights,
    settings_beside,
)
from w2s_plugins.resolve.train import resolve_train_args

TIMES = int(os.environ.get("FUZZ", "1"))
RUNS_CODE = {"plugins", "device_modules"}


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=TIMES * examples,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ---------------------------------------------------------------- flags and YAML


KEYS = {
    script: sorted(set(parser().by_dest()) - RUNS_CODE)
    for script, parser in (("train", train_parser), ("validate", validate_parser))
}
WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            "w2s/digits",
            "w2s_cnn2",
            "adaptconf",
            "kd+rkd",
            "0:0.5",
            "symmetric:0.2",
            "5x1",
            "cpu",
            "-1",
            "1e400",
            "nan",
            "a=1",
            "file:x",
            "\u0130",
            "hf-hub:a/b",
            "local-dir:.",
        ]
    ),
    st.text(max_size=12),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.dates(), st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(WORDS, st.integers()), inner, max_size=3),
    ),
    max_leaves=5,
)


@fuzz(60)
@given(script=st.sampled_from(sorted(KEYS)), data=st.data())
def test_yaml_and_flags(tmp_path_factory, script, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    keys = st.sampled_from(KEYS[script])
    content = data.draw(st.dictionaries(st.one_of(keys, keys, WORDS), VALUES, max_size=5))
    text = data.draw(
        st.one_of(
            st.just(yaml.safe_dump(content)),
            st.text(alphabet="&*!{}[]:,-?|>%@#'\"\n\t 0a1e~.x<", max_size=60),
        )
    )
    path.write_text(text, encoding="utf-8")
    pairs = data.draw(st.lists(st.tuples(keys, WORDS), max_size=4))
    argv = [
        "--config",
        str(path),
        *(part for key, word in pairs for part in (f"--{key.replace('_', '-')}", word)),
    ]
    parser = train_parser() if script == "train" else validate_parser()
    if data.draw(st.integers(0, 3)) == 0:  # a file that names others, itself among them
        below = data.draw(
            st.lists(st.sampled_from([path.name, "other.yaml", "absent.yaml", ".", ""]), max_size=3)
        )
        path.with_name("other.yaml").write_text(yaml.safe_dump({"config": below, **content}))
        argv[1:1] = [str(path.with_name("other.yaml"))]
    found = calm(lambda: parse(parser, argv))
    if found and script == "train":
        args, given_by_hand = found
        args.plugins = []
        calm(lambda: resolve_train_args(args, given_by_hand))


# ---------------------------------------------------------------- files


def damaged(data: st.DataObject, good: bytes) -> bytes:
    """A real file with bits turned over, cut off, or with other bytes in it."""
    content = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        # headers and indices, where most can go wrong, are at the ends
        far = st.one_of(
            st.integers(0, min(300, len(content) - 1)),
            st.integers(0, len(content) - 1),
            st.integers(max(0, len(content) - 300), len(content) - 1),
        )
        content[data.draw(far)] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    start = data.draw(st.sampled_from([0, 0, 0, 1, 8, 64]))
    return bytes(content[start:end]) + data.draw(st.sampled_from([b"", b"", b"x" * 40]))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One real file of each kind."""
    folder = tmp_path_factory.mktemp("real")
    model = small_model()
    torch.save(
        {
            "state_dict": model.state_dict(),
            "epoch": 3,
            "args": argparse.Namespace(model="x", mean=(0.5,)),
        },
        folder / "last.pth.tar",
    )
    save_file(model.state_dict(), folder / "model.safetensors")
    config = dict(
        architecture="w2s_cnn2",
        num_classes=10,
        pretrained_cfg=dict(mean=[0.5]),
        model_args=dict(width=8),
    )
    (folder / "config.json").write_text(json.dumps(config))
    labels = np.arange(40) % 10
    np.save(folder / "labels.npy", labels)
    (folder / "labels.csv").write_text(
        "index,label\n" + "".join(f"{i},{i % 10}\n" for i in range(40))
    )
    (folder / "classes.txt").write_text("# some\na\nb  # second\n")
    write_list(write_folder(folder / "inat", {"images": 8}, classes=4), "train2018.json", "images")
    (folder / "list.json").write_bytes((folder / "inat" / "train2018.json").read_bytes())
    write_part(folder, MANIFEST, PART, torch.randn(12, 10))
    write_json(folder / "manifest.json", MANIFEST.content)
    return folder


MANIFEST = Manifest(12, 10, {"member": 0}, {}, dtype=torch.float32)
(PART,) = MANIFEST.parts(0)


@fuzz(60)
@given(name=st.sampled_from(["last.pth.tar", "model.safetensors"]), data=st.data())
def test_checkpoints(files, tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(damaged(data, (files / name).read_bytes()))
    (folder / "config.json").write_bytes(damaged(data, (files / "config.json").read_bytes()))
    state = calm(lambda: read_weights(path, "--checkpoint"))
    calm(lambda: read_checkpoint(path, "--resume"))
    calm(lambda: settings_beside(path, "--checkpoint"))
    calm(lambda: create_model("--model", f"local-dir:{folder}", pretrained=True))
    if state:
        calm(lambda: load_weights(small_model(), state, str(path), "--checkpoint"))


NAMES_OF_CLASSES = [f"c{i}" for i in range(9)] + ["four"]
DIGITS = create_dataset("w2s/digits", None, "train")
READERS = {
    "labels.npy": lambda p: read_label_table(Path(p), NAMES_OF_CLASSES),
    "labels.csv": lambda p: read_label_table(Path(p), NAMES_OF_CLASSES),
    "classes.txt": lambda p: read_class_list(p, "--class-list"),
    "selection.npy": lambda p: read_selection(p, DIGITS, len(DIGITS), None),
    "selection.csv": lambda p: read_selection(p, DIGITS, len(DIGITS), None),
    "list.json": lambda p: read_list(Path(p)),
    PART.file: lambda p: read_part(Path(p).parent, MANIFEST, PART),
    "manifest.json": lambda p: read_manifest(
        Path(p).rename(Path(p).with_name("labels.json")).parent
    ),
}


@fuzz(200)
@given(name=st.sampled_from(sorted(READERS)), data=st.data())
def test_labels_lists_and_caches(files, tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / name
    good = (files / name.replace("selection", "labels")).read_bytes()
    text = st.text(alphabet="0123456789,:-[]{}\n abcx#&*!'\"\u0664", max_size=60).map(str.encode)
    path.write_bytes(
        damaged(data, good)
        if data.draw(st.integers(0, 2))
        else data.draw(st.one_of(text, st.binary(max_size=60)))
    )
    calm(lambda: READERS[name](str(path)))
