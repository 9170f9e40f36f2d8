"""The tables of docs/evidence/, made of the rows beside this file and of the reports of the studies.

    python docs/evidence/studies/tables.py
    python docs/evidence/studies/tables.py --check

The first line writes them into the pages. The second says which differ, and ends with 1 if any does. In a page a table
stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.

A CSV file has the name of its page, and a row is a run. ``commit`` is that of the code, or of the page that had the
number first. What nobody noted is empty. The studies of losses have reports instead, with means over seeds: of these a
table takes its numbers as they are.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pandas

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from w2s_plugins.study.statistics import t_interval  # noqa: E402

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
MARKS = {"▲ better": " ▲", "▼ worse": " ▼"}
TABLES: dict[str, Callable[[], str]] = {}


def makes(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Return a decorator for the function that makes the table of a name."""

    def add(function: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = function
        return function

    return add


# ---------------------------------------------------------------- rows, numbers and cells


def rows_of(name: str, figure: str = "top1") -> pandas.DataFrame:
    """Return the runs of a CSV file; what is empty there is an empty text, and its figure, as top1, a number."""
    rows = pandas.read_csv(HERE / f"{name}.csv", dtype=str, keep_default_na=False)
    return rows.assign(seed=rows["seed"].astype(int), top1=rows[figure].astype(float))


def values_of(rows: pandas.DataFrame, **chosen: str) -> list[float]:
    """Return the top-1 of the runs that have these values in these columns, in the order of their seeds."""
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("seed")["top1"].tolist()


def mean(values: Sequence[float]) -> float:
    """Return the mean, free of the noise of binary fractions."""
    return round(sum(values) / len(values), 6)


def show(value: float, digits: int = 1, sign: str = "") -> str:
    """Return a number of so many digits, halves rounded up as people do; with ``+`` as the sign it always has one."""
    rounded = Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{rounded:{sign}}"


def show_some(values: Sequence[float], seeds: int) -> str:
    """Return their mean, and in brackets how many they are, if not one of each seed."""
    count = "" if len(values) == seeds else f" ({len(values)})"
    return f"{show(mean(values))}{count}" if values else ""


def show_all(values: Iterable[float], digits: int = 1) -> str:
    """Return numbers with commas between."""
    return ", ".join(show(value, digits) for value in values)


def show_difference(values: Sequence[float]) -> str:
    """Return the mean of the differences of each seed, with its 95 % interval by Student's t."""
    found = {key: round(value, 6) for key, value in t_interval(values).items()}
    low, high = show(found["low"], sign="+"), show(found["high"], sign="+")
    return f"{show(found['value'], sign='+')} [{low}, {high}]"


def show_share(values: Sequence[float]) -> str:
    """Return the mean of a share (PGR) over seeds, with its 95 % interval by Student's t."""
    found = t_interval(values)
    return f"{show(found['value'], 2)} [{show(found['low'], 2)}, {show(found['high'], 2)}]"


def grid(header: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a table as Markdown, whose first columns are aligned on the left."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


# ---------------------------------------------------------------- reports of studies


@cache
def report_of(study: str) -> dict[str, pandas.DataFrame]:
    """Return the tables of a report by group (``labels30 → cnn5``), a row for each loss, the best one first.

    The columns are those of the report as texts, and ``teacher``, ``ceiling`` and ``top1`` as numbers.
    """
    text = (HERE / study / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^### `(.*), w2s(.*)`$", text.split("\n## Figures")[0], flags=re.MULTILINE)
    groups = {}
    for group, where, part in zip(parts[1::3], parts[2::3], parts[3::3]):
        both = re.search(r"teacher (\S+), ceiling (\S+) \(mean", part)
        if not both:  # a mean over data sets
            continue
        lines = [
            [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            for line in part.splitlines()
            if line.startswith("|")
        ]
        table = pandas.DataFrame(lines[2:], columns=lines[0]).set_index("loss")
        table["teacher"], table["ceiling"] = float(both[1]), float(both[2])
        table["top1"] = table["accuracy"].str.split().str[0].astype(float)
        groups[group + where] = table
    return groups


def cell_of(table: pandas.DataFrame, loss: str, with_pgr: bool = False) -> str:
    """Return the top-1 of a loss, its mark against the reference, and its PGR; the best of the table is bold."""
    row = table.loc[loss]
    pgr = row["PGR"].split()[0]
    text = show(row["top1"])
    text = f"**{text}**" if loss == table.index[0] else text
    text += MARKS.get(row["verdict"], "")
    return f"{text} ({pgr})" if with_pgr and pgr != "-" else text


def compare(
    groups: Mapping[str, tuple[str, pandas.DataFrame]],
    header: Sequence[str],
    losses: Sequence[str],
    with_pgr: bool = False,
) -> str:
    """Return the table of losses (the columns) by group, with teachers and ceilings.

    Args:
        groups: by what its line begins with, the study and the group of its report.
        header: of the columns.
        losses: names in the reports.
        with_pgr: whether the PGR stands in brackets.
    """
    lines = []
    for name, table in groups.items():
        ends = [show(table[column].iloc[0]) for column in ("teacher", "ceiling")]
        lines.append([name, *ends, *(cell_of(table, loss, with_pgr) for loss in losses)])
    return grid(header, lines)


PHOTOS = {
    "cifar10": "CIFAR-10",
    "gtsrb": "signs",
    "grocery": "groceries",
    "pacs": "PACS, photographs to paintings",
}


@makes("losses-photographs")
def losses_photographs() -> str:
    """The probes of the study of colour photographs."""
    report = report_of("real")
    groups = {
        f"{title}, {labels}": report[f"{name}: {labels} → probe"]
        for name, title in PHOTOS.items()
        for labels in ("few", "some", "many")
    }
    losses = ["hard", "kd", "adaptconf", "augconf", "gce", "logconf", "elr", "balanced_elr"]
    names = ["`kd`, T = 1" if loss == "kd" else f"`{loss}`" for loss in losses]
    return compare(groups, ["set, teacher", "teacher", "ceiling", *names], losses)


@makes("losses-tuned")
def losses_tuned() -> str:
    """Adapters and fine-tuning, of one seed."""
    report = report_of("real_tuned")
    groups = {
        f"{PHOTOS[name]}, {title}": report[f"{name}: some → {student}"]
        for name in ("cifar10", "grocery")
        for student, title in {"lora": "adapters", "tuned": "fine-tuned"}.items()
    }
    losses = ["hard", "adaptconf", "elr", "balanced_elr"]
    header = ["set, student", "teacher", "ceiling", *(f"`{loss}`" for loss in losses)]
    return compare(groups, header, losses)


@makes("losses-small")
def losses_small() -> str:
    """Digits and Fashion-MNIST."""
    groups = {}
    for study, teachers in {"digits": (30, 80, 300), "fashion": (100, 500, 2000)}.items():
        report = report_of(study)
        for labels in teachers:
            for student, title in {"cnn5": "small", "lite0-probe": "frozen Lite0"}.items():
                name = f"{study}, labels{labels} → {title}"
                groups[name] = report[f"labels{labels} → {student}"]
    losses = {
        "hard": "`hard`",
        "kd": "`kd`, T = 4",
        "kd-T1": "`kd`, T = 1",
        **{
            loss: f"`{loss}`"
            for loss in ("adaptconf", "augconf", "temporal", "elr", "balanced_elr")
        },
    }
    header = ["teacher → student", "teacher", "ceiling", *losses.values()]
    return compare(groups, header, list(losses), with_pgr=True)


@makes("paper")
def paper() -> str:
    """By how much AdaptConf is above others, with a small network on digits and Fashion-MNIST."""
    others = {"teacher": "the teacher", "kd-T1": "`kd`, T = 1", "kd": "`kd`, T = 4"}
    others |= {loss: f"`{loss}`" for loss in ("augconf", "hard")}
    lines = []
    for study, teachers in {"digits": (30, 80, 300), "fashion": (100, 500, 2000)}.items():
        report = report_of(study)
        for labels in teachers:
            table = report[f"labels{labels} → cnn5"]
            top1 = {**table["top1"], "teacher": table["teacher"].iloc[0]}
            above = [round(top1["adaptconf"] - top1[other], 6) for other in others]
            lines.append([f"{study}, labels{labels}", *(show(value, sign="+") for value in above)])
    return grid(["AdaptConf above", *others.values()], lines)


def sweep(title: str, names: Mapping[str, str]) -> str:
    """Return the table of one loss by the value of an argument.

    Args:
        title: above the teachers.
        names: by value, as it is shown, the name in the report.
    """
    report = report_of("digits_curves")
    lines = []
    for labels in ("labels30", "labels80", "labels300"):
        table = report[f"{labels} → cnn5"]
        marks = [MARKS.get(table.loc[name, "verdict"], "") for name in names.values()]
        cells = [show(table.loc[name, "top1"]) for name in names.values()]
        lines.append([labels, *(cell + mark for cell, mark in zip(cells, marks))])
    return grid([title, *names], lines)


@makes("temperatures-adaptconf")
def temperatures_adaptconf() -> str:
    """AdaptConf by its temperature."""
    names = {f"{T:g}": f"adaptconf-temperature={T}" for T in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)}
    return sweep("AdaptConf, T", names)


@makes("temperatures-kd")
def temperatures_kd() -> str:
    """KD by its temperature."""
    return sweep("KD, T", {f"{T:g}": f"kd-temperature={T}" for T in (0.5, 1.0, 2.0, 4.0)})


@makes("temperatures-augconf")
def temperatures_augconf() -> str:
    """AugConf by its weight."""
    names = {f"{a:g}": f"augconf-alpha={a}" for a in (0.0, 0.25, 0.5, 0.75, 0.9)}
    return sweep("AugConf, α", names)  # noqa: RUF001


@makes("balanced-elr")
def balanced_elr() -> str:
    """Four losses, with an EfficientNet-Lite0 on Fashion-MNIST."""
    report, lines = report_of("fashion_lite0"), []
    names = {
        "adaptconf": "`adaptconf`",
        "hard": "`hard`",
        "balanced_elr": "`balanced_elr`",
        "balanced_elr-lam6": "`balanced_elr`, `lam=6`",
    }
    students = {"lite0-probe": "frozen (linear probe)", "lite0": "fine-tuned, 3 epochs"}
    for student, title in students.items():
        table = report[f"labels700 → {student}"]
        pgr = table["PGR"].str.split().str[0].astype(float)
        for loss, name in names.items():
            row = table.loc[loss]
            best = "**" if pgr[loss] == pgr.max() else ""
            first = [title, show(row["ceiling"])] if loss == "adaptconf" else ["", ""]
            times = show(pgr[loss] / pgr["adaptconf"]) if loss != "adaptconf" else ""
            cells = [show(row["top1"]), f"{best}{pgr[loss]:.2f}{best}", times]
            lines.append([*first, name, *cells, row["difference"], row["p (Holm)"]])
    return grid(
        [
            "student",
            "ceiling",
            "loss",
            "accuracy",
            "PGR",
            "times AdaptConf's",
            "difference",
            "p (Holm)",
        ],
        lines,
    )


# ---------------------------------------------------------------- pages with rows


@makes("losses-tiny")
def losses_tiny() -> str:
    """Tiny ImageNet from nothing."""
    rows = rows_of("losses")
    teacher = values_of(rows, student="teacher")
    adaptconf, elr = (
        values_of(rows, flags=f"--loss {loss} --epochs 6") for loss in ("adaptconf", "elr")
    )
    above = [own - other for own, other in zip(elr, adaptconf)]
    lines = [
        [str(seed), *(show(value, 2) for value in values), show(round(own - other, 6), 2, "+")]
        for seed, values in enumerate(zip(teacher, adaptconf, elr))
        for _, other, own in [values]
    ]
    means = [show(mean(values), 2) for values in (teacher, adaptconf, elr)]
    found = {key: round(value, 6) for key, value in t_interval(above).items()}
    value, low, high = (show(found[key], 2, "+") for key in ("value", "low", "high"))
    lines.append(["mean", *means, f"{value} [{low}, {high}]"])
    return grid(["seed", "teacher", "`adaptconf`", "`elr`", "`elr` above it"], lines)


SCRATCH = "hard", "elr", "adaptconf"


@makes("crowd-resnet20")
def crowd_resnet20() -> str:
    """A ResNet-20 on the labels of a crowd."""
    rows, lines = rows_of("crowd"), []
    rows = rows[rows["student"].str.startswith("resnet20, ")]
    for labels, own in rows.groupby("labels", sort=False):
        cells = [own["top1"][own["student"] == f"resnet20, {loss}"].iloc[0] for loss in SCRATCH]
        title = str(labels).replace("dawid-skene", "Dawid-Skene")
        lines.append([title, own["right"].iloc[0], *map(show, cells)])
    return grid(["labels", "right", *(f"`{loss}`" for loss in SCRATCH)], lines)


COMBINED = "majority", "one-coin", "dawid-skene", "dawid-skene-pooled", "auto"


@makes("crowds")
def crowds() -> str:
    """Ways to combine the answers of crowds."""
    rows = pandas.read_csv(HERE / "crowds.csv", dtype=str, keep_default_na=False)
    rows["top1"] = rows["top1"].astype(float)
    lines = []
    for (crowd, answers), own in rows.groupby(["crowd", "answers"], sort=False):
        cells = [show(mean(own["top1"][own["how"] == way].tolist())) for way in COMBINED]
        taken = own["taken"][own["how"] == "auto"].value_counts()
        names = [
            f"{name} ({count})" if len(own) > len(COMBINED) else name
            for name, count in taken.items()
        ]
        lines.append([str(crowd), str(answers), *cells, ", ".join(names)])
    return grid(
        ["", "answers a person", *(f"`{way}`" for way in COMBINED), "what `auto` took"], lines
    )


@makes("labelme")
def labelme() -> str:
    """Students of a real crowd's labels of photographs, by seed, and their seconds."""
    rows, lines = rows_of("labelme"), []
    for (student, labels, right), runs in rows.groupby(["student", "labels", "right"], sort=False):
        values = values_of(runs)
        seconds = runs["seconds"].astype(float).median()
        how = f"`{labels}`" if labels in COMBINED else str(labels)
        cells = [show_all(values), show(mean(values)), f"{seconds:.0f}"]
        lines.append([str(student), how, str(right), *cells])
    return grid(["student", "learns from", "right", "by seed", "mean", "CPU s"], lines, left=2)


@makes("few-shot")
def few_shot() -> str:
    """Episodes of novel characters."""
    rows, lines = rows_of("few_shot"), []
    for student, own in rows.groupby("student", sort=False):
        cells = {
            row["episodes"]: f"{row['top1']:.2f} ± {row['half_interval']}"
            for _, row in own.iterrows()
        }
        name = re.sub(r"(w2s_\w+)", r"`\1`", str(student))
        shapes = [cells.get(shape, "") for shape in ("5x1", "5x5", "20x5")]
        lines.append([name, *shapes, own["seconds"].iloc[0]])
    return grid(["", "5x1", "5x5", "20x5", "seconds"], lines)


@makes("head")
def head() -> str:
    """Two heads of a whole student."""
    rows, lines = rows_of("head"), []
    for loss in ("kd", "hard", "adaptconf"):
        cells = [
            show_all(values_of(rows, set=name, flags=f"--loss {loss} --head-init-scale {scale}"))
            for name in ("CIFAR-10", "groceries")
            for scale in (1, 0)
        ]
        lines.append([f"`{loss}`", *cells])
    heads = [
        f"{name}, {how}" for name in ("CIFAR-10", "groceries") for how in ("timm's head", "zeros")
    ]
    return grid(["loss", *heads], lines)


NOISY = "hard labels", "kd", "adaptconf"


def noisy_cells(rows: pandas.DataFrame) -> list[list[float]]:
    """Return the numbers of a line, each by seed: wrong labels, teacher, students, what is selected, students of it."""
    selected = rows["flags"].str.contains("--clean-select")
    alone = rows[~selected]
    columns = [[float(value) for value in rows[rows["student"] == "teacher"]["wrong"]]]
    columns += [values_of(alone, student=student) for student in ("teacher", *NOISY)]
    if selected.any():
        of_seed = rows[selected & (rows["student"] == "kd")].sort_values("seed")
        columns += [of_seed[what].astype(float).tolist() for what in ("precision", "recall")]
        columns += [values_of(rows[selected], student=student) for student in NOISY]
    return columns


def noisy(name: str, noise: Sequence[str], corner: str, by_seed: bool) -> str:
    """Return a table of a set with noisy labels, a line for each seed and their mean, or for each kind of noise."""
    rows = rows_of("noisy")
    rows, lines = rows[rows["set"] == name], []
    for kind in noise:
        columns = noisy_cells(rows[rows["labels"] == kind])
        for seed, values in enumerate(zip(*columns)):
            title = f"seed {seed}" if by_seed else kind
            lines.append([title, *(show(value, 2) for value in values)])
        if by_seed:
            lines.append(["mean", *(show(mean(values), 2) for values in columns)])
    header = [corner, "wrong labels", "teacher", *NOISY, "precision", "recall", *NOISY]
    return grid(header[: len(lines[0])], lines)


@makes("noisy-digits-20")
def noisy_digits_20() -> str:
    """Digits, 20 % of the labels drawn anew."""
    return noisy("digits", ["symmetric:0.2"], "symmetric:0.2", by_seed=True)


@makes("noisy-digits-40")
def noisy_digits_40() -> str:
    """The same with 40 %."""
    return noisy("digits", ["symmetric:0.4"], "symmetric:0.4", by_seed=True)


@makes("noisy-photographs")
def noisy_photographs() -> str:
    """CIFAR-10."""
    kinds = ["symmetric:0.2", "symmetric:0.4", "asymmetric:0.4"]
    return noisy("CIFAR-10", kinds, "seed 0", by_seed=False)


@makes("noisy-fashion")
def noisy_fashion() -> str:
    """Fashion-MNIST, where nothing is selected."""
    return noisy("Fashion-MNIST", ["symmetric:0.2", "symmetric:0.4"], "seed 0", by_seed=False)


@makes("photographs-without-labels")
def photographs_without_labels() -> str:
    """A network, a table of it, three annotators, and the ceiling."""
    rows, lines = rows_of("photographs_without_labels"), []
    students = "teacher", "a", "b", "c", "ceiling"
    for name in ("groceries", "traffic signs"):
        own = {student: values_of(rows, set=name, student=student) for student in students}
        teacher, student, ceiling = (mean(own[who]) for who in ("teacher", "a", "ceiling"))
        pgr = show(round((student - teacher) / (ceiling - teacher), 6), 2)
        lines.append([name, *map(show_all, own.values()), pgr.replace("-0.00", "0.00")])
    return grid(["set", *students, "PGR of a"], lines)


@makes("students")
def students() -> str:
    """One student, trained in five ways."""
    rows, lines = rows_of("students"), []
    learned = rows[rows["student"] != "teacher"]
    best = max(mean(own["top1"].tolist()) for _, own in learned.groupby("flags"))
    for flags, own in learned.groupby("flags", sort=False):
        _, tune, _, rate = str(flags).split()
        values = values_of(own)
        text = f"**{show(mean(values))}**" if mean(values) == best else show(mean(values))
        weights = f"{int(own['trained_weights'].iloc[0]):,}"
        lines.append([f"`{tune}`", rate, weights, f"{text} ({show_all(values)})"])
    teacher = show_all(values_of(rows, student="teacher"))
    return grid([f"groceries; teacher {teacher}", "rate", "trained weights", "top-1"], lines)


TRANSFORMER = {
    "the teacher": "",
    "logistic regression on frozen features": "",
    "linear probe, `elr`, 0.003, batches of 128": "--linear-probe --loss elr --lr 0.003 --batch-size 128",
    "linear probe, `elr`, 0.01, batches of 64": "--linear-probe --loss elr --lr 0.01 --batch-size 64",
    "AdaptConf, whole student, 0.002, `--layer-decay 0.3`": "--loss adaptconf --lr 0.002 --layer-decay 0.3",
    "`head`, 0.003": "--tune head --lr 0.003",
    "`norm`, 0.002": "--tune norm --lr 0.002",
    "`last:0.3`, 0.0006: the values for convolutional networks": "--tune last:0.3 --lr 0.0006",
    "`last:0.3`, 0.0002": "--tune last:0.3 --lr 0.0002",
    "`last:0.3`, 0.002, `--layer-decay 0.3`": "--tune last:0.3 --lr 0.002 --layer-decay 0.3",
    "the same with `--model-ema --model-ema-decay 0.9`": (
        "--tune last:0.3 --lr 0.002 --layer-decay 0.3 --model-ema --model-ema-decay 0.9"
    ),
    "`last:1`, 0.0006": "--tune last:1 --lr 0.0006",
    "`last:1`, 0.002, `--layer-decay 0.3`": "--tune last:1 --lr 0.002 --layer-decay 0.3",
    "**`lora`, 0.002: the recipe**": "--tune lora --lr 0.002",
}


def of_transformer(title: str, name: str) -> list[float]:
    """Return the top-1 of a line of the table on a set, by seed."""
    rows = rows_of("transformer")
    flags = TRANSFORMER[title]
    if not flags:
        rows = rows[rows["student"] == title.removeprefix("the ").partition(" on ")[0]]
    rows = rows[rows["flags"].str.removeprefix("--config weak-labels ") == flags]
    return values_of(rows, set=name)


@makes("transformer")
def transformer() -> str:
    """A small ViT, trained in many ways."""
    lines = []
    for title in TRANSFORMER:
        cells = []
        for name in ("CIFAR-10", "groceries"):
            values = of_transformer(title, name)
            cells += [show_all(values), show(mean(values))]
        lines.append([title, *cells])
    return grid(["student", "CIFAR-10", "mean", "groceries", "mean"], lines)


ALL_WEIGHTS = {
    "teacher": "the teacher",
    "probe": "linear probe, `elr`, 0.01, batches of 64",
    "recipe": "**`lora`, 0.002: the recipe**",
    "all, field": "all weights as the field fine-tunes them",
    "all, LP-FT": "the same, from the probe's head (LP-FT)",
    "all, Auto-RGN": "from that head, a rate for each tensor (Auto-RGN)",
    "direct": "`direct`: the teacher's true labels alone, adapters",
}


@makes("transformer-all")
def transformer_all() -> str:
    """All weights of the ViT, in three ways, beside the recipe."""
    rows, lines = rows_of("transformer_all"), []
    for student, title in ALL_WEIGHTS.items():
        cells = []
        for name in ("CIFAR-10", "groceries"):
            values = values_of(rows, set=name, student=student)
            cells += [show_all(values), show(mean(values))] if values else ["-", "-"]
        lines.append([title, *cells])
    return grid(["student", "CIFAR-10", "mean", "groceries", "mean"], lines)


@makes("transformer-candidates")
def transformer_candidates() -> str:
    """Candidates that have learned half of the weak labels, and what they are measured by, each seed."""
    rows, header, lines = rows_of("transformer_all"), ["half of the labels, to"], {}
    of_candidates = rows[rows["student"].str.startswith("candidates, ")]
    for name in dict.fromkeys(of_candidates["set"]):
        header += [f"{name}: agrees, %", "ClassAMI", "top-1"]
        for student, own in of_candidates[of_candidates["set"] == name].groupby(
            "student", sort=False
        ):
            cells = [
                show_all(own.sort_values("seed")[column].astype(float), digits)
                for column, digits in (("held_out", 1), ("class_ami", 2), ("top1", 1))
            ]
            lines.setdefault(student, [str(student).removeprefix("candidates, ")]).extend(cells)
    return grid(header, lines.values())


@makes("few-true-vit")
def few_true_vit() -> str:
    """The stages with true labels, with the ViT."""
    rows, lines = rows_of("transformer_all"), []
    for name in dict.fromkeys(rows["set"][rows["student"] == "both"]):
        own = rows[rows["set"] == name]
        cells = [
            show_all(values_of(own, student=student))
            for student in ("teacher", "recipe", "direct", "both")
        ]
        lines.append([str(name), *cells])
    return grid(["set", "teacher", "the recipe", "`direct`", "`student`"], lines)


def several_by_student(name: str, figure: str) -> pandas.DataFrame:
    """Return a figure of several labels an image, on one set: seeds x students, NaN where a run is missing. Of all students
    the same seeds, those on which teacher, recipe and `direct` are there.
    """
    rows = rows_of("several_labels", figure)
    own = rows[rows["set"] == name].pivot(index="seed", columns="student", values="top1")
    return own.reindex(columns=[*SEVERAL]).dropna(subset=["teacher", "weak, recipe", "direct"])


@makes("hours")
def hours() -> str:
    """What the runs of each file took."""
    lines = []
    for file in sorted(HERE.glob("*.csv")):
        rows = pandas.read_csv(file, dtype=str, keep_default_na=False)
        noted = rows["seconds"][rows["seconds"] != ""].astype(float) if "seconds" in rows else []
        if len(noted):
            name = f"[{file.stem}](studies/{file.name})"
            lines.append([name, str(len(rows)), str(len(noted)), show(sum(noted) / 3600)])
    return grid(["rows", "runs", "of these with a time", "hours of a core"], lines)


@makes("several-labels")
def several_labels() -> str:
    """Several labels an image, over seeds: mAP, the difference to the teacher, and the share of the gap."""
    tables = {name: several_by_student(name, "map") for name in SEVERAL_SETS}
    lines = []
    for student in ("teacher", *SEVERAL_MEASURED):
        line = [SEVERAL[student]]
        for table in tables.values():
            own = table.dropna(subset=["teacher", student])
            gains = (own[student] - own["teacher"]).round(6)
            line += [show_some(own[student].tolist(), len(table))]
            if student == "teacher":
                line += ["", ""]
                continue
            line += [show_difference(gains.tolist()) if len(own) > 1 else ""]
            shares = (gains / (own["ceiling"] - own["teacher"])).dropna().tolist()
            wanted = student not in ("direct", "ceiling") and len(shares) > 1
            line += [show_share(shares) if wanted else ""]
        lines.append(line)
    counts = ["seeds"]
    for table in tables.values():
        counts += [str(len(table)), "", ""]
    heads = [
        f"{name}: {head}" for name in SEVERAL_SETS for head in ("mAP", "above the teacher", "PGR")
    ]
    return grid(["student", *heads], [*lines, counts])


@makes("several-labels-f1")
def several_labels_f1() -> str:
    """The F1 of the same students, means over seeds."""
    lines = []
    for student in ("teacher", *SEVERAL_MEASURED):
        line = [SEVERAL[student]]
        for name in SEVERAL_SETS:
            for figure in ("micro_f1", "macro_f1"):
                table = several_by_student(name, figure)
                line.append(show_some(table[student].dropna().tolist(), len(table)))
        lines.append(line)
    heads = [f"{name}: {figure}" for name in SEVERAL_SETS for figure in ("micro F1", "macro F1")]
    return grid(["student", *heads], lines)


@makes("several-labels-losses")
def several_labels_losses() -> str:
    """Losses of a linear layer on frozen features, over seeds: mAP, and the difference to the first one."""
    rows, lines = rows_of("several_labels", "map"), []
    for first, losses in PROBED.items():
        for loss in (first, *losses):
            line = [f"`{loss.split(', ')[-1]}`" + (", single labels" if "single" in loss else "")]
            for name in SEVERAL_SETS:
                own, other = (
                    values_of(rows, set=name, student=student) for student in (loss, first)
                )
                gains = [round(a - b, 6) for a, b in zip(own, other, strict=True)]
                line += [show(mean(own)), "" if loss == first else show_difference(gains)]
            lines.append(line)
    heads = [f"{name}: {head}" for name in SEVERAL_SETS for head in ("mAP", "above the first")]
    return grid(["loss", *heads], lines)


@makes("several-labels-tried")
def several_labels_tried() -> str:
    """All that was tried on one seed of both sets, the best of the first set first."""
    rows = rows_of("several_labels", "map")
    first = rows[rows["seed"].astype(str) == "0"].astype({"map": float})
    first = first[~first["student"].str.contains("probe")]
    by_set = first.pivot(index="student", columns="set", values="map")
    by_set = by_set[SEVERAL_SETS].sort_values(SEVERAL_SETS, ascending=False)
    lines = [
        [SEVERAL[str(student)], *("" if pandas.isna(v) else show(float(v)) for v in values)]
        for student, values in zip(by_set.index, by_set.to_numpy())
    ]
    return grid(["student", *(f"{name}: mAP" for name in SEVERAL_SETS)], lines)


@makes("transformer-above")
def transformer_above() -> str:
    """Differences between lines of that table, seed by seed."""
    lora, decay = "**`lora`, 0.002: the recipe**", "`last:0.3`, 0.002, `--layer-decay 0.3`"
    adaptconf = "AdaptConf, whole student, 0.002, `--layer-decay 0.3`"
    average = "the same with `--model-ema --model-ema-decay 0.9`"
    fast = "`last:0.3`, 0.0006: the values for convolutional networks"
    pairs = [
        *((who, "the teacher") for who in (lora, fast, decay, average, adaptconf)),
        (lora, decay),
        (lora, adaptconf),
        (average, decay),
    ]
    names = {
        lora: "`lora`",
        fast: "`last:0.3`, 0.0006",
        average: "`last:0.3` with layer decay and EMA",
    }
    names |= {decay: "`last:0.3` with layer decay", adaptconf: "AdaptConf, whole student"}
    lines = []
    for own, other in pairs:
        cells = []
        for name in ("CIFAR-10", "groceries"):
            both = zip(of_transformer(own, name), of_transformer(other, name))
            cells.append(show_difference([round(a - b, 6) for a, b in both]))
        lines.append([names[own], names.get(other, other), *cells])
    return grid(["student", "above", "CIFAR-10", "groceries"], lines, left=2)


OTHER_RULES = {
    "next": "`next`: MaxHerding (arXiv 2407.12212)",
    "typical": "TypiClust (2202.02794)",
    "gradients": "BADGE (1906.03671)",
    "doubted": "`next`, where images count less on which student and label agree",
    "k-centres": "k-centres",
    "margin": "margin",
}


@makes("next-images")
def next_images() -> str:
    """Which images to label next: rules above random drawing."""
    from next_images import ROUNDS, SETS, of_seeds

    rows, lines = pandas.read_csv(HERE / "next_images.csv"), []
    for name in ("cifar10", "grocery", "paintings", "gtsrb"):
        for rule in ("next", "k-centres", "margin", "random"):
            cells = []
            for answers in ROUNDS:
                own, other = (
                    of_seeds(rows, name, one, answers, "student") for one in (rule, "random")
                )
                cells.append(show(mean(own)) if rule == "random" else show_difference(own - other))
            direct = [mean(of_seeds(rows, name, rule, n, "direct")) for n in ROUNDS]
            first = SETS[name] if rule == "next" else ""
            title = "`next`" if rule == "next" else rule
            lines.append([first, title, *cells, show_all(direct)])
    return grid(["set", "rule", *map(str, ROUNDS), "`direct`"], lines, left=2)


@makes("next-images-rules")
def next_images_rules() -> str:
    """More rules, over all rounds."""
    from next_images import ROUNDS, SETS, TAUGHT, of_seeds

    rows, lines = pandas.read_csv(HERE / "next_images.csv"), []
    names = ["cifar10", "grocery", "paintings", "gtsrb"]
    taught = [mean(of_seeds(rows, name, TAUGHT, 0, "student")) for name in names]
    for rule, title in OTHER_RULES.items():
        cells = []
        for who in ("student", "direct"):
            for name in names:
                own, other = (
                    [mean(of_seeds(rows, name, one, n, who)) for n in ROUNDS]
                    for one in (rule, "random")
                )
                cells.append(show(round(mean(own) - mean(other), 6), sign="+"))
        lines.append([title, *(f"{a}, {b}" for a, b in zip(cells[:4], cells[4:]))])
    lines.append(["`taught`, which needs no answers: its top-1", *map(show, taught)])
    return grid(["rule", *(SETS[name] for name in names)], lines)


@makes("decoder")
def decoder() -> str:
    """Students that were trained with either decoder."""
    rows, lines = rows_of("decoder"), []
    for (name, student), own in rows.groupby(["set", "student"], sort=False):
        by = {
            which: own[own["decoder"] == which].sort_values("seed")
            for which in ("pil", "fast", "asked by fast")
        }
        pairs = list(zip(by["fast"]["top1"], by["pil"]["top1"]))
        lines.append(
            [
                str(name),
                str(student).replace("last third", "the recipe"),
                *(show_all(by[which]["top1"]) for which in ("pil", "fast")),
                show(mean([round(a - b, 6) for a, b in pairs]), sign="+"),
                show_all(by["fast"]["agreement"].astype(float)),
                show_all(by["asked by fast"]["top1"]),
                show_all(by["asked by fast"]["agreement"].astype(float)),
            ]
        )
    header = ["set", "student", "`pil`", "`fast`", "difference", "says the same"]
    return grid([*header, "`pil`, asked by `fast`", "says the same"], lines, left=2)


@makes("layout")
def layout() -> str:
    """Students that were trained in either memory layout, and one of them asked in three ways."""
    rows, lines = rows_of("layout"), []
    for name, of_set in rows.groupby("set", sort=False):
        by = {key: part.sort_values("seed") for key, part in of_set.groupby(["layout", "asked"])}
        chosen, other = (by[which, "as trained"] for which in ("channels last", "contiguous"))
        pairs = list(zip(chosen["top1"], other["top1"]))
        in_layout, half = (by["channels last", asked] for asked in ("channels last", "bfloat16"))
        lines.append(
            [
                str(name),
                show_all(chosen["top1"]),
                show_all(other["top1"]),
                show(mean([round(a - b, 6) for a, b in pairs]), sign="+"),
                show_all(chosen["agreement"].astype(float)),
                show_all(in_layout["top1"]),
                show_all(half["top1"]),
                show_all(half["agreement"].astype(float)),
            ]
        )
    header = ["set", "channels last", "timm's layout", "difference", "says the same"]
    return grid([*header, "asked in float32", "in bfloat16", "says the same"], lines)


# ---------------------------------------------------------------- nine sets

NINE = {
    "teacher": "the teacher",
    "probe, elr": "probe, `elr`",
    "probe, balanced_elr": "probe, `balanced_elr`",
    "probe, balanced_elr, shares": "the same, told the shares of the classes",
    "probe, kd": "probe, `kd`",
    "probe, adaptconf": "probe, `adaptconf`",
    "AdaptConf": "AdaptConf, whole student",
    "last third": "**the recipe**: the last third",
    "adapters": "the recipe with `--tune lora --lr 0.002`",
    "all": "the recipe with `--tune all --lr 0.001 --epochs 6`",
    "direct": "`direct`: the teacher's true labels alone, last third",
    "both": "`student`: these and the weak ones, last third",
}
SEVERAL_SETS = ["kinds", "grids"]
SEVERAL_MEASURED = [  # over seeds
    "weak, recipe",
    "weak, adaptconf",
    "weak, 0.002",
    "direct",
    "ceiling",
]
SEVERAL = {
    "teacher": "the teacher",
    "direct": "`direct`: the images that the teacher has learned from",
    "ceiling": "the ceiling: the students' images, by their true labels",
    "weak, recipe": "**the recipe**: `bce`, 30 epochs of mild crops at 0.0006",
    "weak, adaptconf": "the same with `adaptconf`",
    "weak, 60 epochs": "the recipe, 60 epochs",
    "weak, 0.002": "the recipe at 0.002",
    "weak, all": "the recipe, all weights",
    "weak, all, 0.002": "the recipe, all weights at 0.002",
    "whole, 0.002": "`bce`, whole images, 30 epochs at 0.002",
    "whole, 12 epochs, 0.002": "`bce`, whole images, 12 epochs at 0.002",
    "whole, 4 epochs, 0.002": "`bce`, whole images, 4 epochs at 0.002",
    "whole, 4 epochs": "`bce`, whole images, 4 epochs at 0.0006",
    "whole, elr, 4 epochs": "`elr`, whole images, 4 epochs at 0.0006",
    "whole, adaptconf": "`adaptconf`, whole images, 12 epochs at 0.002",
    "whole, asl": "`asl`, whole images, 12 epochs at 0.002",
    "whole, twoway": "`twoway`, whole images, 12 epochs at 0.002",
    "single, an": "`an`, whole images, 12 epochs at 0.0006, from one true label an image",
    "single, wan": "`wan`, the same",
}
PROBED = {  # by the loss that others are compared with
    "probe, bce": [
        f"probe, {loss}" for loss in ("kd", "adaptconf", "elr", "poly", "zlpr", "asl", "twoway")
    ],
    "single, probe, an": [f"single, probe, {loss}" for loss in ("wan", "ll_r", "ll_ct", "elr")],
}
AFTERWARDS = "clothes"  # the set on which nothing was chosen
CANDIDATES = {
    "probe, balanced_elr": "`probe`",
    "last third": "`last`",
    "adapters": "`adapters`",
    "all": "`all`",
}
WAYS = {
    "100 answers": "after 100 answers",
    "60 answers": "after 60 answers",
    "agreement": "agrees most with the teacher",
    "SND": "highest SND",
    "BNM": "highest BNM",
    "InfoMax": "highest InfoMax",
    "MaNo": "highest MaNo",
    "ClassAMI": "highest ClassAMI",
}


def by_student(name: str = "nine_sets") -> pandas.DataFrame:
    """Return the top-1 of each student (columns) of a file on each set and seed, as far as they are there."""
    rows = rows_of(name)
    table = rows.pivot(index=["set", "seed"], columns="student", values="top1")
    return table.reindex(pandas.MultiIndex.from_frame(rows[["set", "seed"]].drop_duplicates()))


def complete() -> pandas.DataFrame:
    """Return the rows of `by_student` on the sets and seeds on which all students of nine-sets.md are there."""
    # but for the last one, which takes the longest
    return by_student().dropna(subset=[student for student in NINE if student != "both"])


def sets_of(table: pandas.DataFrame) -> list[str]:
    """Return the sets of such a table in their order."""
    return list(dict.fromkeys(table.index.get_level_values("set")))


def over_seeds(values: "pandas.Series[float]") -> "pandas.Series[float]":
    """Return the mean over the seeds of each set, in the order of the sets."""
    return values.dropna().groupby("set", sort=False).mean().round(6)


@makes("nine-sets")
def nine_sets() -> str:
    """All students on nine sets."""
    table = complete()
    sets = sets_of(table)
    rows = rows_of("nine_sets").set_index(["set", "seed"]).loc[table.index]
    seconds = rows.assign(seconds=rows["seconds"].astype(float)).groupby("student")["seconds"]
    lines = []
    for student, title in NINE.items():
        means = over_seeds(table[student])
        cells = [show(means[name]) if name in means else "-" for name in sets]
        lines.append([title, *cells, show(seconds.median()[student], 0)])
    counts = table["last third"].dropna().groupby("set", sort=False).size()
    lines.append(["seeds", *(str(counts[name]) for name in sets), ""])
    return grid(["student", *sets, "CPU seconds"], lines)


@makes("nine-sets-above")
def nine_sets_above() -> str:
    """How far candidates are above their teacher and the best probe, on each set: all seeds that have both."""
    table = by_student().dropna(subset=["teacher", "last third", "direct"])
    probes = table[[name for name in NINE if name.startswith("probe") and "shares" not in name]]
    last = table["last third"]
    above = {
        "the recipe above its teacher": last - table["teacher"],
        "the recipe above the best of the four probes": last - probes.dropna().max(axis=1),
        "`direct` above the recipe": table["direct"] - last,
    }
    sets = [name for name in sets_of(table) if name != AFTERWARDS]
    lines = []
    for title, values in above.items():
        cells = [values[name].dropna().round(6).tolist() for name in sets]
        lines.append(
            [title, *(show_difference(v) if len(v) > 1 else show(v[0], sign="+") for v in cells)]
        )
    return grid(["", *sets], lines)


# what a notebook does, and the recipe without some of its parts
PARTS = {
    "teacher": "the teacher",
    "cross-entropy, random head": "cross-entropy, from a random head",
    "cross-entropy": "cross-entropy, from a head of zeros",
    "recipe, not refined": "the recipe, labels not refined",
    "recipe, cross-entropy": "the recipe with cross-entropy",
    "last third": "**the recipe**",
}


@makes("cross-entropy")
def cross_entropy() -> str:
    """Plain cross-entropy on the weak labels, and what each part of the recipe adds; the mean over sets is the last."""
    table = by_student("cross_entropy")
    sets = sets_of(table)
    students = {name: title for name, title in PARTS.items() if name in table}
    table = table[[*students]].dropna()
    lines = []
    for student, title in students.items():
        means = over_seeds(table[student])
        lines.append([title, *(show(means[name]) for name in sets), show(mean([*means]))])
    for student, title in students.items():
        if student == "last third":
            continue
        above = over_seeds((table["last third"] - table[student]).round(6))
        cells = [show(above[name], sign="+") for name in sets]
        lines.append([f"the recipe above {title}", *cells, show_difference(above.tolist())])
    return grid(["student", *sets, "mean"], lines)


OF_LITE0 = {
    **{name: NINE[name] for name in ("teacher", "last third")},
    "adapters": "`lora`",
    "all": "all weights at 0.001, six epochs",
    **{name: title for name, title in ALL_WEIGHTS.items() if name.startswith("all, ")},
    "direct": NINE["direct"],
}


@makes("nine-sets-all")
def nine_sets_all() -> str:
    """Ways to train all weights, on the sets and seeds on which they were tried."""
    table = by_student().dropna(subset=["all, Auto-RGN"])
    sets = sets_of(table)
    lines = []
    for student, title in OF_LITE0.items():
        means = over_seeds(table[student])
        lines.append([title, *(show(means[name]) for name in sets)])
    return grid(["student", *sets], lines)


def held_out_of(students: Sequence[str]) -> pandas.DataFrame:
    """Return what some students (columns) are measured by on the labels that they hold out, on each set and seed that has
    all of them.
    """
    rows = rows_of("nine_sets")
    rows = rows[rows["student"].isin(students) & (rows["held_out"] != "")]
    rows = rows.assign(held_out=rows["held_out"].astype(float))
    return rows.pivot(index=["set", "seed"], columns="student", values="held_out").dropna()


def take_highest(table: pandas.DataFrame, scores: pandas.DataFrame) -> "pandas.Series[float]":
    """Return the top-1 of the candidate whose score is the highest, of equals the first one; on sets and seeds that have
    both.
    """
    names = scores.reindex(table.index).dropna().idxmax(axis=1)
    return pandas.Series({key: table.loc[key, name] for key, name in names.items()})


def chosen() -> pandas.DataFrame:
    """Return the top-1 of each way to choose (columns) on each set and seed."""
    table = by_student().drop(AFTERWARDS, level="set")[[*CANDIDATES]].dropna()
    best = table.max(axis=1)
    # how often candidates that have learned half of the weak labels say what the other half says
    on_half = held_out_of([f"{name}, half" for name in CANDIDATES])
    on_half = on_half.rename(columns=lambda name: name.removesuffix(", half"))
    trained = on_half[["last third", "adapters", "all"]]
    of_all, of_trained = take_highest(table, on_half), take_highest(table, trained)
    # of each candidate the largest loss on the other sets
    loss = table.rsub(best, axis=0).groupby("set", sort=False).mean()
    for name in loss.index:
        least = loss.drop(name).max().idxmin()
        table.loc[[name], "least worst"] = table.loc[[name], least]
        table.loc[[name], "which"] = least
    ways = rows_of("choose").pivot(index=["set", "seed"], columns="way", values="top1")
    table = table.assign(best=best, half=of_trained, half_of_four=of_all)
    return table.join(ways)


@makes("nine-sets-choice")
def nine_sets_choice() -> str:
    """Ways to choose a candidate, and what they lose."""
    table = chosen()
    titles = {
        "best": "the best one, in hindsight",
        "half": "**`student`**: the part that agrees most with the labels of the other half",
        "half_of_four": "the same, the probe too",
        **{way: WAYS[way] for way in ("100 answers", "60 answers")},
        **{name: f"always {title}" for name, title in CANDIDATES.items()},
        "least worst": "the least worst loss on the other sets",
        **{way: title for way, title in WAYS.items() if "answers" not in way},
    }
    sets = sets_of(table)
    lines = []
    for way, title in titles.items():
        means = over_seeds(table[way].astype(float))
        below = over_seeds(table["best"] - table[way].astype(float))
        ends = [show(round(below.mean(), 6)), show(below.max())]
        lines.append([title, *(show(means[name]) for name in sets), *ends])
    return grid(["who is taken", *sets, "below the best", "at most"], lines)


@makes("nine-sets-explained")
def nine_sets_explained() -> str:
    """Whether frozen features explain the labels, beside what refining them is worth."""
    rows = pandas.read_csv(HERE / "out_of_fold.csv")
    table = complete()
    gain = over_seeds(table["last third"] - table["teacher"])
    means = rows.groupby("set", sort=False)[["agrees", "sure", "explained"]].mean().round(6)
    lines = []
    for name in gain.sort_values().index:
        agrees, sure, explained = means.loc[name]
        cells = [show(agrees), show(sure), show(100 * explained, 0), show(gain[name], sign="+")]
        lines.append([str(name), *cells])
    header = [
        "set",
        "agrees, %",
        "teacher is sure, %",
        "explained, %",
        "the recipe above its teacher",
    ]
    return grid(header, lines)


@makes("clothes")
def clothes() -> str:
    """A set on which nothing was chosen."""
    rows, lines = rows_of("nine_sets"), []
    rows = rows[rows["set"] == AFTERWARDS]
    for student, title in NINE.items():
        values = values_of(rows, student=student)
        if values:
            lines.append([title, show_all(values), show(mean(values))])
    return grid(["student", "top-1 of each seed", "mean"], lines)


def halves() -> pandas.DataFrame:
    """Return of each set and seed how often `part` and `whole` are right on the half that they hold out, the standard
    error of the better one, and `chosen`, the one whose part of the student the stages then train (`choose_best` in
    study/chain.py).
    """
    table = held_out_of(["part", "whole"])
    table["chosen"] = (table["whole"] > table["part"]).map({True: "whole", False: "part"})
    # of the share that the better one is right on, counted on half of the labels
    counts = rows_of("nine_sets").groupby(["set", "seed"])["labelled"].first()
    held_out = counts.astype(int) // 2
    best = table[["part", "whole"]].max(axis=1)
    table["error"] = (best * (100 - best) / held_out.reindex(table.index)) ** 0.5
    return table.reindex([key for key in by_student().index if key in table.index])


def as_chosen() -> pandas.DataFrame:
    """Return the rows of `by_student` with what the stages end with by themselves: `direct` and `both` are those of the
    part that `halves` says. Where a run is missing, so is the row.
    """
    chosen = halves()["chosen"]
    table = by_student().reindex(chosen.index)
    for student in ("direct", "both"):
        table[student] = table[student].where(chosen == "part", table[f"{student}, all"])
    return table.assign(chosen=chosen).dropna(subset=["direct", "both"])


@makes("few-true")
def few_true() -> str:
    """What the images without labels add to true labels, by the stages as they are."""
    table = as_chosen()
    lines = []
    for name in sets_of(table):
        own = table.loc[name].dropna(subset=["last third"])
        if own.empty:
            continue
        gains = (own["both"] - own["direct"]).round(6).tolist()
        interval = show_difference(gains) if len(gains) > 1 else ""
        means = [
            show(mean(own[who].tolist())) for who in ("teacher", "last third", "direct", "both")
        ]
        parts = " or ".join(
            {"part": "last third", "whole": "all"}[part] for part in dict.fromkeys(own["chosen"])
        )
        each = ", ".join(show(gain, sign="+") for gain in gains)
        lines.append([name, parts, *means, each, interval])
    header = ["set", "trained", "teacher", "the recipe", "`direct`", "`student`"]
    return grid([*header, "gain of each seed", "mean"], lines, left=2)


@makes("which-part")
def which_part() -> str:
    """By how much all weights are above the last third, on the halves and on the test images, seed by seed."""
    measured = halves()
    table = by_student().reindex(measured.index)
    columns = [
        measured["whole"] - measured["part"],
        table["direct, all"] - table["direct"],
        table["both, all"] - table["both"],
    ]
    lines = []
    for name in sets_of(measured):
        cells = []
        for column in columns:
            own = column.loc[name].round(6)
            shown = ["-" if pandas.isna(value) else show(value, sign="+") for value in own]
            cells.append(", ".join(shown) if own.notna().any() else "-")
        chosen = measured["chosen"].loc[name]
        cells.append(f"{sum(chosen == 'whole')} of {len(chosen)}")
        lines.append([name, *cells])
    return grid(["set", "halves", "`direct`", "`student`", "all is chosen"], lines)


@makes("part-rules")
def part_rules() -> str:
    """What rules for the part to train would cost `direct`, against the better part of each set and seed."""
    table = halves().join(by_student()[["direct", "direct, all"]]).dropna()
    # by how many standard errors all weights have to be better on the half
    rules = {
        "always the last third": float("inf"),
        "always all": float("-inf"),
        "**what is better on the halves**": 0,
        "all, if better by a standard error": 1,
        "all, if better by two": 2,
    }
    better = (table["whole"] - table["part"]) / table["error"]
    best = table[["direct", "direct, all"]].max(axis=1)
    losses = pandas.DataFrame(
        {
            rule: over_seeds(best - table["direct"].where(better <= least, table["direct, all"]))
            for rule, least in rules.items()
        }
    )
    # the rule that loses least on the other sets, for each set
    left_out = pandas.Series(
        {name: losses.loc[name, losses.drop(name).mean().idxmin()] for name in losses.index}
    )
    losses["the best of these rules on the other nine sets"] = left_out
    lines = [[rule, show(own.mean()), show(own.max())] for rule, own in losses.items()]
    return grid(["`direct` trains", "below the better part", "at most"], lines)


@makes("crowd-and-true")
def crowd_and_true() -> str:
    """A crowd's labels beside true ones."""
    table = by_student("crowd_and_true")
    titles = {
        "direct": "`direct`: 1,000 true labels",
        "crowd": "the recipe, on the majority's labels",
        "crowd and direct": "`student`: the majority's labels and 1,000 true ones",
        "three and direct": "the same, each of three columns of answers is a teacher",
    }
    lines = []
    for student, title in titles.items():
        gains = (table[student] - table["direct"]).round(6).tolist()
        above = show_difference(gains) if student != "direct" and len(gains) > 1 else ""
        lines.append([title, show_all(table[student]), above])
    return grid(["student", "top-1 of each seed", "above `direct`"], lines)


STORED = {
    "mean": "`elr` on the mean of teacher and `direct`",
    "posterior": "`elr` on their posterior",
    "both": "**the same, and strong views**",
    "both, two rounds": "that twice, `student` in the place of `direct`",
    "both, mean teacher": "strong views learn what an average of the weights says",
    "both, weighed": "strong views count by SoftMatch's weights",
    "fixmatch": "FixMatch, no teacher",
    "freematch": "FreeMatch, no teacher",
    "softmatch": "SoftMatch, no teacher",
}


@makes("stored-inputs")
def stored_inputs() -> str:
    """Ways to use images without labels, above `direct`."""
    table = by_student("stored_inputs")
    sets = sets_of(table)
    direct = over_seeds(table["direct"])
    lines = [["`direct`", *(show(direct[name]) for name in sets), ""]]
    names = dict(STORED)
    for right in ("60 %", "90 %"):
        names[f"mean, {right}"] = f"the mean, labels right on {right}"
        names[f"both, {right}"] = f"**posterior and strong views**, labels right on {right}"
    for way, title in names.items():
        gains = over_seeds(table[way] - table["direct"])
        cells = [show(gains[name], sign="+") if name in gains else "-" for name in sets]
        # some ways were tried on two sets alone, whose mean would be that of other sets
        is_everywhere = {*sets} <= {*gains.index}
        cells.append(show(round(gains.mean(), 6), sign="+") if is_everywhere else "")
        lines.append([title, *cells])
    counts = table["direct"].dropna().groupby("set", sort=False).size()
    lines.append(["seeds", *(str(counts[name]) for name in sets), ""])
    return grid(["", *sets, "mean"], lines)


# ---------------------------------------------------------------- audits

RULES = {
    "audit": "**as `audit` does**, in rounds of 50",
    "audit at once": "the same, all at once",
    "differing": "where some differ",
    "uniform": "from all images",
    "CODA": "by CODA",
    "CODA, whole answers": "by CODA, an answer adds 1",
}
OF_TWO = {"audit": "**as `audit` does**", "differing": "where they differ"}
SHOWN = 25, 50, 100, 200


def audits(person: float, mistakes: str) -> pandas.DataFrame:
    """Return means over sets by students, rule and answers of the audits in which a person is so often right."""
    rows = pandas.read_csv(HERE / "audit_several.csv")
    rows = rows[(rows["person"] == person) & (rows["mistakes"] == mistakes)]
    return rows.groupby(["students", "rule", "answers"]).mean(numeric_only=True)


def over_answers(
    means: pandas.DataFrame, students: int, rule: str, what: str, digits: int
) -> list[str]:
    """Return a column of the audits after 25, 50, 100 and 200 answers."""
    return [show(round(means.loc[(students, rule, n), what], 6), digits) for n in SHOWN]


@makes("audit-best")
def audit_best() -> str:
    """Which of several students an audit names."""
    means, lines = audits(1, "any"), []
    for students in (2, 4, 8):
        for rule, title in RULES.items():
            if students == 2 and rule == "audit at once":  # there are no rounds
                continue
            title = OF_TWO.get(rule, title) if students == 2 else title
            named = over_answers(means, students, rule, "named", 0)
            lines.append(
                [str(students), title, *named, *over_answers(means, students, rule, "lost", 2)]
            )
    named = ["best named: 25 answers", "50", "100", "200"]
    return grid(
        ["students", "images drawn", *named, "points lost: 25 answers", "50", "100", "200"],
        lines,
        left=2,
    )


@makes("audit-for-good")
def audit_for_good() -> str:
    """After how many answers the best student is named for good, on each set."""
    rows = pandas.read_csv(HERE / "audit_several.csv")
    rows = rows[(rows["person"] == 1) & (rows["rule"] == "audit")].drop_duplicates(
        ["set", "students"]
    )
    lines = []
    for students, own in rows.groupby("students"):
        ends = [sorted(own[name]) for name in ("half_for_good", "most_for_good")]
        cells = [", ".join(f"{n:.0f}" if n < float("inf") else "more" for n in end) for end in ends]
        lines.append([str(students), *cells])
    return grid(["students", "in half of the audits", "in four fifths"], lines)


@makes("audit-intervals")
def audit_intervals() -> str:
    """Whether the intervals of an audit hold the truth."""
    means = audits(1, "any")
    columns = {
        "all intervals decide": ("decided", 0),
        "wrongly": ("decided_wrongly", 1),
        "called most likely best": ("likely", 0),
        "wrongly so": ("likely_wrongly", 1),
        "all differences held": ("differences_held", 0),
        "accuracies held": ("accuracies_held", 0),
        "half width": ("half_width", 1),
    }
    lines = [
        [
            str(n),
            *(", ".join(over_answers(means, n, "audit", *column)) for column in columns.values()),
        ]
        for n in (2, 4, 8)
    ]
    return grid(["students", *columns], lines)


@makes("audit-mistakes")
def audit_mistakes() -> str:
    """The same with a person who makes mistakes."""
    columns = {
        "best named": ("named", 0),
        "points lost": ("lost", 2),
        "called most likely best, wrongly": ("likely_wrongly", 1),
        "all differences held": ("differences_held", 0),
    }
    lines = []
    for mistakes, title in {"any": "any class", "plausible": "plausible"}.items():
        means = audits(0.97, mistakes)
        for n in (2, 4, 8):
            cells = [
                ", ".join(over_answers(means, n, "audit", *column)) for column in columns.values()
            ]
            lines.append([title, str(n), *cells])
    return grid(["mistakes", "students", *columns], lines)


# ---------------------------------------------------------------- pages


def fill(text: str) -> str:
    """Return the text of a page with its tables made anew; one that nothing makes stays."""
    return BLOCK.sub(
        lambda block: block[1] + TABLES[block[2]]() + block[3] if block[2] in TABLES else block[0],
        text,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables into the pages, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    parser.add_argument("--pages", type=Path, default=PAGES, help="folder of the pages")
    args = parser.parse_args(argv)
    said, found = [], set()
    for page in sorted(args.pages.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        names = {name for _, name, _ in BLOCK.findall(text)}
        said += [f"{page.name}: nothing makes the table {name}" for name in names - TABLES.keys()]
        found |= names
        made = fill(text)
        if made != text and args.check:
            said.append(
                f"{page.name}: a table differs from its rows; {Path(__file__).name} writes it"
            )
        elif made != text:
            page.write_text(made, encoding="utf-8")
    said += [f"{name}: this table stands in no page" for name in sorted(TABLES.keys() - found)]
    print(*said, sep="\n", end="\n" if said else "")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
