"""The model card of an exported student: the Hub's YAML metadata, and what the run measured in words and tables.

The words stand in ``templates/card.md.jinja``; here are the metadata, and the filters that keep a value from being
taken for markup.
"""

import math
import re
from pathlib import PurePath
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .markdown import code, fenced, markdown_table, plain

MODEL_ID = "hf-hub:ORG/NAME"  # stands in the card until the model is pushed

_HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
_WORD = re.compile(r"'[^']*'|[^\s']+")  # as the shell has it, perhaps with spaces
_PATH = re.compile(r"""(?:(?<![^\s=,:;'"(\[{])|(?<=wds/))(?:~[\w.-]*)?/(?!/)[^,'"]+""")  # an absolute one, in a word


class RecordUndefined(jinja2.ChainableUndefined):
    """A value that the record does not have; so is anything below it."""

    def __iter__(self) -> Any:
        return iter(())


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
    template = card_environment().get_template("card.md.jinja")
    body = template.render(
        r=record,
        name=_name(record),
        data_name=_data_name(record),
        plugin_module=_plugin_module(record),
        model_id=MODEL_ID,
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return str(ModelCard(f"---\n{_metadata(record).to_yaml()}\n---\n\n{body}\n"))


def card_environment() -> jinja2.Environment:
    """Return what the template is read and filled by."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("w2s_plugins.hub"),
        undefined=RecordUndefined,
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
        pairs=lambda value: list(value.items()) if isinstance(value, dict) else [],
    )
    environment.tests["has_figures"] = lambda row: any(row[1:])
    environment.tests["shape"] = lambda key: re.fullmatch(r"\d+x\d+", str(key)) is not None
    environment.globals["table"] = markdown_table
    return environment


def _code_or_nothing(value: Any) -> str:
    missing = value is None or value == "" or isinstance(value, jinja2.Undefined)
    return "" if missing else code(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _name(record: dict) -> str:
    """Return the name of the model, without the tag of weights that it did not start from."""
    if lookup(record, "model", "init") in ("random", "checkpoint"):
        architecture = lookup(record, "model", "architecture")
        if architecture:
            return architecture
    return lookup(record, "model", "name") or "student"


def _data_name(record: dict) -> Any:
    return lookup(record, "data", "name") or lookup(record, "data", "dataset")


def _plugin_module(record: dict) -> str | None:
    """Return what has to be imported for an architecture that is not timm's."""
    module = lookup(record, "model", "plugin_module")
    is_name = all(part.isidentifier() for part in str(module).split("."))
    return "w2s_plugins" if module and not is_name else module or None


def _without_places(value: Any) -> Any:
    """Return a part of a record with the last parts alone of absolute paths, and the last two of a local model's."""
    if isinstance(value, dict):
        return {key: part if key == "class_names" else _without_places(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(part) for part in value]
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


def _metadata(record: dict) -> ModelCardData:
    """Return what the Hub reads of a card."""
    loss, license = lookup(record, "loss", "name"), lookup(record, "license")
    dataset, split = dataset_id(record), lookup(record, "data", "val_split")
    results = []
    for name, key in (("Top-1 accuracy (%)", "top1"), ("Top-5 accuracy (%)", "top5")):
        value = lookup(record, "metrics", key)
        if is_number(value):
            results.append(EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=dataset or "custom",
                dataset_name=plain(_data_name(record) or "custom"),
                dataset_split=plain(split) if split else None,
                metric_type="accuracy",
                metric_name=name,
                metric_value=value,
            ))
    tags = ["timm", "image-classification", "weak-to-strong", "knowledge-distillation"]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=plain(license) if license else None,
        tags=tags + ([plain(loss)] if loss else []),
        base_model=_repo_id(lookup(record, "model", "source", "repo")),
        datasets=[dataset] if dataset else None,
        metrics=["accuracy"] if results else None,
        model_name=plain(_name(record)) if results else None,
        eval_results=results or None,
    )


def lookup(record: Any, *keys: str) -> Any:
    """Return a value that lies deep in a record, None where it is not there."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _repo_id(value: Any) -> str | None:
    try:
        validate_repo_id(value or "")
    except HFValidationError:
        return None
    return value


def dataset_id(record: dict) -> str | None:
    """Id on the Hub of the dataset, for timm's ``hfds/`` and ``hfids/`` names and for well-known ones."""
    reader, _, name = str(lookup(record, "data", "dataset") or "").partition("/")
    if reader in ("hfds", "hfids"):
        return _repo_id(name)
    return _HUB_DATASETS.get(name) if reader in ("torch", "tfds") else None
