"""The splits of a run."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ..cli.declare import dest_of
from ..cli.forms import (
    KNN,
    PREFIXES,
    TEST_EPISODES,
    count_episodes,
    parse_long_tail,
    parse_noise,
    parse_selection,
    parse_selection_model,
    parse_shapes,
)
from ..data import check_shape, draw_episodes, hold_out, open_split, take_slice
from ..data.datasets import class_names_of, known_labels, labels_of
from ..data.keys import count_shared, describe, positions_in_split
from ..data.slices import Subset
from ..data.unlabeled import HUB, WDS, WithoutLabels, open_shards, open_unlabeled
from ..data.wrapper import without_transform
from ..distributed.world import World
from ..errors import UserError, logger
from ..hub.fetch import find_hub_shards
from ..labels.noise import create_label_noise
from ..labels.selection import Selection, read_selection, selection_figures, take_selected
from ..labels.splits import Data
from ..made_of import Ingredient, absolute_place, hash_of_place
from ..metrics.long_tail import choose_groups, count_classes
from ..monitor import Console
from ..settings.resolve import input_channels, is_semi_supervised
from ..teachers.clean_select import select_by_model, selection_models
from ..teachers.name import TeacherName
from ..teachers.openers import Opened
from ..teachers.teacher import StudentInput, Teacher
from .classes import common_classes, split_name
from .few_shot import FewShotTest
from .labels import FoundLabels, fingerprint_of
from .loaders import check_stream, labelled_in_batch, whole_pass

# ---------------------------------------------------------------- whole splits


def open_named_split(
        args: Namespace,
        flag: str,
        class_list: str | None,
        channels: int | None = None,
        **how: object,
) -> Dataset:
    """Open the split of ``--dataset`` or ``--data-dir`` that a flag names; ``how`` is of `open_split`."""
    how = {**reading(args, channels), **how}
    return open_split(
        args.dataset, args.data_dir, getattr(args, dest_of(flag)), class_list, flag=flag, **how)


def reading(args: Namespace, channels: int | None = None) -> dict[str, object]:
    """Return how samples are read, as arguments of `open_split`, for a model that takes so many channels, which flags
    say unless they are given. Raises `UserError` for other ones.
    """
    channels = channels or input_channels(args)
    mode = args.input_img_mode or ("RGB" if channels == 3 else "L")
    bands = len(Image.new(mode, (1, 1)).getbands())
    if args.input_img_mode and bands != channels:
        raise UserError(f"--input-img-mode {mode}: its images have {bands} channels, and the model takes {channels} "
                        f"(--in-chans {bands})")
    return dict(
        class_map=args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=mode,
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        is_training=False,
    )


def open_train_split(args: Namespace) -> Dataset:
    """Open the whole training split, of which ``--train-slice`` takes a part: the labelled one where there is any."""
    if args.unlabeled and not is_semi_supervised(args):
        return _open_unlabeled(args)
    return open_named_split(
        args, "--train-split", args.class_list, is_training=True, seed=args.seed, repeats=args.epoch_repeats,
        num_samples=args.train_num_samples)


def _open_unlabeled(args: Namespace) -> Dataset:
    """Open what ``--unlabeled`` names: folders and tar files, shards, or a split whose labels are not looked at."""
    text, how = args.unlabeled, reading(args)
    mode = str(how["input_img_mode"])

    # folders, tar files and shards, here or on the Hub
    if os.path.exists(text) or text.startswith(WDS) or not text.lower().startswith(PREFIXES):
        return open_unlabeled(text, mode)
    if text.startswith(HUB):
        return open_shards(find_hub_shards(text), mode)

    # a dataset by its name
    name, _, split = text.rpartition(":")
    if not name:
        raise UserError(f"--unlabeled {text}: which split? Expected NAME:SPLIT, such as {text}:train")
    dataset = open_split(
        name, args.data_dir, split, None, flag="--unlabeled", **{**how, "is_training": True})
    if isinstance(dataset, IterableDataset):
        raise UserError(f"--unlabeled {text}: is a stream, which cannot be indexed; shards are given as {WDS}PATH or "
                        f"{HUB}ORG/NAME")
    return WithoutLabels(dataset, text)


def open_val_split(args: Namespace) -> Dataset:
    """Open the whole validation split."""
    return open_named_split(args, "--val-split", args.class_list, num_samples=args.val_num_samples)


def open_splits(args: Namespace) -> dict[str, Dataset]:
    """Open the whole splits of a run: ``train``, ``labelled`` (beside images without labels) and ``val``, where it has
    them.
    """
    if is_semi_supervised(args):
        splits = {"train": _open_unlabeled(args), "labelled": open_train_split(args)}
    else:
        splits = {"train": open_train_split(args)}
    if args.val_split:
        splits["val"] = open_val_split(args)
    return splits


def sources_of(
        args: Namespace, splits: Mapping[str, Dataset], labels: Sequence[FoundLabels] = ()) -> list[Ingredient]:
    """Describe the data that a run is made of.

    Args:
        args: the flags.
        splits: from `open_splits`, neither cut nor with other labels.
        labels: in place of a teacher.

    Returns:
        Each split and each file of labels.
    """
    # the splits, as they are before anything is cut or renamed
    sources = []
    for role, split in splits.items():
        name = f"'{split_name(args, role)}'"
        where = [args.dataset, name, args.class_list, args.class_map, args.input_key, args.target_key]
        if role == "train" and args.unlabeled:
            where, name = [absolute_place(args.unlabeled)], "the images of --unlabeled"
        about = describe(split, "", "")
        sources.append(Ingredient(
            role, name, hash_of_place(*where, absolute_place(args.data_dir)), about.fingerprint, about.num_samples))

    # the files of labels
    files = [("--teacher", found.place.path) for found in labels]
    kind, table = parse_noise(args.label_noise) if args.label_noise else ("", "")
    if kind == "labels":
        files.append(("--label-noise", Path(table)))
    for number, (flag, path) in enumerate(files):
        sources.append(Ingredient(
            f"labels {number}",
            f"the labels of {flag} labels:{path.name}",
            hash_of_place(absolute_place(path)),
            fingerprint_of(path),
        ))
    return sources


# ---------------------------------------------------------------- the parts that are trained on and measured


def build_data(
        args: Namespace,
        labels: Sequence[FoundLabels] = (),
        opened: dict[TeacherName, Opened] | None = None,
) -> Data:
    """Create the splits, compare their classes, and cut slices; ``labels`` may name the classes of images without, and
    so may a teacher, which is then found in ``opened``.
    """
    # Open the splits, whole.
    whole = open_splits(args)
    sources = sources_of(args, whole, labels)
    few_shot = None
    if args.few_shot_eval:
        few_shot = open_named_split(
            args, "--few-shot-split", args.few_shot_class_list, list_flag="--few-shot-class-list")
    with_truth = "labelled" if "labelled" in whole else "train"
    streamed = isinstance(whole[with_truth], IterableDataset)
    if streamed and args.unlabeled:
        raise UserError(f"--dataset {args.dataset} is a stream: labelled samples beside --unlabeled need a dataset "
                        "that can be indexed")

    # Number their classes alike, by name.
    splits, names, num_classes = common_classes(args, whole, labels, opened)

    # What the whole training split decides.
    train = splits["train"]
    sizes = {source.role: source.samples for source in sources}
    mode, *thresholds = parse_long_tail(args.long_tail)
    counts = None if mode == "never" or args.unlabeled else count_classes(train, num_classes)
    groups = choose_groups(mode, counts, thresholds)
    if groups is not None:
        logger.info(f"Long tail: {groups}")
    if streamed:
        check_stream(args)
        logger.info("Streaming dataset: order and views follow timm; exact resumption is not promised")
    noise = create_label_noise(args.label_noise, train, seed=args.noise_seed) if args.label_noise else None
    epoch_size = 0
    if args.epoch_slice:
        epoch_size = len(
            take_slice(splits[with_truth], args.epoch_slice, args.slice_seed, "--epoch-slice"))

    # Cut slices. Which samples are in one does not depend on the order of the classes, so that it is found in the split
    # as it was opened.
    for role, flag in ((with_truth, "--train-slice"), ("val", "--val-slice")):
        text = getattr(args, dest_of(flag))
        if text and role in splits:
            splits[role] = Subset(
                splits[role], take_slice(whole[role], text, args.slice_seed, flag).indices)
    # What is evaluated on should not be trained on. Only of one split that may be; to compare all names takes time.
    shared = 0
    if sizes.get("val") == sizes[with_truth]:
        shared = count_shared(splits[with_truth], splits["val"])
    if shared and args.val_slice:
        raise UserError(f"--val-slice {args.val_slice}: {shared} of its {len(splits['val'])} samples are trained on; "
                        f"give a slice outside of --train-slice {args.train_slice or ':'}")
    if shared:  # a known way to look for errors, so it is allowed
        logger.warning(f"WARNING: '{args.train_split}' and '{args.val_split}' are the same samples, and {shared} "
                       "of them are trained on; --val-slice A:B evaluates on others")

    # Hold out what chooses the epoch. Noise comes after the cuts, which are then those of a run without it.
    train, select = hold_out(splits["train"], args.select_split, args.slice_seed)
    if noise is not None:
        train, select = noise.apply(train), noise.apply(select) if select is not None else None
        about = noise.record(train)
        logger.info(f"Label noise {args.label_noise}: {about['changed']} of {about['samples']} training labels "
                    f"({100 * about['rate']:.2f} %) are not the clean ones")
    if "labelled" in splits:
        logger.info(f"Semi-supervised: {labelled_in_batch(args)} of the {args.batch_size} samples of a batch are of "
                    f"the {len(splits['labelled'])} labelled ones in '{args.train_split}'")
    return Data(
        train,
        splits.get("val"),
        select,
        num_classes,
        few_shot,
        split_size=sizes["train"],
        noise=noise,
        groups=groups,
        class_names=names,
        labelled=splits.get("labelled"),
        epoch_size=epoch_size,
        sources=sources,
    )


def select_clean(
        args: Namespace,
        data: Data,
        data_config: dict,
        teacher: Teacher | None,
        world: World,
        saved: Path | None = None,
) -> None:
    """Leave in the training set what ``--clean-select`` selects, in place.

    ``saved`` is the index file of a run that is resumed; where it has the same rule it is taken again.
    """
    if not args.clean_select:
        return
    rule, value, file = parse_selection(args.clean_select)
    candidates = data.train
    given = known_labels(candidates, "--clean-select") if rule == KNN else labels_of(candidates)
    fingerprint = describe(candidates, args.dataset, args.train_split).fingerprint

    # A resumed run takes its own selection again, another one that of its file, or of models.
    selected, origin = None, {}
    if saved is not None and saved.is_file():
        selected, origin = read_selection(str(saved), candidates, data.split_size, fingerprint)
    if origin.get("rule") != args.clean_select and rule == "file":
        selected, made_by = read_selection(file, candidates, data.split_size, fingerprint)
        origin = dict(made_by=made_by.get("rule"), models=made_by.get("models"))
    elif origin.get("rule") != args.clean_select:
        student = StudentInput.of(data_config, data.num_classes, data.class_names)
        models = selection_models(
            rule, *parse_selection_model(args.clean_select_model), teacher, student, world.device)
        selected = select_by_model(rule, value, models, without_transform(candidates), data.num_classes,
                                   whole_pass(args, world), Console(world.primary, 0).wrap)
        origin = dict(made_by=None, models=[model.source for model in models])

    # What is left, with its figures for the record.
    clean = data.noise.clean_labels(candidates) if data.noise else None
    figures = selection_figures(selected, given, clean)
    data.train = take_selected(candidates, selected)
    about = dict(
        rule=args.clean_select,
        made_by=origin["made_by"],
        models=origin["models"],
        fingerprint=fingerprint,
    )
    data.selection = Selection({**about, **figures}, list(positions_in_split(data.train)))
    shown = ", ".join(
        f"{name} {figures[name]:.4g}"
        for name in ("precision", "recall")
        if figures[name] is not None
    )
    logger.info(f"Clean selection {args.clean_select}: {figures['selected']} of {figures['candidates']} training "
                f"samples; {figures['empty_classes']} class(es) without any; {shown}")


def draw_few_shot_test(
        dataset: Dataset, args: Namespace, text: str, flag: str) -> FewShotTest:
    """Draw test episodes of each of the shapes in ``text`` from a split. Raises `UserError`."""
    # The split has to have enough classes and images for every shape.
    shapes, labels = parse_shapes(text, args.queries, flag), known_labels(dataset, flag)
    for shape in shapes:
        check_shape(shape, labels, flag, class_names_of(dataset))
    count = count_episodes(text, flag, TEST_EPISODES, 2)
    return FewShotTest(shapes, [draw_episodes(labels, shape, count) for shape in shapes])
