"""The model card of an exported student: the Hub's YAML metadata, and what the run measured in words and tables."""

import math
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .markdown import code, fenced, markdown_table, plain

MODEL_ID = "hf-hub:ORG/NAME"  # stands in the card until the model is pushed
EVAL_RESULTS = ".eval_results/w2s_plugins.yaml"

_HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
_INIT = {"random": "random weights", "pretrained": "pretrained weights", "checkpoint": "a checkpoint file"}
_TARGETS = {
    "online": "the teacher predicts on every training view",
    "cached": "the teacher labels each training image once, before training",
    "cached-views": "the teacher labels the training views of some epochs before training; then the views repeat",
}
_CONTROLS = {  # by the first word of the name
    "direct": "this model trained on true labels alone", "same": "the teacher's model on the same weak labels",
    "strong": "this model on weak labels of the one of direct"}
_WORD = re.compile(r"'[^']*'|[^\s']+")  # as the shell has it, perhaps with spaces
_PATH = re.compile(r"""(?:(?<![^\s=,:;'"(\[{])|(?<=wds/))(?:~[\w.-]*)?/(?!/)[^,'"]+""")  # an absolute one, in a word
_CITATION = """@misc{guo2024vision,
  title         = {Vision Superalignment: Weak-to-Strong Generalization for Vision Foundation Models},
  author        = {Guo, Jianyuan and Chen, Hanting and Wang, Chengcheng and Han, Kai and Xu, Chang and Wang, Yunhe},
  year          = {2024},
  eprint        = {2402.03749},
  archivePrefix = {arXiv},
}"""


def model_card(record: dict) -> str:
    """Return the README.md of an exported student; all figures come from ``record`` and unknown ones are left out.

    Where files lie on this machine is not said.

    Args:
        record: Content of a run's ``result.json``. Every key may be missing or None. Accuracies and agreement are in
            percent, PGR is a fraction. Strings may hold anything: none of them can break out of the YAML or add
            markup.

    Returns:
        YAML metadata followed by Markdown. `MODEL_ID` stands for the id on the Hub.
    """
    record = _without_places(record)
    sections = [
        f"# {_title(record)}",
        _introduction(record),
        _usage(record),
        _section("Results", _results(record)),
        _section("Teacher", _teacher(record)),
        _section("Loss", _loss(record)),
        _section("Data", _data(record)),
        _section("Student", _student(record)),
        _section("Reproduction", _reproduction(record)),
        _section("Notes", "\n".join(f"- {code(w)}" for w in _list(_get(record, "warnings")))),
        _section("Citation", fenced(_CITATION, "bibtex")),
    ]
    body = "\n\n".join(filter(None, sections))
    return str(ModelCard(f"---\n{_metadata(record).to_yaml()}\n---\n\n{body}\n"))


def _title(record: dict) -> str:
    data, teacher = _data_name(record), _get(record, "teacher", "name")
    on = f" trained on {code(data)}" if data else ""
    return f"{code(_name(record))}{on}{f' with the labels of {code(teacher)}' if teacher else ''}"


def _name(record: dict) -> str:
    """Return the name of the model, without the tag of weights that it did not start from."""
    own = _get(record, "model", "init") in ("random", "checkpoint") and _get(record, "model", "architecture")
    return own or _get(record, "model", "name") or "student"


def _data_name(record: dict) -> Any:
    return _get(record, "data", "name") or _get(record, "data", "dataset")


