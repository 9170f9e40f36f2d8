"""Hypothesis against everything that reads what a person or a stranger wrote, and against every loss.

Nothing may come out but a value or a `UserError` of one line. A few seconds in the suite; ``FUZZ=long`` for the longer
run whose figures are in docs/reliability.md.
"""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.losses.common import NUM_SAMPLES, logit_losses, make_loss
from tests.losses.feature_cases import NAMES, NUM_CLASSES, make, make_inputs
from tests.parts import small_model
from w2s_plugins.cli import parse, resolve_train_args, train_parser, validate_parser
from w2s_plugins.data import create_dataset
from w2s_plugins.data.class_splits import read_class_list
from w2s_plugins.data.noise import read_class_map, read_labels
from w2s_plugins.data.pickles import labelled_images, read_pickle
from w2s_plugins.data.selection import read_selection
from w2s_plugins.errors import UserError
from w2s_plugins.loading import load_weights, read_checkpoint, read_weights, settings_beside
from w2s_plugins.losses import LossInputs
from w2s_plugins.target_cache import CacheSpec, read_part, write_part
from w2s_plugins.teachers import read_class_map as read_teacher_map

LONG = os.environ.get("FUZZ") == "long"
RUNS_CODE = {"plugins", "device_modules"}


def fuzz(short: int, long: int) -> settings:
    return settings(max_examples=long if LONG else short, deadline=None, derandomize=not LONG, database=None,
                    suppress_health_check=list(HealthCheck))


def calm(call: Callable[[], object]) -> object:
    """What ``call`` returns, or None where it ended in a `UserError` of one line."""
    try:
        return call()
    except UserError as error:
        note(str(error))
        assert str(error)
    return None


# ---------------------------------------------------------------- flags and YAML


KEYS = {script: sorted(set(parser().by_dest()) - RUNS_CODE) for script, parser in (
    ("train", train_parser), ("validate", validate_parser))}
WORDS = st.one_of(
    st.sampled_from(["", "w2s/digits", "w2s_cnn2", "adaptconf", "kd+rkd", "0:0.5", "symmetric:0.2", "5x1", "cpu", "-1",
                     "1e400", "nan", "a=1", "file:x", "\u0130", "hf-hub:a/b", "local-dir:."]), st.text(max_size=12))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.dates(), st.binary(max_size=4))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.one_of(WORDS, st.integers()), inner, max_size=3)), max_leaves=5)


