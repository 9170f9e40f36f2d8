"""The commands that have sub-commands, ``python -m w2s_plugins.study`` and so on.

The docstring of each is its help. The function that is called with the values is in the room of that name: its
arguments are called like the flags. They stand here because ``--help`` must not import what the functions need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...files import recipe_path
from ..field import Concern, Count, flag

# fields that several commands have
SPEC = flag(
    None,
    "the specification, the name of one of the package's, or the folder of a study",
    read=recipe_path,
    names="spec",
    metavar="STUDY.yaml",
)
STUDY_OUTPUT = flag(
    None,
    "folder of the study (default: output/studies/NAME, after the file; `plan` makes a folder "
    "only where it is given)",
    metavar="DIR",
)
CLASS_NAMES = flag(None, "file with one name a line, or a,b,c: what labels may be", metavar="NAMES")
TASK = flag("classification", "multilabel: an image may have several classes")
ANSWERS = flag(None, "table of the answers, in place of a draw", metavar="FILE")
IMAGES_NOW = flag(
    None, "where the images lie now (default: where they lay in training)", metavar="DIR"
)
PLUGINS = flag([], "modules or files to import", metavar="FILE")
REPO_ID = flag(None, "repository, created when missing", names="repo_id", metavar="ORG/NAME")
PRIVATE = flag(False, "create the repository private")
REVISION = flag(None, "branch to push to, created when missing (default: main)", metavar="R")
MESSAGE = flag(None, "first line of the commit", metavar="M")
DRY_RUN = flag(False, "write what would be pushed into a folder and send nothing")
Task = Literal["classification", "multilabel"]


# ---------------------------------------------------------------- study


@dataclass(frozen=True, kw_only=True)
class StudyPlan(Concern):
    """Check every command of a study and show its runs; with --output its folder is made."""

    spec: Path = SPEC
    output: Path | None = STUDY_OUTPUT


@dataclass(frozen=True, kw_only=True)
class StudyRun(Concern):
    """Train every run of a study that is not finished, each in a process of its own; killed at any moment and started
    again, it goes on; exit code 1 when a run failed.
    """

    spec: Path = SPEC
    output: Path | None = STUDY_OUTPUT
    jobs: Count | None = flag(
        None,
        "runs at a time (default: one for each GPU in CUDA_VISIBLE_DEVICES, else one for each "
        "core)",
    )
    slurm: bool = flag(False, "submit the runs to SLURM in place of running them here")
    slurm_options: Mapping[str, Any] = flag(
        {},
        "parameters of submitit: timeout_min=240 slurm_partition=gpu gpus_per_node=1 "
        "cpus_per_task=8",
    )


@dataclass(frozen=True, kw_only=True)
class StudyStatus(Concern):
    """What runs, what failed, what is left."""

    study: Path = flag(None, "folder of the study", names="study", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class StudyReport(Concern):
    """Compare the finished runs of a study and print the table; writes index.html, one page that needs no network,
    README.md with the same in Markdown, the figures and table.csv.
    """

    folder: Path = flag(None, "folder of the study", names="folder", metavar="DIR")
    reference: str | None = flag(
        None,
        "loss that the others are compared with, or best: the one with the highest mean, "
        "corrected for all pairs (default: kd where there is one, else best)",
        metavar="LOSS",
    )
    title: str | None = flag(None, "heading (default: the name of the folder)", metavar="TEXT")
    output: Path | None = flag(None, "where it goes (default: DIR/report)", metavar="FOLDER")


# ---------------------------------------------------------------- labels


@dataclass(frozen=True, kw_only=True)
class LabelsImport(Concern):
    """Read tables as anyone sends them, show how they are understood, and write them as one table that training reads."""

    files: Sequence[str] = flag(
        None,
        "tables: csv, Excel, JSON of COCO or Label Studio, XML of CVAT, npz, ...; several are one crowd",
        names="files",
        metavar="FILE",
    )
    output: Path = flag(
        None, "the table that is written, .csv or .parquet", metavar="FILE", required=True
    )
    label: str | None = flag(None, "column with the labels", metavar="COLUMN")
    annotators: str | None = flag(
        None, "columns of people, who have one each", metavar="COLUMN,COLUMN"
    )
    filename: str | None = flag(None, "column with the names of the images", metavar="COLUMN")
    delimiter: str | None = flag(
        None, "what stands between the labels of a cell, itself or its name", metavar="MARK"
    )
    class_names: str | None = flag(
        None,
        "file with one name a line, or a,b,c: what labels may be",
        names=("--class-names", "--classes"),
        metavar="NAMES",
    )
    task: Task = TASK


@dataclass(frozen=True, kw_only=True)
class LabelsCheck(Concern):
    """Say what a table is, and whether a training on these images would take it."""

    file: str = flag(None, "table of labels", names="file", metavar="FILE")
    data_dir: str | None = flag(
        None,
        "folder of the images, at any depth, or a tar file: what the names in the table are "
        "relative to",
        metavar="DIR",
    )
    class_names: str | None = CLASS_NAMES
    task: Task = TASK
    against: str | None = flag(
        None,
        "another table, of labels or of predictions, that it is compared with",
        metavar="FILE",
    )
    output: Path | None = flag(
        None,
        "table of the labels as a training takes them, .csv and so on: those of a crowd combined "
        "(FILE?combine=HOW); with --against of the samples on which the two differ",
        metavar="FILE",
    )


@dataclass(frozen=True, kw_only=True)
class LabelsStats(Concern):
    """Say what a crowd has answered, who of it is how reliable, and how well its members agree."""

    files: Sequence[str] = flag(
        None, "tables of labels; several are one crowd", names="files", metavar="FILE"
    )
    class_names: str | None = CLASS_NAMES
    task: Task = TASK


@dataclass(frozen=True, kw_only=True)
class LabelsAudit(Concern):
    """Draw images of runs and write a page on which a person says what is on them; with the answers, say whether a
    student is better than the labels that it learned from, and which of several is best.
    """

    runs: Sequence[str] = flag(
        None,
        "folders of runs that have ended, and tables of labels (labels:FILE), of the same images",
        names="runs",
        metavar="RUN",
    )
    images: Count = flag(
        100,
        "images to draw, or, where an image may have several classes, questions about one of "
        "these; more of them include the fewer",
    )
    answers: str | None = ANSWERS
    data_dir: str | None = IMAGES_NOW
    task: Task = TASK
    plugins: Sequence[str] = PLUGINS


@dataclass(frozen=True, kw_only=True)
class LabelsNext(Concern):
    """Choose images of a run whose labels would teach the next student most, and write a page on which a person says
    what is on them; with the answers, write them as class folders and print the command that trains with them.
    """

    run: str = flag(None, "folder of a run that has ended", names="run", metavar="RUN")
    images: Count = flag(50, "images to draw; more of them include the fewer")
    answers: str | None = ANSWERS
    data_dir: str | None = IMAGES_NOW
    plugins: Sequence[str] = PLUGINS


@dataclass(frozen=True, kw_only=True)
class LabelsReview(Concern):
    """Choose labels of a run that are most likely wrong, and write a page on which a person says whether they are right;
    with the answers, write the images as a labelled set, and print the command that trains with them.
    """

    run: str = flag(None, "folder of a run that has ended", names="run", metavar="RUN")
    images: Count = flag(100, "labels to review")
    answers: str | None = ANSWERS
    data_dir: str | None = IMAGES_NOW
    plugins: Sequence[str] = PLUGINS


@dataclass(frozen=True, kw_only=True)
class LabelsExport(Concern):
    """Write what a teacher has said, a folder of --target-cache, as a table."""

    folder: Path = flag(None, "folder of stored answers", names="folder", metavar="FOLDER")
    output: Path = flag(None, "table, .npz", metavar="FILE", required=True)


@dataclass(frozen=True, kw_only=True)
class LabelsPush(Concern):
    """Publish labels as a dataset on the Hugging Face Hub, with a card."""

    path: str = flag(
        None, "table of labels, or folder of stored answers", names="path", metavar="PATH"
    )
    repo_id: str = REPO_ID
    license: str | None = flag(
        None, "license in the card (default: the card says nothing of it)", metavar="ID"
    )
    class_names: str | None = CLASS_NAMES
    task: Task = TASK
    private: bool = PRIVATE
    revision: str | None = REVISION
    commit_message: str | None = MESSAGE
    dry_run: bool = DRY_RUN


# ---------------------------------------------------------------- hub


@dataclass(frozen=True, kw_only=True)
class HubPush(Concern):
    """Publish the export of a run."""

    run: str = flag(
        None, "run folder, or its export/, which is published", names="run", metavar="RUN"
    )
    repo_id: str = REPO_ID
    private: bool = PRIVATE
    revision: str | None = REVISION
    hub_license: str | None = flag(
        None, "license in the card (default: what the run's card says)", metavar="ID"
    )
    commit_message: str | None = MESSAGE
    dry_run: bool = DRY_RUN


@dataclass(frozen=True, kw_only=True)
class HubCard(Concern):
    """Write the card of a run anew, with more figures."""

    run: Path = flag(None, "run folder", names="run", metavar="RUN")
    results: Sequence[Path] = flag(
        [],
        "figures of its student, from validate.py --results-file FILE --results-format json",
        names="results",
        metavar="FILE",
        nargs="*",
    )


@dataclass(frozen=True, kw_only=True)
class HubExport(Concern):
    """Write a model as a file of ONNX, checked against the model."""

    model: str = flag(
        None,
        "run folder, its export or checkpoint, hf-hub:ORG/NAME, or timm name",
        names="model",
        metavar="MODEL",
    )
    onnx: Path = flag(None, "file that is written", metavar="FILE", required=True)
    checkpoint: str | None = flag(None, "weights of MODEL: a file or a run folder", metavar="PATH")
    plugins: Sequence[str] = PLUGINS


# by the command, what it is for, and its sub-commands in the order of the help
SUBCOMMANDS: Mapping[str, tuple[str, Mapping[str, type[Concern]]]] = {
    "study": (
        "Plan and run experiments of many runs.",
        {"plan": StudyPlan, "run": StudyRun, "status": StudyStatus, "report": StudyReport},
    ),
    "labels": (
        "Labels: checked, written as tables, published. docs/labels.md says what a table looks like.",
        {
            "import": LabelsImport,
            "check": LabelsCheck,
            "stats": LabelsStats,
            "audit": LabelsAudit,
            "next": LabelsNext,
            "review": LabelsReview,
            "export": LabelsExport,
            "push": LabelsPush,
        },
    ),
    "hub": (
        "Describe models, publish them on the Hugging Face Hub, write them as files of ONNX.",
        {"push": HubPush, "card": HubCard, "export": HubExport},
    ),
}