def _without_places(value: Any) -> Any:
    """Return a part of a record with the last parts alone of absolute paths, and the last two of a local model's."""
    if isinstance(value, dict):
        return {k: v if k == "class_names" else _without_places(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [*map(_without_places, value)]
    if not isinstance(value, str):
        return value
    if value.startswith("local-dir:"):
        return "/".join(PurePath(value.removeprefix("local-dir:")).parts[-2:])
    return _WORD.sub(lambda word: _PATH.sub(lambda path: f".../{PurePath(path[0]).name}", word[0]), value)


def with_license(card: str, license: str) -> str:
    """Return a card whose metadata name another licence."""
    changed = ModelCard(card)
    changed.data.license = plain(license)
    return str(changed)


def eval_results(record: dict) -> str | None:
    """Return the YAML of the Hub's ``.eval_results/``, or None unless the student was measured on a Hub dataset."""
    top1, dataset = _number(record, "metrics", "top1"), dataset_id(record)
    if top1 is None or dataset is None:
        return None
    split = _get(record, "data", "val_split")
    notes = "top-1 accuracy in %" + (f", split {plain(split)}" if split else "")
    entry = EvalResultEntry(dataset_id=dataset, task_id="default", value=top1, notes=notes)
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def _metadata(record: dict) -> ModelCardData:
    loss, dataset = _get(record, "loss", "name"), dataset_id(record)
    named, license = _data_name(record), _get(record, "license")
    split = _get(record, "data", "val_split")
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset or "custom",
            dataset_name=plain(named or "custom"),
            dataset_split=plain(split) if split else None,
            metric_type="accuracy",
            metric_name=name,
            metric_value=value,
        )
        for name, key in (("Top-1 accuracy (%)", "top1"), ("Top-5 accuracy (%)", "top5"))
        if (value := _number(record, "metrics", key)) is not None
    ]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=plain(license) if license else None,
        tags=["timm", "image-classification", "weak-to-strong", "knowledge-distillation"]
            + ([plain(loss)] if loss else []),
        base_model=_repo_id(_get(record, "model", "source", "repo")),
        datasets=[dataset] if dataset else None,
        metrics=["accuracy"] if results else None,
        model_name=plain(_name(record)) if results else None,
        eval_results=results or None,
    )


def _introduction(record: dict) -> str:
    loss = _get(record, "loss", "name")
    how = f" with the loss {code(loss)}" if loss else ""
    if not _get(record, "teacher"):
        return f"An image classifier trained{how} by [timm](https://github.com/huggingface/pytorch-image-models)."
    return ("An image classifier trained by weak-to-strong distillation: a strong student learned from a weak teacher"
            f"{how}, by [timm](https://github.com/huggingface/pytorch-image-models) and `w2s_plugins`.")


def _usage(record: dict) -> str:
    module = _get(record, "model", "plugin_module")
    lines, note = "import timm\nimport torch\nfrom PIL import Image\n", ""
    if module:
        module = str(module) if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(module)) else "w2s_plugins"
        lines += f"import {module}  # registers the architecture\n"
        note = (f"The architecture is not one of timm's own: the package {code(module.split('.')[0])} must be "
                "installed, and imported first.\n\n")
    named = _get(record, "model", "class_names")
    names = 'model.pretrained_cfg["label_names"]' if named else "range(model.num_classes)"
    lines += f"""
model = timm.create_model("{MODEL_ID}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
names = {names}
image = Image.open("image.jpg").convert("{'L' if _list(_get(record, 'model', 'input_size'))[:1] == [1] else 'RGB'}")
with torch.no_grad():
    probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)[0]
for place in probabilities.argsort(descending=True)[:5].tolist():
    print(f"{{probabilities[place]:.1%}} {{names[place]}}")"""
    return f"## Use\n\n{note}{fenced(lines, 'python')}"


def _results(record: dict) -> str:
    keys = {"top1": "top-1 (%)", "top5": "top-5 (%)", "agreement": "agreement with the teacher (%)",
            "copied": "copied of its mistakes (%)", "misfit": "misfit: KL from it (nats)"}
    keys |= {f"top1_{shots}": f"top-1 on classes with {shots} samples (%)" for shots in ("many", "medium", "few")}
    rows = [
        ("student (this model)", *(_percent(record, "metrics", k) for k in keys)),
        ("teacher", *(_percent(record, "teacher", k) for k in keys)),
        ("ceiling (the student trained on ground truth)", _percent(record, "ceiling_acc"), *[None] * (len(keys) - 1)),
    ]
    controls = _get(record, "controls")
    rows += [(f"{code(name)}: {_CONTROLS.get(name.split('-')[0], 'a control')}"
              f"{f', {count} labels' if (count := _count(controls, name, 'labels')) else ''}",
              _percent(controls, name, "value"), *[None] * (len(keys) - 1))
             for name in (controls if isinstance(controls, dict) else ())]
    rows = [row for row in rows if any(row[1:])]
    table = markdown_table(("", *keys.values()), rows)
    episodes = _few_shot(record)
    lines = []
    if (split := _get(record, "data", "val_split")) and rows:
        lines.append(f"Measured on the split {code(split)}.")
    if (pgr := _number(record, "pgr")) is not None:
        lines.append(f"Performance gap recovered (PGR): {pgr:.3f}, where 0 is the teacher and 1 the ceiling.")
    if _get(record, "selected", "rule") in ("last", "best"):
        lines.append(_selection(record))
    return "\n\n".join(filter(None, (table, episodes, " ".join(lines))))


