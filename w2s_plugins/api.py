"""From Python: what the scripts do, with keywords for their flags, and the parts for training loops of one's own.

torch and timm are imported when something needs them: wrong flags are answered before.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

from .cli.declare import words_of
from .cli.forms import teacher_names
from .cli.parser import check_flags, combine, predict_parser, train_parser
from .errors import STOPPING, UserError
from .files import TOP
from .predictions.flags import settle
from .registry import check_versions, offer
from .teachers.name import parse_teachers

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

    from .teachers.teacher import Teacher

    class Student(nn.Module):
        """A model of timm with what belongs to it; only a type, models keep their class."""

        transform: Callable[[Image], Tensor]
        class_names: list[str] | None
        num_classes: int

StrPath: TypeAlias = str | os.PathLike[str]


def train(**flags: object) -> dict[str, Any]:
    """Train as ``train_w2s.py`` does; return the record of the run, or of all runs of a protocol: its result.json.

    Args:
        flags: those of the script, with underscores, as in YAML: ``loss="kd", loss_kwargs={"temperature": 2}``;
            ``config`` is a YAML file, or the name of one of the package's, such as ``digits``, or a list of them.

    Raises:
        UserError: what would be one line and exit code 2 there.
        KeyboardInterrupt: it was stopped; a checkpoint is saved, from which ``resume="auto"`` goes on.
    """
    return _train("w2s.train", flags)


def protocol(**flags: object) -> dict[str, Any]:
    """Train teacher, ceiling and student as ``train_w2s.py --protocol w2s`` does; return the record of all of them.

    Args:
        flags: as of `train`.

    Raises:
        UserError, KeyboardInterrupt: as `train`.
    """
    return _train("w2s.protocol", {**flags, "protocol": "w2s"})


def _train(who: str, flags: dict[str, object]) -> dict[str, Any]:
    # Flags as a file of YAML would have them; what is None is not given.
    plain = {name: _plain(value) for name, value in flags.items() if value is not None}
    files = plain.pop("config", [])
    files = [files] if isinstance(files, str) else files
    # Every flag has a name, but the folder of the data, which may also be given by its place.
    if "data" in plain:
        plain.setdefault("data_dir", plain.pop("data"))
    parser = train_parser()
    typed = check_flags(plain, parser, who)

    # The command line that the record of the run shows.
    actions = parser.by_dest()
    words = [word for name, value in typed.items() for word in words_of(actions[name], value)]
    line = ["w2s-train", *words, *(["--config", *files] if files else [])]

    # Then as the command does, and never out of this process.
    check_versions()
    if str(TOP) not in sys.path:
        sys.path.append(str(TOP))
    with _as_command(line):
        from .run.lock import unlock_run
        try:
            record = importlib.import_module("train_w2s").train_all(*combine(parser, files, typed))
            if importlib.import_module("w2s_plugins.distributed.signals").SignalWatch.entered is not None:
                raise KeyboardInterrupt("stopped; this run is finished, and in its result.json")
            return record
        except SystemExit as end:
            raise KeyboardInterrupt("stopped; resume='auto' goes on") from end
        finally:
            unlock_run()


@overload
def predict(model: StrPath, images: StrPath, output: None = None, **flags: object) -> list[dict[str, Any]]: ...
@overload
def predict(model: StrPath, images: StrPath, output: StrPath, **flags: object) -> Path: ...
def predict(
        model: StrPath, images: StrPath, output: StrPath | None = None, **flags: object,
) -> list[dict[str, Any]] | Path:
    """Ask a model about images without labels, as ``python -m w2s_plugins.predictions`` does.

    Args:
        model: folder of a run or of an export, ``hf-hub:ORG/NAME``, a timm name, or another kind of teacher.
        images: folder of images at any depth, a tar file, or shards (``wds/PATH``).
        output: table that is written.
        flags: further ones of the command, with underscores: ``top_k=5``, ``all=True``, ``class_names="cat,dog"``.

    Returns:
        Without ``output`` a row an image, with ``filename``, ``label``, ``confidence`` and what flags ask for; with
        it, its path.

    Raises:
        UserError: no such model, images or flags.
    """
    with contextlib.ExitStack() as stack:
        table = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "labels.jsonl" if output is None else (
            Path(output))
        given = dict(model=model, dir=images, output=table, **flags)
        request = settle(check_flags({k: _plain(v) for k, v in given.items()}, predict_parser(), "w2s.predict"))
        stack.enter_context(_as_command(["w2s-predict"]))
        from .predictions import run
        run.predict(run.Prediction(**request))
        if output is not None:
            return table
        return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def load_student(place: StrPath) -> "Student":
    """Return a trained student as a plain model of timm in eval mode, on the CPU, with two attributes more.

    ``transform`` turns an image of Pillow into the model's input (C, H, W); ``class_names`` are the names of its
    classes by their number, None where it knows none.

    Args:
        place: folder of a run or of an export, ``hf-hub:ORG/NAME[@REVISION]``, or the name of a model of timm, which
            then has its pretrained weights.

    Raises:
        UserError: there is none, or its weights cannot be read.
    """
    from timm.data.transforms_factory import create_transform

    from .predictions.run import open_model

    # as predict opens it
    opened = open_model(os.fspath(place))
    model = opened.model.eval()
    vars(model).update(transform=create_transform(**opened.data_config), class_names=opened.class_names)
    return cast("Student", model)


def create_teacher(
        teacher: "StrPath | Callable[[Tensor], object] | Sequence[StrPath | Callable[[Tensor], object]]",
        student: "nn.Module",
        *,
        checkpoint: StrPath | None = None,
        class_names: Sequence[str] | None = None,
        data_config: Mapping[str, Any] | None = None,
        device: "torch.device | str | None" = None,
) -> "Teacher":
    """Create a frozen teacher of a student: called with a normalised batch of the student's, it gives logits (B, C).

    Args:
        teacher: what ``--teacher`` takes; or a function from images in [0, 1] (B, C, H, W) to probabilities or logits
            (B, C); or several of them, whose probabilities are averaged.
        student: its ``num_classes`` (or ``num_labels``) is what the teacher has to have.
        checkpoint: weights of the teacher, a file or a run folder.
        class_names: names of the student's classes, by which those of the teacher are matched.
        data_config: mean, std and input_size of the student's batches; timm's for the student unless given.
        device: where it runs; unless given, where the student is.

    Raises:
        UserError: an unknown name, weights that do not fit, another number of classes.
    """
    import torch
    from timm.data.config import resolve_model_data_config

    from .teachers.teacher import StudentInput
    from .teachers.teacher import create_teacher as create
    from .training.flags import check_teacher_name

    # a name, a function, or several of them
    several = [teacher] if callable(teacher) or isinstance(teacher, (str, os.PathLike)) else teacher
    names = [name for one in several for name in parse_teachers(
        offer(one) if callable(one) else teacher_names(os.fspath(one)))]
    if not names:
        raise UserError("w2s.create_teacher: no teacher: give a name, a function, or several of them")
    for name in names:
        check_teacher_name("w2s.create_teacher", name)
    # the student's images, as the teacher has to take them
    config = {**resolve_model_data_config(student), **(data_config or {})}
    classes = getattr(student, "num_classes", getattr(student, "num_labels", None))
    place = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    return create(
        names,
        [] if checkpoint is None else [os.fspath(checkpoint)],
        StudentInput.of(config, classes, class_names),
        torch.device(device) if device is not None else place)


def _plain(value: Any) -> Any:
    """Return a value as YAML has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _as_command(words: list[str]) -> Iterator[None]:
    """Be that command, whose line the record keeps, and put back what it changes of this process."""
    from .monitor import setup_logging

    # what is changed
    argv, root = sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    noted = {number: signal.getsignal(number) for number in STOPPING}  # a run that is stopped leaves its own behind
    sys.argv = words
    setup_logging(primary=os.environ.get("RANK", "0") == "0")
    try:
        yield
    finally:
        # and put back
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, handler in noted.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
