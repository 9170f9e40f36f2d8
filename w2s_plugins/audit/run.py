"""``python -m w2s_plugins.labels audit RUN``: images are drawn, a person says what is on them, and the answers say
whether the student is better than its labels.
"""

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..cli.declare import words_of
from ..cli.parser import train_parser
from ..cli.values import locate, no_model
from ..data.keys import SampleKeys, sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError, quietly, say, typed, write_errors
from ..files import delete, file_sha256, to_json, write_text
from ..hub.export import check_export
from ..labels.commands import read_tables
from ..labels.samples import labels_of_samples
from ..labels.table import LabelTable
from ..labels.table_writer import write_label_table
from ..monitor import format_table, setup_logging
from ..registry import load_plugins
from ..training.learned import Learned, open_learned
from .draw import STRATA
from .estimate import Estimate, count_outcomes, estimate
from .page import encode, write_page
from .plan import Plan, is_draw, make_plan, plan_ingredients, read_plan

UNSURE = "?"  # the answer of who cannot tell
MANY = 0.1  # of the answers that are that
VALIDATION = 5  # every fifth checked image is for validation
# flags that a run on the checked images shares with this one: who labels, how the student begins, what it sees
KEPT = (
    "plugins",
    "unlabeled",
    "teacher",
    "teacher_checkpoint",
    "teacher_kwargs",
    "teacher_img_size",
    "prompts",
    "model",
    "model_kwargs",
    "pretrained",
    "pretrained_path",
    "initial_checkpoint",
    "finetune",
    "img_size",
    "in_chans",
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "hflip",
    "vflip",
)

_logger = logging.getLogger(__name__)


def audit(
    run: str, images: int, answers: str | None, data_dir: str | None, plugins: Sequence[str]
) -> None:
    """Draw images of a run and write the page about them; with ``answers``, say what these tell.

    Raises:
        UserError: no run that has ended; its images are not there; the answers cannot be read.
    """
    setup_logging(primary=True)
    load_plugins(plugins)
    exported, place = locate(run)
    model = (place or Path()) / "export" / "model.safetensors"
    if exported is None or place is None or not model.is_file():
        raise no_model("RUN", run, "the folder of a run that has ended")
    check_export(model.parent, "audit of")
    moved = [] if data_dir is None else ["--data-dir", data_dir]
    command = f"{typed('labels')} {shlex.join(['audit', run, *moved])}"

    # a plan is of one student, and of the images and labels that it has learned from
    learned, folder = open_learned(place, data_dir), place / "audit"
    made_of, file = plan_ingredients(file_sha256(model), learned), folder / "plan.json"
    plan = read_plan(file, made_of, learned)
    if answers is not None:
        if plan is None:
            raise UserError(
                f"--answers {answers}: no images were drawn for this student and what it has learned "
                f"from; expected {command} before"
            )
        tell(plan, learned, answers)
        return

    # what student and labels say is asked once; more images include those that were drawn before
    if plan is None and file.exists():
        _logger.warning(
            f"WARNING: {file} is not of this student and what it has learned from: images are drawn anew"
        )
    plan = plan or make_plan(made_of, learned)
    plan.drawn = drawn = min(images, len(plan.keys))
    with write_errors(folder):
        folder.mkdir(exist_ok=True)
    write_text(file, to_json(vars(plan)))
    agree = 100 * np.equal(plan.labels, plan.student).mean()
    say(
        f"{place}: the student agrees with its labels on {agree:.1f} % of {len(plan.keys)} images; {drawn} are drawn"
    )

    # two candidates come first, whether student and labels agree or not, so that the page does not tell
    candidates = [
        sorted({*pair}, key=plan.classes.__getitem__) for pair in zip(plan.student, plan.other)
    ][:drawn]
    page, sheet, keys = (
        folder / "index.html",
        folder / f"answers-{plan.id[:7]}-{drawn}.csv",
        plan.keys[:drawn],
    )
    write_page(
        page,
        pictures(learned.data.train, keys),
        title=place.resolve().name,
        command=f"{command} --answers FILE",
        audit=dict(
            id=plan.id,
            by=plan.by,
            classes=plan.classes,
            unsure=UNSURE,
            keys=keys,
            candidates=candidates,
        ),
    )
    if not sheet.exists():  # it may hold answers
        write_label_table(
            sheet, [{plan.by: keys, "label": [""] * drawn, "audit": [plan.id] * drawn}]
        )
    say(
        f"* open {page} in a browser and download your answers, or fill in {sheet}; then",
        f"{command} --answers FILE",
    )


def pictures(dataset: Dataset, keys: Sequence[str] | Sequence[int]) -> Iterator[Image.Image]:
    """Return the images with some keys, one by one. Raises `UserError` at once where one is not there any more."""
    images = without_transform(dataset)
    images.transform, places = (
        None,
        {key: row for row, key in enumerate(sample_keys(images).values)},
    )
    gone = [key for key in keys if key not in places]
    if gone:
        raise UserError(
            f"{len(gone)} of {len(keys)} drawn images are not in the data any more, such as {gone[0]}"
        )
    return (images[places[key]][0] for key in keys)


# ---------------------------------------------------------------- answers


