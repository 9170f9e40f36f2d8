"""Models of timm as teachers: by a name, from the Hub, from a folder, or with the checkpoint of a run or of others."""

import logging

from timm.data.model_config import resolve_input_data_config
from torch import nn

from ..errors import UserError, one_line
from ..files import file_sha256
from ..models.class_names import imagenet_names, names_of_model
from ..models.loading import (
    INPUT_KEYS,
    LoadReport,
    adapt_state,
    classifier_prefixes,
    create_model,
    find_weights,
    load_weights,
    pretrained_source,
    read_weights,
    settings_beside,
)
from .name import TeacherName
from .openers import Opened, Request, origin_text

_logger = logging.getLogger(__name__)


def open_timm(name: str, request: Request) -> Opened:
    """Open a model of timm with its pretrained weights, or with those of a checkpoint.

    Raises:
        UserError: unknown name, weights that do not fit.
    """
    name_flag, file_flag = request.flags
    role = name_flag.removeprefix("--").capitalize()
    # Pretrained weights are found by the name; those of a checkpoint may have a run beside them.
    recorded: dict[str, object] = {}
    if request.checkpoint is None:
        inputs = {"in_chans": request.in_chans, "img_size": request.img_size}
        model = create_model(name_flag, name, pretrained=True, inputs=inputs, **(request.model_kwargs or {}))
        origin = pretrained_source(model, name, name_flag)
        _logger.info(f"{role} {name}: pretrained weights ({origin_text(origin)})")
    else:
        model, origin, recorded, report = _with_checkpoint(name, request.checkpoint, request)
        _logger.info(f"{role} {name}: {report}")

    # Images are prepared as the run beside the weights has recorded it, but for their size where another is asked for.
    prepared = {**{key: recorded[key] for key in INPUT_KEYS if key in recorded}, "in_chans": None}
    if request.img_size:
        prepared.update(img_size=request.img_size, input_size=None)
    try:
        data_config = resolve_input_data_config(model, args=prepared)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{name_flag} {name}: {one_line(error)}") from error

    # timm's own models of ImageNet have no names, but are known to have its classes.
    names = names_of_model(model, request.checkpoint, file_flag)
    by_timm = request.checkpoint is None and TeacherName.parse(name).is_architecture
    if names is None and by_timm and request.class_names:
        names = imagenet_names(model, request.class_names)
    return Opened(model, data_config, names, origin)


def _with_checkpoint(name: str, checkpoint: str, request: Request) -> tuple[nn.Module, dict, dict, LoadReport]:
    """Return a model with the weights of a checkpoint, where they are from, what its run has recorded of its input, and
    what was loaded.
    """
    name_flag, file_flag = request.flags
    # The file is looked at before a model is made.
    kwargs = dict(request.model_kwargs or {})
    file = find_weights(checkpoint, file_flag)
    state = read_weights(file, file_flag)

    # What the run says of its model decides where the user asks for nothing else.
    recorded = settings_beside(file, file_flag)
    of_run = {"img_size": recorded.get("img_size"), "input_size": recorded.get("input_size")}
    model = create_model(
        name_flag,
        name,
        pretrained=False,
        inputs={"img_size": request.img_size} if request.img_size else of_run,
        recorded={"in_chans": recorded.get("in_chans") or request.in_chans, **recorded.get("model_kwargs", {})},
        **kwargs,
    )

    # The head gets as many classes as the weights have; a published checkpoint may have other names.
    heads = [state[key] for key in (f"{prefix}weight" for prefix in classifier_prefixes(model)) if key in state]
    classes = len(heads[0]) if heads else recorded.get("num_classes")
    if classes and classes != model.num_classes:
        model.reset_classifier(classes)
    if not state.keys() <= model.state_dict().keys():
        state = adapt_state(model, state)
    report = load_weights(model, state, str(file), file_flag)
    return model, {"file": str(file), "sha256": file_sha256(file)}, recorded, report
