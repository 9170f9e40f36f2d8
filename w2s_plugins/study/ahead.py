"""What flags and data say of the runs of a command, before the first of them is trained: after hours it is too late."""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from torch.utils.data import IterableDataset

from ..cli.declare import Role
from ..cli.forms import DIGITS, LABELS_PREFIX, parse_selection
from ..cli.parser import fill, train_parser
from ..cli.values import split_names
from ..data.order import KeyedSampler, check_batch_size
from ..errors import UserError, logger, quietly
from ..labels.splits import Data
from ..settings.composite import TrainSettings
from ..settings.concerns import label_paths
from ..settings.flags import resolve_train_args
from ..settings.resolve import check_paths
from ..training.data import build_data
from ..training.device import join_group
from ..training.labels import find_labels, take_labels
from .controls import Flags, flags_about
from .planning import LocalPlan, LocalRun


def settle(run: LocalRun) -> None:
    """Check the flags of a run, and fill in its settings. Raises `UserError` for the first thing that is wrong."""
    args, names = fill(train_parser(), run.flags)
    settings = resolve_train_args(args, names)
    check_paths(settings.data, settings.teacher)
    run.settings = dict(settings.flags)


def look_ahead(plan: LocalPlan, typed: Set[str]) -> None:
    """Open the data of all runs. A batch size that nobody typed, and that is more than the samples of a run, becomes
    their number.

    Args:
        plan: its runs have their settings.
        typed: names of the flags that are on the command line.

    Raises:
        UserError: data or labels of a run are wrong, or it has too few samples for a batch.
    """
    unmade: dict[Path, int | None] = {}  # number of classes of each run that is to be made
    for run in plan.runs:
        if run.record:
            continue
        # the data are logged when the run is made
        with plan.about(run), quietly():
            data, order = open_data(run.settings, unmade)
            size = fit_batch_size(run.settings, data, order, "batch_size" in typed)
            unmade[run.folder] = data.num_classes
        before = run.settings["batch_size"]
        if size == before:
            continue
        # other flags may follow from it, such as the learning rate
        logger.info(
            f"{plan.flag}, {run.name}: batch size {before} becomes {size}, because it has "
            f"{order.samples} training samples"
        )
        run.flags = {**run.flags, "batch_size": size}
        with quietly():
            settle(run)


def fit_batch_size(settings: Flags, data: Data, order: KeyedSampler | None, typed: bool) -> int:
    """Return the batch size of a run, or the largest one that its data allow.

    Args:
        settings: of the run.
        data: of the run.
        order: of an epoch, as of `open_data`.
        typed: the size must stay as it is.

    Raises:
        UserError: the size that was typed is too large, or none would do.
    """
    of_run = TrainSettings.from_flags(settings)
    batch_size = of_run.data.batch_size
    if order is None:
        return batch_size
    try:
        check_batch_size(batch_size, order, labelled_count(settings, data))
        return batch_size
    except UserError as error:
        # mixup pairs samples
        fitting = len(order) - len(order) % 2 if of_run.views.mixes else len(order)
        if typed and fitting:
            raise UserError(f"{error}, or leave the flag out") from error
        if not fitting:
            raise
        return fitting


def labelled_count(settings: Flags, data: Data) -> int:
    """Return how many samples of a batch are labelled ones beside those of the training set."""
    return 0 if data.labelled is None else TrainSettings.from_flags(settings).data.labelled_in_batch


def check_data(settings: Flags, unmade: Iterable[Path]) -> None:
    """Check the data of a run of a study, which nothing fits to its flags. Raises `UserError` as `look_ahead` does."""
    data, order = open_data(settings, dict.fromkeys(unmade))
    if order is not None:
        check_batch_size(settings["batch_size"], order, labelled_count(settings, data))


def about_data(settings: Flags) -> str | None:
    """Return what `check_data` looks at, as text; None if the data are on another machine, or would be fetched."""
    labels, folder = label_paths(settings["teacher"]), settings["data_dir"]
    if settings["dataset"]:
        is_here = (
            settings["dataset"] == DIGITS or labels
        )  # labels are brought to what they are about
    else:
        is_here = not folder or Path(folder).exists()
    if not is_here:
        return None
    roles = Role.DATA | Role.SLICE | Role.NOISE | Role.SELECTION | Role.MIXING | Role.PER_PROCESS
    names = flags_about(roles) | {"epoch_slice", "clean_select", "task_loss_weight"}
    return repr([labels, *(settings[name] for name in sorted(names))])


def open_data(
    settings: Flags, unmade: Mapping[Path, int | None]
) -> tuple[Data, KeyedSampler | None]:
    """Open the data of a run, and bring labels to them.

    Args:
        settings: of the run.
        unmade: folders of runs that are not there yet, with the number of their classes.

    Returns:
        The data and the order of an epoch on this rank; None for what has batches of another kind.

    Raises:
        UserError: data or labels are wrong.
    """
    # a model that is still to be trained cannot be asked for its classes
    of_run, known = TrainSettings.from_flags(settings), dict(settings)
    teaching = of_run.teacher
    taught_by = f"{teaching.teacher} {teaching.teacher_checkpoint}"
    awaited = [count for folder, count in unmade.items() if str(folder) in taught_by]
    if awaited:
        named = [name for name in split_names(teaching.teacher) if name.startswith(LABELS_PREFIX)]
        known |= dict(teacher=",".join(named) or None, teacher_checkpoint=None)
        if of_run.data.has_no_truth and not named:
            known["num_classes"] = of_run.data.num_classes or awaited[0]
    world = join_group(of_run.compute.device)
    labels = find_labels(teaching, world)
    data = build_data(TrainSettings.from_flags(known), labels)
    if isinstance(data.train, IterableDataset):
        return data, None
    take_labels(teaching, data, labels, data.class_names)
    if of_run.episodes.episodic or of_run.views.train_img_sizes:
        return data, None

    # of a selection by a share the number is known, although not which they are
    samples = len(data.train)
    rule, share, _ = parse_selection(of_run.labels.clean_select or "entropy:1")
    if rule == "entropy":
        samples = max(1, int(share * samples + 0.5))
    return data, KeyedSampler(
        samples, of_run.run.seed, world.rank, world.size, size=data.epoch_size
    )
