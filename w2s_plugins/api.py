"""What you call from Python: the commands as functions, and the parts for a training loop of your own.

torch and timm are imported inside the functions, so that a wrong flag is reported before they are loaded.
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
from .cli.values import as_plain, name_of
from .errors import STOPPING, UserError, nearest, one_line
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
    """Train as ``train_w2s.py`` does, and return the content of the run's result.json.

    Args:
        flags: those of the script, with underscores, as in YAML: ``loss="kd", loss_kwargs={"temperature": 2}``;
            ``config`` is a YAML file, or the name of one of the package's, such as ``digits``, or a list of them.

    Raises:
        UserError: something is wrong with what you gave; the script would print this line and exit with code 2.
        KeyboardInterrupt: training was stopped. A checkpoint is saved, and ``resume="auto"`` goes on from it.
    """
    return _train("w2s.train", flags)


def protocol(**flags: object) -> dict[str, Any]:
    """Train teacher, ceiling and student as ``train_w2s.py --protocol w2s`` does, and return the record of all three.

    Args:
        flags: the flags of ``train_w2s.py``, with underscores, as `train` takes them.

    Raises:
        UserError: something is wrong with what you gave.
        KeyboardInterrupt: training was stopped. A checkpoint is saved, and ``resume="auto"`` goes on from it.
    """
    return _train("w2s.protocol", {**flags, "protocol": "w2s"})


def _train(who: str, flags: dict[str, object]) -> dict[str, Any]:
    # Bring the keywords into the form of a YAML file. None means that a flag is not given.
    plain = {name: as_plain(value) for name, value in flags.items() if value is not None}
    config = plain.pop("config", [])
    named = config if isinstance(config, list) else [config]
    files = [name_of(file, f"{who}: config") for file in named]
    # The folder of the data has two names: on the command line it may stand without a flag, and timm calls it `data`.
    if "data" in plain:
        plain.setdefault("data_dir", plain.pop("data"))
    parser = train_parser()
    typed = check_flags(plain, parser, who)

    # Write down the command line that would do the same, because the record of a run shows one.
    actions = parser.by_dest()
    words = [word for name, value in typed.items() for word in words_of(actions[name], value)]
    line = ["w2s-train", *words, *(["--config", *files] if files else [])]

    # Run the script's own function in this process. If it wants to exit, Python gets an exception instead.
    check_versions()
    if str(TOP) not in sys.path:
        sys.path.append(str(TOP))
    with _as_command(line):
        from .run.lock import unlock_run

        try:
            record = importlib.import_module("train_w2s").train_all(*combine(parser, files, typed))
            if (
                importlib.import_module("w2s_plugins.distributed.signals").SignalWatch.entered
                is not None
            ):
                raise KeyboardInterrupt("stopped; this run is finished, and in its result.json")
            return record
        except SystemExit as end:
            raise KeyboardInterrupt("stopped; resume='auto' goes on") from end
        finally:
            unlock_run()


@overload
def predict(
    model: StrPath, images: StrPath, output: None = None, **flags: object
) -> list[dict[str, Any]]: ...
@overload
def predict(model: StrPath, images: StrPath, output: StrPath, **flags: object) -> Path: ...
def predict(
    model: StrPath,
    images: StrPath,
    output: StrPath | None = None,
    **flags: object,
) -> list[dict[str, Any]] | Path:
    """Ask a model about images without labels, as ``python -m w2s_plugins.predictions`` does.

    Args:
        model: folder of a run or of an export, ``hf-hub:ORG/NAME``, a timm name, or another kind of teacher.
        images: a folder, which is searched at any depth, a tar file, or shards (``wds/PATH``).
        output: the table to write. If it is None, no file is written.
        flags: other flags of the command, with underscores: ``top_k=5``, ``all=True``, ``class_names="cat,dog"``.

    Returns:
        The path of the table if you gave ``output``. Otherwise a list with one dictionary for each image: ``filename``,
        ``label``, ``confidence``, and what the flags ask for.

    Raises:
        UserError: there is no such model or folder, or a flag is wrong.
    """
    who = "w2s.predict"
    given = {"model": name_of(model, f"{who}: model"), "dir": name_of(images, f"{who}: images")}
    if flags.keys() & given.keys():
        raise UserError(f"{who}: dir is called images here, and is given once")
    with contextlib.ExitStack() as stack:
        if output is None:
            table = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "labels.jsonl"
        else:
            table = Path(name_of(output, f"{who}: output"))
        others = {name: as_plain(value) for name, value in flags.items()}
        plain = {**given, "output": str(table), **others}
        request = settle(check_flags(plain, predict_parser(), who))
        stack.enter_context(_as_command(["w2s-predict"]))
        from .predictions import run

        run.predict(run.Prediction(**request))
        if output is not None:
            return table
        return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def load_student(place: StrPath) -> "Student":
    """Return a trained student: a plain timm model in eval mode, on the CPU, with two more attributes.

    ``transform`` turns a Pillow image into the model's input (C, H, W). ``class_names`` lists the names of the classes
    in the order of the logits; it is None if the model does not know them.

    Args:
        place: folder of a run or of an export, ``hf-hub:ORG/NAME[@REVISION]``, or the name of a timm model, which is
            loaded with its pretrained weights.

    Raises:
        UserError: there is no model there, or its weights cannot be read.
    """
    from timm.data.transforms_factory import create_transform

    from .predictions.run import open_model

    # open it in the way predict does, so that both accept the same names
    opened = open_model(name_of(place, "w2s.load_student"))
    model = opened.model.eval()
    vars(model).update(
        transform=create_transform(**opened.data_config), class_names=opened.class_names
    )
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
    """Create a frozen teacher for a student. Call it with a batch that is normalised for the student to get logits.

    Args:
        teacher: a name that ``--teacher`` takes, or a function from images in [0, 1] (B, C, H, W) to probabilities or
            logits (B, C). If you give several, their probabilities are averaged.
        student: the model to teach. The teacher must have as many classes as its ``num_classes`` (or ``num_labels``).
        checkpoint: weights of the teacher, a file or the folder of a run.
        class_names: names of the student's classes. The teacher's classes are matched to them by name.
        data_config: ``mean``, ``std`` and ``input_size`` of the student's batches. By default timm's for the student.
        device: where the teacher runs. By default where the student is.

    Raises:
        UserError: the name is unknown, the weights do not fit, or the number of classes differs.
    """
    import torch
    from timm.data.config import resolve_model_data_config
    from timm.models import PretrainedCfg
    from torch import nn

    from .labels.names import check_class_names
    from .settings.flags import check_teacher_name
    from .teachers.teacher import StudentInput, open_teacher

    # a function becomes a name first, as if a plugin had offered it, so that all teachers are opened in one way
    who = "w2s.create_teacher"
    if not isinstance(student, nn.Module):
        raise UserError(
            f"{who}: the student is a {type(student).__name__}, expected a model, a torch.nn.Module"
        )
    if not isinstance(data_config, (Mapping, type(None))):
        raise UserError(
            f"{who}: data_config is a {type(data_config).__name__}, expected a mapping with mean and std"
        )
    several = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    names = [
        name
        for one in several
        for name in parse_teachers(
            offer(one) if callable(one) else teacher_names(name_of(one, f"{who}: teacher"))
        )
    ]
    if not names:
        raise UserError(f"{who}: no teacher: give a name, a function, or several of them")
    for name in names:
        check_teacher_name(who, name)
    # the teacher has to undo the student's normalisation, so it is told which one that is
    config = resolve_model_data_config(student)
    known = {*config, *PretrainedCfg.__dataclass_fields__}
    for key in (data_config or {}).keys() - known:
        raise UserError(f"{who}: data_config has no '{key}'{nearest(key, known)}")
    config = {**config, **(data_config or {})}
    classes = getattr(student, "num_classes", getattr(student, "num_labels", None))
    class_names = cast("Sequence[str] | None", as_plain(class_names))
    if class_names is not None:
        check_class_names(class_names, f"{who}: class_names", classes)
    place = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    return open_teacher(
        names,
        [] if checkpoint is None else [name_of(checkpoint, f"{who}: checkpoint")],
        StudentInput.of(config, classes, class_names),
        _device(device, who) if device is not None else place,
    )


def _device(device: object, who: str) -> "torch.device":
    """Return a device of torch. Raises `UserError` for what is none."""
    import torch

    try:
        return torch.device(cast(str, device))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{who}: device {device!r:.60}: {one_line(error, 100)}") from error


@contextlib.contextmanager
def _as_command(words: list[str]) -> Iterator[None]:
    """Act as this command inside the block, and undo what it changes in this process afterwards."""
    from .monitor import setup_logging

    # remember what a command changes: its command line, the log, the handlers of signals
    argv, root = sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    noted = {
        number: signal.getsignal(number) for number in STOPPING
    }  # a run that is stopped leaves its own behind
    sys.argv = words
    setup_logging(primary=os.environ.get("RANK", "0") == "0")
    try:
        yield
    finally:
        # put everything back, so that your program goes on as before
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, handler in noted.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
