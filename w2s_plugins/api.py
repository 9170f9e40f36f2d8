"""What you call from Python: the commands as functions, and the parts for a training loop of your own.

torch and timm are imported inside the functions, so that a wrong flag is reported before they are loaded.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

from .cli import load_script
from .cli.declare import Parser, words_of
from .cli.parser import check_flags, combine, predict_parser, train_parser
from .errors import STOPPING, UserError, nearest, one_line
from .predictions.flags import settle
from .registry import check_versions, offer
from .settings.concerns import Prediction
from .settings.field import dest_of
from .settings.forms import teacher_names
from .settings.teacher_name import TeacherName, parse_teachers
from .settings.values import as_plain, name_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn
    from typing_extensions import Unpack

    # a stub alone, made of the flags
    from .keywords import (  # pyright: ignore[reportMissingModuleSource]
        PredictFlags,
        ProtocolFlags,
        TrainFlags,
    )
    from .target_kind import TargetKind
    from .teachers.teacher import Teacher

    class Student(nn.Module):
        """A model of timm with what belongs to it; only a type, models keep their class."""

        transform: Callable[[Image], Tensor]
        class_names: list[str] | None
        num_classes: int
        task: str


StrPath: TypeAlias = str | os.PathLike[str]


# What is passed most has a keyword with a type. None stands for "not given", so that files, recipes and the defaults of
# the flags decide as they do for the command.
def train(
    *,
    config: StrPath | Sequence[StrPath] | None = None,
    model: StrPath | None = None,
    pretrained: bool | None = None,
    tune: str | None = None,
    teacher: StrPath | None = None,
    teacher_checkpoint: StrPath | None = None,
    data_dir: StrPath | None = None,
    unlabeled: StrPath | None = None,
    dataset: str | None = None,
    task: str | None = None,
    train_labels: StrPath | None = None,
    val_labels: StrPath | None = None,
    class_names: str | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    loss: str | None = None,
    loss_kwargs: Mapping[str, object] | None = None,
    task_loss_weight: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    opt: str | None = None,
    weight_decay: float | None = None,
    amp: bool | None = None,
    workers: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    output: StrPath | None = None,
    experiment: str | None = None,
    resume: StrPath | None = None,
    **flags: "Unpack[TrainFlags]",
) -> dict[str, Any]:
    """Train as ``train_w2s.py`` does, and return the content of the run's result.json.

    Args:
        config: YAML files of flags, or names of the package's such as ``digits``. Keywords win over them.
        model: the student, a model of timm or ``hf-hub:ORG/NAME``.
        pretrained: start from the model's pretrained weights.
        tune: what of the student is trained: ``all``, ``head``, ``norm``, ``bias``, ``last:2``, ``lora``.
        teacher: who labels: ``labels:FILE``, a model, a run folder, ``clip:MODEL/PRETRAINED``; several by commas.
        teacher_checkpoint: weights of the teacher, a file or a run folder.
        data_dir: folder with ``train/CLASS/`` and ``validation/CLASS/``.
        unlabeled: images without labels to train on: a folder, at any depth, or a tar file.
        dataset: a data set by its name, such as ``torch/cifar100`` or ``w2s/digits``.
        task: ``multilabel`` if an image may have several classes, or none.
        train_labels: a table with the true labels of the images to train on, in place of class folders.
        val_labels: the same of the images to measure on.
        class_names: a file with one name a line, or ``a,b,c``.
        num_classes: number of classes, if the data do not tell it.
        img_size: side of the images in pixels, 1 to 16384.
        loss: how the student learns from the teacher, such as ``kd``; see `w2s_plugins.list_losses`.
        loss_kwargs: hyperparameters of the loss.
        task_loss_weight: weight of true labels beside the teacher's; 0 learns from the teacher alone.
        epochs: passes over the training images, at least 1.
        batch_size: images in a step of each process, at least 1.
        lr: learning rate. If it is not given, or 0, it follows from the batch size, as in timm's script.
        opt: the optimizer, one of timm's.
        weight_decay: weight decay of the optimizer.
        amp: mixed precision.
        workers: processes that decode images, 0 or more.
        device: ``cuda``, ``cuda:1``, ``cpu``, ``mps``.
        seed: of every random draw, 0 to 4294967295.
        output: folder in which the folder of the run is made.
        experiment: name of the run's folder.
        resume: a checkpoint or a run folder to go on from; ``auto``: the run of this name, if there is one.
        flags: all others of the script, with underscores, as in YAML: ``mixup=0.2``.

    Raises:
        UserError: something is wrong with what you gave; the script would print this line and exit with code 2.
        KeyboardInterrupt: training was stopped. A checkpoint is saved, and ``resume="auto"`` goes on from it.
    """
    return _train("w2s.train", locals())


def protocol(
    *,
    config: StrPath | Sequence[StrPath] | None = None,
    model: StrPath | None = None,
    teacher: StrPath | None = None,
    data_dir: StrPath | None = None,
    dataset: str | None = None,
    img_size: int | None = None,
    loss: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    output: StrPath | None = None,
    experiment: str | None = None,
    **flags: "Unpack[ProtocolFlags]",
) -> dict[str, Any]:
    """Train teacher, ceiling and student as ``train_w2s.py --protocol w2s`` does, and return the record of all three.

    Args:
        config: YAML files of flags, or names of the package's such as ``digits``. Keywords win over them.
        model: the student, a model of timm or ``hf-hub:ORG/NAME``.
        teacher: the weak model, which is trained first on a part of the data.
        data_dir: folder with ``train/CLASS/`` and ``validation/CLASS/``.
        dataset: a data set by its name, such as ``torch/cifar100`` or ``w2s/digits``.
        img_size: side of the images in pixels, 1 to 16384.
        loss: how the student learns from the teacher, such as ``kd``; see `w2s_plugins.list_losses`.
        epochs: passes of each run over its images, at least 1.
        batch_size: images in a step of each process, at least 1.
        lr: learning rate. If it is not given, or 0, it follows from the batch size, as in timm's script.
        seed: of every random draw, 0 to 4294967295.
        output: folder in which the folder of the run is made.
        experiment: name of the folder of all three runs; it is needed.
        flags: all others of the script, as `train` takes them.

    Raises:
        UserError: something is wrong with what you gave.
        KeyboardInterrupt: training was stopped. A checkpoint is saved, and ``resume="auto"`` goes on from it.
    """
    flags["protocol"] = "w2s"
    return _train("w2s.protocol", locals())


def _train(who: str, arguments: dict[str, Any]) -> dict[str, Any]:
    # Files are read with the command line, below, which they may contradict.
    parser = train_parser()
    plain = _given(arguments, parser)
    config = plain.pop("config", [])
    configs = config if isinstance(config, list) else [config]
    files = [name_of(file, f"{who}: config") for file in configs]
    # The folder of the data has two names: on the command line it may stand without a flag, and timm calls it `data`.
    if "data" in plain:
        plain.setdefault("data_dir", plain.pop("data"))
    typed = check_flags(plain, parser, who)

    # Write down the command line that would do the same, because the record of a run shows one.
    known = parser.by_dest()
    words = [word for name, value in typed.items() for word in words_of(known[name], value)]
    line = ["w2s-train", *words]
    if files:
        line += ["--config", *files]

    # Run the script's own function in this process. If it wants to exit, Python gets an exception instead.
    check_versions()
    with _as_command(line):
        from .distributed.signals import SignalWatch
        from .run.lock import unlock_run

        try:
            record = load_script("train_w2s").train_all(*combine(parser, files, typed))
            # a signal that came when the run had ended is for whoever called
            if SignalWatch.entered is not None:
                raise KeyboardInterrupt("stopped; this run is finished, and in its result.json")
            return record
        except SystemExit as end:
            raise KeyboardInterrupt("stopped; resume='auto' goes on") from end
        finally:
            unlock_run()


def _given(arguments: Mapping[str, Any], parser: Parser) -> dict[str, object]:
    """Return what was given of a function's arguments, ``flags`` among them, as a YAML file has it.

    None stands for what is not given, unless it is no flag, which is to be refused. What has no keyword comes first, in
    the order in which it was given.
    """
    # a record shows a command line in this order
    named = dict(arguments)
    others = named.pop("flags")
    known = {*named, *parser.by_dest()}
    return {
        name: as_plain(value)
        for name, value in {**others, **named}.items()
        if value is not None or dest_of(name) not in known
    }


@overload
def predict(
    model: StrPath,
    images: StrPath,
    output: None = None,
    *,
    features: None = None,
    checkpoint: StrPath | None = None,
    class_names: str | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    **flags: "Unpack[PredictFlags]",
) -> list[dict[str, Any]]: ...
@overload
def predict(
    model: StrPath,
    images: StrPath,
    output: None = None,
    *,
    features: StrPath,
    checkpoint: StrPath | None = None,
    class_names: str | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    **flags: "Unpack[PredictFlags]",
) -> Path: ...
@overload
def predict(
    model: StrPath,
    images: StrPath,
    output: StrPath,
    *,
    features: StrPath | None = None,
    checkpoint: StrPath | None = None,
    class_names: str | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    **flags: "Unpack[PredictFlags]",
) -> Path: ...
def predict(
    model: StrPath,
    images: StrPath,
    output: StrPath | None = None,
    *,
    features: StrPath | None = None,
    checkpoint: StrPath | None = None,
    class_names: str | None = None,
    top_k: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    **flags: "Unpack[PredictFlags]",
) -> list[dict[str, Any]] | Path:
    """Ask a model about images without labels, as ``python -m w2s_plugins.predictions`` does.

    Args:
        model: folder of a run or of an export, ``hf-hub:ORG/NAME``, a timm name, or another kind of teacher.
        images: a folder, which is searched at any depth, a tar file, or shards (``wds/PATH``).
        output: the table to write. If it is None, no table is written.
        features: an ``.npz`` or ``.parquet`` file to write, with the names of the images and their features (N, D).
        checkpoint: weights of the model, a file or a run folder.
        class_names: a file with one name a line, or ``a,b,c``; for a model that knows none of its own.
        top_k: add a column with so many of the most likely classes, at least 1.
        batch_size: images at a time, at least 1.
        workers: processes that decode images, 0 or more.
        device: ``cuda`` or ``cpu``; by default ``cuda`` where there is one.
        flags: other flags of the command, with underscores: ``all=True``.

    Returns:
        The path of the table if you gave ``output``, else that of the ``features`` if you gave these. Otherwise a list
        with one dictionary for each image: ``filename``, ``label``, ``confidence``, and what the flags ask for. Of a
        model of several classes an image ``labels``, a list of names, in place of the latter two.

    Raises:
        UserError: there is no such model or folder, or a flag is wrong.
    """
    # before anything else has a name here
    plain = _given(locals(), predict_parser())
    who = "w2s.predict"
    if "dir" in flags:
        raise UserError(f"{who}: dir is called images here, and is given once")
    plain["model"] = name_of(model, f"{who}: model")
    plain["dir"] = name_of(images, f"{who}: images")
    plain.pop("images")
    for flag, file in (("output", output), ("features", features)):
        if file is not None:
            plain[flag] = name_of(file, f"{who}: {flag}")
    # without a file to write, the rows go through a table that is deleted
    with contextlib.ExitStack() as stack:
        written = output if output is not None else features
        if written is None:
            table = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "labels.jsonl"
            plain["output"] = str(table)
        else:
            table = Path(written)
        request = settle(check_flags(plain, predict_parser(), who))
        stack.enter_context(_as_command(["w2s-predict"]))
        from .predictions import run

        run.predict(Prediction(**request))
        if written is not None:
            return table
        # before the folder is deleted
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
        return [_with_list(row) for row in rows]


def _with_list(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of predictions whose ``labels``, if it has any, are no cell of a table but a list of names."""
    cell = row.get("labels")
    if not isinstance(cell, str):
        return row
    # how `SeveralClasses.columns` writes them
    names = json.loads(cell) if cell.startswith("[") else cell.split(",")
    return {**row, "labels": names}


