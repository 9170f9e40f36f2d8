"""What flags and data say of the runs of a command, before the first of them is trained: after hours it is too late."""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from torch.utils.data import IterableDataset

from ..cli.parser import fill, train_parser
from ..data.order import KeyedSampler, check_batch_size
from ..distributed.world import World
from ..errors import logger, quietly
from ..made_of import Ingredient
from ..resolve.fill_in import check_paths
from ..resolve.train import resolve_train_args
from ..settings.composite import TrainSettings
from ..settings.field import Role
from ..settings.forms import DIGITS, LABELS_PREFIX, parse_selection
from ..settings.teacher_name import label_paths
from ..settings.values import split_names
from ..training.data import build_data, open_splits, sources_of
from ..training.device import join_group
from ..training.labels import find_label_files, match_labels
from ..training.loaders import epoch_order, fit_batch_size
from ..training.splits import Data
from ..training.weights import weights_of
from .controls import Flags, flags_about
from .planning import LocalPlan, LocalRun


def settle(run: LocalRun) -> None:
    """Check the flags of a run, and fill in its settings. Raises `UserError` for the first thing that is wrong."""
    # flags may follow from others, such as the learning rate from the batch size, so all are filled in anew
    args, names = fill(train_parser(), run.flags)
    settings = resolve_train_args(args, names)
    check_paths(settings.data, settings.teacher)
    run.settings = settings


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
            unmade[run.folder] = data.num_classes
            if order is None:
                continue
            size = fit_batch_size(run.settings, order, "batch_size" in typed)
        before = run.settings.data.batch_size
        if size == before:
            continue
        logger.info(
            f"{plan.flag}, {run.name}: batch size {before} becomes {size}, because it has "
            f"{order.samples} training samples"
        )
        # other flags may follow from it, such as the learning rate
        run.flags = {**run.flags, "batch_size": size}
        with quietly():
            settle(run)


def check_data(settings: TrainSettings, unmade: Iterable[Path]) -> None:
    """Check the data of a run of a study, which nothing fits to its flags. Raises `UserError` as `look_ahead` does."""
    _, order = open_data(settings, dict.fromkeys(unmade))
    if order is not None:
        loading = settings.data
        check_batch_size(loading.batch_size, order, loading.labelled_in_batch)


def about_data(flags: Flags) -> str | None:
    """Return what `check_data` looks at, as text; None if the data are on another machine, or would be fetched."""
    labels, folder = label_paths(flags["teacher"]), flags["data_dir"]
    if flags["dataset"]:
        # labels are brought to what they are about
        is_here = flags["dataset"] == DIGITS or labels
    else:
        is_here = not folder or Path(folder).exists()
    if not is_here:
        return None
    # runs that differ in nothing of this have the same data, which are opened once for all of them
    roles = Role.DATA | Role.SLICE | Role.NOISE | Role.SELECTION | Role.MIXING | Role.PER_PROCESS
    names = flags_about(roles) | {"epoch_slice", "clean_select", "task_loss_weight"}
    return repr([labels, *(flags[name] for name in sorted(names))])


def open_data(
    settings: TrainSettings, unmade: Mapping[Path, int | None]
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
    teaching = settings.teacher
    # a model that is still to be trained cannot be asked for its classes
    taught_by = f"{teaching.teacher} {teaching.teacher_checkpoint}"
    awaited = [count for folder, count in unmade.items() if str(folder) in taught_by]
    known = settings
    if awaited:
        named = [name for name in split_names(teaching.teacher) if name.startswith(LABELS_PREFIX)]
        known = known.with_flags(teacher=",".join(named) or None, teacher_checkpoint=None)
        if settings.data.has_no_truth and not named:
            known = known.with_flags(num_classes=settings.data.num_classes or awaited[0])
    world = join_group(settings.compute.device)
    labels = find_label_files(teaching, world)
    data = build_data(known, labels)
    # a stream tells neither its samples nor their number
    if isinstance(data.train, IterableDataset):
        return data, None
    match_labels(teaching, data, labels, data.class_names)
    # of a selection by a share the number is known, although not which they are
    samples = len(data.train)
    rule, share, _ = parse_selection(settings.labels.clean_select or "entropy:1")
    if rule == "entropy":
        samples = max(1, int(share * samples + 0.5))
    return data, epoch_order(settings, samples, data.epoch_size, world)


def sources_now(
    settings: TrainSettings, world: World, with_splits: bool = True
) -> list[Ingredient]:
    """Return what a run would be made of now, by content: data, files of labels and files of weights.

    Args:
        settings: of the run.
        world: this process.
        with_splits: without them no images are opened.
    """
    # what each is of is logged when the run is made
    splits = {}
    with quietly():
        labels = find_label_files(settings.teacher, world)
        if with_splits:
            splits = open_splits(settings.data, settings.input.channels, settings.run.seed)
        sources = sources_of(settings.data, settings.labels, splits, labels)
        return sources + weights_of(settings.teacher, settings.student, settings.labels)
