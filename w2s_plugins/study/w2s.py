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

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data import take_slice
from ..data.keys import count_copies, describe
from ..errors import UserError, logger
from ..made_of import Ingredient
from ..models.foreign import refuse_addresses
from ..run.args_file import read_run_args
from ..settings.composite import TrainSettings
from ..settings.field import Role
from ..settings.programs import train_program
from ..training.data import classes_of_table, open_train_split, open_val_split
from ..training.weights import START
from .controls import Flags, models_of, taken_teachers
from .layout import made_of_record, read_record
from .plan import RESULT
from .planning import LocalPlan, LocalRun
from .scores import predictions_of, read_predictions


def prepare(plan: LocalPlan) -> None:
    """Check the data before the first run, and note the record of a teacher that is trained already.

    Raises:
        UserError: overlapping parts of the data, or a ceiling without predictions.
    """
    runs = {run.name: run for run in plan.runs}
    student, ceiling = runs["student"].settings, runs["ceiling"]
    if ceiling.record:
        read_predictions(predictions_of(ceiling.folder, ceiling.record))
    # a student that has seen its test samples, or its teacher the student's, would make the PGR worthless.
    # a teacher that is trained here may have data of its own; others tell it by their run folders
    if "weak" in runs:
        check_unseen(student, runs["weak"].settings.flags, "--protocol w2s, weak")
        check_runs_behind(student, models_of(runs["weak"].settings.flags, START))
        return
    # of a teacher that is a finished run the table can say as much as of one that is trained here
    known = check_teachers(student)
    record = read_record(known[0] / RESULT) if len(known) == 1 else None
    if record is not None and {"data", "selected"} <= record.keys():
        plan.runs.insert(0, LocalRun("weak", "weak", folder=known[0], record=record))


def check_teachers(student: TrainSettings) -> list[Path]:
    """Raise a `UserError` where teachers that are trained already have seen samples of the student's part or of the
    test set, be it in a run that they began from or learned from, as far as run folders tell; return their folders.
    """
    # weights from elsewhere have no run folder, and may be good all the same: only the user can know
    teachers = taken_teachers(student.flags)
    for flag, name, folder in teachers:
        if not (folder / "args.yaml").is_file():
            logger.warning(
                f"WARNING: {flag} {name}: nothing tells what it was trained on; {_see_to_it(student)}"
            )
    check_runs_behind(student, teachers)
    return [folder for _, _, folder in teachers]


def check_runs_behind(student: TrainSettings, models: Sequence[tuple[str, str, Path]]) -> None:
    """Raise a `UserError` where a model, or what it was made of, has seen samples of the student's part or the test
    set; ``models`` are those of `models_of`.
    """
    data = train_program().flags.names(Role.DATA) | {"train_slice"}
    for flag, name, folder in models:
        for earlier, flags in runs_behind(folder, flag):
            # a run folder has the flags that decide on its data; nothing is fetched that they name
            theirs = {name: value for name, value in flags.items() if name in data}
            refuse_addresses(theirs, {name: name for name in theirs}, str(earlier))
            where = (
                f"{flag} {name}"
                if earlier == folder
                else f"{flag} {name}, which was made of {earlier}"
            )
            check_unseen(
                student, theirs, where, made_of_record(read_record(earlier / RESULT) or {})
            )


def runs_behind(folder: Path, flag: str) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield folder and flags of a run, and of those that it began from or learned from, as far as these are there."""
    # runs may have begun from one another, or two from the same, so each is looked at once
    waiting, known = [folder], set()
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in known or not (folder / "args.yaml").is_file():
            continue
        known.add(folder.resolve())
        flags = read_run_args(folder, flag)
        yield folder, flags
        named = [
            "teacher",
            "teacher_checkpoint",
            *START,
            *(["model"] if flags.get("pretrained") else []),
        ]
        earlier = [other for _, _, other in models_of(flags, named)]
        gone = [other for other in earlier if not other.exists()]
        if gone:
            logger.warning(
                f"WARNING: {flag}: {folder} was made of {gone[0]}, which is not there any more: see to it "
                "yourself that it has seen no sample of the student's part, and no test sample"
            )
        waiting += earlier


def check_unseen(
    student: TrainSettings, teacher: Flags, where: str, made_of: Sequence[Ingredient] = ()
) -> None:
    """Raise a `UserError` where a teacher was trained on samples of the student's part or of the test set, or the
    student on those of the test set, wherever copies of them lie.

    Args:
        student: its settings.
        teacher: the flags by which the teacher's data differ.
        where: begins the message.
        made_of: what the teacher was made of, where that is known.
    """
    of_teacher = student.with_flags(**teacher)
    ours, theirs, channels = student.data, of_teacher.data, student.input.channels
    whole = open_train_split(ours, channels, student.run.seed)
    test = None
    if ours.val_split:
        test = open_val_split(ours, channels, classes_of_table(ours, whole))
    # the teacher's split is known by its content, if it is no longer where it was
    try:
        splits = [open_train_split(theirs, of_teacher.input.channels, of_teacher.run.seed)]
    except UserError:
        splits = []
    noted = {one.fingerprint for one in made_of if one.role in ("train", "labelled")} - {None}
    present = [*splits, whole, *filter(None, [test])]
    splits = [split for split in present if describe(split, "", "").fingerprint in noted] or splits
    if not splits:
        logger.warning(
            f"WARNING: {where}: what it was trained on is not there any more; {_see_to_it(student)}"
        )
        return
    # copies are found by their content, so a split that was moved or renamed is no way around this.
    # three parts of the data, which may have no sample in common
    seen = take_slice(splits[0], theirs.train_slice, theirs.slice_seed)
    learned = take_slice(whole, ours.train_slice, ours.slice_seed)
    compared = [(where, seen, "the student's", learned)]
    if test is not None:
        tested = take_slice(test, ours.val_slice, ours.slice_seed, "--val-slice")
        compared += [
            (where, seen, "the test", tested),
            ("the student", learned, "the test", tested),
        ]
    for who, part, whose, other in compared:
        shared = count_copies(part, other)
        if shared:
            raise UserError(
                f"{who}: {shared} of the {len(part)} samples that it is trained on are among {whose} "
                f"{len(other)} samples; give disjoint parts, or another teacher"
            )


def _see_to_it(student: TrainSettings) -> str:
    part = student.data.train_slice or ":"
    return f"see to it yourself that it has seen none of --train-slice {part}, and no test sample"
