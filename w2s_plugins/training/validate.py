"""The parts of an evaluation by ``validate.py``, made from its settings."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.naflex_loader import create_naflex_loader
from timm.data.real_labels import RealLabelsImagenet
from timm.layers.test_time_pool import apply_test_time_pool
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..data import AnyDataset, MapDataset, create_eval_loader, take_slice
from ..data.datasets import NamesFiles, num_classes_of
from ..data.loaders import EVAL_TRANSFORM, LoaderSettings
from ..distributed.world import Precision
from ..errors import UserError, logger, one_line, said_of
from ..files import file_sha256, read_text
from ..metrics.long_tail import ShotGroups, read_counts
from ..models.class_names import are_elsewhere, names_of_data, names_of_model, warn_of_names
from ..models.fingerprint import hash_tensors
from ..models.loading import (
    TimmModel,
    create_model,
    find_weights,
    input_config,
    kind_beside,
    load_weights,
    of_timm,
    read_weights,
)
from ..resolve.validation import Candidate
from ..settings.composite import SubjectSettings, ValidateSettings
from ..settings.concerns import ComputeSettings
from ..settings.forms import parse_long_tail
from ..target_kind import ONE_CLASS, TargetKind, kind_of_task
from ..teachers.teacher import StudentInput, Teacher
from .classes import by_name, with_classes
from .data import open_labelled, reading
from .device import compile_options, place_model
from .teacher import teacher_from_settings


@dataclass(frozen=True)
class Subject:
    """A model, ready on the device, how its input is made, the hash of its weights as they were loaded, what its labels
    are, and how it lies in memory.
    """

    candidate: Candidate
    model: TimmModel
    data_config: dict[str, Any]
    params: int
    weights: str
    class_names: list[str] | None
    target_kind: TargetKind
    layout: torch.memory_format


# ---------------------------------------------------------------- model


def create_subject(
    settings: ValidateSettings, candidate: Candidate, device: torch.device
) -> Subject:
    """Create the model with its weights and bring it into the form in which it is evaluated."""
    form, images, compute = settings.subject, settings.input, settings.compute
    model = create_model(
        "--model",
        candidate.model,
        pretrained=settings.student.pretrained or not candidate.checkpoint,
        inputs=images.of_model,
        recorded=candidate.recorded,
        **{
            "num_classes": settings.data.num_classes,
            "global_pool": settings.student.gp,
            "scriptable": form.torchscript or None,
            **settings.student.model_kwargs,
        },
    )
    kind = getattr(model, "target_kind", None)
    if candidate.checkpoint:
        file = find_weights(candidate.checkpoint, "--checkpoint")
        state = read_weights(file, "--checkpoint", form.use_ema)
        report = load_weights(model, state, str(file), "--checkpoint")
        logger.info(f"{candidate.model}: {report}")
        kind = kind_beside(file, "--checkpoint")
    kind = _kind_of_labels(settings, kind, candidate)
    # Names of the classes travel with a checkpoint, and say which answer is which.
    class_names = names_of_model(model, candidate.checkpoint or None, "--checkpoint")
    # Hashed as they were loaded, before they are merged or cast: the same weights are known by it in any form.
    weights = hash_tensors(dict(sorted(model.state_dict().items())))
    if form.reparam:
        model = of_timm(reparameterize_model(model))
    # Counted after the branches are merged, because that is what runs.
    params = sum(p.numel() for p in model.parameters())
    data_config = input_config(
        model,
        f"--model {candidate.model}",
        vars(images),
        use_test_size=not form.use_train_size,
    )
    # Larger images than in training: features are pooled over windows of the old size.
    if form.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
        model = of_timm(model)
        if pooled:
            data_config = {**data_config, "crop_pct": 1.0}
    layout = place_model(model, device, compute)
    return Subject(candidate, model.eval(), data_config, params, weights, class_names, kind, layout)


def _kind_of_labels(
    settings: ValidateSettings, recorded: TargetKind | None, candidate: Candidate
) -> TargetKind:
    """Return what the labels of a model are: what its run or its export says, else what ``--task`` says.

    Raises:
        UserError: they contradict each other.
    """
    asked = kind_of_task(settings.data.task, settings.evaluation.multilabel_threshold)
    if recorded is None or recorded.name == asked.name:
        return asked
    if asked.name != ONE_CLASS.name:
        raise UserError(
            f"--task {settings.data.task}: {candidate.name} was trained on labels of {recorded.words}; leave the flag out"
        )
    return kind_of_task(recorded.task, settings.evaluation.multilabel_threshold)


def compiled(
    form: SubjectSettings, compute: ComputeSettings, model: nn.Module
) -> Callable[[Tensor], Tensor]:
    """Return the model in the compiled or parallel form that the flags ask for."""
    if form.torchscript:
        return torch.jit.script(model)
    # At most one of these: each makes something else of the model that the others could not take.
    options = compile_options(compute)
    if options is not None:
        return torch.compile(model, **options)
    if form.aot_autograd:
        from functorch.compile import memory_efficient_fusion

        return memory_efficient_fusion(model)
    if form.num_gpu > 1:
        return nn.DataParallel(model, device_ids=list(range(form.num_gpu)))
    return model


def reference_teacher(
    settings: ValidateSettings,
    subject: Subject,
    dataset: AnyDataset,
    precision: Precision,
) -> Teacher | None:
    """Open the teacher that the subject is compared with, on the same input; None without one."""
    teaching, few_shot = settings.teacher, bool(settings.episodes.few_shot_eval)
    if not teaching.teacher:
        return None
    # Episodes are of any classes, so that a teacher need not have those of the model; of classes that are picked by
    # --valid-labels the names are not those of the model's answers.
    num_classes = None if few_shot else subject.model.num_classes
    class_names = None
    if not few_shot and not settings.subject.valid_labels:
        class_names = names_of_data(dataset)
    seen = StudentInput.of(subject.data_config, num_classes, class_names, subject.target_kind)
    teacher = teacher_from_settings(teaching, teaching.names, seen, precision)
    if few_shot and not teacher.members[0].embeds:
        raise UserError(
            f"--few-shot: --teacher {teaching.teacher} has no features that can be had; models of timm, clip: and hf: have"
        )
    return teacher


# ---------------------------------------------------------------- data


def open_dataset(
    settings: ValidateSettings, subject: Subject, counted: list[int] | None
) -> AnyDataset:
    """Open the split and compare its classes with the model's, of which only those in ``counted`` count."""
    loading, names = replace(settings.data, task=subject.target_kind.task), subject.class_names
    # Of one class an image the data has no others than those that count; a table of several says something of all.
    several = subject.target_kind.name != ONE_CLASS.name
    if names and counted is not None and not several:
        names = [names[number] for number in counted if 0 <= number < len(names)]
    with said_of(settings.subject.data_of_run):
        dataset = open_labelled(
            loading,
            "--split",
            None if settings.episodes.few_shot_eval else names,
            **reading(
                loading,
                subject.data_config["input_size"][0],
                load_bytes=settings.subject.tf_preprocessing,
                num_samples=loading.val_num_samples,
                seed=settings.seed,
            ),
        )
    if settings.episodes.few_shot_eval:
        return dataset
    # A slice is taken before classes are compared, as in a run, since which samples it has depends on their order.
    dataset = take_slice(dataset, loading.val_slice, loading.slice_seed, "--val-slice")
    expected, who = subject.model.num_classes, subject.candidate.name
    if counted is not None and not several:
        # The data has the classes that count, in their order.
        check_counted(counted, expected, num_classes_of(dataset), settings.subject.valid_labels)
    else:
        # In another order, or not all; one that is misspelt among others that are elsewhere is refused there.
        in_data = names_of_data(dataset)
        if names and in_data and in_data != names:
            comparable = set(in_data) <= set(names) or are_elsewhere(in_data, names)
            dataset = by_name(dataset, names, loading.val_split, who) if comparable else dataset
        classes = num_classes_of(dataset)
        # ReaL labels need no folders of classes
        if classes not in (None, expected) and not settings.subject.real_labels:
            raise UserError(
                f"the data has {classes} classes, {subject.candidate.model} has {expected}; give --valid-labels FILE "
                "with the classes that count, --class-map FILE, --val-labels FILE for images in no class folders, or the "
                "model's own data"
            )
    warn_of_names(who, names, names_of_data(dataset))
    if counted is not None and several:
        check_counted(counted, expected, None, settings.subject.valid_labels)
        return with_classes(dataset, counted)
    return dataset


