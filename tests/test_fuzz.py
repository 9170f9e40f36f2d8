"""Hypothesis against everything that reads what a person or a stranger wrote, and against every loss.

Nothing may come out but a value or a `UserError` of one line. A few seconds in the suite; ``FUZZ=N`` takes N times as
many examples, drawn anew, as in the longer run whose figures are in docs/reliability.md.
"""

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.losses.common import logit_losses, make_loss
from tests.losses.feature_cases import KWARGS, NAMES, NUM_CLASSES, NUM_SAMPLES, STUDENT, TEACHER, make_inputs
from tests.parts import small_model, write_folder, write_list
from w2s_plugins.build.flags import resolve_train_args
from w2s_plugins.cli import parse, train_parser, validate_parser
from w2s_plugins.data import create_dataset
from w2s_plugins.data.class_splits import read_class_list
from w2s_plugins.data.inat import read_list
from w2s_plugins.errors import UserError
from w2s_plugins.files import write_json
from w2s_plugins.labels.noise import read_class_map
from w2s_plugins.labels.selection import read_selection
from w2s_plugins.labels.store import Manifest, read_manifest, read_part, write_part
from w2s_plugins.labels.table import read_label_table
from w2s_plugins.losses import LossContext, LossInputs, create_loss, list_losses
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.models.loading import create_model, load_weights, read_checkpoint, read_weights, settings_beside
from w2s_plugins.study.plan import check_plan, describe_plan, make_plan
from w2s_plugins.study.spec import read_spec
from w2s_plugins.teachers.teacher import read_class_map as read_teacher_map

TIMES = int(os.environ.get("FUZZ", "1"))
RUNS_CODE = {"plugins", "device_modules"}


def fuzz(examples: int) -> settings:
    return settings(max_examples=TIMES * examples, deadline=None, derandomize=TIMES == 1, database=None,
                    suppress_health_check=list(HealthCheck))


def calm(call: Callable[[], object]) -> object:
    """What ``call`` returns, or None where it ended in a `UserError` of one line."""
    try:
        return call()
    except UserError as error:
        note(str(error))
        assert str(error)
    return None


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of keys and indices to everything in a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in inner for p in places(item, (*path, key)))]


