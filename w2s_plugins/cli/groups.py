"""The argument groups of the two scripts. timm's flags keep timm's names, defaults and meanings."""

import argparse
import re
from pathlib import Path

from .declare import SAME, Declare, Role
from .values import find_export, split_names


class TargetKinds(tuple):
    """Choices of ``--teacher-targets``; the N of cached-views:N is a number from 1 to 9999."""

    def __contains__(self, text: object) -> bool:
        return text in ("online", "cached") or bool(re.fullmatch(r"cached-views:[1-9]\d{0,3}", str(text)))


CONTROLS = ("direct", "same-size", "strong-to-strong")  # of a protocol
SCHEDULERS = "constant cosine multistep none plateau poly rsqrt step tanh wsd"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
IMAGE_MODES = "1 CMYK F HSV I I;16 I;16B I;16L I;16N L LA LAB La P PA RGB RGBA RGBX RGBa YCbCr"  # of Pillow
SHARE = dict(low=0, high=1)
TARGET_KINDS = TargetKinds(("online", "cached", "cached-views:N with N = 1, 2, ..."))


def share_or_count(text: str) -> float | int:
    """A share such as 0.1, or a count such as 500."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}': expected a share such as 0.1, or a count such as 500") from error


def teacher_names(text: str) -> str:
    """Names of teachers; a path to the folder of a run, or of an export, becomes ``local-dir:FOLDER``."""
    exports = {name: find_export(Path(name)) for name in split_names(text) if "/" in name and ":" not in name}
    return ",".join(exports.get(name) or name for name in split_names(text))


# ---------------------------------------------------------------- weak-to-strong


def add_teacher(add: Declare) -> None:
    # who labels, and with which weights
    add("--teacher", teacher_names,
        "weak teacher: timm name, hf-hub:ORG/NAME[@REV], local-dir:PATH, the folder of a run, hf:ORG/NAME[@REV] "
        "or hf:FOLDER (transformers), clip:MODEL/PRETRAINED (open_clip), onnx:FILE, labels:PATH, "
        "labels:hf://datasets/ORG/NAME[@REV] (docs/labels.md has what may follow after a ?), or MODULE:FUNCTION of "
        "--plugins; several, separated by commas, are an ensemble (mean of probabilities)",
        metavar="NAME[,NAME]", in_study="the key weak")
    add("--teacher-checkpoint", "--teacher-pretrained", str,
        "weights of the teacher: a .safetensors, .pth or .pth.tar file, or a run folder",
        metavar="PATH[,PATH]", role=Role.TEACHER | Role.TUNING, needs="teacher", form="PATH",
        in_study="`checkpoint` of an item of weak")
    add_opening(add)
    # when it is asked, and what is kept of its answers
    add("--teacher-targets", "online",
        "online: the teacher sees every training view; cached: it labels each image once, before training; "
        "cached-views:N: it labels the views of N epochs before training, after which the views repeat",
        metavar="KIND", choices=TARGET_KINDS)
    add("--target-cache", "output/targets",
        "where cached targets are kept; other runs with the same data and teacher find them there",
        metavar="DIR", role=Role.WHERE)
    add("--teacher-cache-dtype", "float16", "dtype of cached logits", choices="float16 float32")
    add("--teacher-topk", int,
        "cache the K largest logits of a sample only; the other classes share the rest of the probability evenly")
    # what is made of the answers before the student sees them
    add("--refine-labels",
        help="train on the mean of the teacher's answers and of what a linear discriminant of the student's own "
        "features, fitted before training, makes of them (see docs/recipe.md); it needs --teacher-targets cached "
        "or cached-views:N, or labels:PATH",
        needs="teacher", action=argparse.BooleanOptionalAction)
    # several teachers
    add("--teacher-assign", "mean",
        "of several teachers use the mean, or for each sample the one nearest to the student's prediction",
        choices="mean student")
    # how well it does, which is measured first
    add("--no-teacher-eval", False,
        "do not measure teacher and student on the validation split before the first step",
        role=Role.REPORT)


def add_opening(add: Declare) -> None:
    """How a teacher is opened: shared by training and validation."""
    add("--prompts", str,
        "with --teacher clip:...: templates with {} for the name of a class, a file with one a line, or texts "
        "separated by | (default: seven kinds of photo)",
        metavar="FILE|TEXT", needs="teacher")
    add("--teacher-img-size", int,
        "input size of the teacher (default: its own)",
        low=1, in_study="img_size of an item of weak")
    add("--teacher-kwargs", {},
        "arguments of the teacher's constructor",
        in_study="model_kwargs of an item of weak")


def add_loss(add: Declare) -> None:
    tuned = add.of(Role.TEACHER | Role.TUNING)
    # how the student learns from the teacher
    tuned("--loss", str,
        "a distillation loss (see --list-losses; default with a teacher: adaptconf), or one of timm's criteria "
        "for supervised training (ce, bce, asl, poly, jsd)",
        in_study="the key losses")
    tuned("--loss-kwargs", {},
        "hyper-parameters of the distillation loss",
        in_study="kwargs under losses")
    # and from ground truth, with which weight
    add("--task-loss", str,
        "criterion on ground truth beside a distillation loss (default: ce)",
        role=Role.TRAINING)
    tuned("--task-loss-weight", float,
        "weight of the criterion on ground truth; 0 trains on the weak labels alone. Given alone, the "
        "distillation weight is 1 - W (default: both 1)")
    tuned("--distill-loss-weight", float, "weight of the distillation loss")
    add("--list-losses", False,
        "list the distillation losses with their kwargs, and exit",
        role=Role.REPORT, in_study="it trains nothing")


def add_protocol(add: Declare) -> None:
    selection = add.of(Role.SELECTION)
    several = add.exclusive()
    # teacher, ceiling and student in one command; its relatives exclude it
    several("--protocol", str,
        "w2s: train the teacher on the first part of the training slice, the ceiling and the student on the "
        "second, and report the performance gap recovered with its interval; needs --experiment NAME, the folder "
        "of the three",
        choices="w2s", form="w2s", in_study="the key protocols")
    add("--weak-fraction", 0.5,
        "the teacher's part with --protocol: a share (0.5) or a count (500); 0 for a teacher that is trained "
        "already, --teacher NAME with its pretrained weights among them: the student then has all of "
        "--train-slice",
        type=share_or_count, needs="protocol")
    add("--weak-config", [],
        "YAML files with the flags in which the teacher's training differs with --protocol",
        metavar="FILE", needs="protocol", in_study="`flags` of an item of weak")
    add("--ceiling-config", [],
        "YAML files with the flags in which the ceiling's training differs with --protocol: what a student "
        "learns best from true labels with",
        metavar="FILE", needs="protocol", in_recipes=True)
    add("--ceiling-checkpoint", str,
        "run folder of a ceiling that another --protocol run has trained, with the same student, flags and "
        "samples, in place of training it again; --teacher-checkpoint RUN does so for the teacher",
        metavar="RUN", needs="protocol", in_study="the study trains it")
    # what the student is to be compared with
    add("--controls", [],
        "with --protocol, also train what its student is to be compared with: direct (the student's model on the "
        "teacher's own labelled part), same-size (the teacher's model on the weak labels), strong-to-strong (the "
        "student's model on the labels of direct)",
        metavar="NAME", choices=CONTROLS, needs="protocol", form="NAME", in_study="the key controls")
    # several students one after the other, or one a fold
    several("--stages", str,
        "train several students one after the other, each of which may label for the next or hand its weights "
        "on: a YAML list (docs/students.md); needs --experiment NAME, the folder of all",
        metavar="FILE", in_study="the key strong")
    several("--folds", int,
        "cut the training slice into N parts, train a model on all but each, and write what it says of the part "
        "that it has not seen as a table of labels (docs/labels.md); needs --experiment NAME, the folder of all",
        low=2, in_study="it trains no student")
    # which samples are trained on and measured
    add("--train-slice", str,
        "class-stratified part of the training split: fractions (0:0.3, 0.3:1.0) or counts (0:40, 40:), or "
        "several, separated by commas; slices that do not overlap are disjoint",
        metavar="A:B", role=Role.SLICE)
    add("--epoch-slice", str,
        "an epoch has at least as many samples as this part of the training split: those of a smaller "
        "--train-slice come round again, so that few samples get as many updates",
        metavar="A:B", role=Role.TRAINING)
    add_val_slice(add)
    add_test_sets(add)
    # which epoch counts
    selection("--select", "last", "which epoch is exported and reported", choices="last best", form="best")
    selection("--select-split", share_or_count,
        "hold out this share (0.1) or count (500) of the training slice and let it, not the validation split, "
        "choose the best epoch",
        needs="select")
    add("--ceiling-acc", float,
        "top-1 of the student trained on ground truth, for the PGR",
        role=Role.REPORT, low=0, high=100, in_study="the study measures it")


def add_val_slice(add: Declare) -> None:
    """A part of the split to evaluate on: shared by training and validation."""
    taken = add.of(Role.DATA, evaluation=SAME)
    taken("--val-slice", str,
        "evaluate on this part of the split only, cut as --train-slice cuts: of one split, 0:40000 can be "
        "trained on and 40000: evaluated on",
        metavar="A:B", role=Role.SLICE)
    taken("--slice-seed", 0,
        "seed of the slices, the same for teacher and student",
        role=Role.DATA | Role.SEED)


def add_test_sets(add: Declare) -> None:
    """Further test sets: shared by training and validation."""
    taken = add.of(Role.EVALUATION | Role.TESTS, evaluation=SAME)
    taken("--val-sets", [],
        "also measure on these test sets at the end: a folder of class folders, a tar file, or TYPE/NAME:SPLIT; "
        "their classes are matched by name and may be fewer (ImageNet-A, -R, -V2, -Sketch)",
        metavar="NAME=PATH", role=Role.EVALUATION | Role.TESTS | Role.PLACE)


def add_few_shot(add: Declare) -> None:
    """Evaluation on episodes of novel classes, and training on episodes."""
    classes = add.of(Role.EVALUATION | Role.EPISODES | Role.PLACE)
    # in every evaluation
    add("--few-shot-eval", str,
        "in every evaluation, test the frozen encoder on E (2000) episodes of N classes with K labelled images "
        "each, e.g. 5x1,5x5",
        metavar="NxK[,NxK][:E]", form="NxK")
    classes("--few-shot-split", "novel",
        "split of the classes of these episodes",
        needs="few_shot_eval", evaluation="split")
    classes("--few-shot-class-list", str,
        "its classes, where the split has others too (as --class-list)",
        needs="few_shot_eval", evaluation="class_list")
    add_episode_test(add)
    # in training
    add("--episodic", str,
        "train on E (4) episodes a batch, per process, of N classes with K labelled images each: a cosine "
        "classifier with a learnt scale, distillation on the logits of the queries (--train-batches-per-epoch: "
        "batches in an epoch, 200)",
        metavar="NxK[:E]", role=Role.TRAINING, form="NxK")


def add_episode_test(add: Declare) -> None:
    """Test episodes: shared by training and validation."""
    taken = add.of(Role.EVALUATION | Role.EPISODES, evaluation=SAME)
    taken("--few-shot-seed", 0,
        "seed of the test episodes, the same for every model",
        role=Role.EVALUATION | Role.EPISODES | Role.SEED, needs="few_shot_eval few_shot")
    taken("--queries", 15,
        "images of each class of an episode to be classified",
        low=1, needs="few_shot_eval episodic few_shot")


def add_labels(add: Declare) -> None:
    student = add.of(Role.STUDENT)
    # other labels in place of the true ones
    add("--label-noise", str,
        "labels of the training split: symmetric:0.2, asymmetric:0.4 (:FILE, json or yaml: class to the class it "
        "is taken for, which is known of CIFAR-10 and CIFAR-100), pairflip:0.45, or labels:FILE[#COLUMN], those "
        "of a table; the validation split keeps its own")
    add("--noise-seed", 0,
        "seed of the label noise, the same for teacher and student whatever their --seed",
        role=Role.NOISE | Role.SEED, low=0, high=2 ** 32 - 1)
    # samples whose label is likely right, for the student alone
    student("--clean-select", str,
        "train on the samples whose label is likely right: knn:K (it is that of most of the K nearest "
        "neighbours); or of which a model is sure: entropy:R (the share R with the lowest entropy), confidence:P "
        "(at least that probable); or file:PATH (those that an earlier run selected)")
    student("--clean-select-model", str,
        "model whose features or answers decide: timm name, hf-hub:ORG/NAME, local-dir:PATH or a run folder "
        "(default: the teacher); PATH has its weights, a file or a run folder",
        metavar="NAME[=PATH]", needs="clean_select")


def add_hub(add: Declare) -> None:
    pushed = add.of(Role.REPORT | Role.STUDENT)
    pushed("--push-to-hub", str,
        "publish the exported student on the Hugging Face Hub",
        metavar="ORG/NAME", in_study="publish the run you choose: python -m w2s_plugins.hub push")
    add("--hub-private", False, "create the repository as a private one")
    add("--hub-revision", str, "branch to push to")


def add_run(add: Declare) -> None:
    add_plugins(add)
    add("--nan-patience", 10, "bad (NaN or infinite) steps in a row, each skipped, before the run stops", low=1)
    add("--log-tensorboard", False, "write TensorBoard events to the run folder")


# the arguments of losses that flags of the released code set, by the loss
RELEASED_KWARGS = {
    "--superalignment-rate": {"augconf": "ramp"},
    "--superalignment-threshold": {"adaptconf": "temperature", "augconf": "alpha"},
    "--dkd-alpha": {"dkd": "alpha"},
    "--dkd-beta": {"dkd": "beta"},
    "--dkd-temperature": {"dkd": "temperature"},
    "--rkd-distance-weight": {"rkd": "distance_weight"},
    "--rkd-angle-weight": {"rkd": "angle_weight"},
    "--rkd-eps": {"rkd": "eps"},
}


def add_released_code(add: Declare) -> None:
    """Flags of the released code of Vision Superalignment that have no counterpart of the same name."""
    tuned = add.of(Role.TEACHER | Role.ALIAS | Role.TUNING)
    alias = add.of(Role.ALIAS)
    add("--distiller", str,
        "as --loss, with that code's defaults; vanilla: no distillation",
        in_study="the key losses")
    # as flags of ours, with other defaults
    tuned("--gt-loss-weight", float, "as --task-loss-weight; leaves the other weight at 1")
    tuned("--kd-loss-weight", float, "as --distill-loss-weight")
    # arguments of losses
    for name, sets in RELEASED_KWARGS.items():
        told = ", ".join(f"{kwarg} of {loss}" for loss, kwarg in sets.items())
        add(name, float, told, sets=sets)
    add("--rkd-squared", False, "squared distances in rkd", sets={"rkd": "squared"})
    add("--fitnet-stage", int, "stages of fitnet, counted from 1", nargs="+")
    add("--fitnet-loss-weight", float, "weight of fitnet")
    # of its evaluation, and without effect here
    alias("--speedtest", False, "as --val-split '' --no-teacher-eval")
    alias("--eval-interval-end", float, "taken, and without effect")
    alias("--model-name", str, "taken, and without effect")


def add_timm_distillation(add: Declare) -> None:
    add("--kd-model-name", str, "teacher of timm's own distillation tasks", in_study="the key weak")
    # timm's own tasks, with timm's own flags
    add("--kd-distill-type", "logit",
        "timm's distillation task: logits, pooled features, or a distillation token",
        choices="logit feature token")
    add("--kd-loss-type", "kl", "loss of timm's logit distillation; timm knows kl only", choices="kl")
    add("--kd-temperature", 4.0,
        "softmax temperature of distillation; given by hand, it also sets a --loss's temperature",
        role=Role.TEACHER | Role.TUNING)
    add("--kd-student-feature-dim", int, "width of the student's features (default: detected)")
    add("--kd-teacher-feature-dim", int, "width of the teacher's features (default: detected)")
    add("--kd-token-distill-type", "soft", "target of the distillation token", choices="soft hard")


# ---------------------------------------------------------------- timm's training script


def add_dataset(add: Declare) -> None:
    folder = add.of(Role.WHERE | Role.DATA | Role.PLACE)
    named = add.of(Role.DATA | Role.PLACE)
    add_folder(folder)
    # images without labels, and the classes that they are to have
    folder("--unlabeled", str,
        "train on images without labels: a folder, at any depth, a tar file, or several; shards as wds/PATH or "
        "hfids/ORG/NAME; or a split whose labels are not looked at, torch/stl10:unlabeled; needs a --teacher, "
        "and sets --task-loss-weight 0, if that is not given; --data-dir or --dataset beside it give the "
        "validation split and, with --task-loss-weight, labelled samples for each batch",
        metavar="PATH[,PATH]")
    add("--labeled-share", 0.25,
        "share of each batch that is labelled, with --unlabeled and --task-loss-weight: at least one sample, and "
        "not all",
        role=Role.DATA | Role.TUNING, **SHARE, needs="task_loss_weight gt_loss_weight")
    named("--class-names", str,
        "names of the classes in their order: a text file with one a line, a json list, or the names themselves "
        "(default: those of the data; for --unlabeled those of the teacher, else of a labelled split)",
        metavar="FILE|A,B,C")
    # a data set by its name, and its splits
    named("--dataset", "-d", "",
        "TYPE/NAME, e.g. torch/cifar100, hfds/ORG/NAME, wds/..., w2s/digits; inat2018 or inat2021: json lists; "
        "empty: image folders or tar files",
        evaluation="dataset")
    named("--train-split", "train", "training split")
    named("--val-split", "validation", "validation split; empty: no evaluation", evaluation="split")
    add("--train-num-samples", int, "size of the training split of an iterable dataset")
    add("--val-num-samples", int,
        "size of the validation split of an iterable dataset",
        evaluation="num_samples")
    add_reading(add)


def add_folder(add: Declare) -> None:
    """Where the images are: shared by training and validation."""
    add("data", str, "folder of the data (as --data-dir)", metavar="DIR", nargs="?", in_study="data_dir")
    add("--data-dir", str,
        "folder of the data (default: the one that IMAGENET_DIR names)",
        metavar="DIR", evaluation=SAME)


def add_reading(add: Declare) -> None:
    """How samples are read: shared by training and validation."""
    taken = add.of(Role.DATA, evaluation=SAME)
    where = add.of(Role.WHERE)
    named = taken.of(Role.DATA | Role.PLACE)
    where("--dataset-download", False, "allow torch/ and tfds/ datasets to download themselves")
    named("--class-map", "",
        "file that maps class names to indices",
        metavar="FILE")
    named("--class-list", str,
        "use these classes only: a file with one name a line, or a list of the package such as miniimagenet/base")
    taken("--image-root", str,
        "folder that the names of images in the lists of inat2018 and inat2021 are relative to (default: "
        "--data-dir)",
        metavar="DIR", role=Role.WHERE | Role.DATA | Role.PLACE)
    # of one sample: where its image is, and how it is decoded
    taken("--input-img-mode", str,
        "PIL mode that images are converted to",
        metavar="MODE", choices=IMAGE_MODES)
    taken("--input-key", str, "column of the images")
    taken("--target-key", str, "column of the labels")
    taken("--decoder", "pil",
        "what decodes images and makes the first crop or resize; fast: torchvision for JPEG files, whose pixels "
        "differ by rounding, Pillow for everything else",
        choices="pil fast")
    where("--dataset-trust-remote-code", False, "let a Hub dataset run code from its repository")


def add_input(add: Declare) -> None:
    """Input size and normalisation: shared by training and validation."""
    taken = add.of(Role.INPUT, evaluation=SAME)
    shaping = taken.of(Role.INPUT | Role.SHAPE)
    shaping_model = taken.of(Role.MODEL | Role.SHAPE)
    # size, which the weights may depend on
    shaping("--img-size", int,
        "image size (default: the model's); also resizes ViTs",
        low=1, for_teacher="teacher_img_size")
    shaping("--in-chans", int, "input channels", low=1)
    shaping("--input-size", int, "channels, height, width", nargs=3, low=1)
    # crop and normalisation, the model's own unless given
    taken("--crop-pct", float, "centre crop of validation images", low=1e-06)
    taken("--mean", float, "mean that images are normalised with", nargs="+")
    taken("--std", float, "standard deviation that images are normalised with", nargs="+")
    taken("--interpolation", "",
        "interpolation when resizing",
        metavar="NAME", choices=("", *INTERPOLATIONS))
    # the head
    shaping_model("--num-classes", int,
        "number of classes (default: that of the data, else the model's)")
    shaping_model("--gp", str, "global pooling: fast, avg, max, avgmax, catavgmax")


def add_execution(add: Declare) -> None:
    """How the model is run: shared by training and validation."""
    add = add.of(Role.TRAINING)
    add("--channels-last", False, "channels_last memory layout", evaluation="channels_last")
    add("--fuser", "",
        "TorchScript fuser: te, old, nvfuser",
        metavar="NAME", choices=("", "te", "old", "legacy", "nvfuser", "nvf"))
    add("--fast-norm", False, "timm's fast normalisation layers")
    add("--model-kwargs", {},
        "arguments of the model's constructor",
        role=Role.MODEL | Role.START | Role.SHAPE, evaluation="model_kwargs", for_teacher="teacher_kwargs")
    # compilation
    add("--torchcompile-mode", str, "mode of torch.compile")
    scripting = add.exclusive()
    scripting("--torchscript", False, "compile the model with TorchScript")
    scripting("--torchcompile", str,
        "compile the model with torch.compile",
        metavar="BACKEND", nargs="?", const="inductor")


def add_precision(add: Declare) -> None:
    add = add.of(Role.TRAINING)
    where = add.of(Role.WHERE)
    where("--device", "cuda", "device; without CUDA the CPU is used")
    add("--amp", False, "mixed precision", evaluation="amp")
    add("--amp-dtype", "float16",
        "dtype of mixed precision: float16 or bfloat16 (on a CPU bfloat16 unless given)",
        choices="float16 bfloat16", evaluation="amp_dtype")
    add("--model-dtype", str,
        "dtype of the model without mixed precision",
        choices="float32 float16 bfloat16", evaluation="model_dtype")
    where("--dist-timeout", 600,
        "seconds that an exchange between processes may take before it fails",
        type=float)


def add_model(add: Declare) -> None:
    start = add.of(Role.START)
    where = add.of(Role.WHERE)
    add("--model", "resnet50",
        "strong student, a timm name or hf-hub:ORG/NAME",
        role=Role.MODEL | Role.SHAPE | Role.PLACE, evaluation="model", for_teacher="teacher")
    # where the weights begin
    start("--pretrained", False, "start from the model's pretrained weights")
    start("--pretrained-path", str, "use this file as the pretrained weights", metavar="PATH")
    start("--initial-checkpoint", "", "load this checkpoint after creation", metavar="PATH")
    start("--finetune", "",
        "initialise the student from a checkpoint whose head may differ, also as MAE, DINO, DINOv2 and "
        "CLIP publish theirs",
        metavar="PATH")
    add("--linear-probe", False,
        "train the last layer only, on features of the frozen student that are computed once, without "
        "augmentation (but for --teacher-targets cached-views:N), and kept under --target-cache "
        "(docs/protocol.md)",
        role=Role.START | Role.SHAPE)
    add_tuning(add.of(Role.START | Role.SHAPE | Role.STATE))
    # where a run goes on that was stopped
    where("--resume", "",
        "continue a run from a checkpoint or a run folder; auto: from the run's own folder, where there is one",
        metavar="PATH", form="PATH", in_study="it always goes on")
    where("--resume-changes",
        help="flags that may differ from those of the run that is continued, as names without dashes such as "
        "batch-size, or processes; any other that changes the outcome is refused",
        metavar="FLAG", nargs="+", needs="resume", action="extend", default=[])
    add("--no-resume-opt", False, "resume the weights only, not the optimizer", role=Role.RESUMING)
    add_input(add)
    # batches
    add("-b", "--batch-size", 128,
        "training batch size per process",
        role=Role.TRAINING | Role.PER_PROCESS, low=1, evaluation="batch_size")
    add("-vb", "--validation-batch-size", int,
        "validation batch size (default: the same)",
        role=Role.REPORT, low=1, evaluation="batch_size")
    add("--grad-accum-steps", 1, "batches per update", low=1)
    add("--grad-checkpointing", False, "recompute activations in the backward pass", role=Role.TRAINING)
    add_execution(add)
    # the new head
    start("--head-init-scale", float, "factor on the initial head")
    start("--head-init-bias", float, "initial bias of the head")


def add_device(add: Declare) -> None:
    where = add.of(Role.WHERE)
    add_precision(add)
    # several processes
    add("--no-ddp-bb", False, "DDP does not broadcast buffers")
    add("--fsdp", False, "shard the student over all processes (docs/fsdp.md)")
    add("--synchronize-step", False, "wait for the device after every update", role=Role.REPORT)
    # to the last bit
    add("--deterministic", False,
        "on CUDA: the same command gives the same weights to the last bit, in more time (docs/reliability.md)")
    where("--local_rank", 0, "set by old launchers; torchrun's environment wins")
    where("--device-modules", str, "Python modules of device backends to import", metavar="MODULE", nargs="+")


def add_tuning(add: Declare) -> None:
    add("--tune", "all",
        "what of the student is trained: all, head, norm, bias, last:N (blocks), last:0.3 (that share of them), "
        "lora (adapters; lora:rank=8,alpha=16,dropout=0,targets=qkv+fc1,kind=dora, see docs/students.md); all "
        "but the first train the head too")


def add_optimizer(add: Declare) -> None:
    shaping = add.of(Role.OPTIMIZER | Role.STATE)
    shaping("--opt", "sgd", "optimizer, one of timm's")
    add("--opt-eps", float, "epsilon of the optimizer")
    add("--opt-betas", float, "betas of the optimizer", nargs="+")
    add("--momentum", 0.9, "momentum")
    add("--weight-decay", 2e-05, "weight decay", role=Role.OPTIMIZER | Role.TUNING)
    # gradients
    add("--clip-grad", float, "gradient clipping value", low=1e-06)
    add("--clip-mode", "norm", "norm, value or agc", choices="norm value agc")
    # learning rates of parts of the network
    shaping("--layer-decay", float, "learning-rate decay from layer to layer")
    add("--layer-decay-min-scale", 0, "smallest scale of layer decay", type=float)
    add("--layer-decay-no-opt-scale", float, "layers below this scale are not trained")
    shaping("--opt-kwargs", {}, "more optimizer arguments")


def add_schedule(add: Declare) -> None:
    scaled = add.of(Role.SCHEDULE | Role.ALIAS)
    resuming = add.of(Role.SCHEDULE | Role.RESUMING)
    add("--sched", "cosine", "learning-rate schedule", metavar="NAME", choices=SCHEDULERS)
    add("--sched-on-updates", False, "step the schedule by update, not by epoch")
    add("--lr", float,
        "learning rate; without it --lr-base is scaled by the batch size",
        role=Role.SCHEDULE | Role.TUNING, low=0)
    # the learning rate by the size of the batch
    scaled("--lr-base", 0.1, "learning rate at --lr-base-size")
    scaled("--lr-base-size", 256, "batch size that --lr-base is meant for")
    scaled("--lr-base-scale", "",
        "linear or sqrt (default: by optimizer)",
        metavar="RULE", choices=("", "linear", "sqrt"))
    # noise and cycles
    add("--lr-noise", float, "range of epochs with noise on the learning rate", nargs="+")
    add("--lr-noise-pct", 0.67, "limit of that noise")
    add("--lr-noise-std", 1.0, "standard deviation of that noise")
    add("--lr-cycle-mul", 1.0, "factor on the cycle length", low=1e-06)
    add("--lr-cycle-decay", 0.5, "decay from cycle to cycle")
    add("--lr-cycle-limit", 1, "number of cycles", low=1)
    add("--lr-k-decay", 1.0, "k of k-decay for cosine and poly")
    # the shape of a decay
    add("--lr-decay-fn", str,
        "shape of the decay of wsd (default: 1-sqrt) and rsqrt (default: linear)",
        choices="1-sqrt linear cosine power exp")
    add("--lr-stable-timescale", float, "time scale of rsqrt in epochs (default: --warmup-epochs)", low=1e-06)
    add("--warmup-lr", 1e-05, "learning rate at the start of the warm-up")
    add("--min-lr", 0, "lowest learning rate of cyclic schedules", type=float)
    # how long
    add("--epochs", 300, "epochs", low=1)
    add("--epoch-repeats", 0.0, "repeats of an iterable dataset in an epoch", in_study="epochs")
    resuming("--start-epoch", int, "number of the first epoch", low=0)
    resuming("--stop-epoch", int, "stop after this epoch; the schedule stays that of --epochs", low=0)
    add("--decay-milestones", [90, 180, 270], "milestones of multistep")
    # steps, plateaus and the warm-up
    add("--decay-epochs", 90,
        "epochs between decays of step; epochs of the decay that ends wsd and rsqrt, below 1 a share of the "
        "schedule (there 0.2, unless given)",
        type=float, low=1e-06)
    add("--warmup-epochs", 5, "epochs of warm-up", low=0)
    add("--warmup-prefix", False, "the warm-up comes on top of --epochs")
    add("--cooldown-epochs", 0, "epochs at the lowest rate, after the schedule", low=0)
    add("--patience-epochs", 10, "patience of plateau")
    add("--decay-rate", "--dr", 0.1, "factor of a decay")


def add_augmentation(add: Declare) -> None:
    training = add.of(Role.TRAINING)
    mixing = add.of(Role.MIXING)
    training("--no-aug", False, "no training augmentation")
    add("--train-crop-mode", str, "rrc, rkrc or rkrr", choices="rrc rkrc rkrr")
    # geometry
    add("--scale", [0.08, 1.0], "area of random crops", low=0, span=True, off=[1.0, 1.0])
    add("--ratio", [3 / 4, 4 / 3], "aspect of random crops", low=1e-06, span=True, off=[1.0, 1.0])
    add("--hflip", 0.5, "horizontal flips", **SHARE, off=0.0)
    add("--vflip", 0.0, "vertical flips", **SHARE, off=0.0)
    # colour
    add("--color-jitter", 0.4, "strength of colour jitter", off=0.0)
    add("--color-jitter-prob", float, "probability of colour jitter (default: always)", **SHARE)
    add("--grayscale-prob", float, "probability of greyscale", **SHARE)
    add("--gaussian-blur-prob", float, "probability of blur", **SHARE)
    add("--aa", str, "AutoAugment, RandAugment or AugMix policy")
    # several views of a sample in a batch
    mixing("--aug-repeats", 0, "views of a sample in an epoch", type=float, low=0, off=0)
    mixing("--aug-splits", 0, "AugMix splits of a batch, 0 or at least 2", off=0)
    training("--jsd-loss", False, "Jensen-Shannon criterion over the splits")
    # the criterion on ground truth
    training("--bce-loss", False, "binary cross-entropy as the criterion")
    training("--bce-sum", False, "sum it over classes")
    training("--bce-target-thresh", float, "binarise its soft targets")
    training("--bce-pos-weight", float, "its weight of positives")
    training("--loss-pos-weight", "",
        "its weight of positives: a number, one for each class (1,2,...), a file with them, or neg_pos, computed "
        "from --class-stats",
        metavar="W|FILE|neg_pos")
    training("--loss-class-weight", "",
        "its weight of each class: numbers, a file with them, or inv_freq or effective_num, computed from "
        "--class-stats",
        metavar="W|FILE|NAME")
    training("--loss-weight-power", 1.0, "exponent of neg_pos and inv_freq", low=0)
    training("--class-stats", "",
        "json with pos_counts, the samples of each class, and num_samples, as timm's class_weights.py writes it",
        metavar="FILE")
    training("--asl-gamma-pos", 1.0, "focus of the asl criterion on the true class", low=0)
    training("--asl-gamma-neg", 4.0, "and on the others", low=0)
    training("--poly-epsilon", 2.0, "coefficient of the poly criterion; 0 is cross-entropy")
    # random erasing
    add("--reprob", 0.0, "random erasing", **SHARE, off=0.0)
    training("--remode", "pixel", "its fill: const, rand or pixel", choices="const rand pixel")
    training("--recount", 1, "its number of boxes")
    training("--resplit", False, "leave the first augmentation split without it")
    # mixing of samples
    mixing("--mixup", 0.0, "alpha of mixup", low=0, off=0.0)
    mixing("--cutmix", 0.0, "alpha of cutmix", low=0, off=0.0)
    mixing("--cutmix-minmax", float,
        "range of cutmix boxes, in place of alpha",
        nargs="+", **SHARE, span=True)
    training("--mixup-prob", 1.0, "probability of mixing", **SHARE)
    training("--mixup-switch-prob", 0.5, "share of cutmix where both are on", **SHARE)
    training("--mixup-mode", "batch", "batch, pair or elem", choices="batch pair elem")
    training("--mixup-off-epoch", 0, "no mixing from this epoch on")
    # regularisation
    training("--smoothing", 0.1, "label smoothing of the criterion", low=0, high=1 - 1e-06)
    training("--train-interpolation", "random",
        "interpolation of random crops",
        metavar="NAME", choices=("", "random", *INTERPOLATIONS))
    training("--drop", 0.0, "dropout", **SHARE)
    training("--drop-connect", float, "old name of --drop-path", **SHARE)
    training("--drop-path", float, "stochastic depth", **SHARE)
    training("--drop-block", float, "drop block", **SHARE)


def add_batch_norm(add: Declare) -> None:
    add("--bn-momentum", float, "momentum of batch norm")
    add("--bn-eps", float, "epsilon of batch norm")
    add("--sync-bn", False, "synchronised batch norm (needs an accelerator)")
    add("--dist-bn", "reduce",
        "statistics after an epoch: reduce or broadcast",
        metavar="MODE", choices=("reduce", "broadcast", ""))
    add("--split-bn", False, "separate batch norm for augmentation splits", needs="aug_splits resplit")


def add_ema(add: Declare) -> None:
    add("--model-ema", False,
        "keep an exponential moving average of the weights",
        role=Role.TRAINING | Role.SHAPE)
    add("--model-ema-force-cpu", False, "keep it on the CPU, without evaluation")
    add("--model-ema-decay", 0.9998, "its decay", **SHARE)
    add("--model-ema-warmup", False, "warm its decay up")


def add_misc(add: Declare) -> None:
    training = add.of(Role.TRAINING)
    evaluation = add.of(Role.EVALUATION)
    where = add.of(Role.WHERE)
    add("--seed", 42,
        "random seed",
        role=Role.TUNING | Role.SEED, low=0, high=2 ** 32 - 1, in_study="the key seeds")
    training("--worker-seeding", "all", "seeding of the workers of iterable datasets", choices="all part")
    # how often something is logged, measured and saved
    add("--log-interval", 50, "updates between log lines", low=1)
    evaluation("--val-interval", "--eval-interval", 1, "epochs between evaluations", low=1)
    add("--save-epochs", [], "keep a checkpoint after these epochs", type=int)
    add("--recovery-interval", 0, "updates between recovery checkpoints", low=0)
    add("--checkpoint-hist", 10, "checkpoints of the best epochs that are kept", low=1)
    add_loading(add)
    add("--save-images", False, "save the images of logged batches")
    # the folder of the run
    where("--output", "",
        "folder of runs (default: ./output/train)",
        metavar="DIR", in_study="the --output of `study run`")
    where("--experiment", "",
        "name of the run folder (default: time and model)",
        in_study="the study names its runs")
    # what is measured
    add("--eval-metric", "top1",
        "metric that ranks checkpoints: top1, top5, loss, agreement (with --teacher), few-shot (the first kind "
        "of --few-shot-eval)",
        choices="top1 top5 loss agreement few-shot", role=Role.SELECTION | Role.STUDENT)
    evaluation("--long-tail", "auto",
        "also measure accuracy on classes with many, medium and few training samples; auto: where the training "
        "split has both many- and few-shot ones",
        choices="auto always never")
    add_long_tail(add)
    evaluation("--tta", 0, "test-time augmentations, as consecutive samples")
    # services that show it
    add("--log-wandb", False, "log to Weights & Biases")
    add("--wandb-project", str, "its project")
    add("--wandb-tags", [], "its tags", metavar="TAG")
    add("--wandb-resume-id", "",
        "its run to continue, another than the one that --resume continues by itself",
        metavar="ID")
    # images of several sizes, as timm's scheduled loader has them
    add("--train-img-sizes", int,
        "image sizes drawn batch by batch",
        nargs="+", role=Role.MIXING, low=1, form="N N")
    add("--train-batch-sizes", int,
        "batch size for each of them",
        nargs="+", role=Role.TRAINING | Role.PER_PROCESS, low=1, needs="train_img_sizes")
    training("--train-size-probs", float,
        "probability of each of them",
        nargs="+", low=0, needs="train_img_sizes")
    training("--train-size-schedule", "constant", "how they are drawn", choices="constant progressive")
    training("--train-size-schedule-spread", 0.65, "width of the progressive window")
    training("--train-size-random-mix", 0.1, "share drawn uniformly")
    training("--train-batches-per-epoch", "--train-steps-per-epoch", int,
        "batches in an epoch of --train-img-sizes, or of --episodic",
        low=1, needs="train_img_sizes episodic")
    training("--variable-batch-loss-scale", "none",
        "scale of the loss with the batch size of --train-img-sizes",
        choices="none sqrt linear")


def add_loading(add: Declare) -> None:
    """How many processes read, and what they leave to the device: shared by training and validation."""
    where = add.of(Role.WHERE)
    where("-j", "--workers", 4,
        "data worker processes of each process (on CUDA as many as it has cores, from 4 to 16, unless given)",
        low=0, evaluation=SAME)
    where("--pin-mem", False, "pin host memory (on CUDA always so)")
    add("--no-prefetcher", False, "normalise images in the workers", role=Role.TRAINING)


def add_plugins(add: Declare) -> None:
    """What runs code, and shows it: shared by training and validation."""
    # both are for people who write code of their own
    add("--plugins", [], "Python modules or files to import; runs their code", metavar="MODULE")
    add("--debug", False, "show the traceback of errors")


def add_long_tail(add: Declare) -> None:
    """Groups of classes: shared by training and validation."""
    taken = add.of(Role.EVALUATION, evaluation=SAME)
    taken("--long-tail-thresholds", [20, 100],
        "few-shot classes have fewer training samples than FEW, many-shot classes more than MANY",
        metavar=("FEW", "MANY"), nargs=2, low=1, span=True)


def add_naflex(add: Declare) -> None:
    """Flags of timm that are taken but not shown: of its patches, which no teacher takes, and what is always so."""
    add = add.of(Role.MODEL, help=argparse.SUPPRESS)
    add("--naflex-loader", False)
    add("--naflex-train-seq-lens", [128, 256, 576, 784, 1024])
    add("--naflex-max-seq-len", 576)
    add("--naflex-patch-sizes", int, nargs="+")
    add("--naflex-patch-size-probs", float, nargs="+")
    add("--naflex-loss-scale", "linear", choices="none sqrt linear")
    add("--naflex-patchify-channels-first", False)
    add("--use-multi-epochs-loader", False, role=Role.WHERE)


# ---------------------------------------------------------------- timm's validation script


def add_validation_data(add: Declare) -> None:
    folder = add.of(Role.WHERE | Role.DATA | Role.PLACE)
    training = add.of(Role.TRAINING)
    add_folder(folder)
    add("--dataset", "",
        "TYPE/NAME, inat2018 or inat2021; empty: image folders or tar files",
        evaluation="dataset")
    # which split
    add("--split", "validation", "split to evaluate on")
    add_val_slice(add)
    add_test_sets(add)
    add("--num-samples", int, "size of the split of an iterable dataset")
    add_reading(add)
    add_loading(add)
    training("-b", "--batch-size", 256, "batch size", low=1)
    # what becomes of an image
    add("--crop-mode", str, "center, squash or border")
    add("--crop-border-pixels", int, "pixels cut off at each border")
    add("--tf-preprocessing", False, "TensorFlow's preprocessing (needs tensorflow)")


def add_validation_model(add: Declare) -> None:
    add("--model", "-m", "dpn92",
        "timm name, hf-hub:ORG/NAME[@REV], local-dir:PATH, a wildcard, `all`, or a text file with one name a "
        "line",
        evaluation="model")
    add("--pretrained", False, "use pretrained weights", role=Role.START)
    # weights
    add("--checkpoint", "", "checkpoint, run folder, or folder of checkpoints", metavar="PATH")
    add("--use-ema", False, "use the EMA weights of the checkpoint")
    add_input(add)
    add("--use-train-size", False, "evaluate at the training size where the model has both")
    add_execution(add)
    # how the model is run
    add("--num-gpu", 1, "number of GPUs")
    add("--test-pool", False, "test-time pooling")
    add("--reparam", False, "reparameterise the model")
    add("--aot-autograd", False, "fuse the model with AOT autograd")
    add_precision(add)


def add_validation_report(add: Declare) -> None:
    add("--log-freq", 10, "batches between log lines")
    add("--results-file", "", "write the results to this file", metavar="FILE")
    add("--results-format", "csv", "csv or json", choices="csv json")
    # which labels count
    add("--real-labels", "", "json of the ImageNet ReaL labels", metavar="FILE")
    add("--valid-labels", "", "text file of the class indices that count", metavar="FILE")
    add("--retry", False, "retry with smaller batches when memory runs out")
    add("--seed", 42, "random seed", role=Role.TUNING | Role.SEED, low=0, high=2 ** 32 - 1)
    add("--metrics-avg", str,
        "add precision, recall and F1 with this average",
        choices="micro macro weighted")
    # of a checkpoint whose run has counted its classes
    add_long_tail(add)
    add("--naflex-loader", False, "NaFlex patches")
    add("--naflex-max-seq-len", 576, "longest sequence of NaFlex")


def add_validation_few_shot(add: Declare) -> None:
    add("--few-shot", str,
        "test the frozen encoder on E episodes (2000, or as many as the run had) of N classes of the split with "
        "K labelled images each, e.g. 5x1,5x5 (--split: novel unless given)",
        metavar="NxK[,NxK][:E]", form="NxK")
    add_episode_test(add)


def add_validation_teacher(add: Declare) -> None:
    add("--teacher", teacher_names,
        "also evaluate this teacher, and the agreement with it",
        metavar="NAME[,NAME]", form="NAME")
    add("--teacher-checkpoint", str, "weights of the teacher: a file or a run folder", metavar="PATH[,PATH]")
    add_opening(add)
    add("--ceiling-acc", float,
        "top-1 of the student trained on ground truth: adds the PGR",
        role=Role.REPORT, low=0, high=100, needs="teacher")
    add_plugins(add)


# the groups of each script, in the order of its help, with the role of most of their flags
TRAIN = {
    "data": (Role.DATA, add_dataset),
    "model": (Role.MODEL, add_model),
    "weak teacher": (Role.TEACHER, add_teacher),
    "distillation loss": (Role.TEACHER, add_loss),
    "weak-to-strong protocol": (Role.PROTOCOL, add_protocol),
    "few-shot learning": (Role.EVALUATION | Role.EPISODES, add_few_shot),
    "noisy labels": (Role.NOISE, add_labels),
    "optimizer": (Role.OPTIMIZER, add_optimizer),
    "learning-rate schedule": (Role.SCHEDULE, add_schedule),
    "augmentation and regularisation": (Role.VIEW, add_augmentation),
    "batch norm": (Role.MODEL, add_batch_norm),
    "average of the weights": (Role.TRAINING, add_ema),
    "device and precision": (Role.TRAINING, add_device),
    "run": (Role.REPORT, add_run),
    "logging, checkpoints, loading": (Role.REPORT, add_misc),
    "Hugging Face Hub": (Role.REPORT, add_hub),
    "timm's own distillation": (Role.TEACHER, add_timm_distillation),
    "flags of the released code of Vision Superalignment": (Role.TEACHER | Role.ALIAS, add_released_code),
    "NaFlex": (Role.MODEL, add_naflex),
}
VALIDATE = {
    "teacher and ceiling": (Role.TEACHER, add_validation_teacher),
    "data": (Role.DATA, add_validation_data),
    "model": (Role.MODEL, add_validation_model),
    "few-shot learning": (Role.EVALUATION, add_validation_few_shot),
    "report": (Role.REPORT, add_validation_report),
}
