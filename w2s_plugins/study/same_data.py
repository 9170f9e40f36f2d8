"""Were runs that go into one figure or table made of the same data? Names decide which data; contents are compared."""

from collections.abc import Iterable, Iterator, Mapping

from ..errors import UserError


def check_same_data(records: Mapping[str, Mapping], flag: str) -> None:
    """Raise a `UserError` where two runs were made of one split or one file of labels, but not of the same contents.

    Args:
        records: result.json of each run, or the part ``data`` of one that is still to be made, by name.
        flag: that makes a figure or a table of them, begins the message.
    """
    first: dict[str, tuple[str, Mapping]] = {}
    for run, record in records.items():
        for source in sources_in(record):
            other, earlier = first.setdefault(str(source["place"]), (run, source))
            if differ(earlier, source):
                raise UserError(
                    f"{flag}: {other} and {run} cannot be compared: {source['name']} changed between them: "
                    f"{shown(earlier)} for {other}, {shown(source)} for {run}; put the files back as they were, or "
                    f"delete the run folder of {other} and train it again")


def sources_in(record: Mapping) -> Iterator[Mapping]:
    """Yield what a run was made of, as far as its record tells: those of earlier versions do not."""
    data = record.get("data")
    sources = data.get("sources") if isinstance(data, Mapping) else None
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, Mapping) and {"role", "name", "place", "samples", "fingerprint"} <= source.keys():
            yield source


def check_made_of(record: Mapping, sources: Iterable[Mapping], where: str) -> None:
    """Raise a `UserError` where a finished run was made of other data than ``sources``, which its flags name now.

    Args:
        record: its result.json.
        sources: see `build.data.sources_of`.
        where: begins the message.
    """
    theirs = {source["role"]: source for source in sources_in(record)}
    for source in sources:
        if source["role"] not in theirs:
            raise UserError(f"{where}: its result.json does not say what {source['name']} was when it was trained, as "
                            "an earlier version wrote it: train it anew")
        if differ(theirs[source["role"]], source):
            raise UserError(f"{where}: that run had other samples or labels in {source['name']}: "
                            f"{shown(theirs[source['role']])}, now {shown(source)}; put the files back as they were, "
                            "or train it anew")


def differ(one: Mapping, other: Mapping) -> bool:
    """Whether two sources differ. Streams, which do not tell what they hold, are taken for the same."""
    return None not in (one["fingerprint"], other["fingerprint"]) and one["fingerprint"] != other["fingerprint"]


def shown(source: Mapping) -> str:
    """Return number of samples and fingerprint of a source."""
    count = "" if source["samples"] is None else f"{source['samples']} samples, "
    return f"{count}fingerprint {source['fingerprint']}"