def tell(plan: Plan, learned: Learned, file: str) -> None:
    """Say what answers tell of labels and student, and write the checked images as a labelled set.

    Raises:
        UserError: the answers cannot be read, are of another draw, or are about none of the images.
    """
    run = learned.run
    # read as any table; who cannot tell has a class of its own, and so has what several people differ about
    names, unsure, drawn = [*dict.fromkeys([*plan.classes, UNSURE])], len(plan.classes), plan.drawn
    keys = SampleKeys("filename" if plan.by == "filename" else "index", plan.keys)
    (table,), _, how = read_tables([[file]], names)
    check_draw(plan, table, run / "audit", file)
    with quietly():  # names are to be those of one image of all
        found = labels_of_samples(table, keys, names, how["combine"], file)
    truth, known = found.classes()[:drawn], found.known[:drawn].nonzero().flatten()
    check_order(plan, known.numpy(), file)
    truth[known[found.best(known).sum(dim=1) > 1]] = unsure
    answered, lost = len(known), int((truth == unsure).sum())
    truth[truth == unsure] = -1
    say(
        f"{file}: answers about {answered} of the {drawn} drawn images, of which {lost} are '{UNSURE}', cannot tell"
    )
    if lost == answered:
        raise UserError(f"{file}: says of no image what is on it")
    if others := len({*table.keys}) - answered:
        _logger.warning(
            f"WARNING: {others} answers are about images that are not drawn, and do not count"
        )
    if lost > MANY * answered:
        _logger.warning(
            "WARNING: so many are taken to be as the others of their kind, which may not be so"
        )

    # accuracies in percent
    labels, student, strata = map(np.array, (plan.labels, plan.student, plan.strata))
    result = estimate(
        np.bincount(strata, minlength=STRATA),
        count_outcomes(strata[:drawn], labels[:drawn], student[:drawn], truth),
    )
    rows = [
        [who, f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        for who, value, low, high in zip(("labels", "student", "difference"), *result[:3])
    ]
    say(
        *format_table(rows, ["", "accuracy", "95 % interval"]).split("\n"),
        verdict(result, plan, run, answered - lost),
    )

    # the checked images, and how to learn from them where the others have no labels
    checked, flags = run / "audit" / "checked", train_parser().by_dest()
    write_checked(plan, truth, checked, pictures(learned.data.train, plan.keys[:drawn]))
    words = [
        word
        for name in KEPT
        if (value := learned.settings.flags[name]) not in (None, flags[name].default)
        for word in words_of(flags[name], value)
    ]
    say(
        f"* checked images: {checked}. They are no random sample, because most are images that the student and its "
        "labels differ about: learn from them, but measure nothing else on them"
    )
    if learned.settings.data.unlabeled and all(
        (checked / part).is_dir() for part in ("train", "validation")
    ):
        # a class may have no image among the checked ones
        classes = checked / "classes.txt"
        write_text(classes, "".join(f"{name}\n" for name in plan.classes))
        words += [
            "--data-dir",
            str(checked),
            "--class-map",
            str(classes),
            "--stages",
            "weak-labels-plus-few-true",
        ]
        say(f"{typed('train')} {shlex.join([*words, '--experiment', run.name + '-checked'])}")


def check_draw(plan: Plan, table: LabelTable, folder: Path, file: str) -> None:
    """Raise a `UserError` for answers that say that they are of another draw."""
    draws = filter(is_draw, map(str.lower, table.draws))
    if {*draws} - {plan.id}:
        raise UserError(
            f"{file}: is of another draw: of another student, or of other images or labels; expected "
            f"answers to {folder / 'index.html'}"
        )


def check_order(plan: Plan, answered: np.ndarray, file: str) -> None:
    """Raise a `UserError` if an image has no answer, but one that is drawn after it has.

    The first images of the draw are a random sample of each stratum, however many they are. Any others are not: not
    those that a person found easy, nor those that were drawn for another student.

    Args:
        plan: the draw.
        answered: (n,) the numbers of the drawn images with an answer, in order.
        file: of the answers.
    """
    first, last = find_gap(answered)
    if first < last:
        raise UserError(
            f"{file}: has no answer about {plan.keys[first]}, image {first + 1} of the draw, but about "
            f"others after it: answers count in the order of the draw; expected one about each of the "
            f"first {last}, '{UNSURE}' if nobody can tell"
        )


def find_gap(answered: np.ndarray) -> tuple[int, int]:
    """Return how many of the first images have an answer, and up to which there are any: the same without a gap."""
    in_order = answered == np.arange(len(answered))
    return int(in_order.sum()), int(answered[-1]) + 1 if len(answered) else 0


def verdict(result: Estimate, plan: Plan, run: Path, answered: int) -> str:
    """Return what an estimate means, and what to do."""
    low, high = result.low[2], result.high[2]
    if low > 0:
        return f"Better: the student is right more often than its labels. Use {run / 'export'}"
    if high < 0:
        return "Worse: the labels are right more often than the student. Keep them"
    if low == high:
        return "Level: where they differ, as many images speak for either. Use whichever you like"
    needed = max(result.needed, answered + 1)
    advice = f"it would take more images than there are ({len(plan.keys)})"
    if needed < len(plan.keys):
        advice = (
            f"about {needed - answered} more answers would decide it, if the difference is as it seems (--images "
            f"{max(needed, plan.drawn)})"
        )
    return f"Not decided: the answers don't say whether the student is better than its labels; {advice}"


def write_checked(
    plan: Plan, truth: np.ndarray, folder: Path, images: Iterable[Image.Image]
) -> None:
    """Write the images with an answer as ``train/CLASS/`` and ``validation/CLASS/``, in place of earlier ones."""
    delete(folder)
    # a class may have a name that no folder can have
    unfit = {
        name
        for name in plan.classes
        if not name.isprintable() or Path(name).name != name or name == ".."
    }
    if unfit:
        _logger.warning(
            f"WARNING: no folder can be called {', '.join(sorted(unfit))}: their images are left out"
        )
    for number, (image, label) in enumerate(zip(images, truth), start=1):
        name = plan.classes[label]
        if label < 0 or name in unfit:
            continue
        place = folder / ("train" if number % VALIDATION else "validation") / name
        with write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:05}.jpeg").write_bytes(encode(image))
