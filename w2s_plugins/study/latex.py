"""Tables in LaTeX, for papers: plain ``tabular`` with the rules of booktabs."""

import re
from collections.abc import Sequence

PACKAGES = r"% \usepackage{booktabs,amssymb}"
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
            ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
            "±": r"$\pm$", "†": r"\textdagger{}", "→": r"$\to$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$"}


def latex_table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table, of which the first row is the head; caption and cells may hold anything."""
    head, *others = (" & ".join(map(escaped, cells)) + r" \\" for cells in rows)
    return "\n".join([
        r"\begin{table}", r"\centering\small", rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule", *others, r"\bottomrule",
        r"\end{tabular}", r"\end{table}"])


def escaped(text: str) -> str:
    """Return a text on one line in which no character is a command of LaTeX."""
    return re.sub(r"[\\~^<>|&%$#_{}±†→▲▼]", lambda found: _SPECIAL[found[0]], " ".join(text.split()))
