"""The splits of a run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch.utils.data import IterableDataset

from ..data import (
    AnyDataset,
    MapDataset,
    check_shape,
    draw_episodes,
    hold_out,
    open_split,
    take_slice,
)
from ..data.class_splits import keep_classes, read_class_list
from ..data.datasets import (
    ONE_LABEL,
    TABLE_OF,
    DatasetOptions,
    class_names_of,
    is_unlabeled,
    known_labels,
    labels_of,
    take_several,
)
from ..data.keys import count_shared, describe, positions_in_split
from ..data.map_style import classes_of_samples
from ..data.slices import Subset
from ..data.unlabeled import HUB, WDS, WithoutLabels, open_shards, open_unlabeled
from ..data.wrapper import without_transform
from ..distributed.world import World
from ..errors import UserError, logger, quietly
from ..hub.fetch import find_hub_shards
from ..labels.names import read_class_names
from ..labels.noise import LabelNoise, create_label_noise
from ..labels.relabelled import WithUnknownLabels
from ..labels.selection import Selection, read_selection, selection_figures, take_selected
from ..labels.table import open_table
from ..labels.truth import open_with_table
from ..made_of import Ingredient, absolute_place, hash_of_place
from ..metrics.long_tail import ShotGroups, choose_groups, count_classes
from ..settings.composite import TrainSettings
from ..settings.concerns import DataSettings, LabelSettings
from ..settings.forms import (
    KNN,
    LABELS_PREFIX,
    PREFIXES,
    TEST_EPISODES,
    count_episodes,
    parse_long_tail,
    parse_noise,
    parse_selection,
    parse_selection_model,
    parse_shapes,
)
from ..settings.rules import ONE_CLASS_ONLY
from ..settings.teacher_name import TeacherName
from ..target_kind import ONE_CLASS, SEVERAL_CLASSES, TargetKind, kind_of_task, require_one_class
from ..teachers.clean_select import select_by_model, selection_models
from ..teachers.openers import Opened
from ..teachers.teacher import StudentInput, Teacher
from .classes import common_classes, names_of_labelled
from .few_shot import FewShotTest
from .labels import LabelSource, fingerprint_of
from .loaders import check_stream, whole_pass
from .splits import Data

if TYPE_CHECKING:
    from typing_extensions import Unpack

# ---------------------------------------------------------------- whole splits


def reading(
    settings: DataSettings, channels: int, **further: "Unpack[DatasetOptions]"
) -> DatasetOptions:
    """Return how samples are read, for a model that takes so many channels; ``further`` options are added.

    Raises:
        UserError: ``--input-img-mode`` has another number of them.
    """
    # PIL reads images in any mode; the model says what it takes, and a mode that was asked for must have as many bands.
    mode = settings.input_img_mode or ("RGB" if channels == 3 else "L")
    bands = len(Image.new(mode, (1, 1)).getbands())
    if bands != channels:
        wrong = f"--input-img-mode {mode}: its images have {bands} channel{'s' * (bands > 1)}"
        raise UserError(f"{wrong}, and the model takes {channels} (--in-chans {bands})")
    options = DatasetOptions(
        class_map=settings.class_map,
        download=settings.dataset_download,
        batch_size=settings.batch_size,
        input_img_mode=mode,
        input_key=settings.input_key,
        target_key=settings.target_key,
        trust_remote_code=settings.dataset_trust_remote_code,
    )
    options.update(further)
    return options


def open_labelled(
    settings: DataSettings,
    flag: str,
    known: Sequence[str] | None,
    **how: "Unpack[DatasetOptions]",
) -> AnyDataset:
    """Open the split that a flag names, with its true labels: by class folders, or by a table.

    Args:
        settings: where it is.
        flag: ``--train-split``, ``--val-split`` or ``--split``.
        known: names of the classes that a table may have, None if nothing else says them.
        **how: see `reading`.
    """
    role = "train" if flag == "--train-split" else "val"
    split, table = settings.split_name(role), settings.table(role)
    if settings.target_format and (settings.task != SEVERAL_CLASSES.task or not settings.dataset):
        raise UserError(
            "--target-format: is for --task multilabel with --dataset hfds/NAME; leave it out"
        )
    if not table:
        if settings.task == SEVERAL_CLASSES.task and settings.dataset:
            return _open_several(settings, flag, split, **how)
        return open_split(
            settings.dataset, settings.data_dir, split, settings.class_list, flag=flag, **how
        )
    if settings.dataset:
        raise UserError(
            f"{TABLE_OF[flag]} {table:.80}: labels of images in a folder or a tar file, which --data-dir names alone; "
            f"--dataset {settings.dataset} brings its own: leave one of both out"
        )
    # A list takes some classes of all that the table has.
    if settings.class_list:
        known = None
    kind = kind_of_task(settings.task)
    dataset = open_with_table(
        table, known, settings.data_dir, split, flag=flag, target_kind=kind, **how
    )
    if not settings.class_list:
        return dataset
    names = read_class_list(settings.class_list, "--class-list")
    return keep_classes(dataset, names, f"--class-list {settings.class_list}")


def _open_several(
    settings: DataSettings, flag: str, split: str, **how: "Unpack[DatasetOptions]"
) -> AnyDataset:
    """Open a split of a dataset that has several labels an image, see `open_labelled`."""
    where = f"--task {settings.task}: --dataset {settings.dataset}, split '{split}'"
    # before anything is downloaded: of streams, and of what is made for one class, no list of labels can be read
    if not settings.dataset.lower().startswith("hfds/"):
        raise UserError(f"{where}: {ONE_LABEL}")
    how["target_format"] = settings.target_format
    dataset = open_split(settings.dataset, settings.data_dir, split, None, flag=flag, **how)
    count = settings.num_classes
    if settings.class_names:
        count = len(read_class_names(settings.class_names))
    take_several(dataset, settings.target_format == "multihot", count, where)
    if not settings.class_list:
        return dataset
    names = read_class_list(settings.class_list, "--class-list")
    return keep_classes(dataset, names, f"--class-list {settings.class_list}")


def classes_of_table(
    settings: DataSettings, train: AnyDataset | None = None
) -> Sequence[str] | None:
    """Return the names of the classes that a table of true labels may have; None if nothing but the table says them.

    Args:
        settings: names the data.
        train: the whole training split, for a table of the validation split.
    """
    # Who labels images without labels may know more classes than labelled samples have.
    if train is not None and settings.val_labels and not settings.unlabeled:
        return names_of_labelled(settings, train)[0]
    return read_class_names(settings.class_names) if settings.class_names else None


def open_train_split(settings: DataSettings, channels: int, seed: int) -> AnyDataset:
    """Open the whole training split, of which ``--train-slice`` takes a part: the labelled one if there is any.

    Args:
        settings: which split, and how it is read.
        channels: of the model's images.
        seed: of the order of a stream.
    """
    # Beside labelled samples images without labels are another split, see `open_splits`.
    if settings.unlabeled and not settings.semi_supervised:
        return _open_unlabeled(settings, channels)
    return open_labelled(
        settings,
        "--train-split",
        classes_of_table(settings),
        **reading(
            settings,
            channels,
            is_training=True,
            seed=seed,
            repeats=settings.epoch_repeats,
            num_samples=settings.train_num_samples,
        ),
    )


def _open_unlabeled(settings: DataSettings, channels: int) -> AnyDataset:
    """Open what ``--unlabeled`` names: folders and tar files, shards, or a split whose labels are not looked at."""
    text, how = settings.unlabeled or "", reading(settings, channels, is_training=True)
    mode = how.get("input_img_mode", "RGB")

    # folders, tar files and shards, here or on the Hub
    if os.path.exists(text) or text.startswith(WDS) or not text.lower().startswith(PREFIXES):
        return open_unlabeled(text, mode)
    if text.startswith(HUB):
        return open_shards(find_hub_shards(text), mode)

    # a dataset by its name
    # Labels of such a split are not looked at, so that true ones cannot leak into training.
    name, _, split = text.rpartition(":")
    if not name:
        raise UserError(
            f"--unlabeled {text}: which split? Expected NAME:SPLIT, such as {text}:train"
        )
    dataset = open_split(name, settings.data_dir, split, None, flag="--unlabeled", **how)
    if isinstance(dataset, IterableDataset):
        raise UserError(
            f"--unlabeled {text}: is a stream, which cannot be indexed; shards are given as {WDS}PATH or "
            f"{HUB}ORG/NAME"
        )
    return WithoutLabels(dataset, text)


def open_val_split(
    settings: DataSettings, channels: int, known: Sequence[str] | None
) -> AnyDataset:
    """Open the whole validation split.

    Args:
        settings: which split, and how it is read.
        channels: of the model's images.
        known: see `classes_of_table`.
    """
    return open_labelled(
        settings,
        "--val-split",
        known,
        **reading(settings, channels, num_samples=settings.val_num_samples),
    )


def open_splits(settings: DataSettings, channels: int, seed: int) -> dict[str, AnyDataset]:
    """Open the whole splits of a run: ``train``, ``labelled`` (beside images without labels) and ``val``, if it has
    them; arguments as of `open_train_split`.
    """
    # Opened whole, because classes are counted and samples are identified before anything is cut.
    splits: dict[str, AnyDataset] = {}
    if settings.semi_supervised:
        splits["train"] = _open_unlabeled(settings, channels)
        splits["labelled"] = open_train_split(settings, channels, seed)
    else:
        splits["train"] = open_train_split(settings, channels, seed)
    if settings.val_split:
        known = classes_of_table(settings, splits["train"])
        splits["val"] = open_val_split(settings, channels, known)
    return splits


def sources_of(
    loading: DataSettings,
    labelling: LabelSettings,
    splits: Mapping[str, AnyDataset],
    labels: Sequence[LabelSource] = (),
) -> list[Ingredient]:
    """Describe the data that a run is made of.

    Args:
        loading: where the splits are from.
        labelling: names a table of other labels.
        splits: from `open_splits`, neither cut nor with other labels.
        labels: in place of a teacher.

    Returns:
        Each split and each file of labels.
    """
    # the splits, as they are before anything is cut or renamed
    sources = []
    for role, split in splits.items():
        name = f"'{loading.split_name(role)}'"
        where = [
            loading.dataset,
            name,
            loading.class_list,
            loading.class_map,
            loading.input_key,
            loading.target_key,
        ]
        if role == "train" and loading.unlabeled:
            where, name = [absolute_place(loading.unlabeled)], "the images of --unlabeled"
        elif loading.table(role):
            where.append(absolute_place(loading.table(role)))
        about = describe(split, "", "")
        place = hash_of_place(*where, absolute_place(loading.data_dir))
        sources.append(Ingredient(role, name, place, about.fingerprint, about.num_samples))
    return sources + files_of_labels(labelling, labels)


def files_of_labels(labelling: LabelSettings, labels: Sequence[LabelSource]) -> list[Ingredient]:
    """Describe each file of labels that a run is made of: those in place of a teacher, and of ``--label-noise``."""
    tables = [("--teacher", of_name.file) for of_name in labels]
    if labelling.label_noise:
        kind, path = parse_noise(labelling.label_noise)
        flag = "--label-noise"
        if kind == "labels":
            with quietly():  # what is logged of it is logged when its labels are taken
                tables.append((flag, open_table(Path(str(path)), f"{flag} {LABELS_PREFIX}{path}")))
    sources = []
    for number, (flag, table) in enumerate(tables):
        name = f"the labels of {flag} {LABELS_PREFIX}{table.path.name}"
        place = hash_of_place(absolute_place(table.path))
        sources.append(Ingredient(f"labels {number}", name, place, fingerprint_of(table)))
    return sources


# ---------------------------------------------------------------- the parts that are trained on and measured


def build_data(
    settings: TrainSettings,
    labels: Sequence[LabelSource] = (),
    opened: dict[TeacherName, Opened] | None = None,
) -> Data:
    """Open the splits, number their classes, and cut slices.

    Args:
        settings: of the run.
        labels: in place of a teacher; they may name the classes of images without.
        opened: gets the teacher if it has to be opened, to ask it for the classes.
    """
    # Open the splits whole, because classes are counted and samples are identified before anything is cut.
    loading = settings.data
    whole = open_splits(loading, settings.input.channels, settings.run.seed)
    sources = sources_of(loading, settings.labels, whole, labels)
    few_shot = open_few_shot(settings)
    if few_shot is not None:
        sources.append(source_of_few_shot(settings, few_shot))
    # What a label is, decided here for the whole run.
    target_kind = kind_of_task(loading.task, settings.evaluation.multilabel_threshold)
    with_truth = "labelled" if "labelled" in whole else "train"
    check_splits(settings, whole, with_truth, target_kind)

    # Number their classes alike, by name. Whether classes are rare, and which labels noise changes, is said by the
    # whole split, whatever part of it a run is trained on.
    channels, teacher = settings.input.channels, settings.teacher
    classes = common_classes(loading, teacher, channels, whole, labels, opened)
    splits, num_classes = classes.splits, classes.count
    groups = group_classes(settings, splits["train"], num_classes, target_kind)
    if isinstance(whole[with_truth], IterableDataset):
        check_stream(settings)
        logger.info(
            "Streaming dataset: order and views follow timm; exact resumption is not promised"
        )
    noise = None
    if settings.labels.label_noise:
        noise_seed = settings.labels.noise_seed
        noise = create_label_noise(settings.labels.label_noise, splits["train"], seed=noise_seed)
    epoch_size = 0
    if loading.epoch_slice:
        part, seed = splits[with_truth], loading.slice_seed
        epoch_size = len(take_slice(part, loading.epoch_slice, seed, "--epoch-slice"))

    # Cut slices, and hold out what chooses the epoch. Noise comes after the cuts, which are then those of a run
    # without it.
    splits = cut_slices(loading, whole, splits, with_truth)
    check_unseen_by_training(loading, splits, with_truth, sources)
    train, select = hold_out(splits["train"], loading.select_split, loading.slice_seed)
    if noise is not None:
        train, select = add_noise(noise, settings.labels.label_noise, train, select)
    labelled_set = splits.get("labelled")
    if not isinstance(labelled_set, MapDataset):  # streams were refused above
        labelled_set = None
    if labelled_set is not None:
        train = beside_labelled(loading, train, labelled_set, target_kind, num_classes)
    return Data(
        train,
        splits.get("val"),
        select,
        num_classes,
        few_shot,
        split_size=sources[0].samples or 0,
        noise=noise,
        groups=groups,
        class_names=classes.names,
        labelled_set=labelled_set,
        epoch_size=epoch_size,
        sources=sources,
        target_kind=target_kind,
    )


def open_few_shot(settings: TrainSettings) -> AnyDataset | None:
    """Open the split of ``--few-shot-eval``, which has classes of its own; None without the flag."""
    loading, episodes = settings.data, settings.episodes
    if not episodes.few_shot_eval:
        return None
    return open_split(
        loading.dataset,
        loading.data_dir,
        episodes.few_shot_split,
        episodes.few_shot_class_list,
        flag="--few-shot-split",
        list_flag="--few-shot-class-list",
        **reading(loading, settings.input.channels),
    )


def source_of_few_shot(settings: TrainSettings, dataset: AnyDataset) -> Ingredient:
    """Describe the split of ``--few-shot-eval``, as `sources_of` does the others."""
    # its place is what the flags say, and "few-shot" keeps it apart from a training split of the same name
    loading, episodes = settings.data, settings.episodes
    name = f"'{episodes.few_shot_split}'"
    where = [loading.dataset, name, episodes.few_shot_class_list, absolute_place(loading.data_dir)]
    samples = describe(dataset, "", "")
    origin = hash_of_place("few-shot", *where)
    return Ingredient("few_shot", name, origin, samples.fingerprint, samples.num_samples)


def check_splits(
    settings: TrainSettings,
    whole: Mapping[str, AnyDataset],
    with_truth: str,
    target_kind: TargetKind,
) -> None:
    """Raise a `UserError` if the run cannot use labels of this kind, or a split has no such labels.

    Args:
        settings: of the run.
        whole: its splits by role.
        with_truth: the role of those with labels that are trained on.
        target_kind: what a label is.
    """
    # by flags alone, then by what was opened
    check_target_kind(settings, target_kind)
    if isinstance(whole[with_truth], IterableDataset) and settings.data.unlabeled:
        raise UserError(
            f"--dataset {settings.data.dataset} is a stream: labelled samples beside --unlabeled need a dataset that "
            "can be indexed"
        )
    for role, split in whole.items():
        check_truth(settings.data, role, split, target_kind)


def group_classes(
    settings: TrainSettings, train: AnyDataset, num_classes: int | None, target_kind: TargetKind
) -> ShotGroups | None:
    """Group the classes by their samples in the whole training split; None if accuracy is not measured by groups."""
    # unlabeled images have no counts, and an image of several classes counts for each of them
    mode, *thresholds = parse_long_tail(settings.evaluation.long_tail)
    counts = None
    if mode != "never" and not settings.data.unlabeled and target_kind.name == ONE_CLASS.name:
        counts = count_classes(train, num_classes)
    groups = choose_groups(mode, counts, thresholds)
    if groups is not None:
        logger.info(f"Long tail: {groups}")
    return groups


def cut_slices(
    loading: DataSettings,
    whole: Mapping[str, AnyDataset],
    numbered: Mapping[str, AnyDataset],
    with_truth: str,
) -> dict[str, AnyDataset]:
    """Return the splits after ``--train-slice`` and ``--val-slice``.

    Args:
        loading: names the slices.
        whole: splits by role, as they were opened.
        numbered: the same, with their classes in the common order.
        with_truth: the role of those with labels that are trained on.
    """
    splits = dict(numbered)
    for role, flag, part in (
        (with_truth, "--train-slice", loading.train_slice),
        ("val", "--val-slice", loading.val_slice),
    ):
        if not part or role not in splits:
            continue
        # Which samples are in a slice must not depend on the order of the classes, so it is cut from the split as it
        # was opened. Of a stream there is none; `take_slice` refuses it.
        cut, split = take_slice(whole[role], part, loading.slice_seed, flag), splits[role]
        if isinstance(cut, Subset) and isinstance(split, MapDataset):
            splits[role] = Subset(split, cut.indices)
    return splits


def add_noise(
    noise: LabelNoise, kind: str | None, train: AnyDataset, select: MapDataset | None
) -> tuple[AnyDataset, MapDataset | None]:
    """Return training set and held-out part with noisy labels, and log how many of the former changed."""
    if isinstance(train, MapDataset):  # streams have no noise
        train = noise.apply(train)
    # the held-out part is given labels as noisy, so that it does not choose by true ones
    select = None if select is None else noise.apply(select)
    counts = noise.record(train)
    logger.info(
        f"Label noise {kind}: {counts['changed']} of {counts['samples']} training labels "
        f"({100 * counts['rate']:.2f} %) are not the clean ones"
    )
    return train, select


def beside_labelled(
    loading: DataSettings,
    train: AnyDataset,
    labelled: MapDataset,
    target_kind: TargetKind,
    num_classes: int | None,
) -> AnyDataset:
    """Return images without labels in the form in which they come in one batch with labelled ones, and log it."""
    # rows of several labels come with rows of as many unknown ones
    if target_kind.name != ONE_CLASS.name and isinstance(train, MapDataset):
        train = WithUnknownLabels(train, num_classes or 0)
    logger.info(
        f"Semi-supervised: {loading.labelled_in_batch} of the {loading.batch_size} samples of a batch are of the "
        f"{len(labelled)} labelled ones in '{loading.train_split}'"
    )
    return train


def check_target_kind(settings: TrainSettings, target_kind: TargetKind) -> None:
    """Raise a `UserError` where a run uses what cannot be done with labels of this kind."""
    for term in ONE_CLASS_ONLY:
        if term.holds(settings):
            require_one_class(term.shown, target_kind)


def check_truth(
    loading: DataSettings, role: str, split: AnyDataset, target_kind: TargetKind
) -> None:
    """Raise a `UserError` where a split has true labels of one class an image, and several are to be learned."""
    is_of_several = classes_of_samples(split) is not None
    if target_kind.name == ONE_CLASS.name or is_of_several or is_unlabeled(split):
        return
    flag = "--val-labels" if role == "val" else "--train-labels"
    raise UserError(
        f"--task {target_kind.task}: --data-dir {loading.data_dir}, split '{loading.split_name(role)}': folders of classes "
        f"say one class an image; expected a table of labels by {flag}"
    )


def check_unseen_by_training(
    settings: DataSettings,
    splits: Mapping[str, AnyDataset],
    with_truth: str,
    sources: Iterable[Ingredient],
) -> None:
    """Compare the samples that are evaluated with those that are trained on: of one split these may be the same.

    Args:
        settings: their names.
        splits: as they are used, by role.
        with_truth: the role of those with labels that are trained on.
        sources: the whole splits.

    Raises:
        UserError: samples of a ``--val-slice`` are trained on.
    """
    # To compare all names takes time, and parts of different splits share none.
    # Two splits of other sizes are not the same split, whatever a part of them holds, unless tables cut them from one.
    sizes = {source.role: source.samples for source in sources}
    by_table = "val" in splits and not settings.learns_weak_labels_alone and settings.tables
    if sizes.get("val") != sizes[with_truth] and not by_table:
        return
    shared = count_shared(splits[with_truth], splits["val"])
    if shared and settings.val_slice:
        raise UserError(
            f"--val-slice {settings.val_slice}: {shared} of its {len(splits['val'])} samples are trained on; give a "
            f"slice outside of --train-slice {settings.train_slice or ':'}"
        )
    if shared and by_table:
        logger.warning(
            f"WARNING: {' and '.join(by_table)}: {shared} of the {len(splits['val'])} images of "
            f"'{settings.val_split}' are trained on; take them out of one table"
        )
    elif shared:  # a known way to look for errors, so it is allowed
        logger.warning(
            f"WARNING: '{settings.train_split}' and '{settings.val_split}' are the same samples, and {shared} of them "
            "are trained on; --val-slice A:B evaluates on others"
        )


def select_clean(
    loading: DataSettings,
    labelling: LabelSettings,
    data: Data,
    data_config: dict,
    teacher: Teacher | None,
    world: World,
    saved: Path | None = None,
) -> None:
    """Leave in the training set what ``--clean-select`` selects, in place.

    ``saved`` is the index file of a run that is resumed; if it has the same rule it is taken again.
    """
    if not labelling.clean_select:
        return
    # A rule on neighbours needs labels, one on the certainty of the model none.
    rule, value, file = parse_selection(labelling.clean_select)
    candidates = data.samples
    labels = known_labels(candidates, "--clean-select") if rule == KNN else labels_of(candidates)
    fingerprint = describe(candidates, loading.dataset, loading.train_split).fingerprint

    # A resumed run takes its own selection again, another one that of its file, or of models.
    selected, origin = None, {}
    if saved is not None and saved.is_file():
        selected, origin = read_selection(str(saved), candidates, data.split_size, fingerprint)
    if selected is None or origin.get("rule") != labelling.clean_select:
        if rule == "file":
            selected, written = read_selection(file, candidates, data.split_size, fingerprint)
            origin = dict(made_by=written.get("rule"), models=written.get("models"))
        else:
            student = StudentInput.of(
                data_config, data.num_classes, data.class_names, data.target_kind
            )
            named = parse_selection_model(labelling.clean_select_model)
            models = selection_models(rule, *named, teacher, student, world.device)
            selected = select_by_model(
                rule,
                value,
                models,
                without_transform(candidates),
                data.count_classes(),
                whole_pass(loading, world),
            )
            origin = dict(made_by=None, models=[model.source for model in models])

    # What is left, with its figures for the record.
    clean = data.noise.clean_labels(candidates) if data.noise else None
    figures = selection_figures(selected, labels, clean)
    data.train = take_selected(candidates, selected)
    about = dict(
        rule=labelling.clean_select,
        made_by=origin["made_by"],
        models=origin["models"],
        fingerprint=fingerprint,
    )
    data.selection = Selection({**about, **figures}, list(positions_in_split(data.train)))
    shares = ", ".join(
        f"{name} {figures[name]:.4g}"
        for name in ("precision", "recall")
        if figures[name] is not None
    )
    logger.info(
        f"Clean selection {labelling.clean_select}: {figures['selected']} of {figures['candidates']} training "
        f"samples; {figures['empty_classes']} class(es) without any; {shares}"
    )


def draw_few_shot_test(dataset: AnyDataset, shapes: str, queries: int, flag: str) -> FewShotTest:
    """Draw test episodes of each of some shapes from a split.

    Args:
        dataset: the split.
        shapes: ``NxK[,NxK][:E]``.
        queries: images of each class of an episode that are classified.
        flag: names the shapes in messages.

    Raises:
        UserError: the split has not enough classes or images for a shape.
    """
    parsed, labels = parse_shapes(shapes, queries, flag), known_labels(dataset, flag)
    for shape in parsed:
        check_shape(shape, labels, flag, class_names_of(dataset))
    count = count_episodes(shapes, flag, TEST_EPISODES, 2)
    return FewShotTest(parsed, [draw_episodes(labels, shape, count) for shape in parsed])
