"""Were runs that go into one figure or table made of the same data? Names decide which data; contents are compared."""

from collections.abc import Mapping

from ..errors import UserError


def check_same_data(records: Mapping[str, Mapping], where: str, key: str = "place") -> None:
    """Raise a `UserError` where two runs were made of one split or one file of labels, but not of the same contents.

    Streams, which do not tell what they hold, are taken for the same; so are runs of earlier versions.

    Args:
        records: result.json of each run, or the sources of one that is still to be made in the same form, by name.
        where: begins the message.
        key: what says which sources are one: their ``place``, or their ``role`` in runs that only differ in where the
            data lie.
    """
    first: dict[str, tuple[str, Mapping]] = {}
    for run, record in records.items():
        for source in record.get("data", {}).get("sources", ()):
            # the first run that was made of it is what all others are compared with
            other, before = first.setdefault(source[key], (run, source))
            known = None not in (before["fingerprint"], source["fingerprint"])
            if known and before["fingerprint"] != source["fingerprint"]:
                then, now = map(_shown, (before, source))
                raise UserError(
                    f"{where}: {other} and {run} cannot be compared: {source['name']} changed between them: {then} for "
                    f"{other}, {now} for {run}; put the files back as they were, or delete the run folder of {other} "
                    "and train it again")


def _shown(source: Mapping) -> str:
    """Return number of samples and fingerprint of a source."""
    count = "" if source["samples"] is None else f"{source['samples']} samples, "
    return f"{count}fingerprint {source['fingerprint']}"
