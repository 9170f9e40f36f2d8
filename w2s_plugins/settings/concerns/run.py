"""How a run is measured, where it is computed, and where it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from .. import terms
from ..field import HIDDEN, Concern, Count, Percent, ProperShare, Range, Role, Seed, Whole, flag
from ..forms import share_or_count


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Concern, role=Role.EVALUATION):
    """When and how the student is measured, and which epoch counts."""

    # how well it does, which is measured first
    no_teacher_eval: bool = flag(
        False,
        "do not measure teacher and student on the validation split before the first step",
        role=Role.REPORT,
    )
    # which epoch counts
    select: Literal["last", "best"] = flag(
        "last", "which epoch is exported and reported", role=Role.SELECTION, form="best"
    )
    ceiling_acc: Percent | None = flag(
        None,
        "top-1 of the student trained on ground truth, for the PGR",
        role=Role.REPORT,
        in_study="the study measures it",
    )
    val_interval: Count = flag(
        1, "epochs between evaluations", names=("--val-interval", "--eval-interval")
    )
    # more checkpoints than the best
    save_epochs: Sequence[Count] = flag(
        [], "keep milestone-N.pth.tar after N epochs, for each N; each is evaluated too"
    )
    # what is measured
    eval_metric: Literal[
        "top1", "top5", "loss", "agreement", "few-shot", "map", "micro_f1", "macro_f1", "sample_f1"
    ] = flag(
        "top1",
        "metric that ranks checkpoints: top1, top5, loss, agreement (with --teacher), few-shot "
        "(the first kind of --few-shot-eval); with --task multilabel map (its default), micro_f1, "
        "macro_f1, sample_f1",
        role=Role.STUDENT | Role.SELECTION,
    )
    multilabel_threshold: ProperShare = flag(
        0.5,
        "probability from which on an image has a class, with --task multilabel",
        idle="--task classification",
        evaluation="multilabel_threshold",
    )
    # groups of classes by how often they occur in training
    long_tail: str = flag(
        "auto",
        "also measure accuracy on classes with many, medium and few training samples: always, "
        "never, or auto, where the training split has both many- and few-shot ones (more than "
        "100, fewer than 20); FEW:MANY, such as 20:100: auto with other numbers",
        metavar="WHEN",
        idle=terms.NO_EVALUATION,
        evaluation="long_tail",
    )
    # several views of an image
    tta: Whole = flag(0, "test-time augmentations, as consecutive samples", idle="--linear-probe")


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Concern, role=Role.TRAINING):
    """Device, precision, processes and compilation."""

    # memory layout, and fast layers
    channels_last: bool | None = flag(
        None,
        "channels_last memory layout (default: for convolutional networks on a CPU, and on CUDA "
        "with --amp or in half precision)",
        idle=("--linear-probe", "--fsdp"),
        neutral=False,
        evaluation="channels_last",
    )
    fuser: Literal["", "te", "old", "legacy", "nvfuser", "nvf"] = flag(
        "", "TorchScript fuser: te, old, nvfuser", metavar="NAME"
    )
    fast_norm: bool = flag(False, "timm's fast normalisation layers")
    # compilation
    torchcompile_mode: str | None = flag(None, "mode of torch.compile")
    torchcompile: str | None = flag(
        None,
        "compile the model with torch.compile",
        metavar="BACKEND",
        nargs="?",
        const="inductor",
        idle="--linear-probe",
        one_of="compiler",
    )
    # where, and in which precision
    device: str = flag("cuda", "device; without CUDA the CPU is used", role=Role.WHERE)
    amp: bool = flag(False, "mixed precision", evaluation="amp")
    amp_dtype: Literal["float16", "bfloat16"] = flag(
        "float16",
        "dtype of mixed precision: float16 or bfloat16 (on a CPU bfloat16 unless given)",
        evaluation="amp_dtype",
    )
    model_dtype: Literal["float32", "float16", "bfloat16"] | None = flag(
        None, "dtype of the model without mixed precision", evaluation="model_dtype"
    )
    # several processes
    no_ddp_bb: bool = flag(False, "DDP does not broadcast buffers")
    fsdp: bool = flag(
        False, "shard the student over all processes (docs/scale.md)", idle="--linear-probe"
    )
    synchronize_step: bool = flag(False, "wait for the device after every update", role=Role.REPORT)
    # to the last bit
    deterministic: bool = flag(
        False,
        "on CUDA: the same command gives the same weights to the last bit, in more time "
        "(docs/scale.md)",
    )
    # accelerators that torch does not know by itself
    device_modules: Sequence[str] | None = flag(
        None, "Python modules of device backends to import", role=Role.WHERE, metavar="MODULE"
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(Concern, role=Role.REPORT):
    """Where a run lies, how it goes on, and what is shown and published of it."""

    # where a run goes on that was stopped
    resume: str = flag(
        "",
        "continue a run from a checkpoint or a run folder; auto: from the run's own folder, where "
        "there is one",
        role=Role.WHERE,
        metavar="PATH",
        form="PATH",
        in_study="it always goes on",
    )
    no_resume_opt: bool = flag(
        False, "resume the weights only, not the optimizer", role=Role.RESUMING
    )
    start_epoch: Whole | None = flag(
        None, "number of the first epoch", role=Role.RESUMING | Role.SCHEDULE
    )
    stop_epoch: Whole | None = flag(
        None,
        "stop after this epoch; the schedule stays that of --epochs",
        role=Role.RESUMING | Role.SCHEDULE,
    )
    # both are for people who write code of their own
    plugins: Sequence[str] = flag(
        [], "Python modules or files to import; runs their code", metavar="MODULE"
    )
    nan_patience: Count = flag(
        10, "bad (NaN or infinite) steps in a row, each skipped, before the run stops"
    )
    # what is written beside the log
    log_tensorboard: bool = flag(False, "write TensorBoard events to the run folder")
    # all that is drawn depends on it
    seed: Seed = flag(42, "random seed", role=Role.TUNING, in_study="the key seeds")
    # how often something is logged, measured and saved
    log_interval: Count = flag(50, "updates between log lines")
    recovery_interval: Whole = flag(0, "updates between recovery checkpoints")
    checkpoint_hist: Count = flag(10, "checkpoints of the best epochs that are kept")
    save_images: bool = flag(False, "save the images of logged batches", idle="--linear-probe")
    # the folder of the run
    output: str = flag(
        "",
        "folder of runs (default: ./output/train)",
        role=Role.WHERE,
        metavar="DIR",
        in_study="the --output of `study run`",
    )
    experiment: str = flag(
        "",
        "name of the run folder (default: time and model)",
        role=Role.WHERE,
        in_study="the study names its runs",
    )
    # services that show it
    log_wandb: bool = flag(False, "log to Weights & Biases")
    wandb_project: str | None = flag(None, "its project")
    wandb_tags: Sequence[str] = flag([], "its tags", metavar="TAG")
    wandb_resume_id: str = flag(
        "",
        "its run to continue, another than the one that --resume continues by itself",
        metavar="ID",
    )
    # publication of the end
    push_to_hub: str | None = flag(
        None,
        "publish the exported student on the Hugging Face Hub",
        role=Role.REPORT | Role.STUDENT,
        metavar="ORG/NAME",
        in_study="publish the run you choose by `hub push`",
    )


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings(Concern, role=Role.PROTOCOL):
    """Several runs that belong together."""

    # teacher, ceiling and student in one command; its relatives exclude it
    protocol: Literal["w2s"] | None = flag(
        None,
        "w2s: train the teacher on the first part of the training slice, the ceiling and the "
        "student on the second, and report the performance gap recovered with its interval; needs "
        "--experiment NAME, the folder of the three",
        form="w2s",
        in_study="the keys weak and strong",
        one_of="several runs",
    )
    weak_fraction: float | int = flag(
        0.5,
        "the teacher's part with --protocol: a share (0.5) or a count (500); 0 for a teacher that "
        "is trained already, --teacher NAME with its pretrained weights among them: the student "
        "then has all of --train-slice",
        read=share_or_count,
        needs="protocol",
    )
    # how the two others are trained, where it differs
    weak_config: Sequence[str] = flag(
        [],
        "YAML files with the flags in which the teacher's training differs with --protocol",
        metavar="FILE",
        needs="protocol",
        in_study="`flags` of an item of weak",
    )
    ceiling_config: Sequence[str] = flag(
        [],
        "YAML files with the flags in which the ceiling's training differs with --protocol: what "
        "a student learns best from true labels with",
        metavar="FILE",
        needs="protocol",
        in_recipes=True,
    )
    ceiling_checkpoint: str | None = flag(
        None,
        "run folder of a ceiling that another --protocol run has trained, with the same student, "
        "flags and samples, in place of training it again; --teacher-checkpoint RUN does so for "
        "the teacher",
        metavar="RUN",
        needs="protocol",
        in_study="the study trains it",
    )
    # what the student is to be compared with
    controls: Sequence[Literal["direct", "same-size", "strong-to-strong"]] = flag(
        [],
        "with --protocol, also train what its student is to be compared with: direct (the "
        "student's model on the teacher's own labelled part), same-size (the teacher's model on "
        "the weak labels), strong-to-strong (the student's model on the labels of direct)",
        metavar="NAME",
        needs="protocol",
        form="NAME",
        in_study="the key controls",
    )
    # several students one after the other, or one a fold
    stages: str | None = flag(
        None,
        "train several students one after the other, each of which may label for the next or hand "
        "its weights on: a YAML list (docs/students.md); needs --experiment NAME, the folder of "
        "all",
        metavar="FILE",
        in_study="the key strong",
        one_of="several runs",
    )
    folds: Annotated[int, Range(2, 1000)] | None = flag(
        None,
        "cut the training slice into N parts, train a model on all but each, and write what it "
        "says of the part that it has not seen as a table of labels (docs/labels.md); needs "
        "--experiment NAME, the folder of all",
        in_study="it trains no student",
        one_of="several runs",
    )


@dataclass(frozen=True, kw_only=True)
class CommandSettings(Concern, role=Role.REPORT):
    """What the command does beside a run."""

    # these answer at once, in place of a training
    list_losses: bool = flag(
        False,
        "list the distillation losses with their kwargs, and exit",
        in_study="it trains nothing",
    )
    # set by launchers that are older than torchrun
    local_rank: int = flag(
        0,
        "set by old launchers; torchrun's environment wins",
        role=Role.WHERE,
        names="--local_rank",
    )
    use_multi_epochs_loader: bool = flag(False, HIDDEN, role=Role.WHERE)


@dataclass(frozen=True, kw_only=True)
class Debugging(Concern, role=Role.REPORT):
    """What every command has."""

    # of every command
    debug: bool = flag(False, "show the traceback of errors")
