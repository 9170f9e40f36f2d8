"""``python -m w2s_plugins.labels audit RUN``: images are drawn, a person says what is on them, and the answers say
whether the student is better than its labels.
"""

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..cli.declare import words_of
from ..cli.parser import train_parser
from ..cli.values import locate, no_model
from ..data import MapDataset
from ..data.keys import SampleKeys, sample_keys
from ..data.wrapper import without_transform
from ..errors import UserError, quietly, say, typed, write_errors
from ..files import delete, file_sha256, to_json, write_text
from ..hub.export import check_export
from ..labels.commands import read_tables
from ..labels.samples import labels_of_samples
from ..labels.table import LabelRows
from ..labels.table_writer import write_label_table
from ..monitor import format_table, setup_logging
from ..no_label import NO_LABEL
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
    # weights that a run has not exported may still change
    exported, run_folder = locate(run)
    model = (run_folder or Path()) / "export" / "model.safetensors"
    if exported is None or run_folder is None or not model.is_file():
        raise no_model("RUN", run, "the folder of a run that has ended")
    check_export(model.parent, "audit of")
    moved = [] if data_dir is None else ["--data-dir", data_dir]
    command = f"{typed('labels')} {shlex.join(['audit', run, *moved])}"

    # a plan is of one student, and of the images and labels that it has learned from
    learned = open_learned(run_folder, data_dir)
    folder = run_folder / "audit"
    file = folder / "plan.json"
    made_of = plan_ingredients(file_sha256(model), learned)
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
        f"{run_folder}: the student agrees with its labels on {agree:.1f} % of {len(plan.keys)} images; {drawn} are "
        "drawn"
    )

    # two candidates come first, whether student and labels agree or not, so that the page does not tell
    keys = plan.keys[:drawn]
    candidates = [
        sorted({student, other}, key=plan.classes.__getitem__)
        for student, other in zip(plan.student[:drawn], plan.other)
    ]
    page = folder / "index.html"
    write_page(
        page,
        pictures(learned.data.samples, keys),
        title=run_folder.resolve().name,
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

    # a sheet that is there may hold answers
    sheet = folder / f"answers-{plan.id[:7]}-{drawn}.csv"
    if not sheet.exists():
        write_label_table(
            sheet, [{plan.by: keys, "label": [""] * drawn, "audit": [plan.id] * drawn}]
        )
    say(
        f"* open {page} in a browser and download your answers, or fill in {sheet}; then",
        f"{command} --answers FILE",
    )


def pictures(dataset: MapDataset, keys: Sequence[str | int]) -> Iterator[Image.Image]:
    """Return the images with some keys, one by one. Raises `UserError` at once where one is not there any more."""
    images = without_transform(dataset)
    images.transform = None
    row_of = {key: row for row, key in enumerate(sample_keys(images).values)}
    gone = [key for key in keys if key not in row_of]
    if gone:
        raise UserError(
            f"{len(gone)} of {len(keys)} drawn images are not in the data any more, such as {gone[0]}"
        )

    def read(key: str | int) -> Image.Image:
        image, _ = images[row_of[key]]
        if not isinstance(image, Image.Image):
            raise TypeError("without a transform a dataset gives images as they are")
        return image

    return map(read, keys)


# ---------------------------------------------------------------- answers


def tell(plan: Plan, learned: Learned, file: str) -> None:
    """Say what answers tell of labels and student, and write the checked images as a labelled set.

    Raises:
        UserError: the answers cannot be read, are of another draw, or are about none of the images.
    """
    # read as any table; who cannot tell has a class of its own, and so has what several people differ about
    folder, drawn = learned.run / "audit", plan.drawn
    names, unsure = [*dict.fromkeys([*plan.classes, UNSURE])], len(plan.classes)
    keys = SampleKeys("filename" if plan.by == "filename" else "index", plan.keys)
    (table,), _, how = read_tables([[file]], names)
    check_draw(plan, table, folder, file)
    with quietly():  # names are to be those of one image of all
        answers = labels_of_samples(table, keys, names, how["combine"], file)
    truth = answers.classes()[:drawn]
    known = answers.known[:drawn].nonzero().flatten()
    check_order(plan, known.numpy(), file)
    truth[known[answers.best(known).sum(dim=1) > 1]] = unsure
    answered, lost = len(known), int((truth == unsure).sum())
    truth[truth == unsure] = NO_LABEL
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
    outcomes = count_outcomes(strata[:drawn], labels[:drawn], student[:drawn], truth)
    result = estimate(np.bincount(strata, minlength=STRATA), outcomes)
    rows = [
        [who, f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        for who, value, low, high in zip(("labels", "student", "difference"), *result[:3])
    ]
    say(
        *format_table(rows, ["", "accuracy", "95 % interval"]).split("\n"),
        verdict(result, plan, learned.run, answered - lost),
    )

    # the checked images, and how to learn from them where the others have no labels
    checked = folder / "checked"
    write_checked(plan, truth, checked, pictures(learned.data.samples, plan.keys[:drawn]))
    say(
        f"* checked images: {checked}. They are no random sample, because most are images that the student and its "
        "labels differ about: learn from them, but measure nothing else on them"
    )
    both_parts = all((checked / part).is_dir() for part in ("train", "validation"))
    if learned.settings.data.unlabeled and both_parts:
        say(command_with_checked(plan, learned, checked))


def command_with_checked(plan: Plan, learned: Learned, checked: Path) -> str:
    """Return the command that learns from the checked images beside those without labels."""
    # a class may have no image among the checked ones, and a file says that it is one
    classes = checked / "classes.txt"
    write_text(classes, "".join(f"{name}\n" for name in plan.classes))

    # as the run was trained, where its flags say otherwise than the defaults
    flags = train_parser().by_dest()
    words: list[str] = []
    for name in KEPT:
        value = learned.settings.flags[name]
        if value not in (None, flags[name].default):
            words += words_of(flags[name], value)
    words += ["--data-dir", str(checked), "--class-map", str(classes)]
    words += ["--stages", "weak-labels-plus-few-true"]
    words += ["--experiment", f"{learned.run.name}-checked"]
    return f"{typed('train')} {shlex.join(words)}"


def check_draw(plan: Plan, table: LabelRows, folder: Path, file: str) -> None:
    """Raise a `UserError` for answers that say that they are of another draw."""
    # other tables may have a column of that name with anything in it
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
    # the interval of the difference decides, not its value
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
        if label == NO_LABEL or name in unfit:
            continue
        # by its number in the draw, so that more answers leave each image in its part
        of_class = folder / ("train" if number % VALIDATION else "validation") / name
        with write_errors(of_class):
            of_class.mkdir(parents=True, exist_ok=True)
            (of_class / f"{number:05}.jpeg").write_bytes(encode(image))
