"""Features of the images of a run, by which images that are alike are told, and labels that do not fit theirs."""

import logging
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError, quietly
from ..labels.store import LabelReader
from ..models.loading import of_timm
from ..predictions.run import open_model
from ..settings.teacher_name import TeacherName
from ..students.probe import create_encoder
from ..teachers.openers import Opened
from ..teachers.teacher import open_alone
from ..training.device import create_precision
from ..training.learned import ROWS, Learned
from ..training.loaders import answer_store
from ..training.student import build_student
from .subjects import Images

_logger = logging.getLogger(__name__)


def features_of(
    learned: Learned, images: Images, folder: Path, student: Opened | None = None
) -> LabelReader:
    """Return the features of the images, which are stored in a folder: what the head of a student sees, or, if that is
    not one linear layer, its answers. The student is that of the run, or the one that is handed over.
    """
    # in the precision of its run
    loading = learned.settings.data
    opened = student or open_model(str(learned.run))
    precision = create_precision(learned.settings.compute, learned.world)
    store = answer_store(loading, folder, learned.world)
    advice = "images are taken to be near where the student says much the same"
    try:
        encoder = create_encoder(
            of_timm(opened.model),
            opened.data_config,
            precision,
            f"RUN {learned.run}",
            "features",
            advice,
        )
    except UserError as error:
        _logger.warning(f"WARNING: {error}")
        name = TeacherName.parse(str(learned.run))
        if student is not None:
            opened = open_model(str(learned.run))
        member = open_alone(name, opened, learned.world.device, ("RUN", "RUN"))
        return learned.answers(member, folder)
    return store.features(encoder, images.dataset, loading.train_split)


def untrained_student(learned: Learned) -> Opened | None:
    """Return the student of a run as it began, before it had seen a label; None where its weights were random, or are not
    there any more.
    """
    # all of it, so that nothing is added to it that is trained
    settings = learned.settings.with_flags(tune="all", linear_probe=False)
    try:
        with quietly():
            student = build_student(settings, learned.world, learned.data.count_classes())
    except (UserError, OSError) as error:
        _logger.warning(f"WARNING: RUN {learned.run}: the weights that it began with: {error}")
        return None
    if student.source["init"] == "random":
        return None
    return Opened(student.model, student.data_config, None, None)


def read_rows(reader: LabelReader, rows: np.ndarray, images: Images) -> torch.Tensor:
    """Return what is stored of some images, (n, D)."""
    in_data = torch.tensor(images.rows)[torch.from_numpy(rows)]
    return torch.cat([reader(index, torch.device("cpu")) for index in in_data.split(ROWS)])