def _few_shot(record: dict) -> str:
    """Table of the episodes of novel classes: accuracies with their intervals."""
    who = {"student (this model)": "metrics", "teacher": "teacher"}
    figures = _get(record, "few_shot", "metrics")
    shapes = [k for k in (figures if isinstance(figures, dict) else {}) if re.fullmatch(r"\d+x\d+", str(k))]

    def cell(key: str, shape: str) -> str | None:
        mean, half = (_number(record, "few_shot", key, k) for k in (shape, f"{shape}_ci95"))
        return None if mean is None or half is None else f"{mean:.2f} ± {half:.2f}"
    rows = [(name, *(cell(key, s) for s in shapes)) for name, key in who.items()]
    heads = ("", *(f"{s.split('x')[0]}-way {s.split('x')[1]}-shot (%)" for s in shapes))
    table = markdown_table(heads, [row for row in rows if any(row[1:])])
    if not table:
        return ""
    split, classifier = (code(_get(record, "few_shot", k) or "") for k in ("split", "classifier"))
    return f"{table}\n\nEpisodes of the classes of {split}, classifier {classifier}, with 95 % intervals."


def _selection(record: dict) -> str:
    rule, split = (_get(record, "selected", k) for k in ("rule", "split"))
    epoch = _number(record, "selected", "epoch")  # counted from 0
    where = f", judged on the split {code(split)}" if rule == "best" and split else ""
    return f"The checkpoint is that of the {rule} epoch{f' ({epoch + 1})' if epoch is not None else ''}{where}."


def _teacher(record: dict) -> str:
    teacher = _get(record, "teacher")
    members = _list(_get(teacher, "models"))
    labels = [m for m in members if str(_get(m, "name")).startswith("labels:")]
    rows = [
        (code(_get(m, "name") or ""), *(_code_or_none(_get(m, "source", k)) for k in ("repo", "revision", "sha256")),
         _count(m, "params"))
        for m in members if m not in labels
    ]
    table = markdown_table(("model", "repository", "revision", "SHA-256 of the weights", "parameters"), rows)
    name = _get(teacher, "name")
    lines = [f"Name: {code(name)}."] if name and not members else []
    if len(members) > 1:
        lines.append("The teacher is the mean of the probabilities of these.")
    targets = str(_get(teacher, "targets"))
    if rows and (kind := re.sub(r":\d+$", "", targets)) in _TARGETS:
        lines.append(f"Targets: `{targets}` ({_TARGETS[kind]}).")
    if isinstance(_get(teacher, "refined"), dict):
        lines.append("The student has learned from the mean of these answers and of what a linear discriminant of its "
                     "own features makes of them (`--refine-labels`).")
    return "\n\n".join(filter(None, (table, _given(labels), " ".join(lines))))


def _given(labels: list) -> str:
    """Table of the labels that stand in the place of a teacher, and of who has given them."""
    heads = ("labels", "revision", "kind", "samples", "annotators", "combined by", "by the model", "SHA-256",
             "wrong (%)")
    rows = []
    for given in labels:
        combined = _code_or_none(_get(given, "source", "combine")) if _count(given, "source", "annotators") else None
        wrong = _number(given, "wrong")
        rows.append((code(_get(given, "name")), _code_or_none(_get(given, "source", "revision")),
                     _code_or_none(_get(given, "kind")), _count(given, "samples"),
                     _count(given, "source", "annotators"), combined,
                     _code_or_none(_get(given, "source", "architecture")),
                     _code_or_none(_get(given, "source", "sha256")), None if wrong is None else f"{100 * wrong:.2f}"))
    return markdown_table(heads, rows)


def _loss(record: dict) -> str:
    kwargs = _get(record, "loss", "kwargs")
    return _pairs([
        ("distillation loss", _code_or_none(_get(record, "loss", "name"))),
        *((f"argument {code(k)}", _code_or_none(v)) for k, v in (kwargs if isinstance(kwargs, dict) else {}).items()),
        ("weight of the distillation loss", _code_or_none(_get(record, "loss", "distill_loss_weight"))),
        ("loss on ground truth", _code_or_none(_get(record, "loss", "task_loss"))),
        ("weight of the loss on ground truth", _code_or_none(_get(record, "loss", "task_loss_weight"))),
    ])


