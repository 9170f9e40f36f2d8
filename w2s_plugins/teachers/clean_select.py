"""`--clean-select` by what a model makes of the training samples: its features or answers of all of them, once."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

from ..cli.forms import KNN
from ..data import labels_of
from ..distributed.world import broadcast_from_rank0
from ..errors import UserError
from ..labels.selection import agrees_with_neighbours, smallest_share
from ..labels.store import Part
from .name import TeacherName
from .stored import Pass, label_images
from .teacher import StudentInput, Teacher, TeacherModel, TeacherSettings, combine, open_member

Progress = Callable[[str], Callable[[Sequence], Sequence] | None]


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
        teacher: the teacher.
        student: channels and classes of the data.
        device: where they run.

    Raises:
        UserError: several teachers have no common features.
    """
    # Features need not be of the classes of the data; answers do.
    if name is not None:
        seen = replace(student, num_classes=None, class_names=None) if rule == KNN else student
        flag = "--clean-select-model"
        return [
            open_member(
                TeacherName.parse(name),
                checkpoint,
                seen,
                device,
                TeacherSettings(flags=(flag, flag)),
            )
        ]
    if rule == KNN and len(teacher.members) > 1:
        raise UserError(
            f"--clean-select {rule}: several teachers have no common features; name one model with "
            "--clean-select-model"
        )
    return list(teacher.members)


def select_by_model(
    rule: str,
    value: float,
    models: Sequence[TeacherModel],
    dataset: Dataset,
    num_classes: int,
    how: Pass,
    progress: Progress = lambda text: None,
) -> Tensor:
    """Say which samples of a training set are selected; all ranks call this and get the same.

    Args:
        rule: ``knn``, or ``entropy``: those of whose class the model is most certain.
        value: K, or the share that is kept.
        models: those of `selection_models`.
        dataset: the training set; its transform is changed.
        num_classes: C.
        how: how the models go over the dataset.
        progress: takes a heading, returns what wraps a sequence to show progress.

    Returns:
        (N,) bool on the CPU.

    Raises:
        UserError: K is not below the number of samples; the model gives values that are not finite.
    """
    # What each model makes of every sample, computed once.
    outputs = [
        outputs_of(
            model.encode if rule == KNN else model,
            model.data_config,
            dataset,
            how,
            progress("outputs for --clean-select"),
        )
        for model in models
    ]
    if not all(output.isfinite().all() for output in outputs):
        raise UserError(f"--clean-select {rule}: the model gives values that are not finite")
    if rule != KNN:
        return most_certain(combine(outputs).softmax(dim=1), value)

    # Each rank looks for the neighbours of all samples; what the first one finds counts, whatever the devices are.
    device, labels = how.world.device, torch.tensor(labels_of(dataset))
    agrees = agrees_with_neighbours(
        outputs[0].to(device), labels.to(device), int(value), num_classes, progress("neighbours")
    )
    return broadcast_from_rank0(agrees.cpu(), how.world.distributed)


def most_certain(probabilities: Tensor, share: float) -> Tensor:
    """Say of which share of the samples (N,) the ``probabilities`` (N, C) have the lowest entropy."""
    return smallest_share(torch.special.entr(probabilities).sum(dim=1), share)


def outputs_of(
    ask: Callable[[Tensor], Tensor],
    data_config: dict,
    dataset: Dataset,
    how: Pass,
    progress: Callable[[Sequence], Sequence] | None = None,
) -> Tensor:
    """Return what is answered, (N, D), for all samples, on the CPU of every rank; ranks divide the work.

    Every batch is of full size, whichever rank computes it, so that outputs do not depend on the number of ranks.
    """
    # A part is a batch; each rank has every n-th of them.
    size, world = how.batch_size, how.world
    parts = [
        Part(0, first, min(first + size, len(dataset))) for first in range(0, len(dataset), size)
    ]
    own = parts[world.rank :: world.size]
    answers = label_images(ask, data_config, dataset, how, own)
    rows = [next(answers).values for _ in (progress(own) if progress else own)]
    # All ranks get the rows of all, in the order of the samples.
    if world.distributed:
        gathered: list[list[Tensor]] = [[]] * world.size
        dist.all_gather_object(gathered, rows)
        rows = [gathered[i % world.size][i // world.size] for i in range(len(parts))]
    return torch.cat(rows)
