"""The model card of an exported student: the Hub's YAML metadata, and what the run measured in words and tables.

The words stand in ``templates/card.md.jinja``; here are the metadata, and the filters that keep a value from being
taken for markup.
"""

import functools
import json
import math
import os
import re
from pathlib import PurePath
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..metrics.figures import of_few
from ..target_kind import SEVERAL_CLASSES
from .client import valid_id
from .markdown import code, fenced, markdown_table, plain

MODEL_ID = "hf-hub:ORG/NAME"  # stands in the card until the model is pushed

# figures by name, as the Hub calls their kind, and in words
_HUB_METRICS = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "top5": ("accuracy", "Top-5 accuracy"),
    "map": ("mean_average_precision", "mAP"),
    "micro_f1": ("f1", "Micro F1"),
    "macro_f1": ("f1", "Macro F1"),
}
_HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
}
_is_shape = re.compile(r"\d+x\d+").fullmatch  # of episodes, such as 5x1
_WORD = re.compile(r"'[^']*'|[^\s']+")  # as the shell has it, perhaps with spaces
# in a word or a name, what has a slash and is no address: it may be a path; what has none is taken as a whole, since a
# search would begin again at each of its words
_PATH = re.compile(
    r"""(?<![^\s=,:;'"(\[{])(?:(?P<shards>wds/)?(?!//)(?P<path>[^=,:;'"(\[{]*?/[^,'"]+)"""
    r"""|[^=,:;'"(\[{/]+(?:/|\Z|(?=[=,:;'"(\[{])))"""
)


