"""`--clean-select` by what a model makes of the training samples: its features or answers of all of them, once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data import MapDataset, labels_of
from ..distributed.world import broadcast_from_rank0, gather_objects
from ..errors import UserError
from ..labels.selection import agrees_with_neighbours, smallest_share
from ..labels.store import Part
from ..monitor import Console
from ..settings.forms import KNN
from ..settings.teacher_name import TeacherName
from ..target_kind import ONE_CLASS, TargetKind
from .stored import Pass, label_images
from .teacher import StudentInput, Teacher, TeacherModel, TeacherSettings, open_member


def selection_models(
    rule: str,
    name: str | None,
    checkpoint: str | None,
    teacher: Teacher | None,
    student: StudentInput,
    device: torch.device,
) -> list[TeacherModel]:
    """Return the frozen models whose outputs decide: that of ``--clean-select-model``, else the teacher's.

    Args:
        rule: ``knn`` or ``entropy``.
        name: timm name, Hub id or ``local-dir:PATH``; None for the teacher.
        checkpoint: weights for ``name``.
        teacher: the teacher, where a model teaches; the flags' rules ask for ``name`` where none does.
        student: channels and classes of the data.
        device: where they run.

    Raises:
        UserError: several teachers have no common features.
    """
    if name is not None:
        # Features need not be of the classes of the data; answers do.
        if rule == KNN:
            student = replace(student, num_classes=None, class_names=None)
        settings = TeacherSettings(flags=("--clean-select-model", "--clean-select-model"))
        return [open_member(TeacherName.parse(name), checkpoint, student, device, settings)]
    members = teacher.members if teacher is not None else ()
    if rule == KNN and len(members) > 1:
        raise UserError(
            f"--clean-select {rule}: several teachers have no common features; name one model with "
            "--clean-select-model"
        )
    return list(members)


def select_by_model(
    rule: str,
    value: float,
    models: Sequence[TeacherModel],
    dataset: MapDataset,
    num_classes: int,
    how: Pass,
) -> Tensor:
    """Say which samples of a training set are selected; all ranks call this and get the same.

    Args:
        rule: ``knn``, or ``entropy``: those of whose class the model is most certain.
        value: K, or the share that is kept.
        models: those of `selection_models`.
        dataset: the training set; its transform is changed.
        num_classes: C.
        how: how the models go over the dataset.

    Returns:
        (N,) bool on the CPU.

    Raises:
        UserError: K is not below the number of samples; the model gives values that are not finite.
    """
    # What each model makes of every sample, computed once.
    console = Console(how.world.primary, 0)
    outputs = [
        outputs_of(
            model.encode if rule == KNN else model,
            model.data_config,
            dataset,
            how,
            console.wrap("outputs for --clean-select"),
        )
        for model in models
    ]
    if not all(output.isfinite().all() for output in outputs):
        raise UserError(f"--clean-select {rule}: the model gives values that are not finite")
    # Certainty is of the answers of all models together; features of several have no common space.
    if rule != KNN:
        kind = models[0].target_kind
        return most_certain(kind.probabilities(kind.average(outputs)), value, kind)

    # Each rank looks for the neighbours of all samples; what the first one finds counts, whatever the devices are.
    device = how.world.device
    agrees = agrees_with_neighbours(
        outputs[0].to(device),
        torch.tensor(labels_of(dataset), device=device),
        int(value),
        num_classes,
        console.wrap("neighbours"),
    )
    return broadcast_from_rank0(agrees.cpu(), how.world.distributed)


def most_certain(
    probabilities: Tensor, share: float, target_kind: TargetKind = ONE_CLASS
) -> Tensor:
    """Say of which share of the samples (N,) the ``probabilities`` (N, C) have the lowest entropy."""
    # over all classes together: a class that is hard for the model keeps fewer samples
    return smallest_share(target_kind.uncertainty(probabilities), share)


def outputs_of(
    ask: Callable[[Tensor], Tensor],
    data_config: dict[str, Any],
    dataset: MapDataset,
    how: Pass,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Tensor:
    """Return what is answered, (N, D), for all samples, on the CPU of every rank; ranks divide the work.

    A batch has the same images, whichever rank computes it, so that outputs do not depend on the number of ranks.
    """
    # A part is a batch; each rank has every n-th of them.
    size, world, count = how.batch_size, how.world, len(dataset)
    parts = [Part(0, first, min(first + size, count)) for first in range(0, count, size)]
    of_rank = parts[world.rank :: world.size]
    answers = label_images(ask, data_config, dataset, how, of_rank)
    rows = [answer.values for _, answer in zip(progress(of_rank) if progress else of_rank, answers)]
    # All ranks get the rows of all, in the order of the samples.
    if world.distributed:
        gathered = gather_objects(rows)
        rows = [gathered[i % world.size][i // world.size] for i in range(len(parts))]
    return torch.cat(rows)