def create_loader(
    form: SubjectSettings,
    dataset: AnyDataset,
    subject: Subject,
    loading: LoaderSettings,
) -> Iterable:
    """Create timm's evaluation loader, of images or of NaFlex patches."""
    config = subject.data_config
    border = form.crop_border_pixels
    if border and isinstance(dataset, MapDataset):
        # timm would cut everything off an image that is too small, and fail at an image of no pixels
        image = dataset[0][0]
        if isinstance(image, Image.Image) and 2 * border >= min(image.size):
            shape = " x ".join(map(str, image.size))
            raise UserError(
                f"--crop-border-pixels {border}: leaves nothing of the first image, which has {shape}"
            )
    if not form.naflex_loader:
        return create_eval_loader(
            dataset,
            config,
            loading,
            crop_border_pixels=form.crop_border_pixels,
            tf_preprocessing=form.tf_preprocessing,
        )
    # NaFlexVit cuts images into patches itself elsewhere; here the loader does, by the size that the model has.
    patch_size = getattr(getattr(subject.model, "embeds", None), "patch_size", None)
    return create_naflex_loader(
        dataset,
        crop_border_pixels=form.crop_border_pixels,
        patch_size=patch_size or (16, 16),
        max_seq_len=form.naflex_max_seq_len,
        **loading.for_timm,
        **{name: config[name] for name in EVAL_TRANSFORM},
    )


