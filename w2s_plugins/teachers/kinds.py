"""The kinds of teachers: what stands before the colon of a name says who opens it.

`timm_models.py` opens models of timm, `hf:` is an image classifier of transformers (`hf.py`), `clip:` a zero-shot
classifier of open_clip (`clip.py`), `onnx:` a network that onnxruntime runs and `MODULE:FUNCTION` a
function of a module of ``--plugins`` (`outside.py`). A kind is a file that registers its opener with `register_teacher`
and is imported here, or by a plugin. What trains, stores and records a teacher knows nothing of its kind.
"""

import functools

from ..errors import UserError, logger, nearest, one_line
from ..hub.client import on_hub
from ..registry import PLUGINS
from ..settings.teacher_name import LABELS_KIND, OF_TIMM, TeacherName
from . import clip, hf  # noqa: F401  registers its kind
from .openers import TEACHERS, Opened, Request, origin_text
from .outside import open_function
from .timm_models import open_timm


def check_kind(flag: str, name: TeacherName) -> None:
    """Raise a `UserError` for what is no model, or of no kind that there is."""
    if name.is_labels:
        raise UserError(f"{flag} {name}: labels cannot be asked about images; expected a model")
    # A plugin may register a kind, or offer functions under its own name.
    if not name.is_of_timm and name.kind not in TEACHERS and name.kind not in PLUGINS:
        known = [*filter(None, OF_TIMM), LABELS_KIND, *TEACHERS.names(), *sorted(PLUGINS)]
        raise UserError(
            f"{flag} {name}: unknown kind of teacher '{name.kind}'{nearest(name.kind, known)}; one of "
            f"{', '.join(known)}, or MODULE:FUNCTION with --plugins MODULE"
        )
    if not name.rest:
        raise UserError(f"{flag} {name}: expected a name behind the colon")


def takes_class_names(name: TeacherName) -> bool:
    """Return whether a teacher has no classes of its own, and is told those of the data."""
    return name.kind in TEACHERS and TEACHERS.get(name.kind).takes_class_names


def open_classifier(name: TeacherName, request: Request) -> Opened:
    """Open a model of any kind by its name.

    Raises:
        UserError: it cannot be opened.
    """
    flag = request.flags[0]
    who = f"{flag} {name}"
    check_kind(flag, name)
    if name.is_of_timm:
        return open_timm(name, request)
    # Left out without a word they would be thought to have been used.
    if request.model_kwargs:
        raise UserError(
            f"--teacher-kwargs are arguments of timm's constructors, which {who} does not use"
        )
    # What goes wrong in it is told with the name, in one line.
    opener = functools.partial(open_function, name.kind)
    if name.kind in TEACHERS:
        opener = TEACHERS.get(name.kind).open
    try:
        opened = on_hub(name.text, lambda: opener(name.rest, request))
    except UserError as error:
        raise UserError(f"{who}: {str(error).removeprefix(f'{name}: ')}") from error
    except ImportError as error:
        package = {"open_clip": "open_clip_torch"}.get(str(error.name), error.name)
        raise UserError(f"{who}: needs a package: pip install {package}") from error
    except Exception as error:  # each package has errors of its own
        raise UserError(
            f"{who}: cannot be opened: {type(error).__name__}: {one_line(error, 200)}"
        ) from error
    # Another size is asked of whatever takes one; whether it does is seen when an image is tried.
    if request.img_size:
        channels = opened.data_config["input_size"][0]
        input_size = (channels, request.img_size, request.img_size)
        opened = opened._replace(data_config={**opened.data_config, "input_size": input_size})
    role = flag.removeprefix("--").capitalize()
    logger.info(f"{role} {name}: {opened.num_classes} classes ({origin_text(opened.origin)})")
    return opened
