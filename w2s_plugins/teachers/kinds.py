"""Kinds of teachers beyond timm's models: what stands before the colon of a name says who opens it.

`hf:ORG/NAME` or `hf:FOLDER` is an image classifier of transformers (`hf.py`), `clip:MODEL/PRETRAINED` a zero-shot
classifier of open_clip, `clip:hf:ORG/NAME` or `clip:hf:FOLDER` one of transformers (`clip.py`), `onnx:FILE` a network
that onnxruntime runs, `MODULE:FUNCTION` a function of a module of ``--plugins`` (`outside.py`). A plugin adds another
kind with `register_teacher`. Each opener returns a module from normalised images to logits, with timm's data
configuration of its input and the names of its classes; what trains, stores and records a teacher knows nothing of the
kind.
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec

from ..errors import UserError, nearest, one_line
from ..registry import loaded_plugin, plugin_names
from . import clip, hf  # noqa: F401  registers its kind
from .name import LABELS, OF_TIMM, TeacherName
from .opened import TEACHERS, Opened, Request
from .outside import open_function

# what each kind imports, and what pip calls it
PACKAGES = {"hf": ("transformers", "transformers"), "clip": ("open_clip", "open_clip_torch"),
            "onnx": ("onnxruntime", "onnxruntime")}


def check_kind(flag: str, text: str) -> bool:
    """Return whether a teacher is of a kind of this module, by its name.

    Raises:
        UserError: there is no such kind, or its package is absent.
    """
    name = TeacherName.parse(text)
    if name.is_labels:
        raise UserError(f"{flag} {text}: labels cannot be asked about images; expected a model")
    if name.is_of_timm:
        return False
    if name.kind not in TEACHERS and loaded_plugin(name.kind) is None:
        known = [*filter(None, OF_TIMM), LABELS, *TEACHERS.names(), *plugin_names()]
        raise UserError(f"{flag} {text}: unknown kind of teacher '{name.kind}'{nearest(name.kind, known)}; one of "
                        f"{', '.join(known)}, or MODULE:FUNCTION with --plugins MODULE")
    if not name.rest:
        raise UserError(f"{flag} {text}: expected a name behind the colon")
    by_transformers = name.kind == "clip" and TeacherName.parse(name.rest).kind == "hf"
    module, package = PACKAGES.get("hf" if by_transformers else name.kind, (None, None))
    if module is not None and find_spec(module) is None:
        raise UserError(f"{flag} {text}: needs a package: pip install {package}")
    return True


def open_kind(text: str, request: Request, flag: str = "--teacher") -> Opened:
    """Open a teacher by its name, ``kind:NAME`` or ``MODULE:FUNCTION``.

    Raises:
        UserError: it cannot be opened.
    """
    check_kind(flag, text)
    name = TeacherName.parse(text)
    try:
        if name.kind in TEACHERS:
            opened = TEACHERS.get(name.kind)(name.rest, request)
        else:
            opened = open_function(name.kind, name.rest, request)
    except UserError as error:
        raise UserError(f"{flag} {text}: {str(error).removeprefix(f'{text}: ')}") from error
    except Exception as error:  # each package has errors of its own
        raise UserError(f"{flag} {text}: cannot be opened: {type(error).__name__}: {one_line(error, 200)}") from error
    if request.img_size:
        opened.data_config["input_size"] = (opened.data_config["input_size"][0], request.img_size, request.img_size)
    return opened


def input_text(data_config: Mapping[str, object], whole: bool) -> str:
    """Say what a teacher sees: an image through its own transform, or the view of the student."""
    height, width = data_config["input_size"][-2:]
    if not whole:
        return f"{height} x {width} pixels: the student's view, resized (bicubic), under its own normalisation"
    crop = float(data_config["crop_pct"])
    resized = f"{math.floor(height / crop)} x {math.floor(width / crop)}"
    shorter = resized if height != width else str(math.floor(height / crop))
    how = {"squash": f"squashed to {resized}", "border": "whole, with borders"}.get(
        data_config["crop_mode"], f"shorter side to {shorter}, centre crop")
    return f"{height} x {width} pixels: the image through its own transform ({how}, {data_config['interpolation']})"
