"""Models of timm as teachers: by a name, from the Hub, from a folder, or with the checkpoint of a run or of others."""

from dataclasses import replace
from pathlib import Path

from ..errors import logger
from ..files import file_sha256
from ..models.class_names import imagenet_names, names_of_model
from ..models.loading import (
    Recorded,
    adapt_state,
    architecture_of,
    classifier_prefixes,
    create_model,
    find_weights,
    input_config,
    load_weights,
    pretrained_source,
    read_weights,
    settings_beside,
)
from ..settings.teacher_name import TeacherName
from ..target_kind import ONE_CLASS
from .openers import Opened, Request, origin_text, register_teacher


def open_timm(name: TeacherName, request: Request) -> Opened:
    """Open a model of timm with its pretrained weights, or with those of a checkpoint.

    Raises:
        UserError: unknown name, weights that do not fit.
    """
    name_flag, file_flag = request.flags
    # A checkpoint is looked at before a model is made, and what its run says of the input and the model decides where
    # the user asks for nothing else.
    file, state, recorded = None, {}, Recorded({}, None, {})
    if request.checkpoint is not None:
        file = find_weights(request.checkpoint, file_flag)
        state = read_weights(file, file_flag)
        recorded = settings_beside(file, file_flag)
    inputs = recorded.inputs
    sizes = {"img_size": inputs.get("img_size"), "input_size": inputs.get("input_size")}
    if request.img_size:
        sizes = {"img_size": request.img_size}
    model = create_model(
        name_flag,
        name.text,
        pretrained=file is None,
        inputs=sizes,
        instead=f"{file_flag} FILE",
        recorded={
            "in_chans": inputs.get("in_chans") or request.in_chans,
            **recorded.model_kwargs,
        },
        **(request.model_kwargs or {}),
    )
    if file is None:
        origin = pretrained_source(model, name.text, name_flag)
        loaded = f"pretrained weights ({origin_text(origin)})"
    else:
        origin = {"file": str(file), "sha256": file_sha256(file)}
        # as many classes as the head in the file has, else as its run has recorded
        classes = recorded.num_classes
        heads = [state.get(f"{prefix}weight") for prefix in classifier_prefixes(model)]
        head = next((weight for weight in heads if weight is not None), None)
        if head is not None and head.ndim > 0:
            classes = len(head)
        if classes and classes != model.num_classes:
            model.reset_classifier(classes)
        # a published checkpoint may have other names
        if not state.keys() <= model.state_dict().keys():
            state = adapt_state(model, state)
        loaded = load_weights(model, state, str(file), file_flag)
    logger.info(f"{name_flag.removeprefix('--').capitalize()} {name}: {loaded}")

    # Images are prepared as the run beside the weights has recorded it, but for their size where another is asked for.
    prepared = {**inputs, "in_chans": None}
    if request.img_size:
        prepared.update(img_size=request.img_size, input_size=None)
    data_config = input_config(model, f"{name_flag} {name}", prepared)

    # timm's own models of ImageNet have no names, but are known to have its classes.
    names = names_of_model(model, request.checkpoint, file_flag)
    if names is None and file is None and name.is_architecture and request.class_names:
        names = imagenet_names(model, request.class_names)
    # Published weights tell one class from the others, if their config.json says nothing else; weights that come without
    # a word are taken for what is asked for.
    kind = recorded.target_kind or request.target_kind
    if file is None:
        kind = getattr(model, "target_kind", ONE_CLASS)
    return Opened(model, data_config, names, origin, kind)


@register_teacher("checkpoint")
def open_checkpoint(path: str, request: Request) -> Opened:
    """Open the model of a run with one of its checkpoints, which says what model it is of; see `open_timm`."""
    # The file is both: it says which model it is of, and has its weights.
    flag = request.flags[0]
    name = TeacherName.parse(architecture_of(Path(path), flag))
    return open_timm(name, replace(request, checkpoint=path, flags=(flag, flag)))