@fuzz(60, 4000)
@given(script=st.sampled_from(sorted(KEYS)), data=st.data())
def test_yaml_and_flags(tmp_path_factory, script, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    keys = st.sampled_from(KEYS[script])
    content = data.draw(st.dictionaries(st.one_of(keys, keys, WORDS), VALUES, max_size=5))
    text = data.draw(st.one_of(st.just(yaml.safe_dump(content)), st.text(
        alphabet="&*!{}[]:,-?|>%@#'\"\n\t 0a1e~.x<", max_size=60)))
    path.write_text(text, encoding="utf-8")
    pairs = data.draw(st.lists(st.tuples(keys, WORDS), max_size=4))
    argv = ["--config", str(path), *(part for key, word in pairs for part in (f"--{key.replace('_', '-')}", word))]
    parser = train_parser() if script == "train" else validate_parser()
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
        far = st.one_of(st.integers(0, min(300, len(content) - 1)), st.integers(0, len(content) - 1),
                        st.integers(max(0, len(content) - 300), len(content) - 1))
        content[data.draw(far)] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    start = data.draw(st.sampled_from([0, 0, 0, 1, 8, 64]))
    return bytes(content[start:end]) + data.draw(st.sampled_from([b"", b"", b"x" * 40]))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One real file of each kind."""
    folder = tmp_path_factory.mktemp("real")
    model = small_model()
    torch.save({"state_dict": model.state_dict(), "epoch": 3, "args": argparse.Namespace(model="x", mean=(0.5,))},
               folder / "last.pth.tar")
    save_file(model.state_dict(), folder / "model.safetensors")
    config = dict(architecture="w2s_cnn2", num_classes=10, pretrained_cfg=dict(mean=[0.5]), model_args=dict(width=8))
    (folder / "config.json").write_text(json.dumps(config))
    labels = np.arange(40) % 10
    np.save(folder / "labels.npy", labels)
    torch.save({"clean_label": labels, "worse_label": labels}, folder / "labels.pt")
    (folder / "labels.csv").write_text("index,label\n" + "".join(f"{i},{i % 10}\n" for i in range(40)))
    (folder / "map.yaml").write_text("0: 1\n2: 3\nfour: 5\n")
    (folder / "map.json").write_text('{"0": 1, "2": 3}')
    (folder / "list.yaml").write_text("[0, 1, null, 3, 9]\n")
    (folder / "classes.txt").write_text("# some\na\nb  # second\n")
    (folder / "images.pkl").write_bytes(pickle.dumps(
        {"data": np.zeros((4, 5, 5, 3), np.uint8), "labels": [0, 1, 0, 1]}, protocol=2))
    (spec := _spec()) and write_part(folder / "part.safetensors", spec, spec.parts(0)[0], torch.randn(12, 10))
    return folder


def _spec() -> CacheSpec:
    return CacheSpec({"member": 0}, 12, 10, dtype=torch.float32)


@fuzz(60, 3000)
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
    if state:
        calm(lambda: load_weights(small_model(), state, str(path), "--checkpoint"))


NAMES_OF_CLASSES = [f"c{i}" for i in range(9)] + ["four"]
DIGITS = create_dataset("w2s/digits", None, "train")
READERS = {
    "labels.npy": lambda p: read_labels(p, [i % 10 for i in range(40)], 10, NAMES_OF_CLASSES),
    "labels.pt": lambda p: read_labels(p, [i % 10 for i in range(40)], 10, NAMES_OF_CLASSES),
    "labels.csv": lambda p: read_labels(p, [i % 10 for i in range(40)], 10, NAMES_OF_CLASSES),
    "map.yaml": lambda p: read_class_map(p, NAMES_OF_CLASSES, 10),
    "map.json": lambda p: (calm(lambda: read_class_map(p, NAMES_OF_CLASSES, 10)), read_teacher_map(p, 10, 10)),
    "list.yaml": lambda p: read_teacher_map(p, 10, 10),
    "classes.txt": lambda p: read_class_list(p, "--class-list"),
    "selection.npy": lambda p: read_selection(p, DIGITS, len(DIGITS), None),
    "selection.csv": lambda p: read_selection(p, DIGITS, len(DIGITS), None),
    "images.pkl": lambda p: labelled_images(read_pickle(Path(p)), Path(p)),
    "part.safetensors": lambda p: read_part(Path(p), _spec(), _spec().parts(0)[0]),
}


@fuzz(200, 20000)
@given(name=st.sampled_from(sorted(READERS)), data=st.data())
def test_labels_maps_lists_and_caches(files, tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / name
    good = (files / name.replace("selection", "labels")).read_bytes()
    text = st.text(alphabet="0123456789,:-[]{}\n abcx#&*!'\"\u0664", max_size=60).map(str.encode)
    path.write_bytes(damaged(data, good) if data.draw(st.integers(0, 2)) else data.draw(st.one_of(
        text, st.binary(max_size=60))))
    calm(lambda: READERS[name](str(path)))


# ---------------------------------------------------------------- losses


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FACTORS = [0.0, 1e-30, 1.0, 30.0, 1e4, 1e30, float("inf"), float("nan")]


def odd(data: st.DataObject, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same shape in another dtype, size and memory layout, with gradient."""
    values = (values.detach() * data.draw(st.sampled_from(FACTORS))).to(dtype)
    layout = data.draw(st.sampled_from(["plain", "transposed", "every other", "expanded"]))
    if layout == "transposed":
        values = values.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "every other":
        values = torch.stack([values, values], dim=1)[:, 0]
    elif layout == "expanded":
        values = values[:1].expand_as(values)
    return values.requires_grad_()


def check_terms(terms: dict[str, torch.Tensor], inputs: LossInputs) -> None:
    """Scalars in float32 or wider; finite where what came in is of a usual size."""
    assert terms and all(term.shape == () and term.dtype in (torch.float32, torch.float64) for term in terms.values())
    total = sum(terms.values())
    if total.requires_grad:
        total.backward()
    tensors = [inputs.student_logits, inputs.teacher_logits, *(inputs.student_features or ()),
               *(inputs.teacher_features or ())]
    if all(t.numel() == 0 or t.detach().abs().max() <= 1e3 for t in tensors):
        assert total.isfinite(), terms


@fuzz(150, 5000)
@given(name=st.sampled_from(logit_losses()), batch=st.integers(1, 9), classes=st.integers(2, 12), data=st.data())
def test_losses_on_logits(name, batch, classes, data):
    seed = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (odd(data, torch.randn(batch, classes, generator=generator), data.draw(st.sampled_from(DTYPES)))
                        for _ in range(2))
    target = data.draw(st.sampled_from(["hard", "soft", "one class", "none"]))
    targets = {"hard": torch.randint(classes, (batch,), generator=generator), "none": None,
               "soft": torch.rand(batch, classes, generator=generator).softmax(1),
               "one class": torch.zeros(batch, dtype=torch.long)}
    index = torch.randperm(NUM_SAMPLES, generator=generator)[:batch]
    inputs = LossInputs(student, teacher, targets[target], index=index, progress=data.draw(st.floats(0, 1)))
    note(f"{student=} {teacher=} {target=}")
    found = calm(lambda: make_loss(name, classes)(inputs))
    if found is not None:
        check_terms(found, inputs)


@fuzz(80, 8000)
@given(name=st.sampled_from(NAMES), batch=st.integers(2, 8), data=st.data())
def test_losses_on_features(name, batch, data):
    real = make_inputs(batch, seed=data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from(DTYPES))

    def other(values: torch.Tensor) -> torch.Tensor:
        return odd(data, values, dtype)

    inputs = real.replace(
        student_logits=other(real.student_logits), teacher_logits=other(real.teacher_logits),
        student_features=[other(f) for f in real.student_features],
        teacher_features=[other(f) for f in real.teacher_features],
        target=data.draw(st.sampled_from([real.target, torch.zeros(batch, dtype=torch.long), torch.rand(
            batch, NUM_CLASSES).softmax(1), None])))
    loss = make(name)
    loss = loss if dtype == torch.float64 else loss.float()
    found = calm(lambda: loss(inputs))
    if found is not None:
        check_terms(found, inputs)