def altered(data: st.DataObject, value: object, values: st.SearchStrategy) -> object:
    """A nested value with up to three of its parts removed, added, put elsewhere, or replaced by something odd."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(value)[1:] or [(None,)]))
        if last is None:
            return data.draw(values)
        parent = value
        for key in path:
            parent = parent[key]
        kind = data.draw(st.sampled_from(["odd", "odd", "odd", "gone", "more", "moved"]))
        if kind == "gone":
            del parent[last]
        elif kind == "more" and isinstance(parent, dict):
            parent[data.draw(WORDS)] = data.draw(values)
        elif kind == "more":
            parent.append(copy.deepcopy(parent[last]))
        else:
            everything = {"odd": values, "moved": st.sampled_from(places(value)).map(lambda p: at(value, p))}[kind]
            parent[last] = copy.deepcopy(data.draw(everything))
    return value


def at(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return value


# ---------------------------------------------------------------- flags and YAML


KEYS = {script: sorted(set(parser().by_dest()) - RUNS_CODE) for script, parser in (
    ("train", train_parser), ("validate", validate_parser))}
WORDS = st.one_of(
    st.sampled_from(["", "w2s/digits", "w2s_cnn2", "adaptconf", "kd+rkd", "0:0.5", "symmetric:0.2", "5x1", "cpu", "-1",
                     "1e400", "nan", "a=1", "file:x", "\u0130", "hf-hub:a/b", "local-dir:."]), st.text(max_size=12))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.dates(), st.binary(max_size=4))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.one_of(WORDS, st.integers()), inner, max_size=3)), max_leaves=5)


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)), max_leaves=5)


@fuzz(60)
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
    if data.draw(st.integers(0, 3)) == 0:  # a file that names others, itself among them
        below = data.draw(st.lists(st.sampled_from([path.name, "other.yaml", "absent.yaml", ".", ""]), max_size=3))
        path.with_name("other.yaml").write_text(yaml.safe_dump({"config": below, **content}))
        argv[1:1] = [str(path.with_name("other.yaml"))]
    found = calm(lambda: parse(parser, argv))
    if found and script == "train":
        args, given_by_hand = found
        args.plugins = []
        calm(lambda: resolve_train_args(args, given_by_hand))


SPEC = dict(
    name="digits", base=dict(dataset="w2s/digits", img_size=16, weak_fraction=300, epochs=2, lr=0.1, val_interval=5,
                             teacher_targets="cached"),
    weak=[dict(name="few", flags=dict(model="w2s_cnn2", train_slice="0:30")), dict(
        flags=dict(model="w2s_cnn5", model_kwargs=dict(widths=[[24], [36, 48]])))],
    strong=[dict(name="cnn5", flags=dict(model="w2s_cnn5"))],
    losses=["hard", dict(name="kd-T1", loss="kd", kwargs=dict(temperature=1.0)), dict(
        name="adaptconf", grid=dict(temperature=[0.5, 1.0]))],
    protocols=["w2s", dict(name="own", split=False, flags=dict(task_loss_weight=0.5))], seeds=[0, 3], slices="by_seed")


@fuzz(60)
@given(data=st.data())
def test_study_specifications(tmp_path_factory, data):
    """What is read is also planned, and its own YAML is the same study."""
    path, parser = tmp_path_factory.getbasetemp() / "study.yaml", train_parser()
    text = yaml.safe_dump(altered(data, SPEC, VALUES), sort_keys=False).encode()
    path.write_bytes(damaged(data, text) if data.draw(st.integers(0, 3)) == 0 else text)
    note(path.read_bytes())
    study = calm(lambda: read_spec(path, parser))
    if study is None:
        return
    path.write_text(study.to_yaml())
    assert read_spec(path, parser) == study
    plan = calm(lambda: make_plan(study, parser))
    if plan is not None:
        assert describe_plan(study, plan)
        assert all(Path(run.id).name == run.id for run in plan)
        calm(lambda: check_plan(study, plan[:2], parser))


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
    "labels.pt": lambda p: read_label_table(Path(p), NAMES_OF_CLASSES),
    "labels.csv": lambda p: read_label_table(Path(p), NAMES_OF_CLASSES),
    "map.yaml": lambda p: read_class_map(p, NAMES_OF_CLASSES, 10),
    "map.json": lambda p: (calm(lambda: read_class_map(p, NAMES_OF_CLASSES, 10)),
                           read_teacher_map(p, (NAMES_OF_CLASSES, 10), (None, 10))),
    "list.yaml": lambda p: read_teacher_map(p, (NAMES_OF_CLASSES, 10), (None, 10)),
    "classes.txt": lambda p: read_class_list(p, "--class-list"),
    "selection.npy": lambda p: read_selection(p, DIGITS, len(DIGITS), None),
    "selection.csv": lambda p: read_selection(p, DIGITS, len(DIGITS), None),
    "list.json": lambda p: read_list(Path(p)),
    PART.file: lambda p: read_part(Path(p).parent, MANIFEST, PART),
    "manifest.json": lambda p: read_manifest(Path(p).rename(Path(p).with_name("labels.json")).parent),
}


@fuzz(200)
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


def usual_size(inputs: LossInputs) -> bool:
    tensors = [inputs.student_logits, inputs.teacher_logits, *(inputs.student_features or ()),
               *(inputs.teacher_features or ())]
    return all(t.numel() == 0 or t.detach().abs().max() <= 1e3 for t in tensors)


def check_terms(terms: dict[str, torch.Tensor], inputs: LossInputs, usual: bool) -> None:
    """Scalars in float32 or wider; finite where what came in is, and was before, of a usual size."""
    assert terms and all(term.shape == () and term.dtype in (torch.float32, torch.float64) for term in terms.values())
    total = sum(terms.values())
    if total.requires_grad:
        total.backward()
    if usual:
        assert total.isfinite(), terms


def index_of(data: st.DataObject, batch: int, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of a batch; some of them twice, as with repeated augmentation."""
    index = torch.randint(samples, (batch,), generator=generator)
    return index if data.draw(st.booleans()) else torch.randperm(samples, generator=generator)[:batch]