def open_groups(
    settings: ValidateSettings, dataset: AnyDataset, subject: Subject
) -> ShotGroups | None:
    """Group the classes by the training samples that the run of the checkpoint has counted; None for other classes."""
    file = settings.subject.class_counts
    if file is None:
        return None
    # Counts of other classes than those of the data say nothing of these.
    counts = read_counts(file, "--checkpoint")
    if len(counts) != (num_classes_of(dataset) or subject.model.num_classes):
        return None
    groups = ShotGroups(counts, *parse_long_tail(settings.evaluation.long_tail)[1:])
    logger.info(f"Long tail: {groups}")
    return groups


def open_real_labels(file: str, dataset: AnyDataset) -> RealLabelsImagenet:
    """Open the ReaL labels. Raises `UserError` when they are not of these images."""
    try:
        files = []
        if isinstance(dataset, MapDataset) and isinstance(dataset, NamesFiles):
            files = dataset.filenames(basename=True)
        labels = RealLabelsImagenet(files, real_json=file)
        known = bool(files) and set(labels.real_labels).issuperset(labels.filenames)
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"--real-labels {file}: expected the json of the ReaL labels ({one_line(error)})"
        ) from error
    if not known:
        raise UserError(
            "--real-labels is for ImageNet's validation images (ILSVRC2012_val_00000001.JPEG, ...)"
        )
    return labels


def unlike_training(settings: ValidateSettings) -> dict[str, object]:
    """Return the settings that change figures and that the evaluation of a run does not have, but for those that it
    may have.
    """
    form = settings.subject
    files = {"real_labels": form.real_labels, "valid_labels": form.valid_labels}
    # Two files of one name may differ, so that their content is part of what is compared.
    contents = {
        name: f"{Path(file).name} {file_sha256(file)[:8]}" for name, file in files.items() if file
    }
    return dict(
        contents,
        gp=settings.student.gp,
        num_samples=settings.data.val_num_samples,
        model_kwargs=settings.student.model_kwargs,
        crop_border_pixels=form.crop_border_pixels,
        tf_preprocessing=form.tf_preprocessing,
        test_pool=form.test_pool,
        naflex_max_seq_len=form.naflex_loader and form.naflex_max_seq_len,
    )


def read_valid_labels(file: str) -> list[int] | None:
    """Read the classes that count, one a line; None for all."""
    if not file:
        return None
    try:
        return [int(line) for line in read_text(file).split()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"--valid-labels {file}: expected one class number a line ({one_line(error)})"
        ) from error


def check_counted(counted: Sequence[int], of_model: int, of_data: int | None, file: str) -> None:
    """Raise a `UserError` unless the classes that count are classes of the model, one for each class of the data.

    Args:
        counted: numbers of classes, from ``--valid-labels``.
        of_model: how many classes the model has.
        of_data: how many the data has, None for a stream, and where others do not count.
        file: named by ``--valid-labels``.
    """
    # One line too many or twice would move all classes behind it, and figures would still look like figures.
    odd = next((number for number in counted if not 0 <= number < of_model), None)
    if odd is not None:
        raise UserError(
            f"--valid-labels {file}: has {odd}, but the model has {of_model} classes; expected numbers "
            f"from 0 to {of_model - 1}"
        )
    twice = next((number for number, times in Counter(counted).items() if times > 1), None)
    if twice is not None:
        raise UserError(
            f"--valid-labels {file}: has {twice} twice; expected one line for each class of the data"
        )
    if of_data not in (None, len(counted)):
        raise UserError(
            f"--valid-labels {file}: has {len(counted)} classes, but the data has {of_data}; expected one "
            "line for each class of the data, in its order"
        )
