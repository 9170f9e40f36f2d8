"""A program is a list of concerns, whose flags its help shows in groups."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .concerns import (
    AliasSettings,
    CommandSettings,
    ComputeSettings,
    DataSettings,
    Debugging,
    EpisodeSettings,
    EvaluatedSettings,
    EvaluationSettings,
    InputSettings,
    LabelSettings,
    LossSettings,
    OptimSettings,
    Prediction,
    ProtocolSettings,
    RefusedSettings,
    ReportSettings,
    RunSettings,
    StudentSettings,
    SubjectSettings,
    ViewSettings,
    WeakTeacherSettings,
)
from .field import Concern, Flag, Flags, flags_of


@dataclass(frozen=True)
class Program:
    """A command of this project.

    Args:
        prog: how it is called.
        help: what it does.
        groups: its flags by the title of their group, in the order of the help.
        usage: argparse's; None makes one of the flags.
    """

    prog: str
    help: str
    groups: Mapping[str, Sequence[Flag]]
    usage: str | None = None

    @functools.cached_property
    def flags(self) -> Flags:
        """All flags by their names."""
        return Flags({flag.name: flag for group in self.groups.values() for flag in group})


def _in_groups(
    concerns: Iterable[type[Concern]], groups: Mapping[str, str]
) -> dict[str, list[Flag]]:
    """Return the flags of some concerns by the title of their group.

    A group names flags. Each brings those with it that are declared behind it in its concern, as far as the next that a
    group names: a new flag stands in the help where it is declared.
    """
    named = {name for names in groups.values() for name in names.split()}
    runs: dict[str, list[Flag]] = {}
    for concern in concerns:
        first = ""
        for flag in flags_of(concern):
            first = flag.name if flag.name in named else first
            runs.setdefault(first, []).append(flag)
    return {
        title: [flag for name in names.split() for flag in runs[name]]
        for title, names in groups.items()
    }


@functools.cache
def train_program() -> Program:
    """The command ``train_w2s.py``."""
    concerns = (
        DataSettings,
        InputSettings,
        EpisodeSettings,
        LabelSettings,
        ViewSettings,
        WeakTeacherSettings,
        LossSettings,
        StudentSettings,
        OptimSettings,
        EvaluationSettings,
        ComputeSettings,
        RunSettings,
        ProtocolSettings,
        CommandSettings,
        Debugging,
        AliasSettings,
        RefusedSettings,
    )
    groups = {
        "data": "data data_dir",
        "model": "model for_transformers resume img_size num_classes gp batch_size "
        "grad_accum_steps grad_checkpointing channels_last model_kwargs torchcompile_mode "
        "torchscript torchcompile head_init_scale",
        "weak teacher": "teacher no_teacher_eval",
        "distillation loss": "loss list_losses",
        "weak-to-strong protocol": "protocol train_slice select select_split ceiling_acc",
        "few-shot learning": "few_shot_eval",
        "noisy labels": "label_noise",
        "optimizer": "opt",
        "learning-rate schedule": "sched epoch_repeats start_epoch decay_milestones",
        "augmentation and regularisation": "no_aug jsd_loss bce_sum reprob smoothing "
        "train_interpolation drop",
        "batch norm": "bn_momentum",
        "average of the weights": "model_ema",
        "device and precision": "device local_rank device_modules",
        "run": "plugins debug nan_patience",
        "logging, checkpoints, loading": "seed worker_seeding log_interval val_interval "
        "recovery_interval workers save_images eval_metric log_wandb train_img_sizes "
        "variable_batch_loss_scale",
        "Hugging Face Hub": "push_to_hub",
        "timm's own distillation": "kd_model_name",
        "flags of the released code of Vision Superalignment": "distiller",
        "NaFlex": "naflex_loader use_multi_epochs_loader",
    }
    return Program(
        "train_w2s.py",
        "Train a strong student on what a weak teacher says. Takes every flag of timm's train.py.",
        _in_groups(concerns, groups),
        "%(prog)s [--config FILE ...] [--teacher NAME] [--model NAME] [--loss NAME] [options]",
    )


@functools.cache
def validate_program() -> Program:
    """The command ``validate.py``, of which these flags are its own, or those of a run."""
    groups = {
        "teacher and ceiling": "teacher teacher_checkpoint prompts teacher_img_size "
        "teacher_kwargs ceiling_acc plugins debug",
        "data": "data data_dir dataset split task val_labels val_slice slice_seed num_samples "
        "dataset_download class_map class_list input_img_mode input_key target_key target_format "
        "decoder dataset_trust_remote_code workers pin_mem no_prefetcher batch_size crop_mode "
        "crop_border_pixels tf_preprocessing",
        "model": "model pretrained checkpoint use_ema img_size in_chans input_size crop_pct mean "
        "std interpolation num_classes gp use_train_size channels_last fuser fast_norm "
        "model_kwargs torchcompile_mode torchscript torchcompile num_gpu test_pool reparam "
        "aot_autograd device amp amp_dtype model_dtype",
        "few-shot learning": "few_shot queries",
        "report": "log_freq results_file results_format real_labels valid_labels retry seed "
        "metrics_avg long_tail multilabel_threshold naflex_loader naflex_max_seq_len",
    }
    known = Flags(train_program().flags)
    for concern in (EvaluatedSettings, SubjectSettings, ReportSettings):
        known |= {flag.name: flag for flag in flags_of(concern)}
    return Program(
        "validate.py",
        "Evaluate a model, with or without its teacher. Takes every flag of timm's validate.py.",
        {title: [known[name] for name in names.split()] for title, names in groups.items()},
        "%(prog)s [--model NAME] [--checkpoint PATH] [--data-dir DIR] [options]",
    )


@functools.cache
def predict_program() -> Program:
    """The command ``python -m w2s_plugins.predictions``."""
    groups = {
        "model and images": "model",
        "what is written": "output",
        "how it is done": "batch_size debug",
    }
    return Program(
        "python -m w2s_plugins.predictions",
        "Write down what a model says of images without labels, or its features of them. The "
        "table is a file of labels: whatever reads those reads it (docs/labels.md). An "
        "interrupted prediction goes on where it stopped; torchrun shares it.",
        _in_groups((Prediction, Debugging), groups),
    )