def load_student(place: StrPath) -> "Student":
    """Return a trained student: a plain timm model in eval mode, on the CPU, with three more attributes.

    ``transform`` turns a Pillow image into the model's input (C, H, W). ``class_names`` lists the names of the classes
    in the order of the logits; it is None if the model does not know them. ``task`` is ``classification`` if each image
    has one class (softmax of the logits), ``multilabel`` if it may have several (sigmoid of each).

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
    # in its __dict__: a module would register a transform that is one as a part, with its state in the state_dict
    vars(model).update(
        transform=create_transform(**opened.data_config),
        class_names=opened.class_names,
        task=opened.target_kind.task,
    )
    return cast("Student", model)


def create_teacher(
    teacher: "StrPath | Callable[[Tensor], object] | Sequence[StrPath | Callable[[Tensor], object]]",
    student: "nn.Module",
    *,
    checkpoint: StrPath | None = None,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
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
        task: ``multilabel`` if an image may have several classes, else ``classification``. By default that of a student
            which `load_student` has returned, otherwise ``classification``.
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
    from .resolve.train import check_teacher_name
    from .teachers.teacher import StudentInput, open_teacher

    # a function becomes a name first, as if a plugin had offered it, so that all teachers are opened in one way
    who = "w2s.create_teacher"
    if not isinstance(student, nn.Module):
        raise UserError(
            f"{who}: the student is a {type(student).__name__}, expected a model, a torch.nn.Module"
        )
    changes = {} if data_config is None else data_config
    if not isinstance(changes, Mapping):
        raise UserError(
            f"{who}: data_config is a {type(changes).__name__}, expected a mapping with mean and std"
        )
    # a text is a sequence, too, so only lists and tuples are several
    several = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    names: list[TeacherName] = []
    for one in several:
        text = offer(one) if callable(one) else teacher_names(name_of(one, f"{who}: teacher"))
        names += parse_teachers(text)
    if not names:
        raise UserError(f"{who}: no teacher: give a name, a function, or several of them")
    for name in names:
        check_teacher_name(who, name)
    # the teacher has to undo the student's normalisation, so it is told which one that is
    config = resolve_model_data_config(student)
    # what timm may know of a model's input; a misspelt name would change nothing
    known = {*config, *PretrainedCfg.__dataclass_fields__}
    for key in changes.keys() - known:
        raise UserError(f"{who}: data_config has no '{key}'{nearest(key, known)}")
    # timm's name for it, or that of transformers
    classes = getattr(student, "num_classes", getattr(student, "num_labels", None))
    class_names = cast("Sequence[str] | None", as_plain(class_names))
    if class_names is not None:
        check_class_names(class_names, f"{who}: class_names", classes)
    # it runs where the student is, which is on the CPU if it has no parameters
    if device is None:
        device = next((parameter.device for parameter in student.parameters()), "cpu")
    try:
        runs_on = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{who}: device {device!r:.60}: {one_line(error, 100)}") from error
    checkpoints = [] if checkpoint is None else [name_of(checkpoint, f"{who}: checkpoint")]
    kind = _kind_of(task, student, who)
    seen = StudentInput.of({**config, **changes}, classes, class_names, kind)
    return open_teacher(names, checkpoints, seen, runs_on)


def _kind_of(task: str | None, student: "nn.Module", who: str) -> "TargetKind":
    """Return what the labels of a student are. Raises `UserError` if there is no such task."""
    from .target_kind import KINDS, ONE_CLASS

    if task is None:
        # a model of another origin may have an attribute of this name
        noted = getattr(student, "task", None)
        return KINDS.get(noted, ONE_CLASS) if isinstance(noted, str) else ONE_CLASS
    if task not in KINDS:
        raise UserError(f"{who}: unknown task {task!r:.60}; expected {' or '.join(KINDS)}")
    return KINDS[task]


@contextlib.contextmanager
def _as_command(words: list[str]) -> Iterator[None]:
    """Act as this command inside the block, and undo what it changes in this process afterwards."""
    from .monitor import setup_logging

    # remember what a command changes: its command line, the log, the handlers of signals
    argv, root = sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # a run that is stopped leaves its own behind
    noted = {number: signal.getsignal(number) for number in STOPPING}
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
