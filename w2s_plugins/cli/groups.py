"""The argument groups of the two scripts. timm's flags keep timm's names, defaults and meanings."""

import argparse
import re
from pathlib import Path

from .declare import Declare, ParseKwargs, Role
from .values import split_names


class TargetKinds(tuple):
    """Choices of ``--teacher-targets``; the N of cached-views:N is any number from 1 on."""

    def __contains__(self, text: object) -> bool:
        return text in ("online", "cached") or bool(re.fullmatch(r"cached-views:[1-9]\d*", str(text)))


CONTROLS = ("direct", "same-size", "strong-to-strong")  # of a protocol
SCHEDULERS = ("constant", "cosine", "multistep", "none", "plateau", "poly", "rsqrt", "step", "tanh", "wsd")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
IMAGE_MODES = ("1", "CMYK", "F", "HSV", "I", "I;16", "I;16B", "I;16L", "I;16N", "L", "LA", "LAB", "La", "P", "PA",
               "RGB", "RGBA", "RGBX", "RGBa", "YCbCr")  # of Pillow
TARGET_KINDS = TargetKinds(("online", "cached", "cached-views:N with N = 1, 2, ..."))


def share_or_count(text: str) -> float | int:
    """A share such as 0.1, or a count such as 500."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}': expected a share such as 0.1, or a count such as 500") from error


def teacher_names(text: str) -> str:
    """Names of teachers; a path to the folder of a run, or of an export, becomes ``local-dir:FOLDER``."""
    return ",".join(_exported(name) for name in split_names(text))


def _exported(name: str) -> str:
    places = (Path(name) / "export", Path(name)) if "/" in name and ":" not in name else ()
    return next((f"local-dir:{place}" for place in places if (place / "config.json").is_file()), name)


# ---------------------------------------------------------------- weak-to-strong


def add_teacher(add: Declare) -> None:
    add = add.of(Role.TEACHER)
    add("--teacher", in_study="the key weak", metavar="NAME[,NAME]", type=teacher_names, help="weak teacher: timm "
        "name, hf-hub:ORG/NAME[@REV], local-dir:PATH, the folder of a run, hf:ORG/NAME[@REV] or hf:FOLDER "
        "(transformers), clip:MODEL/PRETRAINED (open_clip), onnx:FILE, labels:PATH, "
        "labels:hf://datasets/ORG/NAME[@REV], or MODULE:FUNCTION of --plugins; several, separated by commas, are an "
        "ensemble (mean of probabilities)")
    add("--teacher-checkpoint", "--teacher-pretrained", in_study="`checkpoint` of an item of weak",
        metavar="PATH[,PATH]", role=Role.TEACHER | Role.TUNING, needs=("teacher",), form="PATH",
        help="weights of the teacher: a .safetensors, .pth or .pth.tar file, or a run folder")
    add_prompts(add)
    add("--use-ema-teacher", action="store_true", help="take the EMA weights of the teacher's checkpoint")
    add("--teacher-targets", choices=TARGET_KINDS, default="online", metavar="KIND",
        help="online: the teacher sees every training view; cached: it labels each image once, before training; "
        "cached-views:N: it labels the views of N epochs before training, after which the views repeat")
    add("--target-cache", default="output/targets", metavar="DIR", role=Role.WHERE, help="where cached targets are "
        "kept; other runs with the same data and teacher find them there")
    add("--teacher-cache-dtype", choices=["float16", "float32"], default="float16", help="dtype of cached logits")
    add("--teacher-topk", type=int, metavar="K", help="cache the K largest logits of a sample only; the other classes "
        "share the rest of the probability evenly")
    add("--refine-labels", action=argparse.BooleanOptionalAction, needs=("teacher",), help="train on the mean of the "
        "teacher's answers and of what a linear discriminant of the student's own features, fitted before training, "
        "makes of them (see docs/recipe.md); it needs --teacher-targets cached or cached-views:N, or labels:PATH")
    add("--teacher-class-map", metavar="FILE", help="json or yaml: teacher class to student class, a list or a mapping")
    add("--labels-missing", choices=["skip", "error"], needs=("teacher",), help="with --teacher labels:PATH: leave out "
        "samples without a label, or refuse them (default: leave out up to 1 percent of the samples)")
    add("--labels-combine", choices=["majority", "mean", "dawid-skene"], needs=("teacher",),
        help="with --teacher labels:PATH: what to make of several annotators of a sample (default: majority of labels, "
        "mean of probabilities)")
    add("--labels-confidence", type=float, metavar="P", low=0, high=1, needs=("teacher",),
        help="with --teacher labels:PATH: probability of a label that is a class alone (default: 1)")
    add("--teacher-img-size", in_study="img_size of an item of weak", type=int, low=1,
        help="input size of the teacher (default: its own)")
    add("--teacher-kwargs", in_study="model_kwargs of an item of weak", nargs="*", default={}, action=ParseKwargs,
        metavar="K=V", help="arguments of the teacher's constructor")
    add("--teacher-assign", choices=["mean", "student"], default="mean",
        help="of several teachers use the mean, or for each sample the one nearest to the student's prediction")
    add("--teacher-weights", choices=["equal", "learned"], default="equal",
        help="weights of several teachers in the mean; learned with the student")
    add("--teacher-agreement-share", default=0.1, metavar="R",
        help="with learned weights: share of training at first on samples on which all teachers agree")
    add("--no-teacher-eval", action="store_true",
        role=Role.REPORT, help="do not measure teacher and student on the validation split before the first step")


def add_prompts(add: Declare) -> None:
    """What a zero-shot teacher is asked with: shared by training and validation."""
    add("--prompts", metavar="FILE|TEXT", needs=("teacher",), help="with --teacher clip:...: templates with {} for the "
        "name of a class, a file with one a line, or texts separated by | (default: seven kinds of photo)")


def add_loss(add: Declare) -> None:
    add = add.of(Role.TEACHER)
    add("--loss", in_study="the key losses", metavar="NAME", role=Role.TEACHER | Role.TUNING,
        help="a distillation loss (see --list-losses; default with a teacher: adaptconf), or one of timm's criteria "
        "for supervised training (ce, bce, asl, poly, jsd)")
    add("--loss-kwargs", in_study="kwargs under losses", nargs="*", default={}, action=ParseKwargs, metavar="K=V",
        role=Role.TEACHER | Role.TUNING,
        help="hyper-parameters of the distillation loss")
    add("--task-loss", metavar="NAME", role=Role.TRAINING, help="criterion on ground truth beside a distillation loss "
        "(default: ce)")
    add("--task-loss-weight", type=float, metavar="W", role=Role.TEACHER | Role.TUNING,
        help="weight of the criterion on ground truth; 0 trains on the weak labels alone. Given alone, the "
        "distillation weight is 1 - W (default: both 1)")
    add("--distill-loss-weight", type=float, metavar="W", role=Role.TEACHER | Role.TUNING,
        help="weight of the distillation loss")
    add("--teacher-until-passed", type=int, low=1, needs=("teacher",), help="once the student was better "
        "than its teacher in N evaluations in a row, go on with ground truth alone; the held-out part decides where "
        "there is one, else the validation split")
    add("--list-losses", in_study="it trains nothing", action="store_true", role=Role.REPORT,
        help="list the distillation losses with their kwargs, and exit")


def add_protocol(add: Declare) -> None:
    add = add.of(Role.PROTOCOL)
    several = add.exclusive()
    several("--protocol", in_study="the key protocols", choices=["w2s"], form="w2s",
            help="w2s: train the teacher on the first part of the training slice, the ceiling and the student on the "
            "second, and report the performance gap recovered with its interval; needs --experiment NAME, the folder "
            "of the three")
    add("--weak-fraction", type=share_or_count, default=0.5, metavar="N", needs=("protocol",),
        help="the teacher's part with --protocol: a share (0.5) or a count (500); 0 for a teacher that is trained "
        "already, --teacher NAME with its pretrained weights among them: the student then has all of --train-slice")
    add("--weak-config", in_study="`config` of an item of weak", nargs="+", default=[], metavar="FILE",
        needs=("protocol",), help="YAML files with the flags in which the teacher's training differs with --protocol")
    add("--ceiling-config", nargs="+", default=[], metavar="FILE", needs=("protocol",), in_recipes=True,
        help="YAML files with the flags in which the ceiling's training differs with --protocol: what a student learns "
        "best from true labels with")
    add("--ceiling-checkpoint", in_study="the study trains it", metavar="RUN", needs=("protocol",),
        help="run folder of a ceiling that another --protocol run has trained, with the same student, flags and "
        "samples, in place of training it again; --teacher-checkpoint RUN does so for the teacher")
    add("--controls", in_study="the key controls", nargs="+", default=[], metavar="NAME", needs=("protocol",),
        form="NAME", choices=CONTROLS, help="with --protocol, also train what its student is to be compared with: "
        "direct (the student's model on the teacher's own labelled part), same-size (the teacher's model on the weak "
        "labels), strong-to-strong (the student's model on the labels of direct)")
    several("--stages", in_study="the key strong", metavar="FILE", help="train several students one after the other, "
            "each of which may label for the next or hand its weights on: a YAML list (docs/students.md); needs "
            "--experiment NAME, the folder of all")
    several("--folds", in_study="it trains no student", type=int, metavar="K", low=2, help="cut the training slice "
            "into K parts, train a model on all but each, and write what it says of the part that it has not seen as a "
            "table of labels (docs/labels.md); needs --experiment NAME, the folder of all")
    add("--train-slice", metavar="A:B", role=Role.SLICE, help="class-stratified part of the training split: fractions "
        "(0:0.3, 0.3:1.0) or counts (0:40, 40:), or several, separated by commas; slices that do not overlap are "
        "disjoint")
    add("--epoch-slice", metavar="A:B", role=Role.TRAINING, help="an epoch has at least as many samples as this part "
        "of the training split: those of a smaller --train-slice come round again, so that few samples get as many "
        "updates")
    add_val_slice(add)
    add_test_sets(add)
    add("--select", choices=["last", "best"], default="last", form="best", role=Role.SELECTION,
        help="which epoch is exported and "
        "reported")
    add("--select-split", type=share_or_count, metavar="N", needs=("select",), role=Role.SELECTION,
        help="hold out this share (0.1) or "
        "count (500) of the training slice and let it, not the validation split, choose the best epoch")
    add("--ceiling-acc", in_study="the study measures it", type=float, metavar="ACC", low=0, high=100, role=Role.REPORT,
        help="top-1 of the student trained on ground truth, for the PGR")


def add_val_slice(add: Declare) -> None:
    """A part of the split to evaluate on: shared by training and validation."""
    add = add.of(Role.DATA)
    add("--val-slice", metavar="A:B", role=Role.SLICE, evaluation="val_slice", help="evaluate on this part of the "
        "split only, cut as --train-slice cuts: of one split, 0:40000 can be trained on and 40000: evaluated on")
    add("--slice-seed", default=0, metavar="S", role=Role.DATA | Role.SEED, evaluation="slice_seed",
        help="seed of the slices, the same for teacher and student")


def add_test_sets(add: Declare) -> None:
    """Further test sets: shared by training and validation."""
    add = add.of(Role.EVALUATION | Role.TESTS)
    add("--val-sets", nargs="+", default=[], metavar="NAME=PATH", role=Role.EVALUATION | Role.TESTS | Role.PLACE,
        evaluation="val_sets", help="also measure on these test sets at the end: a folder of class folders, a tar "
        "file, or TYPE/NAME:SPLIT; their classes are matched by name and may be fewer (ImageNet-A, -R, -V2, -Sketch)")
    add("--corruptions", nargs="+", default=[], metavar="KIND:N", evaluation="corruptions", help="also measure on the "
        "validation split with such corruptions, of severity 1 to 5, the same pixels for all models: gaussian_noise:3, "
        "defocus_blur:2, ... (docs/protocol.md)")


def add_few_shot(add: Declare) -> None:
    """Evaluation on episodes of novel classes, and training on episodes."""
    add = add.of(Role.EVALUATION | Role.EPISODES)
    add("--few-shot-eval", metavar="NxK[,NxK][:E]", form="NxK", help="in every evaluation, test the frozen encoder on "
        "E (2000) episodes of N classes with K labelled images each, e.g. 5x1,5x5")
    add("--few-shot-split", default="novel", metavar="NAME", role=Role.EVALUATION | Role.EPISODES | Role.PLACE,
        needs=("few_shot_eval",), evaluation="split", help="split of the classes of these episodes")
    add("--few-shot-class-list", metavar="LIST", role=Role.EVALUATION | Role.EPISODES | Role.PLACE,
        needs=("few_shot_eval",), evaluation="class_list",
        help="its classes, where the split has others too (as --class-list)")
    add_episode_test(add)
    add("--episodic", metavar="NxK[:E]", form="NxK", role=Role.TRAINING, help="train on E (4) episodes a batch, per "
        "process, of N classes with K labelled images each: a cosine classifier with a learnt scale, distillation on "
        "the logits of the queries (--train-batches-per-epoch: batches in an epoch, 200)")


def add_episode_test(add: Declare) -> None:
    """Test episodes: shared by training and validation."""
    add = add.of(Role.EVALUATION | Role.EPISODES)
    add("--few-shot-classifier", choices=["cosine", "euclidean", "logistic"], default="cosine",
        needs=("few_shot_eval", "few_shot"), evaluation="few_shot_classifier", help="nearest mean of the labelled "
        "images by cosine or distance, or logistic regression")
    add("--few-shot-seed", default=0, metavar="S", role=Role.EVALUATION | Role.EPISODES | Role.SEED,
        needs=("few_shot_eval", "few_shot"), evaluation="few_shot_seed",
        help="seed of the test episodes, the same for every model")
    add("--queries", default=15, metavar="Q", low=1, needs=("few_shot_eval", "episodic", "few_shot"),
        evaluation="queries", help="images of each class of an episode to be classified")


def add_labels(add: Declare) -> None:
    add = add.of(Role.NOISE)
    add("--label-noise", metavar="KIND", help="labels of the training split: symmetric:0.2, asymmetric:0.4 (:FILE, "
        "json or yaml: class to the class it is taken for, which is known of CIFAR-10 and CIFAR-100), pairflip:0.45, "
        "or labels:FILE[#COLUMN], those of a table; the validation split keeps its own")
    add("--noise-seed", default=0, metavar="S", role=Role.NOISE | Role.SEED, low=0, high=2 ** 32 - 1,
        help="seed of the label noise, the same for teacher and student whatever their --seed")
    add("--clean-select", metavar="RULE", role=Role.STUDENT, help="train on the samples whose label is likely right: "
        "knn:K (it is that of most of the K nearest neighbours); or of which a model is sure: entropy:R (the share R "
        "with the lowest entropy), confidence:P (at least that probable); or file:PATH (those that an earlier run "
        "selected)")
    add("--clean-select-model", metavar="NAME[=PATH]", role=Role.STUDENT, help="model whose features or answers "
        "decide: timm name, hf-hub:ORG/NAME, local-dir:PATH or a run folder (default: the teacher); PATH has its "
        "weights, a file or a run folder")


def add_hub(add: Declare) -> None:
    add = add.of(Role.REPORT)
    add("--push-to-hub", in_study="publish the run you choose: python -m w2s_plugins.hub push", metavar="ORG/NAME",
        role=Role.REPORT | Role.STUDENT, help="publish the exported student on the Hugging Face Hub")
    add("--push-labels", in_study="publish those you choose: python -m w2s_plugins.labels push", metavar="ORG/NAME",
        role=Role.REPORT | Role.STUDENT, needs=("teacher",), help="publish the labels of --teacher-targets cached as a "
        "dataset there")
    add("--hub-private", action="store_true", help="create the repository as a private one")
    add("--hub-revision", metavar="REV", help="branch to push to")


def add_run(add: Declare) -> None:
    add = add.of(Role.REPORT)
    add("--plugins", nargs="+", default=[], metavar="MODULE", help="Python modules or files to import; runs their code")
    add("--nan-patience", default=10, low=1, help="bad (NaN or infinite) steps in a row, each "
        "skipped, before the run stops")
    add("--data-errors", default="raise", metavar="RULE", role=Role.WHERE, help="training samples that cannot be "
        "read: raise ends the run with the name of the file; skip:N lets another sample of the batch take the place, "
        "for N files at most")
    add("--log-tensorboard", action="store_true", help="write TensorBoard events to the run folder")
    add("--debug", action="store_true", help="show the traceback of errors")


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
    add = add.of(Role.TEACHER | Role.ALIAS)
    add("--distiller", in_study="the key losses", metavar="NAME",
        help="as --loss, with that code's defaults; vanilla: no distillation")
    add("--gt-loss-weight", type=float, metavar="W", role=Role.TEACHER | Role.ALIAS | Role.TUNING,
        help="as --task-loss-weight; leaves the other weight at 1")
    add("--kd-loss-weight", type=float, metavar="W", role=Role.TEACHER | Role.ALIAS | Role.TUNING,
        help="as --distill-loss-weight")
    for name, sets in RELEASED_KWARGS.items():
        told = ", ".join(f"{kwarg} of {loss}" for loss, kwarg in sets.items())
        add(name, type=float, metavar="X", sets=sets, help=told)
    add("--rkd-squared", action="store_true", sets={"rkd": "squared"}, help="squared distances in rkd")
    add("--fitnet-stage", type=int, nargs="+", metavar="I", help="stages of fitnet, counted from 1")
    add("--fitnet-loss-weight", type=float, metavar="W", help="weight of fitnet")
    add("--speedtest", action="store_true", role=Role.ALIAS, help="as --val-split '' --no-teacher-eval")
    add("--eval-interval-end", type=float, metavar="R", role=Role.ALIAS, help="taken, and without effect")
    add("--model-name", metavar="NAME", role=Role.ALIAS, help="taken, and without effect")


def add_timm_distillation(add: Declare) -> None:
    add = add.of(Role.TEACHER)
    add("--kd-model-name", in_study="the key weak", metavar="NAME", help="teacher of timm's own distillation tasks")
    add("--kd-distill-type", default="logit", choices=["logit", "feature", "token"],
        help="timm's distillation task: logits, pooled features, or a distillation token")
    add("--kd-loss-type", default="kl", metavar="NAME", choices=("kl",), help="loss of timm's logit distillation; timm "
        "knows kl only")
    add("--kd-temperature", default=4.0, metavar="T", role=Role.TEACHER | Role.TUNING,
        help="softmax temperature of distillation; given by hand, it also sets a --loss's temperature")
    add("--kd-student-feature-dim", type=int, metavar="D", help="width of the student's features (default: detected)")
    add("--kd-teacher-feature-dim", type=int, metavar="D", help="width of the teacher's features (default: detected)")
    add("--kd-token-distill-type", default="soft", choices=["soft", "hard"], help="target of the distillation token")


# ---------------------------------------------------------------- timm's training script


def add_dataset(add: Declare) -> None:
    add = add.of(Role.DATA)
    add("data", in_study="data_dir", nargs="?", metavar="DIR", role=Role.WHERE | Role.DATA | Role.PLACE,
        help="folder of the data (as --data-dir)")
    add("--data-dir", metavar="DIR", role=Role.WHERE | Role.DATA | Role.PLACE, evaluation="data_dir",
        help="folder of the data (default: the one that IMAGENET_DIR names)")
    add("--unlabeled", metavar="PATH[,PATH]", role=Role.WHERE | Role.DATA | Role.PLACE, help="train on images without "
        "labels: a folder, at any depth, a tar file, or several; shards as wds/PATH or hfids/ORG/NAME; or a "
        "split whose labels are not looked at, torch/stl10:unlabeled; needs a --teacher, and sets --task-loss-weight "
        "0, if that is not given; --data-dir or --dataset beside it give the validation split and, with "
        "--task-loss-weight, labelled samples for each batch")
    add("--labeled-share", default=0.25, metavar="S", low=0, high=1, role=Role.DATA | Role.TUNING,
        needs=("task_loss_weight", "gt_loss_weight"), help="share of each batch that is labelled, with --unlabeled and "
        "--task-loss-weight: at least one sample, and not all")
    add("--class-names", metavar="FILE|A,B,C", role=Role.DATA | Role.PLACE, help="names of the classes in their order: "
        "a text file with one a line, a json list, or the names themselves (default: those of the data; for "
        "--unlabeled those of the teacher, else of a labelled split)")
    add("--dataset", "-d", default="", metavar="NAME", role=Role.DATA | Role.PLACE, evaluation="dataset",
        help="TYPE/NAME, e.g. torch/cifar100, hfds/ORG/NAME, wds/..., w2s/digits; inat2018 or inat2021: json lists; "
        "empty: image folders or tar files")
    add("--train-split", default="train", metavar="NAME", role=Role.DATA | Role.PLACE, help="training split")
    add("--val-split", default="validation", metavar="NAME", role=Role.DATA | Role.PLACE, evaluation="split",
        help="validation split; empty: no evaluation")
    add("--train-num-samples", type=int, help="size of the training split of an iterable dataset")
    add("--val-num-samples", type=int, evaluation="num_samples", help="size of the validation split of an "
        "iterable dataset")
    add_reading(add)


def add_reading(add: Declare) -> None:
    """How samples are read: shared by training and validation."""
    add = add.of(Role.DATA)
    add("--dataset-download", action="store_true", role=Role.WHERE, help="allow torch/ and tfds/ datasets to download "
        "themselves")
    add("--class-map", default="", metavar="FILE", role=Role.DATA | Role.PLACE, evaluation="class_map",
        help="file that maps class names to indices")
    add("--class-list", metavar="LIST", role=Role.DATA | Role.PLACE, evaluation="class_list",
        help="use these classes only: a file with one name a line, or a list of the package such as miniimagenet/base")
    add("--image-root", metavar="DIR", role=Role.WHERE | Role.DATA | Role.PLACE, evaluation="image_root",
        help="folder that the names of images in the lists of inat2018 and inat2021 are relative to (default: "
        "--data-dir)")
    add("--input-img-mode", metavar="MODE", choices=IMAGE_MODES, evaluation="input_img_mode",
        help="PIL mode that images are converted to")
    add("--input-key", metavar="KEY", evaluation="input_key", help="column of the images")
    add("--target-key", metavar="KEY", evaluation="target_key", help="column of the labels")
    add("--decoder", choices=["pil", "fast"], default="pil", evaluation="decoder",
        help="what decodes images and makes the first crop or resize; fast: torchvision for JPEG files, whose pixels "
        "differ by rounding, Pillow for everything else")
    add("--dataset-trust-remote-code", action="store_true", role=Role.WHERE, help="let a Hub dataset run code from its "
        "repository")


def add_input(add: Declare) -> None:
    """Input size and normalisation: shared by training and validation."""
    add = add.of(Role.INPUT)
    add("--img-size", for_teacher="teacher_img_size", type=int, low=1, evaluation="img_size",
        role=Role.INPUT | Role.SHAPE, help="image size (default: the model's); also resizes ViTs")
    add("--in-chans", type=int, low=1, evaluation="in_chans", role=Role.INPUT | Role.SHAPE,
        help="input channels")
    add("--input-size", nargs=3, type=int, low=1, evaluation="input_size", role=Role.INPUT | Role.SHAPE,
        help="channels, height, width")
    add("--crop-pct", type=float, metavar="R", low=1e-6, evaluation="crop_pct", help="centre crop of validation images")
    add("--mean", type=float, nargs="+", metavar="M", evaluation="mean", help="mean that images are normalised with")
    add("--std", type=float, nargs="+", metavar="S", evaluation="std", help="standard deviation that images are "
        "normalised with")
    add("--interpolation", default="", metavar="NAME", evaluation="interpolation",
        choices=("", *INTERPOLATIONS), help="interpolation when resizing")
    add("--num-classes", type=int, role=Role.MODEL | Role.SHAPE, evaluation="num_classes",
        help="number of classes (default: that of the data, else the model's)")
    add("--gp", metavar="POOL", role=Role.MODEL | Role.SHAPE, evaluation="gp",
        help="global pooling: fast, avg, max, avgmax, catavgmax")


def add_execution(add: Declare) -> None:
    """How the model is run: shared by training and validation."""
    add = add.of(Role.TRAINING)
    add("--channels-last", action="store_true", evaluation="channels_last", help="channels_last memory layout")
    add("--fuser", default="", metavar="NAME", choices=("", "te", "old", "legacy", "nvfuser", "nvf"),
        help="TorchScript fuser: te, old, nvfuser")
    add("--fast-norm", action="store_true", help="timm's fast normalisation layers")
    add("--model-kwargs", for_teacher="teacher_kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V",
        role=Role.MODEL | Role.START | Role.SHAPE, evaluation="model_kwargs", help="arguments of the model's "
        "constructor")
    add("--torchcompile-mode", metavar="MODE", help="mode of torch.compile")
    scripting = add.exclusive()
    scripting("--torchscript", action="store_true", help="compile the model with TorchScript")
    scripting("--torchcompile", nargs="?", const="inductor", metavar="BACKEND",
              help="compile the model with torch.compile")


def add_precision(add: Declare) -> None:
    add = add.of(Role.TRAINING)
    add("--device", default="cuda", metavar="NAME", role=Role.WHERE, help="device; without CUDA the CPU is "
        "used")
    add("--amp", action="store_true", evaluation="amp", help="mixed precision")
    add("--amp-dtype", default="float16", metavar="DTYPE", evaluation="amp_dtype",
        choices=("float16", "bfloat16"), help="dtype of mixed precision: float16 or bfloat16 (on a CPU bfloat16 unless "
        "given)")
    add("--model-dtype", metavar="DTYPE", evaluation="model_dtype",
        choices=("float32", "float16", "bfloat16"), help="dtype of the model without mixed precision")
    add("--dist-timeout", type=float, default=600, metavar="S", role=Role.WHERE, help="seconds that an exchange "
        "between processes may take before it fails")


def add_model(add: Declare) -> None:
    add = add.of(Role.MODEL)
    add("--model", for_teacher="teacher", default="resnet50", metavar="NAME", evaluation="model",
        role=Role.MODEL | Role.SHAPE | Role.PLACE, help="strong student, a timm name or hf-hub:ORG/NAME")
    add("--pretrained", action="store_true", role=Role.START, help="start from the model's pretrained weights")
    add("--pretrained-path", metavar="PATH", role=Role.START, help="use this file as the pretrained weights")
    add("--initial-checkpoint", default="", metavar="PATH", role=Role.START,
        help="load this checkpoint after creation")
    add("--finetune", default="", metavar="PATH", role=Role.START, help="initialise the student from a checkpoint "
        "whose head may differ, also as MAE, DINO, DINOv2, MoCo v3 and CLIP publish theirs")
    add("--linear-probe", action="store_true", role=Role.START | Role.SHAPE, help="train the last layer only, on "
        "features of the frozen student that are computed once, without augmentation (but for --teacher-targets "
        "cached-views:N), and kept under --target-cache (docs/protocol.md)")
    add_tuning(add.of(Role.START | Role.SHAPE | Role.STATE))
    add("--resume", in_study="it always goes on", default="", metavar="PATH", role=Role.WHERE, form="PATH",
        help="continue a run from a checkpoint, a run folder, or hf-hub:ORG/NAME[@REV]; auto: from "
        "the run folder, where there is one")
    add("--resume-changes", nargs="+", action="extend", default=[], metavar="FLAG", role=Role.WHERE, needs=("resume",),
        help="flags that may differ from those of the run that is continued, as names without dashes such as "
        "batch-size, or processes; any other that changes the outcome is refused")
    add("--no-resume-opt", action="store_true", role=Role.RESUMING, help="resume the weights only, not the optimizer")
    add_input(add)
    add("-b", "--batch-size", default=128, low=1, role=Role.TRAINING | Role.PER_PROCESS,
        evaluation="batch_size", help="training batch size per process")
    add("-vb", "--validation-batch-size", type=int, low=1, role=Role.REPORT, evaluation="batch_size",
        help="validation batch size (default: the same)")
    add("--grad-accum-steps", default=1, low=1, help="batches per update")
    add("--grad-checkpointing", action="store_true", role=Role.TRAINING, help="recompute activations in the backward "
        "pass")
    add_execution(add)
    add("--head-init-scale", type=float, metavar="S", role=Role.START, help="factor on the initial head")
    add("--head-init-bias", type=float, metavar="B", role=Role.START, help="initial bias of the head")


def add_device(add: Declare) -> None:
    add = add.of(Role.TRAINING)
    add_precision(add)
    add("--no-ddp-bb", action="store_true", help="DDP does not broadcast buffers")
    add("--fsdp", action="store_true", help="shard the student over all processes (docs/fsdp.md)")
    add("--synchronize-step", action="store_true", role=Role.REPORT, help="wait for the device after every update")
    add("--deterministic", action="store_true", help="on CUDA: the same command gives the same weights to the last "
        "bit, in more time (docs/reliability.md)")
    add("--local_rank", default=0, metavar="R", role=Role.WHERE, help="set by old launchers; torchrun's "
        "environment wins")
    add("--device-modules", role=Role.WHERE, nargs="+", metavar="MODULE", help="Python modules of device "
        "backends to import")


def add_tuning(add: Declare) -> None:
    add("--tune", default="all", metavar="PART", help="what of the student is trained: all, head, norm, "
        "bias, last:N (blocks), last:0.3 (that share of them), lora (adapters; "
        "lora:rank=8,alpha=16,dropout=0,targets=qkv+fc1,kind=dora, see docs/students.md); all but the first train the "
        "head too")
    add("--freeze", nargs="+", default=[], metavar="PATTERN", help="parameters that are not trained, by name")
    add("--unfreeze", nargs="+", default=[], metavar="PATTERN", needs=("tune", "freeze"),
        help="parameters that are trained after all")


def add_optimizer(add: Declare) -> None:
    add = add.of(Role.OPTIMIZER)
    add("--opt", default="sgd", metavar="NAME", role=Role.OPTIMIZER | Role.STATE,
        help="optimizer, one of timm's")
    add("--opt-eps", type=float, metavar="E", help="epsilon of the optimizer")
    add("--opt-betas", type=float, nargs="+", metavar="B", help="betas of the optimizer")
    add("--momentum", default=0.9, metavar="M", help="momentum")
    add("--weight-decay", default=2e-5, metavar="W", role=Role.OPTIMIZER | Role.TUNING, help="weight decay")
    add("--clip-grad", type=float, metavar="V", low=1e-6, help="gradient clipping value")
    add("--clip-mode", default="norm", metavar="MODE", choices=("norm", "value", "agc"),
        help="norm, value or agc")
    add("--layer-decay", type=float, metavar="D", role=Role.OPTIMIZER | Role.STATE, help="learning-rate decay from "
        "layer to layer")
    add("--layer-decay-min-scale", type=float, default=0, metavar="S", help="smallest scale of layer decay")
    add("--layer-decay-no-opt-scale", type=float, metavar="S", help="layers below this scale are not trained")
    add("--lr-scale", nargs="+", default=[], metavar="PATTERN=X", role=Role.OPTIMIZER | Role.STATE,
        help="factor on the learning rate of parameters, by name")
    add("--opt-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", role=Role.OPTIMIZER | Role.STATE,
        help="more optimizer arguments")


def add_schedule(add: Declare) -> None:
    add = add.of(Role.SCHEDULE)
    add("--sched", default="cosine", metavar="NAME", choices=SCHEDULERS, help="learning-rate schedule")
    add("--sched-on-updates", action="store_true", help="step the schedule by update, not by epoch")
    add("--lr", type=float, metavar="LR", low=0, role=Role.SCHEDULE | Role.TUNING, help="learning rate; without it "
        "--lr-base is scaled by the batch size")
    add("--lr-base", default=0.1, metavar="LR", role=Role.SCHEDULE | Role.ALIAS,
        help="learning rate at --lr-base-size")
    add("--lr-base-size", default=256, role=Role.SCHEDULE | Role.ALIAS,
        help="batch size that --lr-base is meant for")
    add("--lr-base-scale", default="", metavar="RULE", choices=("", "linear", "sqrt"),
        role=Role.SCHEDULE | Role.ALIAS, help="linear or sqrt (default: by optimizer)")
    add("--lr-noise", type=float, nargs="+", metavar="R", help="range of epochs with noise on the learning rate")
    add("--lr-noise-pct", default=0.67, metavar="P", help="limit of that noise")
    add("--lr-noise-std", default=1.0, metavar="S", help="standard deviation of that noise")
    add("--lr-cycle-mul", default=1.0, metavar="M", low=1e-6, help="factor on the cycle length")
    add("--lr-cycle-decay", default=0.5, metavar="D", help="decay from cycle to cycle")
    add("--lr-cycle-limit", default=1, low=1, help="number of cycles")
    add("--lr-k-decay", default=1.0, metavar="K", help="k of k-decay for cosine and poly")
    add("--lr-decay-fn", metavar="NAME", choices=("1-sqrt", "linear", "cosine", "power", "exp"),
        help="shape of the decay of wsd (default: 1-sqrt) and rsqrt (default: linear)")
    add("--lr-stable-timescale", type=float, metavar="N", low=1e-6, help="time scale of rsqrt in epochs (default: "
        "--warmup-epochs)")
    add("--warmup-lr", default=1e-5, metavar="LR", help="learning rate at the start of the warm-up")
    add("--min-lr", type=float, default=0, metavar="LR", help="lowest learning rate of cyclic schedules")
    add("--epochs", default=300, low=1, help="epochs")
    add("--epoch-repeats", in_study="epochs", default=0.0, metavar="R",
        help="repeats of an iterable dataset in an epoch")
    add("--start-epoch", type=int, low=0, role=Role.SCHEDULE | Role.RESUMING,
        help="number of the first epoch")
    add("--stop-epoch", type=int, low=0, role=Role.SCHEDULE | Role.RESUMING,
        help="stop after this epoch; the schedule stays that of --epochs")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], help="milestones of multistep")
    add("--decay-epochs", type=float, default=90, metavar="N", low=1e-6, help="epochs between decays of step; epochs "
        "of the decay that ends wsd and rsqrt, below 1 a share of the schedule (there 0.2, unless given)")
    add("--warmup-epochs", default=5, low=0, help="epochs of warm-up")
    add("--warmup-prefix", action="store_true", help="the warm-up comes on top of --epochs")
    add("--cooldown-epochs", default=0, low=0, help="epochs at the lowest rate, after the "
        "schedule")
    add("--patience-epochs", default=10, help="patience of plateau")
    add("--decay-rate", "--dr", default=0.1, metavar="R", help="factor of a decay")


def add_augmentation(add: Declare) -> None:
    add = add.of(Role.VIEW)
    add("--no-aug", action="store_true", role=Role.TRAINING, help="no training augmentation")
    add("--train-crop-mode", metavar="MODE", choices=("rrc", "rkrc", "rkrr"), help="rrc, rkrc or rkrr")
    add("--scale", type=float, nargs="+", default=[0.08, 1.0], metavar="R", low=0, span=True, off=[1.0, 1.0],
        help="area of random crops")
    add("--ratio", type=float, nargs="+", default=[3 / 4, 4 / 3], metavar="R", low=1e-6, span=True, off=[1.0, 1.0],
        help="aspect of random crops")
    add("--hflip", default=0.5, metavar="P", low=0, high=1, off=0.0, help="horizontal flips")
    add("--vflip", default=0.0, metavar="P", low=0, high=1, off=0.0, help="vertical flips")
    add("--color-jitter", default=0.4, metavar="S", off=0.0, help="strength of colour jitter")
    add("--color-jitter-prob", type=float, metavar="P", low=0, high=1, help="probability of colour jitter (default: "
        "always)")
    add("--grayscale-prob", type=float, metavar="P", low=0, high=1, help="probability of greyscale")
    add("--gaussian-blur-prob", type=float, metavar="P", low=0, high=1, help="probability of blur")
    add("--aa", metavar="NAME", help="AutoAugment, RandAugment or AugMix policy")
    add("--aug-repeats", type=float, default=0, metavar="N", low=0, off=0, role=Role.MIXING,
        help="views of a sample in an epoch")
    add("--aug-splits", default=0, off=0, role=Role.MIXING, help="AugMix splits of a batch, 0 "
        "or at least 2")
    add("--jsd-loss", action="store_true", role=Role.TRAINING, help="Jensen-Shannon criterion over the splits")
    add("--bce-loss", action="store_true", role=Role.TRAINING, help="binary cross-entropy as the criterion")
    add("--bce-sum", action="store_true", role=Role.TRAINING, help="sum it over classes")
    add("--bce-target-thresh", type=float, metavar="T", role=Role.TRAINING, help="binarise its soft targets")
    add("--bce-pos-weight", type=float, metavar="W", role=Role.TRAINING, help="its weight of positives")
    add("--loss-pos-weight", default="", metavar="W|FILE|neg_pos", role=Role.TRAINING, help="its weight of "
        "positives: a number, one for each class (1,2,...), a file with them, or neg_pos, computed from --class-stats")
    add("--loss-class-weight", default="", metavar="W|FILE|NAME", role=Role.TRAINING, help="its weight of "
        "each class: numbers, a file with them, or inv_freq or effective_num, computed from --class-stats")
    add("--loss-weight-power", default=1.0, metavar="P", low=0, role=Role.TRAINING,
        help="exponent of neg_pos and inv_freq")
    add("--class-stats", default="", metavar="FILE", role=Role.TRAINING, help="json with pos_counts, the "
        "samples of each class, and num_samples, as timm's class_weights.py writes it")
    add("--asl-gamma-pos", default=1.0, metavar="G", low=0, role=Role.TRAINING, help="focus of the asl "
        "criterion on the true class")
    add("--asl-gamma-neg", default=4.0, metavar="G", low=0, role=Role.TRAINING, help="and on the others")
    add("--poly-epsilon", default=2.0, metavar="E", role=Role.TRAINING, help="coefficient of the poly "
        "criterion; 0 is cross-entropy")
    add("--reprob", default=0.0, metavar="P", low=0, high=1, off=0.0, help="random erasing")
    add("--remode", default="pixel", metavar="MODE", choices=("const", "rand", "pixel"), role=Role.TRAINING,
        help="its fill: const, rand or pixel")
    add("--recount", default=1, role=Role.TRAINING, help="its number of boxes")
    add("--resplit", action="store_true", role=Role.TRAINING, help="leave the first augmentation split without it")
    add("--mixup", default=0.0, metavar="A", low=0, off=0.0, role=Role.MIXING, help="alpha of mixup")
    add("--cutmix", default=0.0, metavar="A", low=0, off=0.0, role=Role.MIXING, help="alpha of cutmix")
    add("--cutmix-minmax", type=float, nargs="+", metavar="R", low=0, high=1, span=True, role=Role.MIXING,
        help="range of cutmix boxes, in place of alpha")
    add("--mixup-prob", default=1.0, metavar="P", low=0, high=1, role=Role.TRAINING,
        help="probability of mixing")
    add("--mixup-switch-prob", default=0.5, metavar="P", low=0, high=1, role=Role.TRAINING,
        help="share of cutmix where both are on")
    add("--mixup-mode", default="batch", metavar="MODE", role=Role.TRAINING,
        choices=("batch", "pair", "elem"), help="batch, pair or elem")
    add("--mixup-off-epoch", default=0, role=Role.TRAINING, help="no mixing from this epoch on")
    add("--smoothing", default=0.1, metavar="S", low=0, high=1 - 1e-6, role=Role.TRAINING,
        help="label smoothing of the criterion")
    add("--train-interpolation", default="random", metavar="NAME", choices=("", "random", *INTERPOLATIONS),
        role=Role.TRAINING,
        help="interpolation of random crops")
    add("--drop", default=0.0, metavar="R", low=0, high=1, role=Role.TRAINING, help="dropout")
    add("--drop-connect", type=float, metavar="R", low=0, high=1, role=Role.TRAINING, help="old name of --drop-path")
    add("--drop-path", type=float, metavar="R", low=0, high=1, role=Role.TRAINING, help="stochastic depth")
    add("--drop-block", type=float, metavar="R", low=0, high=1, role=Role.TRAINING, help="drop block")


def add_batch_norm(add: Declare) -> None:
    add = add.of(Role.MODEL)
    add("--bn-momentum", type=float, metavar="M", help="momentum of batch norm")
    add("--bn-eps", type=float, metavar="E", help="epsilon of batch norm")
    add("--sync-bn", action="store_true", help="synchronised batch norm (needs an accelerator)")
    add("--dist-bn", default="reduce", metavar="MODE", choices=("reduce", "broadcast", ""),
        help="statistics after an epoch: reduce or broadcast")
    add("--split-bn", action="store_true", needs=("aug_splits", "resplit"),
        help="separate batch norm for augmentation splits")


def add_ema(add: Declare) -> None:
    add = add.of(Role.TRAINING)
    add("--model-ema", action="store_true", role=Role.TRAINING | Role.SHAPE, help="keep an exponential moving average "
        "of the weights")
    add("--model-ema-force-cpu", action="store_true", help="keep it on the CPU, without evaluation")
    add("--model-ema-decay", default=0.9998, metavar="D", low=0, high=1, help="its decay")
    add("--model-ema-warmup", action="store_true", help="warm its decay up")


def add_misc(add: Declare) -> None:
    add = add.of(Role.REPORT)
    add("--seed", in_study="the key seeds", default=42, metavar="S", low=0, high=2 ** 32 - 1,
        role=Role.TUNING | Role.SEED, help="random seed")
    add("--worker-seeding", default="all", metavar="MODE", role=Role.TRAINING, choices=("all", "part"),
        help="seeding of the workers of iterable datasets")
    add("--log-interval", default=50, low=1, help="updates between log lines")
    add("--val-interval", "--eval-interval", default=1, low=1, role=Role.EVALUATION,
        help="epochs between evaluations")
    add("--save-epochs", type=int, nargs="+", default=[], help="keep a checkpoint after these epochs")
    add("--recovery-interval", default=0, low=0, help="updates between recovery checkpoints")
    add("--checkpoint-hist", type=int, low=1, help="checkpoints of the best epochs that "
        "are kept (default: 10, or fewer that take 500 MB together, but one)")
    add("-j", "--workers", default=4, low=0, role=Role.WHERE, evaluation="workers",
        help="data worker processes of each process (on CUDA as many as it has cores, from 4 to 16, unless given)")
    add("--save-images", action="store_true", role=Role.REPORT, help="save the images of logged batches")
    add("--pin-mem", action="store_true", role=Role.WHERE, help="pin host memory (on CUDA always so)")
    add("--no-prefetcher", action="store_true", role=Role.TRAINING, help="normalise images in the workers")
    add("--output", in_study="the --output of `study run`", default="", metavar="DIR", role=Role.WHERE,
        help="folder of runs (default: ./output/train)")
    add("--experiment", in_study="the study names its runs", default="", metavar="NAME", role=Role.WHERE,
        help="name of the run folder (default: time and model)")
    add("--eval-metric", default="top1", metavar="NAME", role=Role.SELECTION | Role.STUDENT,
        choices=("top1", "top5", "loss", "agreement", "few-shot"), help="metric that ranks checkpoints: top1, top5, "
        "loss, agreement (with --teacher), few-shot (the first kind of --few-shot-eval)")
    add("--long-tail", role=Role.EVALUATION, choices=["auto", "always", "never"], default="auto",
        help="also measure accuracy on classes with many, medium and few training samples; auto: where the training "
        "split has both many- and few-shot ones")
    add_long_tail(add)
    add("--tta", default=0, role=Role.EVALUATION, help="test-time augmentations, as consecutive "
        "samples")
    add("--log-wandb", action="store_true", help="log to Weights & Biases")
    add("--wandb-project", metavar="NAME", help="its project")
    add("--wandb-tags", nargs="+", default=[], metavar="TAG", help="its tags")
    add("--wandb-resume-id", default="", metavar="ID", help="its run to continue, another than the one that "
        "--resume continues by itself")
    add("--log-trackio", metavar="PROJECT", help="log to trackio, in this project")
    add("--train-img-sizes", type=int, nargs="+", low=1, form="N N", role=Role.MIXING,
        help="image sizes drawn batch by "
        "batch")
    add("--train-batch-sizes", type=int, nargs="+", low=1, needs=("train_img_sizes",),
        role=Role.TRAINING | Role.PER_PROCESS,
        help="batch size for each of them")
    add("--train-size-probs", type=float, nargs="+", metavar="P", low=0, needs=("train_img_sizes",),
        role=Role.TRAINING, help="probability of each of "
        "them")
    add("--train-size-schedule", choices=["constant", "progressive"], default="constant", role=Role.TRAINING,
        help="how they are drawn")
    add("--train-size-schedule-spread", default=0.65, metavar="S", role=Role.TRAINING,
        help="width of the progressive window")
    add("--train-size-random-mix", default=0.1, metavar="R", role=Role.TRAINING,
        help="share drawn uniformly")
    add("--train-batches-per-epoch", "--train-steps-per-epoch", type=int,
        low=1, needs=("train_img_sizes", "episodic"), role=Role.TRAINING,
        help="batches in an epoch of --train-img-sizes, or of --episodic")
    add("--variable-batch-loss-scale", choices=["none", "sqrt", "linear"], default="none",
        role=Role.TRAINING, help="scale of the loss with the batch size of --train-img-sizes")


def add_long_tail(add: Declare) -> None:
    """Groups of classes: shared by training and validation."""
    add = add.of(Role.EVALUATION)
    add("--long-tail-thresholds", type=int, nargs=2, default=[20, 100], metavar=("FEW", "MANY"), low=1, span=True,
        evaluation="long_tail_thresholds", help="few-shot classes have fewer training samples than FEW, many-shot "
        "classes more than MANY")


def add_naflex(add: Declare) -> None:
    """Flags of timm that are taken but not shown: of its patches, which no teacher takes, and what is always so."""
    add = add.of(Role.MODEL, help=argparse.SUPPRESS)
    add("--naflex-loader", action="store_true")
    add("--naflex-train-seq-lens", type=int, nargs="+", default=[128, 256, 576, 784, 1024])
    add("--naflex-max-seq-len", default=576)
    add("--naflex-patch-sizes", type=int, nargs="+")
    add("--naflex-patch-size-probs", type=float, nargs="+")
    add("--naflex-loss-scale", choices=["none", "sqrt", "linear"], default="linear")
    add("--naflex-patchify-channels-first", action="store_true")
    add("--use-multi-epochs-loader", action="store_true", role=Role.WHERE)


# ---------------------------------------------------------------- timm's validation script


def add_validation_data(add: Declare) -> None:
    add = add.of(Role.DATA)
    add("data", nargs="?", metavar="DIR", role=Role.WHERE | Role.DATA | Role.PLACE,
        help="folder of the data (as --data-dir)")
    add("--data-dir", metavar="DIR", role=Role.WHERE | Role.DATA | Role.PLACE, evaluation="data_dir",
        help="folder of the data (default: the one that IMAGENET_DIR names)")
    add("--dataset", default="", metavar="NAME", evaluation="dataset", help="TYPE/NAME, inat2018 or inat2021; empty: "
        "image folders or tar files")
    add("--split", default="validation", metavar="NAME", help="split to evaluate on")
    add_val_slice(add)
    add_test_sets(add)
    add("--num-samples", type=int, help="size of the split of an iterable dataset")
    add_reading(add)
    add("-j", "--workers", default=4, low=0, role=Role.WHERE, evaluation="workers",
        help="data worker processes of each process (on CUDA as many as it has cores, from 4 to 16, unless given)")
    add("-b", "--batch-size", default=256, low=1, role=Role.TRAINING, help="batch size")
    add("--crop-mode", metavar="MODE", help="center, squash or border")
    add("--crop-border-pixels", type=int, help="pixels cut off at each border")
    add("--tf-preprocessing", action="store_true", help="TensorFlow's preprocessing (needs tensorflow)")
    add("--pin-mem", action="store_true", role=Role.WHERE, help="pin host memory (on CUDA always so)")
    add("--no-prefetcher", action="store_true", role=Role.TRAINING, help="normalise images in the workers")


def add_validation_model(add: Declare) -> None:
    add = add.of(Role.MODEL)
    add("--model", "-m", default="dpn92", metavar="NAME", evaluation="model", help="timm name, hf-hub:ORG/NAME[@REV], "
        "local-dir:PATH, a wildcard, `all`, or a text file with one name a line")
    add("--pretrained", action="store_true", role=Role.START, help="use pretrained weights")
    add("--checkpoint", default="", metavar="PATH", help="checkpoint, run folder, or folder of checkpoints")
    add("--use-ema", action="store_true", help="use the EMA weights of the checkpoint")
    add_input(add)
    add("--use-train-size", action="store_true", help="evaluate at the training size where the model has both")
    add_execution(add)
    add("--num-gpu", default=1, help="number of GPUs")
    add("--test-pool", action="store_true", help="test-time pooling")
    add("--reparam", action="store_true", help="reparameterise the model")
    add("--aot-autograd", action="store_true", help="fuse the model with AOT autograd")
    add_precision(add)


def add_validation_report(add: Declare) -> None:
    add = add.of(Role.REPORT)
    add("--log-freq", default=10, help="batches between log lines")
    add("--results-file", default="", metavar="FILE", help="write the results to this file")
    add("--results-format", default="csv", metavar="FMT", choices=("csv", "json"), help="csv or json")
    add("--real-labels", default="", metavar="FILE", help="json of the ImageNet ReaL labels")
    add("--valid-labels", default="", metavar="FILE", help="text file of the class indices that count")
    add("--retry", action="store_true", help="retry with smaller batches when memory runs out")
    add("--seed", default=42, metavar="S", low=0, high=2 ** 32 - 1, role=Role.TUNING | Role.SEED,
        help="random seed")
    add("--metrics-avg", choices=["micro", "macro", "weighted"],
        help="add precision, recall and F1 with this average")
    add("--train-counts", default="", metavar="FILE|SPLIT", help="also measure accuracy on classes with many, medium "
        "and few training samples, counted in this split of the data or read from class_counts.json of a run (default: "
        "that of the checkpoint's run)")
    add_long_tail(add)
    add("--naflex-loader", action="store_true", help="NaFlex patches")
    add("--naflex-max-seq-len", default=576, help="longest sequence of NaFlex")


def add_validation_few_shot(add: Declare) -> None:
    add = add.of(Role.EVALUATION)
    add("--few-shot", metavar="NxK[,NxK][:E]", form="NxK", help="test the frozen encoder on E episodes (2000, or as "
        "many as the run had) of N classes of the split with K labelled images each, e.g. 5x1,5x5 (--split: novel "
        "unless given)")
    add_episode_test(add)


def add_validation_teacher(add: Declare) -> None:
    add = add.of(Role.TEACHER)
    add("--teacher", metavar="NAME[,NAME]", form="NAME", type=teacher_names,
        help="also evaluate this teacher, and the agreement with it")
    add("--teacher-checkpoint", metavar="PATH[,PATH]", help="weights of the teacher: a file or a run folder")
    add_prompts(add)
    add("--teacher-class-map", metavar="FILE", help="json or yaml: teacher class to student class")
    add("--teacher-img-size", type=int, low=1, help="input size of the teacher (default: its own)")
    add("--teacher-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V",
        help="arguments of the teacher's constructor")
    add("--ceiling-acc", type=float, metavar="ACC", low=0, high=100, role=Role.REPORT, needs=("teacher",),
        help="top-1 of the student trained on ground truth: adds the PGR")
    add("--ceiling-checkpoint", metavar="PATH", needs=("teacher",), help="checkpoint or run folder of that student, "
        "evaluated here")
    add("--plugins", nargs="+", default=[], metavar="MODULE", help="Python modules or files to import; runs their code")
    add("--debug", action="store_true", help="show the traceback of errors")
