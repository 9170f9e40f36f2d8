"""Which class each label of a file means, however it is written; docs/labels.md has the rules for a person."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..errors import LONGEST_NAME, UserError, logger
from ..files import check_count
from ..no_label import NO_LABEL
from .names import same_text, same_word

# no class, unless one is called so: somebody does not know
UNSAID = ("", "?", "-", "na", "n/a", "nan", "null")
MARKS = ".,:;!?'\"()[]*`"  # that may be slips, as letters may be
MOST_COUNTED = 8  # labels that are shown with their counts
VOTERS = 100  # probabilities that differ are more than a vote has
_LIKE_LIST = re.compile(r"[;|]\s*\w|,\s*[^\W\d]")  # no decimal comma
# a list of JSON, Python or Label Studio, however long: names may be in brackets, but not in quotes behind the first one
LISTED = re.compile(r"""(?s)\[\s*['"].*|\[[0-9,\s]*\]|\{\s*['"].*""")
_WHOLE = re.compile(r"(-?[0-9]{1,11})(\.0+)?")


@dataclass(frozen=True)
class Understood:
    """What the labels of a file mean.

    Args:
        numbers: of the class of each label, `NO_LABEL` where it is none.
        names: of the classes, in the order of their numbers; None where there are numbers only.
        odd: how often each label is said that is no class, the most frequent one first.
        lists: labels that are several ones, or written as a list.
        doubtful: labels that are taken for one class each, and may be several.
        expected: in place of others that are no class.
        ask: whether labels that are no class are to be asked about, however few they are.
    """

    numbers: dict[str, int]
    names: list[str] | None
    odd: dict[str, int]
    lists: set[str]
    doubtful: Sequence[str]
    expected: str
    ask: bool

    def fault(self, label: str) -> str:
        """Return what is wrong with a label that is no class."""
        wrong = f"is no class{self.expected}"
        if label in self.lists:
            is_bare = LISTED.fullmatch(label) and len(_parts(label)) < 2
            wrong = f"{'is a list' if is_bare else 'holds several labels'}; expected one, or --task multilabel"
        return f"'{label[:40]}' {wrong}"


def understand(
    counts: Counter[str],
    class_names: Sequence[str] | None,
    likely: Sequence[str],
    flag: str,
    trusted: bool,
    keep: bool = False,
    alone: bool = False,
) -> Understood:
    """Find the class of each label.

    Args:
        counts: how often each label is said.
        class_names: names of the classes in order, None where nothing but the file says them.
        likely: names that are classes at any rate.
        flag: begins the messages.
        trusted: labels that may be slips or lists are classes all the same.
        keep: those that may be slips are.
        alone: lists have been taken apart, so that each label is one.
    """
    # capitals and spaces first: what differs in these alone is counted together below
    meant = respelt(counts, likely, flag)
    merged: Counter[str] = Counter()
    for label, count in counts.items():
        merged[meant.get(label, label)] += count

    # somebody may not have known, or have meant a more frequent label, where nothing else says what is a class
    odd = {label for label in merged.keys() - {*likely} if label.casefold() in UNSAID}
    lists = set() if trusted or alone else _lists({*merged, *likely}) - {*likely}
    doubtful: list[str] = []
    if class_names is None and not trusted:
        odd |= lists | (set() if keep else _misspelt(merged, likely))
        # what is taken for one name may still be two of classes that stand nowhere alone
        whole_names = merged.keys() - odd - {*likely}
        if not alone:
            doubtful = [label for label in sorted(whole_names) if _LIKE_LIST.search(label)]
    # sorted, so that the order of the rows does not decide the numbers of the classes
    labels = sorted(merged.keys() - odd)
    numbers, names = class_numbers(labels, class_names, flag)

    # numbers of which some are no names may all be positions
    positions = range(len({*(class_names or ())} - {"?"}))
    shifted = NO_LABEL in numbers.values() and all(whole(label) in positions for label in labels)
    expected = "; expected a name, always written alike, or a number"
    if shifted:
        expected = ", though all may be positions from 0, and the others wrong without these; expected names"
    elif class_names:
        expected = f"; expected the name of one or, in all rows, its number below {len(positions)}"
    numbers = {label: numbers.get(meant.get(label, label), NO_LABEL) for label in counts}
    unknown = {label: count for label, count in counts.most_common() if numbers[label] == NO_LABEL}
    ask = class_names is None or shifted
    return Understood(numbers, names, unknown, lists, doubtful, expected, ask)


def warn_of_lists(labels: Sequence[str], flag: str) -> None:
    """Warn of labels that are taken for one class each, and may be several: `Understood.doubtful`."""
    if labels:
        texts = ", ".join(f"'{label[:40]}'" for label in labels[:MOST_COUNTED])
        logger.warning(
            f"WARNING: {flag}: taken for one class each: {texts}; if these are several labels, take --task multilabel"
        )


def counted(counts: Mapping[str, int], hint: Callable[[str], str]) -> str:
    """Return how often labels are said, the first of them by name, each with a ``hint``."""
    texts = [f"'{label[:40]}' {counts[label]}{hint(label)}" for label in [*counts][:MOST_COUNTED]]
    rest = len(counts) - len(texts)
    return ", ".join(texts) + (f" and {rest} more" if rest else "")


def are_computed(shares: np.ndarray) -> bool:
    """Say whether probabilities are those of a program, which misspells no class: they have more digits than people
    type, and differ more than shares of votes do.
    """
    # 0 and 1 may be anybody's, and a few fractions of votes are long, too: 1/3
    between = shares[(shares > 0) & (shares < 1)]
    long = np.unique(between[between != between.round(4)])
    return len(long) > min(len(between) / 2, VOTERS)


# ---------------------------------------------------------------- how a class is written


def respelt(counts: Counter[str], known: Sequence[str], flag: str) -> dict[str, str]:
    """Return the class that each label means which is written otherwise: the one ``known`` class that differs in
    capitals, spaces or the form of Unicode alone, or else, but for capitals, the label that is said most often.
    """
    # two known classes may differ in capitals alone: then neither is meant by a third spelling
    exact, words = {*known}, Counter(map(same_word, known))
    classes = {same_word(name): name for name in known if words[same_word(name)] == 1}
    first: dict[str, str] = {}
    meant: dict[str, str] = {}
    for label, _ in counts.most_common():
        if label in exact or label.casefold() in UNSAID:
            continue
        name = classes.get(same_word(label)) or first.setdefault(same_text(label), label)
        if name != label:
            meant[label] = name
    if meant:
        otherwise = counted(
            {label: counts[label] for label in meant}, lambda label: f" ({meant[label][:40]})"
        )
        logger.info(f"{flag}: classes that are written otherwise: {otherwise}")
    return meant


def _lists(labels: Collection[str]) -> set[str]:
    """Return the labels that are several ones: a list in brackets, or with commas, semicolons, bars, slashes or line
    ends between parts that are all said elsewhere; it is enough that two of them are labels, with semicolons or bars
    that one is, and with commas that most labels with commas have such a part. Those with spaces are several ones where
    there are fewer words than labels, and some of these are one word.

    However rare such a label is: people write a list where they need one. But nothing shows that ``beach, dog`` is one
    where neither is said elsewhere: timm itself has classes such as ``tench, Tinca tinca``. `warn_of_lists` is for it.
    """
    parts = {label: _parts(label) for label in labels}
    counts = Counter(word for words in parts.values() for word in {*words})
    alone = {words[0] for words in parts.values() if len(words) == 1}

    # a comma or slash may be part of a name, as in "crane, bird": its parts are then said nowhere else, or hardly ever
    with_comma = {label for label, words in parts.items() if "," in label and len(words) > 1}
    listed_too = {label for label in with_comma if alone & {*parts[label]}}
    lists = with_comma if 2 * len(listed_too) > len(with_comma) else set()
    for label, words in parts.items():
        named = alone & {*words}
        listed = label.startswith(("[", "{")) or all(counts[word] > 1 for word in words)
        listed = listed or len(named) > 1 or bool(named and re.search("[;|]", label))
        if (len(words) > 1 and listed) or LISTED.fullmatch(label):
            lists.add(label)

    # names of two words have mostly one of their own: of tags there are fewer than of their combinations
    tags = {label: same_word(label).split() for label in labels}
    if len({*chain(*tags.values())}) < len({*map(tuple, tags.values())}) and any(
        len(words) == 1 for words in tags.values()
    ):
        lists |= {label for label, words in tags.items() if len(words) > 1}
    return lists


def _parts(label: str) -> list[str]:
    """Return what stands between the commas, semicolons, bars, slashes and line ends of a label."""
    texts = re.split(r"[,;|/\n]", label.strip("[]{}"))
    return [word for word in (same_word(text.strip("'\" ")) for text in texts) if word]


def divided_by(mark: str, labels: Collection[str]) -> str | None:
    """Return the first label that may be several ones with a ``mark`` between them: each part of it is in others, too;
    None where there is none.
    """
    parts = {label: {*filter(None, map(same_word, label.split(mark)))} for label in labels}
    counts = Counter(part for of_label in parts.values() for part in of_label)
    return next(
        (
            label
            for label, of_label in parts.items()
            if len(of_label) > 1 and all(counts[part] > 1 for part in of_label)
        ),
        None,
    )


def _misspelt(counts: Counter[str], likely: Sequence[str]) -> set[str]:
    """Return the labels that may be meant to be another one that is said more often: where they differ in capitals, or
    by a letter, hyphen, space or mark that is left out, added, changed or moved, if the other is said 1.5 times as
    often, or is a ``likely`` one.
    """
    counts = counts | Counter(dict.fromkeys(likely, 2 * sum(counts.values())))
    # a frequent label comes first, so that a rare one finds it, and not the other way round
    meant: set[str] = set()
    forms: dict[str, str] = {}
    for name, count in counts.most_common():
        # such names are alike without one of their letters, or without the marks around them
        word = same_word(name)
        alike = [word, word.strip(MARKS) or word]
        if 2 < len(word) <= LONGEST_NAME:
            alike += [word[:i] + word[i + 1 :] for i in range(len(word)) if _may_be_slip(word, i)]
        near = [forms[form] for form in alike if form in forms]
        if any(same_word(other) == word or 1.5 * count <= counts[other] for other in near):
            meant.add(name)
        else:
            for form in alike:
                forms.setdefault(form, name)
    return meant - {*likely}


def _may_be_slip(name: str, i: int) -> bool:
    """Say whether a character of a name may be one too many: no digit, nor the point of a number."""
    return (
        name[i].isalpha() or name[i] in "-_ " or (name[i] in MARKS and not name[:i][-1:].isdigit())
    )


# ---------------------------------------------------------------- numbers of classes


def class_numbers(
    said: Sequence[str],
    class_names: Sequence[str] | None,
    flag: str,
) -> tuple[dict[str, int], list[str] | None]:
    """Return the number of each class that a file says, `NO_LABEL` for what is no class, and the names by number.

    Names are matched as they are written. Numbers stand for positions where no class has a number for its name; where
    all classes have one, 1 is the class 01, and never the second one.

    Args:
        said: names or numbers of classes, in the order that they get where nothing else gives one.
        class_names: names of the classes in order, None where nothing but the file says them.
        flag: begins the messages.
    """
    # without known classes the file's own are numbers, if all are; nobody writes the number of a class as 01
    numbers: dict[str, int] = {}
    for text in said:
        number = whole(text)
        if number is not None:
            numbers[text] = number
    only_numbers = bool(said) and all(text in numbers for text in said)
    padded = any(re.fullmatch("0[0-9]+", text) for text in said)
    if class_names is None and only_numbers and not padded:
        check_count(
            max(numbers.values()) + 1, len(said), f"{flag}: its classes, by the highest number"
        )
        return {text: max(number, NO_LABEL) for text, number in numbers.items()}, None

    # names come first, and then numbers that are names of classes: who cannot tell, "?", has none
    names = list(said if class_names is None else class_names)
    places = {name: i for i, name in enumerate(names)}
    by_value: dict[int, int] = {}
    numbered = {i: name for i, name in enumerate(names) if name != "?"}
    if all(name.isdecimal() and len(name) <= LONGEST_NAME for name in numbered.values()):
        # a spreadsheet drops zeros: 1 is the class 01, but of 01 and 001 neither
        counts = Counter(map(int, numbered.values()))
        by_value = {int(name): i for i, name in numbered.items() if counts[int(name)] == 1}
    elif only_numbers and not places.keys() & numbers.keys():
        logger.info(
            f"{flag}: has numbers for classes, which are taken for those of the data in its order"
        )
        check_from_0({*numbers.values()}, numbered, f"{flag}: its classes")
        by_value = {i: i for i in numbered}
    by_number = {text: by_value.get(number, NO_LABEL) for text, number in numbers.items()}
    return {text: places.get(text, by_number.get(text, NO_LABEL)) for text in said}, names


def check_from_0(numbers: Collection[int], places: Container[int], what: str) -> None:
    """Raise a `UserError` where positions may have been counted from 1, so that each would be taken for the next one:
    none is 0, and most from 1 on are there, or the last is just behind the end of the ``places``.
    """
    # negative ones stand for what nobody knows
    positions = [number for number in numbers if number >= 0]
    if len(positions) < 2:
        return
    first, last = min(positions), max(positions)
    dense = first == 1 and 2 * len(positions) > last
    behind = first > 0 and last not in places and last - 1 in places
    if dense or behind:
        raise UserError(
            f"{what} are {first} to {last}; expected positions, which begin with 0, or names (if they do "
            "begin with 0, add a row for it)"
        )


def whole(text: str) -> int | None:
    """Return a whole number that is written as such, else None. Others turn it into 3.0 when a cell is empty."""
    match = _WHOLE.fullmatch(text)
    return int(match[1]) if match else None