def _data(record: dict) -> str:
    names = ("train_split", "train_samples", "train_slice", "val_split", "val_samples", "fingerprint")
    return _pairs([
        ("dataset", _code_or_none(_data_name(record))),
        *((name.replace("_", " "), _code_or_none(_get(record, "data", name))) for name in names),
        ("labelled samples beside these", _count(record, "data", "splits", "labelled", "num_samples")),
        *_labels(record),
    ])


def _labels(record: dict) -> list[tuple[str, str]]:
    """What the labels were made of, where they are not those of the dataset, and how samples were selected."""
    rows = []
    kind, rate = _get(record, "data", "label_noise", "kind"), _number(record, "data", "label_noise", "rate")
    if kind and rate is not None:
        rows.append(("label noise", f"{code(kind)}, {100 * rate:.2f} % of the labels are not the clean ones"))
    rule, kept = _get(record, "data", "clean_select", "rule"), _count(record, "data", "clean_select", "selected")
    if rule and kept:
        rows.append(("trained on", f"the {kept} samples that {code(rule)} selected"))
    return rows


def _student(record: dict) -> str:
    size = _list(_get(record, "model", "input_size"))
    init = _get(record, "model", "init")
    return _pairs([
        ("architecture", _code_or_none(_get(record, "model", "architecture"))),
        ("parameters", _count(record, "model", "params")),
        ("classes", _count(record, "model", "num_classes")),
        ("names of the classes", _names(record)),
        ("input size", code(" x ".join(map(str, size))) if size else None),
        ("started from", _INIT.get(init) if isinstance(init, str) else None),
        ("trained", "the last layer, on features of the frozen model" if _get(record, "model", "linear_probe") is True
         else _code_or_none(_get(record, "model", "tune"))),
        ("trained weights", _count(record, "model", "trained")),
        *((f"initial weights: {k}", _code_or_none(_get(record, "model", "source", k)))
          for k in ("repo", "revision", "file", "sha256")),
        *((f"initial weights: {text}", _code_or_none(_get(record, "model", "weights", k)))
          for k, text in (("tag", "tag"), ("paper_ids", "paper"), ("origin_url", "origin"), ("license", "license"))),
    ])


def _names(record: dict, most: int = 100) -> str:
    """Return the names of the classes in their order, the first ones of many."""
    names = _list(_get(record, "model", "class_names"))
    return ", ".join([*map(code, names[:most]), *(["..."] if len(names) > most else [])])


def _reproduction(record: dict) -> str:
    command, versions, seconds = _get(record, "command"), _get(record, "versions"), _number(record, "seconds")
    parts = [fenced(str(command), "sh")] if command else []
    if isinstance(versions, dict) and versions:
        parts.append(_pairs(((code(k), _code_or_none(v)) for k, v in versions.items()), ("package", "version")))
    if seconds is not None:
        parts.append(f"The run took {seconds:.0f} s.")
    return "\n\n".join(filter(None, parts))


def _get(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else []


def _number(record: dict, *keys: str) -> int | float | None:
    value = _get(record, *keys)
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None


def _percent(record: dict, *keys: str) -> str | None:
    value = _number(record, *keys)
    return None if value is None else f"{value:.2f}"


def _count(record: dict, *keys: str) -> str | None:
    value = _number(record, *keys)
    return None if value is None else f"{value:,.0f}"


def _repo_id(value: Any) -> str | None:
    try:
        validate_repo_id(value or "")
    except HFValidationError:
        return None
    return value


def dataset_id(record: dict) -> str | None:
    """Id on the Hub of the dataset, for timm's ``hfds/`` and ``hfids/`` names and for well-known ones."""
    reader, _, name = str(_get(record, "data", "dataset") or "").partition("/")
    if reader in ("hfds", "hfids"):
        return _repo_id(name)
    return _HUB_DATASETS.get(name) if reader in ("torch", "tfds") else None


def _code_or_none(value: Any) -> str | None:
    return None if value is None or value == "" else code(value)


def _pairs(rows: Iterable[tuple[str, str | None]], header: tuple[str, str] = ("", "")) -> str:
    return markdown_table(header, [row for row in rows if row[1]])


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""