@fuzz(150)
@given(name=st.sampled_from(logit_losses()), batch=st.integers(1, 9), classes=st.integers(2, 12), data=st.data())
def test_losses_on_logits(name, batch, classes, data):
    """Three batches one after the other, for losses that remember; in evaluation mode nothing changes."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    loss, usual = make_loss(name, classes), True
    for step in range(data.draw(st.sampled_from([1, 1, 3]))):
        student, teacher = (odd(data, torch.randn(batch, classes, generator=generator), data.draw(
            st.sampled_from(DTYPES))) for _ in range(2))
        target = data.draw(st.sampled_from(["hard", "soft", "one class", "none"]))
        targets = {"hard": torch.randint(classes, (batch,), generator=generator), "none": None,
                   "soft": torch.rand(batch, classes, generator=generator).softmax(1),
                   "one class": torch.zeros(batch, dtype=torch.long)}
        index = index_of(data, batch, NUM_SAMPLES, generator)
        inputs = LossInputs(student, teacher, targets[target], index=index, progress=data.draw(st.floats(0, 1)))
        note(f"{step=} {student=} {teacher=} {target=}")
        before = {key: value.clone() for key, value in loss.state_dict().items()}
        loss.eval()
        calm(lambda: loss(inputs))  # noqa: B023
        assert all(torch.equal(value, before[key]) or value.isnan().any() for key, value in loss.state_dict().items())
        loss.train()
        found = calm(lambda: loss(inputs))  # noqa: B023
        usual = usual and usual_size(inputs)
        if found is not None:
            check_terms(found, inputs, usual)


@fuzz(100)
@given(name=st.sampled_from(list_losses()), data=st.data())
def test_hyper_parameters_of_losses(name, data):
    """Any value is refused in one line, or works."""
    defaults = LOSSES.get(name).defaults
    key = data.draw(st.sampled_from([*defaults, "no_such"]))
    value = data.draw(st.one_of(
        VALUES, st.sampled_from([0.0, -1.0, 1e-30, 1e30, 1, 0, 2, float("nan"), float("inf"), [1.0] * 5, [0.5, 0.5]])))
    note(f"{name}({key}={value!r})")
    loss = calm(lambda: create_loss(name, **{key: value}))
    if loss is None or (key in ("feat_dim", "negatives") and value > 1000):  # as large as the memory allows
        return
    if name in NAMES:
        inputs = make_inputs(4)
        context = LossContext(NUM_CLASSES, 20, *([tuple(f.shape[1:]) for f in side] for side in (
            inputs.student_features, inputs.teacher_features)))
    else:
        inputs, context = make_inputs(4), LossContext(NUM_CLASSES, 20)
    if calm(lambda: loss.setup(context) or True):
        calm(lambda: loss.double()(inputs))


def shapes_of(data: st.DataObject) -> list[tuple[int, ...]]:
    """Shapes of features: maps of any size, then a vector."""
    sizes, widths = st.integers(1, 9), st.integers(1, 6)
    maps = data.draw(st.lists(st.tuples(widths, sizes, sizes), min_size=1, max_size=4))
    return [*maps, (data.draw(widths),)]


@fuzz(120)
@given(name=st.sampled_from(NAMES), batch=st.integers(1, 8), data=st.data())
def test_losses_on_features(name, batch, data):
    """Features of any number and size, two batches one after the other."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    dtype, free = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
    student, teacher = (shapes_of(data), shapes_of(data)) if free else (STUDENT, TEACHER)
    loss = create_loss(name, **KWARGS.get(name, {}))
    if calm(lambda: loss.setup(LossContext(NUM_CLASSES, NUM_SAMPLES, student, teacher)) or True) is None:
        return
    loss, usual = loss.double() if dtype == torch.float64 else loss, True
    for _ in range(data.draw(st.sampled_from([1, 1, 2]))):
        def some(*shape: int) -> torch.Tensor:
            return odd(data, torch.randn(batch, *shape, generator=generator), dtype)

        inputs = LossInputs(
            some(NUM_CLASSES), some(NUM_CLASSES), data.draw(st.sampled_from([
                torch.zeros(batch, dtype=torch.long), torch.rand(batch, NUM_CLASSES).softmax(1), None])),
            [some(*shape) for shape in student], [some(*shape) for shape in teacher],
            index_of(data, batch, NUM_SAMPLES, generator), data.draw(st.floats(0, 1)))
        note(f"{name} {student=} {teacher=} {dtype=}")
        found = calm(lambda: loss(inputs))  # noqa: B023
        usual = usual and usual_size(inputs)
        if found is not None:
            check_terms(found, inputs, usual)