def model_card(record: dict) -> str:
    """Return the README.md of an exported student; all figures come from ``record`` and unknown ones are left out.

    Where files lie on this machine is not said.

    Args:
        record: content of a run's ``result.json``. Every key may be missing or None. Accuracies and agreement are in
            percent, PGR is a fraction. Strings may hold anything: none of them can break out of the YAML or add
            markup.

    Returns:
        YAML metadata followed by Markdown. `MODEL_ID` stands for the id on the Hub.
    """
    # figures, and what they were measured on: by the run, then by validate.py; of one evaluation the later, unless it
    # alone was measured without the teacher
    val = (record.get("data") or {}).get("val") or {}
    every: dict[str, dict] = {}
    for row in ((record.get("metrics") or {}) | val, *record.get("results", ())):
        identity = _identity(row)
        before = every.get(identity, {})
        # one teacher's figures do not take the place of another's
        with_teachers = "agreement" in row and "agreement" in before
        if with_teachers and row.get("taught_by") != before.get("taught_by"):
            identity += str(row.get("taught_by"))
        if "agreement" in row or "agreement" not in every.get(identity, {}):
            every[identity] = row
    record = _without_folders(record)
    measured = name_differences(_without_folders([*every.values()]))
    model, data = record.get("model") or {}, record.get("data") or {}
    # weights that the student did not start from are not named: their tag stands in the name of the model alone
    name = model.get("name") or "student"
    if model.get("init") in ("random", "checkpoint"):
        name = model.get("architecture") or name
    data_name = data.get("name") or data.get("dataset")
    # an architecture that is not timm's has to be imported
    module = model.get("plugin_module")
    if module and not all(part.isidentifier() for part in module.split(".")):
        module = "w2s_plugins"
    # what a part without anything known has left behind are empty lines
    body = (
        card_environment()
        .get_template("card.md.jinja")
        .render(
            r=record,
            name=name,
            data_name=data_name,
            plugin_module=module,
            model_id=MODEL_ID,
            several_classes=SEVERAL_CLASSES.problem_type,
            evaluations=measured,
        )
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    metadata = _metadata(record, name, measured).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{body}\n"))


def _identity(row: dict) -> str:
    """Return what is the same for figures that may take each other's place: samples, settings, kind of figures."""
    # by the content of the data where it is known: the same split has other names on other machines
    samples = row.get("fingerprint") or [row.get("dataset"), row.get("split")]
    kind = [*filter(_is_shape, row), row.get("queries")]
    return json.dumps([samples, row.get("evaluation"), kind], sort_keys=True, default=str)


def name_differences(rows: list[dict]) -> list[dict]:
    """Return evaluations with what tells each from the first one: texts, of settings and of other samples of the same
    name, in ``differs``.
    """
    settings = [
        row["evaluation"] if isinstance(row.get("evaluation"), dict) else {} for row in rows
    ]
    usual = next(filter(None, settings), {})
    samples: dict[str, Any] = {}
    for row, evaluation in zip(rows, settings):
        # a setting that the first evaluation had not, or otherwise; then what it alone had
        differs = [
            _typed(name, value)
            for name, value in evaluation.items()
            if name not in usual or usual[name] != value
        ]
        differs += [f"no {name}" for name in usual if evaluation and name not in evaluation]
        name_of_data = json.dumps([row.get("dataset"), row.get("split")], default=str)
        first = samples.setdefault(name_of_data, row.get("fingerprint"))
        if row.get("fingerprint") != first:
            differs.append(f"other samples, fingerprint {row.get('fingerprint')}")
        if "agreement" in row and row.get("taught_by") != rows[0].get("taught_by"):
            differs.append(f"teacher {row.get('teacher')}")
        row["differs"] = differs
    return rows


def _typed(name: str, value: Any) -> str:
    """Return a setting about as it is typed."""
    if value is True:
        return name
    return " ".join(map(str, [name, *value] if isinstance(value, list) else [name, value]))


@functools.cache
def card_environment() -> jinja2.Environment:
    """Return what the templates of cards are read and filled by."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("w2s_plugins.hub"),
        undefined=jinja2.ChainableUndefined,  # nothing that the record lacks is an error, nor what is below it
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is no HTML; the filters leave no markup
    )
    environment.filters |= dict(
        code=_code_or_nothing,
        percent=lambda value: f"{value:.2f}" if is_number(value) else "",
        count=lambda value: f"{value:,.0f}" if is_number(value) else "",
        fenced=fenced,
        is_number=is_number,
        of_few=lambda images: of_few(int(images)) if is_number(images) else "",
        pairs=lambda value: list(value.items()) if isinstance(value, dict) else [],
    )
    environment.tests["has_figures"] = lambda row: any(row[1:])
    environment.tests["shape"] = _is_shape
    environment.globals["table"] = markdown_table
    return environment


def _code_or_nothing(value: Any) -> str:
    return "" if isinstance(value, jinja2.Undefined) or value in (None, "") else code(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def lookup(record: Any, *keys: str) -> Any:
    """Return a value that lies deep in a record, None where it is not there."""
    # a part that is None, or another thing than a part, has nothing below it
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _without_folders(value: Any, key: str = "") -> Any:
    """Return a part of a record with the last parts alone of paths, in a name without a mark that there was more.

    A relative path is one if there is such a file or folder.
    """
    # names of classes are those of the data, whatever they look like
    if isinstance(value, dict):
        return {
            key: part if key == "class_names" else _without_folders(part, key)
            for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_folders(part, key) for part in value]
    if not isinstance(value, str):
        return value
    if key in ("name", "teacher", "dataset"):
        return _PATH.sub(_last_part, value).replace(".../", "").replace("local-dir:", "")
    return _WORD.sub(lambda word: _PATH.sub(_last_part, word[0]), value)


def _last_part(word: re.Match) -> str:
    shards, path = word["shards"] or "", word["path"]
    if path is None:
        return word[0]
    # a recipe of the package is on every machine, and says nothing of this one
    is_recipe = path.startswith("hparams/")
    is_here = os.path.exists(re.split("[?#]", path)[0]) and not is_recipe
    if not (shards or is_here or path[0] in "/~."):
        return word[0]
    # an export is known by its run
    last = PurePath(path)
    if last.name == "export":
        last = last.parent
    return f"{shards}.../{last.name}"


def with_license(card: str, license: str) -> str:
    """Return a card whose metadata name another licence."""
    changed = ModelCard(card)
    changed.data["license"] = plain(license)
    return str(changed)


def _metadata(record: dict, name: str, evaluations: list[dict]) -> ModelCardData:
    """Return what the Hub reads of a card."""
    # the Hub shows these beside those of other models on the same dataset, and takes others for one without a config
    results = []
    for one in evaluations:
        dataset, known = plain(one.get("dataset") or "custom"), dataset_id(one.get("dataset"))
        results += [
            EvalResult(
                task_type="image-classification",
                dataset_type=known or "custom",
                dataset_name=dataset.partition("/")[2] or dataset,
                dataset_config=None if known else dataset,
                dataset_split=plain(one.get("split") or "") or None,
                metric_type=metric,
                metric_name=", ".join([f"{title} (%)", *map(plain, one["differs"])]),
                metric_value=one[key],
            )
            for key, (metric, title) in _HUB_METRICS.items()
            if is_number(one.get(key))
        ]
    data = record.get("data")
    learned = map(dataset_id, (lookup(data, "dataset"), lookup(data, "splits", "labelled", "name")))
    loss, license = lookup(record, "loss", "name"), record.get("license")
    tags = ["timm", "image-classification", "weak-to-strong", "knowledge-distillation"]
    if lookup(record, "model", "problem_type") == SEVERAL_CLASSES.problem_type:
        tags.append("multi-label-classification")
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=plain(license) if license else None,
        tags=[*tags, plain(loss)] if loss else tags,
        base_model=valid_id(lookup(record, "model", "source", "repo") or "") or None,
        datasets=[*dict.fromkeys(filter(None, learned))] or None,
        metrics=[*dict.fromkeys(result.metric_type for result in results)] or None,
        model_name=plain(name) if results else None,
        eval_results=results or None,
    )


def dataset_id(dataset: str | None) -> str | None:
    """Id on the Hub of the dataset, for timm's ``hfds/`` and ``hfids/`` names and for well-known ones."""
    reader, _, name = str(dataset).partition("/")
    if reader in ("hfds", "hfids"):
        return valid_id(name)
    return _HUB_DATASETS.get(name) if reader in ("torch", "tfds") else None
