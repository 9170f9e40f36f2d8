"""The weak-to-strong protocol in one run: a weak teacher, a strong student on its labels, and the student's ceiling.

The training set is split in two. The teacher sees the first part with ground truth; the student sees the second with
the teacher's labels only; the ceiling is the student trained on the second part with ground truth. All three are
evaluated on one test set (Weak-to-Strong Generalization, 2023, arXiv 2312.09390). Each is an ordinary run, and so are
those that the student is compared with (``--controls``).

``--label-noise`` is that of the labels one has: the teacher is trained on it, and the student where it sees labels;
``label_noise: null`` in ``--weak-config`` gives the teacher clean labels. The ceiling always sees the clean labels of
all samples of its part; ``--clean-select`` is the student's alone. With ``--select-split`` the same samples are held
out for student and ceiling; epochs of the student are ranked against its teacher, those of the ceiling by ground truth.
"""

from pathlib import Path

from ..cli.declare import Role
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..data import take_slice
from ..data.keys import count_shared
from ..errors import UserError, logger, quietly, said_of
from ..models.foreign import refuse_addresses
from ..run.args_file import read_run_args
from ..settings.composite import TrainSettings
from ..training.data import build_data, open_train_split, open_val_split
from ..training.device import join_group
from ..training.labels import find_labels, take_labels
from .controls import Flags
from .layout import RESULT, read_record
from .outcome import predictions_of, read_predictions
from .planning import Plan, Run


def prepare(plan: Plan) -> None:
    """Check the data before the first run, and note the record of a teacher that is trained already.

    Raises:
        UserError: overlapping parts of the data, or a ceiling without predictions.
    """
    runs = {run.name: run for run in plan.runs}
    student, ceiling = runs["student"].settings, runs["ceiling"]
    if ceiling.record:
        read_predictions(predictions_of(ceiling.folder, ceiling.record))
    # wrong data of the student is found before its teacher is trained
    with quietly(), said_of("--protocol w2s, student: "):
        build_data(TrainSettings.from_flags(student))
    # a teacher that is trained here may have data of its own; others tell it by their run folders
    if "weak" in runs:
        check_unseen(student, runs["weak"].settings, "--protocol w2s, weak")
        return
    known = check_teachers(student)
    record = read_record(known[0] / RESULT) if len(known) == 1 else None
    if record is not None and {"data", "selected"} <= record.keys():
        plan.runs.insert(0, Run("weak", {}, folder=known[0], record=record))


def check_labels(student: TrainSettings) -> None:
    """Raise a `UserError` where labels in a teacher's place are about none of the images, if the data are here."""
    loading = student.data
    if loading.dataset or not loading.data_dir or Path(loading.data_dir).exists():
        labels = find_labels(student.teacher, join_group("cpu"))
        data = build_data(student, labels)
        take_labels(student.teacher, data, labels, data.class_names)


def check_teachers(student: Flags) -> list[Path]:
    """Raise a `UserError` where teachers that are trained already have seen samples of the student's part or of the
    test set, as far as their run folders tell; return these folders.
    """
    files = [("--teacher-checkpoint", file) for file in split_names(student["teacher_checkpoint"])]
    named = [("--teacher", name) for name in split_names(student["teacher"]) if name.startswith("local-dir:")]
    folders = []
    for flag, name in files or named:
        # a run folder itself, or a file or the export in it
        path = Path(name.removeprefix("local-dir:"))
        folder = path if path.is_dir() else path.parent
        folder = folder.parent if folder.name == "export" else folder
        folders.append(folder)
        if not (folder / "args.yaml").is_file():
            logger.warning(f"{flag} {name}: nothing tells what it was trained on; see to it yourself that it has seen "
                           f"none of --train-slice {student['train_slice'] or ':'}, and no test sample")
            continue
        # its run folder has the flags that decide on its data; nothing is fetched that they name
        flags = read_run_args(folder, flag)
        data = train_parser().names(Role.DATA) | {"train_slice"}
        theirs = {name: value for name, value in flags.items() if name in data}
        refuse_addresses(theirs, {name: name for name in theirs}, str(folder))
        check_unseen(student, theirs, f"{flag} {name}")
    return folders


def check_unseen(student: Flags, teacher: Flags, where: str) -> None:
    """Raise a `UserError` where a teacher was trained on samples of the student's part or of the test set, or the
    student on those of the test set.

    Args:
        student: its settings.
        teacher: those by which the teacher's data differ.
        where: begins the message.
    """
    settings, of_teacher = TrainSettings.from_flags(student), TrainSettings.from_flags({**student, **teacher})
    ours, theirs, channels = settings.data, of_teacher.data, settings.input.channels
    if ours.dataset != theirs.dataset:
        return
    # three parts of the data, which may have no sample in common
    whole = open_train_split(theirs, of_teacher.input.channels, of_teacher.run.seed)
    seen = take_slice(whole, theirs.train_slice, theirs.slice_seed)
    whole = open_train_split(ours, channels, settings.run.seed)
    learned = take_slice(whole, ours.train_slice, ours.slice_seed)
    tested = take_slice(open_val_split(ours, channels), ours.val_slice, ours.slice_seed, "--val-slice")
    for who, part, whose, other in (
            (where, seen, "the student's", learned),
            (where, seen, "the test", tested),
            ("the student", learned, "the test", tested)):
        shared = count_shared(part, other)
        if shared:
            raise UserError(f"{who}: {shared} of the {len(part)} samples that it is trained on are among {whose} "
                            f"{len(other)} samples; give disjoint parts, or another teacher")
