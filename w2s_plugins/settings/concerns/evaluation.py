"""What only an evaluation by ``validate.py`` can be told, or what has another default there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..field import Concern, Count, Percent, Role, Seed, Whole, flag
from ..forms import teacher_names


@dataclass(frozen=True, kw_only=True)
class SubjectSettings(Concern, role=Role.MODEL):
    """What ``validate.py`` evaluates, and in which form."""

    checkpoint: str = flag("", "checkpoint, run folder, or folder of checkpoints", metavar="PATH")
    use_ema: bool = flag(False, "use the EMA weights of the checkpoint")
    use_train_size: bool = flag(False, "evaluate at the training size where the model has both")
    torchscript: bool = flag(False, "compile the model with TorchScript", one_of="compiler")
    # how the model is run
    num_gpu: Count = flag(1, "number of GPUs")
    test_pool: bool = flag(False, "test-time pooling")
    reparam: bool = flag(False, "reparameterise the model")
    aot_autograd: bool = flag(False, "fuse the model with AOT autograd")
    # what becomes of an image
    crop_border_pixels: Whole | None = flag(None, "pixels cut off at each border", role=Role.DATA)
    tf_preprocessing: bool = flag(
        False, "TensorFlow's preprocessing (needs tensorflow)", role=Role.DATA
    )
    naflex_loader: bool = flag(False, "NaFlex patches", role=Role.REPORT)
    naflex_max_seq_len: int = flag(576, "longest sequence of NaFlex", role=Role.REPORT)
    # which labels count
    real_labels: str = flag("", "json of the ImageNet ReaL labels", metavar="FILE")
    valid_labels: str = flag("", "text file of the class indices that count", metavar="FILE")
    # no flags: what the run of the checkpoint says
    class_counts: Path | None = None
    """File with the training samples of each class, of the run that is evaluated."""
    data_of_run: str = ""
    """Begins messages about data that the flags of this run name; empty if they were given by hand."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Concern, role=Role.REPORT):
    """What ``validate.py`` reports, and where."""

    log_freq: Count = flag(10, "batches between log lines")
    results_file: str = flag("", "write the results to this file", metavar="FILE")
    results_format: Literal["csv", "json"] = flag("csv", "csv or json")
    retry: bool = flag(False, "retry with smaller batches when memory runs out")
    metrics_avg: Literal["micro", "macro", "weighted"] | None = flag(
        None, "add precision, recall and F1 with this average"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluatedSettings(Concern, role=Role.DATA):
    """Flags of a run that have another default, name or help in an evaluation."""

    # who is evaluated
    teacher: str | None = flag(
        None,
        "also evaluate this teacher, and the agreement with it",
        role=Role.TEACHER,
        read=teacher_names,
        metavar="NAME[,NAME]",
        form="NAME",
    )
    teacher_checkpoint: str | None = flag(
        None,
        "weights of the teacher: a file or a run folder",
        role=Role.TEACHER,
        metavar="PATH[,PATH]",
    )
    ceiling_acc: Percent | None = flag(
        None,
        "top-1 of the student trained on ground truth: adds the PGR",
        role=Role.REPORT,
        needs="teacher",
    )
    model: str = flag(
        "dpn92",
        "timm name, hf-hub:ORG/NAME[@REV], local-dir:PATH, a run folder, its export or a "
        "checkpoint in it, a wildcard, `all`, or a text file with one name a line",
        role=Role.MODEL,
        names=("--model", "-m"),
    )
    pretrained: bool = flag(False, "use pretrained weights", role=Role.START)
    # on what
    dataset: str = flag("", "TYPE/NAME, inat2018 or inat2021; empty: image folders or tar files")
    split: str = flag("validation", "split to evaluate on")
    num_samples: Count | None = flag(None, "size of the split of an iterable dataset")
    batch_size: Count = flag(256, "batch size", role=Role.TRAINING, names=("-b", "--batch-size"))
    crop_mode: str | None = flag(None, "center, squash or border")
    few_shot: str | None = flag(
        None,
        "test the frozen encoder on E episodes (2000, or as many as the run had) of N classes of "
        "the split with K labelled images each, e.g. 5x1,5x5 (--split: novel unless given)",
        role=Role.EVALUATION,
        metavar="NxK[,NxK][:E]",
        form="NxK",
    )
    seed: Seed = flag(42, "random seed", role=Role.TUNING)
